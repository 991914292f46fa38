r"""Clean one text at a time, whatever else is in the corpus: its spelling, quality, boilerplate.

    normalise("Ｔｏｍ  \r\n") → "Tom"          broken_rule("Click here.") → "too few words"

The rules of quality are those of Gopher (Rae et al. 2021, appendix A.1.1) and some of our own. Most
limits are wider than Gopher's: documents here are shorter, and Python's documentation holds code.
Glossary: *unit* a word, or one character of a script written without spaces, as Chinese is;
*mojibake* text that was read with the wrong character table."""

import collections
import itertools
import math
import operator
import re
import unicodedata

from nanoseek.corpus.passages import UNSPACED, letters

# What NFKC changes safely. The rest of it is unsafe: 10² would become 102, ½ would become 1⁄2,
# and the full-width punctuation of proper Chinese (，！？) would become ASCII. Control characters
# above 0x7F are those that Windows-1252 has in their places: quotation marks, dashes, €.
PLAIN = {
    **{code: bytes([code]).decode("cp1252", "replace") for code in range(0x80, 0xA0)},
    **{code: code - 0xFEE0 for a, b in ("０９", "ＡＺ", "ａｚ") for code in range(ord(a), ord(b) + 1)},
    **dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"))),
    **dict.fromkeys([0xA0, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000], " "),
    **dict.fromkeys([0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029], "\n"),
    **dict.fromkeys([*range(9), *range(0x0E, 0x20), 0x7F, 0xAD, 0x200B, 0x2060, 0xFEFF, 0xFFFE,
                     0xFFFF]),
}

# Characters of Unicode's categories P and Z (punctuation and spaces beyond ASCII), and M (marks:
# accents and vowel signs that are characters of their own).
BEYOND = [(unicodedata.category(c)[0], c) for c in map(chr, range(0x80, 0x10000))]
PUNCTUATION = "".join(c for category, c in BEYOND if category in "PZ")
MARK = "[" + "".join(c for category, c in BEYOND if category == "M") + "]"

# What copies may differ in: spaces and punctuation, but for signs (+ < $) and / * % & # @, for what
# parts two numbers, and for a point, comma, colon or hyphen inside or before a number.
INSIDE = re.compile(r"[.,:-](?:(?!\d)|(?<=[^\W\d].))")
OUTSIDE = re.compile(r"[\s_!?;'\"()\[\]{}" + PUNCTUATION + "]+")
BETWEEN_NUMBERS = re.compile(rf"(?<=\d){OUTSIDE.pattern}(?=\d)")


def normalise(text):
    r"""Return the one spelling of a text: NFC, "\n" line ends, no control characters.

    Full-width letters and digits become ASCII, odd spaces plain ones, ligatures letters, half of a
    surrogate pair "?". Invisible characters, spaces at line ends and second blank lines go."""
    text = text.encode("utf-8", "replace").decode()  # half of a surrogate pair has no UTF-8 form
    text = text.replace("\r\n", "\n").translate(PLAIN)
    text = re.sub(f"({MARK}{{30}}){MARK}+", r"\1", text)  # more than any script has: n² steps
    lines = unicodedata.normalize("NFC", text).rstrip().split("\n")
    text = "\n".join(line.rstrip(" \t") for line in lines)
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def fold(text):
    """Return what copies share: a text without spaces and punctuation, in lower case and one width:
    fold("Hello, World!") == fold("hello world"), but fold("x+1.5") != fold("x-15")."""
    # This block of Unicode has the characters in another width than usual.
    text = re.sub("[\uff00-\uffef]+", lambda m: unicodedata.normalize("NFKC", m[0]), text)
    return OUTSIDE.sub("", BETWEEN_NUMBERS.sub("\0", INSIDE.sub("", text.casefold())))


LIMITS = {  # rule: least, most, source with its own limit
    "too few words": (5, math.inf, "Gopher: 50"),
    "words too long": (0, 26, "Gopher: 10, a plain mean"),
    "mostly numbers": (0, 0.75, "Gopher: 0.2 of words without a letter"),
    "symbols": (0, 0.1, "Gopher: 0.1 to a word"),
    "mojibake": (0, 0.05, "our own"),
    "unprintable": (0, 0.02, "our own"),
    "links": (0, 0.3, "our own"),
    "repeated phrases": (0, 0.8, "Gopher: 0.15 of characters, five words"),
    "few different words": (0.26, math.inf, "our own"),
    "lines too short": (1.1, math.inf, "our own"),
}
JUDGED = 100_000      # characters of a text that the rules look at
FOREIGN_SHARE = 0.05  # of documents and of text: what is in a script rarer than this is foreign

# Lines that many texts begin or end with by nature: of code, and questions.
OWN_LINE = re.compile(r"\s*(import|from|#include|package|require|use|using)\b|.*[?？؟:;{]$")
MARK_IN_WORD = re.compile(rf"{MARK}(?<![{UNSPACED}].)")
# A word may have an apostrophe or a + inside: "don't", and Base64, whose words are longest.
UNIT = re.compile(rf"[{UNSPACED}]{MARK}*|[^\W_{UNSPACED}]+(?:['’+][^\W_{UNSPACED}]+)*")
HASHTAG = re.compile(r"#\w(?<=\S #.)")  # not a # that begins a comment or a heading
LINK = re.compile(r"(?:https?://|www\.)\S+")
UNPRINTABLE = re.compile("[\x80-\x9f\ue000-\uf8ff\ufffd]")
# UTF-8 that was read as Latin-1 or Windows-1252: a first byte, and the one or two that it asks for.
NEXT = "[\u0080-\u00bf\ufffd" + bytes(range(0x80, 0xA0)).decode("cp1252", "ignore") + "]"
MISREAD = re.compile(f"[\u00c2-\u00ef](?:(?<=\u00c2) |{NEXT}(?:(?<=[\u00c2-\u00df].)|{NEXT}))")


