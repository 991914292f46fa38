"""fast/pairs.py finds the clusters of duplicates.py, pair for pair."""

import random

import numpy as np
import pytest

from nanoseek import corpus, duplicates
from nanoseek.corpus.stories import stories

MODULE = "nanoseek.fast.pairs"
LATIN, HAN = "abcdefghij klmnop", "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往"


def random_text(rng, length, alphabet=LATIN):
    return "".join(rng.choices(alphabet, k=length))


def changed(text, share, rng):
    return "".join(rng.choice("xyz") if rng.random() < share else c for c in text)


def families(seed, count, lengths, alphabet=LATIN):
    """Random texts, each with changed copies around every threshold, in random order."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = random_text(rng, rng.randrange(*lengths), alphabet)
        texts += [text] + [changed(text, rng.choice((0, 0.005, 0.02, 0.05, 0.1)), rng)
                           for _ in range(rng.randrange(5))]
    rng.shuffle(texts)
    return texts


def both(module, texts, threshold, signatures=None):
    """Return the clusters, which must be the same."""
    fast = module.find_near_duplicates(texts, threshold, signatures)
    assert fast == duplicates.find_near_duplicates(texts, threshold, signatures)
    return fast


@pytest.mark.parametrize("threshold", [0.3, 0.55, 0.6, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("lengths", [(0, 12), (10, 60), (200, 600), (3000, 5000)])
def test_clusters_are_those_of_the_chapter(module, threshold, lengths):
    texts = families(lengths[1], 25, lengths) + families(1, 25, lengths, HAN)
    assert both(module, texts, threshold)


@pytest.mark.parametrize("texts", [
    [], ["alone"], ["", ""], ["", "", "x"], ["abcd", "abce", "abcd"], ["a", "a\0"],
    ["天地玄黄"] * 3, ["one and only"] * 500, ["abcdefghi", "abcdefghj"],
])
def test_clusters_of_little(module, texts):
    for threshold in (0.2, 0.5, 0.8, 1.0):
        both(module, texts, threshold)


def test_clusters_of_a_dirty_corpus(module):
    clean = [story._asdict() for language in ("en", "zh") for story in stories(language, 400, 3)]
    texts = [document["text"] for document in corpus.plant_dirt(clean, 3, 0.6)[0]]
    assert len(both(module, texts, 0.8)) > 20 and len(both(module, texts, 0.6)) > 20


def test_a_bucket_of_more_texts_than_a_text_meets(module):
    rng = random.Random(3)
    text = random_text(rng, 400)
    copies = [f"{text[:200]}{n:04d}{text[200:]}" for n in range(90)]  # Jaccard 0.97 or so
    looser = [changed(text, 0.04, rng) for _ in range(90)]  # most below the threshold
    for texts in (copies, looser, copies[:30] + looser):
        for threshold in (0.5, 0.8):
            both(module, texts, threshold)


def test_a_pair_exactly_at_the_threshold_counts(module):
    pairs = [["abcdefghi", "abcdefghij"]]  # 5 of 6 grams
    for shared, union in ((11, 20), (7, 10), (14, 25), (3, 5), (4, 5)):
        text = "".join(map(chr, range(0x4e00, 0x4e00 + union + 4)))
        pairs.append([text, text[:shared + 4]])
        index = duplicates.jaccard(*pairs[-1])
        assert index == shared / union
        search = module.PairSearch(pairs[-1], duplicates.minhash_signatures(pairs[-1]), index)
        search.join_batch(np.array([0]), np.array([1]))
        assert search.roots.tolist() == [0, 0]
        both(module, pairs[-1], index)


def test_pairs_are_checked_in_several_sorts_with_the_same_result(module, monkeypatch):
    texts = families(7, 30, (50, 900))
    whole = both(module, texts, 0.7)
    for grams in (700, 1):  # a larger pair is a batch of its own
        monkeypatch.setattr(module, "GRAMS", grams)
        assert both(module, texts, 0.7) == whole


def test_signatures_that_were_made_before(module):
    texts = families(8, 40, (100, 300))
    texts += texts[:9]
    for permutations in (32, 128):
        both(module, texts, 0.8, duplicates.minhash_signatures(texts, permutations))


def test_the_batched_check_counts_what_sets_count(module):
    texts = families(9, 60, (0, 300)) + families(10, 20, (0, 300), HAN)
    left = np.array(random.Random(1).choices(range(len(texts)), k=500))
    right = np.array(random.Random(2).choices(range(len(texts)), k=500))
    search = module.PairSearch(texts, duplicates.minhash_signatures(texts), 0.8)
    sets = [duplicates.grams(text) for text in texts]
    shared, total = search.count_grams(left, right)
    assert shared.tolist() == [len(sets[i] & sets[j]) for i, j in zip(left, right)]
    assert total.tolist() == [len(sets[i]) + len(sets[j]) for i, j in zip(left, right)]


def test_each_pair_of_a_band_is_met_once(module):
    rng = np.random.default_rng(0)
    own, following = rng.integers(0, 30, 400).astype(np.uint64), rng.integers(0, 9, 400)
    met = [(min(pair), max(pair)) for left, right in module.neighbours(own, following)
           for pair in zip(left.tolist(), right.tolist())]
    assert len(met) == len(set(met)) and all(own[i] == own[j] for i, j in met)


def test_thousands_of_near_copies_come_together(module):
    rng = random.Random(3)
    text = random_text(rng, 400)
    copies = [f"{text[:200]}{n:04d}{text[200:]}" for n in range(3000)]
    others = [random_text(rng, 400) for _ in range(100)]
    assert module.find_near_duplicates(copies + others, 0.8) == [list(range(3000))]
    assert module.find_near_duplicates([text] * 50_000, 0.8) == [list(range(50_000))]
