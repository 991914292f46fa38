r"""Cut text into tokens by byte-level BPE: train, encode, decode, look at it.

    tokenizer = Tokenizer.train(["the cat sat on the mat", "他看见一只猫"], vocab_size=300)
    ids = tokenizer.encode("the cat")            # [116, 257, 258, …]
    tokenizer.decode(ids)                        # "the cat"
    tokenizer.save("tokenizer.json")             # opens in `tokenizers` and transformers

Text is cut into chunks by a pattern; inside a chunk, adjacent symbols are merged in the order in
which training found them useful. Nothing is ever merged across two chunks.

Papers: Gage 1994 (byte-pair encoding); Sennrich et al. 2016, arXiv 1508.07909 (BPE for words);
Radford et al. 2019, §2.2 (bytes, and the split pattern); DeepSeek LLM, arXiv 2401.02954, §2.1.

Glossary
    chunk    a piece of text that the pattern cut out; BPE works inside it
    symbol   a token on the way: at first every byte is one
    pair     two adjacent symbols; a merge turns a pair into one symbol
    rank     the number of a merge: of all pairs in a chunk, the lowest rank is merged first
    wall     the mark between two chunks that lie end to end in one array

Ids: 0–255 are the bytes, then the merges in the order found, then the special tokens.
Ties in training: the highest count wins, then the smaller left id, then the smaller right id.
"""

import codecs
import collections
import functools
import heapq
import itertools
import json
import multiprocessing
import os
import re
import unicodedata
import warnings

import numpy as np
import regex

END_OF_TEXT = "<|endoftext|>"

# Chinese and Japanese are written without spaces, so they are cut apart from words.
_CJK = "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff" \
       "\U00020000-\U0003fffd"
DEFAULT_PATTERN = (r"[\r\n]| ?[^\s\p{N}\p{P}\p{S}CJK]+| ?[\p{P}\p{S}]+|[CJK]+|\p{N}"
                   r"|[^\S\r\n]+(?!\S)|[^\S\r\n]").replace("CJK", _CJK)
GPT2_PATTERN = (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+"
                r"|\s+(?!\S)|\s+")
_SHIFT = 32                # a pair (a, b) as one integer: a << 32 | b
_MASK = (1 << _SHIFT) - 1
_FLAGS = regex.V1 | regex.MULTILINE  # in Oniguruma ^ and $ match at line ends
_NEVER = np.iinfo(np.int64).max
_LONG = 256                # bytes; a longer chunk is merged on its own, with a heap
_GROUP = 1 << 18           # chunks looked up together
_CACHE = 1 << 21           # characters of chunks remembered


def byte_alphabet():
    """Return the 256 printable characters that stand for the bytes in tokenizer.json.

    Printable bytes stand for themselves, the others for U+0100 and on (GPT-2's table).
    """
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = itertools.count(256)
    return "".join(chr(b if b in visible else next(spare)) for b in range(256))


# ---- cutting text into chunks ------------------------------------------------------------

def _compile(pattern):
    """Compile a split pattern with the meaning it has in `tokenizers` (Oniguruma)."""
    trap = regex.search(r"\\[hHZzGKRXyYOA1-9]|\(\?[a-z]*m", pattern)
    if trap:
        raise ValueError(f"the split pattern uses {trap[0]}, which means something else in "
                         "Oniguruma, the engine of tokenizers; write it another way")
    try:
        return regex.compile(pattern, _FLAGS)
    except regex.error as error:
        raise ValueError(f"the split pattern {pattern!r} does not compile: {error}") from None


def _compile_fast(pattern):
    """Return the same pattern for Python's own `re`, or None; right up to U+FFFF only.

    `re` is three times as fast as `regex` but knows no \\p{L}; so every class is spelled out: the
    ranges of the characters that it matches, as `regex` knows them.
    """
    characters = "".join(map(chr, range(1 << 16)))

    def spell(match):
        found = regex.compile(match[0] + "+", _FLAGS).finditer(characters)
        return "[" + "".join(f"\\u{m.start():04x}-\\u{m.end() - 1:04x}" for m in found) + "]"

    one_class = r"\[(?:\\.|[^\[\]\\])*\]|\\[pP]\{[^}]*\}|\\[sSdDwW]|(?<!\\)\."
    try:
        return re.compile(regex.sub(one_class, spell, pattern), re.MULTILINE)
    except re.error:  # a construction that `re` lacks
        return None


