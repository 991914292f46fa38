"""The arena: models side by side, in one table, on the same text, questions and beginnings.

    python -m nanoseek.evaluate arena runs/a runs/b > arena.md

Any folder may enter: a run, a checkpoint, a Llama folder of others with its tokenizer.json; all is
counted per byte of text, so vocabularies may differ. Every model is held against the first, in
pairs: on the same documents, the same questions, the same beginnings of stories, with a
randomization test on the sign of each difference (Fisher 1935). Many comparisons find a difference
by chance now and then; Holm's rule (1979) keeps the chance of even one such find over the whole
table below 5%. Where it finds none, the table says so.
"""

import time
from typing import NamedTuple

import numpy as np

from nanoseek import cli
from nanoseek.checkpoint import read_json
from nanoseek.corpus.stories import check_story
from nanoseek.generate import stream
from nanoseek.lab.cloze import ABILITIES, CHANCE, digest, questions
from nanoseek.lab.report import answer, by_ability, continue_texts, format_share, opening
from nanoseek.lab.subject import (find_in_run, held_out_documents, open_subject, score,
                                  spare_threads, trained_on)

LEVEL = 0.05  # of finding a difference between two equal models anywhere in the table
SIGNS = {1: " ▲", -1: " ▼", 0: " ≈"}
LEGEND = """(▲ better than the first model, ▼ worse, ≈ not to be told apart from it; way to the
floor: how much of the way from the unigram model of the run's tokens to it, mean over stories)"""


class Row(NamedTuple):
    """A line of the table; pairs: an array for each model, to be compared place by place, more
    being better; () where chance plays no part."""

    label: str
    cells: list
    pairs: list = ()


# --- Two models in pairs ------------------------------------------------------------------------

def sign_test(differences, resamples=9999, seed=0):
    """Return the two-sided p of paired differences whose signs would be chance (Fisher 1935)."""
    differences = np.asarray(differences, dtype=float)
    rng, extreme = np.random.default_rng(seed), 0
    for _ in range(0, resamples, 1111):  # in parts, to save memory
        signs = rng.integers(0, 2, (1111, len(differences))) * 2 - 1
        extreme += int((abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)).sum())
    return (extreme + 1) / (resamples + 1)


def holm(differences):
    """Return for each array of paired differences the sign of its sum, 0 where the difference does
    not stand against Holm's threshold."""
    p_values = [sign_test(values) for values in differences]
    signs, order = [0] * len(p_values), sorted(range(len(p_values)), key=p_values.__getitem__)
    for rank, n in enumerate(order):
        if p_values[n] > LEVEL / (len(order) - rank):
            break
        signs[n] = int(np.sign(differences[n].sum()))
    return signs


# --- The rows -----------------------------------------------------------------------------------

def answer_row(label, right):
    """Return the Row of right and wrong answers, a boolean array for each model."""
    return Row(label, [format_share(each) for each in right], [each.astype(int) for each in right])


def byte_rows(subjects, documents):
    """Return a Row of bits per byte for each source, and that of the way to the floor."""
    rows, ways = [], [[] for _ in subjects]
    for source, several in documents.items():
        scores, nats = zip(*(score(s, source, several) for s in subjects))
        floor = scores[0].floor
        rows.append(Row(f"bits per byte of {source}" + (f" (floor {floor:.3f})" if floor else ""),
                        [f"{s.bits_per_byte:.3f}" for s in scores], [-each for each in nats]))
        for found, s in zip(ways, scores):
            found += [] if s.way_to_floor is None else [s.way_to_floor]
    return rows, Row("way to the floor", [f"{np.mean(w):.0%}" if w else "-" for w in ways])


def cloze_rows(subjects, items):
    """Return a Row for each ability, and one for all questions."""
    right = [answer(s, items) for s in subjects]
    parts = [by_ability(items, values) for values in right]
    return [*(answer_row(f"cloze {ability} (chance {CHANCE[ability]:.0%})",
                         [part[ability] for part in parts]) for ability in ABILITIES),
            answer_row(f"cloze all (of {len(items)})", right)]


def story_row(subjects, source, documents, judged):
    """Return the Row of how many written stories are consistent; all begin as held-out ones do."""
    starts = [opening(documents[n % len(documents)]["text"]) for n in range(judged)]
    written = [continue_texts(s, starts, s.model.config.max_position_embeddings) for s in subjects]
    return answer_row(f"consistent {source} (of {judged})",
                      [np.array([not check_story(text) for text in texts]) for texts in written])


