"""How good is a model: bits per byte by source on held-out text, beside the lower bound.

    rows = evaluate(model, "runs/tiny/tokens")        # {source: Score}
    python -m nanoseek.evaluate runs/tiny             # this table and more: lab/report.py
    python -m nanoseek.evaluate arena runs/a runs/b   # models side by side: lab/arena.py
    python -m nanoseek.evaluate check runs/tiny       # is my loss normal? lab/health.py

Bits per byte: the negative log2-likelihood of a document and its end-of-text token, over its UTF-8
bytes; comparable across tokenizers, which a loss per token is not. Beside it stand the *floor*, for
stories, which were written by a grammar that knows their probability, and the *unigram*: what a
model scores that knows only how frequent each token of the source is."""

import math
import sys
from collections import namedtuple

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from nanoseek.data import TokenStream, read_manifest

BATCH_TOKENS = 4096  # positions scored at once: activations that stay in the processor's cache

# The held-out documents of a source: how many; the bits per byte of the model, of the source's
# token frequencies, and of the grammar itself, None where there is none.
Score = namedtuple("Score", "documents bits_per_byte unigram floor")


def windows(ids, context, stride):
    """Yield (piece, skip) such that every id but the first is predicted exactly once.

    A piece holds at most context + 1 ids; its first `skip` predictions were made before. A long
    document is read in steps of `stride`: all but its beginning has context - stride ids before."""
    done, start = 0, 0
    while done < len(ids) - 1:
        end = min(start + context, len(ids) - 1)
        yield ids[start:end + 1], done - start
        done, start = end, max(0, end - (context - stride))


def bits_per_byte(model, tokenizer, documents):
    """Return the bits per byte of documents (arrays of ids, each between two end-of-text ids)."""
    size = sum(len(tokenizer.decode_bytes(ids[1:-1].tolist())) for ids in documents)
    return nats(model, documents) / math.log(2) / max(1, size)


def nats(model, documents):
    """Return the total negative log-likelihood in nats of documents, but for their first ids."""
    return float(document_nats(model, documents).sum())


def document_nats(model, documents):
    """Return the nats of each document, a float64 array; see `nats`."""
    context = model.config.max_position_embeddings
    cut = [list(windows(ids, context, max(1, context // 2))) for ids in documents]
    found = piece_nats(model, [piece for pieces in cut for piece in pieces])
    return np.bincount(np.repeat(np.arange(len(cut)), [*map(len, cut)]), found, len(cut))


@torch.inference_mode()
def piece_nats(model, pieces):
    """Return the nats of pieces (ids, skip), float64; a first id and `skip` more are context."""
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
    inputs = pad_sequence([torch.from_numpy(ids[:-1]) for ids, _ in pieces], True)  # (B, T)
    # Padding and skipped ids are not scored. Only what is scored gets logits, the largest tensor.
    targets = pad_sequence([torch.from_numpy(ids[1:]) for ids, _ in pieces], True, -100)
    for row, (_, skip) in enumerate(pieces):
        targets[row, :skip] = -100
    scored, device = targets >= 0, model.lm_head.weight.device
    logits = model.lm_head(model.hidden(inputs.to(device))[scored.to(device)])  # (N, V)
    losses = F.cross_entropy(logits.float(), targets[scored].to(device), reduction="none").cpu()
    return np.bincount(scored.nonzero()[:, 0].numpy(), losses.numpy(), len(pieces))


def held_out(folder, limit=math.inf, split="held_out"):
    """Return {source: [ids]} of the documents of a split, each ending as it begins: with eot.

    limit: at most so many tokens of each source (whole documents, one at least)."""
    manifest, found = read_manifest(folder), {}
    end = [] if manifest["eot_id"] is None else [manifest["eot_id"]]
    for source, entry in manifest["splits"][split].items():
        stream = TokenStream(folder, entry, manifest["dtype"])
        count = max(1, np.searchsorted(np.cumsum(stream.lengths), limit, side="right"))
        found[source] = [np.concatenate((stream.document(i), end)).astype(np.int64)
                         for i in range(count)]
    return found


def unigram_nats(folder, source, documents):
    """Return the nats of documents under the counts of their source's training tokens plus one."""
    manifest = read_manifest(folder)
    counts, entry = np.ones(manifest["vocab_size"]), manifest["splits"]["train"].get(source)
    if entry:
        ids = TokenStream(folder, entry, manifest["dtype"], verify=False).ids
        counts += np.bincount(ids, minlength=len(counts))
    log_probability = np.log(counts / counts.sum())
    return -log_probability[np.concatenate([ids[1:] for ids in documents])].sum()


def evaluate(model, folder):
    """Score all held-out documents of a token folder: {source: Score}."""
    manifest, size, scores = read_manifest(folder), model.config.vocab_size, {}
    if manifest["vocab_size"] != size:
        raise ValueError(f"{folder} was encoded with a vocabulary of {manifest['vocab_size']}, "
                         f"but the model's has {size}: build the tokens again")
    for source, documents in held_out(folder).items():
        entry = manifest["splits"]["held_out"][source]
        one_bit = entry["bytes"] * math.log(2)  # the nats at one bit per byte
        log2 = entry["log2_probability"]
        scores[source] = Score(entry["documents"], nats(model, documents) / one_bit,
                               unigram_nats(folder, source, documents) / one_bit,
                               log2 and -log2 / entry["bytes"])
    return scores


def main(argv=None):
    from nanoseek.cli import hand_over
    argv = sys.argv[1:] if argv is None else argv
    for name, module in (("arena", "nanoseek.lab.arena"), ("check", "nanoseek.lab.health")):
        if argv[:1] == [name]:
            return hand_over(module, argv[1:])
    return hand_over("nanoseek.lab.report", argv)


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
