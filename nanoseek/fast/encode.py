r"""Encoding many chunks at once: the parts from which fast/bpe.py makes `FastTokenizer`.

What the chapter spends. It cuts with `regex`, since Python's `re` knows no \p{L}. Then it merges
one chunk after the other, and looks up all pairs of the chunk, one by one, for each merge.

1. `spell_out` writes \p{L} and its kind as ranges of characters for `re`, the quicker engine.
2. New chunks are merged together: a round does the next merge of every chunk in a few numpy calls.
3. A round asks for thousands of pairs, and `PairTable`, a hash table in two arrays, answers them at
   once. The slot of a pair (one integer) is the highest bits of the pair times 2^64 / φ (Fibonacci
   hashing: Knuth, The Art of Computer Programming, volume 3, §6.4), or the next one that is free.
4. There are as many rounds as the longest chunk has merges. So a very long chunk (a line without a
   space) is merged by itself, with a heap: in n log n steps, where the chapter's way takes n².

The saving is printed by `python tests/bench/bench_tokenizer.py encode long`.
"""

import functools
import heapq
import re

import numpy as np
import regex

from nanoseek.tokenizer import WITH_GAPS

ID = (1 << 32) - 1  # a pair is one integer: left id << 32 | right id
WALL = -1           # stands between chunks, in place of an id
NONE = 1 << 62      # in place of a key (see merge_chunks): these two are not merged
LONG = 256          # bytes: a longer chunk is merged by itself
LARGE = 1 << 24     # characters: a longer text is cut bit by bit, to save memory


def spell_out(pattern):
    r"""Return a pattern for `re`, the same up to U+FFFF: \p{N} → [\u0030-\u0039\u00b2…]."""
    characters = "".join(map(chr, range(1 << 16)))

    def ranges(match):
        if match["escape"]:  # \. and the like stay
            return match[0]
        found = regex.finditer(match[0] + "+", characters, regex.V1)
        return "[" + "".join(f"\\u{m.start():04x}-\\u{m.end() - 1:04x}" for m in found) + "]"
    return regex.sub(r"(?<set>\[(?:\\.|[^\[\]\\]|(?&set))*\])|\\[pP]\{[^}]*\}|\\[sSdDwW]|\."
                     r"|\\(?<escape>.)", ranges, pattern)


@functools.lru_cache(64)
def splitter(pattern):
    """Return a function text → chunks that cuts as the chapter does."""
    exact = quick = regex.compile(WITH_GAPS.format(pattern), regex.V1 | regex.MULTILINE)
    try:
        quick = re.compile(WITH_GAPS.format(spell_out(pattern)), re.MULTILINE)
    except (re.error, regex.error):
        pass  # it has something that `re` lacks

    def split(text):
        # Where no character is beyond U+FFFF, UTF-16 has two bytes for each.
        narrow = len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)
        compiled = quick if narrow else exact
        if compiled.groups or len(text) > LARGE:
            return filter(None, (match[0] for match in compiled.finditer(text)))
        return filter(None, compiled.findall(text))
    return split


class PairTable:
    """A hash table {pair: new id << 32} of the merges, which looks up a whole array at once."""

    def __init__(self, merges):
        self.key_of = {left << 32 | right: new << 32 for (left, right), new in merges.items()}
        pairs, keys = np.array([[*self.key_of], [*self.key_of.values()]], np.int64)
        bits = (4 * len(pairs) + 4).bit_length()  # at most a quarter of the slots is taken
        self.shift, self.last = np.uint64(64 - bits), (1 << bits) - 1
        self.pairs, self.keys = np.full(1 << bits, -1), np.full(1 << bits, NONE)
        while len(pairs):
            slots = self.find(pairs)
            self.pairs[slots], self.keys[slots] = pairs, keys
            lost = self.pairs[slots] != pairs  # of several for one slot, one stays
            pairs, keys = pairs[lost], keys[lost]

    def find(self, pairs):
        """Return the slot of each pair (n,); of one that is not there a free one, with key NONE."""
        product = pairs.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        slots, lost = (product >> self.shift).view(np.int64), np.arange(len(pairs))
        while len(lost):
            there = self.pairs[slots[lost]]
            lost = lost[(there != pairs[lost]) & (there >= 0)]
            slots[lost] = slots[lost] + 1 & self.last
        return slots


def lay_out(chunks):
    """Lay chunks (bytes) end to end between walls: ids int64 (N,), places of the walls (n + 1,)."""
    walls = np.cumsum([0] + [len(chunk) + 1 for chunk in chunks])
    symbols = np.frombuffer(b"\0" + b"\0".join(chunks) + b"\0", np.uint8).astype(np.int64)
    symbols[walls] = WALL
    return symbols, walls


def merge_chunks(chunks, table, sizes):
    """Merge chunks (bytes): the ids of all (n,), and how many each has (chunks,).

    An id stands at the first and at the last byte of its symbol, as in fast/bpe.py. Where a symbol
    begins that can be merged with the next stands a key, new id << 32 | place: so the smallest key
    of a chunk is its next merge. sizes: the bytes of each id, and 1 for the wall, the last.
    """
    symbols, walls = lay_out(chunks)
    begins = symbols != WALL  # whether a symbol begins here
    keys = np.append(table.keys[table.find(symbols[:-1] << 32 | symbols[1:])], NONE)
    keys |= np.arange(len(keys))
    starts, ends = walls[:-1] + 1, walls[1:]
    long = ends - starts > LONG
    for start, end in zip(starts[long], ends[long]):
        ids = merge_long(symbols[start:end].tolist(), table.key_of)
        symbols[start:start + len(ids)] = ids
        begins[start + len(ids):end] = False
    spans = np.column_stack((starts, ends))[~long]
    while len(spans):  # a round: the next merge of every chunk that has one
        best = np.minimum.reduceat(keys, spans.ravel())[::2]
        spans, best = spans[best < NONE], best[best < NONE]
        places = best & ID
        middle = places + sizes[symbols[places]]
        after = middle + sizes[symbols[middle]]
        before = places - sizes[symbols[places - 1]]
        symbols[places] = symbols[after - 1] = best >> 32
        begins[middle], keys[middle] = False, NONE
        left, right = np.concatenate(((before, places), (places, after)), axis=1)
        keys[left] = table.keys[table.find(symbols[left] << 32 | symbols[right])] | left
    return symbols[begins], np.add.reduceat(begins, starts, dtype=np.int64)


def merge_long(ids, key_of):
    """Merge the ids of one chunk with a heap of keys, each checked when it comes up."""
    end, get = len(ids), key_of.get
    ids, before, after = [*ids, WALL], [*range(-1, end)], [*range(1, end + 1), end]
    heap = sorted(key | i for i in range(end) if (key := get(ids[i] << 32 | ids[i + 1])))
    while heap:
        key = heapq.heappop(heap)
        i = key & ID
        middle = after[i]
        if get(ids[i] << 32 | ids[middle], 0) | i != key:  # one of the two has been merged since
            continue
        ids[i], ids[middle] = key >> 32, WALL
        after[i] = after[middle]
        before[after[i]] = i
        for i in (i, before[i]):  # before the first there is place -1: no id
            if key := get(ids[i] << 32 | ids[after[i]]):
                heapq.heappush(heap, key | i)
    return [i for i in ids if i != WALL]
