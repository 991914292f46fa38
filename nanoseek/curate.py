r"""Clean raw documents: normalise, judge, drop copies, hold some out, and say what went and why.

    kept, report = curate(documents, CurateConfig(held_out=0.02))
    python -m nanoseek.curate raw.jsonl clean.jsonl          # and curation.json beside it

    curate([{"text": "A cat sat here, as it did on most days.  \r\n", "source": "web"}, …])
    → [{"text": "A cat sat here, as it did on most days.", "source": "web", "split": "train"}, …]

Stages, in this order; each removal is counted under a reason, with examples, in the report:
    normalise     one spelling for each text (Unicode Standard Annex 15, with exceptions below)
    quality       rules with a name, a limit and a source (`RULES`)
    copies        equal texts, and texts equal but for case, spacing, punctuation and width
    split         "train" or "held_out" for every document, by a hash of its text

A document that comes with a split is half of one long text of the reader's: it keeps its split,
and no quality rule touches it.

Glossary: *unit* a word, or one character of a script written without spaces, so that limits mean
the same in Chinese as in English; *folded* reduced to what two copies of a text share.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
import re
import unicodedata

import numpy as np

GRAM = 5             # characters in the runs that near-duplicates are judged by
BATCH = 1 << 17      # characters hashed at once: the arrays stay in the processor's cache
BUCKET_CAP = 16      # neighbours that a text is compared with in one bucket of one band
FOREIGN_SHARE = 0.05 # of all documents: a script rarer than this came by mistake
_EMPTY = np.uint32(0xFFFFFFFF)
_BYTE_HASHES = np.random.default_rng(8).integers(2**63, size=256, dtype=np.uint64)
_FACTORS = np.random.default_rng(5).integers(2**63, size=GRAM + 1, dtype=np.uint64) * 2 + 1

# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
             "\uf900-\ufaff\U00020000-\U0003ffff")
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)*")
_WORD_INSIDE = re.compile(rf"[^\W_{_UNSPACED}]{{2}}")
_LATIN_UTF8 = re.compile("\u00c2[ \u0080-\u00bf]|[\u00c3-\u00ef][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
_LINK = re.compile(r"(?:https?://|www\.)\S+")
_UNBROKEN = re.compile(r"[A-Za-z0-9+/=]{40,}")
_UNPRINTABLE = re.compile("[\x80-\x9f\ue000-\uf8ff\ufffd]")
_BLANK_LINES = re.compile(r"\n{3,}")
_LINE_END_SPACE = re.compile(r"[ \t]+(?=\n)")

# What NFKC would change safely. The rest of it is unsafe: 10² would become 102, ½ 1⁄2, and the
# full-width punctuation that Chinese is properly written with (，！？) would become ASCII.
_PLAIN = {
    **{code: code - 0xFEE0 for a, b in ("０９", "ＡＺ", "ａｚ") for code in range(ord(a), ord(b) + 1)},
    **dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"))),
    **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **dict.fromkeys([0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029], "\n"),
    **dict.fromkeys([*range(9), *range(0x0E, 0x20), 0x7F, 0xAD, 0x200B, 0x2060, 0xFEFF,
                     0xFFFE, 0xFFFF]),
}
_NOT_PLAIN = re.compile("[" + "".join(map(re.escape, map(chr, _PLAIN))) + "]")

_SCRIPTS = {
    "Latin": "A-Za-z\u00aa-\u024f\u1e00-\u1eff",
    "Han": "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff",
    "Japanese": "\u3040-\u30ff", "Korean": "\u1100-\u11ff\uac00-\ud7af",
    "Cyrillic": "\u0400-\u052f", "Greek": "\u0370-\u03ff\u1f00-\u1fff",
    "Arabic": "\u0600-\u06ff\u0750-\u077f", "Hebrew": "\u0590-\u05ff",
    "Devanagari": "\u0900-\u097f", "Thai": "\u0e00-\u0e7f",
}
_SCRIPTS = {name: re.compile(f"[{letters}]") for name, letters in _SCRIPTS.items()}

# The words and characters that hold sentences together, in the languages of each script.
_FUNCTION_WORDS = {
    "Latin": set("the be to of and that have with a in is it for on as this not or if "
                 "de la el que y en los del un une les et des le est der die das und ist nicht "
                 "ein von mit di il che per non o e os da uma um het een van".split()),
    "Han": set("的一是不了在有我他她它这個个们和就也都着之而以其于為为与說说到上"),
}


# ---------------------------------------------------------------------------------------------
# Normalising
# ---------------------------------------------------------------------------------------------

def normalise(text):
    r"""Return the one spelling of a text: NFC, "\n" line ends, no control characters.

    Also: full-width letters and digits become ASCII (full-width punctuation stays), odd spaces
    become spaces, ligatures become letters, invisible characters go, lines lose the spaces at
    their ends, and there is never more than one blank line on end.

    >>> normalise("Ｔｏｍ　ｓａｉｄ：\r\n\r\n\r\n\r\n“ﬁne” \x00")
    'Tom said：\n\n“fine”'
    """
    text = text.replace("\r\n", "\n")
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    if _NOT_PLAIN.search(text):
        text = text.translate(_PLAIN)
    if not text.isascii():  # half of a surrogate pair has no UTF-8 form
        text = text.encode("utf-8", "replace").decode("utf-8")
    text = _LINE_END_SPACE.sub("", text.rstrip())
    return _BLANK_LINES.sub("\n\n", text).strip("\n")


def fold(text):
    """Return what copies share: letters and digits alone, in lower case and one width.

    >>> fold("The CAT, again!") == fold("ｔｈｅ cat again")
    True
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return "".join(re.findall(r"[^\W_]+", text.casefold()))


