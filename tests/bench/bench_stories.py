"""Measure the story grammar: its words, how alike its stories are, its floor, its checker.

    python tests/bench/bench_stories.py --count 50000 --sample 1000

Near-duplicates: the share of a sample that has a story with exact Jaccard ≥ 0.8 (5-grams of
characters) among all the others. Two sets that alike share one of their rarest fifth of grams
(prefix filtering: Bayardo et al. 2007), so that only such pairs are compared; none is missed.
"""

import argparse
import collections
import math
import pathlib
import random
import re
import sys
import time
from itertools import pairwise

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek.corpus.stories import (LANGUAGES, check_story, grammar, log2_probability,
                                     sentence_bounds, stories)

THRESHOLD = 0.8
UNIT = re.compile(r"[\u4e00-\u9fff]|[^\w\s]|\s|[^\W\u4e00-\u9fff]+")


def distinct(language, texts):
    """Return how many different English words (in any case) or Chinese characters there are."""
    pattern = "[a-z'-]+" if language == "en" else "[\u4e00-\u9fff]"
    return len({word for text in texts for word in re.findall(pattern, text.lower())})


def grams(text, n=5):
    return {text[i:i + n] for i in range(len(text) - n + 1)}


def near_duplicates(texts, sample):
    """Return the share of the first `sample` texts that have a near-duplicate among all texts."""
    frequency = collections.Counter(gram for text in texts for gram in grams(text))

    def rarest(found):
        length = len(found) - math.ceil(THRESHOLD * len(found)) + 1
        return sorted(found, key=lambda gram: (frequency[gram], gram))[:length]
    sets = [grams(text) for text in texts[:sample]]
    index = collections.defaultdict(list)
    for number, found in enumerate(sets):
        for gram in rarest(found):
            index[gram].append(number)
    alike = set()
    for place, text in enumerate(texts):
        other = grams(text)
        for number in {n for gram in rarest(other) for n in index.get(gram, ())} - alike - {place}:
            shared = len(sets[number] & other)
            if shared >= THRESHOLD * (len(sets[number]) + len(other) - shared):
                alike.add(number)
    return len(alike) / sample


def units(text, order):
    """Return words, marks and single Chinese characters, between marks for start and end."""
    return ["<s>"] * (order - 1) + UNIT.findall(text) + ["</s>"]


def ngram_bits(train, test, order):
    """Return the bits per byte of `test` under an n-gram model of `train`.

    Witten-Bell smoothing, each order falling back on the one below, the lowest on a uniform
    choice among the units seen and one that stands for all others.
    """
    counts = collections.defaultdict(collections.Counter)
    for line in (units(text, order) for text in train):
        for end in range(order - 1, len(line)):
            for n in range(order):
                counts[tuple(line[end - n:end])][line[end]] += 1
    totals = {context: (sum(c.values()), len(c)) for context, c in counts.items()}
    bits = 0.0
    for line in (units(text, order) for text in test):
        for end in range(order - 1, len(line)):
            p = 1 / (len(counts[()]) + 1)
            for context in (tuple(line[end - n:end]) for n in range(order)):
                if context not in totals:
                    break
                total, kinds = totals[context]
                p = (counts[context][line[end]] + kinds * p) / (total + kinds)
            bits -= math.log2(p)
    return bits / sum(len(text.encode()) for text in test)


def spoil(language, text, rng):
    """Yield (kind, text): the name swapped, an object changed, the sentences shuffled.

    A story in which a kind has no place (no name thrice, no object twice, three sentences) has
    none of it.
    """
    lists = grammar(language).lists
    for kind in ("name", "thing"):
        words = [entry["text"] for entry, _ in lists[kind]]
        edge = r"\b" if language == "en" else ""
        places = [m for m in re.finditer(edge + "(?:" + "|".join(
            sorted(map(re.escape, words), key=len, reverse=True)) + ")" + edge, text)]
        told = collections.Counter(m[0] for m in places)
        again = [m for i, m in enumerate(places)
                 if told[m[0]] > 1 and m[0] in {p[0] for p in places[:i]}]
        if again:
            place = rng.choice(again)
            other = rng.choice([w for w in words if w not in text])
            yield kind, text[:place.start()] + other + text[place.end():]
    lines = [text[start:end].lstrip() for start, end in pairwise(sentence_bounds(text))]
    if len(lines) > 3:
        order = list(range(len(lines)))
        while order == sorted(order):
            rng.shuffle(order)
        yield "order", ("" if language == "zh" else " ").join(lines[i] for i in order)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=50_000, help="stories a language")
    parser.add_argument("--sample", type=int, default=1000, help="stories looked at one by one")
    args = parser.parse_args()
    rng = random.Random(0)
    for language in LANGUAGES:
        grammar(language)
        began = time.perf_counter()
        told = stories(language, args.count, 0)
        took = time.perf_counter() - began
        texts = [story.text for story in told]
        assert len(set(texts)) == args.count
        size = sum(len(text.encode()) for text in texts)
        floor = -sum(story.log2_probability for story in told) / size
        unit = "words" if language == "en" else "characters"
        print(f"{language}: {args.count:,} different stories in {took:.1f} s on one core; "
              f"{min(map(len, map(sentence_bounds, texts[:args.sample]))) - 1} to "
              f"{max(map(len, map(sentence_bounds, texts[:args.sample]))) - 1} sentences, "
              f"{size / args.count:.0f} bytes on average")
        print(f"  {distinct(language, texts):,} distinct {unit}")
        print(f"  {near_duplicates(texts, args.sample):.2%} of {args.sample:,} have a "
              f"near-duplicate among all (exact Jaccard ≥ {THRESHOLD})")
        train, test = texts[:-args.sample], texts[-args.sample:]
        print(f"  bits per byte: unigram {ngram_bits(train, test, 1):.3f}, 3-gram "
              f"{ngram_bits(train, test, 3):.3f}, floor {floor:.3f}")
        second = [log2_probability(story.text) - story.log2_probability
                  for story in told[:args.sample]]
        print(f"  second derivations: {sum(second) / len(second):.4f} bits a story on average, "
              f"{max(second):.2f} at most, of {floor * size / args.count:.1f}")
        began = time.perf_counter()
        wrong = sum(bool(check_story(text)) for text in texts[:args.sample])
        pace = args.sample / (time.perf_counter() - began)
        print(f"  checker: {wrong} of {args.sample:,} stories refused, {pace:.0f} stories a second")
        found = collections.defaultdict(list)
        for text in texts[:args.sample]:
            for kind, bad in spoil(language, text, rng):
                found[kind].append(bool(check_story(bad)))
        print("  checker, of stories spoiled: " + ", ".join(
            f"{kind} {sum(results) / len(results):.1%} of {len(results)} found"
            for kind, results in found.items()))


if __name__ == "__main__":
    main()
