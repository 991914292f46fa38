r"""Find near-duplicates: n-grams → MinHash → locality-sensitive hashing → exact check → clusters.

    find_near_duplicates(["one two three four", "other", "one two three four."]) → [[0, 2]]

How alike are two texts? Cut each into the set of its 5-grams, all runs of five characters. Their
Jaccard index is |A ∩ B| / |A ∪ B|: 1 for equal sets, 0 for sets that share nothing. But a million
texts make half a trillion pairs, so most pairs must be ruled out without looking at them.

MinHash (Broder 1997): hash every gram of both texts. With a fair hash, each gram of A ∪ B has the
same chance to get the smallest one. A and B have the same minimum exactly when this gram lies in
A ∩ B: with probability |A ∩ B| / |A ∪ B|, the Jaccard index. Of 128 minima, a text's *signature*,
the share that agrees estimates it; its standard error is at most 0.5 / sqrt(128) = 0.044.

Locality-sensitive hashing cuts signatures into *bands*. Texts with an equal band share a *bucket*,
and only they become candidate pairs (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
chapter 3). Candidates are checked exactly; pairs that pass join to clusters, each with a *root*."""

import collections

import numpy as np

GRAM = 5         # characters in a gram
FILL = "\udfff"  # makes a short text as long as a gram; no text in UTF-8 holds this character
NEIGHBOURS = 16  # texts that a text is compared with in one bucket
EMPTY = np.uint32(2**32 - 1)  # a bin without a gram (a hash equals it once in 2^32)
FACTORS = np.random.default_rng(5).integers(2**63, size=8, dtype=np.uint64) * 2 + 1  # odd


def grams(text):
    """Return the set of a text's grams; a text shorter than a gram is the only one of its own."""
    return {text[i:i + GRAM] for i in range(max(1, len(text) - GRAM + 1))}


def jaccard(left, right):
    """Return the Jaccard index of two texts: the share of all their grams that both have."""
    left, right = grams(left), grams(right)
    shared = len(left & right)
    return shared / (len(left) + len(right) - shared)


def minhash_signatures(texts, permutations=128):
    """Return signatures, (number of texts, permutations) uint32; permutations: a power of two.

    One hash a gram is enough: its low bits choose one of `permutations` bins, and each bin, a
    random sample of the text, keeps its smallest (one-permutation hashing; Li et al. 2012)."""
    if permutations < 2 or permutations & (permutations - 1):
        raise ValueError(f"permutations is {permutations}: give a power of two, such as 128")
    orders = bin_orders(permutations)
    signatures = np.full((len(texts), permutations), EMPTY, np.uint32)
    for signature, text in zip(signatures, texts):
        hashes = (gram_hashes(text) >> np.uint64(32)).astype(np.uint32)
        np.minimum.at(signature, hashes % permutations, hashes)
        fill_empty_bins(signature, orders)
    return signatures


def gram_hashes(text):
    """Return the hashes of a text's grams, in order, (number of grams,) uint64.

    The sum of the code points, each times a random odd number (multilinear hashing, Lemire and
    Kaser 2014), is mixed once more: the minimum of such sums is not quite fair."""
    codes = np.frombuffer(text.ljust(GRAM, FILL).encode("utf-32-le", "surrogatepass"), np.uint32)
    codes, count = codes.astype(np.uint64), len(codes) - GRAM + 1
    sums = sum(codes[k:k + count] * FACTORS[k] for k in range(GRAM))
    return (sums ^ (sums >> np.uint64(32))) * FACTORS[GRAM]


def bin_orders(bins):
    """Return for each bin a random order of all bins, the same in every call: (bins, bins)."""
    return np.random.default_rng(2017).permuted(np.tile(np.arange(bins), (bins, 1)), axis=1)


def fill_empty_bins(signature, orders):
    """Give each empty bin, in place, the value of the first full one in its order.

    Alike texts borrow alike, so short ones share bands, too (Shrivastava 2017)."""
    full = signature != EMPTY
    if not full.all():
        lender = orders[np.arange(len(orders)), full[orders].argmax(axis=1)]
        signature[~full] = signature[lender][~full]


