"""documents.py: what is written is read back, a broken line is named, files are whole."""

import os

import pytest
from hypothesis import given, settings, strategies
from sample_texts import documents_of

MODULE = "nanoseek.corpus.documents"


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
    (b'{"text": "a"', "not a line of JSON"), (b'["text"]', "not a line of JSON.*list"), (b'{"text": 3}', "string"),
    (b'{"source": "s"}', "string"), (b'{"text": "a", "source": 1}', "source"),
    (b'{"text": "a", "split": "test"}', "split"), (b'{"text": "\xff"}', "windows-1252"),
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
