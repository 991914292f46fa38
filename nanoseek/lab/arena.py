"""The arena: models side by side on the same text, the same questions, the same prompts.

    python -m nanoseek.evaluate arena runs/a runs/b --markdown arena.md

Any folder may enter: a run, a checkpoint, a Llama folder of others with its tokenizer.json; all is
counted per byte of text, so vocabularies may differ. Every model is held against the first, in
pairs: the same documents (a randomization test on the sign of each difference: Fisher 1935), the
same questions and the same beginnings of stories (McNemar's exact test, 1947). Many comparisons
find a difference by chance now and then; Holm's rule (1979) keeps the chance of even one such
find over the whole table below 5%. Where it finds none, the table says so.
"""

import math
import pathlib
import time
from typing import NamedTuple

import numpy as np

from nanoseek import cli
from nanoseek.checkpoint import read_json
from nanoseek.corpus.stories import check_story
from nanoseek.cost import memory
from nanoseek.generate import stream
from nanoseek.lab.cloze import ABILITIES, CHANCE, questions
from nanoseek.lab.report import answer, by_ability, continue_texts, format_share, opening
from nanoseek.lab.subject import (few_threads, find_in_run, floor_of, held_out_documents,
                                  open_subject, refuse_known, text_nats, trained_on)

LEVEL = 0.05  # of finding a difference between two equal models anywhere in the table
SIGNS = {1: " ▲", -1: " ▼", 0: " ≈"}
LEGEND = """\
▲ better than the first model, ▼ worse, ≈ not to be told apart from it; way to the floor:
mean over the sources of the way from knowing only how frequent each byte is to the floor (or to 0
bits per byte, where no floor is known)"""


class Row(NamedTuple):
    """A line of the table; tests: for each model but the first (p, its sign: 1 if it is better)."""

    label: str
    cells: list
    tests: list = []


# --- Two models in pairs ------------------------------------------------------------------------

def sign_test(differences, resamples=9999, seed=0):
    """Return the two-sided p of paired differences whose signs would be chance (Fisher 1935)."""
    differences = np.asarray(differences, dtype=float)
    rng, extreme = np.random.default_rng(seed), 0
    for _ in range(0, resamples, 1111):  # in parts, to save memory
        signs = rng.integers(0, 2, (1111, len(differences))) * 2 - 1
        extreme += int((abs(signs @ differences) >= abs(differences.sum()) * (1 - 1e-9)).sum())
    return (extreme + 1) / (resamples + 1)


def mcnemar(a, b):
    """Return the exact two-sided p that two sets of right and wrong answers differ by chance."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2 ** n)


def holm(tests):
    """Return for each (p, sign) its sign, 0 where it does not stand against Holm's threshold."""
    order, found = sorted(range(len(tests)), key=lambda n: tests[n][0]), [0] * len(tests)
    for rank, n in enumerate(order):
        if tests[n][0] > LEVEL / (len(tests) - rank):
            break
        found[n] = tests[n][1]
    return found


def compare(values, test, better):
    """Return the (p, sign) of every model against the first; better: -1 when less is better."""
    first, rest = values[0], values[1:]
    return [(test(first, v), better * int(np.sign(v.sum() - first.sum()))) for v in rest]


# --- The rows -----------------------------------------------------------------------------------

def answer_row(label, right):
    """Return the Row of right and wrong answers, a boolean array for each model."""
    return Row(label, [format_share(values) for values in right], compare(right, mcnemar, 1))


def byte_rows(subjects, documents):
    """Return a Row of bits per byte for each source, and {source: [value of each subject]}."""
    rows, found = [], {}
    for source, several in documents.items():
        size = sum(len(d["text"].encode("utf-8")) for d in several)
        nats = [text_nats(s, [d["text"] for d in several]) for s in subjects]
        found[source] = [n.sum() / math.log(2) / size for n in nats]
        floor = floor_of(several)
        rows.append(Row(
            f"bits per byte of {source}" + (f" (floor {floor:.3f})" if floor else ""),
            [f"{value:.3f}" for value in found[source]],
            compare(nats, lambda a, b: sign_test(b - a), -1)))
    return rows, found


