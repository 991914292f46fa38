"""The reader's own text: a file, a folder of files, a .jsonl file, or an address.

    read_text("~/books/dream.txt")       # two documents: nine tenths to train on, a tenth held out
    read_text("~/notes")                 # a document for each .txt and .md, those of each .jsonl

A folder or a .jsonl file holds many documents, some of which curation will hold out. Any other
file is one long text. It becomes two documents: the first nine tenths to train on, and the last
tenth, held out in one piece.
"""

import hashlib
import http.client
import os
import pathlib
import re
import tempfile
import urllib.parse
import urllib.request

from nanoseek.corpus.documents import read_documents

TEXT_ENDINGS = (".txt", ".md", ".jsonl")
HELD_OUT_TENTHS = 1


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
    return _read_file(path, sha256, path)


def _read_file(path, sha256, name):
    """Return the documents of one file; name: what a mistake is reported as."""
    if sha256 and (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256.lower():
        raise ValueError(f"{name}: its sha256 is {found}, not {sha256}; "
                         "the file is damaged or another one")
    return _as_corpus(_file_documents(path, path.stem), name)


def _file_documents(path, source):
    if path.suffix.lower() == ".jsonl":
        yield from read_documents(path)
    else:
        yield {"text": _decode(path.read_bytes(), path), "source": source}


def _read_folder(folder):
    name = folder.resolve().name
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in TEXT_ENDINGS and path.is_file() and not hidden:
            yield from (document | {"source": name} for document in _file_documents(path, name))


def _decode(data, name):
    """Return the bytes of a text file as str; raise ValueError for what is not UTF-8 text."""
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
    """Return the documents that are not empty; a single one is cut in two."""
    documents = [document for document in documents if document["text"].strip()]
    if not documents:
        raise ValueError(f"{name}: no text found (looked for {', '.join(TEXT_ENDINGS)} that are "
                         "not empty)")
    if len(documents) > 1 or "split" in documents[0]:
        return documents
    return _hold_out_the_end(documents[0], name)


def _hold_out_the_end(document, name):
    """Cut one long text in two documents, near nine tenths, after a line end if one is near."""
    text = document["text"].strip("\r\n") + "\n"
    cut = len(text) * (10 - HELD_OUT_TENTHS) // 10
    after_line = text.rfind("\n", cut - len(text) // 50, cut) + 1  # 0 where no line ends there
    cut = after_line or cut
    if not (text[:cut].strip() and text[cut:].strip()):
        raise ValueError(f"{name}: the text is too short to hold out a tenth of it")
    return [{"text": text[:cut], "source": document["source"], "split": "train"},
            {"text": text[cut:], "source": document["source"], "split": "held_out"}]


def _read_address(url, sha256):
    """Fetch an address into a scratch folder, then read it as a file of that name."""
    parts = urllib.parse.urlparse(url)
    name = pathlib.PurePosixPath(urllib.parse.unquote(parts.path)).name or parts.hostname
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, name or "address")
        try:
            with urllib.request.urlopen(url, timeout=60) as reply:
                if reply.headers.get_content_type() == "text/html":
                    raise ValueError(f"{url}: this is a web page; give the address of a text file")
                path.write_bytes(reply.read())
        except (OSError, http.client.HTTPException) as error:
            raise ValueError(f"{url}: cannot be fetched ({error})") from None
        return _read_file(path, sha256, url)
