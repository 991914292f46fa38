"""MinHash signatures of many texts at once: the same numbers as duplicates.minhash_signatures.

What the chapter spends. It hashes one text after the other, in some thirty calls of NumPy each. A
call has a price of its own, however short its array is, and most texts are short.

The idea. Lay many texts end to end, with GRAM - 1 zeros in between, so that no gram reaches from
one text into the next, and hash them as one. The place of a hash in the array of all signatures is
(number of its text) · PERMUTATIONS + (its bin), so a single `np.minimum.at` finds all minima.

BATCH characters make arrays of half a megabyte, which stay in the cache from one call to the next.
The saving is printed by `python tests/bench/bench_curate.py speed`."""

import numpy as np

from nanoseek.duplicates import EMPTY, FILL, GRAM, bin_orders, gram_hashes

BATCH = 1 << 16                 # characters hashed at once
PERMUTATIONS = 128              # bins of a signature
OUTSIDE = np.uint64(2**64 - 1)  # for a gram that lies in no text; its high half is EMPTY


def minhash_signatures(texts):
    """Return what duplicates.minhash_signatures returns, (number of texts, 128) uint32."""
    signatures = np.full((len(texts), PERMUTATIONS), EMPTY, np.uint32)
    for batch in batches([len(text) for text in texts], BATCH):
        hashes, lengths = hash_texts(texts[batch])
        hashes = (hashes >> np.uint64(32)).astype(np.uint32)
        places = np.repeat(np.arange(len(lengths)) * PERMUTATIONS, lengths)
        places += hashes & np.uint32(PERMUTATIONS - 1)
        np.minimum.at(signatures[batch].reshape(-1), places, hashes)
    for start in range(0, len(texts), 4096):
        fill_empty_bins(signatures[start:start + 4096])
    return signatures


def batches(sizes, limit):
    """Yield slices of the things with these sizes, in order, each of about `limit` together."""
    ends = np.flatnonzero(np.diff(np.cumsum(sizes) // limit, append=-1)) + 1
    yield from map(slice, np.append(0, ends[:-1]), ends)


def hash_texts(texts):
    """Return (hashes, lengths): the gram hashes of all texts on end, and how many each has.

    After a text's own grams come those that reach beyond its end, marked as OUTSIDE."""
    gap = "\0" * (GRAM - 1)
    texts = [text.ljust(GRAM, FILL) + gap for text in texts]
    hashes = gram_hashes("".join(texts) + gap)
    lengths = np.array([len(text) for text in texts])
    last = np.cumsum(lengths) - 1
    for step in range(2 * len(gap)):
        hashes[last - step] = OUTSIDE
    return hashes, lengths


def fill_empty_bins(signatures):
    """Do duplicates.fill_empty_bins for many texts: all ask their first choice, then the second."""
    rows, bins = np.nonzero(signatures == EMPTY)
    original = signatures.copy()
    for choice in bin_orders(PERMUTATIONS).T:
        found = original[rows, choice[bins]]
        full = found != EMPTY
        signatures[rows[full], bins[full]] = found[full]
        rows, bins = rows[~full], bins[~full]