def cloze_rows(subjects, items):
    """Return a Row for each ability, and one for all questions."""
    right = [answer(s, items) for s in subjects]
    parts = [by_ability(items, values) for values in right]
    return [*(answer_row(f"cloze {ability} (chance {CHANCE[ability]:.0%})",
                         [part[ability] for part in parts]) for ability in ABILITIES),
            answer_row(f"cloze all (of {len(items)})", right)]


def story_rows(subjects, documents, judged):
    """Return a Row for each source of stories: how many of those that a model writes agree with
    themselves. All begin with the same words, those of held-out stories."""
    rows = []
    for source, several in documents.items():
        starts = [opening(several[i % len(several)]["text"]) for i in range(judged)]
        written = [continue_texts(s, starts, s.model.config.max_position_embeddings)
                   for s in subjects]
        good = [np.array([not check_story(text) for text in texts]) for texts in written]
        rows.append(answer_row(f"consistent {source} (of {judged})", good))
    return rows


def speed(subject, count=150):
    """Return the tokens per second of one text being written."""
    began, written = time.perf_counter(), 0
    while written < count:  # a small context ends early
        written += sum(1 for _ in stream(subject.model, [subject.begin or 0], count))
    return written / (time.perf_counter() - began)


def training_bill(folder):
    """Return (seconds, FLOPs, dollars) of a run's cost.json, 0 where it says nothing."""
    path = find_in_run(folder, "cost.json")
    try:
        tag = read_json(path) if path else {}
        seconds, flops, rent, electricity = (float(tag.get(name, 0)) for name in (
            "seconds", "flops", "dollars_rent", "dollars_electricity"))
        return seconds, flops, rent + electricity
    except (ValueError, TypeError):
        raise ValueError(f"{path} is damaged: train anew, or remove it") from None


def byte_entropy(documents):
    """Return the bits per byte of a model that knows only how frequent each byte is."""
    counts = np.bincount(np.frombuffer("".join(d["text"] for d in documents).encode(), np.uint8))
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def cost_rows(bills, subjects, documents, values):
    """Return the Rows of speed, memory, what the training cost, and what was got for it."""
    seconds, flops, dollars = zip(*bills)
    sizes = [memory(s.model.config, 1, s.model.config.max_position_embeddings) for s in subjects]
    ways = []  # the way from knowing the bytes' frequencies to the floor (0 where none is known)
    for n in range(len(subjects)):
        shares = [(byte_entropy(d) - values[s][n]) / (byte_entropy(d) - (floor_of(d) or 0))
                  for s, d in documents.items()]
        ways.append(sum(shares) / len(shares))

    def row(label, form, numbers):
        return Row(label, [form.format(n) if n else "-" for n in numbers])
    return [row("tokens/s, writing one text", "{:,.0f}", map(speed, subjects)),
            row("weights, bytes", "{:,}", [size["weights"] for size in sizes]),
            row("cache of a full context, bytes", "{:,}", [size["kv_cache"] for size in sizes]),
            row("training, seconds", "{:,.0f}", seconds),
            row("training, FLOPs", "{:.2e}", flops),
            row("training, dollars", "{:.5f}", dollars),
            row("way to the floor", "{:.0%}", ways),
            row("quality per dollar: that way, over dollars", "{:,.0f}",
                [w / d if d else 0 for w, d in zip(ways, dollars)])]


# --- On the screen ------------------------------------------------------------------------------

def verdicts(names, rows):
    """Return {row number: [sign of each model but the first]} and a sentence for each of them."""
    tested, lines = [n for n, row in enumerate(rows) if row.tests], []
    signs = {n: [] for n in tested}
    for place, name in enumerate(names[1:]):
        found = holm([rows[n].tests[place] for n in tested])
        for n, sign in zip(tested, found):
            signs[n].append(sign)
        parts = [f"{word} in {', '.join(labels)}" for word, sign in (("better", 1), ("worse", -1))
                 if (labels := [rows[n].label.split(" (")[0]
                                for n, s in zip(tested, found) if s == sign])]
        rest = found.count(0)
        lines.append(f"{name} against {names[0]}: {'; '.join(parts)}; not to be told apart in "
                     f"{rest} of {len(found)} comparisons." if parts else
                     f"{name} and {names[0]} cannot be told apart here: {rest} comparisons "
                     "show no difference that chance would not bring.")
    return signs, lines