# ---------------------------------------------------------------------------------------------
# Quality
# ---------------------------------------------------------------------------------------------

class Profile:
    """The measurements of one text that the rules ask for."""

    def __init__(self, text):
        self.text = text
        self.units = _UNIT.findall(text)
        self.script = script(text)
        self.lines = [line for line in map(str.strip, text.splitlines()) if len(line) > 3]

    def share(self, pattern):
        """The share of the text's characters in matches of a pattern."""
        return sum(map(len, pattern.findall(self.text))) / len(self.text)

    def variety(self):
        """The share of the first 200 units that are different from one another."""
        units = self.units[:200]
        return len(set(units)) / len(units) if len(units) >= 50 else 1.0

    def letters(self):
        """The share of units that begin with a letter, not with a digit."""
        return sum(unit[0].isalpha() for unit in self.units) / max(1, len(self.units))

    def word_length(self):
        """Mean length of the words written with spaces around them."""
        lengths = [len(unit) for unit in self.units if len(unit) > 1]
        return sum(lengths) / max(1, len(lengths))

    def repeated_grams(self):
        """The share of runs of five units that occurred before in the text."""
        units = self.units
        runs = list(zip(units, units[1:], units[2:], units[3:], units[4:]))
        return 1 - len(set(runs)) / len(runs) if len(runs) > 10 else 0.0

    def repeated_lines(self):
        """The share of lines that occurred before in the text."""
        return 1 - len(set(self.lines)) / len(self.lines) if len(self.lines) > 4 else 0.0

    def units_per_line(self):
        """Mean number of units in a line."""
        return len(self.units) / len(self.lines) if len(self.lines) > 4 else math.inf

    def function_words(self):
        """How many different function words occur; no opinion on short and on other texts."""
        known = _FUNCTION_WORDS.get(self.script)
        if known is None or len(self.units) < 30:
            return math.inf
        return len(known.intersection(map(str.lower, self.units)))

    def mojibake(self):
        """The share of characters that look like UTF-8 read in a wrong encoding."""
        if self.text.isascii():
            return 0.0
        latin = 2 * len(_LATIN_UTF8.findall(self.text)) / len(self.text)
        return max(latin, _read_as_gbk(self.text))


def _read_as_gbk(text):
    # Real Chinese, written as GBK, is all but never valid UTF-8; misread UTF-8 always is.
    for line in text.splitlines():
        foreign = re.sub(r"[\x00-\x7f]", "", line)
        try:
            if len(foreign) >= 6 and foreign.encode("gbk")[:-3].decode("utf-8", "strict"):
                return len(foreign) / len(line)
        except UnicodeError:
            continue
    return 0.0


def script(text):
    """Return the script most of a text's first 2,000 characters are written in ("Latin", …).

    Any fair share of kana makes it "Japanese", Han characters or not; "" where no letter is known.
    """
    sample = text[:2000]
    counts = {name: len(letters.findall(sample)) for name, letters in _SCRIPTS.items()
              if name == "Latin" or not sample.isascii()}
    if counts.get("Japanese", 0) * 10 > counts.get("Han", 0):
        counts["Japanese"] += counts["Han"]
    best = max(counts, key=counts.get)
    return best if counts[best] else ""


@dataclasses.dataclass(frozen=True)
class Rule:
    """A text passes when `least <= measure(profile) <= most`."""

    name: str
    measure: object
    least: float
    most: float
    source: str


