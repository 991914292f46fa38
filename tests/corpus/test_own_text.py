"""own_text.py: the text that is read is what was there; what is no text is one clear line."""

import functools
import html
import http.server
import json
import os
import pathlib
import sys
import threading

import pytest
from hypothesis import given, settings, strategies
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
                          "e.HTML": "<p>ee", "f.json": "[]", "z.jsonl": '{"text": "zed", "source": "other"}'}.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text(content, encoding="utf-8")
    assert module.read_text(folder) == documents_of(["ay", "bee", "dee", "ee", "sea", "zed"], "books")
    assert "reads 3 .txt, 1 .md, 1 .py, 1 .html, 1 .jsonl" in (said := capsys.readouterr().err)
    assert "skips 1 Makefile, 1 .json, 1 .bin" in said


def test_a_folder_in_it_that_may_not_be_opened_is_named(module, tmp_path, monkeypatch, capsys):
    (tmp_path / "a.txt").write_text(LINES)
    (tmp_path / "locked").mkdir()
    (tmp_path / "open").mkdir()
    if os.geteuid() == 0:  # who may open everything
        monkeypatch.setattr(os, "access", lambda path, how: path.name != "locked")
    (tmp_path / "locked").chmod(0)
    assert len(module.read_text(tmp_path)) == 2
    assert f"skips 1 folder that may not be opened ({tmp_path / 'locked'})" in \
        (said := capsys.readouterr().err) and str(tmp_path / "open") not in said


