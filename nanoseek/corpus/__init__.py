r"""Gather raw documents: bilingual stories, the Python documentation, any text the reader names.

    python -m nanoseek.corpus raw.jsonl --stories 52000 --seed 0      # half English, half Chinese
    python -m nanoseek.corpus raw.jsonl --text ~/books/dream.txt      # the reader's own text
    python -m nanoseek.corpus raw.jsonl --dirt 0.5                    # for lessons on curation

A document is a dict with "text" and "source"; stories also carry "log2_probability", and the two
halves of one long text carry "split". Stages pass documents on as JSON lines, one document a line.

Reading a text of your own (`read_text`): a folder or a .jsonl file is many documents; any other
file is one long text, which becomes two documents: the first nine tenths to train on, and the
last tenth, held out in one piece.

Glossary: *raw* as found, nothing cleaned; *source* a named part of the corpus; *stem* a file name
without its folder and ending; *dirt* what a crawl brings along and nobody wants to train on.
"""

import ast
import base64
import dataclasses
import filecmp
import hashlib
import http.client
import importlib
import json
import os
import pathlib
import random
import re
import sys
import sysconfig
import tempfile
import unicodedata
import urllib.parse
import urllib.request
import warnings

from nanoseek.corpus.stories import stories

TEXT_ENDINGS = (".txt", ".md", ".jsonl")
HELD_OUT_TENTHS = 1
NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3",
               "turtledemo", "ensurepip", "pydoc_data", "__pycache__"}


# Documents in files ------------------------------------------------------------------------------

def read_documents(path):
    """Yield the documents of a JSON lines file, one at a time.

    Raises ValueError, with the number of the line, where a line is not UTF-8, not JSON, or has no
    "text". Blank lines are passed over. A document without a "source" gets the stem of the file.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if number == 1 and line.startswith(b"\xef\xbb\xbf"):
                line = line[3:]
            if line.strip():
                yield _parse_line(line, f"{path}, line {number}", pathlib.Path(path).stem)


def _parse_line(line, where, default_source):
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: byte {error.start + 1} of the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a line of JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise ValueError(f'{where}: every line must be an object with a "text" that is a string')
    document = {"text": _without_surrogates(fields["text"]),
                "source": fields.get("source", default_source)}
    if not isinstance(document["source"], str) or not document["source"]:
        raise ValueError(f'{where}: "source" must be a string that is not empty')
    document["source"] = _without_surrogates(document["source"])
    if fields.get("split") is not None:
        document["split"] = fields["split"]
        if document["split"] not in ("train", "held_out"):
            raise ValueError(f'{where}: "split" must be "train" or "held_out"')
    if fields.get("log2_probability") is not None:
        document["log2_probability"] = fields["log2_probability"]
        if type(document["log2_probability"]) not in (int, float) \
                or not abs(document["log2_probability"]) < sys.float_info.max:
            raise ValueError(f'{where}: "log2_probability" must be a finite number')
    return document


def _without_surrogates(text):
    # JSON can spell half a surrogate pair ("\ud83d"), which no UTF-8 file can hold.
    try:
        text.encode("utf-8")
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def write_documents(documents, path):
    """Write documents as JSON lines, all or nothing; return whether the file changed.

    A file that already holds exactly these bytes is left alone, time stamp included, so that make
    does not redo what depends on it. Raises ValueError when there is no document at all.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="\n") as out:
            for document in documents:
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
        if part.stat().st_size == 0:
            raise ValueError(f"{path}: there is no document to write")
        if path.is_file() and filecmp.cmp(part, path, shallow=False):
            return False
        os.replace(part, path)
        return True
    finally:
        part.unlink(missing_ok=True)


# The reader's own text ---------------------------------------------------------------------------

