r"""Cut text into tokens by byte-level BPE: train, encode, decode, and look at the cuts.

    tokenizer = Tokenizer.train(["the cat and the other cat", "猫和猫"], vocab_size=264)
    ids = tokenizer.encode("the cat")
    tokenizer.decode(ids)                        # "the cat"
    tokenizer.save("tokenizer.json")             # opens in `tokenizers` and transformers

A pattern cuts text into chunks; inside a chunk, neighbours are merged in the order in which
training found the merges. Nothing is ever merged across two chunks.

Papers: Gage 1994 (byte-pair encoding); Sennrich et al. 2016, arXiv 1508.07909, §3.2 (for words);
Radford et al. 2019, §2.2 (bytes, split pattern); DeepSeek LLM, arXiv 2401.02954, §2.1.

Ids: 0–255 are the bytes, then come the merges in order, then the special tokens.
Ties in training: the highest count, then the smaller left id, then the smaller right id.

Glossary
    chunk    a piece of text that the pattern cut out
    symbol   a token in the making; at first every byte is one
    pair     two neighbouring symbols, as one integer: left id << 32 | right id
    rank     the number of a merge; of all pairs in a chunk the lowest rank is merged first
    place    the index of a symbol's first byte in the array that holds all chunks
    wall     what stands between two chunks in that array, so that no pair spans them
"""

import codecs
import collections
import contextlib
import functools
import heapq
import itertools
import json
import multiprocessing
import operator
import os
import re
import sys
import threading
import unicodedata
import warnings

import numpy as np
import regex

END_OF_TEXT = "<|endoftext|>"

# Scripts that put no spaces between words: Chinese characters and Japanese kana.
_CJK = ("\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
        "\U00020000-\U0003fffd")
# DeepSeek LLM's cut: words, punctuation and CJK apart, digits one by one. It departs from it in
# running as one pattern, where DeepSeek's six run one after another; in two accidents: there `:-~`
# holds the letters a to z, and the range for CJK also Hindi, Thai and Korean; and, for fewer
# tokens, in two joints: one mark may lead a word, and line ends stay with marks and indentation.
DEFAULT_PATTERN = (r"[ \p{P}\p{S}]?[^\s\p{N}\p{P}\p{S}CJK]+| ?[\p{P}\p{S}]+[\r\n]*|[CJK]+|\p{N}"
                   r"|\s+(?!\S)|\s").replace("CJK", _CJK)
GPT2_PATTERN = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
                r"|\s+(?!\S)|\s+")

_LOW = (1 << 32) - 1
_NEVER = np.iinfo(np.int64).max
_LONG = 256         # bytes: a longer chunk is merged by itself, with a heap
_FEW = 16           # chunks: so are fewer than these
_LARGE = 1 << 24    # characters: a longer text is cut bit by bit, to save memory
_GROUP = 1 << 18    # chunks looked up together
_CACHE = 1 << 21    # characters of chunks whose ids are remembered
_MOST_IDS = 1 << 24  # no vocabulary is larger; a damaged file's would not fit in memory


