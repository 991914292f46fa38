"""BPE training over arrays: the chapter's merges, sooner; and `FastTokenizer`, which uses them.

    FastTokenizer.train(texts, vocab_size=4096)      # what Tokenizer.train gives, to the byte

What the chapter spends. For each merge it walks through every chunk that holds the pair, id by id,
where Python takes a hundred times as long as the processor would. Then it looks at all counts.

1. All chunks lie end to end in one array, and between two of them a wall that no pair can span. The
   id of a symbol stands at its first and at its last byte, so each neighbour is one look-up away,
   and a handful of numpy calls merges a pair at all its places:

       before    |   a   b   c   |   d   a   b   |      | is a wall
       after     |   z   z   c   |   d   z   z   |      z is a + b

2. A pair can only come to be when the younger of its two symbols does. At that merge all its places
   are found; later it only loses some. So its count at birth is an upper bound. A heap holds
   bounds; the pair on top is counted again, and is merged or goes back with its true count. (Lazy
   evaluation: Minoux 1978, Accelerated greedy algorithms, for gains that only fall.)
3. Of the pairs born together only the most frequent waits in the heap; when it leaves, the next one
   comes. Most never do, and cost nothing.

The saving is printed by `python tests/bench/bench_tokenizer.py train encode`."""

import collections
import heapq
import itertools

import numpy as np

from nanoseek.fast.encode import (ID, WALL, PairTable, every_second, lay_out, merge_chunks,
                                  splitter)
from nanoseek.tokenizer import Tokenizer, several

SHORT = 2000  # characters: a shorter text that comes alone is encoded as in the chapter


def learn_merges(counts, n_merges, min_count=2, progress=None, max_token_length=None):
    """Learn up to `n_merges` merges from {chunk: times}: list of (left id, right id)."""
    symbols, walls = lay_out([chunk.encode() for chunk in counts])
    times = np.repeat([*counts.values()], np.diff(walls))  # of the chunk around each place
    sizes = np.ones(256 + min(n_merges, len(symbols)), np.int64)  # bytes of each symbol
    heap, waiting, merges = [], {}, []  # waiting: {pair: (its places, the others born with it)}

    def offer(born):
        """Let the most frequent pair of those born together, which are left, wait in the heap."""
        for count, pair, places in itertools.islice(born, 1):
            heapq.heappush(heap, (-count, pair))
            waiting[pair] = places, born

    places = ((symbols[:-1] != WALL) & (symbols[1:] != WALL)).nonzero()[0]
    pairs = symbols[places] << 32 | symbols[places + 1]
    offer(most_frequent_first(pairs, places, times, min_count))
    while heap and len(merges) < n_merges:
        bound, pair = heapq.heappop(heap)
        places, born = waiting.pop(pair)
        offer(born)
        a, b, z = pair >> 32, pair & ID, 256 + len(merges)
        places = places[(symbols[places] == a) & (symbols[places + sizes[a]] == b)]
        count = int(times[places].sum())
        if count != -bound:
            offer(iter([(count, pair, places)] if count >= min_count else []))
            continue
        if max_token_length and sizes[a] + sizes[b] > max_token_length:
            continue  # for good: no later merge makes this pair shorter
        merges.append((a, b))
        sizes[z] = sizes[a] + sizes[b]
        offer(most_frequent_first(*join(symbols, sizes, places, a, b, z), times, min_count))
        if progress and len(merges) % 1000 == 0:
            progress(f"{len(merges):,} of {n_merges:,} merges; the last occurred {count:,} times")
    return merges


def most_frequent_first(pairs, places, times, min_count):
    """Group places by the pair that stands there; yield (count, pair, places of the pair)."""
    if len(pairs) == 0:
        return
    order = pairs.argsort()
    pairs, places = pairs[order], places[order]
    starts = np.concatenate(([0], (pairs[1:] != pairs[:-1]).nonzero()[0] + 1, [len(pairs)]))
    totals = np.add.reduceat(times[places], starts[:-1])
    for i in (-totals).argsort(kind="stable").tolist():  # of equal counts the smaller pair first
        if totals[i] < min_count:
            return
        start, stop = starts[i:i + 2].tolist()
        yield int(totals[i]), int(pairs[start]), places[start:stop]


def join(symbols, sizes, places, a, b, z):
    """Merge the pair (a, b) into z at its places; return the pairs born (n,) and their places."""
    if a == b:
        places = every_second(np.sort(places), sizes[a])
    after = places + sizes[z]
    symbols[places + sizes[a]] = WALL  # no symbol begins here any more
    symbols[places] = symbols[after - 1] = z
    left, right = symbols[places - 1], symbols[after]
    has_left = (left != WALL).nonzero()[0]
    has_right = ((right != WALL) & (right != z)).nonzero()[0]  # (z, z) is met as a left neighbour
    left, right = left[has_left], right[has_right]
    pairs = np.concatenate((left << 32 | z, z << 32 | right))
    return pairs, np.concatenate((places[has_left] - sizes[left], places[has_right]))


class FastTokenizer(Tokenizer):
    """The same tokenizer, sooner: same merges, ids and files; made for many texts at once."""

    learn_merges = staticmethod(learn_merges)

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self._table = PairTable(self.merges)
        self._sizes = np.array([*map(len, self.tokens.values()), 1])

    def split(self, text):
        """Cut a text into chunks (an iterator of str), by one pattern after another."""
        if not isinstance(text, str):
            return super().split(text)  # which says what is wrong
        chunks = [text] if text else []
        for pattern in self.patterns:
            chunks = itertools.chain.from_iterable(map(splitter(pattern), chunks))
        return chunks

    def encode(self, text, allowed_special=()):
        """Return the ids of a text: list of int."""
        if allowed_special or len(text or "") < SHORT:
            return super().encode(text, allowed_special)  # which remembers the chunks it has met
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        """Return the ids of each text: list of int32 arrays."""
        # The dictionary numbers the different chunks: a new one gets the next number.
        number_of = collections.defaultdict(itertools.count().__next__)
        end = number_of[""]  # no chunk is empty: this one stands behind the last of each text
        chunks = itertools.chain.from_iterable(
            itertools.chain(self.split(text), [""]) for text in several(texts))
        numbers = np.fromiter(map(number_of.__getitem__, chunks), np.int64)
        # Each is merged once; then every chunk of the texts takes the ids of its number.
        ids, sizes = merge_chunks([chunk.encode() for chunk in number_of], self._table, self._sizes)
        starts, sizes = (np.cumsum(sizes) - sizes)[numbers], sizes[numbers]
        ends = np.cumsum(sizes)
        places = np.repeat(starts + sizes - ends, sizes) + np.arange(sizes.sum())
        return np.split(ids.astype(np.int32)[places], ends[numbers == end])[:-1]