def read_text(path_or_url, sha256=None):
    """Read a text file, a .jsonl file, a folder of them, or an address; return documents.

    A folder is searched for .txt, .md and .jsonl, in the order of their names; its documents have
    the folder's name as source, the others the stem of their file. Whatever holds a single
    document is taken as one long text and cut in two (see the top of this file). A BOM is dropped.
    Raises ValueError where there is nothing to read, where bytes are not UTF-8 text, where a line
    of JSON is broken (named by its number), or where `sha256` (of a file's bytes) differs.
    """
    if re.match(r"https?://", str(path_or_url)):
        return _read_address(str(path_or_url), sha256)
    path = pathlib.Path(os.path.expanduser(path_or_url))
    if path.is_dir():
        if sha256:
            raise ValueError(f"{path}: a sha256 belongs to one file, and this is a folder")
        return _as_corpus(_read_folder(path), path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return _read_file(path, sha256)


def _read_file(path, sha256=None, name=None):
    if sha256 and (found := _sha256(path)) != sha256.lower():
        raise ValueError(f"{name or path}: its sha256 is {found}, not {sha256}; "
                         "the file is damaged or another one")
    return _as_corpus(_file_documents(path, path.stem), name or path)


def _sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _file_documents(path, source):
    if path.suffix.lower() == ".jsonl":
        yield from read_documents(path)
    else:
        yield {"text": decode(path.read_bytes(), path), "source": source}


def _read_folder(folder):
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in TEXT_ENDINGS and path.is_file() and not hidden:
            for document in _file_documents(path, folder.resolve().name):
                yield document | {"source": folder.resolve().name}


def decode(data, name):
    """Turn the bytes of a text file into str; raise ValueError for what is not UTF-8 text."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{name}: this is UTF-16 text; save it as UTF-8")
    if b"\0" in data:
        raise ValueError(f"{name}: this is a binary file, not text")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: byte {error.start + 1} is not UTF-8; save it as UTF-8, for "
                         "instance with iconv -f gb18030 -t utf-8") from None


def _as_corpus(documents, name):
    documents = [document for document in documents if document["text"].strip()]
    if not documents:
        raise ValueError(f"{name}: no text found (looked for {', '.join(TEXT_ENDINGS)} that are "
                         "not empty)")
    if len(documents) == 1 and "split" not in documents[0]:
        return list(_hold_out_the_end(documents[0], name))
    return documents


def _hold_out_the_end(document, name):
    """Cut one long text in two documents, near nine tenths, after a line end if one is near."""
    text = document["text"].strip("\r\n") + "\n"
    cut = len(text) * (10 - HELD_OUT_TENTHS) // 10
    margin = len(text) // 50
    after_line = text.rfind("\n", cut - margin, cut) + 1
    cut = after_line if 0 < after_line < len(text) else cut
    halves = text[:cut], text[cut:]
    if not all(half.strip() for half in halves):
        raise ValueError(f"{name}: the text is too short to hold out a tenth of it")
    return ({"text": half, "source": document["source"], "split": split}
            for half, split in zip(halves, ("train", "held_out")))


def _read_address(url, sha256):
    name = pathlib.PurePosixPath(urllib.parse.unquote(urllib.parse.urlparse(url).path)).name
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name or urllib.parse.urlparse(url).hostname or "address")
        try:
            with urllib.request.urlopen(url, timeout=60) as reply, open(path, "wb") as file:
                if reply.headers.get_content_type() == "text/html":
                    raise ValueError(f"{url}: this is a web page; give the address of a text file")
                while block := reply.read(1 << 20):
                    file.write(block)
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{url}: cannot be fetched ({error})") from None
        return _read_file(path, sha256, url)


# The Python documentation on this machine --------------------------------------------------------

def python_docs():
    """Return the documentation that came with this Python, as documents of source "python_docs".

    First the chapters of the language reference behind `help("if")` (`pydoc_data.topics`), then
    the docstrings of each module of the standard library. Files are parsed, never imported. The
    order is that of the names; the text depends on the version of Python.
    """
    documents = [{"text": text, "source": "python_docs"} for text in _help_topics()]
    for name, path in library_files():
        if text := _module_documentation(name, path.read_bytes()):
            documents.append({"text": text, "source": "python_docs"})
    if not documents:
        raise ValueError("this Python came without its documentation and library sources; "
                         "use --python_docs false")
    return documents


def _help_topics():
    try:
        topics = importlib.import_module("pydoc_data.topics").topics
    except ImportError:  # some systems package it apart
        return []
    return [text for _, text in sorted(topics.items())]


def library_files():
    """Yield (dotted module name, path) for each Python file of the standard library, by name."""
    library = pathlib.Path(sysconfig.get_path("stdlib"))
    found = {}
    for folder, folders, names in os.walk(library):
        folders[:] = [f for f in folders if f not in NOT_LIBRARY and not f.startswith("config-")]
        for path in (pathlib.Path(folder, name) for name in names if name.endswith(".py")):
            dotted = ".".join(path.relative_to(library).with_suffix("").parts)
            found[dotted.removesuffix(".__init__")] = path
    yield from sorted(found.items())


def _module_documentation(name, code):
    """Return the docstrings of a module's public names, each below its signature, or ""."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes such as "\d" in library code
            tree = ast.parse(code)
    except (SyntaxError, ValueError):  # a file that is broken on purpose
        return ""
    parts = [_entry(f"module {name}", tree), *_entries(tree, "")]
    return "\n\n".join(part for part in parts if part)


def _entries(parent, prefix):
    for node in parent.body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield _entry(f"class {prefix}{node.name}", node)
            yield from _entries(node, f"{prefix}{node.name}.")
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) \
                and not node.name.startswith("_"):
            yield _entry(f"{prefix}{node.name}({ast.unparse(node.args)})", node)


