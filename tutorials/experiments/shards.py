"""Near-duplicates over shards, as an engine for a terabyte finds them, here in two processes.

    python tutorials/experiments/shards.py

Three steps, which datatrove, Spark and Ray have under their own names. *Map*: each shard alone is
turned in signatures, and each signature in one row (band, key, document) per band. *Shuffle and
reduce*: rows of equal band and key meet in one worker, which verifies the pairs among them.
*Components*: pairs that share a document belong together. No step sees more than a part of the
texts, and the clusters are those of `find_near_duplicates`, which sees all.
"""

import collections
import concurrent.futures
import itertools
import multiprocessing
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek.duplicates import band_keys, choose_bands, find_near_duplicates, jaccard
from nanoseek.fast.minhash import minhash_signatures

THRESHOLD = 0.8


def keyed_rows(first, texts):
    """Map: a shard, whose first document has number `first` → [((band, key), number)]."""
    bands = band_keys(minhash_signatures(texts), *choose_bands(THRESHOLD))
    return [((band, int(key)), first + n)
            for band, keys in enumerate(bands) for n, key in enumerate(keys)]


def verified_pairs(buckets, texts):
    """Reduce: [documents with an equal band], {document: text} → pairs that are near-duplicates."""
    pairs = {pair for bucket in buckets for pair in itertools.combinations(sorted(bucket), 2)}
    return [(a, b) for a, b in sorted(pairs) if jaccard(texts[a], texts[b]) >= THRESHOLD]


def components(pairs):
    """Join pairs to clusters: each document takes the lowest number that it is linked to."""
    lowest = {n: n for pair in pairs for n in pair}
    changed = True
    while changed:
        before = dict(lowest)
        for a, b in pairs:
            lowest[a] = lowest[b] = min(lowest[a], lowest[b])
        changed = lowest != before
    clusters = collections.defaultdict(list)
    for n in sorted(lowest):
        clusters[lowest[n]].append(n)
    return sorted(clusters.values())


def clusters_over_shards(shards, processes=2):
    """Return the clusters of near-duplicates of lists of texts; documents are numbered through."""
    texts = [text for shard in shards for text in shard]
    starts = itertools.accumulate(map(len, shards), initial=0)
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, context) as pool:
        buckets = collections.defaultdict(set)
        for rows in pool.map(keyed_rows, starts, shards):
            for key, number in rows:
                buckets[key].add(number)
        # The shuffle: each worker gets the buckets of its keys, and only the texts in them.
        work = [[] for _ in range(processes)]
        for (_, key), bucket in buckets.items():
            if len(bucket) > 1:
                work[key % processes].append(bucket)
        needed = [{n: texts[n] for bucket in part for n in bucket} for part in work]
        found = pool.map(verified_pairs, work, needed)
        return components({pair for pairs in found for pair in pairs})


def main():
    from nanoseek.corpus import plant_dirt
    from nanoseek.corpus.stories import stories
    clean = [{"text": story.text, "source": story.source}
             for language in ("en", "zh") for story in stories(language, 500, seed=0)]
    texts = [document["text"] for document in plant_dirt(clean, 0, 0.5)[0]]
    found = clusters_over_shards([texts[start:start + 300] for start in range(0, len(texts), 300)])
    same = found == find_near_duplicates(texts, THRESHOLD)
    print(f"{len(texts):,} documents in shards of 300, two processes: {len(found)} clusters, "
          f"{'the same' if same else 'NOT the same'} as in one process")
    sys.exit(not same)


if __name__ == "__main__":
    main()
