"""Worked solutions of 04_curation.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count
answer = 91_000_000 * 90_999_999 // 2  # about 4 · 10^15


# 2. Choose the bands
def most_rows(threshold, recall, size=128):
    """the largest number of rows that still finds `recall` of the pairs at the threshold"""
    return max(rows for rows in range(1, size + 1)
               if 1 - (1 - threshold ** rows) ** (size // rows) >= recall)


# 3. One hash function is enough
def sketch(gram_set, size=128):
    """set of grams → sorted list of the smallest `size` values of hash_number(0, gram)"""
    return sorted(hash_number(0, gram) for gram in gram_set)[:size]


def estimate(left, right, size=128):
    """two sketches → estimated Jaccard index"""
    smallest = sorted(set(left) | set(right))[:size]
    return len(set(smallest) & set(left) & set(right)) / len(smallest)


# 4. Mend this bucketing: a bucket must remember all its documents, not only the last one
def broken_candidates(signatures, bands, rows):
    """signatures (n, 128) → set of pairs (a, b), a < b, with at least one equal band"""
    pairs = set()
    for band in range(bands):
        buckets = {}
        for n, row in enumerate(signatures):
            bucket = buckets.setdefault(tuple(row[band * rows:(band + 1) * rows].tolist()), [])
            pairs.update((earlier, n) for earlier in bucket)
            bucket.append(n)
    return pairs