RULES = (
    Rule("too few words", lambda p: len(p.units), 5, math.inf, "Gopher (50), for short documents"),
    Rule("words too long", Profile.word_length, 0, 12, "Gopher (10); names in code are longer"),
    Rule("unprintable", lambda p: p.share(_UNPRINTABLE), 0, 0.02, "our own"),
    Rule("mojibake", Profile.mojibake, 0, 0.05, "our own"),
    Rule("links", lambda p: p.share(_LINK), 0, 0.3, "our own"),
    Rule("encoded data", lambda p: p.share(_UNBROKEN), 0, 0.3, "our own"),
    Rule("repeated phrases", Profile.repeated_grams, 0, 0.5, "Gopher (0.15 of characters)"),
    Rule("few different words", Profile.variety, 0.15, 1, "our own"),
    Rule("few letters", Profile.letters, 0.5, 1, "Gopher (0.8 of words)"),
    Rule("repeated lines", Profile.repeated_lines, 0, 0.3, "Gopher (0.30)"),
    Rule("lines too short", Profile.units_per_line, 2, math.inf, "our own"),
    Rule("no function words", Profile.function_words, 2, math.inf, "Gopher (2 of 8)"),
)


def broken_rule(text, rules=RULES):
    """Return the name of the first rule a text breaks, or None."""
    profile = Profile(text)
    return next((rule.name for rule in rules
                 if not rule.least <= rule.measure(profile) <= rule.most), None)


# ---------------------------------------------------------------------------------------------
# Near-duplicates: MinHash, locality-sensitive hashing, exact verification
# ---------------------------------------------------------------------------------------------

def _gram_hashes(codes):
    """Hash each run of GRAM code points: (n,) uint32 → (n - GRAM + 1,) uint64.

    A sum of products with odd random factors (multilinear hashing, Lemire and Kaser 2014), then
    one round of mixing, because the minimum of a merely linear hash is not quite fair.
    """
    count = len(codes) - GRAM + 1
    codes = codes.astype(np.uint64)
    hashes = codes[:count] * _FACTORS[0]
    term = np.empty_like(hashes)
    for k in range(1, GRAM):
        hashes += np.multiply(codes[k:k + count], _FACTORS[k], out=term)
    hashes ^= np.right_shift(hashes, np.uint64(32), out=term)
    hashes *= _FACTORS[GRAM]
    return hashes


def _codes(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _grams(text):
    """Return the set of a text's 5-grams as sorted hashes; a shorter text is one gram."""
    text = text.ljust(GRAM, "\0")
    parts = [np.unique(_gram_hashes(_codes(text[start:start + BATCH + GRAM - 1])))
             for start in range(0, len(text) - GRAM + 1, BATCH)]
    return parts[0] if len(parts) == 1 else np.unique(np.concatenate(parts))


def jaccard(left, right):
    """Return the share of the 5-grams of two texts that both have: the truth LSH approximates.

    >>> jaccard("abcdef", "abcdeX")
    0.3333333333333333
    """
    return _jaccard(_grams(left), _grams(right))


def _jaccard(left, right):
    merged = np.sort(np.concatenate((left, right)))
    shared = np.count_nonzero(merged[1:] == merged[:-1])
    return float(shared / (len(merged) - shared))


def minhash_signatures(texts, permutations=128):
    """Return (number of texts, permutations) uint32 whose agreement estimates the Jaccard index.

    One-permutation hashing (Li, Owen and Zhang 2012): each 5-gram is hashed once, falls into one
    of the bins, and each bin keeps its smallest hash. The share of bins in which two texts agree
    estimates the Jaccard index of their 5-gram sets, with a standard error of at most
    0.5 / sqrt(permutations) when texts have more grams than there are bins.
    """
    signatures = np.full((len(texts), permutations), _EMPTY, np.uint32)
    for numbers, pieces in _batches(texts):
        _fold_in(signatures, numbers, pieces)
    for start in range(0, len(texts), 4096):
        _densify(signatures[start:start + 4096])
    return signatures


def _batches(texts):
    """Yield (numbers of texts, pieces of them) of about BATCH characters together."""
    numbers, pieces, size = [], [], 0
    for number, text in enumerate(texts):
        for start in range(0, max(1, len(text) - GRAM + 1), BATCH):
            pieces.append(text[start:start + BATCH + GRAM - 1])
            numbers.append(number)
            size += len(pieces[-1]) + GRAM
            if size >= BATCH:
                yield numbers, pieces
                numbers, pieces, size = [], [], 0
    if pieces:
        yield numbers, pieces


def _fold_in(signatures, numbers, pieces):
    """Lower each bin of the signatures to the smallest hash of the pieces' grams in it."""
    permutations = signatures.shape[1]
    gap = "\0" * (GRAM - 1)
    hashes = _gram_hashes(_codes(gap.join(pieces) + gap + gap))
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces)) + len(gap)
    slots = (hashes & np.uint64(0xFFFFFFFF)) * np.uint64(permutations) >> np.uint64(32)
    slots = slots.view(np.int64)
    slots += np.repeat(np.array(numbers, np.int64) * permutations, lengths)
    values = (hashes >> np.uint64(32)).astype(np.uint32)
    ends = np.cumsum(lengths)
    after = ends - lengths + np.maximum(lengths - 2 * len(gap), 1)
    for step in range(2 * len(gap)):  # the windows that reach out of their text
        outside = after + step
        values[outside[outside < ends]] = _EMPTY
    np.minimum.at(signatures.reshape(-1), slots, values)