def estimate_jaccard(left, right):
    """Estimate Jaccard indices from signatures: (…, permutations) twice → (…)."""
    # Only bins that either text filled itself count: a short text's estimate is nearly exact.
    bins = np.arange(left.shape[-1], dtype=np.uint32)
    mask = bins[-1]  # 127 for 128 bins: the low bits of a value, which name the bin it comes from
    own = ((left & mask) == bins) | ((right & mask) == bins)
    return np.count_nonzero((left == right) & own, axis=-1) / np.count_nonzero(own, axis=-1)


def choose_bands(threshold, permutations=128, recall=0.98):
    """Return (bands, rows): the longest bands with which a pair at the threshold is still found.

    A row of two signatures agrees with probability s, their Jaccard index; a band of them with
    s^rows, and at least one band with 1 - (1 - s^rows)^bands: `recall`, at the threshold."""
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if rows == 1 or 1 - (1 - threshold ** rows) ** bands >= recall:
            return bands, rows


def band_keys(signatures, bands, rows):
    """Yield for each band a key per text, (n,) uint64; equal keys: almost surely equal bands."""
    for start in range(0, bands * rows, rows):
        keys = np.zeros(len(signatures), np.uint64)
        for column in range(start, start + rows):
            keys = (keys ^ (keys >> np.uint64(29))) * FACTORS[0] + signatures[:, column]
        yield keys * FACTORS[1]


def candidate_pairs(signatures, bands, rows):
    """Return pairs (i, j) of texts with an equal band, in a large bucket the near ones."""
    keys, pairs = list(band_keys(signatures, bands, rows)), set()
    for own, following in zip(keys, keys[1:] + keys[:1]):
        buckets = collections.defaultdict(list)
        for i, key in enumerate(own.tolist()):
            buckets[key].append(i)
        for bucket in buckets.values():
            if len(bucket) > NEIGHBOURS:  # sort by the next band: likely copies end up adjacent
                bucket.sort(key=following.__getitem__)
            for place, i in enumerate(bucket):  # the next few are enough: clusters join the rest
                pairs.update((i, j) for j in bucket[place + 1:place + 1 + NEIGHBOURS])
    return pairs


def worth_checking(texts, threshold, permutations):
    """Return for each text the estimate from which a pair is worth an exact check, (n,).

    3.5 standard errors below the threshold t: the estimate from f of a text's n grams, one for
    each bin they fill, has a variance of about t·(1 − t)·(1/f − 1/n); n + 1 keeps it above 0."""
    counts = np.array([max(1, len(text) - GRAM + 1) for text in texts], float)
    filled = permutations * -np.expm1(counts * np.log1p(-1 / permutations))  # p·(1 − (1 − 1/p)^n)
    return threshold - 3.5 * np.sqrt(threshold * (1 - threshold) * (1 / filled - 1 / (counts + 1)))


def find_root(parents, i):
    """Return the root of a text's cluster: follow the parents until one is its own parent."""
    while parents[i] != i:
        parents[i] = i = parents[parents[i]]  # halves the path for later calls
    return i


def find_near_duplicates(texts, threshold=0.8, signatures=None):
    """Return clusters, sorted lists of indices, of texts whose Jaccard index reaches `threshold`.

    Texts alone are left out; two may be linked through a third. signatures: if made before."""
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}: give a Jaccard index above 0, at most 1")
    places = collections.defaultdict(list)  # text → its indices
    for i, text in enumerate(texts):
        places[text].append(i)
    distinct = list(places)  # equal texts are one from here on
    signatures = (minhash_signatures(distinct) if signatures is None
                  else signatures[[indices[0] for indices in places.values()]])
    least = worth_checking(distinct, threshold, signatures.shape[1])
    parents = list(range(len(distinct)))
    # Join the pairs that pass first the estimate, then the exact check (union-find).
    for i, j in candidate_pairs(signatures, *choose_bands(threshold, signatures.shape[1])):
        if (find_root(parents, i) != find_root(parents, j)
                and estimate_jaccard(signatures[i], signatures[j]) >= min(least[i], least[j])
                and jaccard(distinct[i], distinct[j]) >= threshold):
            parents[find_root(parents, j)] = find_root(parents, i)
    clusters = collections.defaultdict(list)
    for i, text in enumerate(distinct):
        clusters[find_root(parents, i)] += places[text]
    return sorted(sorted(cluster) for cluster in clusters.values() if len(cluster) > 1)
