"""Find passages that an earlier document has as well, after Lee et al. 2021, section 4.1.

    repeated_passages(["… a long notice …", "… a long notice …"], 64) → [[], [(start, end)]]

Near-duplicates are alike as a whole; these documents share a part, such as a licence or a notice.
    hash      every window of `window` bytes, from the hashes of its two halves
    winnow    of any `width` neighbouring windows keep the one of smallest hash: few are kept, but
              of window + width - 1 bytes one, the same in each copy (Schleimer et al. 2003)
    extend    where two texts have kept the same hash, as far left and right as they are equal
"""

import math
import re

import numpy as np

# Scripts written without spaces between words: Thai, Lao, Myanmar, Khmer, Tai, Balinese, kana, Han,
# Yi, Javanese.
UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
            "\u3040-\u30ff\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
            "\U00020000-\U0003ffff")
INSIDE_WORD = re.compile(rf"[^\W_{UNSPACED}]{{2}}")
CHUNK = 1 << 17  # bytes hashed at once: the arrays stay in the processor's cache
BYTE_HASHES = np.random.default_rng(8).integers(2**63, size=256, dtype=np.uint64)
FACTORS = np.random.default_rng(5).integers(2**63, size=8, dtype=np.uint64) * 2 + 1  # odd


def repeated_passages(texts, passage_bytes=300, originals=None):
    """Return for each text the (start, end) of what an earlier text has as well, in characters.

    originals: only the first so many texts count as earlier (all, unless given).

    Lee et al. take 50 tokens, about 200 bytes of UTF-8, but stories of one grammar share that much.
    Of many copies, one meets the first and the latest before it.
    """
    window = 1 << int(math.log2(passage_bytes * 2 // 3))
    width = 1 << int(math.log2(passage_bytes - window + 1))  # window + width - 1 <= passage_bytes
    data = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    bounds = np.cumsum([0, *map(len, data)])  # where each text begins when all are laid end to end
    copies, spans = {}, [[] for _ in texts]  # copies: hash → (first, latest) (text, place)
    for key, text, place in fingerprints("".join(texts).encode(), bounds, window, width):
        earlier = copies.get(key, ())
        if originals is None or text < originals:
            copies[key] = (*earlier[:1], (text, place))
        for other, its_place in earlier:
            done = spans[text][-1][1] if spans[text] else 0
            if other != text and place >= done:
                mine, its = data[text], data[other]
                start = place - common(mine[:place][::-1], its[:its_place][::-1])
                end = place + common(mine[place:], its[its_place:])
                spans[text] += [(max(start, done), end)] if end - start >= passage_bytes else []
    return [[*whole_words(text, found)] if found else [] for text, found in zip(texts, spans)]


def fingerprints(data, bounds, window, width):
    """Yield (hash, number of the text, place in its bytes) of the windows kept, in order."""
    # Chunks overlap, so that any `width` neighbouring windows lie in one of them.
    for begin in range(0, len(data) - window - width + 2, CHUNK):
        chunk = np.frombuffer(data[begin:begin + CHUNK + window + width - 2], np.uint8)
        hashes = double(lambda a, b, span: a * FACTORS[span % 8] + b, BYTE_HASHES[chunk], window)
        ranks = (hashes >> np.uint64(32)).astype(np.uint32)
        # Keep a window where it is the smallest of any `width` neighbours that it belongs to.
        smallest = np.pad(double(lambda a, b, _: np.minimum(a, b), ranks, width), width - 1)
        places = np.flatnonzero(ranks == double(lambda a, b, _: np.maximum(a, b), smallest, width))
        keys, places = hashes[places], places + begin
        # Drop those that reach into the next text, and of a long run of one pattern all but one.
        texts = np.searchsorted(bounds, places, side="right") - 1
        kept = places + window <= bounds[texts + 1]
        kept &= (np.diff(keys, prepend=keys[:1]) != 0) | (np.diff(places, prepend=-width) >= width)
        rows = keys[kept], texts[kept], (places - bounds[texts])[kept]
        yield from zip(*(row.tolist() for row in rows))


def double(combine, values, width):
    """Combine each `width` neighbours, a power of two, from what 1, 2, 4, … neighbours gave."""
    span = 1
    while span < width:
        values = combine(values[:-span], values[span:], span)
        span *= 2
    return values


def common(left, right):
    """Return how many bytes at their beginnings two arrays have in common."""
    length = min(len(left), len(right))
    for start in range(0, length, 4096):
        differ = left[start:length][:4096] != right[start:length][:4096]
        if differ.any():
            return start + int(differ.argmax())
    return length


def whole_words(text, spans):
    """Yield, for spans of bytes, spans of characters that cut no character and no word."""
    begins = np.frombuffer(text.encode() + b" ", np.uint8) & 0xC0 != 0x80  # is a first byte
    number = np.cumsum(begins, dtype=np.int32) - 1  # of the character that a byte belongs to
    for start, end in spans:
        left, right = int(number[start]) + (not begins[start]), int(number[end])
        while left < right and left and INSIDE_WORD.match(text, left - 1):
            left += 1
        while left < right and INSIDE_WORD.match(text, right - 1):
            right -= 1
        if left < right:
            yield left, right
