"""Plant what a crawl brings along and nobody wants to train on, with labels that tell it apart.

    documents, labels = plant_dirt(documents, seed=0, share=0.3)
    labels[0]      # Label(kind='near', original=17, changed=0.04): a near-copy of documents[17]

Here the truth is known: the precision and recall of a rule can be counted. Texts: dirt.json."""

import base64
import collections
import json
import pathlib
import random
import re
import unicodedata

from nanoseek.corpus.stories import language_of

COPIES = ("exact", "near", "format")  # as they are, a few words changed, in another format
ADDITIONS = ("passage", "boilerplate")  # a passage or a frame that stands in many documents
JUNK = ("phrases", "links", "mojibake", "base64", "keywords", "language")
DIRT = COPIES + ADDITIONS + JUNK
WORD = re.compile(r"([\u3400-\u9fff]|[^\W\u3400-\u9fff]+)")  # a Chinese character, or a word

# original: the position of what was copied; changed: of a near-copy, the share of words replaced.
Label = collections.namedtuple("Label", "kind original changed", defaults=(None, 0.0))


def plant_dirt(documents, seed, share=0.3):
    """Return (documents, labels): the documents with dirt among them, a Label for each.

    `share` of them is dirty, in equal parts of each kind. Copies and junk are new documents;
    ADDITIONS are made to given ones, which are then not copied elsewhere."""
    if not documents or not 0 <= share < 1:
        raise ValueError(f"give a document, and a share of dirt from 0 to below 1, not {share}")
    samples = json.loads(pathlib.Path(__file__).with_name("dirt.json").read_text("utf-8"))
    languages = [language_of(d["text"][:500], share=0.2) for d in documents]  # "zh" from a fifth on
    rng, added = random.Random(seed), COPIES + JUNK
    # n of each kind, so that kinds · n = share · (given + added kinds · n).
    each = round(share * len(documents) / (len(DIRT) - share * len(added)))
    chosen = rng.sample(range(len(documents)), min(2 * each, len(documents) - 1))
    altered = dict(zip(chosen, ADDITIONS * each))
    planted = [(altered.get(n, "clean"), n) for n in range(len(documents))]  # n: made from which
    sources = [n for kind, n in planted if kind == "clean"]
    planted += [(kind, rng.choice(sources)) for kind in added for _ in range(each)]
    rng.shuffle(planted)
    position = {n: place for place, (kind, n) in enumerate(planted) if kind == "clean"}
    made, labels = [], []
    for kind, n in planted:
        document, changed = dict(documents[n]), 0.0
        if kind == "near":
            text, changed = _change_words(n, documents, languages, rng)
        elif kind not in ("clean", "exact"):
            text = _spoil(document["text"], kind, languages[n], samples, rng)
        made.append(document if kind in ("clean", "exact") else
                    {"text": text, "source": document["source"]})
        labels.append(Label(kind, position[n] if kind in COPIES else None, changed))
    return made, labels


def _change_words(n, documents, languages, rng):
    """Replace 0.5% to 10% of the words of a text by words of another in the same language."""
    drawn = [rng.randrange(len(documents)) for _ in range(8)]
    other = next((m for m in drawn if languages[m] == languages[n]), n)
    pieces = WORD.split(documents[n]["text"])  # the odd ones are the words
    replacing, count = WORD.findall(documents[other]["text"]) or ["so"], len(pieces) // 2
    changes = min(count, max(1, round(rng.uniform(0.005, 0.1) * count)))
    for place in rng.sample(range(1, len(pieces), 2), changes):
        pieces[place] = rng.choice(replacing)
    return "".join(pieces), changes / max(1, count)


def _reformat(text, language, rng):
    """Change case, spacing, punctuation or width, at least one of them."""
    ways = [str.upper, lambda t: t.replace(" ", "  ").replace("。", "。\n"),
            lambda t: re.sub(r"[,;:，；：]", "", t), lambda t: re.sub(r"[.!。！]", " !!", t),
            lambda t: t.translate({code: code + 0xFEE0 for code in range(ord("!"), ord("~") + 1)}),
            lambda t: unicodedata.normalize("NFKC", t)]
    rng.shuffle(ways)
    changed = ways[0](text) if rng.choice((1, 2)) == 1 else ways[1](ways[0](text))
    shouted = "\n ".join(text) if language == "zh" else text.upper()
    return changed if changed != text else shouted


def _spoil(text, kind, language, samples, rng):
    """Return a text in another format, with an addition, or junk made mostly of its words."""
    words = WORD.findall(text) or ["so"]
    space, comma, width = ("", "，", 3) if language == "zh" else (" ", ", ", 1)
    if kind == "format":
        return _reformat(text, language, rng)
    if kind == "passage":
        passage = rng.choice(samples["passages"][language]) + space
        at = rng.choice([m.end() for m in re.finditer(r"[.!?] |[。！？\n]", text)] or [len(text)])
        return text[:at] + passage + text[at:]
    if kind == "boilerplate":
        return rng.choice(samples["frames"][language]).format(text)
    if kind == "phrases":
        start, length, times = rng.randrange(len(words)), rng.randrange(3, 8), rng.randrange(20, 60)
        return space.join([*words[start:start + length], ""] * times)
    if kind == "links":
        return "\n".join(f"{rng.choice(words)} http://www.page{rng.randrange(900)}.example/"
                         f"{rng.randrange(10**6)}.html" for _ in range(rng.randrange(10, 40)))
    if kind == "mojibake" and language == "en":  # only a space that does not break is misread
        return text.replace(" ", "\u00a0").encode().decode("cp1252", "replace")
    if kind == "mojibake":
        return text.encode().decode(rng.choice(("latin-1", "cp1252", "gbk")), "replace")
    if kind == "base64":
        return base64.encodebytes(rng.randbytes(rng.randrange(200, 900))).decode().rstrip("\n")
    if kind == "keywords":
        words = [word for word in words if len(word) > 3 or language_of(word) == "zh"] or ["so"]
        phrases = ["".join(rng.choices(words, k=width)) for _ in range(rng.randrange(5, 10))]
        return comma.join(rng.choices(phrases, k=180 // (width + 1)))
    words = rng.choice(samples["foreign"]).split()
    return " ".join(rng.choices(words, k=rng.randrange(30, 80))) + "."
