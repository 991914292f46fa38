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


def read_documents(path):
    """Yield the documents of a JSON lines file, one at a time.

    Raises ValueError, with the number of the line, where a line is not UTF-8, not JSON, or has no
    "text". Blank lines are passed over. A document without a "source" gets the stem of the file.
    """
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8)  # which some editors put first in a file
            if line.strip():
                try:
                    document = _parse_document(line, pathlib.Path(path).stem)
                except ValueError as error:
                    raise ValueError(f"{path}, line {number}: {error}") from None
                yield document


def _parse_document(line, default_source):
    """Return the document of a line (bytes), with the fields that all stages share."""
    try:
        fields = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} of the line is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a line of JSON ({error})") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("text"), str):
        raise ValueError('every line must be an object with a "text" that is a string')
    source = fields.get("source", default_source)
    if not isinstance(source, str) or not source:
        raise ValueError('"source" must be a string that is not empty')
    document = {"text": _without_surrogates(fields["text"]), "source": _without_surrogates(source)}
    if (split := fields.get("split")) is not None:
        if split not in ("train", "held_out"):
            raise ValueError('"split" must be "train" or "held_out"')
        document["split"] = split
    if (log2 := fields.get("log2_probability")) is not None:
        if type(log2) not in (int, float) or not abs(log2) < 1e308:
            raise ValueError('"log2_probability" must be a finite number')
        document["log2_probability"] = log2
    return document


def _without_surrogates(text):
    """Replace half surrogate pairs, which JSON can spell ("\\ud83d") and no UTF-8 file can hold."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def write_documents(documents, path):
    """Write documents as JSON lines, all or nothing; return whether the file changed.

    A file that already holds exactly these bytes keeps its time stamp, so that make does not redo
    what depends on it. Raises ValueError when there is no document at all.
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
