"""The arena: models side by side, in one table, on the same text, questions and beginnings.

    python -m nanoseek.evaluate arena runs/a runs/b > arena.md

Any folder may enter: a run, a checkpoint, a Llama folder of others with its tokenizer.json; all is
counted per byte of text, so vocabularies may differ. Every model is held against the first, in
pairs, on the same documents, questions and beginnings of stories, with a randomization test on the
sign of each difference (Fisher 1935). Many comparisons find a difference by chance now and then;
Holm's rule (1979) keeps the chance of even one such find over the whole table below 5%."""

import math
import time
from itertools import cycle, islice

import numpy as np

from nanoseek import cli
from nanoseek.checkpoint import read_json, trusting
from nanoseek.corpus.stories import check_story
from nanoseek.evaluate import document_nats
from nanoseek.generate import generate
from nanoseek.lab.cloze import ABILITIES, CHANCE, questions
from nanoseek.lab.report import answer, format_share, write_like
from nanoseek.lab.subject import held_out_documents, open_subject, spare_threads, trained_on

LEVEL = 0.05  # of finding a difference between two equal models anywhere in the table
SIGNS = {1: " ▲", -1: " ▼", 0: " ≈"}
COSTS = ("tokens/s, writing one text", "training, seconds", "training, FLOPs", "training, dollars")


def sign_test(differences, resamples=9999):
    """Return the two-sided p of paired differences whose signs would be chance (Fisher 1935)."""
    rng, extreme, found = np.random.default_rng(0), 0, abs(differences.sum())
    for _ in range(0, resamples, 1111):  # in parts, to save memory
        signs = rng.integers(0, 2, (1111, len(differences))) * 2 - 1
        extreme += np.count_nonzero(abs(signs @ differences) >= found * (1 - 1e-9))
    return (extreme + 1) / (resamples + 1)


def holm(differences):
    """Return the sign of the sum of each array of differences, 0 where it may be chance (Holm)."""
    p_values = [sign_test(values) for values in differences]
    signs, order = [0] * len(p_values), np.argsort(p_values, kind="stable")
    for rank, n in enumerate(order):
        if p_values[n] > LEVEL / (len(order) - rank):
            break
        signs[n] = int(np.sign(differences[n].sum()))
    return signs


def compare(subjects, documents, cloze, judged, avoid):
    """Yield (label, an array for each model, where more is better, what writes one as a cell)."""
    cli.say("scoring held-out text")
    for source, several in documents.items():
        texts, label = [d["text"] for d in several], f"bits per byte of {source}"
        size = sum(len(text.encode("utf-8")) for text in texts)
        if all("log2_probability" in d for d in several):
            label += f" (floor {-sum(d['log2_probability'] for d in several) / size:.3f})"
        nats = [document_nats(s.model, [s.ids(text) for text in texts]) for s in subjects]
        yield (label, [-each / math.log(2) / size for each in nats],
               lambda bits: f"{-bits.sum():.3f}")
    stories = [source for source, several in documents.items() if "log2_probability" in several[0]]
    if stories and cloze:
        cli.say("asking cloze questions")
        items = questions(cloze, avoid=avoid)
        right = [answer(s, items) for s in subjects]
        for ability in ABILITIES:
            yield (f"cloze {ability} (chance {CHANCE[ability]:.0%})",
                   [each[ability] for each in right], format_share)
        yield (f"cloze all (of {len(items)})",
               [np.concatenate([*each.values()]) for each in right], format_share)
    if stories and judged:
        cli.say("writing and checking stories")
        for source in stories:
            texts = [d["text"] for d in islice(cycle(documents[source]), judged)]
            right = [np.array([not check_story(t) for t in write_like(s, texts)]) for s in subjects]
            yield f"consistent {source} (of {judged})", right, format_share


def mark(compared):
    """Return the rows of the table: each model's cell, marked where it differs from the first."""
    rows = [[label, *map(write, arrays)] for label, arrays, write in compared]
    for model in range(1, len(rows[0]) - 1):
        signs = holm([arrays[model] * 1.0 - arrays[0] for _, arrays, _ in compared])
        for row, sign in zip(rows, signs):
            row[1 + model] += SIGNS[sign]
    return rows


def costs(subject):
    """Return the cells of COSTS, those of training by the run's cost.json; - where it has none."""
    began, path = time.perf_counter(), subject.run / "cost.json"
    written = generate(subject.model, [subject.begin], 150)
    speed = f"{len(written) / (time.perf_counter() - began):,.0f}"
    if not path.is_file():
        return speed, "-", "-", "-"
    bill, state = read_json(path), subject.folder / "trainer.json"
    with trusting(state):  # a checkpoint is not charged the whole run
        tokens = int(read_json(state)["tokens"]) if state.is_file() else None
    with trusting(path):
        part = 1 if tokens is None else tokens / bill["tokens"]
        return (speed, f"{part * bill['seconds']:,.0f}", f"{part * bill['flops']:.2e}",
                f"{part * (bill['dollars_rent'] + bill['dollars_electricity']):.5f}")


def main(argv):
    """Print one table of all models; ValueError when one of them knows some of the documents."""
    parser = cli.Parser("nanoseek.evaluate arena", "Models side by side, each against the first.")
    parser.add_argument("folders", nargs="+", help="runs, checkpoints or Llama folders")
    parser.add_argument("--text", help="held-out JSON lines (default: a clean.jsonl of the runs)")
    parser.add_argument("--cloze", type=int, default=100, help="how many of each kind and language")
    parser.add_argument("--judged", type=int, default=40, help="stories of each language to check")
    args = parser.parse_args(argv)
    if not 0 <= min(args.cloze, args.judged) <= max(args.cloze, args.judged) <= 10_000:
        parser.error("cloze and judged must be at least 0, at most 10,000")
    subjects = [open_subject(folder) for folder in args.folders]
    spare_threads(*(s.model for s in subjects))
    known = [path for s in subjects if (path := s.tokens.parent / "clean.jsonl").is_file()]
    if not (args.text or known):
        raise ValueError("none of the folders has a clean.jsonl: name held-out text with --text")
    documents, seen = held_out_documents(args.text or known[0]), [trained_on(s) for s in subjects]
    texts = [d["text"].strip() for several in documents.values() for d in several]
    for folder, trained in zip(args.folders, seen):
        if count := sum(text in trained for text in texts):
            raise ValueError(f"{folder} was trained on {count} of the {len(texts)} documents to "
                             "be scored: name text that no model has seen, with --text")
    paid = [costs(s) for s in subjects]
    rows = mark([*compare(subjects, documents, args.cloze, args.judged, set().union(*seen))])
    table = [["", *(folder.rstrip("/") for folder in args.folders)], *rows, *zip(COSTS, *paid)]
    # Markdown that reads well on a screen, too: each column as wide as its widest cell.
    widths = [max(map(len, column)) for column in zip(*table)]
    table.insert(1, ["-" * width for width in widths])
    for line in table:
        print(f"| {' | '.join(map(str.ljust, line, widths))} |")
    print("\n(▲ better than the first model, ▼ worse, ≈ not to be told apart from it. Models are\n"
          "compared, not recipes: two seeds of one recipe often differ, so train several of each.)")
