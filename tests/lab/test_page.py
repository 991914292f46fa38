"""page.py: the bits that it shades add up to a document's own, and the page holds any text whole."""

import json
import math
import random
import re
import shutil

import numpy as np
import pytest

from nanoseek import cli, data, evaluate
from nanoseek.corpus.stories import END, log2_probability, stories
from nanoseek.evaluate import nats
from nanoseek.lab import page
from nanoseek.lab.subject import open_subject
from nanoseek.tokenizer import Tokenizer

EVIL = "</script><script>alert('&\"')</script> <!-- ]]> \\u003c \u2028 \x00\x1b[2J {} const run = 1;</script>"


def embedded(path):
    """Return a page's data and all else of it, as a browser cuts them: at the first </script."""
    before, _, rest = path.read_text("utf-8").partition("<script>const run = ")
    inside, end, after = rest.partition(";</script")
    assert end and "<" not in inside and "</script" in after
    return json.loads(inside), before + after


def cut(text, rng):
    places = sorted(rng.sample(range(1, len(text)), 30))
    return [text[i:j] for i, j in zip([0, *places], [*places, len(text)])] + [END]


# The bits ----------------------------------------------------------------------------------------

def test_a_models_bits_add_up_to_the_score_of_the_document(folder, documents):
    subject = open_subject(folder / "ours")
    for document in documents[::5]:
        ids = subject.ids(document["text"])
        assert len(ids) > 2 * subject.model.config.max_position_embeddings  # several windows
        shaded = page.surprise_map(subject, ids, story=True)
        assert sum(shaded["model"]) == pytest.approx(
            nats(subject.model, [ids]) / math.log(2), rel=1e-5)
        assert "".join(shaded["texts"]) == document["text"] + END and min(shaded["model"]) > 0
        assert sum(shaded["grammar"]) == pytest.approx(-log2_probability(document["text"]))
        assert len({*map(len, shaded.values())}) == 1


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_grammars_bits_add_up_to_those_of_the_story_wherever_it_is_cut(language):
    rng = random.Random(0)
    for story in stories(language, 10, 3):
        bits = page.grammar_bits(cut(story.text, rng))
        assert sum(bits) == pytest.approx(-log2_probability(story.text)) and min(bits) >= -1e-9
    assert page.grammar_bits(["Once upon a time ", "nothing like this was written.", END]) == []


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_grammars_bits_are_how_often_stories_begin_so(language):
    texts = [story.text for story in stories(language, 3000, 4)]
    for size in (1, 3, 8):
        beginning = texts[0][:size]
        bits, _ = page.grammar_bits([beginning, texts[0][size:]])
        expected = 2 ** (1 - bits)  # without the bit for the language
        share = sum(text.startswith(beginning) for text in texts) / len(texts)
        assert share == pytest.approx(expected, abs=4 * math.sqrt(expected / len(texts)) + 1e-9)


def test_an_id_that_ends_inside_a_character_is_joined_to_the_next(folder, monkeypatch):
    subject = open_subject(folder / "ours")
    monkeypatch.setattr(type(subject.tokenizer), "decode_bytes", lambda self, ids: bytes(ids))
    monkeypatch.setattr(page, "token_bits", lambda model, ids: np.arange(1.0, len(ids)))
    shaded = page.surprise_map(subject, np.array([0, *"a红b".encode(), 0]), story=False)
    assert shaded == {"texts": ["a", "红", "b", END], "model": [1, 9, 5, 6], "grammar": []}


# The page ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("text", [EVIL, *(chr(n) for n in range(32)), "\ud800", "红", "\\", "'\""])
def test_any_text_comes_back_whole(tmp_path, text):
    page.write_page(tmp_path / "a.html", text, [], {text: 1.5}, samples={text: [text]})
    found, rest = embedded(tmp_path / "a.html")
    assert found == {"name": text, "log": [], "floors": {text: 1.5}, "samples": {text: [text]}}
    page.write_page(tmp_path / "b.html", "b", [], {})
    assert rest == embedded(tmp_path / "b.html")[1]


def test_the_page_loads_nothing_and_sets_texts_as_text():
    template = page.TEMPLATE.read_text("utf-8")
    assert "default-src 'none'" in template and "innerHTML" not in template
    assert not re.search(r"\ssrc=|href=\"(?!data:,)|url\(|@import|fetch\(|import\(", template)
    assert {*re.findall(r"https?://[^\"]*", template)} == {"http://www.w3.org/2000/svg"}


