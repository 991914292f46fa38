"""Documents in files: JSON lines that each stage of the pipeline reads and the next one writes.

    write_documents([{"text": "Once upon a time …", "source": "stories_en"}], "raw.jsonl")
    list(read_documents("raw.jsonl"))      # [{"text": "Once upon a time …", "source": …}]

A document has a "text" and a "source", the named part of the corpus that it belongs to; some have
a "split", "train" or "held_out", and a story of the grammar has its "log2_probability".
"""

import codecs
import filecmp
import json
import pathlib
import shutil
import time

from nanoseek import cli

FIELDS = {  # that all stages share, with what a value must be
    "text": (lambda value: isinstance(value, str), "a string"),
    "source": (lambda value: isinstance(value, str) and value, "a string that is not empty"),
    "split": (lambda value: value in (None, "train", "held_out"), '"train" or "held_out"'),
    "log2_probability": (lambda value: value is None or type(value) in (int, float)
                         and abs(value) < 1e308, "a finite number")}


def read_documents(path):
    """Yield the documents of a JSON lines file, one at a time.

    Blank lines are passed over. A document without a "source" gets the stem of the file. Raises
    ValueError with the number of the line that is not UTF-8, not JSON, or has no "text".
    """
    with open(path, "rb") as lines:
        yield from parse_documents(lines, path, pathlib.Path(path).stem)


def parse_documents(lines, name, default_source):
    """Yield the documents of JSON lines, given as bytes; name: what a mistake is reported as."""
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(codecs.BOM_UTF8)  # which some editors put first in a file
        if line.strip():
            try:
                document = _parse_line(line, default_source)
            except ValueError as error:
                raise ValueError(f"{name}, line {number}: {error}") from None
            yield document


def _parse_line(line, default_source):
    try:
        document, fields = {}, {"source": default_source} | json.loads(line.decode("utf-8"))
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f'not a line of JSON in UTF-8 such as {{"text": "…"}} ({error})') from None
    for name, (fits, wanted) in FIELDS.items():
        value = fields.get(name)
        if not fits(value):
            raise ValueError(f'"{name}" must be {wanted}')
        if isinstance(value, str):  # JSON can spell half a surrogate pair, which no UTF-8 can hold
            value = value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if value is not None:
            document[name] = value
    return document


def write_documents(documents, path):
    """Write documents as JSON lines, all or nothing; return whether the file changed.

    A file that already holds these bytes keeps its time stamp, so that make redoes nothing.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with cli.writing(path) as new:
        with open(new, "w", encoding="utf-8", newline="\n") as out:
            for document in documents:
                out.write(json.dumps(document, ensure_ascii=False) + "\n")
        if new.stat().st_size == 0:
            raise ValueError(f"{path}: there is no document to write")
        unchanged = path.is_file() and filecmp.cmp(new, path, shallow=False)
        if unchanged:
            shutil.copystat(path, new)
    return not unchanged


def with_progress(documents, every=5.0):
    """Pass documents on; say on stderr, every so many seconds, how many there were so far."""
    said, characters = time.monotonic(), 0
    for number, document in enumerate(documents, start=1):
        yield document
        characters += len(document["text"])
        if time.monotonic() - said >= every:
            said = time.monotonic()
            cli.say(f"{number:,} documents, {characters / 1e6:,.0f} million characters")
