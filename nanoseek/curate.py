r"""Clean raw documents: normalise, judge, drop copies, hold some out, and say what went and why.

    kept, report = curate(documents, CurateConfig(held_out=0.02))
    python -m nanoseek.curate raw.jsonl clean.jsonl          # and curation.json beside it

    [{"text": "A cat sat here, as it did most days.  \r\n", "source": "web"}, …] →
    [{"text": "A cat sat here, as it did most days.", "source": "web", "split": "train"}, …]

Stages, in this order (the report counts what each removed, and shows examples):
    normalise        one spelling for each text: NFC and the safe part of NFKC (Unicode Annex 15)
    copies           equal texts, and texts equal but for case, spacing, punctuation and width
    boilerplate      first and last lines that many documents share are taken off
    quality          rules with a name, a limit and a source (`RULES`), and no foreign script
    near-duplicates  Jaccard index of 5-grams of characters at least 0.8 (MinHash, Broder 1997)
    split            "train" or "held_out" for every document, by a hash of its text
    passages         what an earlier document has as well is cut out (Lee et al. 2021, §4.1);
                     held-out documents come first, so training loses what both have

A document that comes with a split belongs to one long text of the reader's: it keeps its split,
and neither the quality rules nor the cutting of boilerplate and passages touch it.

Glossary: *unit* a word, or one character of a script written without spaces, so that limits mean
the same in Chinese as in English; *gram* a run of five characters; *signature* a few hundred bytes
whose agreement estimates how alike two texts are; *band* a slice of a signature, and *bucket* the
texts that have an equal one; *fingerprint* the hash of a window of bytes.
"""

import collections
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import pathlib
import re
import unicodedata

import numpy as np

GRAM = 5              # characters in the runs that near-duplicates are judged by
BATCH = 1 << 17       # characters hashed at once: the arrays stay in the processor's cache
BUCKET_CAP = 16       # neighbours that a text is compared with in one bucket
PAIRS = 1 << 12       # candidate pairs verified at once
JUDGED = 100_000      # characters of a text that the quality rules look at
FOREIGN_SHARE = 0.05  # of documents and of text: what is in a script rarer than this is foreign

_EMPTY = np.uint32(0xFFFFFFFF)
_OUTSIDE = np.uint64(2**64 - 1)  # its high bits are _EMPTY
_LOW_BITS = np.uint64((1 << 24) - 1)
_FACTORS = np.random.default_rng(5).integers(2**63, size=8, dtype=np.uint64) * 2 + 1
_BYTE_HASHES = np.random.default_rng(8).integers(2**63, size=256, dtype=np.uint64)

# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, kana, Han.
_UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
             "\uf900-\ufaff\U00020000-\U0003ffff")
