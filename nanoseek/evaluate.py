"""How good is a model: bits per byte by source on held-out text, beside what is possible.

    rows = evaluate(model, "runs/tiny/tokens")        # {source: Score}
    print(format_scores(rows))

Bits per byte: the total negative log2-likelihood of a document, its end-of-text token included,
over its UTF-8 bytes; comparable across tokenizers, which a loss per token is not. Beside it stand
the *floor*, for stories, whose probability under their own grammar is known, and the *unigram*:
what a model scores that knows only how frequent each token of the source is.
"""

import dataclasses
import html
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

from nanoseek.data import TokenStream, read_manifest
from nanoseek.generate import generate_many, load
from nanoseek.stories import check_story

BATCH_TOKENS = 8192  # positions scored at once: their logits over a small vocabulary take 64 MB


@dataclasses.dataclass(frozen=True)
class Score:
    """The held-out text of one source, scored."""

    documents: int
    bytes: int
    bits_per_byte: float
    floor: float | None  # bits per byte of the grammar itself, where it is known
    unigram: float  # bits per byte of the source's token frequencies

    @property
    def way_to_floor(self):
        """The share of the way from the unigram model to the floor, or None."""
        return self.floor and (self.unigram - self.bits_per_byte) / (self.unigram - self.floor)


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