@functools.lru_cache(maxsize=64)
def _splitter(pattern, keep_gaps=True):
    """Return a function text -> list of chunks: the matches, and the text between them."""
    _compile(pattern)  # alone, for a clear error
    if keep_gaps:
        pattern = rf"(?:{pattern})|(?:(?!{pattern})[\s\S])+"
    exact, fast = _compile(pattern), _compile_fast(pattern)

    def split(text):
        # Two bytes a character in UTF-16: nothing beyond U+FFFF.
        short = fast and len(text.encode("utf-16-le", "surrogatepass")) == 2 * len(text)
        compiled = fast if short else exact
        if compiled.groups:
            return [match[0] for match in compiled.finditer(text) if match[0]]
        chunks = compiled.findall(text)
        return chunks if all(chunks) else list(filter(None, chunks))

    return split


def _split_steps(spec):
    """Read a pre_tokenizer of tokenizer.json as a list of functions text -> chunks."""
    kind = (spec or {}).get("type")
    if kind == "Sequence":
        return [step for part in spec["pretokenizers"] for step in _split_steps(part)]
    if kind == "Digits":
        return [_splitter(r"\p{N}" if spec["individual_digits"] else r"\p{N}+")]
    if kind == "ByteLevel":
        prefix = [lambda text: [text if text.startswith(" ") else " " + text]]
        return (prefix * spec.get("add_prefix_space", True)
                + [_splitter(GPT2_PATTERN)] * spec.get("use_regex", True))
    if kind == "Split" and spec["behavior"] in ("Isolated", "Removed"):
        pattern = spec["pattern"].get("Regex") or regex.escape(spec["pattern"]["String"])
        if spec["behavior"] == "Isolated" or spec.get("invert"):
            return [_splitter(pattern, spec["behavior"] == "Isolated")]
    raise ValueError(f"the tokenizer file has a pre-tokenizer {kind} "
                     f"{(spec or {}).get('behavior', '')}, which is not supported: only Split "
                     "(Isolated, or Removed with invert), Digits and ByteLevel are")


def _normalizer(spec):
    """Read a normalizer of tokenizer.json as a function text -> text."""
    kind = spec["type"] if spec else "Sequence"
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: unicodedata.normalize(kind, text)
    if kind != "Sequence":
        raise ValueError(f"the tokenizer file has a normalizer {kind}, which is not supported")
    steps = [_normalizer(part) for part in (spec["normalizers"] if spec else [])]

    def normalize(text):
        for step in steps:
            text = step(text)
        return text
    return normalize


# ---- training ----------------------------------------------------------------------------

def count_chunks(texts, split, max_chunks=4_000_000):
    """Count the chunks of an iterable of str: Counter {chunk: times}.

    Memory is bounded by `max_chunks` distinct chunks: when there are more, those seen least
    are forgotten, so that at most half are left.
    """
    counts = collections.Counter()
    for text in texts:
        _check_text(text)
        counts.update(split(text))
        floor = 1
        while len(counts) > max_chunks:
            kept = {c: n for c, n in counts.items() if n > floor}
            if len(kept) <= max_chunks // 2 or floor > 1 << 20:
                counts = collections.Counter(kept)
            floor *= 2
    return counts


