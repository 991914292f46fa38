"""What `python -m nanoseek.evaluate RUN` prints: scores, samples, cloze answers.

    texts = continue_texts(subject, ["Once", "从前"], max_new_tokens=100)
    right = answer(subject, questions(50))                # of each question, True or False

A low loss does not yet say that a model follows a story. Questions with one right answer
(cloze.py) test one ability each; the shares of right ones come with an interval.
"""

import math
import os

import numpy as np

from nanoseek.cli import Parser, add_fast_flag, say
from nanoseek.evaluate import evaluate, held_out, piece_nats
from nanoseek.generate import SAMPLING, generate_many
from nanoseek.lab.cloze import ABILITIES, CHANCE, questions
from nanoseek.lab.subject import open_subject, spare_threads, trained_on


def format_scores(scores):
    """Return the scores as a table for the screen."""
    rows = [("held-out source", "documents", "bits/byte", "floor", "above", "unigram", "way")]
    for source, s in scores.items():
        above = s.bits_per_byte / s.floor - 1 if s.floor else None
        rows.append((source, f"{s.documents:,}", f"{s.bits_per_byte:.3f}", *(
            "-" if value is None else format(value, form) for value, form in (
                (s.floor, ".3f"), (above, "+.1%"), (s.unigram, ".3f"), (s.way_to_floor, ".0%")))))
    lines = ["{:<18}{:>10}{:>11}{:>8}{:>8}{:>9}{:>7}".format(*row) for row in rows]
    if any(s.floor for s in scores.values()):
        lines.append("floor: the grammar's own entropy, which no model can beat; above: how far "
                     "over it;\nway: how much of the way from the unigram model to the floor")
    return "\n".join(lines)


def opening(text):
    """Return how a text begins: its first word, or two characters of Chinese."""
    word = text.split(maxsplit=1)[0]
    return word if word.isascii() else word[:2]


def continue_texts(subject, openings, max_new_tokens):
    """Return a text for each opening, that included, with the settings of `make sample`."""
    prompts = [subject.ids(text, whole=False).tolist() for text in openings]
    written = generate_many(subject.model, prompts, max_new_tokens, [subject.end], **SAMPLING)
    size = subject.tokenizer.vocab_size  # a padded vocabulary has ids without text
    return [text + subject.tokenizer.decode([i for i in ids if i < size])
            for text, ids in zip(openings, written)]


def print_samples(subject, count):
    """Print `count` texts of each source, unpicked, that begin as held-out documents do."""
    for source, documents in held_out(subject.tokens).items():
        starts = [opening(subject.tokenizer.decode(documents[n % len(documents)][1:40]))
                  for n in range(count)]
        texts = continue_texts(subject, starts, subject.model.config.max_position_embeddings)
        print(f"\n{source}, the first {count} samples", *texts, sep="\n")


def answer(subject, items):
    """Return whether each question is answered right, a boolean array: whether, given the context,
    the right choice and the rest of its sentence have the most likelihood per byte."""
    pieces, sizes, room = [], [], subject.model.config.max_position_embeddings + 1
    for item in items:
        choices = [subject.ids(item.context + choice, whole=False) for choice in item.choices]
        # The ids that all choices begin with (the context, and more where words begin alike) cost
        # all of them the same, so they are read but not scored.
        shared = len(os.path.commonprefix([ids.tolist() for ids in choices]))
        # Of a text that does not fit the model's context, the end is kept.
        pieces += [(ids[-room:], max(0, shared - 1 - max(0, len(ids) - room))) for ids in choices]
        sizes += [len(choice.encode("utf-8")) for choice in item.choices]
    rates = piece_nats(subject.model, pieces) / sizes
    parts = np.split(rates, np.cumsum([len(item.choices) for item in items]))
    return np.array([part.argmin() == item.answer for item, part in zip(items, parts)])


def by_ability(items, right):
    """Return {ability: boolean array} of answers."""
    kinds = np.array([item.ability for item in items])
    return {ability: right[kinds == ability] for ability in ABILITIES}


def wilson(right, count, z=1.96):
    """Return the 95% interval of a share (Wilson 1927): (low, high)."""
    share, spread = right / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def format_share(right):
    """Write the share of a boolean array with its interval."""
    low, high = wilson(right.sum(), len(right))
    return f"{right.mean():.0%} ({low:.0%}–{high:.0%})"


def format_cloze(items, right):
    """Return the answers in two lines."""
    found = by_ability(items, right)
    shares = ", ".join(f"{ability} {format_share(part)}" for ability, part in found.items())
    return (f"cloze questions answered right, of {len(found['name'])} each, with 95% intervals "
            f"(by chance {CHANCE['name']:.0%}, pronoun {CHANCE['pronoun']:.0%}):\n  {shares}")


def main(argv):
    parser = Parser("nanoseek.evaluate", "Score held-out text; see also evaluate arena and check.")
    parser.add_argument("folder", help="a run or one of its checkpoints")
    parser.add_argument("--samples", type=int, default=0, help="texts of each source to show")
    parser.add_argument("--cloze", type=int, default=50, help="how many of each kind and language")
    add_fast_flag(parser)
    args = parser.parse_args(argv)
    if min(args.samples, args.cloze) < 0:
        parser.error("samples and cloze must be at least 0")
    subject = open_subject(args.folder, args.fast)
    if subject.tokens is None:
        raise ValueError(f"{args.folder} has no tokens: evaluate arena {args.folder} --text FILE")
    spare_threads(subject.model)
    say("scoring held-out text")
    scores = evaluate(subject.model, subject.tokens)
    print(format_scores(scores))
    stories = [source for source, score in scores.items() if score.floor]
    if args.samples:
        say("writing samples")
        print_samples(subject, args.samples)
    if args.cloze and stories:
        say("asking cloze questions")
        items = questions(args.cloze, avoid=trained_on(args.folder))
        print("\n" + format_cloze(items, answer(subject, items)))