def byte_alphabet():
    """Return the 256 characters that stand for the bytes in tokenizer.json (GPT-2's table).

    Printable bytes stand for themselves, the others for U+0100 and on: a space is Ġ.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return "".join(chr(byte if byte in printable else next(spare)) for byte in range(256))


# ---- from text to chunks -----------------------------------------------------------------

# What Oniguruma, the engine of `tokenizers`, reads otherwise than `regex` or `re`: some escapes
# (\w takes ² and ½ in), [[:punct:]] and the like, (?m), a + behind {1,3}, set operations.
_TRAPS = r"\\[AbBGhHkKNORwWXyYzZ1-9]|\[\[:\^?\w+:|\(\?[a-z]*m|\{[\d,]+\}\+|\[[^\]]*(?:--|\|\||~~)"


def _compile(pattern):
    """Compile a split pattern with the meaning that it has in `tokenizers`.

    Traps: there ^ and $ match at line ends; and an older Unicode classes some 18,000 characters
    otherwise, so that the two agree only on characters that both know.
    """
    trap = regex.search(_TRAPS, pattern)
    if trap:
        raise ValueError(f"the split pattern uses {trap[0]}, which tokenizers reads otherwise; "
                         "write it with other means, for instance \\p{L} and \\p{N}")
    try:
        return regex.compile(pattern, regex.V1 | regex.MULTILINE)
    except regex.error as error:
        raise ValueError(f"the split pattern {pattern!r} does not compile: {error}") from None


def _spell_out(pattern):
    r"""Return the pattern for Python's own `re`, the same up to U+FFFF.

    `re` is three times as fast as `regex` but knows no \p{L}: so each class is replaced by the
    ranges of characters that it matches according to `regex`.
    """
    characters = "".join(map(chr, range(1 << 16)))

    def spell(match):
        if match["escape"]:
            return match[0]
        found = _compile(match[0] + "+").finditer(characters)
        return "[" + "".join(f"\\u{m.start():04x}-\\u{m.end() - 1:04x}" for m in found) + "]"

    return regex.sub(r"(?<nested>\[(?:\\.|[^\[\]\\]|(?&nested))*\])|\\[pP]\{[^}]*\}|\\[sSdDwW]|\."
                     r"|\\(?<escape>.)", spell, pattern)


@functools.lru_cache(maxsize=64)
def _splitter(pattern):
    """Return a function text -> chunks: the matches of a pattern, and the gaps between them."""
    _compile(pattern)  # by itself, for a clear error
    with_gaps = r"(?:{0})|(?:(?!{0})(?s:.))+|(?s:.)".format
    exact = _compile(with_gaps(pattern))
    try:
        fast = re.compile(with_gaps(_spell_out(pattern)), re.MULTILINE)
    except (re.error, ValueError):  # it has something that `re` lacks
        fast = exact

    def split(text):
        # Without characters beyond U+FFFF, UTF-16 has two bytes for each.
        narrow = len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)
        compiled = fast if narrow else exact
        if compiled.groups or len(text) > _LARGE:
            return filter(None, (match[0] for match in compiled.finditer(text)))
        chunks = compiled.findall(text)
        return chunks if all(chunks) else [*filter(None, chunks)]

    return split


def _split_steps(spec):
    """Read a pre_tokenizer of tokenizer.json: functions text -> chunks, one after another."""
    kind = spec["type"]
    parts = spec["pretokenizers"] if kind == "Sequence" else []
    if kind == "Sequence" and all(part["type"] != "ByteLevel" for part in parts[:-1]):
        return [step for part in parts for step in _split_steps(part)]
    if kind == "Digits":
        return [_splitter(r"\p{N}" if spec["individual_digits"] else r"\p{N}+")]
    if kind == "ByteLevel":
        add_space = [lambda text: [text if text.startswith(" ") else " " + text]]
        return (add_space * spec["add_prefix_space"]
                + [_splitter(GPT2_PATTERN)] * spec.get("use_regex", True))
    if kind == "Split" and spec["behavior"] == "Isolated":
        how, pattern = [*spec["pattern"].items()][0]
        return [_splitter(pattern if how == "Regex" else regex.escape(pattern))]
    raise ValueError(f"the pre-tokenizer {kind} {spec.get('behavior', '')} is not supported, only "
                     "Split (Isolated) and Digits, one or several, with ByteLevel last")


def _in_turn(steps):
    """Chain steps, each cutting the chunks of the one before; after the first, chunks recur."""
    first, *later = steps or [lambda text: [text] if text else []]
    later = [functools.lru_cache(1 << 16)(lambda chunk, step=step: [*step(chunk)])
             for step in later]

    def split(text):
        chunks = first(text)
        for step in later:
            chunks = [piece for chunk in chunks for piece in step(chunk)]
        return chunks

    return split


def _normalizer(spec):
    """Read a normalizer of tokenizer.json as a function text -> text."""
    kind = spec["type"] if spec else "Sequence"
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return functools.partial(unicodedata.normalize, kind)
    if kind != "Sequence":
        raise ValueError(f"the normalizer {kind} is not supported, only NFC, NFD, NFKC and NFKD")
    steps = [_normalizer(part) for part in (spec["normalizers"] if spec else [])]
    return lambda text: functools.reduce(lambda text, step: step(text), steps, text)


def _to_bytes(chunks):
    try:
        return [chunk.encode() for chunk in chunks]
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds U+{ord(error.object[error.start]):X}, a lone surrogate, "
                         "which has no UTF-8; remove it, for instance with "
                         "text.encode('utf-8', 'replace').decode()") from None


def _lay_out(chunks):
    """Lay chunks (bytes) end to end: raw bytes (N,) uint8, and the places of the walls."""
    raw = np.frombuffer(b"\0" + b"\0".join(chunks) + b"\0", np.uint8)
    return raw, np.cumsum([0] + [len(chunk) + 1 for chunk in chunks])  # (chunks + 1,)


# ---- training ----------------------------------------------------------------------------

def count_chunks(texts, split, max_chunks, progress=None):
    """Count the chunks of an iterable of str: {chunk: times}.

    Memory is bounded by `max_chunks` distinct chunks: when there are more, the rarer half goes.
    """
    counts, characters = collections.Counter(), 0
    for text in texts:
        _check_text(text)
        counts.update(split(text))
        if len(counts) > max_chunks:
            ranked = sorted(counts.items(), key=operator.itemgetter(1), reverse=True)
            counts = collections.Counter(dict(ranked[:max_chunks // 2]))
        characters += len(text)
        if progress and characters >> 24 != characters - len(text) >> 24:
            progress(f"{characters:,} characters read, {len(counts):,} distinct chunks")
    return counts


# All chunks lie end to end in one array. The id of a symbol stands at its first and at its last
# byte, so both neighbours of a symbol are one look-up away, and a pair is merged at all its places
# by a handful of numpy calls. A pair's places are all found when the younger of its symbols is
# born; from then on it only loses some. So its count at birth is a bound, and when that bound is
# the highest of all, the pair is counted again: it is merged, or goes back with its true count.

def learn_merges(counts, n_merges, min_count=2, progress=None, max_token_length=None):
    """Learn up to `n_merges` merges from {chunk: times}: list of (left id, right id)."""
    raw, walls = _lay_out(_to_bytes(counts))
    wall = 256 + n_merges
    symbols = raw.astype(np.int32)
    symbols[walls] = wall
    times = np.fromiter(counts.values(), np.int64, len(counts))
    times = np.repeat(times, np.diff(walls))  # of the chunk around each place
    size = np.ones(wall + 1, np.int64)  # bytes of each symbol
    heap, merges = [], []

    def push_best(born):  # of the pairs born together, only the best waits in the heap
        for bound, pair, places in itertools.islice(born, 1):
            heapq.heappush(heap, (bound, pair, places, born))

    places = ((symbols[:-1] != wall) & (symbols[1:] != wall)).nonzero()[0]
    pairs = raw[places].astype(np.uint16) << 8 | raw[places + 1]  # in 16 bits: numpy sorts by radix
    push_best((bound, pair >> 8 << 32 | pair & 255, found)
              for bound, pair, found in _best_first(pairs, places, times, min_count))
    while heap and len(merges) < n_merges:
        bound, pair, places, born = heapq.heappop(heap)
        push_best(born)
        a, b, z = pair >> 32, pair & _LOW, 256 + len(merges)
        places = places[(symbols[places] == a) & (symbols[places + size[a]] == b)]
        count = int(times[places].sum())
        if count != -bound:
            push_best(iter([(-count, pair, places)] if count >= min_count else []))
            continue
        if max_token_length is not None and size[a] + size[b] > max_token_length:
            continue  # for good: no later merge makes this pair shorter
        merges.append((a, b))
        size[z] = size[a] + size[b]
        push_best(_best_first(*_join(symbols, size, places, a, b, z), times, min_count))
        if progress and len(merges) % 1000 == 0:
            progress(f"{len(merges):,} of {n_merges:,} merges; the last occurred {count:,} times")
    return merges


def _best_first(pairs, places, times, min_count):
    """Group places by pair; yield (-count, pair, places) from the highest count down."""
    if len(pairs) == 0:
        return
    order = pairs.argsort(kind="stable")  # stable, so that a pair's places stay in order
    pairs, places = pairs[order], places[order]
    starts = np.concatenate(([0], (pairs[1:] != pairs[:-1]).nonzero()[0] + 1, [len(pairs)]))
    totals = np.add.reduceat(times[places], starts[:-1])
    for i in (-totals).argsort(kind="stable").tolist():
        if totals[i] < min_count:
            return
        start, stop = starts[i:i + 2].tolist()
        yield -int(totals[i]), int(pairs[start]), places[start:stop]


def _join(symbols, size, places, a, b, z):
    """Merge the pair (a, b) into z at its places; return the pairs born (n,) and their places."""
    if a == b:  # "aaa" has the pair twice but room for one merge: take every second of a run
        number = np.arange(len(places))
        run_start = np.concatenate(([True], np.diff(places) != size[a]))
        odd = number - np.maximum.accumulate(np.where(run_start, number, 0)) & 1
        places = places[odd == 0]
    after = places + size[z]
    symbols[places + size[a]] = -1  # no symbol begins here any more
    symbols[places] = symbols[after - 1] = z
    left, right = symbols[places - 1].astype(np.int64), symbols[after].astype(np.int64)
    wall = len(size) - 1
    has_left = (left != wall).nonzero()[0]
    has_right = ((right != wall) & (right != z)).nonzero()[0]  # (z, z) is met as a left neighbour
    left, right = left[has_left], right[has_right]
    pairs = np.concatenate((left << 32 | z, z << 32 | right))
    return pairs, np.concatenate((places[has_left] - size[left], places[has_right]))


# ---- from chunks to ids ------------------------------------------------------------------

class _PairTable:
    """A hash table from pairs to their ranks that looks up a whole array at once."""

    def __init__(self, pairs):
        bits = (4 * len(pairs) + 4).bit_length()
        self._shift, self._last = np.uint64(64 - bits), (1 << bits) - 1
        self._ranks = np.full(1 << bits, -1)
        ranks, slot = np.arange(len(pairs)), self._slot(pairs)
        while len(ranks):  # open addressing: who finds the slot taken tries the next one
            free = self._ranks[slot] < 0
            self._ranks[slot[free]] = ranks[free]
            lost = self._ranks[slot] != ranks
            ranks, slot = ranks[lost], slot[lost] + 1 & self._last
        self._pairs = np.append(pairs, -1)[self._ranks]

    def _slot(self, pairs):  # Fibonacci hashing (Knuth, volume 3, §6.4)
        return (pairs.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self._shift).view(np.int64)

    def get(self, pairs):
        """Return the rank of each pair, or -1: int64 (n,) → int64 (n,)."""
        slot = self._slot(pairs)
        ranks = self._ranks[slot]
        todo = ((self._pairs[slot] != pairs) & (ranks >= 0)).nonzero()[0]
        while len(todo):
            at = slot[todo] = slot[todo] + 1 & self._last
            ranks[todo] = self._ranks[at]
            todo = todo[(self._pairs[at] != pairs[todo]) & (ranks[todo] >= 0)]
        return ranks


class _Merger:
    """Turns chunks into ids by merges, {(left id, right id): id} in the order of their ranks.

    Symbols lie as in training. Beside them lie keys: where a mergeable pair begins, its
    rank << 32 | place, so that the smallest key of a chunk is its next merge.
    `whole`, {chunk: id}, are the chunks that need no merging (`ignore_merges`).
    """

    def __init__(self, byte_ids, merges, size, whole):
        self._byte_ids, self._size, self._whole = byte_ids, size, whole
        self._wall = len(size) - 1
        self.pairs = np.array([a << 32 | b for a, b in merges], np.int64)
        self.results = np.array(list(merges.values()), np.int64)
        self._table = _PairTable(self.pairs)
        two_bytes = byte_ids[:, None] << 32 | byte_ids
        self._first_ranks = self._table.get(two_bytes.ravel())  # (65536,), at 256 left + right

    def __call__(self, chunks):
        """Merge chunks (bytes, none empty): all ids (n,), and how many each chunk has (chunks,)."""
        if len(chunks) < _FEW:
            merged = [self._merge_one(chunk) for chunk in chunks]
            return [*itertools.chain(*merged)], [*map(len, merged)]
        raw, walls = _lay_out(chunks)
        starts, stops = walls[:-1] + 1, walls[1:]
        symbols = self._byte_ids[raw]
        symbols[walls] = self._wall
        ranks = self._first_ranks[raw[:-1].astype(np.int64) << 8 | raw[1:]]
        ranks[walls[:-1]] = ranks[stops - 1] = -1
        keys = np.append(self._keys(ranks, np.arange(len(ranks))), _NEVER)
        begins = symbols != self._wall  # whether a symbol begins here
        alone = stops - starts > _LONG
        if self._whole:
            alone |= [chunk in self._whole for chunk in chunks]
        for i in alone.nonzero()[0].tolist():
            ids, start, stop = self._merge_one(chunks[i]), starts[i], stops[i]
            symbols[start:start + len(ids)] = ids
            begins[start + len(ids):stop] = False
            keys[start:stop] = _NEVER
        self._merge_in_rounds(symbols, keys, begins, np.column_stack((starts, stops))[~alone])
        return symbols[begins], np.add.reduceat(begins, starts, dtype=np.int64)

    def _keys(self, ranks, places):
        return np.where(ranks < 0, _NEVER, ranks << 32 | places)

    def _merge_in_rounds(self, symbols, keys, begins, spans):
        """Do the next merge of every chunk at once, until no chunk has one; spans: (n, 2)."""
        size = self._size
        while len(spans):
            best = np.minimum.reduceat(keys, spans.ravel()[:-1])[::2]  # (n,)
            unfinished = best != _NEVER
            spans, best = spans[unfinished], best[unfinished]
            places, z = best & _LOW, self.results[best >> 32]
            middle = places + size[symbols[places]]
            after = middle + size[symbols[middle]]
            symbols[places] = symbols[after - 1] = z
            begins[middle] = False
            keys[middle] = _NEVER
            before = places - size[symbols[places - 1]]
            keys[places] = self._keys(self._table.get(z << 32 | symbols[after]), places)
            keys[before] = self._keys(self._table.get(symbols[before] << 32 | z), before)

    @functools.cached_property
    def _merge_of(self):  # {pair: (rank << 32, id)}: for one pair faster than the table
        return {pair: (rank << 32, z) for rank, (pair, z)
                in enumerate(zip(self.pairs.tolist(), self.results.tolist()))}

    def _merge_one(self, chunk):
        """Merge one chunk in O(n log n), with a heap of keys, each checked when it comes up."""
        if chunk in self._whole:
            return [self._whole[chunk]]
        ids = self._byte_ids[np.frombuffer(chunk, np.uint8)].tolist() + [self._wall]
        end, merge_of = len(chunk), self._merge_of.get
        before, after = [*range(-1, end)], [*range(1, end + 1), end]
        heap = [merge[0] | i for i in range(end) if (merge := merge_of(ids[i] << 32 | ids[i + 1]))]
        heapq.heapify(heap)
        while heap:
            key = heapq.heappop(heap)
            i = key & _LOW
            middle = after[i]
            merge = merge_of(ids[i] << 32 | ids[middle])
            if not merge or merge[0] | i != key:  # one of the two has been merged since
                continue
            ids[i], ids[middle] = merge[1], -1
            after[i] = after[middle]
            before[after[i]] = i
            for i in (i, before[i]):  # before the first there is place -1: the wall again
                merge = merge_of(ids[i] << 32 | ids[after[i]])
                if merge:
                    heapq.heappush(heap, merge[0] | i)
        return [symbol for symbol in ids[:-1] if symbol >= 0]


# ---- the tokenizer -----------------------------------------------------------------------

def _check_text(text):
    if not isinstance(text, str):
        raise ValueError(f"the tokenizer wants text (str), not {type(text).__name__}")


def _check_texts(texts):
    if isinstance(texts, (str, bytes)) or not hasattr(texts, "__iter__"):
        raise ValueError(f"this wants several texts, not a {type(texts).__name__}: pass [text]")
    return texts


class Tokenizer:
    """A byte-level BPE tokenizer; `train` or `load` makes one.

    vocab_size: the highest id + 1; special_tokens: {text: id}; eot_id: the id of <|endoftext|>,
    or None.
    """

    def __init__(self, spec):
        """Build from the content of a tokenizer.json (dict); ValueError: what is not supported."""
        model, added = _check_spec(spec)
        spelled = _spelled(model["vocab"])
        self._spec = spec
        self._added = {token["content"]: token["id"] for token in added}
        self._raw = {token["content"] for token in added if not token.get("normalized")}
        self.special_tokens = {t["content"]: t["id"] for t in added if t.get("special")}
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self._bytes = spelled | dict(zip(self._added.values(), _to_bytes(self._added)))
        self.vocab_size = 1 + max(self._bytes)
        self._normalize = _normalizer(spec.get("normalizer"))
        self._split = _in_turn(_split_steps(spec["pre_tokenizer"]))
        self._merge = _merger(model, spelled)
        self._lock = threading.Lock()
        self._forget()

    def __reduce__(self):  # a process pool sends the file, not the tables made from it
        return type(self), (self._spec,)

    @classmethod
    def train(cls, texts, vocab_size, special_tokens=(END_OF_TEXT,), pattern=DEFAULT_PATTERN,
              min_count=2, max_chunks=1_000_000, progress=None, max_token_length=None):
        """Learn a tokenizer of `vocab_size` ids from an iterable of str, read once.

        `pattern`: a regular expression, or several that run one after another, each cutting the
        chunks of the one before; what none matches is a chunk as well. A pair seen fewer than
        `min_count` times is not merged: when there are no others, the vocabulary stays smaller,
        and a warning says so. `max_chunks`: see `count_chunks`. `progress` is called with a line
        of text now and then. `max_token_length`: of a token, in bytes (as in `tokenizers`): a
        small Chinese vocabulary else fills up with whole phrases, since nothing parts its words.
        ValueError: no text, a vocabulary below 256 + special tokens, a special token given twice,
        a max_token_length below 1.
        """
        patterns = [pattern] if isinstance(pattern, str) else list(pattern)
        specials = [special_tokens] if isinstance(special_tokens, str) else list(special_tokens)
        bare = cls(_new_spec(patterns, specials, []))  # bytes only; checks the arguments
        n_merges = vocab_size - bare.vocab_size
        if vocab_size > _MOST_IDS:
            raise ValueError(f"vocab_size {vocab_size} is too large: at most {_MOST_IDS:,}")
        if max_token_length is not None and max_token_length < 1:
            raise ValueError(f"max_token_length is {max_token_length}: it must be at least 1")
        if n_merges < 0:
            raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and "
                             f"{len(specials)} special tokens are {bare.vocab_size}")
        counts = count_chunks(_check_texts(texts), bare._split, max_chunks, progress)
        if not counts:
            raise ValueError("there is no text to train on: all of it is empty or held out")
        merges = learn_merges(counts, n_merges, min_count, progress, max_token_length)
        if len(merges) < n_merges:
            warnings.warn(f"the text has only {len(merges)} pairs worth merging: the vocabulary "
                          f"has {bare.vocab_size + len(merges)} ids, not {vocab_size}")
        return cls(_new_spec(patterns, specials, merges))

    @classmethod
    def load(cls, path):
        """Open a tokenizer.json, ours or another byte-level BPE; ValueError if it is neither."""
        try:
            with open(path, encoding="utf-8") as file:
                return cls(json.load(file))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{path} is a damaged tokenizer.json: {error!r}") from None
        except (ValueError, RecursionError) as error:  # json and UTF-8 raise them, too
            raise ValueError(f"{path} is no tokenizer.json that we can open: {error}") from None

    def save(self, path):
        """Write tokenizer.json: all of it, or nothing."""
        with _whole_file(path) as partial, open(partial, "w", encoding="utf-8") as file:
            json.dump(self._spec, file, ensure_ascii=False, indent=1)

    def encode(self, text, allowed_special=()):
        """Return the ids of a text: list of int. See `encode_batch`."""
        return self.encode_batch([text], allowed_special)[0].tolist()

    def encode_batch(self, texts, allowed_special=(), processes=1):
        """Return the ids of each text: list of int32 arrays.

        A special token's name in a text stays text, unless `allowed_special` ("all", or some
        names) allows it: what a reader types must not end a document. With `processes` > 1 the
        work is spread over spawned ones: a script then needs its `if __name__ == "__main__"`.
        ValueError: something that is not text, or has no UTF-8; an unknown special token.
        """
        texts = list(_check_texts(texts))
        if processes > 1 and len(texts) > 1:
            parts = [(texts[i::processes], allowed_special) for i in range(processes)]
            with multiprocessing.get_context("spawn").Pool(processes) as pool:
                done = pool.starmap(self.encode_batch, parts)
            return [done[i % processes][i // processes] for i in range(len(texts))]
        finders = self._finders(allowed_special)
        pieces = [[] for _ in texts]
        for group in _groups(self._chunks(text, finders) for text in texts):
            for (number, _), ids in zip(group, self._look_up([chunks for _, chunks in group])):
                pieces[number].append(ids)
        return [np.concatenate(parts) for parts in pieces]

    def _finders(self, allowed_special):
        """Return the patterns that find the added tokens in raw and in normalized text."""
        if isinstance(allowed_special, str):
            allowed_special = self.special_tokens if allowed_special == "all" else [allowed_special]
        for name in allowed_special:
            if name not in self.special_tokens:
                raise ValueError(f"{name!r} is no special token of this tokenizer")
        names = [n for n in self._added if n in allowed_special or n not in self.special_tokens]
        names.sort(key=len, reverse=True)  # where two begin, the longer one is meant
        parts = [[n for n in names if (n in self._raw) == is_raw] for is_raw in (True, False)]
        return [regex.compile(f"({'|'.join(map(regex.escape, part))})") if part else None
                for part in parts]

    def _chunks(self, text, finders):
        """Cut one text into chunks (str) and the ids of added tokens (int)."""
        _check_text(text)
        if not any(finders):
            return self._split(self._normalize(text))
        chunks = []
        for part, is_token in _find(finders[0], text):
            parts = [(part, True)] if is_token else _find(finders[1], self._normalize(part))
            for piece, is_token in parts:
                chunks += [self._added[piece]] if is_token else self._split(piece)
        return chunks

    def _forget(self):
        """Empty the cache: chunk number n has the ids `_ids[_starts[n]:_starts[n + 1]]`."""
        self._numbers = collections.defaultdict(itertools.count().__next__)
        added = list(self._added.values())  # keys of their own: numbers, where chunks are str
        self._known = len([self._numbers[i] for i in added])
        self._ids, self._starts = np.array(added, np.int32), np.arange(len(added) + 1)
        self._characters = 0

    def _look_up(self, chunk_lists):
        """Return the ids of each list of chunks: list of int32 arrays.

        Chunks are numbered as they are met; then those not met before are learned all at once.
        """
        bounds = [*itertools.accumulate(map(len, chunk_lists), initial=0)]
        chunks = itertools.chain.from_iterable(chunk_lists)
        with self._lock:
            if self._characters > _CACHE:
                self._forget()
            numbers = np.fromiter(map(self._numbers.__getitem__, chunks), np.int64, bounds[-1])
            n_new = len(self._numbers) - self._known
            if n_new:
                self._learn([*itertools.islice(reversed(self._numbers), n_new)][::-1])
            starts = self._starts[numbers]
            counts = self._starts[numbers + 1] - starts
            ends = np.concatenate(([0], np.cumsum(counts)))
            ids = self._ids[np.repeat(starts - ends[:-1], counts) + np.arange(ends[-1])]
        return [ids[i:j] for i, j in itertools.pairwise(ends[bounds].tolist())]

    def _learn(self, chunks):
        try:
            ids, lengths = self._merge(_to_bytes(chunks))
        except BaseException:  # also an interruption: no number may be left without its ids
            self._forget()
            raise
        used = self._starts[self._known]
        self._ids = _append(self._ids, used, ids)
        self._starts = _append(self._starts, self._known + 1, used + np.cumsum(lengths))
        self._known += len(chunks)
        self._characters += sum(map(len, chunks))

    def decode_bytes(self, ids):
        """Return the bytes of any ids (list, array or tensor); ValueError for an unknown id."""
        try:
            return b"".join(map(self._bytes.__getitem__, getattr(ids, "tolist", lambda: ids)()))
        except (KeyError, TypeError) as error:
            raise ValueError("ids must be a list of whole numbers "
                             f"from 0 to {self.vocab_size - 1}: {error}") from None

    def decode(self, ids):
        """Return the text of ids; what is no UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_stream(self, ids):
        """Yield the text of ids as they come from any iterator, never half a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        yield from filter(None, (decoder.decode(self.decode_bytes([i])) for i in ids))
        yield from filter(None, [decoder.decode(b"", final=True)])


def _append(array, used, values):
    """Write values behind the used part of an array, which doubles when it is full."""
    need = used + len(values)
    if need > len(array):
        array = np.concatenate((array, np.empty(need, array.dtype)))
    array[used:need] = values
    return array


def _find(finder, text):
    """Return the pieces of a text in order, each with whether it is an added token."""
    parts = finder.split(text) if finder else [text]
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


def _groups(chunk_lists):
    """Gather [(number of the text, some of its chunks)] until there are `_GROUP` chunks or more."""
    group, size = [], 0
    for number, chunks in enumerate(chunk_lists):
        parts = [chunks] if isinstance(chunks, list) else iter(
            lambda chunks=chunks: [*itertools.islice(chunks, _GROUP)], [])
        for part in parts:
            group.append((number, part))
            size += len(part)
            if size >= _GROUP:
                yield group
                group, size = [], 0
    yield group


# ---- tokenizer.json ----------------------------------------------------------------------

@contextlib.contextmanager
def _whole_file(path):
    """Yield a temporary name beside a path, and move what was written there to the path."""
    partial = f"{path}.{os.getpid()}.partial"
    try:
        yield partial
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)


def _new_spec(patterns, special_tokens, merges):
    """Return the content of tokenizer.json for merges given as pairs of ids."""
    names, lines = list(byte_alphabet()), []
    for a, b in merges:
        lines.append(f"{names[a]} {names[b]}")
        names.append(names[a] + names[b])
    for name in set(names).intersection(special_tokens):
        raise ValueError(f"the special token {name!r} is also an ordinary token")
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [{"id": len(names) + i, "content": name, **flags, "special": True}
             for i, name in enumerate(special_tokens)]
    splits = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
               "invert": False} for pattern in patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
             "ignore_merges": False, "vocab": {name: i for i, name in enumerate(names)},
             "merges": lines}
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*splits, byte_level]},
            "post_processor": None, "decoder": byte_level, "model": model}


def _check_spec(spec):
    """Return the model and the added tokens of a tokenizer.json; ValueError: not supported.

    A post-processor, which adds tokens at the ends of a text, stays in the file but is not run.
    """
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise ValueError("it has no model")
    model, added = spec["model"], spec.get("added_tokens") or []
    if model.get("type", "BPE") != "BPE":
        raise ValueError(f"its model is {model['type']} and not BPE")
    if '"ByteLevel"' not in json.dumps(spec["pre_tokenizer"]):
        raise ValueError("its pre-tokenizer has no ByteLevel")
    odd = [name for name in ("truncation", "padding") if spec.get(name)]
    odd += [name for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix",
                              "byte_fallback") if model.get(name)]
    odd += [f"{name} of the added token {token['content']!r}" for token in added
            for name in ("single_word", "lstrip", "rstrip") if token.get(name)]
    if odd:
        raise ValueError(f"it sets {odd[0]}, which is not supported")
    for name, times in collections.Counter(token["content"] for token in added).items():
        if times > 1 or not name or not isinstance(name, str):
            raise ValueError(f"a special token is a text, given once; {name!r} is not")
    _check_ids([token["id"] for token in added])
    return model, added


def _check_ids(numbers):
    for i in numbers:
        if type(i) is not int or not 0 <= i < _MOST_IDS:
            raise ValueError(f"the id {str(i)[:20]} is no whole number from 0 to {_MOST_IDS:,}")


def _spelled(vocab):
    """Return {id: bytes} for a vocabulary written in the byte alphabet."""
    to_byte = {character: byte for byte, character in enumerate(byte_alphabet())}
    missing = to_byte.keys() - vocab.keys()
    if missing:
        raise ValueError(f"its vocabulary lacks {len(missing)} of the 256 bytes; train it with "
                         "initial_alphabet=pre_tokenizers.ByteLevel.alphabet()")
    numbers = [*vocab.values()]
    if len(set(numbers)) < len(numbers):
        raise ValueError("its vocabulary gives two tokens the same id")
    _check_ids(numbers)
    table = {}
    for name, i in vocab.items():
        spelled = [to_byte.get(character) for character in name]
        table[i] = name.encode() if None in spelled else bytes(spelled)
    return table


def _merger(model, spelled):
    """Build the `_Merger` of a model; spelled: {id: bytes}."""
    vocab, merges = model["vocab"], {}
    for merge in model["merges"]:
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        if not {a, b, a + b} <= vocab.keys():
            raise ValueError(f"its merge {merge!r} needs a token that the vocabulary lacks")
        merges.pop((vocab[a], vocab[b]), None)  # given twice: the later rank counts
        merges[vocab[a], vocab[b]] = vocab[a + b]
    byte_ids = np.array([vocab[character] for character in byte_alphabet()], np.int64)
    size = np.ones(max(spelled) + 2, np.int64)
    size[list(spelled)] = [*map(len, spelled.values())]
    whole = {raw: i for i, raw in spelled.items()} if model.get("ignore_merges") else {}
    return _Merger(byte_ids, merges, size, whole)


# ---- looking at it -----------------------------------------------------------------------

def readable(raw):
    """Return a token's bytes as text: spaces and line ends visible, half characters in hex."""
    return raw.decode("utf-8", "backslashreplace").translate({32: "␣", 10: "⏎", 13: "␍", 9: "⇥"})