def _densify(signatures):
    """Fill empty bins, in place, from full ones (optimal densification, Shrivastava 2017).

    Each bin has its own fixed order of the other bins and takes the first full one in it, so two
    equal sets fill alike, and a short text estimates as well as its number of grams allows.
    """
    permutations = signatures.shape[1]
    orders = np.random.default_rng(2017).permuted(
        np.tile(np.arange(permutations), (permutations, 1)), axis=1)
    rows, bins = np.nonzero(signatures == _EMPTY)
    original = signatures.copy() if len(rows) else signatures
    for attempt in range(permutations):
        found = original[rows, orders[bins, attempt]]
        full = found != _EMPTY
        signatures[rows[full], bins[full]] = found[full]
        rows, bins = rows[~full], bins[~full]
        if not len(rows):
            return


def choose_bands(threshold, permutations=128, recall=0.98):
    """Return (bands, rows): the steepest split of a signature that still finds enough.

    A pair of Jaccard index s shares at least one band with probability 1 - (1 - s^rows)^bands
    (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, §3.4); at s = threshold that must
    be `recall`. More rows mean fewer candidates among texts that merely resemble each other.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold ** rows) ** bands >= recall:
            return bands, rows
    return permutations, 1


def band_keys(signatures, bands, rows):
    """Yield for each band one uint64 per text; equal keys mean an equal band."""
    factors = np.random.default_rng(2014).integers(2**63, size=rows, dtype=np.uint64) * 2 + 1
    for band in range(bands):
        part = signatures[:, band * rows:(band + 1) * rows]
        keys = np.zeros(len(part), np.uint64)
        for row in range(rows):
            keys += part[:, row] * factors[row]
            keys ^= keys >> np.uint64(29)
        yield keys


def find_near_duplicates(texts, threshold=0.8, signatures=None):
    """Return clusters of texts whose 5-grams have a Jaccard index of at least `threshold`.

    A cluster is a sorted list of indices; texts without a near-duplicate are left out. Candidates
    come from MinHash bands, each pair is verified exactly, and pairs are joined to clusters, in
    which two texts may thus be linked through a third. `signatures` saves computing them, or
    brings together those computed elsewhere, shard by shard.

    >>> find_near_duplicates(["one two three four", "something else", "one two three four."])
    [[0, 2]]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}: give a Jaccard index above 0, at most 1")
    first = {}
    parents = np.array([first.setdefault(text, i) for i, text in enumerate(texts)], np.int64)
    distinct = np.fromiter(first.values(), np.int64, len(first))
    if signatures is None:
        signatures = minhash_signatures([texts[i] for i in distinct])
    else:
        signatures = signatures[distinct]
    search = _PairSearch([texts[i] for i in distinct], signatures, threshold)
    for keys in band_keys(signatures, *choose_bands(threshold, signatures.shape[1])):
        search.join_equal(keys)
    return _clusters(distinct[search.roots[np.searchsorted(distinct, parents)]])


def _clusters(roots):
    """[7, 1, 7, …] (the root of each text) → lists of the texts that share a root."""
    order = np.argsort(roots, kind="stable")
    bounds = np.flatnonzero(np.diff(roots[order])) + 1
    groups = (group.tolist() for group in np.split(order, bounds) if len(group) > 1)
    return sorted(groups)


