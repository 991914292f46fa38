"""How good is a model: bits per byte by source on held-out text, beside what is possible.

    rows = evaluate(model, "runs/tiny/tokens")        # {source: Score}
    print(format_scores(rows))

    python -m nanoseek.evaluate runs/tiny                   # this table, and the cloze questions
    python -m nanoseek.evaluate arena runs/a runs/b         # models side by side: arena.py
    python -m nanoseek.evaluate check runs/tiny             # is my loss normal? health.py

Bits per byte: the total negative log2-likelihood of a document, its end-of-text token included,
over its UTF-8 bytes; comparable across tokenizers, which a loss per token is not. Beside it stand
the *floor*, for stories, whose probability under their own grammar is known, and the *unigram*:
what a model scores that knows only how frequent each token of the source is.
"""

import contextlib
import dataclasses
import html
import math
import pathlib
import sys
import typing

import numpy as np
import torch
import torch.nn.functional as F

from nanoseek.checkpoint import find_checkpoint, read_json
from nanoseek.lab.cloze import ABILITIES, CHANCE, digest, questions
from nanoseek.corpus import read_documents
from nanoseek.data import TokenStream, read_manifest
from nanoseek.generate import SAMPLING, generate_many, load
from nanoseek.corpus.stories import check_story

BATCH_TOKENS = 4096  # positions scored at once: activations that stay in the cache
SMALL = 4_000_000  # weights of a model that one core scores as fast as two (measured: 1.4 million)


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


def nats(model, documents, stride=None):
    """Return the total negative log-likelihood in nats of documents (arrays of ids).

    The first id of each document is given, not scored. stride: see `windows` (half the context).
    """
    return float(document_nats(model, documents, stride).sum())