def _entry(heading, node):
    docstring = ast.get_docstring(node)
    return f"{heading}\n{docstring}" if docstring else ""


# Dirt, with labels -------------------------------------------------------------------------------

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
    each = round(share * len(documents) / (len(DIRT) - share * len(added)))
    chosen = rng.sample(range(len(documents)), min(2 * each, len(documents) - 1))
    altered = dict(zip(chosen, ["passage", "boilerplate"] * each))
    sources = [n for n in range(len(documents)) if n not in altered]
    planted = [(n, altered.get(n, "clean"), n) for n in range(len(documents))]
    planted += [(-1, kind, rng.choice(sources)) for kind in added for _ in range(each)]
    rng.shuffle(planted)
    place = {n: position for position, (n, _, _) in enumerate(planted)}
    result, labels = [], []
    for _, kind, n in planted:
        document, changed = _soil(documents[n], kind, documents, rng)
        result.append(document)
        is_copy = kind in ("exact", "format", "near")
        labels.append(Label(kind, place[n] if is_copy else None, changed))
    return result, labels


def _soil(document, kind, documents, rng):
    """Return (a new document, the share of words changed) for one kind of dirt."""
    if kind in ("clean", "exact"):
        return dict(document), 0.0
    text, changed = document["text"], 0.0
    if kind == "near":
        text, changed = _change_words(text, _similar(document, documents, rng), rng)
    else:
        text = _SOILING[kind](text, rng)
    return {"text": text, "source": document["source"]}, changed


def _is_chinese(text):
    return len(re.findall("[\u4e00-\u9fff]", text[:500])) * 5 > len(text[:500])


def _similar(document, documents, rng):
    """Return the text of another document in the same language, if a few draws find one."""
    chinese = _is_chinese(document["text"])
    drawn = [rng.choice(documents)["text"] for _ in range(8)]
    return next((text for text in drawn if _is_chinese(text) == chinese), document["text"])


def _words(text):
    return re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text)


def _change_words(text, other, rng):
    """Replace 0.5% to 10% of the words, at least one, by words of another text."""
    pieces = re.split(r"([\u3400-\u9fff]|[^\W\u3400-\u9fff]+)", text)
    count = len(pieces) // 2  # the odd pieces are the words
    replacing = _words(other) or ["so"]
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
    return changed if changed != text else "\n ".join(text) if _is_chinese(text) else text.upper()