class _PairSearch:
    """Candidates of one band after the other, verified and joined (union-find)."""

    def __init__(self, texts, signatures, threshold):
        self.texts, self.signatures, self.threshold = texts, signatures, threshold
        self.roots = np.arange(len(texts))
        self.rejected = set()
        self.small_grams = functools.lru_cache(4096)(lambda i: _grams(texts[i]))
        # An estimate this far below the threshold (3.5 standard errors) is not worth verifying.
        # A text with few grams fills few bins by itself, so its estimate is worth less.
        lengths = np.fromiter(map(len, texts), np.int64, len(texts))
        trials = np.clip(lengths - GRAM + 1, 1, signatures.shape[1])
        self.least = threshold - 3.5 * np.sqrt(threshold * (1 - threshold) / trials)

    def join_equal(self, keys):
        """Join near-duplicates among texts with equal keys.

        In a bucket each text meets its next BUCKET_CAP neighbours, not all others: a million
        texts alike are a million times that many pairs, not half a trillion.
        """
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        here = np.arange(len(keys))
        for distance in range(1, BUCKET_CAP + 1):
            here = here[here + distance < len(keys)]
            here = here[keys[here + distance] == keys[here]]
            if not len(here):
                return
            self._join(order[here], order[here + distance])

    def _join(self, left, right):
        apart = self.roots[left] != self.roots[right]
        left, right = left[apart], right[apart]
        for start in range(0, len(left), 1 << 14):
            a, b = left[start:start + (1 << 14)], right[start:start + (1 << 14)]
            estimate = np.mean(self.signatures[a] == self.signatures[b], axis=1)
            near = estimate >= np.minimum(self.least[a], self.least[b])
            for i, j in zip(a[near].tolist(), b[near].tolist()):
                self._verify(i, j)
        while not np.array_equal(above := self.roots[self.roots], self.roots):
            self.roots = above

    def _verify(self, i, j):
        a, b = self._root(i), self._root(j)
        if a == b or (i, j) in self.rejected:
            return
        if _jaccard(self._grams_of(i), self._grams_of(j)) >= self.threshold:
            self.roots[max(a, b)] = min(a, b)
        else:
            self.rejected.add((i, j))

    def _root(self, i):
        while self.roots[i] != i:
            self.roots[i] = i = self.roots[self.roots[i]]
        return i

    def _grams_of(self, i):
        return self.small_grams(i) if len(self.texts[i]) < 10_000 else _grams(self.texts[i])


# ---------------------------------------------------------------------------------------------
# Passages and boilerplate
# ---------------------------------------------------------------------------------------------

def repeated_passages(texts, passage_bytes=200):
    """Return for each text the (start, end) spans of characters that an earlier text has as well.

    Finds every run of at least `passage_bytes` bytes of UTF-8 that two texts share (about 50
    tokens, as Lee et al. 2021, §4.1, and equally long in Chinese and English). Windows of bytes
    are hashed, and of any `width` neighbours the one with the smallest hash is kept (winnowing,
    Schleimer et al. 2003), which leaves about 2 in `width` and misses no such run. Equal windows
    are then extended byte by byte. Spans are pulled in to whole words and characters.
    """
    window = 1 << int(math.log2(max(2, passage_bytes * 2 // 3)))
    width = 1 << int(math.log2(max(1, passage_bytes - window + 1)))
    keys, owners, places = _fingerprints(texts, window, width)
    spans = [[] for _ in texts]
    data = functools.lru_cache(256)(lambda i: np.frombuffer(texts[i].encode(), np.uint8))
    for owner, place, other, other_place in _matches(keys, owners, places):
        if spans[owner] and place < spans[owner][-1][1]:
            continue
        start, end = _extend(data(owner), place, data(other), other_place)
        if end - start >= passage_bytes:
            spans[owner].append((start, end))
    return [_whole_words(text, found) if found else [] for text, found in zip(texts, spans)]


def _fingerprints(texts, window, width):
    """Return (keys uint64, numbers of texts, places in bytes) of the windows that are kept."""
    found = [np.empty((3, 0), np.uint64)]
    for numbers, starts, data in _byte_batches(texts):
        for begin in range(0, len(data), BATCH):
            keys, at = _winnow(data[begin:begin + BATCH + window + width - 2], window, width)
            at += begin
            which = np.searchsorted(starts, at, side="right") - 1
            inside = at + window <= starts[which + 1]
            at, which = at[inside], which[inside]
            found.append(np.stack((keys[inside], numbers[which], at - starts[which]), dtype=np.uint64,
                                  casting="unsafe"))
    keys, owners, places = np.concatenate(found, axis=1)
    return keys, owners.astype(np.int64), places.astype(np.int64)


def _byte_batches(texts):
    """Yield (numbers of texts, their starts and the end, their bytes on end), 8 batches long."""
    numbers, pieces, size = [], [], 0
    for number, text in enumerate(texts):
        pieces.append(text.encode())
        numbers.append(number)
        size += len(pieces[-1])
        if size >= 8 * BATCH or number == len(texts) - 1:
            starts = np.cumsum([0, *map(len, pieces)])
            yield np.array(numbers), starts, np.frombuffer(b"".join(pieces), np.uint8)
            numbers, pieces, size = [], [], 0


def _winnow(data, window, width):
    """Return (hashes, places) of windows that are smallest among `width` neighbours."""
    hashes, span = _BYTE_HASHES[data], 1
    while span < window:  # the hash of 2n bytes from those of n and n
        hashes = hashes[:-span] * _FACTORS[span % len(_FACTORS)] + hashes[span:]
        span *= 2
    ranks = (hashes >> np.uint64(32)).astype(np.uint32)
    if len(ranks) < width:
        return hashes[:0], np.empty(0, np.int64)
    least = _slide(np.minimum, ranks, width)
    edge = np.zeros(width - 1, np.uint32)
    at = np.flatnonzero(ranks == _slide(np.maximum, np.concatenate((edge, least, edge)), width))
    keys = hashes[at]
    again = (keys[1:] == keys[:-1]) & (np.diff(at) < width)  # a long run of one pattern
    fresh = np.concatenate((np.ones(min(1, len(at)), bool), ~again))
    return keys[fresh], at[fresh]


def _slide(smaller, values, width):
    """Apply np.minimum or np.maximum over each window of `width` (a power of two)."""
    span = 1
    while span < width:
        values = smaller(values[:-span], values[span:])
        span *= 2
    return values


def _matches(keys, owners, places):
    """Yield (text, place, earlier text, its place) for equal keys, in the order of the texts.

    Each occurrence is matched with the first of all and with the one just before it.
    """
    order = np.argsort(keys, kind="stable")
    keys, owners, places = keys[order], owners[order], places[order]
    before = np.arange(-1, len(keys) - 1)
    is_first = np.concatenate((np.ones(min(1, len(keys)), bool), keys[1:] != keys[:-1]))
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(keys)), 0))
    pairs = []
    for other in (first, np.where(is_first, first, before)):
        later = np.flatnonzero(owners[other] != owners)
        pairs.append(np.stack((owners[later], places[later],
                               owners[other[later]], places[other[later]])))
    pairs = np.unique(np.concatenate(pairs, axis=1), axis=1)
    return zip(*pairs.tolist())


