"""duplicates.py against naive truth: sets of 5-grams, all pairs; and what MinHash promises."""

import collections
import math
import pathlib
import random
import re
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
from hypothesis import example, given, settings, strategies

MODULE = "nanoseek.duplicates"
EXPERIMENTS = pathlib.Path(__file__).parents[1] / "tutorials" / "experiments"


# Naive truth -------------------------------------------------------------------------------

def grams(text):
    return {text[i:i + 5] for i in range(max(1, len(text) - 4))}


def true_jaccard(left, right):
    return len(grams(left) & grams(right)) / len(grams(left) | grams(right))


def true_clusters(texts, threshold):
    """All pairs, joined by repeated relabelling."""
    sets, labels = [grams(text) for text in texts], list(range(len(texts)))
    for i in range(len(texts)):
        for j in range(i):
            if len(sets[i] & sets[j]) >= threshold * len(sets[i] | sets[j]):
                labels = [labels[j] if label == labels[i] else label for label in labels]
    groups = collections.defaultdict(list)
    for number, label in enumerate(labels):
        groups[label].append(number)
    return sorted(group for group in groups.values() if len(group) > 1)


def random_text(rng, length, alphabet="abcdefghij klmnop"):
    return "".join(rng.choices(alphabet, k=length))


def mutate(text, share, rng):
    return "".join(rng.choice("xyz") if rng.random() < share else c for c in text)


def make_pairs(count, lengths, shares, seed):
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        text = random_text(rng, rng.randrange(*lengths))
        texts += [text, mutate(text, rng.choice(shares), rng)]
    return texts


# Signatures --------------------------------------------------------------------------------

@pytest.mark.contract
@settings(deadline=None)
@given(left=strategies.text(max_size=40), right=strategies.text(max_size=40))
@example(left="", right="\0")  # padding would make them equal
def test_jaccard_equals_that_of_naive_sets(module, left, right):
    assert module.jaccard(left, right) == pytest.approx(true_jaccard(left, right))
    assert module.jaccard(left + "天地玄黄abcde", left + "天地玄黄abcde") == 1


@pytest.mark.contract
@pytest.mark.parametrize("lengths", [(12, 40), (200, 600), (3000, 5000)])
def test_agreement_of_signatures_estimates_jaccard_without_bias(module, lengths):
    texts = make_pairs(200, lengths, [0.005, 0.02, 0.05, 0.1], seed=lengths[0])
    signatures = module.minhash_signatures(texts)
    assert signatures.shape == (400, 128)
    estimate = np.mean(signatures[0::2] == signatures[1::2], axis=1)
    truth = np.array([true_jaccard(a, b) for a, b in zip(texts[0::2], texts[1::2])])
    bound = 0.5 / math.sqrt(128)  # the largest standard error, at an index of 0.5
    assert abs(np.mean(estimate - truth)) < 4 * bound / math.sqrt(200)
    assert np.sqrt(np.mean((estimate - truth) ** 2)) < 1.5 * bound


def test_the_estimate_from_own_bins_is_closer_for_short_texts(module):
    texts = make_pairs(300, (20, 60), [0.02, 0.05, 0.1], seed=5)
    signatures = module.minhash_signatures(texts)
    left, right = signatures[0::2], signatures[1::2]
    truth = np.array([true_jaccard(a, b) for a, b in zip(texts[0::2], texts[1::2])])
    plain = np.mean((np.mean(left == right, axis=1) - truth) ** 2)
    assert np.mean((module.estimate_jaccard(left, right) - truth) ** 2) < plain


@pytest.mark.contract
def test_a_signature_depends_on_its_own_text_only(module):
    rng = random.Random(1)
    texts = [random_text(rng, n) for n in (0, 1, 4, 5, 6, 50, 700)] + ["天地玄黄宇宙洪荒" * 3, "a"]
    together = module.minhash_signatures(texts)
    for text, signature in zip(texts, together):
        assert np.array_equal(module.minhash_signatures([text])[0], signature)
    assert np.array_equal(together[1] == together[8], np.ones(128, bool)) == (texts[1] == "a")
    assert module.minhash_signatures([]).shape == (0, 128)


def test_permutations_that_are_no_power_of_two_are_refused(module):
    with pytest.raises(ValueError, match="power of two"):
        module.minhash_signatures(["abc"], permutations=100)


# Bands and clusters ------------------------------------------------------------------------