@torch.inference_mode()
def nats(model, documents, stride=None):
    """Return the total negative log-likelihood in nats of documents (arrays of ids).

    The first id of each document is given, not scored. stride: see `windows` (half the context).
    """
    context = model.config.max_position_embeddings
    pieces = [piece for document in documents
              for piece in windows(document, context, stride or max(1, context // 2))]
    pieces.sort(key=lambda piece: len(piece[0]))  # alike lengths share a batch: little padding
    device = model.lm_head.weight.device
    total, start = 0.0, 0
    while start < len(pieces):
        end = start + 1
        while end < len(pieces) and (end + 1 - start) * len(pieces[end][0]) <= BATCH_TOKENS:
            end += 1
        total += _batch_nats(model, pieces[start:end], device)
        start = end
    return total


def _batch_nats(model, pieces, device):
    longest = max(len(ids) for ids, _ in pieces)
    inputs = torch.zeros(len(pieces), longest - 1, dtype=torch.long)
    targets = torch.full_like(inputs, -100)  # cross_entropy ignores -100: padding and skipped
    for row, (ids, skip) in enumerate(pieces):
        inputs[row, :len(ids) - 1] = torch.from_numpy(ids[:-1])
        targets[row, skip:len(ids) - 1] = torch.from_numpy(ids[skip + 1:])
    logits = model(inputs.to(device))
    return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten().to(device),
                           reduction="sum").item()


def held_out(folder, limit=None):
    """Return {source: [ids]} of the held-out documents, each ending as it begins: with eot.

    limit: at most so many tokens of each source (whole documents, one at least).
    """
    manifest = read_manifest(folder)
    end = [] if manifest["eot_id"] is None else [manifest["eot_id"]]
    found = {}
    for source, entry in manifest["splits"]["held_out"].items():
        stream = TokenStream(folder, entry, manifest["dtype"])
        cut = len(stream) if limit is None else \
            max(1, int(np.searchsorted(np.cumsum(stream.lengths), limit)))
        found[source] = [np.concatenate((stream.document(i), end)).astype(np.int64)
                         for i in range(cut)]
    return found


def unigram_nats(counts, documents):
    """Return the nats of documents under token frequencies `counts` (V,), each plus one."""
    log_probability = np.log(counts + 1.0) - math.log(counts.sum() + len(counts))
    return -sum(float(log_probability[ids[1:]].sum()) for ids in documents)


def evaluate(model, folder):
    """Score all held-out documents of a token folder: {source: Score}.

    Raises ValueError when the model's vocabulary is not the folder's.
    """
    manifest = read_manifest(folder)
    if manifest["vocab_size"] != model.config.vocab_size:
        raise ValueError(f"{folder} was encoded with a vocabulary of {manifest['vocab_size']}, "
                         f"but the model's has {model.config.vocab_size}: name its own tokens")
    scores = {}
    for source, documents in held_out(folder).items():
        entry = manifest["splits"]["held_out"][source]
        bits = entry["bytes"] * math.log(2)  # nats → bits per byte
        floor = entry["log2_probability"]
        scores[source] = Score(
            entry["documents"], entry["bytes"], nats(model, documents) / bits,
            floor and -floor / entry["bytes"],
            unigram_nats(token_counts(folder, source), documents) / bits)
    return scores


def token_counts(folder, source):
    """Return how often each id (V,) occurs in the training documents of a source."""
    manifest = read_manifest(folder)
    counts = np.zeros(manifest["vocab_size"], dtype=np.int64)
    entry = manifest["splits"]["train"].get(source)
    if entry is not None:
        for shard in TokenStream(folder, entry, manifest["dtype"], verify=False).shards:
            counts += np.bincount(shard, minlength=len(counts))
    return counts


def format_scores(scores):
    """Return the scores as a table for the screen."""
    lines = [f"{'held-out source':<18}{'documents':>10}{'bits/byte':>11}{'floor':>8}"
             f"{'above':>8}{'unigram':>9}{'way':>7}"]
    for source, s in scores.items():
        above = f"{s.bits_per_byte / s.floor - 1:+.1%}" if s.floor else "-"
        lines.append(
            f"{source:<18}{s.documents:>10,}{s.bits_per_byte:>11.3f}"
            f"{(f'{s.floor:.3f}' if s.floor else '-'):>8}{above:>8}{s.unigram:>9.3f}"
            f"{(f'{s.way_to_floor:.0%}' if s.floor else '-'):>7}")
    if any(s.floor for s in scores.values()):
        lines.append("floor: the grammar's own entropy, which no model can beat; above: how far "
                     "over it;\nway: how much of the way from the unigram model to the floor")
    return "\n".join(lines)


def tell(model, tokenizer, starts, count, max_new_tokens, seed=0):
    """Return `count` texts that the model writes, each begun with a held-out document's first id.

    starts: held-out documents (arrays of ids, the first of them eot), of which the first ids
    give the texts their source, so that a story of a language can be asked for. The settings
    are those of `make sample`.
    """
    prompts = [starts[i % len(starts)][:2].tolist() for i in range(count)]
    texts = []
    for part in range(0, count, 100):  # so many at once: larger batches gain little
        several = prompts[part:part + 100]
        new = generate_many(model, several, max_new_tokens,
                            stop_ids=[tokenizer.eot_id], temperature=0.8, top_p=0.95,
                            seed=seed + part)
        texts += [tokenizer.decode(prompt[1:] + ids) for prompt, ids in zip(several, new)]
    return texts


def format_samples(model, tokenizer, folder, count, judged):
    """Return samples of each source, unpicked, and for stories how many of `judged` hold together.

    A source of stories is one whose probability is known; the story checker judges them.
    """
    entries, lines = read_manifest(folder)["splits"]["held_out"], []
    for source, documents in held_out(folder).items():
        story = entries[source]["log2_probability"] is not None
        texts = tell(model, tokenizer, documents, max(count, judged if story else 0),
                     model.config.max_position_embeddings if story else 120)
        lines += [f"\n{source}, the first {count} samples", *texts[:count]] if count else []
        if story and judged:
            good = sum(not check_story(text) for text in texts)
            lines.append(f"{source}: {good} of {len(texts)} sampled stories are consistent "
                         f"({good / len(texts):.1%})")
    return "\n".join(lines)


# --- the curve ---------------------------------------------------------------------------------

COLOURS = ("#3b82c4", "#d0662c", "#3f9b57", "#a4508b", "#8a7a1f")  # seen on white and on black
WIDTH, HEIGHT, LEFT, BOTTOM = 720, 380, 60, 50


def write_curve(log, floors, path):
    """Draw held-out bits per byte by source over tokens, the floors dashed, as an SVG file.

    log: the rows of log.jsonl; floors: {source: bits per byte} where known.
    """
    points = {}
    for row in log:
        for source, value in row.get("held_out", {}).items():
            points.setdefault(source, []).append((row["tokens"], value))
    if not points:
        return
    values = [v for line in points.values() for _, v in line] + list(floors.values())
    top, right = min(max(values), 6.0) * 1.05, max(x for line in points.values() for x, _ in line)

    def place(x, y):
        return (LEFT + (WIDTH - LEFT - 150) * x / max(1, right),
                HEIGHT - BOTTOM - (HEIGHT - BOTTOM - 20) * min(y, top) / top)

    parts, labels = _axes(place, right, top), []
    for (source, line), colour in zip(sorted(points.items()), COLOURS * len(points)):
        path_text = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*p) for p in line))
        parts.append(f'<polyline points="{path_text}" fill="none" stroke="{colour}" '
                     'stroke-width="2"/>')
        labels.append((place(*line[-1])[1], f"{html.escape(source)} {line[-1][1]:.3f}", colour))
        if source in floors:
            x, y = place(right, floors[source])
            parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{x:.1f}" y2="{y:.1f}" '
                         f'stroke="{colour}" stroke-dasharray="5 4"/>')
    lowest = HEIGHT - BOTTOM
    for y, text, colour in sorted(labels, reverse=True):  # from the lowest up, none over another
        lowest = min(y, lowest) - 15
        parts.append(f'<text x="{place(right, 0)[0] + 6:.0f}" y="{lowest + 19:.0f}" '
                     f'fill="{colour}">{text}</text>')
    pathlib.Path(path).write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#888">{"".join(parts)}</svg>\n',
        encoding="utf-8")