def _extend(mine, i, other, j):
    """Return the (start, end) in `mine` of the equal bytes around mine[i] and other[j]."""
    return i - _common(mine[:i][::-1], other[:j][::-1]), i + _common(mine[i:], other[j:])


def _common(left, right):
    """Return how many bytes at their beginnings two arrays have in common."""
    length = min(len(left), len(right))
    for start in range(0, length, 4096):
        end = min(start + 4096, length)
        differ = left[start:end] != right[start:end]
        if differ.any():
            return start + int(differ.argmax())
    return length


def _whole_words(text, spans):
    """Turn spans of bytes into spans of characters that cut no word and no character."""
    data, pulled = text.encode(), []
    for start, end in spans:
        start = len(data[:start].decode("utf-8", "ignore")) + (data[start] & 0xC0 == 0x80)
        end = len(data[:end].decode("utf-8", "ignore"))
        while start < end and _inside_word(text, start):
            start += 1
        while start < end and _inside_word(text, end):
            end -= 1
        if start < end:
            pulled.append((start, end))
    return pulled


def _inside_word(text, at):
    return 0 < at < len(text) and bool(_WORD_INSIDE.match(text, at - 1))


def cut(text, spans):
    """Return the text without the spans, normalised."""
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    kept = [text[end:start].strip(" ") for end, start in zip(ends, starts)]
    return normalise(" ".join(part for part in kept if part))


def boilerplate_lines(texts, documents):
    """Return the lines that begin or end at least so many texts, such as menus and notices.

    Only the first and last three lines of a text count, and lines of at least 12 bytes.
    """
    counts = collections.Counter()
    for text in texts:
        lines = _edge_lines(text)
        counts.update({line for line in lines if len(line.encode()) >= 12})
    return {line for line, count in counts.items() if count >= documents}


def _edge_lines(text, count=3):
    head = text[:2000].split("\n", 2 * count)[:2 * count]
    tail = text[-2000:].rsplit("\n", 2 * count)[-2 * count:]
    lines = [line for line in head if line.strip()][:count]
    return lines + [line for line in tail if line.strip()][-count:]


def strip_boilerplate(text, lines):
    """Take boilerplate lines off both ends of a text."""
    kept = text.split("\n")
    while kept and (kept[0] in lines or not kept[0].strip()):
        kept.pop(0)
    while kept and (kept[-1] in lines or not kept[-1].strip()):
        kept.pop()
    return "\n".join(kept)


# ---------------------------------------------------------------------------------------------
# The pipeline
# ---------------------------------------------------------------------------------------------

def _flag(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """What to remove and how much to hold out."""

    held_out: float = _flag(0.02, "share of each source's documents that is never trained on")
    quality: bool = _flag(True, "apply the quality rules")
    boilerplate: int = _flag(10, "documents that a first or last line is boilerplate from; 0: off")
    threshold: float = _flag(0.8, "Jaccard index from which documents are near-duplicates; 0: off")
    passage_bytes: int = _flag(200, "length from which a repeated passage is cut out; 0: off")
    remix: float = _flag(1.0, "exponent of the weights in the report: 1 as it is, 0 all alike")

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}: give a share from 0 to below 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: give a Jaccard index from 0 to 1")
        if self.passage_bytes and self.passage_bytes < 32:
            raise ValueError(f"passage_bytes is {self.passage_bytes}: give at least 32, or 0")


