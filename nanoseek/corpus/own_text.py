"""The reader's own text: a file, a folder of files, a .jsonl file, or an address; or several.

    read_text("~/books/dream.txt")       # two documents: nine tenths to train on, a tenth held out
    read_text("~/notes")                 # a document for each text or code, those of each .jsonl
    read_text("a.txt 'my page.html'")    # several, written as for a shell: of each as if alone

A single document is one long text and cut in two. Of many, curation will hold some out."""

import collections
import contextlib
import html
import http.client
import os
import pathlib
import re
import shlex
import time
import urllib.parse
import urllib.request

from nanoseek import cli
from nanoseek.corpus.documents import ENCODING, parse_documents

TEXT_ENDINGS = (".txt .md .rst .tex .html .htm .jsonl .py .js .ts .java .c .h .cpp .hpp .go .rs "
                ".rb .sh .lua .sql .r .jl").split()
INLINE = "a|abbr|b|cite|code|del|em|font|i|img|ins|kbd|mark|q|s|small|span|strong|sub|sup|tt|u|var"
WEB = re.compile(r"https?://\S+$", re.I)


def names_in(text):
    """Return the paths and addresses in a text: itself if there is such a path, else its words."""
    def there(name):
        return WEB.match(name) or os.path.exists(os.path.expanduser(name))

    with contextlib.suppress(ValueError):  # "it's.txt": a quote without its end
        # A mistyped path with spaces is no list of names: of a list, one exists at least.
        if not there(text) and any(map(there, shlex.split(text))):
            return shlex.split(text)
    return [text]


def read_text(path_or_url):
    """Return the documents of a text file, a .jsonl file, a folder, an address, or of several.

    Source: the folder's name, or the stem of the file. ValueError where no text can be read."""
    return [document for name in names_in(os.fspath(path_or_url)) for document in _read(name)]


def _read(name):
    """Return the documents of one file, folder or address."""
    path = pathlib.Path(os.path.expanduser(name))
    if WEB.match(name):
        documents = _documents(*_fetch(name), name := name.split("?")[0])  # then may come a key
    elif path.is_dir():
        found = [file for file in sorted(path.rglob("*"))
                 if "/." not in f"/{file.relative_to(path).as_posix()}"]
        files = [file for file in found if file.is_file()]
        documents = [document | {"source": path.resolve().name} for file in files
                     if file.suffix.lower() in TEXT_ENDINGS
                     for document in _documents(file, file.read_bytes(), file)]
        kinds = collections.Counter(file.suffix.lower() or file.name for file in files)
        kinds.update(f"folder that may not be opened ({file})" for file in found
                     if file.is_dir() and not os.access(file, os.R_OK | os.X_OK))
        for what, there in (("reads", True), ("skips", False)):
            if these := [f"{count} {kind}" for kind, count in kinds.most_common()
                         if (kind in TEXT_ENDINGS) == there]:
                cli.say(f"{name}: {what} {', '.join(these)}")
    elif path.is_file():
        documents = _documents(path, path.read_bytes(), name)
    else:
        raise ValueError(f"{name}: no such file or folder")
    return _as_corpus(documents, name)


def _fetch(url):
    """Return the path that an address ends in, and the bytes that it holds."""
    began, data, parts = time.monotonic(), bytearray(), urllib.parse.urlsplit(url)
    path = pathlib.PurePosixPath(urllib.parse.unquote(parts.path))
    if "@" in parts.netloc:  # messages would show it
        raise ValueError("an address with a password is not read: download it, and name the file")
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            page = reply.headers.get_content_type() == "text/html"
            for part in iter(reply.read1, b""):
                data += part
                if time.monotonic() - began > 60 + len(data) / 1000:
                    raise TimeoutError("less than 1 kB a second")
            if reply.length:  # bytes that were announced and did not come
                raise http.client.IncompleteRead(data, reply.length)
            return path.with_suffix(".html") if page else path, bytes(data)
    except (OSError, http.client.HTTPException) as error:  # a download that broke off, too
        raise ValueError(f"{url.split('?')[0]}: cannot be fetched ({error})") from None


def _documents(file, data, name):
    """Return the documents in the bytes of a file; name: what a mistake is reported as."""
    kind = file.suffix.lower()
    if kind == ".jsonl":
        return parse_documents(data.split(b"\n"), name, file.stem)
    if kind in (".json", ".csv"):
        raise ValueError(f'{name}: write it as .jsonl, for each document a line {{"text": "…"}}')
    if b"\0" in data or data.startswith(b"%PDF"):
        raise ValueError(f"{name}: this is a binary file or UTF-16; save a text as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: byte {error.start + 1} {ENCODING}") from None
    return [{"text": page_text(text) if kind in (".html", ".htm") else text, "source": file.stem}]


def page_text(page):
    """Return the text of a web page: no scripts, styles and comments; a block of it ends a line."""
    # What is not closed goes on to the end.
    page = re.sub(r"(?is)<(script|style)\b.*?(</\1\s*>|\Z)|<!--.*?(-->|\Z)|<![^>]*(>|\Z)", "", page)
    tag = r"""</?%s(?:"[^"]*"|'[^']*'|[^"'<>])*>"""  # quotes may hold a ">"
    page = re.sub(tag % rf"(?!(?:{INLINE})\b)[a-zA-Z]", "\n", page)
    page = html.unescape(re.sub(tag % "[a-zA-Z]", "", page))
    return "\n".join(filter(str.strip, page.split("\n"))).strip()


def _as_corpus(documents, name):
    """Return the documents that are not empty; a single one is cut in two, near nine tenths."""
    documents = [document for document in documents if document["text"].strip()]
    if not documents:
        looked = f"looked for {' '.join(TEXT_ENDINGS)}" if os.path.isdir(name) else "it is empty"
        raise ValueError(f"{name}: no text found ({looked})")
    if len(documents) > 1 or "split" in documents[0]:
        return documents
    text = documents[0]["text"].strip("\r\n") + "\n"
    cut = len(text) * 9 // 10
    cut = text.rfind("\n", cut - len(text) // 50, cut) + 1 or cut  # after a line end if one is near
    if not (text[:cut].strip() and text[cut:].strip()):
        raise ValueError(f"{name}: the text is too short to hold out a tenth of it")
    return [{"text": text[:cut], "source": documents[0]["source"], "split": "train"},
            {"text": text[cut:], "source": documents[0]["source"], "split": "held_out"}]