@pytest.mark.contract
@pytest.mark.parametrize("bands, rows", [(18, 7), (32, 4)])
def test_pairs_share_a_band_as_often_as_the_s_curve_says(module, bands, rows):
    texts = make_pairs(1500, (150, 400), [0.01, 0.02, 0.04, 0.06, 0.09, 0.13], seed=rows)
    signatures = module.minhash_signatures(texts)
    met = np.zeros(1500, bool)
    for keys in module.band_keys(signatures, bands, rows):
        met |= keys[0::2] == keys[1::2]
    truth = np.array([true_jaccard(a, b) for a, b in zip(texts[0::2], texts[1::2])])
    expected = 1 - (1 - truth ** rows) ** bands
    for low in np.arange(0.2, 1, 0.1):
        bin_ = (truth >= low) & (truth < low + 0.1)
        if bin_.sum() >= 50:
            error = math.sqrt(np.sum(expected[bin_] * (1 - expected[bin_]))) / bin_.sum()
            assert abs(met[bin_].mean() - expected[bin_].mean()) < 4 * error + 0.03, low


@pytest.mark.contract
@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9])
def test_the_bands_chosen_find_enough_and_one_more_row_would_not(module, threshold):
    def found(bands, rows):
        return 1 - (1 - threshold ** rows) ** bands
    bands, rows = module.choose_bands(threshold)
    assert bands * rows <= 128
    assert found(bands, rows) >= 0.98 > found(128 // (rows + 1), rows + 1)


@pytest.mark.contract
@pytest.mark.parametrize("threshold", [0.6, 0.8])
@pytest.mark.parametrize("lengths", [(10, 40), (100, 300)])
def test_clusters_are_those_of_all_pairs(module, threshold, lengths):
    texts = make_pairs(150, lengths, [0.005, 0.02, 0.05, 0.1], seed=9)
    random.Random(0).shuffle(texts)
    texts += texts[:5]  # exact copies as well
    truth, found = true_clusters(texts, threshold), module.find_near_duplicates(texts, threshold)
    pairs_of = {(a, b) for cluster in truth for a in cluster for b in cluster if a < b}
    pairs_found = {(a, b) for cluster in found for a in cluster for b in cluster if a < b}
    assert pairs_found <= pairs_of  # verified: precision is 1
    assert len(pairs_found) >= 0.98 * len(pairs_of)
    assert all(cluster == sorted(cluster) for cluster in found) and found == sorted(found)


@pytest.mark.contract
def test_near_duplicates_of_little_and_of_much(module):
    assert module.find_near_duplicates([], 0.8) == []
    assert module.find_near_duplicates(["alone"], 0.8) == []
    assert module.find_near_duplicates(["", "", "x"], 0.8) == [[0, 1]]
    assert module.find_near_duplicates(["one and only"] * 500, 0.8) == [list(range(500))]
    with pytest.raises(ValueError, match="threshold"):
        module.find_near_duplicates(["a"], 1.5)


def test_thousands_of_near_copies_fall_in_one_bucket_and_still_come_together(module):
    rng = random.Random(3)
    text = random_text(rng, 400)
    copies = [f"{text[:200]}{n:04d}{text[200:]}" for n in range(3000)]  # Jaccard 0.97 or so
    others = [random_text(rng, 400) for _ in range(100)]
    assert module.find_near_duplicates(copies + others, 0.8) == [list(range(3000))]
    assert module.find_near_duplicates([text] * 50_000, 0.8) == [list(range(50_000))]


def test_signatures_of_shards_give_the_clusters_of_the_whole(module):
    texts = make_pairs(150, (100, 300), [0.01, 0.03], seed=4)
    shards = [module.minhash_signatures(part) for part in (texts[:120], texts[120:])]
    together = module.find_near_duplicates(texts, 0.8, np.concatenate(shards))
    assert together == module.find_near_duplicates(texts, 0.8) != []


def test_two_processes_over_shards_give_the_clusters_of_one():
    done = subprocess.run([sys.executable, EXPERIMENTS / "shards.py"], capture_output=True,
                          text=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    clusters = re.search(r"two processes: (\d+) clusters, the same as in one process", done.stdout)
    assert clusters and int(clusters[1]) > 50, done.stdout


def test_the_encodings_of_the_library_are_found_as_all_pairs_find_them(module):
    folder = pathlib.Path(sysconfig.get_path("stdlib"), "encodings")
    texts = [path.read_text("utf-8")[:4000] for path in sorted(folder.glob("cp*.py"))]
    found = module.find_near_duplicates(texts, 0.8)
    assert found == true_clusters(texts, 0.8)
    assert found, "code pages are near-duplicates of one another"