def speed(subject, count=150):
    """Return the tokens per second of one text being written."""
    began, written = time.perf_counter(), 0
    while written < count:  # a small context ends early
        written += sum(1 for _ in stream(subject.model, [subject.begin or 0], count))
    return written / (time.perf_counter() - began)


def cost_rows(folders):
    """Return the Rows of what the training cost, by each run's cost.json; - where it has none."""
    bills = []
    for folder in folders:
        path = find_in_run(folder, "cost.json")
        bill = read_json(path) if path else None
        try:
            bills.append(("-", "-", "-") if bill is None else (
                f"{bill['seconds']:,.0f}", f"{bill['flops']:.2e}",
                f"{bill['dollars_rent'] + bill['dollars_electricity']:.5f}"))
        except (KeyError, ValueError, TypeError):
            raise ValueError(f"{path} is damaged: train anew, or remove it") from None
    return [Row(f"training, {name}", list(cells))
            for name, cells in zip(("seconds", "FLOPs", "dollars"), zip(*bills))]


# --- On the screen ------------------------------------------------------------------------------

def verdicts(names, rows):
    """Mark in the rows what differs from the first model; return a sentence for each other one."""
    tested, lines = [row for row in rows if row.pairs], []
    for model, name in enumerate(names[1:], start=1):
        labels = {1: [], -1: [], 0: []}
        for row, sign in zip(tested, holm([row.pairs[model] - row.pairs[0] for row in tested])):
            row.cells[model] += SIGNS[sign]
            labels[sign].append(row.label.split(" (")[0])
        parts = [f"{word} in {', '.join(labels[sign])}"
                 for word, sign in (("better", 1), ("worse", -1)) if labels[sign]]
        parts.append(f"not to be told apart in {len(labels[0])} of {len(tested)} comparisons")
        lines.append(f"{name} against {names[0]}: {'; '.join(parts)}.")
    return lines


def format_table(names, rows):
    """Return the rows as a Markdown table that reads well on a screen, too."""
    lines = [["", *names], *([row.label, *row.cells] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def contest(folders, documents, cloze, judged):
    """Return the arena's report on {source: [document]} as Markdown.

    cloze: questions of each ability and language; judged: stories of each language; both only where
    documents are stories. Raises ValueError when a model was trained on one of the documents.
    """
    subjects, names = [open_subject(f) for f in folders], [str(f).rstrip("/") for f in folders]
    costs, known = cost_rows(folders), [trained_on(f) for f in folders]
    texts = [d["text"] for several in documents.values() for d in several]
    for folder, seen in zip(folders, known):
        if count := sum(digest(text) in seen for text in texts):
            raise ValueError(f"{folder} was trained on {count} of the {len(texts)} documents to be "
                             "scored: name text that no model has seen, with --text")
    stories = [source for source, several in documents.items() if "log2_probability" in several[0]]
    spare_threads(*(s.model for s in subjects))
    cli.say("scoring held-out text")
    rows, way = byte_rows(subjects, documents)
    if stories and cloze:
        cli.say("asking cloze questions")
        rows += cloze_rows(subjects, questions(cloze, avoid=frozenset().union(*known)))
    if judged:
        cli.say("writing and checking stories")
        rows += [story_row(subjects, source, documents[source], judged) for source in stories]
    rows += [way, Row("tokens/s, writing one text", [f"{speed(s):,.0f}" for s in subjects]), *costs]
    lines = verdicts(names, rows)
    return "\n\n".join([format_table(names, rows), LEGEND, *lines])


def main(argv):
    parser = cli.Parser("nanoseek.evaluate arena", "Models side by side, each against the first.")
    parser.add_argument("folders", nargs="+", help="runs, checkpoints or Llama folders")
    parser.add_argument("--text", help="held-out documents, JSON lines (default: those of the "
                                       "first run that has a clean.jsonl)")
    parser.add_argument("--cloze", type=int, default=100, help="how many of each kind and language")
    parser.add_argument("--judged", type=int, default=40, help="stories of each language to check")
    args = parser.parse_args(argv)
    if min(args.cloze, args.judged) < 0:
        parser.error("cloze and judged must be at least 0")
    text = args.text or next(filter(None, (find_in_run(f, "clean.jsonl") for f in args.folders)),
                             None)
    if text is None:
        raise ValueError("none of the folders has a clean.jsonl: name held-out text with --text")
    print(contest(args.folders, held_out_documents(text), args.cloze, args.judged))
