"""corpus.py: what is read is what was there, bad input is one clear line, dirt has true labels."""

import collections
import functools
import hashlib
import http.server
import inspect
import json
import os
import pathlib
import re
import string
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings, strategies

from nanoseek import corpus as installed

MODULE = "nanoseek.corpus"
LINES = "".join(f"line {n} of a long text\n" for n in range(400))


def documents_of(texts, source="s"):
    return [{"text": text, "source": source} for text in texts]


def run(folder, *arguments):
    return subprocess.run([sys.executable, "-m", "nanoseek.corpus", *map(str, arguments)],
                          cwd=folder, capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONIOENCODING": "utf-8", "PYTHONPATH":
                               str(pathlib.Path(installed.__file__).parents[1])})


# Reading and writing -----------------------------------------------------------------------

@settings(deadline=None)
@given(text=strategies.text(min_size=1), source=strategies.text(min_size=1, max_size=9))
def test_what_is_written_is_read_back(module, tmp_path_factory, text, source):
    path = tmp_path_factory.mktemp("documents") / "a.jsonl"
    document = {"text": text, "source": source}
    if any("\ud800" <= c <= "\udfff" for c in text + source):
        return
    module.write_documents([document, document], path)
    assert list(module.read_documents(path)) == [document, document]
    assert path.read_bytes().count(b"\n") == 2


