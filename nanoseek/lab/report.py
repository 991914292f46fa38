"""What `python -m nanoseek.evaluate RUN` prints: scores, samples, cloze answers.

    texts = write_like(subject, ["Once upon a time …", "从前有一个男孩。"])   # begin with Once, 从前
    right = answer(subject, questions(50))              # {ability: of each question, whether right}

A low loss does not yet say that a model follows a story. Questions with one right answer
(cloze.py) test one ability each; the shares of right ones come with an interval."""

import math
import os
import pathlib
from itertools import cycle, islice

import numpy as np

from nanoseek.cli import Parser, add_fast_flag, say
from nanoseek.evaluate import evaluate, held_out, piece_nats
from nanoseek.generate import SAMPLING, generate_many
from nanoseek.lab.cloze import ABILITIES, CHANCE, questions
from nanoseek.lab.page import find_more, write_page
from nanoseek.lab.subject import open_subject, spare_threads, trained_on
from nanoseek.scale.folder import read_log


def format_scores(scores):
    """Return the scores as a table for the screen."""
    lines = ["held-out source    documents  bits/byte   floor   above  unigram    way"]
    for source, (documents, bits, unigram, floor) in scores.items():
        shown, above, way = "-", "-", "-"
        if floor:
            shown, above = f"{floor:.3f}", f"{bits / floor - 1:+.1%}"
            way = f"{(unigram - bits) / (unigram - floor):.0%}"
        lines.append(f"{source:<18}{documents:>10,}{bits:>11.3f}{shown:>8}{above:>8}"
                     f"{unigram:>9.3f}{way:>7}")
    if any(score.floor for score in scores.values()):
        lines.append("floor: the grammar's own entropy, which no model can beat; above: how far "
                     "over it;\nway: how much of the way from the unigram model to the floor")
    return "\n".join(lines)


def write_like(subject, texts):
    """Return a text that begins as each of these does, with its first word or two characters of
    Chinese, and goes on with the settings of `make sample`."""
    words = [text.split(maxsplit=1)[0] for text in texts]
    openings = [word if word.isascii() else word[:2] for word in words]
    prompts = [subject.ids(opening, whole=False).tolist() for opening in openings]
    context, size = subject.model.config.max_position_embeddings, subject.tokenizer.vocab_size
    written = generate_many(subject.model, prompts, context, [subject.end], **SAMPLING)
    # A padded vocabulary has ids without text; the last id may hold half a character.
    return [opening + subject.tokenizer.decode([i for i in ids if i < size]).rstrip("\ufffd")
            for opening, ids in zip(openings, written)]


def answer(subject, items):
    """Return {ability: whether each of its questions is answered right, a boolean array}: whether,
    given the context, the right choice and the rest of its sentence are likeliest per byte."""
    pieces, sizes, room = [], [], subject.model.config.max_position_embeddings + 1
    for item in items:
        choices = [subject.ids(item.context + choice, whole=False) for choice in item.choices]
        # The ids that all choices begin with (the context, and more where words begin alike) cost
        # all of them the same, so they are read but not scored.
        shared = len(os.path.commonprefix([ids.tolist() for ids in choices]))
        # Of a text that does not fit the model's context, the end is kept.
        pieces += [(ids[-room:], max(0, shared - 1 - max(0, len(ids) - room))) for ids in choices]
        sizes += [len(choice.encode("utf-8")) for choice in item.choices]
    rates = iter(piece_nats(subject.model, pieces) / sizes)
    right = {ability: [] for ability in ABILITIES}
    for item in items:
        right[item.ability].append(np.argmin([*islice(rates, len(item.choices))]) == item.answer)
    return {ability: np.array(values) for ability, values in right.items()}


def format_share(right, z=1.96):
    """Write the share of a boolean array with its 95% interval (Wilson 1927)."""
    share, spread = right.mean(), z * z / len(right)
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return f"{share:.0%} ({max(0, middle - half):.0%}–{min(1, middle + half):.0%})"


def read_arguments(argv):
    parser = Parser("nanoseek.evaluate", "Score held-out text; see also evaluate arena and check.")
    parser.add_argument("folder", help="a run or one of its checkpoints")
    parser.add_argument("--samples", type=int, default=0, help="texts of each source to show")
    parser.add_argument("--cloze", type=int, default=50, help="how many of each kind and language")
    parser.add_argument("--page", type=pathlib.Path, help="write it as a page, such as report.html")
    add_fast_flag(parser)
    args = parser.parse_args(argv)
    if not 0 <= min(args.samples, args.cloze) <= max(args.samples, args.cloze) <= 10_000:
        parser.error("samples and cloze must be at least 0, at most 10,000")
    if args.page and not (args.page.suffix == ".html" and args.page.parent.is_dir()):
        parser.error(f"--page {args.page}: name a file in .html, in a folder that is there")
    return args


def main(argv):
    args = read_arguments(argv)
    subject = open_subject(args.folder, args.fast)
    if not subject.tokens.is_dir():
        raise ValueError(f"{args.folder} has no tokens: evaluate arena {args.folder} --text FILE")
    spare_threads(subject.model)
    say("scoring held-out text")
    scores, samples, cloze = evaluate(subject.model, subject.tokens), {}, {}
    floors = {source: score.floor for source, score in scores.items() if score.floor}
    print(format_scores(scores), f"scored: {subject.folder}", sep="\n")
    if args.samples:
        say("writing samples")
        for source, documents in held_out(subject.tokens).items():
            several = islice(cycle(documents), args.samples)
            texts = write_like(subject, [subject.tokenizer.decode(ids[1:-1]) for ids in several])
            print(f"\n{source}, the first {args.samples} samples", *texts, sep="\n")
            samples[source] = texts
    if args.cloze and floors:
        say("asking cloze questions")
        cloze = answer(subject, questions(args.cloze, avoid=trained_on(subject)))
        shares = ", ".join(f"{ability} {format_share(each)}" for ability, each in cloze.items())
        print(f"\ncloze questions answered right, of {len(cloze['name'])} each, with 95% intervals "
              f"(by chance {CHANCE['name']:.0%}, pronoun {CHANCE['pronoun']:.0%}):\n  {shares}")
    if args.page:
        cloze = {ability: (format_share(each), CHANCE[ability]) for ability, each in cloze.items()}
        write_page(args.page, str(subject.run), read_log(subject.run), floors, samples=samples,
                   cloze=cloze, **find_more(subject, scores))
