r"""Encoding many chunks at once: the parts from which fast/bpe.py makes `FastTokenizer`.

What the chapter spends. It cuts with `regex`, since Python's `re` knows no \p{L}. Then it merges
one chunk after the other, and looks up all pairs of the chunk, one by one, for each merge.

1. `spell_out` writes \p{L} and its kind as ranges of characters for `re`, the quicker engine.
2. New chunks are merged together: a round does the next merge of every chunk in a few numpy calls.
3. A round asks for thousands of pairs, and `PairTable`, a hash table in two arrays, answers them at
   once. The slot of a pair (one integer) is the highest bits of the pair times 2^64 / φ, which
   spreads any pairs well (Fibonacci hashing: Knuth, The Art of Computer Programming, volume 3,
   §6.4). A pair that finds its slot taken goes to the next (open addressing).
4. There are as many rounds as the longest chunk has merges. So a very long chunk (a line without a
   space) is merged by itself, with a heap: in n log n steps, where the chapter's way takes n².

The saving is printed by `python tests/bench/bench_tokenizer.py encode long`.
"""

import functools
import heapq
import itertools
import re

import numpy as np
import regex

from nanoseek.tokenizer import WITH_GAPS

ID = (1 << 32) - 1  # a pair is one integer: left id << 32 | right id
LONG = 256          # bytes: a longer chunk is merged by itself
LARGE = 1 << 24     # characters: a longer text is cut bit by bit, to save memory
_NONE = 1 << 30     # in place of a new id: these two are not merged


def spell_out(pattern):
    r"""Return a pattern for `re`, the same up to U+FFFF: \p{N} → [\u0030-\u0039\u00b2…]."""
    characters, a_set = "".join(map(chr, range(1 << 16))), r"\[(?:\\.|[^\[\]\\])*\]"
    if not regex.fullmatch(rf"(?s:\\.|[^\[\\]|{a_set})*", pattern):
        raise ValueError(f"a set within a set: {pattern}")

    def ranges(match):
        if match["escape"]:  # \. and the like stay
            return match[0]
        found = regex.finditer(match[0] + "+", characters, regex.V1)
        return "[" + "".join(f"\\u{m.start():04x}-\\u{m.end() - 1:04x}" for m in found) + "]"
    return regex.sub(a_set + r"|\\[pP]\{[^}]*\}|\\[sSdDwW]|\.|\\(?<escape>.)", ranges, pattern)


@functools.lru_cache(64)
def splitter(pattern):
    """Return a function text → chunks that cuts as the chapter does."""
    exact = regex.compile(WITH_GAPS.format(pattern), regex.V1 | regex.MULTILINE)
    try:
        quick = re.compile(WITH_GAPS.format(spell_out(pattern)), re.MULTILINE)
    except (re.error, ValueError):  # it has something that `re` lacks
        quick = exact

    def split(text):
        # Where no character is beyond U+FFFF, UTF-16 has two bytes for each.
        narrow = len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)
        compiled = quick if narrow else exact
        if compiled.groups or len(text) > LARGE:
            return filter(None, (match[0] for match in compiled.finditer(text)))
        return filter(None, compiled.findall(text))
    return split


class PairTable:
    """The merges {(left id, right id): new id} as a hash table that looks up a whole array at once.

    key_of: a dictionary {pair: new id << 32}, quicker for one pair.
    """

    def __init__(self, merges):
        self.key_of = {left << 32 | right: new << 32 for (left, right), new in merges.items()}
        pairs = np.array([*self.key_of], np.int64)
        new_ids = np.array([*merges.values()], np.int64)
        bits = (4 * len(pairs) + 4).bit_length()  # at most a quarter of the slots is taken
        self._shift, self._last = np.uint64(64 - bits), (1 << bits) - 1
        self._pairs, self._new_ids = np.full(1 << bits, -1), np.full(1 << bits, _NONE)
        slot = self._slot(pairs)
        while len(pairs):
            free = self._pairs[slot] < 0
            self._pairs[slot[free]] = pairs[free]  # of several for one slot, one stays
            lost = self._pairs[slot] != pairs
            self._new_ids[slot[~lost]] = new_ids[~lost]
            pairs, new_ids, slot = pairs[lost], new_ids[lost], slot[lost] + 1 & self._last

    def _slot(self, pairs):
        return (pairs.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self._shift).view(np.int64)

    def get(self, pairs):
        """Return the new id of each pair, or _NONE: int64 (n,) → int64 (n,)."""
        slot = self._slot(pairs)
        new_ids, there = self._new_ids[slot], self._pairs[slot]
        todo = ((there != pairs) & (there >= 0)).nonzero()[0]
        while len(todo):
            slot[todo] = at = slot[todo] + 1 & self._last
            new_ids[todo], there = self._new_ids[at], self._pairs[at]
            todo = todo[(there != pairs[todo]) & (there >= 0)]
        return new_ids