def test_fields_that_stages_share_are_read_and_others_are_not(module, tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_bytes('\ufeff{"text": "a", "url": "x"}\r\n\n{"text": "\\ud83d", "source": "b", '
                     '"split": "held_out", "log2_probability": -3}'.encode())
    assert list(module.read_documents(path)) == [
        {"text": "a", "source": "web"},
        {"text": "\ufffd", "source": "b", "split": "held_out", "log2_probability": -3}]


@pytest.mark.parametrize("line, message", [
    (b'{"text": "a"', "not a line of JSON"), (b'["text"]', "string"), (b'{"text": 3}', "string"),
    (b'{"source": "s"}', "string"), (b'{"text": "a", "source": 1}', "source"),
    (b'{"text": "a", "split": "test"}', "split"), (b'{"text": "\xff"}', "not UTF-8"),
    (b'{"text": "a", "log2_probability": NaN}', "finite"),
    (b'{"text": "a", "log2_probability": ' + b"9" * 400 + b"}", "finite"), (b"[" * 100_000, "JSON"),
])
def test_a_broken_line_is_named_by_its_number(module, tmp_path, line, message):
    path = tmp_path / "web.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=f"line 3.*{message}"):
        list(module.read_documents(path))


def test_half_a_surrogate_pair_in_a_source_is_replaced(module, tmp_path):
    (tmp_path / "web.jsonl").write_text('{"text": "a", "source": "s\\ud83d"}')
    assert next(module.read_documents(tmp_path / "web.jsonl"))["source"] == "s\ufffd"


def test_writing_is_all_or_nothing_and_leaves_equal_files_alone(module, tmp_path):
    path = tmp_path / "new" / "raw.jsonl"
    assert module.write_documents(documents_of("ab"), path) is True
    os.utime(path, ns=(10**18, 10**18))
    assert module.write_documents(documents_of("ab"), path) is False
    assert path.stat().st_mtime_ns == 10**18
    before = path.read_bytes()

    def broken():
        yield {"text": "c", "source": "s"}
        raise ValueError("stopped half-way")
    with pytest.raises(ValueError, match="half-way"):
        module.write_documents(broken(), path)
    with pytest.raises(ValueError, match="no document"):
        module.write_documents([], path)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
    assert module.write_documents(documents_of("abc"), path) is True


def test_a_full_disk_leaves_what_was_there(module, tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limit on files to try")
    path, before = tmp_path / "raw.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    module.write_documents(documents_of("ab"), path)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))
        with pytest.raises(OSError):
            module.write_documents(documents_of("a" * 9000), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(module.read_documents(path)) == documents_of("ab")
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("name", ["my dream.txt", "notes.md", "noending"])
def test_a_single_file_is_one_long_text_with_its_end_held_out(module, tmp_path, name):
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + LINES.encode())
    train, held_out = module.read_text(str(tmp_path / name))
    assert (train["split"], held_out["split"]) == ("train", "held_out")
    assert train["text"] + held_out["text"] == LINES
    assert train["text"].endswith("\n") and 0.87 < len(train["text"]) / len(LINES) <= 0.9
    assert train["source"] == held_out["source"] == pathlib.Path(name).stem


def test_a_text_without_line_ends_is_cut_between_characters(module, tmp_path):
    (tmp_path / "a.txt").write_text("天地玄黄" * 100, encoding="utf-8")
    train, held_out = module.read_text(tmp_path / "a.txt")
    assert train["text"] == "天地玄黄" * 90
    assert held_out["text"].strip() == "天地玄黄" * 10


def test_a_folder_is_many_documents_in_order_of_names(module, tmp_path):
    folder = tmp_path / "books"
    for name, content in {"b.txt": "bee", "a.md": "ay", "sub/c.txt": "sea", "x.bin": "\0",
                          ".git/d.txt": "hidden", "empty.txt": "  \n",
                          "z.jsonl": '{"text": "zed", "source": "other"}'}.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content, encoding="utf-8")
    assert module.read_text(folder) == documents_of(["ay", "bee", "sea", "zed"], "books")


def test_a_jsonl_file_is_many_documents_and_one_document_is_a_long_text(module, tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert module.read_text(path) == documents_of(["one", "two"], "web")
    path.write_text(json.dumps({"text": LINES}), encoding="utf-8")
    assert [d["split"] for d in module.read_text(path)] == ["train", "held_out"]


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", b"", "no text"), ("a.txt", b" \n", "no text"), ("a.jsonl", b"", "no text"),
    ("a.txt", b"\x7fELF\x00\x01", "binary"), ("a.txt", "天地".encode("gb18030"), "not UTF-8"),
    ("a.txt", "text".encode("utf-16"), "UTF-16"), ("a.txt", b"x", "too short"),
    ("a.jsonl", b"{", "line 1"),
])
def test_a_file_that_is_no_text_is_refused(module, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        module.read_text(tmp_path / name)


def test_a_missing_path_and_an_empty_folder_are_refused(module, tmp_path):
    with pytest.raises(ValueError, match="no such file"):
        module.read_text(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match="no text"):
        module.read_text(tmp_path)
    with pytest.raises(ValueError, match="one file"):
        module.read_text(tmp_path, sha256="0" * 64)


# Addresses ---------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "my dream.txt").write_text(LINES, encoding="utf-8")
    (folder / "page.html").write_text("<html>", encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0),
                                             functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_address_is_read_like_a_file(module, address):
    digest = hashlib.sha256(LINES.encode()).hexdigest()
    train, held_out = module.read_text(f"{address}/my%20dream.txt", sha256=digest.upper())
    assert train["text"] + held_out["text"] == LINES and train["source"] == "my dream"


@pytest.mark.parametrize("page, message", [
    ("absent.txt", "404"), ("page.html", "web page"), ("my%20dream.txt", "sha256")])
def test_an_address_that_fails_is_named(module, address, page, message):
    with pytest.raises(ValueError, match=message) as caught:
        module.read_text(f"{address}/{page}", sha256="0" * 64)
    assert page in str(caught.value)


def test_a_host_that_does_not_answer_is_named(module):
    with pytest.raises(ValueError, match="127.0.0.1:9.*cannot be fetched"):
        module.read_text("http://127.0.0.1:9/a.txt")


# The Python documentation ------------------------------------------------------------------

@pytest.fixture(scope="module")
def docs(module):
    return module.python_docs()


def test_python_docs_are_those_that_help_shows(docs):
    text = "\n".join(document["text"] for document in docs)
    for documented in (json.dumps, string.Template, pathlib.Path.read_text, json):
        assert inspect.getdoc(documented) in text
    assert 'The "if" statement' in text
    assert {document["source"] for document in docs} == {"python_docs"}
    assert 1e6 < len(text.encode()) < 8e6


def test_python_docs_import_nothing_with_side_effects(docs):
    assert len(docs) > 100 and not {"antigravity", "this", "turtle"} & set(sys.modules)


# Dirt --------------------------------------------------------------------------------------

ENGLISH = [f"The {adjective} miller of {place}, who had {count} sons, said to them that the wheel "
           f"would stand still until {season}. They waited by the river: nobody knew why."
           for adjective in ("old", "young", "tall", "poor") for place in ("Ashby", "Oak", "Wick")
           for count in ("two", "three", "nine") for season in ("spring", "autumn", "noon")]
CHINESE = [f"{place}有个{adjective}磨坊主，他有{count}个儿子。他对他们说：水车要等到{season}才会转动，"
           "于是大家坐在河边等着，谁也不知道为什么。"
           for adjective in ("年老的", "年轻的", "高个子") for place in ("东村", "西庄", "南镇")
           for count in "两三九" for season in ("春天", "秋天", "中午")]
CLEAN = documents_of(ENGLISH, "en") + documents_of(CHINESE, "zh")


@pytest.mark.parametrize("share", [0.0, 0.22, 0.5, 0.9])
def test_the_share_of_dirt_is_met_in_equal_parts(module, share):
    documents, labels = module.plant_dirt(CLEAN, 5, share)
    counts = collections.Counter(label.kind for label in labels)
    clean = counts.pop("clean")
    assert len(documents) == len(labels)
    assert 1 - clean / len(labels) == pytest.approx(share, abs=0.03)
    assert set(counts) == (set(module.DIRT) if share else set())
    assert max(counts.values(), default=0) == min(counts.values(), default=0)


def test_labels_tell_the_truth(module):
    documents, labels = module.plant_dirt(CLEAN, 5, 0.8)
    texts = {d["text"] for d in CLEAN}
    assert collections.Counter(d["text"] for d, label in zip(documents, labels)
                               if label.kind == "clean").most_common(1)[0][1] == 1
    for document, label in zip(documents, labels):
        text = document["text"]
        if label.original is not None:
            original = documents[label.original]["text"]
            assert labels[label.original].kind == "clean"
        if label.kind in ("clean", "exact"):
            assert text in texts and (label.kind == "clean" or text == original)
        elif label.kind == "near":
            words, others = (re.findall(r"[一-龥]|[^\W一-龥]+", t) for t in (text, original))
            changed = sum(a != b for a, b in zip(words, others)) / len(words)
            assert len(words) == len(others) and changed <= label.changed <= 0.11
        elif label.kind == "format":
            assert text != original
            assert re.sub(r"[\W_]", "", fold(text)) == re.sub(r"[\W_]", "", fold(original))
        elif label.kind == "boilerplate":
            assert text.split("\n\n")[1] in texts
        else:
            assert text not in texts and label.original is None


def fold(text):
    import unicodedata
    return unicodedata.normalize("NFKC", text).lower()


def test_dirt_is_the_same_for_a_seed_and_changes_nothing_given(module):
    before = json.dumps(CLEAN)
    first = module.plant_dirt(CLEAN, 1, 0.5)
    assert json.dumps(CLEAN) == before
    assert module.plant_dirt(CLEAN, 1, 0.5) == first != module.plant_dirt(CLEAN, 2, 0.5)
    with pytest.raises(ValueError, match="share"):
        module.plant_dirt(CLEAN, 1, 1.0)
    with pytest.raises(ValueError, match="no document"):
        module.plant_dirt([], 1)


def test_dirt_among_odd_documents(module):
    odd = documents_of(["", "?", "one", "字", "two words"] * 4)
    documents, labels = module.plant_dirt(odd, 3, 0.8)
    assert {label.kind for label in labels} == {"clean", *module.DIRT}


# The command -------------------------------------------------------------------------------

def test_the_default_corpus_is_bilingual_and_repeats(tmp_path):
    arguments = "raw.jsonl", "--stories", "40", "--python_docs", "false", "--seed", "3"
    assert run(tmp_path, *arguments).stdout.endswith("raw.jsonl: written\n")
    documents = list(installed.read_documents(tmp_path / "raw.jsonl"))
    counts = collections.Counter(d["source"] for d in documents)
    assert counts == {"stories_en": 20, "stories_zh": 20}
    assert all(d["log2_probability"] < 0 for d in documents)
    stamp = (tmp_path / "raw.jsonl").stat().st_mtime_ns
    assert run(tmp_path, *arguments).stdout.endswith("raw.jsonl: unchanged\n")
    assert (tmp_path / "raw.jsonl").stat().st_mtime_ns == stamp
    run(tmp_path, *arguments, "--dirt", "0.5")
    assert 55 < len(list(installed.read_documents(tmp_path / "raw.jsonl"))) < 80


def test_own_text_stands_alone(tmp_path):
    (tmp_path / "my dream.txt").write_text(LINES, encoding="utf-8")
    done = run(tmp_path, "raw.jsonl", "--text", "my dream.txt")
    assert done.returncode == 0, done.stderr
    assert {d["source"] for d in installed.read_documents(tmp_path / "raw.jsonl")} == {"my dream"}


@pytest.mark.parametrize("arguments, message", [
    (("--text", "nowhere.txt"), "no such file"), (("--stories", "many"), "invalid int"),
    (("--stories", "-3"), "0 or more"), (("--sha256", "00"), "--text"), (("--dirt", "2"), "dirt"),
    (("--unknown", "1"), "unrecognized"),
    (("--stories", "0", "--python_docs", "no"), "no document"),
    (("--text", ""), "--text is empty"), (("--text", "~nobody-of-this-name/x"), "no such file"),
])
def test_bad_input_is_one_line_and_nothing_is_written(tmp_path, arguments, message):
    done = run(tmp_path, "raw.jsonl", *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not list(tmp_path.iterdir())
