"""arena.py: fair pairs against counted ones, and the report of three models side by side."""

import json
import shutil

import numpy as np
import pytest

from nanoseek import cli, data
from nanoseek.checkpoint import save_model
from nanoseek.corpus import write_documents
from nanoseek.lab import arena, report
from nanoseek.lab.subject import open_subject
from nanoseek.tokenizer import Tokenizer


def test_the_sign_test_equals_all_signs_counted():
    import itertools
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.05, 0.6, 0.1])
    sums = [abs(np.dot(s, differences)) for s in itertools.product((1, -1), repeat=8)]
    exact = np.mean([s >= abs(differences.sum()) - 1e-9 for s in sums])
    assert arena.sign_test(differences) == pytest.approx(exact, abs=0.02)
    assert arena.sign_test(np.zeros(5)) == 1


def test_of_answers_the_sign_test_is_the_binomial_test():
    differences = [1] * 9 + [-1] * 2 + [0] * 20
    # McNemar's p
    assert arena.sign_test(np.array(differences)) == pytest.approx(0.0654296875, abs=0.01)


def test_equal_models_are_seldom_told_apart(monkeypatch):
    """Over tables of ten comparisons of two equal models, Holm finds a difference in under 5%."""
    exact = arena.sign_test
    monkeypatch.setattr(arena, "sign_test", lambda values: exact(values, resamples=1111))
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        answers = rng.random((10, 2, 60)) < 0.6
        wrong += any(arena.holm([a * 1 - b for a, b in answers]))
    assert wrong / 300 <= 0.05
    p_values = iter([0.04, 0.001, 0.5])
    monkeypatch.setattr(arena, "sign_test", lambda values: next(p_values))
    assert arena.holm([np.array([1]), np.array([-1]), np.array([1])]) == [0, -1, 0]


def run_arena(*arguments):
    return cli.run(lambda: arena.main([str(a) for a in arguments]))


def test_the_report_holds_every_row_as_markdown(folder, capsys):
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", folder / "ours", folder / "llama", "--cloze", 2, "--judged", 2)
    captured = capsys.readouterr()
    printed = captured.out
    assert captured.err.splitlines() == ["scoring held-out text …", "asking cloze questions …",
                                         "writing and checking stories …"]
    assert not stop.value.code
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    for label in ("bits per byte of stories_en (floor", "cloze pronoun (chance 50%)", "cloze all",
                  "consistent stories_zh (of 2)", "tokens/s", "training, seconds",
                  "training, FLOPs", "training, dollars"):
        assert any(line.startswith("| " + label) for line in table), label
    paid = next(line for line in table if line.startswith("| training, dollars"))
    assert paid.count("0.02000") == 2 and paid.rstrip(" |").endswith("-")
    same = next(line for line in table if line.startswith("| bits per byte of stories_en"))
    assert same.split("|")[2].strip() + " ≈" == same.split("|")[3].strip()
    assert sum(line.split("|")[3].strip().endswith("≈") for line in table) == 10
    assert printed.endswith("often differ, so train several of each.)\n")


def test_the_bits_per_byte_are_those_of_the_report(folder, documents, tmp_path, capsys):
    shutil.copytree(folder / "ours", tmp_path / "run")
    write_documents(documents, tmp_path / "run" / "clean.jsonl")
    tokenizer = Tokenizer.load(folder / "ours.json")
    data.write_shards(documents, tokenizer.encode, tmp_path / "run" / "tokens",
                      tokenizer.vocab_size, tokenizer.eot_id, folder / "ours.json")
    report.main([str(tmp_path / "run"), "--cloze", "0"])
    scores = [(line[28:39].strip(), line[39:47].strip()) for line in
              capsys.readouterr().out.splitlines() if line.startswith("stories_")]
    arena.main([str(tmp_path / "run"), str(folder / "llama"), "--cloze", "0", "--judged", "0"])
    rows = [line for line in capsys.readouterr().out.splitlines() if "| bits per byte" in line]
    assert len(rows) == 2 == len(scores)
    for (bits, floor), row in zip(scores, rows):
        assert f"(floor {floor})" in row and row.split("|")[2].strip() == bits


def test_a_checkpoint_is_charged_what_came_before_it(folder, tmp_path):
    place = tmp_path / "run" / "checkpoints" / "step-00000005"
    shutil.copytree(folder / "ours", place)
    bill = json.loads((place / "cost.json").read_text()) | {"tokens": 100}
    (tmp_path / "run" / "cost.json").write_text(json.dumps(bill))
    (place / "trainer.json").write_text(json.dumps({"config": {}, "tokens": 25}))
    (place / "checksums.json").unlink()
    assert arena.costs(open_subject(place))[1:] == ("15", "2.50e+08", "0.00500")


@pytest.fixture
def broken(folder, documents, tmp_path):
    (tmp_path / "empty").mkdir()
    save_model(open_subject(folder / "ours").model, tmp_path / "mute")
    (tmp_path / "docs.jsonl").write_text("")
    write_documents([{**d, "split": "held_out"} for d in documents], tmp_path / "seen.jsonl")
    save_model(open_subject(folder / "ours").model, tmp_path / "mixed")
    shutil.copy(folder / "other.json", tmp_path / "mixed" / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize("second, more, message", [
    ("empty", [], "holds no model"), ("mute", [], "tokenizer.json"), ("absent", [], "no model"),
    ("mixed", [], "do not belong together"),
    ("ours", ["--text", "docs.jsonl"], "no held-out document"),
    ("ours", ["--text", "seen.jsonl"], "trained on 8 of the 16"),
    ("ours", ["--text", "absent.jsonl"], "absent.jsonl"),
    ("ours", ["--cloze", "-1"], "at least 0")])
def test_bad_input_is_one_clear_line(folder, broken, monkeypatch, capsys, second, more, message):
    monkeypatch.chdir(broken)
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", folder / "ours" if second == "ours" else second, *more)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("name, text, message", [
    ("cost.json", "{", "cost.json is damaged"), ("cost.json", "[]", "cost.json is damaged"),
    ("cost.json", '{"seconds": "x"}', "cost.json is damaged"),
    ("cost.json", '{"flops": null}', "cost.json is damaged"),
    ("trainer.json", "{", "trainer.json is damaged"), ("trainer.json", "[]", "trainer.json is"),
    ("trainer.json", "{}", "trainer.json is damaged"),
    ("trainer.json", '{"config": {"tokens": 7}}', "trainer.json is damaged")])
def test_a_damaged_file_of_a_run_is_one_clear_line(folder, tmp_path, capsys, name, text, message):
    shutil.copytree(folder / "ours", tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    (tmp_path / "run" / "checksums.json").unlink()  # which would name the file first
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", tmp_path / "run", "--cloze", 1, "--judged", 0)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