def learn_merges(counts, n_merges, min_count=2, progress=None):
    """Learn at most `n_merges` merges from {chunk: times}: a list of pairs (left id, right id).

    All chunks lie end to end in one array, with walls between them. A symbol's id stands at its
    first and at its last byte, so that from a position both neighbours are one look-up away, and
    merging all the places of a pair is a handful of numpy calls.

    A pair's places are collected when it is born, which is when the younger of its two symbols
    is; later merges can only take places away. So its count then is an upper bound: the heap
    holds bounds, and the best pair is counted again when it comes up (lazy evaluation).
    """
    symbols, weight, wall = _lay_out(counts, n_merges)
    size = np.ones(wall + 1, np.int64)  # bytes per symbol
    heap, merges = [], []

    def push_best_of(born):  # a stream of pairs, best first: only its best is in the heap
        best = next(born, None)
        if best:
            heapq.heappush(heap, (*best, born))

    places = np.flatnonzero((symbols[:-1] != wall) & (symbols[1:] != wall))
    pairs = _pair(symbols[places], symbols[places + 1])
    push_best_of(_by_count(pairs, places, weight, min_count))
    while heap and len(merges) < n_merges:
        bound, pair, places, rest = heapq.heappop(heap)
        if rest:
            push_best_of(rest)
        a, b = pair >> _SHIFT, pair & _MASK
        places = places[(symbols[places] == a) & (symbols[places + size[a]] == b)]
        count = int(weight[places].sum())
        if count != -bound:
            if count >= min_count:
                heapq.heappush(heap, (-count, pair, places, None))
            continue
        z = 256 + len(merges)
        merges.append((a, b))
        size[z] = size[a] + size[b]
        pairs, places = _join(symbols, size, wall, places, a, b, z)
        push_best_of(_by_count(pairs, places, weight, min_count))
        if progress and len(merges) % 1000 == 0:
            progress(f"{len(merges)} of {n_merges} merges, the last one occurred {count} times")
    return merges


def _pair(left, right):
    return left.astype(np.int64) << _SHIFT | right


def _lay_out(counts, n_merges):
    """Lay chunks end to end: symbols (N,) int32, weight (N,) int64, and the id of the wall."""
    chunks = _to_bytes(counts)
    lengths = np.fromiter(map(len, chunks), np.int64, len(chunks)) + 1
    wall = 256 + n_merges
    symbols = np.frombuffer(b"\0" + b"\0".join(chunks) + b"\0", np.uint8).astype(np.int32)
    symbols[0] = symbols[np.cumsum(lengths)] = wall
    times = np.fromiter(counts.values(), np.int64, len(chunks))
    return symbols, np.concatenate(([0], np.repeat(times, lengths))), wall


def _by_count(pairs, places, weight, min_count):
    """Group places by pair; yield (-count, pair, places), the best pair first."""
    if not len(pairs):
        return
    order = np.argsort(pairs, kind="stable")  # stable: each group stays in text order
    pairs, places = pairs[order], places[order]
    starts = np.flatnonzero(np.concatenate(([True], pairs[1:] != pairs[:-1])))
    stops = np.append(starts[1:], len(pairs))
    totals = np.add.reduceat(weight[places], starts)
    for i in np.argsort(-totals, kind="stable").tolist():
        if totals[i] < min_count:
            return
        yield -int(totals[i]), int(pairs[starts[i]]), places[starts[i]:stops[i]]


def _join(symbols, size, wall, places, a, b, z):
    """Merge the pair (a, b) into z at all its places; return the pairs born, and where."""
    if a == b:  # "aaa" holds two pairs but only one merge: keep every second of a run
        at = np.arange(len(places))
        first = np.concatenate(([True], np.diff(places) != size[a]))
        places = places[(at - np.maximum.accumulate(np.where(first, at, 0))) % 2 == 0]
    after = places + size[z]
    symbols[places + size[a]] = -1
    symbols[places] = symbols[after - 1] = z
    left, right = symbols[places - 1], symbols[after]
    has_left = left != wall
    has_right = (right != wall) & (right != z)  # (z, z) is already counted from its right z
    left = left[has_left]
    pairs = np.concatenate((_pair(left, z), z << _SHIFT | right[has_right].astype(np.int64)))
    return pairs, np.concatenate((places[has_left] - size[left], places[has_right]))


# ---- merging -----------------------------------------------------------------------------