def test_several_names_are_read_as_if_each_stood_alone(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.txt", "my book.txt", "it's.txt", "a.txt it's.txt", "sub/c.md", "sub/d.md"):
        pathlib.Path(name).parent.mkdir(exist_ok=True)
        pathlib.Path(name).write_text(f"{name}\n{LINES}")
    alone = {name: module.read_text(name) for name in ("a.txt", "my book.txt", "it's.txt", "sub")}
    assert module.read_text("a.txt 'my book.txt'\n~/sub") == \
        alone["a.txt"] + alone["my book.txt"] + alone["sub"]
    assert module.read_text('a.txt "it\'s.txt"') == alone["a.txt"] + alone["it's.txt"]
    # A path as it was typed wins, whatever a shell would make of it.
    assert module.read_text("my book.txt") == alone["my book.txt"]
    assert module.read_text("a.txt it's.txt")[0]["source"] == "a.txt it's"


@pytest.mark.parametrize("text, named", [
    ("a.txt nowhere.txt", "nowhere.txt: no such"), ("my bok.txt", "my bok.txt: no such"),
    ("its' a.txt", "its' a.txt: no such"), ("  ", "  : no such")])
def test_of_several_names_the_missing_one_is_named(module, tmp_path, monkeypatch, text, named):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("a.txt").write_text(LINES)
    with pytest.raises(ValueError, match=f"^{named} file or folder$"):
        module.read_text(text)


PAGE = """<!DOCTYPE html><html><head><title>A page</title><style>p { color: red }</style>
<script>if (a < b) document.write("<p>not this</p>")</script></head><body><!-- nor this -->
<h1>Fish &amp; chips&nbsp;– 1 &lt; 2</h1>
  <p>A <b>bold</b>
     wo<i>r</i>d.</p><p>Two<br>three<ul><li>four<li>five</ul>
<table><tr><td>six</td><td>seven</td></tr></table>
<pre>def f():
    return <span>8</span></pre><![if IE]>a < b<![endif]></body></html>"""


def test_a_web_page_is_read_as_its_text(module, tmp_path):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    train, held_out = module.read_text(tmp_path / "page.html")
    assert (train["text"] + held_out["text"]).split("\n") == [
        "A page", "Fish & chips\xa0– 1 < 2", "A bold", "     word.", "Two", "three", "four", "five", "six",
        "seven", "def f():", "    return 8", "a < b", ""]


WORDS = strategies.text("ab&<>\"';é天 ", min_size=1).map(str.split).filter(bool)


@settings(deadline=None)
@given(lines=strategies.lists(WORDS, min_size=1), block=strategies.sampled_from(["p", "div", "my-tag"]))
def test_the_text_of_a_page_is_what_was_put_into_it(module, lines, block):
    page = "".join(f"<{block}>\n  " + " ".join(f"<b class='x>y'>{html.escape(word)}</b>" for word in line)
                   + f"\n</{block}><script>{html.escape(line[0])}</script>\n" for line in lines)
    assert module.page_text(page).split() == [word for line in lines for word in line]
    lines_of = [line.strip() for line in module.page_text(page).split("\n")]  # the source may indent
    assert lines_of == [" ".join(line) for line in lines]


@settings(deadline=None)
@given(page=strategies.text("<>!/[]-'\"=&;# apre\n") | strategies.text())
def test_any_text_is_a_page(module, page):
    assert isinstance(module.page_text(page), str)


def test_a_table_says_how_it_becomes_lines(module, tmp_path):
    for name in ("a.json", "a.csv"):
        (tmp_path / name).write_text('["text"]')
        with pytest.raises(ValueError, match=f"{name}: write it as .jsonl"):
            module.read_text(tmp_path / name)


def test_a_name_that_is_no_utf_8_is_read_and_named(module, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"caf\xe9.txt")
    try:
        pathlib.Path(os.fsdecode(path)).write_text(LINES)
    except OSError:
        pytest.skip("this disk takes only names in UTF-8")
    assert module.read_text(os.fsdecode(path))[0]["source"] == "caf\udce9"
    pathlib.Path(os.fsdecode(path)).write_bytes(b"\0")
    with pytest.raises(ValueError, match="caf\udce9.txt: this is a binary file"):
        module.read_text(tmp_path)


def test_a_jsonl_file_is_many_documents_and_one_document_is_a_long_text(module, tmp_path):
    path = tmp_path / "web.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert module.read_text(path) == documents_of(["one", "two"], "web")
    path.write_text(json.dumps({"text": LINES}), encoding="utf-8")
    assert [d["split"] for d in module.read_text(path)] == ["train", "held_out"]


@pytest.mark.parametrize("name, content, message", [
    ("a.txt", b"", "no text found .it is empty"), ("a.txt", b" \n", "no text"), ("a.jsonl", b"", "no text"),
    ("a.txt", b"\x7fELF\x00\x01", "binary"), ("a.txt", b"%PDF-1.4\n\xb5", "binary"),
    ("a.txt", "天地".encode("gb18030"), "-f gb18030 if"),
    ("a.txt", "Un café très agréable".encode("cp1252"), "-t utf-8 -f windows-1252"),
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
    (folder / "page.html").write_text(PAGE, encoding="utf-8")
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


def test_an_address_may_be_shouted_and_holds_no_password(module, address):
    assert module.read_text(address.replace("http", "HTTP") + "/my%20dream.txt")
    with pytest.raises(ValueError, match="with a password is not read") as caught:
        module.read_text(address.replace("//", "//me:secret@") + "/a.txt")
    assert "secret" not in str(caught.value)
    for wrong in ("/nowhere.txt", "/my%20dream.json"):  # behind a ? there may be a key
        with pytest.raises(ValueError, match="http") as caught:
            module.read_text(f"{address}{wrong}?key=secret")
        assert "secret" not in str(caught.value)


def test_a_server_that_sends_next_to_nothing_is_given_up(module, address, monkeypatch):
    clock = iter([0.0, 90.0])  # a minute and half for a few bytes
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock, 90.0))
    with pytest.raises(ValueError, match="cannot be fetched .less than 1 kB a second"):
        module.read_text(f"{address}/my%20dream.txt")


def test_an_address_of_a_web_page_is_read_as_its_text(module, address):
    train, held_out = module.read_text(f"{address}/page.html {address}/page.html")[2:]
    assert (train["text"] + held_out["text"]).startswith("A page\nFish & chips")


@pytest.mark.parametrize("page, message", [
    ("absent.txt", "404"), ("cut.jsonl", "line 2: not a line of JSON"),
    ("short.txt", "22500 bytes read")])
def test_an_address_that_fails_is_named(module, address, page, message):
    with pytest.raises(ValueError, match=message) as caught:
        module.read_text(f"{address}/{page}")
    assert str(caught.value).startswith(f"{address}/{page}")


def test_a_host_that_does_not_answer_is_named(module):
    with pytest.raises(ValueError, match="127.0.0.1:9.*cannot be fetched"):
        module.read_text("http://127.0.0.1:9/a.txt")
