"""Plant what a crawl brings along and nobody wants to train on, with labels that tell it apart.

    documents, labels = plant_dirt(documents, seed=0, share=0.3)
    labels[0]      # Label(kind='near', original=17, changed=0.04): a near-copy of documents[17]

Here the truth is known, so that the precision and recall of a rule can be counted. The kinds:

    exact, near, format    copies: as they are, with a few words changed, in another format
    passage, boilerplate   a passage or a frame that stands in many documents
    phrases, links, mojibake, base64, keywords, language     junk

The passages, frames and foreign words stand in dirt.json beside this file.
"""

import base64
import dataclasses
import functools
import json
import pathlib
import random
import re
import unicodedata

from nanoseek.corpus.stories import language_of

COPIES, ADDITIONS = ("exact", "near", "format"), ("passage", "boilerplate")
DIRT = (*COPIES, *ADDITIONS, "phrases", "links", "mojibake", "base64", "keywords", "language")
WORD = re.compile(r"([\u3400-\u9fff]|[^\W\u3400-\u9fff]+)")  # a Chinese character, or a word


@dataclasses.dataclass(frozen=True)
class Label:
    """What was done to a document of a dirty corpus."""
    kind: str                    # "clean", or one of DIRT
    original: int | None = None  # a copy: the position of what it was copied from
    changed: float = 0.0         # kind "near": the share of words, or Chinese characters, changed


def plant_dirt(documents, seed, share=0.3):
    """Return (documents, labels): the documents with dirt among them, a Label for each.

    `share` of the documents returned are dirty, the kinds of DIRT in equal parts. Copies and junk
    are new documents; "passage" and "boilerplate" are additions to given ones, which are then
    not copied elsewhere. Raises ValueError when the share is not in [0, 1) or no document is given.
    """
    if not documents or not 0 <= share < 1:
        raise ValueError(f"give a document, and a share of dirt from 0 to below 1, not {share}")
    rng = random.Random(seed)
    added = [kind for kind in DIRT if kind not in ADDITIONS]
    # n of each kind, so that kinds · n = share · (given + added kinds · n).
    each = round(share * len(documents) / (len(DIRT) - share * len(added)))
    chosen = rng.sample(range(len(documents)), min(2 * each, len(documents) - 1))
    altered = dict(zip(chosen, ADDITIONS * each))
    sources = [n for n in range(len(documents)) if n not in altered]
    # What is to be returned: (whether it is a given document, kind, number of the document used).
    planted = [(True, altered.get(n, "clean"), n) for n in range(len(documents))]
    planted += [(False, kind, rng.choice(sources)) for kind in added for _ in range(each)]
    rng.shuffle(planted)
    position = {n: place for place, (given, _, n) in enumerate(planted) if given}
    made, labels = [], []
    for _, kind, n in planted:
        document, changed = _dirty(documents[n], kind, documents, rng)
        made.append(document)
        labels.append(Label(kind, position[n] if kind in COPIES else None, changed))
    return made, labels


def _dirty(document, kind, documents, rng):
    """Return (a new document, the share of words changed) for one kind of dirt."""
    text, changed = document["text"], 0.0
    if kind in ("clean", "exact"):
        return dict(document), changed
    if kind == "near":
        text, changed = _change_words(text, documents, rng)
    else:
        text = _reformat(text, rng) if kind == "format" else _made_of(text, kind, rng)
    return {"text": text, "source": document["source"]}, changed


@functools.cache
def _samples():
    return json.loads(pathlib.Path(__file__).with_name("dirt.json").read_text("utf-8"))


def _language(text):
    return language_of(text[:500], share=0.2)  # a few characters make no Chinese text


def _change_words(text, documents, rng):
    """Replace 0.5% to 10% of the words by words of another text in the same language."""
    drawn = [rng.choice(documents)["text"] for _ in range(8)]
    other = next((other for other in drawn if _language(other) == _language(text)), text)
    pieces, replacing = WORD.split(text), WORD.findall(other) or ["so"]
    count = len(pieces) // 2  # the odd pieces are the words
    changes = min(count, max(1, round(rng.uniform(0.005, 0.1) * count)))
    for n in rng.sample(range(count), changes):
        pieces[2 * n + 1] = rng.choice(replacing)
    return "".join(pieces), changes / max(1, count)


def _reformat(text, rng):
    """Change case, spacing, punctuation or width, at least one of them."""
    ways = [lambda t: t.upper(), lambda t: t.replace(" ", "  ").replace("。", "。\n"),
            lambda t: re.sub(r"[,;:，；：]", "", t), lambda t: re.sub(r"[.!。！]", " !!", t),
            lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),
            lambda t: unicodedata.normalize("NFKC", t)]
    rng.shuffle(ways)
    changed = text
    for way in ways[:rng.choice((1, 2))]:
        changed = way(changed)
    shouted = "\n ".join(text) if _language(text) == "zh" else text.upper()
    return changed if changed != text else shouted


def _made_of(text, kind, rng):
    """Return a text with an addition, or junk that is mostly made of its words."""
    language, words = _language(text), WORD.findall(text) or ["so"]
    space, comma, width = ("", "，", 3) if language == "zh" else (" ", ", ", 1)
    if kind == "passage":
        passage = rng.choice(_samples()["passages"][language]) + space
        at = rng.choice([m.end() for m in re.finditer(r"[.!?] |[。！？\n]", text)] or [len(text)])
        return f"{text[:at]}{passage}{text[at:]}"
    if kind == "boilerplate":
        header, footer = rng.choice(_samples()["frames"][language])
        return f"{header}\n\n{text}\n\n{footer}"
    if kind == "phrases":
        start = rng.randrange(len(words))
        phrase = words[start:start + rng.randrange(3, 8)] + [""]
        return space.join(phrase * rng.randrange(20, 60))
    if kind == "links":
        return "\n".join(f"{rng.choice(words)} http://www.page{rng.randrange(900)}.example/"
                         f"{rng.randrange(10**6)}.html" for _ in range(rng.randrange(10, 40)))
    if kind == "mojibake":  # of English only a space that does not break can be misread
        table = "cp1252" if language == "en" else rng.choice(("latin-1", "cp1252", "gbk"))
        text = text.replace(" ", "\u00a0") if language == "en" else text
        return text.encode().decode(table, "replace")
    if kind == "base64":
        return base64.encodebytes(rng.randbytes(rng.randrange(200, 900))).decode().rstrip("\n")
    if kind == "keywords":
        words = [word for word in words if len(word) > 3 or language_of(word) == "zh"] or ["so"]
        phrases = ["".join(rng.choices(words, k=width)) for _ in range(rng.randrange(5, 10))]
        return comma.join(rng.choices(phrases, k=180 // (width + 1)))
    words = rng.choice(_samples()["foreign"]).split()
    return " ".join(rng.choices(words, k=rng.randrange(30, 80))) + "."
