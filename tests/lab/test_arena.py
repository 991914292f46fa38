"""arena.py: fair pairs against counted ones, and the report of three models side by side."""

import shutil

import numpy as np
import pytest

from nanoseek import cli
from nanoseek.checkpoint import save_model
from nanoseek.corpus import write_documents
from nanoseek.lab import arena
from nanoseek.lab.subject import open_subject


def test_mcnemar_equals_the_binomial_test():
    a = np.array([True] * 9 + [False] * 2 + [True] * 20)
    b = np.array([False] * 9 + [True] * 2 + [True] * 20)
    assert arena.mcnemar(a, b) == pytest.approx(0.0654296875)  # 2 · P(X ≤ 2), X of B(11, ½)
    assert arena.mcnemar(a, a) == 1


def test_the_sign_test_equals_all_signs_counted():
    import itertools
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.05, 0.6, 0.1])
    sums = [abs(np.dot(s, differences)) for s in itertools.product((1, -1), repeat=8)]
    exact = np.mean([s >= abs(differences.sum()) - 1e-9 for s in sums])
    assert arena.sign_test(differences) == pytest.approx(exact, abs=0.02)
    assert arena.sign_test(np.zeros(5)) == 1


def test_equal_models_are_seldom_told_apart():
    """Over tables of ten comparisons of two equal models, Holm finds a difference in under 5%."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        pairs = [(rng.random(60) < 0.6, rng.random(60) < 0.6) for _ in range(10)]
        wrong += any(arena.holm([(arena.mcnemar(a, b), 1) for a, b in pairs]))
    assert wrong / 300 <= 0.05
    assert arena.holm([(0.04, 1), (0.001, -1), (0.5, 1)]) == [0, -1, 0]


def run_arena(*arguments):
    return cli.run(lambda: arena.main([str(a) for a in arguments]))


def test_the_report_holds_every_row_and_is_written_as_markdown(folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Once there was\n\n从前\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", folder / "ours", folder / "llama", "--cloze", 2, "--judged", 2,
                  "--prompts", tmp_path / "prompts.txt", "--markdown", tmp_path / "a.md")
    captured = capsys.readouterr()
    printed = captured.out
    assert captured.err.splitlines() == ["scoring held-out text …", "asking cloze questions …",
                                         "writing and checking stories …"]
    assert not stop.value.code and (tmp_path / "a.md").read_text("utf-8") == printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    for label in ("bits per byte of stories_en (floor", "cloze pronoun (chance 50%)", "cloze all",
                  "consistent stories_zh (of 2)", "tokens/s", "weights, bytes", "training, dollars",
                  "quality per dollar"):
        assert any(line.startswith("| " + label) for line in table), label
    paid = next(line for line in table if line.startswith("| training, dollars"))
    assert paid.count("0.02000") == 2 and paid.rstrip(" |").endswith("-")
    same = next(line for line in table if line.startswith("| bits per byte of stories_en"))
    assert same.split("|")[2].strip() + " ≈" == same.split("|")[3].strip()
    assert "ours and" in printed and "cannot be told apart here" in printed
    assert printed.count("- " + str(folder / "ours") + ": Once there was") == 2
    assert "**从前**" in printed


@pytest.fixture
def broken(folder, documents, tmp_path):
    (tmp_path / "empty").mkdir()
    save_model(open_subject(folder / "ours").model, tmp_path / "mute")
    (tmp_path / "none.txt").write_text(" \n\n")
    (tmp_path / "docs.jsonl").write_text("")
    write_documents([{**d, "split": "held_out"} for d in documents], tmp_path / "seen.jsonl")
    save_model(open_subject(folder / "ours").model, tmp_path / "mixed",
               folder / "other.json")
    return tmp_path


@pytest.mark.parametrize("second, more, message", [
    ("empty", [], "holds no model"), ("mute", [], "tokenizer.json"), ("absent", [], "no model"),
    ("mixed", [], "do not belong together"),
    ("ours", ["--prompts", "none.txt"], "holds no prompt"),
    ("ours", ["--prompts", "absent.txt"], "absent.txt"),
    ("ours", ["--text", "docs.jsonl"], "no held-out document"),
    ("ours", ["--text", "seen.jsonl"], "trained on 8 of the 16"),
    ("ours", ["--markdown", "empty"], "is a folder"), ("ours", ["--cloze", "-1"], "at least 0"),
    (None, [], "two folders")])
def test_bad_input_is_one_clear_line(folder, broken, monkeypatch, capsys, second, more, message):
    monkeypatch.chdir(broken)
    rivals = [] if second is None else [folder / "ours" if second == "ours" else second]
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", *rivals, *more)
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