def test_a_long_log_is_thinned_but_for_its_evaluations(tmp_path):
    log = [{"step": n, "tokens": 9 * n, "bits_per_byte": 2.0, "loss": 1.0} for n in range(1, 20_000)]
    for n in range(500, 19_000, 700):
        log[n]["held_out"] = {"s": 1.0}
    page.write_page(tmp_path / "a.html", "a", log, {})
    rows = embedded(tmp_path / "a.html")[0]["log"]
    assert page.SHOWN_ROWS / 2 < len(rows) < 2 * page.SHOWN_ROWS and "loss" not in rows[0]
    assert [row for row in rows if "held_out" in row] == [
        {k: row[k] for k in ("tokens", "bits_per_byte", "held_out")} for row in log
        if "held_out" in row]


# The command -------------------------------------------------------------------------------------

def made_run(folder, documents, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folder / "ours", run)
    (run / "checksums.json").unlink()
    tokenizer = Tokenizer.load(folder / "ours.json")
    data.write_shards(documents, tokenizer.encode, run / "tokens", tokenizer.vocab_size,
                      tokenizer.eot_id, folder / "ours.json")
    (run / "curation.json").write_text(json.dumps({
        "totals": {"in": {"documents": 9, "bytes": 900}, "out": {"documents": 8, "bytes": 800}},
        "removed": {"copy": {"documents": 1, "bytes": 100, "examples": [EVIL]}}, "cut": {}}))
    (run / "trainer.json").write_text('{"config": {"steps": 3}, "choices": {"threads": 1}}')
    return run


def test_the_command_writes_a_page_of_all_it_prints_and_of_the_runs_files(folder, documents,
                                                                          tmp_path, capsys):
    run = made_run(folder, documents, tmp_path)
    evaluate.main([str(run), "--samples", "1", "--cloze", "2", "--page", str(run / "report.html")])
    found, printed = embedded(run / "report.html")[0], capsys.readouterr().out
    held = {source: [d for d in documents if d["source"] == source and d["split"] == "held_out"]
            for source in ("stories_en", "stories_zh")}
    for source, several in held.items():
        count, bits, unigram, floor = found["scores"][source]
        assert re.search(rf"{source} +{count} +{bits:.3f} +{floor:.3f}.*{unigram:.3f}", printed)
        assert count == len(several) and found["floors"][source] == floor
        assert found["samples"][source][0] in printed
        assert sum(found["maps"][source]["grammar"]) == pytest.approx(
            -several[0]["log2_probability"])
    assert len(found["cloze"]) == 5
    for ability, (words, chance) in found["cloze"].items():
        assert f"{ability} {words}" in printed and chance in (0.25, 0.5)
        assert re.fullmatch(r"\d+% \(\d+%–\d+%\)", words)  # page.html draws its three numbers
    assert found["curation"] == [["− copy", 1, 100, [EVIL]], ["in", 9, 900, []],
                                 ["out", 8, 800, []]]
    assert found["settings"] == {"steps": 3, "threads": 1} and "time" in found["bill"]
    assert f"scored: {run}" in printed and found["checkpoint"] == str(run)


def test_of_own_text_the_page_has_the_models_bits_alone(folder, tmp_path):
    texts = [f"{EVIL} number {n}: 价格 <b>{n * 7}</b>" for n in range(4)] + ["long " * 1000]
    documents = [{"text": text, "source": "a <b> & c", "split": "held_out" if n % 2 else "train"}
                 for n, text in enumerate(texts)]
    subject = open_subject(made_run(folder, documents, tmp_path))
    found = page.find_more(subject, evaluate.evaluate(subject.model, subject.tokens))
    [shaded] = found["maps"].values()
    assert shaded["grammar"] == [] and "".join(shaded["texts"]) == texts[1] + END
    shaded = page.surprise_map(subject, subject.ids(texts[-1]), story=False)
    assert len(shaded["texts"]) < page.SHOWN_IDS and END not in shaded["texts"]


@pytest.mark.parametrize("name, text", [
    ("curation.json", '{"removed": {"copy": {}}}'), ("curation.json", "[]"),
    ("cost.json", '{"parameters": "many"}'), ("trainer.json", '{"config": {}, "choices": 3}')])
def test_a_damaged_file_is_one_clear_line_and_leaves_the_old_page(folder, documents, tmp_path, name,
                                                                  text, capsys):
    run = made_run(folder, documents, tmp_path)
    (run / name).write_text(text)
    (run / "report.html").write_text("the old page")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: evaluate.main([str(run), "--cloze", "0", "--page",
                                       str(run / "report.html")]))
    last = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and "damaged" in last and name in last
    assert (run / "report.html").read_text() == "the old page"


@pytest.mark.parametrize("path", ["clean.jsonl", "nowhere/report.html"])
def test_a_page_goes_only_where_a_page_may_stand(path, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        evaluate.main([str(folder / "ours"), "--page", str(folder / path)])
    assert stop.value.code == 2 and "--page" in capsys.readouterr().err
