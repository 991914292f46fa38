"""The command that gathers the corpus, and the names of the package."""

import collections
import os
import pathlib
import subprocess
import sys

import pytest

from nanoseek import corpus

LINES = "".join(f"line {n} of a long text\n" for n in range(400))


def run(folder, *arguments):
    """Run the command, which must warn of nothing, a module that is loaded twice included."""
    return subprocess.run([sys.executable, "-W", "error", "-m", "nanoseek.corpus",
                           *map(str, arguments)],
                          cwd=folder, capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH":
                               str(pathlib.Path(corpus.__file__).parents[2])})


def test_the_default_corpus_is_bilingual_and_repeats(tmp_path):
    arguments = "raw.jsonl", "--stories", "40", "--python_docs", "false", "--seed", "3"
    assert run(tmp_path, *arguments).stdout.endswith("raw.jsonl: written\n")
    documents = list(corpus.read_documents(tmp_path / "raw.jsonl"))
    counts = collections.Counter(d["source"] for d in documents)
    assert counts == {"stories_en": 20, "stories_zh": 20}
    assert all(d["log2_probability"] < 0 for d in documents)
    stamp = (tmp_path / "raw.jsonl").stat().st_mtime_ns
    assert run(tmp_path, *arguments).stdout.endswith("raw.jsonl: unchanged\n")
    assert (tmp_path / "raw.jsonl").stat().st_mtime_ns == stamp


def test_own_text_stands_alone(tmp_path):
    (tmp_path / "my dream.txt").write_text(LINES, encoding="utf-8")
    done = run(tmp_path, "raw.jsonl", "--text", "my dream.txt")
    assert done.returncode == 0, done.stderr
    assert {d["source"] for d in corpus.read_documents(tmp_path / "raw.jsonl")} == {"my dream"}


def test_several_texts_are_sources_of_their_own_and_none_is_written_over(tmp_path):
    for name in ("my dream.txt", "b.txt", "sub/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(LINES, encoding="utf-8")
    done = run(tmp_path, "raw.jsonl", "--text", "'my dream.txt' b.txt")
    assert done.returncode == 0, done.stderr
    assert [(d["source"], d["split"]) for d in corpus.read_documents(tmp_path / "raw.jsonl")] == [
        (source, split) for source in ("my dream", "b") for split in ("train", "held_out")]
    done = run(tmp_path, "sub/c.txt", "--text", "b.txt sub")
    assert done.returncode == 2 and "would be read and written" in done.stderr
    assert (tmp_path / "sub" / "c.txt").read_text("utf-8") == LINES


def test_a_file_whose_name_is_no_utf_8_is_taken(tmp_path):
    try:
        pathlib.Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.txt")).write_text(LINES)
    except OSError:
        pytest.skip("this disk takes only names in UTF-8")
    done = run(tmp_path, "raw.jsonl", "--text", os.fsdecode(b"caf\xe9.txt"))
    assert done.returncode == 0, done.stderr
    assert {d["source"] for d in corpus.read_documents(tmp_path / "raw.jsonl")} == {"caf?"}


@pytest.mark.parametrize("arguments, message", [
    (("--text", "nowhere.txt"), "no such file"),
    (("--text", "nowhere.txt it's"), "nowhere.txt it's: no such"), (("--stories", "many"), "invalid int"),
    (("--stories", "-3"), "stories is -3: it must be at least 0"),
    (("--unknown", "1"), "unrecognized"),
    (("--stories", "0", "--python_docs", "no"), "no document"),
    (("--text", ""), "--text is empty"), (("--text", "~nobody-of-this-name/x"), "no such file"),
])
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, arguments, message):
    done = run(tmp_path, "raw.jsonl", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())


def test_the_names_of_the_package_are_functions_whatever_was_imported_before(tmp_path):
    code = ("import nanoseek.corpus.stories, nanoseek.corpus.python_docs, nanoseek.corpus.gather\n"
            "from nanoseek.corpus import gather, python_docs, stories\n"
            "print(callable(stories), callable(python_docs), callable(gather))")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          cwd=pathlib.Path(corpus.__file__).parents[2])
    assert done.stdout.split() == ["True"] * 3