_UNIT = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['’][^\W_{_UNSPACED}]+)*")
_INSIDE_WORD = re.compile(rf"[^\W_{_UNSPACED}]{{2}}")


# Normalising -------------------------------------------------------------------------------------

# What NFKC changes safely. The rest of it is unsafe: 10² would become 102, ½ would become 1⁄2,
# and the full-width punctuation of proper Chinese (，！？) would become ASCII.
_PLAIN = {
    **{code: code - 0xFEE0 for a, b in ("０９", "ＡＺ", "ａｚ") for code in range(ord(a), ord(b) + 1)},
    **dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"))),
    **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **dict.fromkeys([0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029], "\n"),
    **dict.fromkeys([*range(9), *range(0x0E, 0x20), 0x7F, 0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFE,
                     0xFFFF]),
}
_NOT_PLAIN = re.compile("[" + "".join(map(re.escape, map(chr, _PLAIN))) + "]")
_SPACE_AT_LINE_END = re.compile(r"[ \t]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")


def normalise(text):
    r"""Return the one spelling of a text: NFC, "\n" line ends, no control characters.

    Also: full-width letters and digits become ASCII (full-width punctuation stays), odd spaces
    become spaces, ligatures become letters, invisible characters go, half of a surrogate pair
    becomes "?", lines lose the spaces at their ends, and there is never more than one blank line
    on end.

    >>> normalise("Ｔｏｍ　ｓａｉｄ：\r\n\r\n\r\n\r\n“ﬁne” \x00")
    'Tom said：\n\n“fine”'
    """
    text = text.replace("\r\n", "\n")
    if not text.isascii():  # half of a surrogate pair has no UTF-8 form
        text = text.encode("utf-8", "replace").decode("utf-8")
    if _NOT_PLAIN.search(text):
        text = text.translate(_PLAIN)
    if not unicodedata.is_normalized("NFC", text):
        text = unicodedata.normalize("NFC", text)
    text = _SPACE_AT_LINE_END.sub("", text.rstrip())
    return _BLANK_LINES.sub("\n\n", text).strip("\n")


def fold(text):
    """Return what copies share: letters and digits alone, in lower case and one width.

    >>> fold("The CAT, again!") == fold("ｔｈｅ cat again")
    True
    """
    text = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return re.sub(r"[\W_]+", "", text.casefold())


# Quality -----------------------------------------------------------------------------------------

_LINK = re.compile(r"(?:https?://|www\.)\S+")
_UNPRINTABLE = re.compile("[\x80-\x9f\ue000-\uf8ff\ufffd]")
_MISREAD = re.compile("\u00c2[ \u0080-\u00bf]|"  # UTF-8 that was read as Latin-1 or Windows-1252
                      "[\u00c3-\u00ef][\u0080-\u00bf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]")
# What holds sentences together, in the languages of a script.
_FUNCTION_WORDS = {
    "LATIN": set("the be to of and that have with a in is it for on as this not or if "
                 "de la el que y en los del un une les et des le est der die das und ist nicht "
                 "ein von mit di il che per non o e os da uma um het een van".split()),
    "CJK": set("的一是不了在有我他她它這个個们們和就也都着之而以其于為为與说說到上"
               "無无此何者所如自未已相來来"),
}


class Profile:
    """What the rules look at: a text, its units and its lines."""

    def __init__(self, text):
        self.text = text = text[:JUDGED]
        self.units = _UNIT.findall(text)
        self.lines = [line for line in map(str.strip, text.split("\n")) if len(line) > 3]

    def share(self, pattern):
        """The share of the characters that lie in matches of a pattern."""
        return sum(map(len, pattern.findall(self.text))) / len(self.text)


def script(text):
    """Return the script that most of a hundred letters of a text are in, as Unicode names it.

    A fair share of kana makes it "HIRAGANA", CJK characters or not; "" where there is no letter.

    >>> script("Moby 白鲸 Dick"), script("红楼梦"), script("これは日本語です。"), script("42")
    ('LATIN', 'CJK', 'HIRAGANA', '')
    """
    counts = collections.Counter(map(_script_of, text[:400:4]))
    counts[""] = 0
    if counts["HIRAGANA"] * 10 > counts["CJK"]:
        counts["CJK"] = 0
    return max(counts, key=counts.get)


@functools.lru_cache(1 << 16)
def _script_of(character):
    name = unicodedata.name(character, "").split(" ")[0] if character.isalpha() else ""
    return name.replace("KATAKANA", "HIRAGANA")


def _repeated(things):
    return 1 - len(set(things)) / len(things)


def _repeated_phrases(profile):
    runs = list(zip(*(itertools.islice(profile.units, start, None) for start in range(5))))
    return _repeated(runs) if len(runs) > 45 else 0.0


def _repeated_lines(profile):
    if len(profile.lines) < 5:
        return 0.0
    return 1 - sum(map(len, set(profile.lines))) / sum(map(len, profile.lines))


def _function_words(profile):
    known = _FUNCTION_WORDS.get(script(profile.text))
    if known is None or len(profile.units) < 30:  # no opinion
        return math.inf
    return len(known.intersection(map(str.lower, profile.units)))


def _symbols(profile):
    return sum(map(profile.text.count, ("#", "…", "..."))) / len(profile.units)


def _mojibake(profile):
    if profile.text.isascii():
        return 0.0
    for line in profile.lines[:5]:
        foreign = re.sub(r"[\x00-\x7f]", "", line)
        try:  # real Chinese, written as GBK, is all but never valid UTF-8; misread UTF-8 always is
            if len(foreign) >= 6 and foreign.encode("gbk")[:-3].decode("utf-8"):
                return len(foreign) / len(line)
        except UnicodeError:
            continue
    return profile.share(_MISREAD)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A text passes when `least <= measure(profile) <= most`."""

    name: str
    measure: object
    least: float
    most: float
    source: str


# Gopher: Rae et al. 2021, appendix A.1.1, whose limit is named; documents here are shorter, and
# the Python documentation holds code, so most limits are wider than theirs.
RULES = (
    Rule("too few words", lambda p: len(p.units), 5, math.inf, "Gopher: 50"),
    Rule("words too long", lambda p: sum(map(len, p.units)) / len(p.units), 0, 10, "Gopher: 10"),
    Rule("mostly numbers", lambda p: sum(map(str.isdigit, p.units)) / len(p.units), 0, 0.5,
         "Gopher: 0.2 of words without a letter"),
    Rule("symbols", _symbols, 0, 0.1, "Gopher: 0.1 to a word"),
    Rule("mojibake", _mojibake, 0, 0.05, "our own"),
    Rule("unprintable", lambda p: p.share(_UNPRINTABLE), 0, 0.02, "our own"),
    Rule("links", lambda p: p.share(_LINK), 0, 0.3, "our own"),
    Rule("repeated phrases", _repeated_phrases, 0, 0.5, "Gopher: 0.15 of characters, five words"),
    Rule("repeated lines", _repeated_lines, 0, 0.3, "Gopher: 0.2 of characters"),
    Rule("few different words", lambda p: 1 - _repeated(p.units[:200]) if len(p.units) > 49 else 1,
         0.25, 1, "our own"),
    Rule("lines too short", lambda p: len(p.units) / len(p.lines) if len(p.lines) > 9 else 9,
         2, math.inf, "our own"),
    Rule("no function words", _function_words, 2, math.inf, "Gopher: 2 of 8"),
)


def broken_rule(text, rules=RULES):
    """Return the name of the first rule that a text breaks, or None."""
    profile = Profile(text)
    for rule in rules:
        if not rule.least <= rule.measure(profile) <= rule.most:
            return rule.name
    return None


# Near-duplicates: MinHash, locality-sensitive hashing, exact verification ------------------------

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


def _pieces(text):
    """Cut a text in pieces of at most BATCH grams; shorter than a gram, it counts as one."""
    text = text if len(text) >= GRAM else text.ljust(GRAM, "\0")
    for start in range(0, len(text) - GRAM + 1, BATCH):
        yield text[start:start + BATCH + GRAM - 1]


def _hash_pieces(pieces):
    """Return (hashes, lengths): the hashes of all pieces on end, and how many each has.

    A piece has one for each character and GRAM - 1 more. The windows that reach out of their
    piece are marked _OUTSIDE.
    """
    gap = "\0" * (GRAM - 1)
    hashes = _gram_hashes(_codes(gap.join(pieces) + gap + gap))
    lengths = np.fromiter(map(len, pieces), np.int64, len(pieces)) + len(gap)
    last = np.cumsum(lengths) - 1
    for step in range(2 * len(gap)):
        hashes[last - step] = _OUTSIDE
    return hashes, lengths


def _grams(text):
    """Return the set of a text's grams as sorted hashes, uint64."""
    parts = [np.unique(_hash_pieces([piece])[0]) for piece in _pieces(text)]
    return np.unique(np.concatenate(parts))[:-1]  # the last is _OUTSIDE


def jaccard(left, right):
    """Return the Jaccard index of two texts: the share of all their 5-grams that both have.

    >>> round(jaccard("abcdef", "abcdeX"), 3)
    0.333
    """
    left, right = _grams(left), _grams(right)
    shared = len(np.intersect1d(left, right, assume_unique=True))
    return shared / (len(left) + len(right) - shared)


def minhash_signatures(texts, permutations=128):
    """Return (number of texts, permutations) uint32 whose agreement estimates the Jaccard index.

    One-permutation hashing (Li, Owen and Zhang 2012): each gram is hashed once, the low bits of
    the hash name its bin, and each bin keeps its smallest hash. The share of bins in which two
    texts agree has a standard error of at most 0.5 / sqrt(permutations) around their Jaccard
    index. Raises ValueError unless `permutations` is a power of two.
    """
    if permutations < 2 or permutations & (permutations - 1):
        raise ValueError(f"permutations is {permutations}: give a power of two, such as 128")
    signatures = np.full((len(texts), permutations), _EMPTY, np.uint32)
    pieces = ((number, piece) for number, text in enumerate(texts) for piece in _pieces(text))
    for numbers, batch in _batches(pieces, BATCH):
        _fold_in(signatures, numbers, batch)
    for start in range(0, len(texts), 4096):
        _densify(signatures[start:start + 4096])
    return signatures


def _batches(pieces, size):
    """Yield (numbers, pieces) from pairs of both, about `size` characters or bytes at a time."""
    numbers, batch, held = [], [], 0
    for number, piece in pieces:
        numbers.append(number)
        batch.append(piece)
        held += len(piece)
        if held >= size:
            yield numbers, batch
            numbers, batch, held = [], [], 0
    if batch:
        yield numbers, batch


def _fold_in(signatures, numbers, pieces):
    """Lower each bin of the signatures to the smallest hash of the pieces' grams in it."""
    permutations = signatures.shape[1]
    hashes, lengths = _hash_pieces(pieces)
    values = (hashes >> np.uint64(32)).astype(np.uint32)
    slots = np.repeat(np.array(numbers, np.int64) * permutations, lengths)
    slots += values & np.uint32(permutations - 1)
    np.minimum.at(signatures.reshape(-1), slots, values)


def _densify(signatures):
    """Fill empty bins, in place, from full ones (optimal densification, Shrivastava 2017).

    Each bin has a fixed random order of all bins and takes the first full one, so that texts with
    few grams agree as often as their Jaccard index says, too.
    """
    permutations = signatures.shape[1]
    orders = np.tile(np.arange(permutations), (permutations, 1))
    orders = np.random.default_rng(2017).permuted(orders, axis=1)
    rows, bins = np.nonzero(signatures == _EMPTY)
    original = signatures.copy()
    for attempt in range(permutations):
        found = original[rows, orders[bins, attempt]]
        full = found != _EMPTY
        signatures[rows[full], bins[full]] = found[full]
        rows, bins = rows[~full], bins[~full]
        if not len(rows):
            return


def estimate_jaccard(left, right):
    """Estimate the Jaccard index of texts from rows of signatures: (n, K), (n, K) → (n,) float.

    Counts only the bins that either text filled itself, which the low bits of a hash tell: for a
    text with fewer grams than bins these are all but its whole set, the estimate all but exact.
    """
    bins = np.arange(left.shape[1], dtype=np.uint32)
    own = (left & bins[-1] == bins) | (right & bins[-1] == bins)
    return np.count_nonzero((left == right) & own, axis=1) / np.count_nonzero(own, axis=1)


def choose_bands(threshold, permutations=128, recall=0.98):
    """Return (bands, rows): the steepest split of a signature that still finds enough.

    A pair of Jaccard index s has at least one band in common with probability
    1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, §3.4). At
    the threshold that must be `recall`; beyond that, more rows mean fewer candidates among texts
    that merely resemble each other.
    """
    for rows in range(permutations, 0, -1):
        bands = permutations // rows
        if 1 - (1 - threshold ** rows) ** bands >= recall:
            return bands, rows
    return permutations, 1


def band_keys(signatures, bands, rows):
    """Yield for each band a key per text, (n,) uint64; equal keys mean an equal band."""
    for start in range(0, bands * rows, rows):
        keys = np.zeros(len(signatures), np.uint64)
        for column in range(start, start + rows):
            keys = (keys ^ keys >> np.uint64(29)) * _FACTORS[0] + signatures[:, column]
        yield keys * _FACTORS[1]


def find_near_duplicates(texts, threshold=0.8, signatures=None):
    """Return clusters of texts whose 5-grams have a Jaccard index of at least `threshold`.

    A cluster is a sorted list of indices; texts without a near-duplicate are left out. Pairs with
    an equal band are candidates, each is verified exactly, and verified pairs are joined, so that
    two texts of a cluster may be linked through a third. `signatures` brings in those that were
    computed before or elsewhere, as when shards of a corpus go to several processes.

    >>> find_near_duplicates(["one two three four five", "other", "one two three four five."])
    [[0, 2]]
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"the threshold is {threshold}: give a Jaccard index above 0, at most 1")
    first = {}
    owners = np.array([first.setdefault(text, i) for i, text in enumerate(texts)], np.int64)
    distinct = np.fromiter(first.values(), np.int64, len(first))
    distinct_texts = [texts[i] for i in distinct]
    signatures = minhash_signatures(distinct_texts) if signatures is None else signatures[distinct]
    search = _PairSearch(distinct_texts, signatures, threshold)
    keys = list(band_keys(signatures, *choose_bands(threshold, signatures.shape[1])))
    for band, following in zip(keys, keys[1:] + keys[:1]):
        search.join_equal(band, following)
    roots = search.roots[np.searchsorted(distinct, owners)]
    order = np.argsort(roots, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(roots[order])) + 1)
    return sorted(group.tolist() for group in groups if len(group) > 1)


class _PairSearch:
    """Candidates of one band after the other, verified and joined; `roots` name the clusters."""

    def __init__(self, texts, signatures, threshold):
        self.texts, self.signatures, self.threshold = texts, signatures, threshold
        self.roots = np.arange(len(texts))
        # An estimate 3.5 standard errors below the threshold is not worth verifying. Of n grams
        # about `full` are drawn, without replacement: all of a short text, few of a long one.
        self.grams = np.fromiter((max(1, len(t) - GRAM + 1) for t in texts), float, len(texts))
        bins = signatures.shape[1]
        full = bins * -np.expm1(self.grams * math.log1p(-1 / bins))
        error = np.sqrt(threshold * (1 - threshold) * (1 / full - 1 / (self.grams + 1)))
        self.least = threshold - 3.5 * error

    def join_equal(self, keys, following):
        """Join the near-duplicates among texts with equal keys of a band.

        In a bucket each text meets its next BUCKET_CAP neighbours, not all others: a million
        texts alike are 16 million pairs then, not half a trillion. Neighbours are, where there
        are such, those that agree in the following band, too.
        """
        keys = keys & ~_LOW_BITS | following >> np.uint64(40)
        order = np.argsort(keys, kind="stable")
        keys = keys[order] & ~_LOW_BITS
        here = np.arange(len(keys))
        for distance in range(1, BUCKET_CAP + 1):
            here = here[here + distance < len(keys)]
            here = here[keys[here + distance] == keys[here]]
            for start in range(0, len(here), PAIRS):
                some = here[start:start + PAIRS]
                self._join(order[some], order[some + distance])
            while not np.array_equal(above := self.roots[self.roots], self.roots):
                self.roots = above

    def _join(self, left, right):
        for test in (self._are_apart, self._look_near, self._are_near):
            passed = test(left, right)
            left, right = left[passed], right[passed]
            if not len(left):
                return
        for i, j in zip(left.tolist(), right.tolist()):
            a, b = self._root(i), self._root(j)
            self.roots[max(a, b)] = min(a, b)

    def _root(self, i):
        while self.roots[i] != i:
            self.roots[i] = i = self.roots[self.roots[i]]
        return i

    def _are_apart(self, left, right):
        return self.roots[left] != self.roots[right]

    def _look_near(self, left, right):
        estimates = estimate_jaccard(self.signatures[left], self.signatures[right])
        return estimates >= np.minimum(self.least[left], self.least[right])

    def _are_near(self, left, right):
        """Hold the exact Jaccard index of pairs against the threshold, all pairs in one sort."""
        half = len(left) // 2
        if self.grams[left].sum() + self.grams[right].sum() > 8 * BATCH:
            if not half:
                index = jaccard(self.texts[left[0]], self.texts[right[0]])
                return np.array([index >= self.threshold])
            return np.concatenate((self._are_near(left[:half], right[:half]),
                                   self._are_near(left[half:], right[half:])))
        merged = np.sort(np.concatenate((self._tagged_grams(left), self._tagged_grams(right))))
        pairs = (merged & np.uint64(PAIRS - 1)).astype(np.int64)
        shared = np.bincount(pairs[1:][merged[1:] == merged[:-1]], minlength=len(left))
        return shared >= self.threshold * (np.bincount(pairs, minlength=len(left)) - shared)

    def _tagged_grams(self, texts):
        """Return the gram sets of texts, the low bits of a hash replaced by the text's place."""
        hashes, lengths = _hash_pieces([self.texts[n].ljust(GRAM, "\0") for n in texts.tolist()])
        tags = np.repeat(np.arange(len(texts), dtype=np.uint64), lengths)
        tagged = np.sort((hashes & ~np.uint64(PAIRS - 1) | tags)[hashes != _OUTSIDE])
        return tagged[np.append(True, tagged[1:] != tagged[:-1])]


# Boilerplate and repeated passages ---------------------------------------------------------------

def boilerplate_lines(texts, documents, least_bytes=24):
    """Return the set of lines that are among the first or last three of at least so many texts.

    Menus, notices, footers. Lines shorter than `least_bytes` of UTF-8 do not count, nor does a
    line that is a whole text.
    """
    counts = collections.Counter(line for text in texts for line in set(_edge_lines(text)))
    return {line for line, count in counts.items()
            if count >= documents and len(line.encode()) >= least_bytes}


def _edge_lines(text, count=3):
    head = [line for line in text[:1000].split("\n") if line.strip()]
    tail = [line for line in text[-1000:].split("\n") if line.strip()]
    return head[:count] + tail[-count:] if len(head) > 1 else []


def strip_lines(text, lines):
    """Take blank lines, and those in the set `lines`, off both ends of a text."""
    rows = text.split("\n")
    kept = [n for n, row in enumerate(rows) if row.strip() and row not in lines]
    return "\n".join(rows[kept[0]:kept[-1] + 1]) if kept else ""


def repeated_passages(texts, passage_bytes=300):
    """Return for each text the (start, end) spans of characters that an earlier text has as well.

    Finds runs of at least `passage_bytes` bytes of UTF-8 that two texts share. Bytes hold as much
    meaning in Chinese as in English; Lee et al. 2021 take 50 tokens, about 200 bytes, but stories
    of one grammar share that much by nature. Windows of bytes are hashed, and of any `width`
    neighbours the smallest hash is a fingerprint (winnowing, Schleimer et al. 2003): few are
    kept, and no such run is without one. Where two texts share a fingerprint, their equal bytes
    around it are found. Of many copies only the first and the latest are compared with a new one:
    a passage just too short, which chance lengthens in another copy, is missed. Spans are pulled
    in to whole words.
    """
    window = 1 << int(math.log2(passage_bytes * 2 // 3))
    width = 1 << int(math.log2(passage_bytes - window + 1))  # so window + width - 1 is enough
    spans = [[] for _ in texts]
    data = functools.lru_cache(64)(lambda i: np.frombuffer(texts[i].encode(), np.uint8))
    for text, place, other, its_place in _matches(*_fingerprints(texts, window, width)):
        if not spans[text] or place >= spans[text][-1][1]:
            start, end = _extend(data(text), place, data(other), its_place)
            if end - start >= passage_bytes:
                before = spans[text][-1][1] if spans[text] else 0
                spans[text].append((max(start, before), end))
    return [_whole_words(text, found) if found else [] for text, found in zip(texts, spans)]


def _fingerprints(texts, window, width):
    """Return (keys, numbers of texts, places in bytes) of all fingerprints, each (n,)."""
    found = [np.empty((3, 0), np.uint64)]
    encoded = ((number, text.encode()) for number, text in enumerate(texts))
    for numbers, batch in _batches(encoded, 8 * BATCH):
        data = np.frombuffer(b"".join(batch), np.uint8)
        starts = np.cumsum([0, *map(len, batch)])
        for begin in range(0, len(data), BATCH):
            keys, at = _winnow(data[begin:begin + BATCH + window + width - 2], window, width)
            at = at + begin
            text = np.searchsorted(starts, at, side="right") - 1
            inside = at + window <= starts[text + 1]
            rows = keys, np.array(numbers)[text], at - starts[text]
            found.append(np.stack([row[inside].astype(np.uint64) for row in rows]))
    keys, numbers, places = np.concatenate(found, axis=1)
    return keys, numbers.astype(np.int64), places.astype(np.int64)


def _winnow(data, window, width):
    """Return (hashes, places) of the windows that are smallest among `width` neighbours."""
    hashes, span = _BYTE_HASHES[data], 1
    while span < window:  # the hash of 2n bytes from those of n and n
        hashes = hashes[:-span] * _FACTORS[span % len(_FACTORS)] + hashes[span:]
        span *= 2
    ranks = (hashes >> np.uint64(32)).astype(np.uint32)
    if len(ranks) < width:
        return hashes[:0], np.empty(0, np.int64)
    edge = np.zeros(width - 1, np.uint32)
    least = np.concatenate((edge, _slide(np.minimum, ranks, width), edge))
    at = np.flatnonzero(ranks == _slide(np.maximum, least, width))
    keys = hashes[at]
    fresh = np.ones(len(at), bool)  # of a long run of one pattern, the first only
    fresh[1:] = (keys[1:] != keys[:-1]) | (np.diff(at) >= width)
    return keys[fresh], at[fresh]


def _slide(extreme, values, width):
    """Apply np.minimum or np.maximum to each window of `width` values, a power of two."""
    span = 1
    while span < width:
        values = extreme(values[:-span], values[span:])
        span *= 2
    return values


def _matches(keys, texts, places):
    """Yield (text, place, earlier text, its place) of equal keys, in the order of the texts.

    Each occurrence is matched with the first of all and with the one just before it.
    """
    order = np.argsort(keys, kind="stable")
    keys, texts, places = keys[order], texts[order], places[order]
    here = np.arange(len(keys))
    fresh = np.ones(len(keys), bool)
    fresh[1:] = keys[1:] != keys[:-1]
    first = np.maximum.accumulate(np.where(fresh, here, 0))
    other = np.concatenate((first, here - ~fresh))
    here = np.concatenate((here, here))
    here, other = here[texts[here] != texts[other]], other[texts[here] != texts[other]]
    order = np.lexsort((places[here], texts[here]))
    here, other = here[order], other[order]
    columns = texts[here], places[here], texts[other], places[other]
    return zip(*(column.tolist() for column in columns))


def _extend(mine, i, other, j):
    """Return the (start, end) in `mine` of the equal bytes around mine[i] and other[j]."""
    return i - _common(mine[:i][::-1], other[:j][::-1]), i + _common(mine[i:], other[j:])


def _common(left, right):
    """Return how many values at their beginnings two arrays have in common."""
    length = min(len(left), len(right))
    for start in range(0, length, 4096):
        end = min(start + 4096, length)
        differ = left[start:end] != right[start:end]
        if differ.any():
            return start + int(differ.argmax())
    return length


def _whole_words(text, spans):
    """Turn spans of bytes into spans of characters that cut no character and no word."""
    begins = np.frombuffer(text.encode() + b" ", np.uint8) & 0xC0 != 0x80  # is a first byte
    number = np.cumsum(begins, dtype=np.int32) - 1  # of the character that a byte belongs to
    pulled = []
    for start, end in spans:
        left, right = int(number[start]) + (not begins[start]), int(number[end])
        while left < right and left and _INSIDE_WORD.match(text, left - 1):
            left += 1
        while left < right and _INSIDE_WORD.match(text, right - 1):
            right -= 1
        pulled += [(left, right)] if left < right else []
    return pulled


def cut(text, spans):
    """Return the text without the spans, normalised.

    >>> cut("It rained. All rights reserved. It stopped.", [(11, 32)])
    'It rained. It stopped.'
    """
    ends = [0, *(end for _, end in spans)]
    starts = [*(start for start, _ in spans), len(text)]
    kept = [text[end:start].strip(" ") for end, start in zip(ends, starts)]
    return normalise(" ".join(part for part in kept if part))


# The pipeline ------------------------------------------------------------------------------------

def _flag(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """What to remove and how much to hold out; 0 turns a stage off."""

    held_out: float = _flag(0.02, "share of each source's documents that is never trained on")
    quality: bool = _flag(True, "apply the quality rules")
    boilerplate: int = _flag(5, "documents that share a first or last line until it is cut")
    threshold: float = _flag(0.8, "Jaccard index from which documents are near-duplicates")
    passage_bytes: int = _flag(300, "length from which a repeated passage is cut out")
    remix: float = _flag(1.0, "source weights in the report: 1 by size, 0 all alike")

    def __post_init__(self):
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}: give a share from 0 to below 1")
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold is {self.threshold}: give a Jaccard index from 0 to 1")
        if self.passage_bytes and self.passage_bytes < 32:
            raise ValueError(f"passage_bytes is {self.passage_bytes}: give at least 32, or 0")
        if self.boilerplate < 0 or self.boilerplate == 1:
            raise ValueError(f"boilerplate is {self.boilerplate}: give at least 2, or 0")
        if not 0 <= self.remix <= 1:
            raise ValueError(f"remix is {self.remix}: give an exponent from 0 to 1")


class Ledger:
    """What went in, what was removed and why, and what came out."""

    def __init__(self):
        self.totals, self.removed, self.cut = {}, {}, {}

    def count(self, name, document):
        """Add a document to one of the totals."""
        self._add(self.totals, name, _size(document["text"]))

    def remove(self, reason, document):
        """Count a document that goes, and show the first ones."""
        self._add(self.removed, reason, _size(document["text"]), document["text"])

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

    Kept documents are in the order they came in, each with a "split". A story whose text was
    changed loses its "log2_probability", which no longer describes it. The report is a dict ready
    for JSON. The documents given are not changed. Raises ValueError for a document without text
    or source, and when nothing is left.
    """
    config = config or CurateConfig()
    ledger = Ledger()
    kept = _without_copies(_normalised(documents, ledger), ledger)
    given = {id(document) for document in kept if "split" in document}
    if config.boilerplate:
        _strip_boilerplate([d for d in kept if id(d) not in given], config.boilerplate, ledger)
    if config.quality:
        kept = _of_quality(kept, ledger)
    if config.threshold:
        kept = _without_near_duplicates(kept, config.threshold, ledger)
    _mark_splits(kept, config.held_out)
    if config.passage_bytes:
        kept = _without_passages(kept, given, config.passage_bytes, ledger)
    if not kept:
        reasons = (f"{name} ({entry['documents']})" for name, entry in ledger.removed.items())
        raise ValueError("no document is left; removed: " + (", ".join(reasons) or "none"))
    return kept, _report(kept, ledger, config)


def _normalised(documents, ledger):
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, dict) or not all(isinstance(document.get(key), str)
                                                     for key in ("text", "source")):
            raise ValueError(f'document {number} has no "text" or no "source" that is a string')
        ledger.count("in", document)
        text = normalise(document["text"])
        if not text:
            ledger.remove("empty", document)
            continue
        changed = text != document["text"]
        document = document | {"text": text}
        if changed:
            document.pop("log2_probability", None)
        yield document


def _strip_boilerplate(documents, least, ledger):
    lines = boilerplate_lines((document["text"] for document in documents), least)
    for document in documents if lines else ():
        text = strip_lines(document["text"], lines)
        if text != document["text"]:
            ledger.shorten("boilerplate", document, text, document["text"])


def _of_quality(documents, ledger):
    scripts = [script(document["text"]) for document in documents]
    counts, sizes = collections.Counter(scripts), collections.Counter()
    for document, name in zip(documents, scripts):
        sizes[name] += len(document["text"])
    foreign = {name for name in counts if max(counts[name] / len(documents), sizes[name]
                                              / sum(sizes.values())) < FOREIGN_SHARE}
    kept = []
    for document, name in zip(documents, scripts):
        reason = None
        if "split" not in document:
            reason = "foreign script" if name in foreign else broken_rule(document["text"])
        if reason:
            ledger.remove(reason, document)
        else:
            kept.append(document)
    return kept


def _digest(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _without_copies(documents, ledger):
    """Keep one of each group of copies, in the place of the first: held out, else the tidiest."""
    best = {}
    for document in documents:
        key = _digest(fold(document["text"]) or document["text"])
        rival = best.setdefault(key, document)
        if rival is document:
            continue
        equal = document["text"] == rival["text"]
        if _rank(document, equal) < _rank(rival, equal):
            best[key], document = document, rival
        ledger.remove("copy" if equal else "copy but for case, spacing, punctuation", document)
    return list(best.values())


def _rank(document, texts_are_equal):
    text = "" if texts_are_equal else document["text"]
    untidy = len(re.findall(r"[A-Z\s]", text))  # CAPITALS, s p a c e d; then: punctuation lost
    return document.get("split") != "held_out", "split" not in document, untidy, -len(text)


def _without_near_duplicates(documents, threshold, ledger):
    """Keep of each cluster what was held out if anything, else the member most like the others."""
    # The two halves of one long text share most 5-grams without being copies of each other.
    halves = collections.Counter(d["source"] for d in documents if "split" in d)
    pool = [d for d in documents if "split" not in d or halves[d["source"]] > 2]
    texts = [document["text"] for document in pool]
    signatures = minhash_signatures(texts)
    removed = set()
    for cluster in find_near_duplicates(texts, threshold, signatures):
        sample = signatures[cluster[:64]]
        likest = max(cluster, key=lambda n: np.count_nonzero(sample == signatures[n]))
        best = {n for n in cluster if pool[n].get("split") == "held_out"} or {likest}
        removed.update(id(pool[n]) for n in cluster if n not in best)
    for document in pool:
        if id(document) in removed:
            ledger.remove("near-duplicate", document)
    return [document for document in documents if id(document) not in removed]


def _mark_splits(documents, share):
    """Give each document without a split one, by a hash of its text: stable from run to run."""
    drawn = collections.defaultdict(list)
    for document in documents:
        if "split" not in document:
            draw = int.from_bytes(_digest(document["text"])[:8], "big") / 2**64
            document["split"] = "held_out" if draw < share else "train"
            drawn[document["source"]].append((draw, document))
    for pairs in drawn.values():  # a small source gets one held-out document as well
        if share and len(pairs) > 1 and all(d["split"] == "train" for _, d in pairs):
            min(pairs, key=lambda pair: pair[0])[1]["split"] = "held_out"


def _without_passages(documents, given, passage_bytes, ledger):
    """Cut out what an earlier document has; first come long texts, then what is held out."""
    order = sorted(documents, key=lambda d: (id(d) not in given, d["split"] != "held_out"))
    emptied = set()
    for document, spans in zip(order, repeated_passages([d["text"] for d in order], passage_bytes)):
        # Stories of the grammar share sentences by nature, and their known probability, from
        # which the floor is computed, holds for the whole text only.
        if not spans or id(document) in given or "log2_probability" in document:
            continue
        text = cut(document["text"], spans)
        if len(_UNIT.findall(text[:JUDGED])) < RULES[0].least:
            ledger.remove("repeated passages throughout", document)
            emptied.add(id(document))
        else:
            ledger.shorten("repeated passages", document, text, document["text"][slice(*spans[0])])
    return [document for document in documents if id(document) not in emptied]


# The report --------------------------------------------------------------------------------------

def _report(kept, ledger, config):
    sizes = collections.Counter()
    for document in kept:
        ledger.count("out", document)
        ledger.count(f"out, {document['split']}", document)
        sizes[document["source"]] += _size(document["text"])
    return {"totals": ledger.totals, "removed": ledger.removed, "cut": ledger.cut,
            "bytes by source": dict(sizes), "weights": source_weights(sizes, config.remix),
            "rules": {rule.name: f"{rule.least} to {rule.most} ({rule.source})" for rule in RULES},
            "config": dataclasses.asdict(config)}


def source_weights(sizes, exponent=1.0):
    """Turn {source: bytes} into {source: share}, shares in proportion to bytes ** exponent.

    An exponent below 1 raises the small sources, 0 makes all alike. Training takes the shares as
    its --weights.

    >>> source_weights({"web": 90, "books": 10}, 0.5)
    {'web': 0.75, 'books': 0.25}
    """
    raised = {source: size ** exponent for source, size in sizes.items() if size}
    if not raised:
        raise ValueError("no source has any text to weigh")
    return {source: value / sum(raised.values()) for source, value in raised.items()}


def table(report):
    """Return the report as lines for the screen: in, what went and why, out, with bars by bytes."""
    totals = report["totals"]
    rows = [("in", totals["in"]),
            *((f"- {name}", entry) for name, entry in report["removed"].items()),
            *((f"~ {name}, cut", entry) for name, entry in report["cut"].items()),
            *((name, entry) for name, entry in totals.items() if name.startswith("out"))]
    scale = 20 / max(1, totals["in"]["bytes"])
    return "\n".join(f"{name:<42}{entry['documents']:>10,} documents"
                     f"{entry['bytes'] / 1e6:>9.2f} MB {'#' * round(scale * entry['bytes'])}"
                     for name, entry in rows)


def main(argv=None):
    """Curate a file of JSON lines into another, with curation.json beside it."""
    from nanoseek import cli, corpus
    parser = cli.Parser("nanoseek.curate", "Clean raw documents and hold some of them out.")
    parser.add_argument("input", help="raw documents, JSON lines")
    parser.add_argument("output", help="the file to write, such as clean.jsonl")
    cli.add_flags(parser, CurateConfig)
    args = parser.parse_args(argv)
    config = cli.from_flags(CurateConfig, args)
    output = pathlib.Path(args.output)
    cli.check_output(output, args.input)
    cli.check_output(output.with_name("curation.json"), args.input, output)
    kept, report = curate(corpus.read_documents(args.input), config)
    corpus.write_documents(kept, output)
    part = output.with_name(f".curation.{os.getpid()}.part")
    try:
        part.write_text(json.dumps(report, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        os.replace(part, output.with_name("curation.json"))
    finally:
        part.unlink(missing_ok=True)
    os.utime(output)  # for make: newer than its input, even where nothing changed
    print(table(report))


if __name__ == "__main__":
    from nanoseek import cli
    cli.run(main)