def broken_rule(text):
    """Return the name of the first rule that a text breaks, or None."""
    for rule, value in measures(text[:JUDGED]):
        if not LIMITS[rule][0] <= value <= LIMITS[rule][1]:
            return rule


def measures(text):
    """Yield (rule, what it measures of the text), rules in the order of LIMITS."""
    # Marks tell units of one letter apart; to Python they are no part of a word, and would cut it.
    units = UNIT.findall(text if text.isascii() else MARK_IN_WORD.sub("", text))
    lines = [line for line in map(str.strip, text.split("\n")) if len(line) > 3]
    sizes = [*map(len, units)]
    # Some languages say in a word what others need a sentence for: six letters count as a word.
    yield "too few words", max(len(units), sum(sizes) / 6)
    # How long the word is that a letter stands in, on average.
    yield "words too long", sum(map(operator.mul, sizes, sizes)) / sum(sizes)
    yield "mostly numbers", sum(map(str.isdigit, units)) / len(units)
    # Four dots lead to the number of a page; three are an ellipsis, common in halting speech.
    yield "symbols", (len(HASHTAG.findall(text)) + text.count("....")) / len(units)
    yield "mojibake", mojibake(text, lines)
    yield "unprintable", share(UNPRINTABLE, text)
    yield "links", share(LINK, text)
    # A text with few phrases or words repeats them by chance: the rule says nothing of it. Songs,
    # proofs and dialogue repeat by nature: each phrase may be there five times.
    runs = list(zip(*(units[start:] for start in range(5))))
    yield "repeated phrases", 1 - len(set(runs)) / len(runs) if len(runs) > 15 else 0
    # Keywords are few words in ever new order; a refrain repeats its words in the same order.
    prose = len(units) > max(49, 20 * len(lines))  # verse and formulas are in short lines
    yield "few different words", len(set(units[:200])) / len(set(runs[:200])) if prose else 1
    yield "lines too short", len(units) / len(lines) if len(lines) > 9 else math.inf


def share(pattern, text):
    """Return the share of the characters that lie in matches of a pattern."""
    return sum(map(len, pattern.findall(text))) / len(text)


def mojibake(text, lines):
    """Return the share of characters that are UTF-8 read as GBK, Latin-1 or Windows-1252."""
    for line in lines[:5]:
        foreign = re.sub(r"[\x00-\x7f]", "", line)
        try:  # real Chinese, written as GBK, is all but never valid UTF-8; misread UTF-8 always is
            if len(foreign) >= 6 and foreign.encode("gbk")[:-3].decode("utf-8"):
                return len(foreign) / len(line)
        except UnicodeError:
            continue
    return share(MISREAD, text)


def script(text):
    """Return the script of most of a hundred letters, as Unicode names it ("LATIN"), or ""."""
    names = (unicodedata.name(c, "").split(" ")[0] for c in text[:400:4] if c.isalpha())
    counts = collections.Counter(names)
    counts["CJK"] += counts.pop("HIRAGANA", 0) + counts.pop("KATAKANA", 0)  # Japanese has all three
    return max(counts, key=counts.get) if any(counts.values()) else ""


def faults(texts):
    """Return for each text the rule that it breaks, "foreign script" (a rare one), or None."""
    scripts, sizes = [script(text) for text in texts], collections.Counter()
    for name, text in zip(scripts, texts):
        sizes[name] += len(text)
    foreign = {name for name, size in sizes.items() if FOREIGN_SHARE > max(
        scripts.count(name) / len(texts), size / sizes.total())}
    return ["foreign script" if name in foreign else broken_rule(text)
            for name, text in zip(scripts, texts)]


def boilerplate_lines(texts, least):
    """Return the set of lines that frame many of the texts of a source.

    Two of the first three and last three lines do so if `least` texts, and one of 500, have both. A
    line without such company may be the text's own, as "And they lived happily ever after." is; so
    four times `least` texts, and one of five, must have it."""
    counts = collections.Counter()
    for text in texts:
        lines = [line for line in text.split("\n") if line.strip()]
        ends = min(3, len(lines) // 2)  # the only paragraph is neither
        found = {line for line in lines[:ends] + lines[len(lines) - ends:]
                 if letters(line) >= 24 and not OWN_LINE.match(line)}
        counts.update(itertools.combinations_with_replacement(sorted(found), 2))
    together, alone = max(least, len(texts) / 500), max(4 * least, len(texts) / 5)
    return {line for (one, other), number in counts.items() for line in (one, other)
            if number >= (alone if one == other else together)}


def strip_lines(text, lines):
    """Take blank lines, and those in the set `lines`, off both ends of a text."""
    rows = text.split("\n")
    kept = [n for n, row in enumerate(rows) if row.strip() and row not in lines]
    return "\n".join(rows[kept[0]:kept[-1] + 1]) if kept else ""


def cut(text, spans):
    """Return the text without the spans, (start, end) in characters, normalised."""
    places = [0, *(place for span in spans for place in span), len(text)]
    kept = [text[start:end].strip(" ") for start, end in zip(places[::2], places[1::2])]
    return normalise(" ".join(part for part in kept if part))