def _axes(place, right, top):
    """Return the SVG of axes, ticks and labels."""
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        x, y = place(right * share, 0)
        parts.append(f'<text x="{x:.0f}" y="{y + 18:.0f}" text-anchor="middle">'
                     f'{right * share / 1e6:.2f}M</text>')
        x, y = place(0, top * share)
        parts.append(f'<text x="{x - 8:.0f}" y="{y + 4:.0f}" text-anchor="end">'
                     f'{top * share:.2f}</text>'
                     f'<line x1="{x}" y1="{y:.1f}" x2="{place(right, 0)[0]:.1f}" y2="{y:.1f}" '
                     'stroke="#888" stroke-opacity="0.25"/>')
    x, y = place(right / 2, 0)
    parts.append(f'<text x="{x:.0f}" y="{y + 38:.0f}" text-anchor="middle">training tokens</text>'
                 f'<text x="14" y="{HEIGHT / 2:.0f}" text-anchor="middle" '
                 f'transform="rotate(-90 14 {HEIGHT / 2:.0f})">held-out bits per byte '
                 '(dashed: floor)</text>')
    return parts


def main(argv=None):
    from nanoseek.cli import Parser
    parser = Parser("nanoseek.evaluate", "Score a model on held-out text, in bits per byte.")
    parser.add_argument("folder", help="a run or a checkpoint")
    parser.add_argument("--tokens", help="the token folder (default: tokens in the run)")
    parser.add_argument("--samples", type=int, default=0, help="texts of each source to show")
    parser.add_argument("--judged", type=int, default=0, help="stories of each language to check")
    args = parser.parse_args(argv)
    if min(args.samples, args.judged) < 0:
        parser.error("samples and judged must be at least 0")
    tokens = args.tokens or pathlib.Path(args.folder) / "tokens"
    model, tokenizer = load(args.folder)
    print(format_scores(evaluate(model, tokens)))
    if args.samples or args.judged:
        print(format_samples(model, tokenizer, tokens, args.samples, args.judged))


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