def show(tokenizer, text, colour=True):
    """Return a text with its cuts: tokens in turning colours, or with bars between them."""
    pieces = [readable(tokenizer.decode_bytes([i])) for i in tokenizer.encode(text)]
    if not colour:
        return "|".join(pieces)
    return "".join(f"\033[30;4{2 + i % 5}m{piece}\033[0m" for i, piece in enumerate(pieces))


def compare(tokenizers, text, hidden_size=128, num_hidden_layers=2):
    """Compare {name: tokenizer} on one text: list of dicts with what its tokens cost.

    flops: to train a dense model of this shape on the text once, 6 for each token and weight
    (Kaplan et al. 2020, arXiv 2001.08361, §2.1), with 12 d² weights a layer and V d in the head.
    Raises ValueError for a shape below 1.
    """
    if hidden_size < 1 or num_hidden_layers < 1:
        raise ValueError(f"hidden_size {hidden_size} and num_hidden_layers {num_hidden_layers} "
                         "must be at least 1")
    rows = []
    for name, tokenizer in tokenizers.items():
        tokens, head = len(tokenizer.encode(text)), tokenizer.vocab_size * hidden_size
        weights = 12 * num_hidden_layers * hidden_size ** 2 + head
        rows.append({"name": name, "vocab_size": tokenizer.vocab_size, "tokens": tokens,
                     "bytes_per_token": len(text.encode()) / max(tokens, 1),
                     "tokens_per_character": tokens / max(len(text), 1),
                     "head_share": head / weights, "flops": 6 * weights * tokens})
    return rows


