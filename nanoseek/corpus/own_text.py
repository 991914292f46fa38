"""The reader's own text: a file, a folder of files, a .jsonl file, or an address.

    read_text("~/books/dream.txt")       # two documents: nine tenths to train on, a tenth held out
    read_text("~/notes")                 # a document for each text or code, those of each .jsonl

A single document is one long text and cut in two. Of many, curation will hold some out.
"""

import collections
import http.client
import os
import pathlib
import re
import urllib.parse
import urllib.request

from nanoseek import cli
from nanoseek.corpus.documents import parse_documents

TEXT_ENDINGS = (".txt .md .rst .tex .jsonl .py .js .ts .java .c .h .cpp .hpp .go .rs .rb .sh .lua "
                ".sql .r .jl").split()


def read_text(path_or_url):
    """Return the documents of a text file, a .jsonl file, a folder of them, or an address.

    Source: the folder's name, or the stem of the file. ValueError where no text can be read."""
    name = os.path.expanduser(path_or_url)
    path = pathlib.Path(name)
    if re.match(r"https?://", name):
        documents = _documents(*_fetch(name), name)
    elif path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()
                 and "/." not in f"/{file.relative_to(path).as_posix()}"]
        taken = [file for file in files if file.suffix.lower() in TEXT_ENDINGS]
        documents = [document | {"source": path.resolve().name} for file in taken
                     for document in _documents(file, file.read_bytes(), file)]
        kinds = collections.Counter(file.suffix.lower() or file.name for file in files)
        for what, there in (("reads", True), ("skips", False)):
            if found := [f"{count} {kind}" for kind, count in kinds.most_common()
                         if (kind in TEXT_ENDINGS) == there]:
                cli.say(f"{name}: {what} {', '.join(found)}")
    elif path.is_file():
        documents = _documents(path, path.read_bytes(), name)
    else:
        raise ValueError(f"{name}: no such file or folder")
    return _as_corpus(documents, name)


def _fetch(url):
    """Return the path that an address ends in, and the bytes that it holds."""
    path = pathlib.PurePosixPath(urllib.parse.unquote(re.sub(r"^https?://|[?#].*", "", url)))
    try:
        with urllib.request.urlopen(url, timeout=60) as reply:
            if reply.headers.get_content_type() == "text/html":
                raise ValueError(f"{url}: this is a web page; give the address of a text file")
            return path, reply.read()
    except (OSError, http.client.HTTPException) as error:  # a download that broke off, too
        raise ValueError(f"{url}: cannot be fetched ({error})") from None


def _documents(file, data, name):
    """Return the documents in the bytes of a file; name: what a mistake is reported as."""
    if file.suffix.lower() == ".jsonl":
        return parse_documents(data.split(b"\n"), name, file.stem)
    if b"\0" in data:
        raise ValueError(f"{name}: this is a binary file or UTF-16; save a text as UTF-8")
    try:
        return [{"text": data.decode("utf-8-sig"), "source": file.stem}]
    except UnicodeDecodeError as error:
        sample = data[:100_000].decode("gb18030", "ignore")
        chinese = sum("\u4e00" <= character <= "\u9fff" for character in sample)
        likely = "gb18030" if chinese > len(sample) / 3 else "windows-1252"
        raise ValueError(f"{name}: byte {error.start + 1} is not UTF-8, it may be {likely}: save "
                         f"it, for instance, with iconv -f {likely} -t utf-8") from None


def _as_corpus(documents, name):
    """Return the documents that are not empty; a single one is cut in two, near nine tenths."""
    documents = [document for document in documents if document["text"].strip()]
    if not documents:
        raise ValueError(f"{name}: no text found (looked for {' '.join(TEXT_ENDINGS)})")
    if len(documents) > 1 or "split" in documents[0]:
        return documents
    text = documents[0]["text"].strip("\r\n") + "\n"
    cut = len(text) * 9 // 10
    cut = text.rfind("\n", cut - len(text) // 50, cut) + 1 or cut  # after a line end if one is near
    if not (text[:cut].strip() and text[cut:].strip()):
        raise ValueError(f"{name}: the text is too short to hold out a tenth of it")
    return [{"text": text[:cut], "source": documents[0]["source"], "split": "train"},
            {"text": text[cut:], "source": documents[0]["source"], "split": "held_out"}]