def _insert_passage(text, rng):
    """Put a long passage between two sentences."""
    passage = rng.choice(_PASSAGES_ZH if _is_chinese(text) else _PASSAGES_EN)
    ends = [match.end() for match in re.finditer(r"[.!?] |[。！？\n]", text)] or [len(text)]
    at = rng.choice(ends)
    return f"{text[:at]}{passage}{'' if _is_chinese(text) else ' '}{text[at:]}"


def _add_boilerplate(text, rng):
    header, footer = rng.choice(_SITES_ZH if _is_chinese(text) else _SITES_EN)
    return f"{header}\n\n{text}\n\n{footer}"


def _phrases(text, rng):
    words = _words(text) or ["so"]
    start = rng.randrange(len(words))
    glue = "" if _is_chinese(text) else " "
    return glue.join((words[start:start + rng.randrange(3, 8)] + [""]) * rng.randrange(20, 60))


def _links(text, rng):
    words = _words(text) or ["so"]
    return "\n".join(f"{rng.choice(words)} http://www.page{rng.randrange(900)}.example/"
                     f"{rng.randrange(10**6)}.html" for _ in range(rng.randrange(10, 40)))


def _mojibake(text, rng):
    if not _is_chinese(text):  # spaces that do not break, read as Windows-1252
        return text.replace(" ", "\u00a0").encode().decode("cp1252", "replace")
    return text.encode().decode(rng.choice(("latin-1", "cp1252", "gbk")), "replace")


def _base64(text, rng):
    data = base64.b64encode(rng.randbytes(rng.randrange(200, 900))).decode()
    return "\n".join(data[start:start + 76] for start in range(0, len(data), 76))