def _language(text):
    return "CJK" if len(regex.findall(f"[{_CJK}]", text)) > len(text) / 4 else "other"


def describe(tokenizer, documents=(), count=20):
    """Yield the lines of a report on the vocabulary and, given documents, on its use."""
    merge = tokenizer._merge
    names = {i: readable(raw) for i, raw in tokenizer._bytes.items()}
    yield (f"{tokenizer.vocab_size:,} ids: 256 bytes, {len(merge.pairs):,} merges, added tokens "
           f"{', '.join(tokenizer._added) or 'none'}")
    for pair, z in zip(merge.pairs[:count].tolist(), merge.results.tolist()):
        yield f"{z:8}  {names[pair >> 32]} + {names[pair & _LOW]} → {names[z]}"
    merged = sorted(set(merge.results.tolist()))
    whole = [names[i] for i in merged if "\\x" not in names[i]]  # no half characters
    for language in ("CJK", "other"):
        words = sorted((w for w in whole if _language(w) == language), key=len, reverse=True)
        yield f"{len(words):,} merged tokens ({language}), the longest: {'  '.join(words[:count])}"
    used = np.zeros(tokenizer.vocab_size, np.int64)
    sums = collections.defaultdict(lambda: np.zeros(3, np.int64))
    for document in documents:
        text, ids = document["text"], tokenizer.encode_batch([document["text"]])[0]
        used += np.bincount(ids, minlength=len(used))
        sums[document["source"], _language(text)] += len(text.encode()), len(text), len(ids)
    for (source, language), (size, characters, tokens) in sorted(sums.items()):
        yield (f"{source} ({language}): {size:,} bytes, {size / max(tokens, 1):.2f} bytes and "
               f"{characters / max(tokens, 1):.2f} characters per token")
    if sums:
        unused = [names[i] for i in merged if not used[i]]
        yield f"{len(unused):,} merged tokens never occur: {'  '.join(unused[:count])}"


