"""How good is a model: bits per byte by source on held-out text, beside the lower bound.

    rows = evaluate(model, "runs/tiny/tokens")        # {source: Score}
    python -m nanoseek.evaluate runs/tiny             # this table and more: lab/report.py
    python -m nanoseek.evaluate arena runs/a runs/b   # models side by side: lab/arena.py
    python -m nanoseek.evaluate check runs/tiny       # is my loss normal? lab/health.py

Bits per byte: the negative log2-likelihood of a document and its end-of-text token, over its UTF-8
bytes; comparable across tokenizers, which a loss per token is not. Beside it stand the *floor*, for
stories, whose probability their own grammar knows, and the *unigram*: what a model scores that
knows only how frequent each token of the source is.
"""

import dataclasses
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F

from nanoseek.data import TokenStream, read_manifest

BATCH_TOKENS = 4096  # positions scored at once: activations that stay in the processor's cache


@dataclasses.dataclass(frozen=True)
class Score:
    """The held-out text of one source, scored."""

    documents: int
    bytes: int
    bits_per_byte: float
    floor: float | None  # bits per byte of the grammar itself, where it is known
    unigram: float | None = None  # bits per byte of the source's token frequencies, if known

    @property
    def way_to_floor(self):
        """The share of the way from the unigram model to the floor, or None."""
        if self.floor is None or self.unigram is None:
            return None
        return (self.unigram - self.bits_per_byte) / (self.unigram - self.floor)


def windows(ids, context, stride):
    """Yield (piece, skip) such that every id but the first is predicted exactly once.

    A piece holds at most context + 1 ids; its first `skip` predictions were made before. A long
    document is read in steps of `stride`, so that all but its beginning has at least
    context - stride ids before it.
    """
    done, start = 0, 0
    while done < len(ids) - 1:
        end = min(start + context, len(ids) - 1)
        yield ids[start:end + 1], done - start
        done, start = end, max(0, end - (context - stride))


def nats(model, documents):
    """Return the total negative log-likelihood in nats of documents (arrays of ids), but for their
    first ids, which are given."""
    return float(document_nats(model, documents).sum())


def document_nats(model, documents):
    """Return the nats of each document, a float64 array; see `nats`."""
    context = model.config.max_position_embeddings
    pieces = [(number, piece, skip) for number, document in enumerate(documents)
              for piece, skip in windows(document, context, max(1, context // 2))]
    found = piece_nats(model, [(piece, skip) for _, piece, skip in pieces])
    return np.bincount([number for number, _, _ in pieces], found, len(documents))


@torch.inference_mode()
def piece_nats(model, pieces):
    """Return the nats of each piece (ids, skip), a float64 array; the first id and
    the `skip` ids after it are context only."""
    order = sorted(range(len(pieces)), key=lambda n: len(pieces[n][0]))
    found, start = np.zeros(len(pieces)), 0
    while start < len(order):  # pieces of like lengths share a batch: little padding
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(pieces[order[end]][0]) <= BATCH_TOKENS:
            end += 1
        found[order[start:end]] = _batch_nats(model, [pieces[n] for n in order[start:end]])
        start = end
    return found


def _batch_nats(model, pieces):
    device = model.lm_head.weight.device
    longest = max(len(ids) for ids, _ in pieces)
    inputs = torch.zeros(len(pieces), max(1, longest - 1), dtype=torch.long)  # (B, T)
    targets = torch.full_like(inputs, -100)  # padding and what is skipped: not scored
    for row, (ids, skip) in enumerate(pieces):
        inputs[row, :len(ids) - 1] = torch.from_numpy(ids[:-1])
        targets[row, skip:len(ids) - 1] = torch.from_numpy(ids[skip + 1:])
    # Only scored positions get logits, which are the largest tensor by far.
    scored = targets >= 0
    logits = model.lm_head(model.hidden(inputs.to(device))[scored.to(device)])  # (N, V)
    losses = F.cross_entropy(logits.float(), targets[scored].to(device), reduction="none").cpu()
    return np.bincount(scored.nonzero()[:, 0].numpy(), losses.numpy(), len(pieces))


def held_out(folder, limit=None, split="held_out"):
    """Return {source: [ids]} of the documents of a split, each ending as it begins: with eot.

    limit: at most so many tokens of each source (whole documents, one at least).
    """
    manifest = read_manifest(folder)
    end = [] if manifest["eot_id"] is None else [manifest["eot_id"]]
    found = {}
    for source, entry in manifest["splits"][split].items():
        stream = TokenStream(folder, entry, manifest["dtype"])
        count = len(stream) if limit is None else \
            max(1, int(np.searchsorted(np.cumsum(stream.lengths), limit, side="right")))
        found[source] = [np.concatenate((stream.document(i), end)).astype(np.int64)
                         for i in range(count)]
    return found


def unigram_nats(folder, source, documents, vocab_size):
    """Return the nats of documents under the token frequencies of their source.

    The frequencies are those of the source's training documents in a token folder, each plus one.
    Raises ValueError when the folder's vocabulary is not of this size.
    """
    manifest = read_manifest(folder)
    if manifest["vocab_size"] != vocab_size:
        raise ValueError(f"{folder} was encoded with a vocabulary of {manifest['vocab_size']}, "
                         f"but the model's has {vocab_size}: build the tokens again")
    counts, entry = np.ones(vocab_size), manifest["splits"]["train"].get(source)
    if entry is not None:
        ids = TokenStream(folder, entry, manifest["dtype"], verify=False).ids
        counts += np.bincount(ids, minlength=vocab_size)
    log_probability = np.log(counts) - math.log(counts.sum())
    return -sum(float(log_probability[ids[1:]].sum()) for ids in documents)


def evaluate(model, folder):
    """Score all held-out documents of a token folder: {source: Score}."""
    scores, entries = {}, read_manifest(folder)["splits"]["held_out"]
    for source, documents in held_out(folder).items():
        entry, log2_probability = entries[source], entries[source]["log2_probability"]
        nats_at_one_bit = entry["bytes"] * math.log(2)  # what one bit per byte would be
        unigram = unigram_nats(folder, source, documents, model.config.vocab_size)
        scores[source] = Score(
            entry["documents"], entry["bytes"], nats(model, documents) / nats_at_one_bit,
            log2_probability and -log2_probability / entry["bytes"], unigram / nats_at_one_bit)
    return scores


def main(argv=None):
    from nanoseek.cli import hand_over
    argv = sys.argv[1:] if argv is None else argv
    commands = {"arena": "nanoseek.lab.arena", "check": "nanoseek.lab.health"}
    if argv and argv[0] in commands:
        return hand_over(commands[argv[0]], argv[1:])
    return hand_over("nanoseek.lab.report", argv)


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