def lay_out(chunks):
    """Lay chunks (bytes) end to end: raw bytes (N,) uint8, and the places of the walls between."""
    raw = np.frombuffer(b"\0" + b"\0".join(chunks) + b"\0", np.uint8)
    return raw, np.cumsum([0] + [len(chunk) + 1 for chunk in chunks])  # (chunks + 1,)


def merge_chunks(chunks, table, sizes):
    """Merge chunks (bytes): all ids (n,), and where those of each chunk end (chunks,).

    An id stands at the first and at the last byte of its symbol, as in fast/bpe.py. Where a symbol
    begins that can be merged with the next stands a key, new id << 32 | place: so the smallest key
    of a chunk is its next merge. sizes: the bytes of each id, and 1 for the wall, the last.
    """
    raw, walls = lay_out(chunks)
    symbols = raw.astype(np.int64)
    symbols[walls] = len(sizes) - 1
    keys = np.append(table.get(symbols[:-1] << 32 | symbols[1:]), _NONE) << 32
    keys |= np.arange(len(keys))
    begins = symbols != len(sizes) - 1  # whether a symbol begins here
    spans = np.column_stack((walls[:-1] + 1, walls[1:]))  # (chunks, 2)
    starts, long = spans[:, 0], spans[:, 1] - spans[:, 0] > LONG
    for chunk, start in zip(itertools.compress(chunks, long), starts[long].tolist()):
        ids = merge_long(chunk, table.key_of)
        symbols[start:start + len(ids)] = ids
        begins[start + len(ids):start + len(chunk)] = False
    spans = spans[~long]
    while len(spans):  # a round: the next merge of every chunk that has one
        best = np.minimum.reduceat(keys, spans.ravel())[::2]
        unfinished = best < _NONE << 32
        spans, new, places = spans[unfinished], best[unfinished] >> 32, best[unfinished] & ID
        middle = places + sizes[symbols[places]]
        after = middle + sizes[symbols[middle]]
        before = places - sizes[symbols[places - 1]]
        symbols[places] = symbols[after - 1] = new
        begins[middle] = False
        keys[middle] = _NONE << 32
        keys[places] = table.get(new << 32 | symbols[after]) << 32 | places
        keys[before] = table.get(symbols[before] << 32 | new) << 32 | before
    return symbols[begins], np.cumsum(np.add.reduceat(begins, starts, dtype=np.int64))


def merge_long(chunk, key_of):
    """Merge one chunk (bytes) with a heap of keys, each checked when it comes up: list of ids."""
    end, get = len(chunk), key_of.get
    ids, before, after = [*chunk, -1], [*range(-1, end)], [*range(1, end + 1), end]
    heap = [key | i for i in range(end) if (key := get(ids[i] << 32 | ids[i + 1]))]
    heapq.heapify(heap)
    while heap:
        key = heapq.heappop(heap)
        i = key & ID
        middle = after[i]
        if get(ids[i] << 32 | ids[middle], 0) | i != key:  # one of the two has been merged since
            continue
        ids[i], ids[middle] = key >> 32, -1
        after[i] = after[middle]
        before[after[i]] = i
        for i in (i, before[i]):  # before the first there is place -1: no id
            if key := get(ids[i] << 32 | ids[after[i]]):
                heapq.heappush(heap, key | i)
    return [i for i in ids if i >= 0]