def format_table(names, rows, signs):
    """Return the rows as a Markdown table that reads well on a screen, too."""
    lines = [["", *names]]
    for number, row in enumerate(rows):
        marks = ["", *(SIGNS[s] for s in signs.get(number, []))]
        marks += [""] * (len(names) - len(marks))
        lines.append([row.label, *(cell + mark for cell, mark in zip(row.cells, marks))])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines)


def side_by_side(names, subjects, prompts):
    """Return what each model makes of each prompt, as Markdown."""
    def printable(text):
        # A model that knows little writes control characters, which a terminal would obey.
        clean = "".join(c if c.isprintable() or c.isspace() else "·" for c in text)
        return " ".join(clean.split())
    written = [continue_texts(s, prompts, 200) for s in subjects]
    return "\n".join(f"\n**{prompt}**\n" + "\n".join(
        f"- {name}: {printable(texts[number])}" for name, texts in zip(names, written))
        for number, prompt in enumerate(prompts))


def contest(folders, documents, prompts=None, cloze=100, judged=40, seed=0,
            say=lambda text: None):
    """Return the arena's report as Markdown.

    documents: {source: [document]} that no model was trained on, else ValueError; prompts: texts
    to go on with, else two beginnings of each source; cloze: questions of each ability and
    language, and judged: stories of each language, both only where documents are stories.
    """
    subjects, names = [open_subject(f) for f in folders], [str(f).rstrip("/") for f in folders]
    for folder in folders:
        refuse_known(folder, documents)
    bills = [training_bill(f) for f in folders]
    stories = {source: d for source, d in documents.items() if floor_of(d)}
    prompts = prompts or [start for several in (stories or documents).values() for start in
                          list(dict.fromkeys(opening(d["text"], 3) for d in several))[:2]]
    with few_threads(*(s.model for s in subjects)):
        texts = side_by_side(names, subjects, prompts)  # first: it refuses prompts that do not fit
        say("scoring held-out text")
        rows, values = byte_rows(subjects, documents)
        if stories and cloze:
            say("asking cloze questions")
            known = frozenset().union(*map(trained_on, folders))
            rows += cloze_rows(subjects, questions(cloze, seed, avoid=known))
        if stories and judged:
            say("writing and checking stories")
            rows += story_rows(subjects, stories, judged)
        signs, lines = verdicts(names, rows)
        rows += cost_rows(bills, subjects, documents, values)
    return "\n\n".join([format_table(names, rows, signs), f"({LEGEND})", *lines, texts.strip()])


def read_prompts(path):
    """Return the prompts of a text file, one a line; raises ValueError when there is none."""
    try:
        lines = [line.strip() for line in pathlib.Path(path).read_text("utf-8").splitlines()]
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text") from None
    if not any(lines):
        raise ValueError(f"{path} holds no prompt: write one a line")
    return [line for line in lines if line]


def main(argv):
    parser = cli.Parser("nanoseek.evaluate arena", "Models side by side; each is held against "
                        "the first.")
    parser.add_argument("folders", nargs="+", help="runs, checkpoints or Llama folders")
    parser.add_argument("--text", help="held-out documents, JSON lines (default: those of the "
                                       "first run that has a clean.jsonl)")
    parser.add_argument("--prompts", help="a text file of prompts, one a line")
    parser.add_argument("--cloze", type=int, default=100,
                        help="questions of each ability and language")
    parser.add_argument("--judged", type=int, default=40, help="stories of each language to check")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other questions")
    parser.add_argument("--markdown", help="a file to write the report to as well")
    args = parser.parse_args(argv)
    if min(args.cloze, args.judged) < 0:
        parser.error("cloze and judged must be at least 0")
    if len(args.folders) < 2:
        parser.error("name two folders at least")
    if args.markdown:
        cli.check_output(args.markdown, *args.folders, *filter(None, [args.text, args.prompts]))
    prompts = read_prompts(args.prompts) if args.prompts else None
    text = args.text or next(filter(None, (find_in_run(f, "clean.jsonl") for f in args.folders)),
                             None)
    if text is None:
        raise ValueError("none of the folders has a clean.jsonl: name held-out text with --text")
    report = contest(args.folders, held_out_documents(text), prompts, args.cloze, args.judged,
                     args.seed, cli.say)
    print(report)
    if args.markdown:
        with cli.writing(args.markdown) as new:
            new.write_text(report + "\n", encoding="utf-8")