def _keywords(text, rng):
    words = [word for word in _words(text) if len(word) > 3 or _is_chinese(word)] or ["so"]
    width = 3 if _is_chinese(text) else 1
    phrases = ["".join(rng.choices(words, k=width)) for _ in range(rng.randrange(5, 10))]
    return ("，" if width > 1 else ", ").join(rng.choices(phrases, k=180 // (width + 1)))


def _foreign(text, rng):
    words = rng.choice(_FOREIGN).split()
    return " ".join(rng.choices(words, k=rng.randrange(30, 80))) + "."


_SOILING = {"format": _reformat, "passage": _insert_passage, "boilerplate": _add_boilerplate,
            "phrases": _phrases, "links": _links, "mojibake": _mojibake, "base64": _base64,
            "keywords": _keywords, "language": _foreign}
DIRT = ("exact", "near", *_SOILING)
_PASSAGES_EN = (
    "This page was kept by the reading circle of a small harbour town, whose members typed out old "
    "notebooks on winter evenings. Anyone may copy it for friends and classes, as long as these "
    "lines stay with it and nobody is asked to pay. Mistakes are ours; write to us if you find "
    "one, and tell us as well which of the notebooks you would like to see next.",
    "Before you go on, a word from those who keep the lights on: the shelves you are walking along "
    "are looked after by volunteers. If each visitor gave the price of a cup of tea, the roof "
    "would be mended by spring. Thank you for thinking about it, and now back to where you were; "
    "the next shelf but one has a chair beside it, if you are tired.",
)
_PASSAGES_ZH = (
    "本页由一座海港小城的读书会整理，会员们在冬天的夜里把旧笔记一页一页录入电脑。任何人都可以抄给朋友和同学，"
    "只要保留这几行说明，并且不向别人收钱。若有错字，责任在我们，欢迎来信告诉我们，也请说说您还想看哪一本笔记。",
    "继续阅读之前，请听守夜人说一句话：您走过的这些书架由志愿者照看，如果每位来客都省下一杯茶的钱，"
    "屋顶到春天就能修好。谢谢您愿意想一想这件事，现在请回到刚才读到的地方，慢慢往下看吧，累了的话，旁边有椅子可坐。",
)
_SITES_EN = (
    ("Home | Stories | Weather | About us | Log in", "Copyright Green Lane Press. All rights."),
    ("You are here: Start > Library > Reading room", "Subscribe to our letter! Terms and privacy"),
    ("MENU Search Cart (0) My account Help", "Back to top - Print - Send to a friend"),
)
_SITES_ZH = (
    ("首页 | 故事 | 天气 | 关于我们 | 登录", "版权所有 青巷书屋 未经许可不得转载"),
    ("您现在的位置：首页 > 书库 > 阅览室", "点击订阅本站周刊　服务条款　隐私声明"),
    ("菜单 搜索 购物车（0） 我的账户 帮助", "返回顶部　打印本页　转发给朋友"),
)
_FOREIGN = (
    "дом река утро дорога окно хлеб лес снег книга город вечер сад",
    "σπίτι ποτάμι πρωί δρόμος παράθυρο ψωμί δάσος χιόνι βιβλίο πόλη βράδυ κήπος",
    "집 강 아침 길 창문 빵 숲 눈 책 도시 저녁 정원",
    "بيت نهر صباح طريق نافذة خبز غابة ثلج كتاب مدينة مساء حديقة",
)


# The command line --------------------------------------------------------------------------------

def _flag(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
    """What to gather; without a text of your own, the default corpus."""

    stories: int = _flag(None, "how many stories, half in each language; 40000 unless --text")
    python_docs: bool = _flag(None, "add this Python's documentation; true unless --text")
    text: str = _flag("", "a text file, folder, .jsonl or http(s) address of your own")
    sha256: str = _flag("", "the sha256 that the bytes of --text must have")
    dirt: float = _flag(0.0, "share of dirty documents to plant, for lessons on curation")
    seed: int = _flag(0, "which stories, and which dirt")

    def __post_init__(self):
        if self.stories is not None and self.stories < 0:
            raise ValueError(f"--stories {self.stories}: give a number of 0 or more")
        if not 0 <= self.dirt < 1:
            raise ValueError(f"--dirt {self.dirt}: give a share from 0 to below 1")
        if self.sha256 and not self.text:
            raise ValueError("--sha256 belongs to a --text")


def gather(config):
    """Return the raw documents that a CorpusConfig asks for."""
    documents = _gather(config)
    return plant_dirt(list(documents), config.seed, config.dirt)[0] if config.dirt else documents


def _gather(config):
    count = config.stories if config.stories is not None else 0 if config.text else 40000
    for language, share in (("en", count // 2), ("zh", count - count // 2)):
        for story in stories(language, share, config.seed):
            yield {"text": story.text, "source": story.source,
                   "log2_probability": story.log2_probability}
    if config.python_docs or (config.python_docs is None and not config.text):
        yield from python_docs()
    if config.text:
        yield from read_text(config.text, config.sha256 or None)


def main(argv=None):
    """Write the raw corpus as JSON lines."""
    from nanoseek import cli
    parser = cli.Parser("nanoseek.corpus", "Gather raw documents into one file of JSON lines.")
    parser.add_argument("output", help="the file to write, such as raw.jsonl")
    cli.add_flags(parser, CorpusConfig)
    args = parser.parse_args(argv)
    if args.text == "":
        raise ValueError("--text is empty: name a file, a folder or an address")
    cli.check_output(args.output, *[args.text] if args.text else [])
    changed = write_documents(gather(cli.from_flags(CorpusConfig, args)), args.output)
    counts = {}
    for document in read_documents(args.output):
        texts, size = counts.get(document["source"], (0, 0))
        counts[document["source"]] = texts + 1, size + len(document["text"].encode())
    for source, (texts, size) in counts.items():
        print(f"{source:<24}{texts:>9,} documents{size / 1e6:>9.2f} MB")
    print(f"{args.output}: {'written' if changed else 'unchanged'}")