def document_nats(model, documents, stride=None):
    """Return the nats of each document, a float64 array; see `nats`."""
    context = model.config.max_position_embeddings
    pieces = [(number, piece, skip) for number, document in enumerate(documents)
              for piece, skip in windows(document, context, stride or max(1, context // 2))]
    found = piece_nats(model, [(piece, skip) for _, piece, skip in pieces])
    return np.bincount([number for number, _, _ in pieces], found, len(documents))


@torch.inference_mode()
def piece_nats(model, pieces):
    """Return the nats of each piece (ids, skip), a float64 array; its first ids are not scored:
    the first of all, and `skip` more."""
    order = sorted(range(len(pieces)), key=lambda n: len(pieces[n][0]))
    found, start = np.zeros(len(pieces)), 0
    while start < len(order):  # alike lengths share a batch: little padding
        end = start + 1
        while end < len(order) and (end + 1 - start) * len(pieces[order[end]][0]) <= BATCH_TOKENS:
            end += 1
        found[order[start:end]] = _batch_nats(model, [pieces[n] for n in order[start:end]])
        start = end
    return found


def _batch_nats(model, pieces):
    device = model.lm_head.weight.device
    longest = max(len(ids) for ids, _ in pieces)
    inputs = torch.zeros(len(pieces), max(1, longest - 1), dtype=torch.long)
    targets = torch.full_like(inputs, -100)  # padding and skipped: not scored
    for row, (ids, skip) in enumerate(pieces):
        inputs[row, :len(ids) - 1] = torch.from_numpy(ids[:-1])
        targets[row, skip:len(ids) - 1] = torch.from_numpy(ids[skip + 1:])
    scored = targets >= 0  # only these need logits, the largest tensor by far
    logits = model.lm_head(model.hidden(inputs.to(device))[scored.to(device)])
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
            f"{_or_dash(s.floor, '.3f'):>8}{above:>8}{_or_dash(s.unigram, '.3f'):>9}"
            f"{_or_dash(s.way_to_floor, '.0%'):>7}")
    if any(s.floor for s in scores.values()):
        lines.append("floor: the grammar's own entropy, which no model can beat; above: how far "
                     "over it;\nway: how much of the way from the unigram model to the floor")
    return "\n".join(lines)


def _or_dash(value, form):
    return "-" if value is None else format(value, form)


# --- any folder, by its text ------------------------------------------------------------------

class Subject(typing.NamedTuple):
    """A model with what it needs to read text; begin and end are ids of a document, or None."""

    model: typing.Any
    tokenizer: typing.Any
    begin: int | None
    end: int | None

    def ids(self, text, whole=True):
        """Return the ids (int64 array) of a text behind `begin`, and before `end` when whole."""
        frame = [[] if i is None else [i] for i in (self.begin, self.end if whole else None)]
        return np.array([*frame[0], *self.tokenizer.encode(text), *frame[1]], dtype=np.int64)


@contextlib.contextmanager
def few_threads(*models):
    """Let small models compute on one core meanwhile.

    Their matrices are too small to share out, and where another program holds a core, a thread
    that waits for it at every one of them takes many times as long.
    """
    before = torch.get_num_threads()
    if all(sum(p.numel() for p in model.parameters()) < SMALL for model in models):
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_subject(folder):
    """Return the Subject of a run, a checkpoint or a Llama folder with a tokenizer.json.

    The ids that begin and end a document are those of its config.json (bos, eos), else the
    tokenizer's end-of-text. Raises ValueError when the vocabulary does not fit the model.
    """
    folder = find_checkpoint(folder)
    model, tokenizer = load(folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(f"{folder}: the tokenizer has {tokenizer.vocab_size} ids, the model only "
                         f"{model.config.vocab_size}: they do not belong together")
    settings = read_json(folder / "config.json")
    begin, end = (settings.get(f"{kind}_token_id") for kind in ("bos", "eos"))
    end = next(iter(end), None) if isinstance(end, list) else end  # Llama 3 lists several
    for value in (begin, end):
        if value is not None and (type(value) is not int or
                                  not 0 <= value < model.config.vocab_size):
            raise ValueError(f"{folder / 'config.json'}: {value!r} begins or ends a document, but "
                             f"the model has ids from 0 to {model.config.vocab_size - 1}")
    end = tokenizer.eot_id if end is None else end
    return Subject(model, tokenizer, end if begin is None else begin, end)


def text_nats(subject, texts):
    """Return the nats of each text (float64 array), the end of the document included.

    Where nothing can begin a document, its first token is charged as drawn evenly from all.
    """
    found = document_nats(subject.model, [subject.ids(text) for text in texts])
    return found + (math.log(subject.model.config.vocab_size) if subject.begin is None else 0)


def score_texts(subject, documents):
    """Score documents, {source: [document]} from `held_out_documents`: {source: Score}."""
    scores = {}
    for source, several in documents.items():
        size = sum(len(d["text"].encode("utf-8")) for d in several)
        bits = text_nats(subject, [d["text"] for d in several]).sum() / math.log(2)
        scores[source] = Score(len(several), size, bits / size, floor_of(several))
    return scores


def floor_of(documents):
    """Return the bits per byte of the grammar that wrote these documents, None if unknown."""
    if not all("log2_probability" in d for d in documents):
        return None
    return -sum(d["log2_probability"] for d in documents) / sum(
        len(d["text"].encode("utf-8")) for d in documents)


def held_out_documents(path):
    """Return {source: [document]} of a JSON lines file: the held-out ones where it has a split.

    Raises ValueError when there are none.
    """
    documents = [d for d in read_documents(path) if d["text"].strip()]
    if any("split" in d for d in documents):
        documents = [d for d in documents if d.get("split") == "held_out"]
    if not documents:
        raise ValueError(f"{path} holds no held-out document: name a file of JSON lines with text "
                         "that no model was trained on")
    found = {}
    for document in documents:
        found.setdefault(document["source"], []).append(document)
    return found


def beside(folder, name):
    """Return the path of a run's file, given the run, one of its checkpoints, or a run that took
    its tokens from another run; None where there is none."""
    folder = pathlib.Path(folder)
    places = [folder, *[folder.parent.parent] * (folder.parent.name == "checkpoints")]
    for state in [find_checkpoint(folder) / "trainer.json"] * (name != "cost.json"):
        if state.is_file():
            config = read_json(state).get("config")
            if not isinstance(config, dict) or not isinstance(config.get("tokens"), str | None):
                raise ValueError(f"{state} is damaged: it holds no config of a run")
            places += [pathlib.Path(config["tokens"]).parent] if config.get("tokens") else []
    return next((place / name for place in places if (place / name).is_file()), None)


def trained_on(folder):
    """Return the digests of the documents that a run was trained on; empty where unknown."""
    path = beside(folder, "clean.jsonl")
    return {digest(d["text"]) for d in read_documents(path)
            if d.get("split") != "held_out"} if path else set()


def refuse_known(folder, documents):
    """Raise ValueError when a run was trained on any of these documents, {source: [document]}."""
    texts = [d["text"] for several in documents.values() for d in several]
    known = trained_on(folder)
    count = sum(digest(text) in known for text in texts)
    if count:
        raise ValueError(f"{folder} was trained on {count} of the {len(texts)} documents to be "
                         "scored: name text that no model has seen, with --text")


# --- cloze questions ---------------------------------------------------------------------------

def answer(subject, items):
    """Return whether each question is answered right, a boolean array.

    The choice with the most likelihood per byte is taken: the choice and the rest of its sentence,
    behind the context. What all choices of a question share is not counted.
    """
    pieces, sizes = [], []
    for item in items:
        several = [subject.ids(item.context + c, whole=False) for c in item.choices]
        shared = 0
        while len({ids[shared] if len(ids) > shared else -1 for ids in several}) == 1:
            shared += 1
        room = subject.model.config.max_position_embeddings + 1
        pieces += [(ids[-room:], max(0, shared - 1 - max(0, len(ids) - room))) for ids in several]
        sizes += [len(c.encode("utf-8")) for c in item.choices]
    rates = piece_nats(subject.model, pieces) / sizes
    right, at = [], 0
    for item in items:
        right.append(int(rates[at:at + len(item.choices)].argmin()) == item.answer)
        at += len(item.choices)
    return np.array(right)


def wilson(right, count, z=1.96):
    """Return the 95% interval of a share (Wilson 1927): (low, high)."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def by_ability(items, right):
    """Return {ability: boolean array} of answers."""
    kinds = np.array([item.ability for item in items])
    return {ability: right[kinds == ability] for ability in ABILITIES}


def format_cloze(items, right):
    """Return the answers in two lines."""
    parts, found = [], by_ability(items, right)
    for ability, values in found.items():
        low, high = wilson(values.sum(), len(values))
        parts.append(f"{ability} {values.mean():.0%} ({low:.0%}–{high:.0%})")
    return (f"cloze questions answered right, of {len(found['name'])} each, with 95% intervals "
            f"(by chance {CHANCE['name']:.0%}, pronoun {CHANCE['pronoun']:.0%}):\n  "
            + ", ".join(parts))


# --- stories of its own ------------------------------------------------------------------------

def opening(text, words=1):
    """Return how a text begins: its first words, or for each two characters of Chinese."""
    found = text.split(maxsplit=words)[:words]
    return " ".join(found) if found[0].isascii() else found[0][:2 * words]


def tell(subject, openings, max_new_tokens, seed=0):
    """Return a text for each opening, that included, with the settings of `make sample`.

    Openings of equally many ids are continued side by side.
    """
    prompts = [subject.ids(text, whole=False).tolist() for text in openings]
    texts, lengths = [""] * len(prompts), {}
    for number, prompt in enumerate(prompts):
        lengths.setdefault(len(prompt), []).append(number)
    for numbers in lengths.values():
        for at in range(0, len(numbers), 100):  # so many at once: larger batches gain little
            some = numbers[at:at + 100]
            new = generate_many(subject.model, [prompts[n] for n in some], max_new_tokens,
                                stop_ids=[subject.end], seed=seed + at, **SAMPLING)
            for n, ids in zip(some, new):  # a padded vocabulary has ids without text
                texts[n] = openings[n] + subject.tokenizer.decode(
                    [i for i in ids if i < subject.tokenizer.vocab_size])
    return texts


def format_samples(subject, folder, count, judged):
    """Return samples of each source, unpicked, and for stories how many of `judged` hold together.

    A source of stories is one whose probability is known; the story checker judges them.
    """
    entries, lines = read_manifest(folder)["splits"]["held_out"], []
    for source, documents in held_out(folder).items():
        story = entries[source]["log2_probability"] is not None
        wanted = max(count, judged if story else 0)
        starts = [opening(subject.tokenizer.decode(documents[i % len(documents)][1:40]))
                  for i in range(wanted)]
        texts = tell(subject, starts, subject.model.config.max_position_embeddings if story
                     else 120)
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
    from nanoseek.lab import arena, health
    from nanoseek.cli import Parser, say
    argv = sys.argv[1:] if argv is None else argv
    for command in (arena, health):
        if argv[:1] == [command.NAME]:
            return command.main(argv[1:])
    parser = Parser("nanoseek.evaluate", "Score a model on held-out text, in bits per byte.\n"
                    "Two more: evaluate arena RUN RUN …, models side by side; evaluate check RUN, "
                    "the health of a run.")
    parser.add_argument("folder", help="a run, a checkpoint or a Llama folder")
    parser.add_argument("--tokens", help="the token folder (default: tokens in the run)")
    parser.add_argument("--text", help="documents to score in place of tokens, JSON lines")
    parser.add_argument("--samples", type=int, default=0, help="texts of each source to show")
    parser.add_argument("--judged", type=int, default=0, help="stories of each language to check")
    parser.add_argument("--cloze", type=int, default=50,
                        help="questions of each ability and language, for models of stories")
    args = parser.parse_args(argv)
    if min(args.samples, args.judged, args.cloze) < 0:
        parser.error("samples, judged and cloze must be at least 0")
    args.folder = pathlib.Path(args.folder)
    subject = open_subject(args.folder)
    with few_threads(subject.model):
        _report(subject, args, say)


def _report(subject, args, say):
    """Print what the model of one folder can do."""
    if args.text:
        documents = held_out_documents(args.text)
        refuse_known(args.folder, documents)
        say("scoring the documents")
        scores = score_texts(subject, documents)
    else:
        manifest = beside(args.folder, "tokens/manifest.json")
        tokens = args.tokens or (manifest.parent if manifest else args.folder / "tokens")
        say("scoring held-out text")
        scores = evaluate(subject.model, tokens)
    print(format_scores(scores))
    if not args.text and (args.samples or args.judged):
        say("writing samples")
        print(format_samples(subject, tokens, args.samples, args.judged))
    if args.cloze and any(s.floor for s in scores.values()):
        say("asking cloze questions")
        items = questions(args.cloze, avoid=trained_on(args.folder))
        print("\n" + format_cloze(items, answer(subject, items)))


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
