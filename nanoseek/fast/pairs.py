"""Near-duplicates, thousands of pairs at a time: the clusters of duplicates.find_near_duplicates.

What the chapter spends. For each candidate pair it calls NumPy on no more than 128 numbers, so that
the price of the call itself weighs most, and builds two sets, with a Python object per gram that is
looked up alone, anywhere in memory. Processors are fast on long arrays that are read in order.

The idea, in three steps, each of which does one step of the chapter for a whole batch of pairs:

    1. neighbours   Sort the texts by the key of a band: a bucket is a run of equal keys. Lay the
                    sorted keys beside themselves, moved by one place, then by two, and so on: where
                    both are equal are the pairs at this distance in their bucket, all at once.
    2. estimates    The rows of the signatures of all left texts and of all right texts are two
                    large arrays; one comparison of them gives all estimates.
    3. exact check  |A ∩ B| by sorting, for all pairs in one sort. Take the hashes of all grams, and
                    write into the low bits of each the number of its pair and its side, 0 or 1. A
                    gram of both texts of a pair then stands twice in a row, but for the side: such
                    twins, counted by pair, are |A ∩ B|. (Two different grams of a pair look alike
                    when 51 bits of their hashes are equal; with a thousand grams, one in billions.)

Sorting in place of looking up is how databases join large tables (sort-merge join; Blasgen and
Eswaran 1977). The saving is printed by `python tests/bench/bench_curate.py speed`."""

import numpy as np

from nanoseek.duplicates import (GRAM, NEIGHBOURS, band_keys, choose_bands, estimate_jaccard,
                                 find_root, worth_checking)
from nanoseek.fast.minhash import OUTSIDE, batches, hash_texts, minhash_signatures

PAIRS = 1 << 12                      # pairs in a batch
GRAMS = 1 << 20                      # grams checked in one sort
LOW_BITS = np.uint64(2 * PAIRS - 1)  # of a hash: they hold the number of a pair, and the side


def find_near_duplicates(texts, threshold=0.8, signatures=None):
    """Return what duplicates.find_near_duplicates returns: clusters, lists of indices."""
    # Equal texts are one from here on: `numbers` holds the place of each among the distinct ones.
    number_of = {}
    numbers = np.array([number_of.setdefault(text, len(number_of)) for text in texts], np.int64)
    distinct, firsts = [*number_of], np.unique(numbers, return_index=True)[1]
    signatures = minhash_signatures(distinct) if signatures is None else signatures[firsts]
    search = PairSearch(distinct, signatures, threshold)
    keys = list(band_keys(signatures, *choose_bands(threshold, signatures.shape[1])))
    for own, following in zip(keys, keys[1:] + keys[:1]):
        for left, right in neighbours(own, following):
            search.join(left, right)
    # Texts with one root are one cluster: sort by the root, cut where it changes.
    roots = search.roots[numbers]
    order = np.argsort(roots, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    return sorted(cluster.tolist() for cluster in clusters if len(cluster) > 1)


def neighbours(own, following):
    """Yield the pairs of one band, distance by distance, as arrays (left, right)."""
    order = np.lexsort((following, own))  # by own key; in a bucket by the following
    keys, here = own[order], np.arange(len(order))
    for distance in range(1, NEIGHBOURS + 1):
        here = here[here + distance < len(keys)]
        here = here[keys[here + distance] == keys[here]]
        yield order[here], order[here + distance]


class PairSearch:
    """Checks arrays of pairs and joins those that pass; `roots` holds the root of each text."""
    def __init__(self, texts, signatures, threshold):
        self.texts, self.signatures, self.threshold = texts, signatures, threshold
        self.least = worth_checking(texts, threshold, signatures.shape[1])
        self.sizes = np.array([max(GRAM, len(text)) for text in texts], np.int64)
        self.roots = np.arange(len(texts))

    def join(self, left, right):
        """Join the near-duplicates among any number of pairs."""
        apart = self.roots[left] != self.roots[right]  # not in one cluster yet
        left, right = left[apart], right[apart]
        sizes = np.maximum(self.sizes[left] + self.sizes[right], GRAMS // PAIRS)
        for batch in batches(sizes, GRAMS):
            self.join_batch(left[batch], right[batch])
        # Shorten all ways to one step, so that the next call can compare roots as an array.
        while not np.array_equal(roots := self.roots[self.roots], self.roots):
            self.roots = roots

    def join_batch(self, left, right):
        estimates = estimate_jaccard(self.signatures[left], self.signatures[right])
        likely = estimates >= np.minimum(self.least[left], self.least[right])
        left, right = left[likely], right[likely]
        if len(left) == 0:
            return
        shared, total = self.count_grams(left, right)
        near = shared / (total - shared) >= self.threshold
        for i, j in zip(left[near].tolist(), right[near].tolist()):
            i, j = find_root(self.roots, i), find_root(self.roots, j)
            self.roots[max(i, j)] = min(i, j)

    def count_grams(self, left, right):
        """Return |A ∩ B| and |A| + |B| of each pair (n,), by one sort."""
        both = np.column_stack((left, right)).ravel().tolist()  # texts 2n and 2n + 1: a pair
        hashes, lengths = hash_texts([self.texts[n] for n in both])
        numbers = np.repeat(np.arange(len(both), dtype=np.uint64), lengths)
        grams = np.sort((hashes & ~LOW_BITS | numbers)[hashes != OUTSIDE])
        grams = grams[np.append(True, grams[1:] != grams[:-1])]  # those of a text once each
        pairs = (grams & LOW_BITS).astype(np.int64) // 2
        twins = grams[1:] ^ grams[:-1] == 1  # equal, but for the side
        return np.bincount(pairs[1:][twins], minlength=len(left)), np.bincount(pairs)