class _PairTable:
    """A hash table from pairs to their ranks that looks up a whole array at once."""

    def __init__(self, pairs):
        bits = (4 * len(pairs) + 4).bit_length()
        self._shift, self._last = np.uint64(64 - bits), (1 << bits) - 1
        self._ranks = np.full(1 << bits, -1)
        ranks, slot = np.arange(len(pairs)), self._slot(pairs)
        while len(ranks):  # open addressing: who finds his slot taken tries the next one
            free = self._ranks[slot] < 0
            self._ranks[slot[free]] = ranks[free]
            lost = self._ranks[slot] != ranks
            ranks, slot = ranks[lost], slot[lost] + 1 & self._last
        self._pairs = np.append(pairs, -1)[self._ranks]

    def _slot(self, pairs):  # Fibonacci hashing (Knuth, volume 3, §6.4)
        return (pairs.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self._shift).view(np.int64)

    def get(self, pairs):
        """Return the rank of each pair, -1 where there is none: int64 (n,) → int64 (n,)."""
        slot = self._slot(pairs)
        ranks = self._ranks[slot]
        todo = np.flatnonzero((self._pairs[slot] != pairs) & (ranks >= 0))
        while len(todo):
            at = slot[todo] = slot[todo] + 1 & self._last
            ranks[todo] = self._ranks[at]
            todo = todo[(self._pairs[at] != pairs[todo]) & (ranks[todo] >= 0)]
        return ranks


class _Merger:
    """Turns chunks into ids by merges, {(left id, right id): id} in the order of their ranks.

    Symbols lie as in training: end to end, walls between the chunks, the id of a symbol at its
    first and last byte. Beside them lie keys: where a pair begins, its rank << 32 | place.
    """

    def __init__(self, byte_ids, merges, size):
        self._byte_ids, self._size, self._wall = byte_ids, size, len(size) - 1
        self._pairs = np.fromiter((a << _SHIFT | b for a, b in merges), np.int64, len(merges))
        self._results = np.fromiter(merges.values(), np.int64, len(merges))
        self._ranks = _PairTable(self._pairs)
        two_bytes = byte_ids[:, None] << _SHIFT | byte_ids
        self._first_ranks = self._ranks.get(two_bytes.ravel())  # (65536,) by 256 * left + right

    def __call__(self, chunks):
        """Merge each chunk (bytes, none empty): list of bytes, the ids as packed int32."""
        short = [chunk for chunk in chunks if len(chunk) <= _LONG]
        merged = iter(self._merge_short(short) if short else ())
        return [next(merged) if len(chunk) <= _LONG else self._merge_long(chunk)
                for chunk in chunks]

    def _keys(self, ranks, places):
        return np.where(ranks < 0, _NEVER, ranks << _SHIFT | places)

    def _pair_keys(self, left, right, places):
        return self._keys(self._ranks.get(left << _SHIFT | right), places)

    def _merge_short(self, chunks):
        """Merge all chunks in rounds: each round does the next merge of every chunk."""
        raw = np.frombuffer(b"\0" + b"\0".join(chunks) + b"\0", np.uint8)
        walls = np.cumsum([0] + [len(chunk) + 1 for chunk in chunks])
        starts = walls[:-1] + 1
        symbols = self._byte_ids[raw]
        symbols[walls] = self._wall
        ranks = self._first_ranks[raw[:-1].astype(np.int64) << 8 | raw[1:]]
        ranks[walls[:-1]] = ranks[walls[1:] - 1] = -1
        keys = np.append(self._keys(ranks, np.arange(len(ranks))), _NEVER)
        alive = symbols != self._wall  # whether a symbol begins here
        self._do_rounds(symbols, keys, alive, np.column_stack((starts, walls[1:])))
        ids = symbols[alive].astype(np.int32).tobytes()
        ends = 4 * np.cumsum(np.add.reduceat(alive, starts, dtype=np.int64))
        return [ids[i:j] for i, j in itertools.pairwise([0, *ends.tolist()])]

    def _do_rounds(self, symbols, keys, alive, spans):
        size = self._size
        while len(spans):
            best = np.minimum.reduceat(keys, spans.ravel()[:-1])[::2]  # (chunks still merging,)
            going = best != _NEVER
            spans, best = spans[going], best[going]
            places, z = best & _MASK, self._results[best >> _SHIFT]
            middle = places + size[symbols[places]]
            after = middle + size[symbols[middle]]
            symbols[places] = symbols[after - 1] = z
            alive[middle] = False
            before = places - size[symbols[places - 1]]
            keys[middle] = _NEVER
            keys[places] = self._pair_keys(z, symbols[after], places)
            keys[before] = self._pair_keys(symbols[before], z, before)

    @functools.cached_property
    def _merge_of(self):
        """The merges again, as {pair: (rank, id)}, for look-ups one by one."""
        return dict(zip(self._pairs.tolist(), enumerate(self._results.tolist())))

    def _merge_long(self, chunk):
        """Merge one chunk in O(n log n): a heap of keys, each checked when it comes up."""
        symbols = self._byte_ids[np.frombuffer(chunk, np.uint8)]
        end = len(symbols)
        keys = self._pair_keys(symbols[:-1], symbols[1:], np.arange(end - 1))
        heap = np.sort(keys[keys != _NEVER]).tolist()
        symbols = symbols.tolist() + [self._wall]
        after, before = list(range(1, end + 2)), list(range(-1, end))
        merge_of = self._merge_of

        def merge_at(i):
            return merge_of.get(symbols[i] << _SHIFT | symbols[after[i]], (-1, -1))

        while heap:
            rank, i = divmod(heapq.heappop(heap), 1 << _SHIFT)
            found, z = merge_at(i) if symbols[i] >= 0 else (-1, -1)
            if found != rank:
                continue
            symbols[after[i]], symbols[i] = -1, z
            after[i] = after[after[i]]
            before[after[i]] = i
            for j in (before[i], i):
                if j >= 0 and merge_at(j)[0] >= 0:
                    heapq.heappush(heap, merge_at(j)[0] << _SHIFT | j)
        return np.array([s for s in symbols[:-1] if s >= 0], np.int32).tobytes()


