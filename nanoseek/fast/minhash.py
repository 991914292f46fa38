"""MinHash signatures of many texts at once: the same numbers as duplicates.minhash_signatures.

What the chapter spends. It hashes one text after the other, in some thirty calls of NumPy each. A
call has a price of its own, however short its array is, and most texts are short.

The idea. Lay many texts end to end, with GRAM - 1 zeros in between, so that no gram reaches from
one text into the next, and hash them as one. The place of a hash in the array of all signatures is
(number of its text) · permutations + (its bin), so a single `np.minimum.at` finds all minima.

Why not everything at once? BATCH characters make arrays of a megabyte, which stay in the cache from
one call to the next. A longer text is cut in pieces that overlap by GRAM - 1 characters.
The saving is printed by `python tests/bench/bench_curate.py speed`.
"""

import numpy as np

from nanoseek.duplicates import EMPTY, GRAM, bin_orders, gram_hashes

BATCH = 1 << 17                 # characters hashed at once
OUTSIDE = np.uint64(2**64 - 1)  # for a gram that lies in no text; its high half is EMPTY


def minhash_signatures(texts, permutations=128):
    """Return what duplicates.minhash_signatures returns, (number of texts, permutations) uint32."""
    if permutations < 2 or permutations & (permutations - 1):
        raise ValueError(f"permutations is {permutations}: give a power of two, such as 128")
    signatures = np.full((len(texts), permutations), EMPTY, np.uint32)
    for numbers, pieces in batches(texts):
        hashes, lengths = hash_pieces(pieces)
        hashes = (hashes >> np.uint64(32)).astype(np.uint32)
        places = np.repeat(np.array(numbers, np.int64) * permutations, lengths)
        places += hashes & np.uint32(permutations - 1)
        np.minimum.at(signatures.reshape(-1), places, hashes)
    for start in range(0, len(texts), 4096):
        fill_empty_bins(signatures[start:start + 4096], bin_orders(permutations))
    return signatures


def batches(texts):
    """Yield (numbers of the texts, pieces of them), about BATCH characters at a time."""
    numbers, pieces, size = [], [], 0
    for number, text in enumerate(texts):
        text = text.ljust(GRAM, "\0")
        for start in range(0, len(text) - GRAM + 1, BATCH):  # each gram lies in one piece only
            numbers.append(number)
            pieces.append(text[start:start + BATCH + GRAM - 1])
            size += len(pieces[-1])
            if size >= BATCH:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
    if pieces:
        yield numbers, pieces


def hash_pieces(pieces):
    """Return (hashes, lengths): the gram hashes of all pieces on end, and how many each has.

    A piece of n characters has n + GRAM - 1 of them: first its own grams, then those that reach
    beyond its end, which are marked as OUTSIDE.
    """
    gap = "\0" * (GRAM - 1)
    hashes = gram_hashes(gap.join([*pieces, gap]))
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces)) + len(gap)
    last = np.cumsum(lengths) - 1
    for step in range(2 * len(gap)):
        hashes[last - step] = OUTSIDE
    return hashes, lengths


def fill_empty_bins(signatures, orders):
    """Do duplicates.fill_empty_bins for many texts: all ask their first choice, then the second."""
    rows, bins = np.nonzero(signatures == EMPTY)
    original = signatures.copy()
    for choice in orders.T:
        found = original[rows, choice[bins]]
        full = found != EMPTY
        signatures[rows[full], bins[full]] = found[full]
        rows, bins = rows[~full], bins[~full]
