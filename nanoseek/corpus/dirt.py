"""Plant what a crawl brings along and nobody wants to train on, with labels that tell it apart.

    documents, labels = plant_dirt(documents, seed=0, share=0.3)
    labels[0]      # Label(kind='near', original=17, changed=0.04): a near-copy of documents[17]

Here the truth is known, so that the precision and recall of a rule can be counted. The kinds:

    exact, format, near    copies: as they are, in another format, with a few words changed
    passage, boilerplate   a passage or a frame that stands in many documents
    phrases, links, mojibake, base64, keywords, language     junk
"""

import base64
import dataclasses
import random
import re
import unicodedata

from nanoseek.corpus.stories import language_of

WORD = re.compile(r"([\u3400-\u9fff]|[^\W\u3400-\u9fff]+)")  # a Chinese character, or a word


@dataclasses.dataclass(frozen=True)
class Label:
    """What was done to a document of a dirty corpus."""
    kind: str                    # "clean", or one of DIRT
    original: int | None = None  # a copy: the position of what it was copied from
    changed: float = 0.0         # kind "near": the share of words, or Chinese characters, changed


def plant_dirt(documents, seed, share=0.3):
    """Return (documents, labels): the documents with dirt among them as a crawl brings along.

    `share` of the documents returned are dirty, the kinds of DIRT in equal parts. Copies and junk
    are new documents; "passage" and "boilerplate" are additions to given ones, which are then
    not copied elsewhere. Labels stand in the order of the documents. Nothing given is changed in
    place. Raises ValueError when the share is not in [0, 1) or no document is given.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of dirt is {share}: give 0 or more, below 1")
    if not documents:
        raise ValueError("there is no document to plant dirt among")
    rng = random.Random(seed)
    added = [kind for kind in DIRT if kind not in ("passage", "boilerplate")]
    # n of each kind, so that kinds · n = share · (given + added kinds · n).
    each = round(share * len(documents) / (len(DIRT) - share * len(added)))
    chosen = rng.sample(range(len(documents)), min(2 * each, len(documents) - 1))
    altered = dict(zip(chosen, ["passage", "boilerplate"] * each))
    sources = [n for n in range(len(documents)) if n not in altered]
    # What is to be returned: (whether it is a given document, kind, number of the document used).
    planted = [(True, altered.get(n, "clean"), n) for n in range(len(documents))]
    planted += [(False, kind, rng.choice(sources)) for kind in added for _ in range(each)]
    rng.shuffle(planted)
    position = {n: place for place, (given, _, n) in enumerate(planted) if given}
    made = [_dirty(documents[n], kind, documents, rng) for _, kind, n in planted]
    labels = [Label(kind, position[n] if kind in ("exact", "format", "near") else None, changed)
              for (_, kind, n), (_, changed) in zip(planted, made)]
    return [document for document, _ in made], labels


def _dirty(document, kind, documents, rng):
    """Return (a new document, the share of words changed) for one kind of dirt."""
    if kind in ("clean", "exact"):
        return dict(document), 0.0
    text, language, changed = document["text"], _language(document["text"]), 0.0
    if kind == "near":  # new words from a text in the same language, if a few draws find one
        drawn = [rng.choice(documents)["text"] for _ in range(8)]
        other = next((other for other in drawn if _language(other) == language), text)
        text, changed = _change_words(text, other, rng)
    else:
        text = _MAKERS[kind](text, language, rng)
    return {"text": text, "source": document["source"]}, changed


def _language(text):
    return language_of(text[:500], share=0.2)  # a few characters make no Chinese text


def _change_words(text, other, rng):
    """Replace 0.5% to 10% of the words, at least one, by words of another text."""
    pieces, replacing = WORD.split(text), WORD.findall(other) or ["so"]
    count = len(pieces) // 2  # the odd pieces are the words
    changes = min(count, max(1, round(rng.uniform(0.005, 0.1) * count)))
    for n in rng.sample(range(count), changes):
        pieces[2 * n + 1] = rng.choice(replacing)
    return "".join(pieces), changes / max(1, count)


def _reformat(text, language, rng):
    """Change case, spacing, punctuation or width, at least one of them."""
    ways = [lambda t: t.upper(), lambda t: t.replace(" ", "  ").replace("。", "。\n"),
            lambda t: re.sub(r"[,;:，；：]", "", t), lambda t: re.sub(r"[.!。！]", " !!", t),
            lambda t: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in t),
            lambda t: unicodedata.normalize("NFKC", t)]
    rng.shuffle(ways)
    changed = text
    for way in ways[:rng.choice((1, 2))]:
        changed = way(changed)
    return changed if changed != text else "\n ".join(text) if language == "zh" else text.upper()


def _insert_passage(text, language, rng):
    """Put a long passage between two sentences."""
    passage = rng.choice(_PASSAGES[language]) + ("" if language == "zh" else " ")
    ends = [match.end() for match in re.finditer(r"[.!?] |[。！？\n]", text)] or [len(text)]
    at = rng.choice(ends)
    return f"{text[:at]}{passage}{text[at:]}"


def _add_boilerplate(text, language, rng):
    header, footer = rng.choice(_SITES[language])
    return f"{header}\n\n{text}\n\n{footer}"


def _phrases(text, language, rng):
    words = WORD.findall(text) or ["so"]
    start = rng.randrange(len(words))
    glue = "" if language == "zh" else " "
    return glue.join((words[start:start + rng.randrange(3, 8)] + [""]) * rng.randrange(20, 60))


def _links(text, language, rng):
    words = WORD.findall(text) or ["so"]
    return "\n".join(f"{rng.choice(words)} http://www.page{rng.randrange(900)}.example/"
                     f"{rng.randrange(10**6)}.html" for _ in range(rng.randrange(10, 40)))


def _mojibake(text, language, rng):
    if language == "en":  # spaces that do not break, read as Windows-1252
        return text.replace(" ", "\u00a0").encode().decode("cp1252", "replace")
    return text.encode().decode(rng.choice(("latin-1", "cp1252", "gbk")), "replace")


def _base64(text, language, rng):
    return base64.encodebytes(rng.randbytes(rng.randrange(200, 900))).decode().rstrip("\n")


def _keywords(text, language, rng):
    words = [word for word in WORD.findall(text) if len(word) > 3 or language_of(word) == "zh"]
    words, width = words or ["so"], 3 if language == "zh" else 1
    phrases = ["".join(rng.choices(words, k=width)) for _ in range(rng.randrange(5, 10))]
    return ("，" if language == "zh" else ", ").join(rng.choices(phrases, k=180 // (width + 1)))


def _foreign(text, language, rng):
    words = rng.choice(_FOREIGN).split()
    return " ".join(rng.choices(words, k=rng.randrange(30, 80))) + "."


# Of each kind: (text, its language, random numbers) → what takes its place.
_MAKERS = {"format": _reformat, "passage": _insert_passage, "boilerplate": _add_boilerplate,
           "phrases": _phrases, "links": _links, "mojibake": _mojibake, "base64": _base64,
           "keywords": _keywords, "language": _foreign}
DIRT = ("exact", "near", *_MAKERS)
_PASSAGES = {"en": (
    "This page was kept by the reading circle of a small harbour town, whose members typed out old "
    "notebooks on winter evenings. Anyone may copy it for friends and classes, as long as these "
    "lines stay with it and nobody is asked to pay. Mistakes are ours; write to us if you find "
    "one, and tell us as well which of the notebooks you would like to see next.",
    "Before you go on, a word from those who keep the lights on: the shelves you are walking along "
    "are looked after by volunteers. If each visitor gave the price of a cup of tea, the roof "
    "would be mended by spring. Thank you for thinking about it, and now back to where you were; "
    "the next shelf but one has a chair beside it, if you are tired.",
), "zh": (
    "本页由一座海港小城的读书会整理，会员们在冬天的夜里把旧笔记一页一页录入电脑。任何人都可以抄给朋友和同学，"
    "只要保留这几行说明，并且不向别人收钱。若有错字，责任在我们，欢迎来信告诉我们，也请说说您还想看哪一本笔记。",
    "继续阅读之前，请听守夜人说一句话：您走过的这些书架由志愿者照看，如果每位来客都省下一杯茶的钱，"
    "屋顶到春天就能修好。谢谢您愿意想一想这件事，现在请回到刚才读到的地方，慢慢往下看吧，累了的话，旁边有椅子可坐。",
)}
_SITES = {"en": (
    ("Home | Stories | Weather | About us | Log in", "Copyright Green Lane Press. All rights."),
    ("You are here: Start > Library > Reading room", "Subscribe to our letter! Terms and privacy"),
    ("MENU Search Cart (0) My account Help", "Back to top - Print - Send to a friend"),
), "zh": (
    ("首页 | 故事 | 天气 | 关于我们 | 登录", "版权所有 青巷书屋 未经许可不得转载"),
    ("您现在的位置：首页 > 书库 > 阅览室", "点击订阅本站周刊　服务条款　隐私声明"),
    ("菜单 搜索 购物车（0） 我的账户 帮助", "返回顶部　打印本页　转发给朋友"),
)}
_FOREIGN = (
    "дом река утро дорога окно хлеб лес снег книга город вечер сад",
    "σπίτι ποτάμι πρωί δρόμος παράθυρο ψωμί δάσος χιόνι βιβλίο πόλη βράδυ κήπος",
    "집 강 아침 길 창문 빵 숲 눈 책 도시 저녁 정원",
    "بيت نهر صباح طريق نافذة خبز غابة ثلج كتاب مدينة مساء حديقة",
)