# ---- the tokenizer -----------------------------------------------------------------------

def _check_text(text):
    if not isinstance(text, str):
        raise ValueError(f"the tokenizer wants text (str), not {type(text).__name__}")


def _to_bytes(chunks):
    try:
        return [chunk.encode() for chunk in chunks]
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds a lone surrogate, U+{ord(error.object[error.start]):X}, "
                         "which has no UTF-8 form: remove it first, for instance with "
                         "text.encode('utf-8', 'replace').decode()") from None


class Tokenizer:
    """A byte-level BPE tokenizer, held as the content of its tokenizer.json."""

    def __init__(self, spec):
        """Build from a parsed tokenizer.json (dict); ValueError names what is not supported."""
        self._spec = spec
        model = _check_model(spec)
        vocab = model["vocab"]
        added = spec.get("added_tokens") or []
        self._added = {token["content"]: token["id"] for token in added}
        self.special_tokens = {t["content"]: t["id"] for t in added if t.get("special")}
        self.eot_id = self.special_tokens.get(END_OF_TEXT)
        self.vocab_size = 1 + max(itertools.chain(vocab.values(), self._added.values()))
        self._raw = {t["content"] for t in added if not t.get("normalized")}
        self._token_bytes = _token_bytes(vocab, self._added, self.vocab_size)
        self._steps = _split_steps(spec.get("pre_tokenizer"))
        self._normalize = _normalizer(spec.get("normalizer"))
        self._whole = ({self._token_bytes[i]: i for i in vocab.values()}
                       if model.get("ignore_merges") else {})
        self._merger = _build_merger(vocab, model["merges"], self._token_bytes)
        self._forget()

    def _forget(self):
        self._cache = {i: np.int32(i).tobytes() for i in self._added.values()}
        self._cached = 0

    def __reduce__(self):  # what a process pool sends: the file's content, not the tables
        return Tokenizer, (self._spec,)

    @classmethod
    def train(cls, texts, vocab_size, special_tokens=(END_OF_TEXT,), pattern=DEFAULT_PATTERN,
              min_count=2, max_chunks=4_000_000, progress=None):
        """Learn a tokenizer of `vocab_size` ids from an iterable of str.

        `pattern` is one regular expression or several that run one after another, each cutting
        the chunks of the one before. A pair seen fewer than `min_count` times is not merged: if
        the text runs out of pairs, the tokenizer is smaller, and a warning says so.
        `progress` is called with a line of text now and then.
        ValueError: texts that are no text, a vocabulary that is too small, duplicate specials.
        """
        special_tokens = _check_specials(special_tokens)
        if vocab_size < 256 + len(special_tokens):
            raise ValueError(f"vocab_size {vocab_size} is too small: 256 bytes and "
                             f"{len(special_tokens)} special tokens need at least "
                             f"{256 + len(special_tokens)}")
        if isinstance(texts, str):
            raise ValueError("train wants an iterable of texts, not one str: pass [text]")
        patterns = (pattern,) if isinstance(pattern, str) else tuple(pattern)
        spec = _new_spec(patterns)
        counts = count_chunks(texts, _chain(_split_steps(spec["pre_tokenizer"])), max_chunks)
        if not counts:
            raise ValueError("there is no text to train on: every text is empty")
        if progress:
            progress(f"{len(counts)} distinct chunks")
        n_merges = vocab_size - 256 - len(special_tokens)
        merges = learn_merges(counts, n_merges, min_count, progress)
        if len(merges) < n_merges:
            warnings.warn(f"the text supports only {len(merges)} merges, so the vocabulary has "
                          f"{256 + len(merges) + len(special_tokens)} ids, not {vocab_size}",
                          stacklevel=2)
        return cls(_fill_spec(spec, merges, special_tokens))

    @classmethod
    def load(cls, path):
        """Open a tokenizer.json (ours, or another byte-level BPE); ValueError if it is not one."""
        with open(path, encoding="utf-8") as file:
            try:
                spec = json.load(file)
            except (UnicodeDecodeError, json.JSONDecodeError) as error:
                raise ValueError(f"{path} is not a tokenizer.json: {error}") from None
        try:
            return cls(spec)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} is a damaged tokenizer.json: {error!r}") from None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def save(self, path):
        """Write tokenizer.json; a crash on the way leaves the old file."""
        partial = f"{path}.{os.getpid()}.partial"
        try:
            with open(partial, "w", encoding="utf-8") as file:
                json.dump(self._spec, file, ensure_ascii=False, indent=1)
            os.replace(partial, path)
        finally:
            if os.path.exists(partial):
                os.remove(partial)

    def encode(self, text, allowed_special=()):
        """Return the ids of a text: list of int. See `encode_batch`."""
        return self.encode_batch([text], allowed_special)[0].tolist()

    def encode_batch(self, texts, allowed_special=(), processes=1):
        """Return the ids of each text: list of int32 arrays.

        The text of a special token stays text, unless `allowed_special` ("all", or some of their
        names) says otherwise: what a user types must not end a document.
        """
        if isinstance(texts, str):
            raise ValueError("encode_batch wants a list of texts, not one str: pass [text]")
        texts = list(texts)
        if processes > 1:
            return self._encode_in_processes(texts, allowed_special, processes)
        active = self._active(allowed_special)
        packed = [bytearray() for _ in texts]
        for group in _groups(self._chunks(text, active) for text in texts):
            try:
                found = self._look_up(group)
            except KeyError:
                self._learn(set().union(*(chunks for _, chunks in group)))
                found = self._look_up(group)
            for (i, _), ids in zip(group, found):
                packed[i] += ids
        return [np.frombuffer(ids, np.int32) for ids in packed]

    def _encode_in_processes(self, texts, allowed_special, processes):
        parts = [texts[i::processes] for i in range(processes)]
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            done = pool.starmap(self.encode_batch, [(part, allowed_special) for part in parts])
        return [done[i % processes][i // processes] for i in range(len(texts))]

    def _active(self, allowed_special):
        """Return the patterns that find the added tokens in raw and in normalized text."""
        allowed = self.special_tokens if allowed_special == "all" else set(allowed_special)
        unknown = set(allowed) - self.special_tokens.keys()
        if unknown:
            raise ValueError(f"{sorted(unknown)[0]!r} is no special token of this tokenizer")
        names = [n for n in self._added if n in allowed or n not in self.special_tokens]
        names.sort(key=len, reverse=True)  # the longest name wins
        split = [[n for n in names if n in self._raw], [n for n in names if n not in self._raw]]
        return [n and regex.compile("(" + "|".join(map(regex.escape, n)) + ")") for n in split]

    def _chunks(self, text, active):
        """Cut one text: list of chunks (str) and ids of added tokens (int)."""
        _check_text(text)
        chunks = []
        for part, raw in _parts(text, active[0]):
            for piece, found in [(part, raw)] if raw else _parts(self._normalize(part), active[1]):
                chunks += [self._added[piece]] if found else _chain(self._steps)(piece)
        return chunks

    def _look_up(self, group):
        return [b"".join(map(self._cache.__getitem__, chunks)) for _, chunks in group]

    def _learn(self, chunks):
        """Make sure that the cache knows these chunks; forget the others when it is full."""
        new = chunks.difference(self._cache)
        if self._cached and self._cached + sum(map(len, new)) > _CACHE:
            self._forget()
            new = chunks.difference(self._cache)
        new = list(new)
        self._cached += sum(map(len, new))
        encoded = _to_bytes(new)
        merged = self._merger(encoded) if new else []
        for chunk, raw, ids in zip(new, encoded, merged):
            whole = self._whole.get(raw)
            self._cache[chunk] = ids if whole is None else np.int32(whole).tobytes()

    def token_bytes(self, token_id):
        """Return the bytes that one id stands for; ValueError if the vocabulary lacks it."""
        if not 0 <= token_id < self.vocab_size or self._token_bytes[token_id] is None:
            raise ValueError(f"id {token_id} is not in this vocabulary of {self.vocab_size} ids")
        return self._token_bytes[token_id]

    def decode_bytes(self, ids):
        """Return the bytes of any sequence of ids (list, array or tensor)."""
        return b"".join(map(self.token_bytes, ids.tolist() if hasattr(ids, "tolist") else ids))

    def decode(self, ids):
        """Return the text of ids; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_stream(self, ids):
        """Yield text as ids come in (any iterator), never half a character."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for token_id in ids:
            text = decoder.decode(self.token_bytes(int(token_id)))
            if text:
                yield text
        text = decoder.decode(b"", final=True)
        if text:
            yield text


def _chain(steps):
    if len(steps) == 1:
        return steps[0]

    def split(text):
        chunks = [text] if text else []
        for step in steps:
            chunks = [piece for chunk in chunks for piece in step(chunk)]
        return chunks
    return split


def _parts(text, pattern):
    """Yield (text, False) and (added token, True) in turn."""
    if not pattern:
        return [(text, False)]
    parts = pattern.split(text)
    return [(part, i % 2 == 1) for i, part in enumerate(parts) if part]


def _groups(chunk_lists):
    """Gather (text number, chunks) until there is enough to look up at once."""
    group, size = [], 0
    for i, chunks in enumerate(chunk_lists):
        for at in range(0, len(chunks), _GROUP):
            group.append((i, chunks[at:at + _GROUP]))
            size += len(group[-1][1])
            if size >= _GROUP:
                yield group
                group, size = [], 0
    if group:
        yield group


# ---- the file ----------------------------------------------------------------------------

def _check_specials(special_tokens):
    special_tokens = tuple(special_tokens)
    for token in special_tokens:
        if not isinstance(token, str) or not token:
            raise ValueError(f"a special token is a text of at least one character, not {token!r}")
    twice = [token for token, n in collections.Counter(special_tokens).items() if n > 1]
    if twice:
        raise ValueError(f"the special token {twice[0]!r} is given twice")
    return special_tokens


def _new_spec(patterns):
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    splits = [{"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
               "invert": False} for pattern in patterns]
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": splits + [byte_level]},
            "post_processor": None, "decoder": byte_level}


def _fill_spec(spec, merges, special_tokens):
    names = list(byte_alphabet())
    lines = []
    for a, b in merges:
        lines.append(f"{names[a]} {names[b]}")
        names.append(names[a] + names[b])
    clash = set(names).intersection(special_tokens)
    if clash:
        raise ValueError(f"the special token {clash.pop()!r} is also an ordinary token")
    added = [{"id": len(names) + i, "content": token, "single_word": False, "lstrip": False,
              "rstrip": False, "normalized": False, "special": True}
             for i, token in enumerate(special_tokens)]
    vocab = {name: i for i, name in enumerate(names)}
    model = {"type": "BPE", "dropout": None, "unk_token": None,
             "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": False,
             "byte_fallback": False, "ignore_merges": False, "vocab": vocab, "merges": lines}
    return {**spec, "added_tokens": added, "model": model}


def _check_model(spec):
    """Return the model of a tokenizer.json; ValueError names what we do not support."""
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise ValueError("this is not a tokenizer.json: it has no model")
    model = spec["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("merges"), list):
        raise ValueError(f"the model is {model.get('type')}, not byte-level BPE")
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise ValueError(f"the model uses {option}, which is not supported")
    for option in ("truncation", "padding"):
        if spec.get(option):
            raise ValueError(f"the file sets {option}, which is not supported: set it to null")
    if '"ByteLevel"' not in json.dumps(spec.get("pre_tokenizer")):
        raise ValueError("the pre-tokenizer has no ByteLevel: this is not byte-level BPE")
    for token in spec.get("added_tokens") or []:
        for option in ("single_word", "lstrip", "rstrip"):
            if token.get(option):
                raise ValueError(f"the added token {token['content']!r} uses {option}, "
                                 "which is not supported")
    return model


def _token_bytes(vocab, added, vocab_size):
    to_byte = {char: b for b, char in enumerate(byte_alphabet())}
    table = [None] * vocab_size
    for name, i in vocab.items():
        if name in added:
            continue
        try:
            table[i] = bytes(map(to_byte.__getitem__, name))
        except KeyError:
            table[i] = name.encode()  # an entry outside the alphabet: no text leads to it
    for name, i in added.items():
        table[i] = name.encode()
    return table


def _build_merger(vocab, merges, token_bytes):
    alphabet = byte_alphabet()
    missing = [b for b in range(256) if alphabet[b] not in vocab]
    if missing:
        raise ValueError(f"the vocabulary lacks {len(missing)} of the 256 bytes: train it with "
                         "initial_alphabet=pre_tokenizers.ByteLevel.alphabet()")
    table = {}
    for rank, merge in enumerate(merges):
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        for name in (a, b, a + b):
            if name not in vocab:
                raise ValueError(f"merge {rank} names {name!r}, which the vocabulary lacks")
        table.pop((vocab[a], vocab[b]), None)  # named twice: the later rank counts
        table[vocab[a], vocab[b]] = vocab[a + b]
    byte_ids = np.array([vocab[char] for char in alphabet], np.int64)
    size = np.array([len(t or b"?") for t in token_bytes] + [1], np.int64)
    return _Merger(byte_ids, table, size)


# ---- the command line --------------------------------------------------------------------

def read_documents(path):
    """Yield (text, source, split) of a jsonl of documents, or of a plain text file."""
    with open(path, encoding="utf-8") as file:
        if not str(path).endswith(".jsonl"):
            yield file.read(), os.path.basename(path), "train"
            return
        for number, line in enumerate(file, 1):
            try:
                document = json.loads(line)
                text, source = document["text"], document.get("source", "")
            except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
                raise ValueError(f"{path} line {number} is not a document "
                                 '{"text": …, "source": …}') from None
            yield text, source, document.get("split", "train")


def main(argv=None):
    from nanoseek.cli import Parser
    import sys
    parser = Parser("nanoseek.tokenizer", __doc__.split("\n")[0])
    parser.add_argument("command", choices=("train", "encode"))
    parser.add_argument("input")
    parser.add_argument("output")
    parser.add_argument("--vocab_size", type=int, default=2048)
    args = parser.parse_args(argv)
    if args.command == "train":
        texts = (text for text, _, split in read_documents(args.input) if split != "held_out")
        tokenizer = Tokenizer.train(texts, args.vocab_size,
                                    progress=lambda line: print(line, file=sys.stderr))
        tokenizer.save(args.output)
        print(f"{args.output}: {tokenizer.vocab_size} ids")


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
