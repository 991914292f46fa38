"""Documents in files: JSON lines that each stage of the pipeline reads and the next one writes.

    write_documents([{"text": "Once upon a time …", "source": "stories_en"}], "raw.jsonl")
    list(read_documents("raw.jsonl"))      # [{"text": "Once upon a time …", "source": …}]

A document has a "text" and a "source", the named part of the corpus that it belongs to; some have
a "split", "train" or "held_out", and a story of the grammar has its "log2_probability"."""

import filecmp
import json
import pathlib
import shutil

from nanoseek import cli

ENCODING = "is not UTF-8: save it with iconv -t utf-8 -f windows-1252, or -f gb18030 if Chinese"
FIELDS = {  # that all stages share, with what a value must be
    "text": (lambda value: isinstance(value, str), "a string"),
    "source": (lambda value: isinstance(value, str) and value, "a string that is not empty"),
    "split": (lambda value: value in (None, "train", "held_out"), '"train" or "held_out"'),
    "log2_probability": (lambda value: value is None or type(value) in (int, float)
                         and abs(value) < 1e308, "a finite number")}


def read_documents(path):
    """Yield the documents of a JSON lines file; the stem of its name is the source they lack."""
    with open(path, "rb") as lines:
        yield from parse_documents(lines, path, pathlib.Path(path).stem)


def parse_documents(lines, name, default_source):
    """Yield the documents of JSON lines, given as bytes; ValueError names the line at fault."""
    for number, line in enumerate(lines, start=1):
        try:
            line = line.decode("utf-8-sig")  # some editors begin a file with a byte order mark
            if not line.strip():
                continue
            found = {"source": default_source, **json.loads(line)}
        except UnicodeDecodeError as error:
            raise ValueError(f"{name}, line {number}: byte {error.start + 1} {ENCODING}") from None
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{name}, line {number}: not a line of JSON in UTF-8 such as "
                             f'{{"text": "…"}} ({error})') from None
        for field, (fits, wanted) in FIELDS.items():
            value = found.get(field)
            if not fits(value):
                raise ValueError(f'{name}, line {number}: "{field}" must be {wanted}')
            if isinstance(value, str):  # JSON can spell half a surrogate pair, which UTF-8 cannot
                found[field] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        yield {field: found[field] for field in FIELDS if found.get(field) is not None}


def write_documents(documents, path):
    """Write documents as JSON lines, all or nothing; return whether the file changed.

    A file that already holds these bytes keeps its time stamp, so that make redoes nothing."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with cli.writing(path) as new:
        # "?" for what UTF-8 cannot hold: a source may be named after a file from another system.
        with open(new, "w", encoding="utf-8", errors="replace", newline="\n") as out:
            out.writelines(json.dumps(d, ensure_ascii=False) + "\n" for d in documents)
        if new.stat().st_size == 0:
            raise ValueError(f"{path}: there is no document to write")
        unchanged = path.is_file() and filecmp.cmp(new, path, shallow=False)
        if unchanged:
            shutil.copystat(path, new)
    return not unchanged