class Ledger:
    """What went in, what was removed and why, and what came out."""

    def __init__(self):
        self.totals, self.removed, self.cut = {}, {}, {}
        self.sources = collections.defaultdict(collections.Counter)

    def count(self, name, document):
        self._add(self.totals, name, _size(document["text"]))

    def remove(self, reason, document):
        self._add(self.removed, reason, _size(document["text"]), document["text"])
        self.sources[document["source"]][f"removed: {reason}"] += 1

    def shorten(self, reason, document, text, example):
        """Give a document its shorter text, and forget what was known of the longer one."""
        self._add(self.cut, reason, _size(document["text"]) - _size(text), example)
        document["text"] = text
        document.pop("log2_probability", None)

    @staticmethod
    def _add(entries, name, size, example=None):
        entry = entries.setdefault(name, {"documents": 0, "bytes": 0})
        entry["documents"] += 1
        entry["bytes"] += size
        if example is not None and len(entry.setdefault("examples", [])) < 3:
            entry["examples"].append(example[:160])


def _size(text):
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def curate(documents, config=None):
    """Return (kept documents, report) for raw documents, each {"text", "source", …}.

    Kept documents are in the order they came in, normalised, each with a "split". A story whose
    text was changed loses its "log2_probability", which no longer describes it. The report is a
    dict ready for JSON. Raises ValueError for a document without text or source, and when nothing
    is left.
    """
    config = config or CurateConfig()
    ledger = Ledger()
    kept = list(_normalised(documents, ledger))
    given = {id(document) for document in kept if "split" in document}
    if config.boilerplate:
        _strip_boilerplate([d for d in kept if id(d) not in given], config.boilerplate, ledger)
    if config.quality:
        kept = _of_quality(kept, ledger)
    kept = _without_copies(kept, ledger)
    if config.threshold:
        kept = _without_near_duplicates(kept, config.threshold, ledger)
    _mark_splits(kept, config.held_out)
    if config.passage_bytes:
        kept = _without_passages(kept, given, config.passage_bytes, ledger)
    if not kept:
        raise ValueError("no document is left: "
                         + ", ".join(f"{n['documents']} {r}" for r, n in ledger.removed.items()))
    return kept, _report(kept, ledger, config)


def _normalised(documents, ledger):
    for number, document in enumerate(documents, start=1):
        if not isinstance(document.get("text"), str) or not isinstance(document.get("source"), str):
            raise ValueError(f'document {number} has no "text" or no "source" that is a string')
        ledger.count("in", document)
        text = normalise(document["text"])
        if not text:
            ledger.remove("empty", document)
            continue
        if text != document["text"]:
            document = {k: v for k, v in document.items() if k != "log2_probability"}
        yield document | {"text": text}


def _strip_boilerplate(documents, least, ledger):
    lines = boilerplate_lines((document["text"] for document in documents), least)
    for document in documents if lines else ():
        text = strip_boilerplate(document["text"], lines)
        if text != document["text"]:
            example = next(line for line in _edge_lines(document["text"]) if line in lines)
            ledger.shorten("boilerplate", document, text, example)


def _of_quality(documents, ledger):
    scripts = [script(document["text"]) for document in documents]
    counts = collections.Counter(scripts)
    foreign = {name for name in counts if counts[name] < FOREIGN_SHARE * len(documents)}
    kept = []
    for document, name in zip(documents, scripts):
        if "split" in document:
            kept.append(document)
        elif reason := f"foreign script: {name}" if name in foreign else broken_rule(document["text"]):
            ledger.remove(reason, document)
        else:
            kept.append(document)
    return kept


def _digest(text):
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).digest()


def _without_copies(documents, ledger):
    """Keep one of each group of copies: one held out if there is, else the tidiest."""
    best = {}
    keys = [_digest(fold(document["text"]) or document["text"]) for document in documents]
    for position, key in enumerate(keys):
        rival = best.setdefault(key, position)
        if rival != position and _rank(documents[position]) < _rank(documents[rival]):
            best[key] = position
    kept = []
    for position, (key, document) in enumerate(zip(keys, documents)):
        if best[key] == position:
            kept.append(document)
            continue
        same = document["text"] == documents[best[key]]["text"]
        ledger.remove("copy" if same else "copy but for case, spacing or punctuation", document)
    return kept


def _rank(document):
    text = document["text"]
    untidy = sum(map(str.isupper, text)) + text.count("  ")
    return document.get("split") != "held_out", "split" not in document, untidy


def _without_near_duplicates(documents, threshold, ledger):
    """Keep of each cluster what was held out if anything, else the member most like the others."""
    pool = [d for d in documents if not _is_long_text_half(d, documents)]
    texts = [document["text"] for document in pool]
    signatures = minhash_signatures(texts)
    removed = set()
    for cluster in find_near_duplicates(texts, threshold, signatures):
        held_out = [n for n in cluster if pool[n].get("split") == "held_out"]
        best = set(held_out) or {_medoid(cluster, signatures)}
        for n in set(cluster) - best:
            removed.add(id(pool[n]))
            ledger.remove("near-duplicate", pool[n])
    return [document for document in documents if id(document) not in removed]


