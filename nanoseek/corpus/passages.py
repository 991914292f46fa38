"""Find passages that an earlier document has as well, such as a licence or a notice.

    repeated_passages(["… a long notice …", "… a long notice …"], 64) → [[], [(start, end)]]

Of neighbouring windows of bytes, keep the one of smallest hash: the same in each copy (winnowing,
Schleimer et al. 2003). Where two texts kept the same hash, compare them to both sides. Lee et al.
2021, section 4.1, take passages of about 200 bytes, but stories of one grammar share that much."""

import re

import numpy as np

# Words without spaces between: Thai, Lao, Myanmar, Khmer, Tai, Balinese, kana, Han, Yi, Javanese.
UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u1b00-\u1b7f"
            "\u3040-\u30ff\u3400-\u4dbf\u4e00-\ua4cf\ua980-\ua9ff\uaa60-\uaa7f\uf900-\ufaff"
            "\U00020000-\U0003ffff")
# Full-width characters: those of Chinese, Japanese and Korean, with their punctuation.
WIDE = re.compile("[\u3000-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]")
PAIR = re.compile(rf"[^\W_{UNSPACED}]{{2}}")  # two characters of one word
CHUNK = 1 << 17  # bytes hashed at once: the arrays stay in the cache; chunks overlap by a passage
BYTE_HASHES = np.random.default_rng(8).integers(2**63, size=256, dtype=np.uint64)
FACTORS = np.random.default_rng(5).integers(2**63, size=8, dtype=np.uint64) * 2 + 1  # odd


def letters(text):
    """Return the length of a text in letters; a full-width character says as much as three. So a
    text is about as long in each language, while in UTF-8 a Hindi letter has three bytes."""
    return len(text) + 2 * len(WIDE.findall(text))


def repeated_passages(texts, least=300, originals=None):
    """Return for each text the (start, end), in characters, of what an earlier text has as well, if
    of `least` letters. originals: only so many texts count as earlier (all, unless given)."""
    window = 1 << (least * 2 // 3).bit_length() - 1  # in bytes: no text has fewer than letters
    width = 1 << (least - window + 1).bit_length() - 1  # a passage holds so many windows
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
                start = place - common(data[text][:place][::-1], data[other][:its_place][::-1])
                end = place + common(data[text][place:], data[other][its_place:])
                if letters(data[text][start:end].tobytes().decode("utf-8", "ignore")) >= least:
                    spans[text].append((max(start, done), end))
    return [[*whole_words(text, found)] if found else [] for text, found in zip(texts, spans)]


def fingerprints(data, bounds, window, width):
    """Yield (hash, number of the text, place in its bytes) of the windows kept, in order."""
    for begin in range(0, len(data) - window - width + 2, CHUNK):
        hashes = window_hashes(data[begin:begin + CHUNK + window + width - 2], window)
        ranks = (hashes >> np.uint64(32)).astype(np.uint32)
        # Keep a window where it is the smallest of any `width` neighbours that it belongs to.
        smallest = np.pad(double(lambda a, b, _: np.minimum(a, b), ranks, width), width - 1)
        places = np.flatnonzero(ranks == double(lambda a, b, _: np.maximum(a, b), smallest, width))
        keys, places = hashes[places], places + begin
        # Drop those that reach into the next text, and of a long run of one pattern all but one.
        texts = np.searchsorted(bounds, places, side="right") - 1
        kept = places + window <= bounds[texts + 1]
        kept &= (np.diff(keys, prepend=keys[:1]) != 0) | (np.diff(places, prepend=-width) >= width)
        yield from zip(*(row[kept].tolist() for row in (keys, texts, places - bounds[texts])))


def quotations(texts, quotes, window=32):
    """Yield (number of a text, quote) where one of the quotes, of `window` bytes or more, begins in
    a text, and goes on to its end: in that text, or beyond it."""
    begins, data = {}, "".join(texts).encode()  # begins: hash of the first bytes → quotes
    for quote in quotes:
        key = int(window_hashes(quote.encode()[:window], window)[0])
        begins.setdefault(key, []).append(quote)
    bounds = np.cumsum([0, *(len(text.encode()) for text in texts)])
    for begin in range(0, len(data) - window + 1, CHUNK):
        hashes = window_hashes(data[begin:begin + CHUNK + window - 1], window)
        places = np.flatnonzero(np.isin(hashes, np.array([*begins], np.uint64)))
        numbers = np.searchsorted(bounds, places + begin, side="right") - 1
        for place, number in zip(places.tolist(), numbers.tolist()):
            for quote in begins[int(hashes[place])]:
                if data.startswith(quote.encode(), begin + place):
                    yield number, quote


def window_hashes(data, window):
    """Return a hash of each window of bytes, from the hashes of its two halves."""
    values = BYTE_HASHES[np.frombuffer(data, np.uint8)]
    return double(lambda a, b, span: a * FACTORS[span % 8] + b, values, window)


def double(combine, values, width):
    """Combine each `width` neighbours, a power of two, from what 1, 2, 4, … neighbours gave."""
    for span in (1 << power for power in range(width.bit_length() - 1)):
        values = combine(values[:-span], values[span:], span)
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
    count = np.cumsum(begins, dtype=np.int32)  # of the characters that have begun
    for start, end in spans:
        left, right = int(count[start] - begins[start]), int(count[end]) - 1
        left = next((n for n in range(left, right) if not (n and PAIR.match(text, n - 1))), right)
        right = next((n for n in range(right, left, -1) if not PAIR.match(text, n - 1)), left)
        if left < right:
            yield left, right
