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
                    write the number of the pair into the low bits of each. Sort the grams of all
                    left and all right texts together: a gram that both texts of a pair have now
                    stands twice in a row, so counting such twins by pair is |A ∩ B|. (Two different
                    grams of a pair look alike when 52 bits of their hashes are equal; for texts of
                    a thousand grams, one pair in billions.)

Sorting in place of looking up is how databases join large tables (sort-merge join; Blasgen and
Eswaran 1977). The saving is printed by `python tests/bench/bench_curate.py speed`.
"""

import numpy as np

from nanoseek.duplicates import (GRAM, NEIGHBOURS, band_keys, choose_bands, estimate_jaccard,
                                 find_root, worth_checking)
from nanoseek.fast.minhash import OUTSIDE, hash_pieces, minhash_signatures

PAIRS = 1 << 12                  # pairs in a batch: their numbers fit in the low bits of a hash
GRAMS = 1 << 20                  # grams checked in one sort
LOW_BITS = np.uint64(PAIRS - 1)


def find_near_duplicates(texts, threshold=0.8, signatures=None):
    """Return what duplicates.find_near_duplicates returns: clusters, lists of indices."""
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}: give a Jaccard index above 0, at most 1")
    # Equal texts are one from here on: `firsts` holds where each distinct text stands first.
    first = {}
    own_first = np.array([first.setdefault(text, i) for i, text in enumerate(texts)], np.int64)
    distinct, firsts = list(first), np.fromiter(first.values(), np.int64, len(first))
    signatures = minhash_signatures(distinct) if signatures is None else signatures[firsts]
    search = PairSearch(distinct, signatures, threshold)
    keys = list(band_keys(signatures, *choose_bands(threshold, signatures.shape[1])))
    for own, following in zip(keys, keys[1:] + keys[:1]):
        for left, right in neighbours(own, following):
            search.join_all(left, right)
    # Texts with one root are one cluster: sort by the root, cut where it changes.
    roots = search.roots[np.searchsorted(firsts, own_first)]
    order = np.argsort(roots, kind="stable")
    clusters = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    return sorted(cluster.tolist() for cluster in clusters if len(cluster) > 1)


def neighbours(own, following):
    """Yield arrays (left, right): the pairs of duplicates.candidate_pairs in one band.

    First come all pairs of texts that are next to each other in their bucket, then all that are
    two places apart, up to NEIGHBOURS.
    """
    order = np.argsort(own, kind="stable")
    keys = own[order]
    edges = np.flatnonzero(np.diff(keys, prepend=~keys[:1], append=~keys[-1:]))
    for bucket in np.flatnonzero(np.diff(edges) > NEIGHBOURS):
        texts = order[edges[bucket]:edges[bucket + 1]]  # a view: what follows sorts `order` itself
        texts[:] = texts[np.argsort(following[texts], kind="stable")]
    here = np.arange(len(keys))
    for distance in range(1, NEIGHBOURS + 1):
        here = here[here + distance < len(keys)]
        here = here[keys[here + distance] == keys[here]]
        yield order[here], order[here + distance]


class PairSearch:
    """Checks arrays of pairs and joins those that pass; `roots` holds the root of each text."""

    def __init__(self, texts, signatures, threshold):
        self.texts, self.signatures, self.threshold = texts, signatures, threshold
        self.least = worth_checking(texts, threshold, signatures.shape[1])
        self.sizes = np.array([max(1, len(text) - GRAM + 1) for text in texts], np.int64)
        self.roots = np.arange(len(texts))

    def join_all(self, left, right):
        """Join the near-duplicates among any number of pairs."""
        for start in range(0, len(left), PAIRS):
            self.join(left[start:start + PAIRS], right[start:start + PAIRS])
        # Shorten all ways to one step, so that the next batch can compare roots as an array.
        while not np.array_equal(roots := self.roots[self.roots], self.roots):
            self.roots = roots

    def join(self, left, right):
        """Join the near-duplicates among at most PAIRS pairs; each test leaves fewer of them."""
        apart = self.roots[left] != self.roots[right]  # not in one cluster yet
        left, right = left[apart], right[apart]
        estimates = estimate_jaccard(self.signatures[left], self.signatures[right])
        likely = estimates >= np.minimum(self.least[left], self.least[right])
        left, right = left[likely], right[likely]
        near = self.are_near(left, right)
        for i, j in zip(left[near].tolist(), right[near].tolist()):
            i, j = find_root(self.roots, i), find_root(self.roots, j)
            self.roots[max(i, j)] = min(i, j)

    def are_near(self, left, right):
        """Say of each pair whether its Jaccard index is at least the threshold."""
        near = np.zeros(len(left), bool)
        batches = np.cumsum(self.sizes[left] + self.sizes[right]) // GRAMS
        for batch in np.unique(batches):  # pairs of one number are checked in one sort
            pairs = batches == batch
            shared, total = self.count_grams(left[pairs], right[pairs])
            near[pairs] = shared / (total - shared) >= self.threshold
        return near

    def count_grams(self, left, right):
        """Return arrays of |A ∩ B| and of |A| + |B|, one sort for all pairs."""
        merged = np.sort(np.concatenate((self.numbered_grams(left), self.numbered_grams(right))))
        pairs = (merged & LOW_BITS).astype(np.int64)
        twins = merged[1:] == merged[:-1]
        return (np.bincount(pairs[1:][twins], minlength=len(left)),
                np.bincount(pairs, minlength=len(left)))

    def numbered_grams(self, texts):
        """Return the distinct grams of each text: hashes that end in the number of its pair."""
        hashes, lengths = hash_pieces([self.texts[n].ljust(GRAM, "\0") for n in texts.tolist()])
        numbers = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
        return np.unique((hashes & ~LOW_BITS | numbers)[hashes != OUTSIDE])