def _medoid(cluster, signatures):
    """Return the member that agrees most with the others, the first of several."""
    sample = signatures[cluster[:64]]
    agreement = [np.count_nonzero(sample == signatures[n]) for n in cluster]
    return cluster[int(np.argmax(agreement))]


def _mark_splits(documents, share):
    """Give each document without a split one, by a hash of its text: stable from run to run."""
    by_source = collections.defaultdict(list)
    for document in documents:
        if "split" not in document:
            draw = int.from_bytes(_digest(document["text"])[:8], "big") / 2**64
            document["split"] = "held_out" if draw < share else "train"
            by_source[document["source"]].append((draw, document))
    for drawn in by_source.values():  # a small source gets one held-out document as well
        if share and len(drawn) > 1 and all(d["split"] == "train" for _, d in drawn):
            min(drawn, key=lambda pair: pair[0])[1]["split"] = "held_out"


def _without_passages(documents, given, passage_bytes, ledger):
    """Cut out what an earlier document holds; first come long texts, then what is held out."""
    order = sorted(documents, key=lambda d: (id(d) not in given, d["split"] != "held_out"))
    emptied = set()
    for document, spans in zip(order, repeated_passages([d["text"] for d in order], passage_bytes)):
        if not spans or id(document) in given:
            continue
        text = cut(document["text"], spans)
        if len(_UNIT.findall(text)) < RULES[0].least:
            ledger.remove("repeated passages throughout", document)
            emptied.add(id(document))
        else:
            start, end = spans[0]
            ledger.shorten("repeated passages", document, text, document["text"][start:end])
    return [document for document in documents if id(document) not in emptied]


def _report(kept, ledger, config):
    for document in kept:
        ledger.count("out", document)
        ledger.count(f"out, {document['split']}", document)
        ledger.sources[document["source"]][document["split"]] += 1
    sizes = collections.Counter()
    for document in kept:
        sizes[document["source"]] += _size(document["text"])
    return {"totals": ledger.totals, "removed": ledger.removed, "cut": ledger.cut,
            "sources": {name: dict(counts) for name, counts in ledger.sources.items()},
            "weights": source_weights(sizes, config.remix),
            "config": dataclasses.asdict(config)}


def source_weights(sizes, exponent=1.0):
    """Turn {source: bytes} into {source: share} with shares in proportion to bytes ** exponent.

    An exponent below 1 raises the share of small sources (XLM-R, Conneau et al. 2020, §3.1, takes
    0.3 for languages). Training takes the shares as its --weights.

    >>> source_weights({"web": 90, "books": 10}, 0.5)
    {'web': 0.75, 'books': 0.25}
    """
    raised = {source: size ** exponent for source, size in sizes.items() if size}
    if not raised:
        raise ValueError("there is no source with any text to weigh")
    total = sum(raised.values())
    return {source: value / total for source, value in raised.items()}


def table(report):
    """Return the report as lines for the screen: in, what went and why, out."""
    totals = report["totals"]
    rows = [("in", totals["in"]),
            *((f"- {name}", entry) for name, entry in report["removed"].items()),
            *((f"~ {name}, cut", entry) for name, entry in report["cut"].items()),
            *((name, totals[name]) for name in totals if name.startswith("out"))]
    return "\n".join(f"{name:<42}{entry['documents']:>10,} documents{entry['bytes'] / 1e6:>9.2f} MB "
                     + "#" * math.ceil(20 * entry["bytes"] / max(1, totals["in"]["bytes"]))
                     for name, entry in rows)


def main(argv=None):
    """Curate a file of JSON lines into another, with curation.json beside it."""
    from nanoseek import cli, corpus
    parser = cli.Parser("nanoseek.curate", "Clean raw documents and split off the held-out ones.")
    parser.add_argument("input", help="raw documents, JSON lines")
    parser.add_argument("output", help="the file to write, such as clean.jsonl")
    cli.add_flags(parser, CurateConfig)
    args = parser.parse_args(argv)
    config = cli.from_flags(CurateConfig, args)
    kept, report = curate(corpus.read_documents(args.input), config)
    output = pathlib.Path(args.output)
    output.parent.mkdir(parents=True, exist_ok=True)
    part = output.with_name(f".curation.{os.getpid()}.part")
    part.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    os.replace(part, output.with_name("curation.json"))
    corpus.write_documents(kept, output)
    os.utime(output)  # make: newer than its input, even when nothing changed
    print(table(report))


if __name__ == "__main__":
    from nanoseek import cli
    cli.run(main)
