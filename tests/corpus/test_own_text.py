"""own_text.py: the text that is read is what was there; what is no text is one clear line."""

import functools
import http.server
import json
import pathlib
import threading

import pytest
from sample_texts import documents_of

MODULE = "nanoseek.corpus.own_text"
LINES = "".join(f"line {n} of a long text\n" for n in range(400))


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


def test_a_folder_is_many_documents_in_order_of_names(module, tmp_path, capsys):
    folder = tmp_path / "books"
    for name, content in {"b.txt": "bee", "a.md": "ay", "sub/c.txt": "sea", "x.bin": "\0",
                          ".git/d.txt": "hidden", "empty.txt": "  \n", "d.py": "dee", "Makefile": "make",
                          "z.jsonl": '{"text": "zed", "source": "other"}'}.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content, encoding="utf-8")
    assert module.read_text(folder) == documents_of(["ay", "bee", "dee", "sea", "zed"], "books")
    assert "reads 3 .txt, 1 .md, 1 .py, 1 .jsonl" in (said := capsys.readouterr().err)
    assert "skips 1 Makefile, 1 .bin" in said


def test_a_jsonl_file_is_many_documents_and_one_document_is_a_long_text(module, tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert module.read_text(path) == documents_of(["one", "two"], "web")
    path.write_text(json.dumps({"text": LINES}), encoding="utf-8")
    assert [d["split"] for d in module.read_text(path)] == ["train", "held_out"]


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", b"", "no text"), ("a.txt", b" \n", "no text"), ("a.jsonl", b"", "no text"),
    ("a.txt", b"\x7fELF\x00\x01", "binary"), ("a.txt", "天地".encode("gb18030"), "it may be gb18030"),
    ("a.txt", "Un café très agréable".encode("cp1252"), "it may be windows-1252"),
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


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    (folder / "my dream.txt").write_text(LINES, encoding="utf-8")
    (folder / "page.html").write_text("<html>", encoding="utf-8")
    (folder / "cut.jsonl").write_text('{"text": "one"}\n{"text": "tw', encoding="utf-8")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            if not self.path.startswith("/short"):
                return super().do_GET()
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"a line of text\n" * 1500)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0),
                                             functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_an_address_is_read_like_a_file(module, address):
    train, held_out = module.read_text(f"{address}/my%20dream.txt")
    assert train["text"] + held_out["text"] == LINES and train["source"] == "my dream"


@pytest.mark.parametrize("page, message", [
    ("absent.txt", "404"), ("page.html", "web page"), ("cut.jsonl", "line 2: not a line of JSON"),
    ("short.txt", "22500 bytes read")])
def test_an_address_that_fails_is_named(module, address, page, message):
    with pytest.raises(ValueError, match=message) as caught:
        module.read_text(f"{address}/{page}")
    assert str(caught.value).startswith(f"{address}/{page}")


def test_a_host_that_does_not_answer_is_named(module):
    with pytest.raises(ValueError, match="127.0.0.1:9.*cannot be fetched"):
        module.read_text("http://127.0.0.1:9/a.txt")