# ---- the command line --------------------------------------------------------------------

def _say(*line):
    print(*line, file=sys.stderr)


def _train_command(args, read, documents_path, tokenizer_path):
    from nanoseek.cli import check_output
    check_output(tokenizer_path, documents_path)
    if not tokenizer_path.endswith(".json"):  # documents .jsonl: were the two swapped?
        raise ValueError(f"{tokenizer_path}: give the tokenizer to write a name in .json")
    texts = (d["text"] for d in read(documents_path) if d.get("split") != "held_out")
    warnings.showwarning = lambda message, *_, **__: _say(message)
    tokenizer = Tokenizer.train(texts, args.vocab_size, min_count=args.min_count,
                                pattern=args.pattern or DEFAULT_PATTERN, progress=_say,
                                max_token_length=args.max_token_length)
    tokenizer.save(tokenizer_path)
    print(f"{tokenizer_path}: {tokenizer.vocab_size:,} ids")


def _encode_command(args, read, tokenizer_path, documents_path, ids_path):
    from nanoseek.cli import check_output
    check_output(ids_path, tokenizer_path, documents_path)
    tokenizer = Tokenizer.load(tokenizer_path)
    end = np.array([] if tokenizer.eot_id is None else [tokenizer.eot_id], np.int32)
    rows = tokenizer.encode_batch(d["text"] for d in read(documents_path))
    ids = np.concatenate([end[:0]] + [part for row in rows for part in (row, end)])
    with _whole_file(ids_path) as partial, open(partial, "wb") as file:
        np.save(file, ids)
    print(f"{ids_path}: {len(ids):,} ids")


