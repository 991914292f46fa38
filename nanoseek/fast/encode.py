r"""Encoding many chunks at once: the parts from which fast/bpe.py makes `FastTokenizer`.

What the chapter spends. It cuts with `regex`, since Python's `re` knows no \p{L}. Then it merges
one chunk after the other, and looks up all pairs of the chunk, one by one, for each merge.

1. `spell_out` writes \p{L} and its kind as ranges of characters for `re`, the quicker engine.
2. New chunks are merged together: a round does the next merge of every chunk in a few numpy calls.
   A round looks up thousands of pairs at once, by binary search among the sorted pairs.
3. There are as many rounds as the longest chunk has merges. So a long chunk, like a line without a
   space, does its next merge at all places in one round. (The chapter's way takes n² steps.)

The saving is printed by `python tests/bench/bench_tokenizer.py encode long`."""

import functools
import re

import numpy as np
import regex

from nanoseek.tokenizer import WITH_GAPS

ID = (1 << 32) - 1  # a pair is one integer: left id << 32 | right id
WALL = -1           # stands between chunks, in place of an id
NONE = 1 << 62      # in place of a key (see merge_chunks): these two are not merged
LONG = 256          # bytes: a longer chunk merges at all places at once
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
    """The pairs that merge, sorted, with their keys: new id << 32."""
    def __init__(self, merges):
        pairs = np.array([left << 32 | right for left, right in merges], np.int64)
        order = pairs.argsort()  # the n-th merge makes the id 256 + n
        self.pairs, self.keys = np.append(pairs[order], NONE), np.append(order + 256 << 32, NONE)
        # Most lookups are those of bytes; walls (-1) are the last row and column, and never merge.
        self.of_bytes = np.pad(self.find(*np.mgrid[:256, :256]), (0, 1), constant_values=NONE)

    def find(self, left, right):
        """Return the keys of pairs of ids (n,), (n,): NONE for those that do not merge."""
        pairs = left << 32 | right
        slots = self.pairs.searchsorted(pairs)
        return np.where(self.pairs[slots] == pairs, self.keys[slots], NONE)


def lay_out(chunks):
    """Lay chunks (bytes) end to end between walls: ids int64 (N,), places of the walls (n + 1,)."""
    walls = np.cumsum([0] + [len(chunk) + 1 for chunk in chunks])
    symbols = np.frombuffer(b"\0" + b"\0".join(chunks) + b"\0", np.uint8).astype(np.int64)
    symbols[walls] = WALL
    return symbols, walls


def every_second(places, size):
    """Return where a symbol of `size` bytes merges with its like: "aaa" has the pair at two places
    (sorted) but room for one merge, so of a run of neighbours every second is taken."""
    number = np.arange(len(places))
    start_of_run = np.maximum.accumulate(number * (np.diff(places, prepend=0) != size))
    return places[(number - start_of_run) % 2 == 0]


def merge_chunks(chunks, table, sizes):
    """Merge chunks (bytes): the ids of all (n,), and how many each has (chunks,).

    An id stands at the first and at the last byte of its symbol, as in fast/bpe.py. Where a symbol
    begins that can be merged with the next stands a key, new id << 32 | place: so the smallest key
    of a chunk is its next merge. sizes: the bytes of each id, and 1 for the wall, the last."""
    symbols, walls = lay_out(chunks)
    begins = symbols != WALL  # whether a symbol begins here
    keys = np.append(table.of_bytes[symbols[:-1], symbols[1:]], NONE)
    keys |= np.arange(len(keys))
    spans = np.column_stack((walls[:-1] + 1, walls[1:]))
    while len(spans):  # a round: the next merge of every chunk that has one
        best = np.minimum.reduceat(keys, spans.ravel())[::2]
        spans, best = spans[best < NONE], best[best < NONE]
        long = spans[:, 1] - spans[:, 0] > LONG
        places = [best[~long] & ID]
        for (start, end), key in zip(spans[long], best[long]):  # all keys up to key | ID are alike
            alike = start + np.flatnonzero(keys[start:end] <= key | ID)
            places.append(every_second(alike, sizes[symbols[alike[0]]]))
        places = np.concatenate(places)
        middle = places + sizes[symbols[places]]
        after = middle + sizes[symbols[middle]]
        symbols[places] = symbols[after - 1] = keys[places] >> 32
        begins[middle], keys[middle] = False, NONE
        before = places - sizes[symbols[places - 1]]
        left, right = np.concatenate(((before, places), (places, after)), axis=1)
        keys[left] = table.find(symbols[left], symbols[right]) | left
    return symbols[begins], np.add.reduceat(begins, walls[:-1] + 1, dtype=np.int64)