def _inspect_command(args, read, tokenizer_path, documents_path=None):
    tokenizer = Tokenizer.load(tokenizer_path)
    for text in args.text or ("The kettle sang 2 songs, didn't it?", "窗外下着小雨，她煮了一壶茶。"):
        print(show(tokenizer, text, colour=sys.stdout.isatty()))
    for line in describe(tokenizer, read(documents_path) if documents_path else ()):
        print(line)


def _compare_command(args, read, documents_path, *tokenizer_paths):
    text = "\n".join(d["text"] for d in read(documents_path))
    print("     ids      tokens  bytes/token  tokens/character  head's share  training FLOPs")
    tokenizers = {path: Tokenizer.load(path) for path in tokenizer_paths}
    for row in compare(tokenizers, text, args.hidden_size, args.num_hidden_layers):
        print("{vocab_size:8,}{tokens:12,}{bytes_per_token:13.3f}{tokens_per_character:18.3f}"
              "{head_share:14.0%}{flops:16.3g}  {name}".format(**row))


def main(argv=None):
    from nanoseek.cli import Parser
    from nanoseek.corpus import read_documents, read_text
    commands = {"train": (_train_command, 2, 2), "encode": (_encode_command, 3, 3),
                "inspect": (_inspect_command, 1, 2), "compare": (_compare_command, 2, 99)}
    parser = Parser("nanoseek.tokenizer", """Train and look at byte-level BPE tokenizers.

  train DOCUMENTS TOKENIZER       learn TOKENIZER (tokenizer.json)
  encode TOKENIZER DOCUMENTS IDS  write all ids, each document ended, to IDS (.npy, int32)
  inspect TOKENIZER [DOCUMENTS]   show cuts, merges, long and unused tokens
  compare DOCUMENTS TOKENIZER …   bytes per token, and what the tokens cost in training

DOCUMENTS: a .jsonl of {"text", "source", "split"}, a text, or a folder of both.""")
    parser.add_argument("command", choices=commands)
    parser.add_argument("paths", nargs="+", metavar="PATH")
    parser.add_argument("--vocab_size", type=int, default=2048, help="train (default 2048)")
    parser.add_argument("--min_count", type=int, default=2, help="train (default 2)")
    parser.add_argument("--max_token_length", type=int, help="train: of a token, in bytes")
    parser.add_argument("--pattern", nargs="+", help="train: how to cut text into chunks")
    parser.add_argument("--text", nargs="+", help="inspect: sentences to cut")
    parser.add_argument("--hidden_size", type=int, default=128, help="compare (default 128)")
    parser.add_argument("--num_hidden_layers", type=int, default=2, help="compare (default 2)")
    args = parser.parse_args(argv)
    command, least, most = commands[args.command]
    if not least <= len(args.paths) <= most:
        parser.error(f"{args.command} does not take {len(args.paths)} path(s)")
    command(args, lambda path: (read_documents if path.endswith(".jsonl") else read_text)(path),
            *args.paths)


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
