"""health.py: planted bugs are caught and named, healthy runs raise nothing, cut logs are said."""

import dataclasses
import importlib.util
import inspect
import json
import os
import pathlib
import random
import re
import shutil

import pytest

from nanoseek import cli, evaluate
from nanoseek.corpus import write_documents
from nanoseek.corpus.stories import LANGUAGES, stories
from nanoseek.lab import health
from nanoseek.model import ModelConfig, Transformer
from nanoseek.scale import run as run_module
from nanoseek.tokenizer import Tokenizer
from nanoseek.train import TrainConfig

EXPERIMENTS = pathlib.Path(__file__).parents[2] / "tutorials" / "experiments"


def script(name):
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


planted, bands_script = script("planted_bugs"), script("reference_bands")
# Seconds a run. The checks are those of the large recipe; the bands are made for this one.
CONFIG = TrainConfig(steps=80, batch_size=4, row_length=128, eval_every=16, save_every=80,
                     warmup_steps=8, device="cpu", precision="fp32", threads=1, model=ModelConfig(
                         vocab_size=300, hidden_size=32, intermediate_size=48,
                         num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1))


@pytest.fixture(scope="module", autouse=True)
def quick_ceiling():
    """Runs need not measure the machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "measure_ceiling", lambda **_: 1e11)
        yield


@pytest.fixture(scope="module")
def bench(tmp_path_factory, quick_ceiling):
    """Data, and bands of three healthy runs."""
    folder = tmp_path_factory.mktemp("health")
    documents = planted.write_documents(300, 20)
    tokenizer = Tokenizer.train([d["text"] for d in documents], CONFIG.model.vocab_size)
    planted.write_data(folder / "data", documents, tokenizer)
    tokens = folder / "data" / "tokens"
    return folder, documents, tokenizer, tokens, planted.small_bands(CONFIG, folder, tokens,
                                                                     range(3))


def test_healthy_runs_of_other_seeds_raise_nothing(bench):
    folder, _, _, tokens, bands = bench
    for run in planted.healthy(CONFIG, folder, tokens, (11, 12)):
        report, causes = health.check(run, bands)
        assert causes == [] and "healthy: nothing is off" in report, report


def test_the_planted_bugs_take_the_recipe_of_a_run_and_stop_where_they_are_told(bench):
    folder, _, _, tokens, bands = bench
    config = planted.config_of(folder / "healthy-0")
    assert config == dataclasses.replace(CONFIG, out=str(folder / "healthy-0"), tokens=str(tokens))
    with planted.stopped_after(32):
        run = planted.trained(config, folder / "stopped", tokens)
    found = health.Record(run)
    assert len(found.rows) == 32 and not (run / "cost.json").exists()
    report, causes = health.check(run, bands)
    assert causes == [] and "32 steps of 80" in report and "stories_en, at 40%" in report


@pytest.mark.parametrize("name", planted.BUGS)
def test_each_planted_bug_is_caught_and_named(bench, name):
    folder, documents, tokenizer, tokens, bands = bench
    report, causes = planted.plant(name, CONFIG, documents, tokenizer,
                                   folder / name.replace(" ", "-"), tokens, bands)
    assert causes == [planted.BUGS[name][2]], report
    assert f"likely cause: {json.loads(health.CAUSES.read_text())[causes[0]]}" in report and "healthy: " not in report


def test_another_recipe_is_told_and_not_held_to_the_bands(bench):
    folder, _, _, _, bands = bench
    other = {**bands, "recipe": {**bands["recipe"], "steps": 999, "hidden_size": 64},
             "bands": {name: [1e9, 2e9] for name in bands["bands"]}}
    report, causes = health.check(folder / "healthy-0", other)
    assert causes == [] and "steps 80 for 999, hidden_size 32 for 64" in report
    assert "too low" not in report


def test_a_run_that_knows_no_cause_says_so(bench):
    folder, _, _, _, bands = bench
    off = {**bands, "bands": {**bands["bands"], "bits per byte, stories_en, at 100%": [9, 10]}}
    report, causes = health.check(folder / "healthy-0", off)
    assert causes == ["unknown"] and "too low" in report


def test_a_language_that_is_only_held_out_is_not_compared_with_training_text(bench, tmp_path):
    _, documents, tokenizer, _, bands = bench
    planted.write_data(tmp_path, [d for d in documents if d["split"] == "held_out"
                                  or d["source"] == "stories_en"], tokenizer)
    run = planted.trained(dataclasses.replace(CONFIG, steps=10, eval_every=5),
                          tmp_path / "run", tmp_path / "tokens")
    report, _ = health.check(run, bands)
    compared = "held-out over training bits per byte, stories_"
    assert f"{compared}en" in report and f"{compared}zh" not in report
    assert "bits over a unigram model's, stories_zh" in report


def copy_run(bench, tmp_path, change):
    """Copy a healthy run with its log changed: change(list of lines) → text."""
    run = tmp_path / "run"
    shutil.copytree(bench[0] / "healthy-0", run)
    log = run / "log.jsonl"
    log.write_text(change(log.read_text().splitlines(keepends=True)))
    return run


def test_a_log_cut_off_in_its_last_line_is_told_and_judged(bench, tmp_path):
    run = copy_run(bench, tmp_path, lambda lines: "".join(lines[:50]) + lines[50][:20])
    report, causes = health.check(run, bench[4])
    assert causes == [] and "50 steps of 80" in report
    assert "at 100%" not in report


def test_before_its_first_checkpoint_there_is_nothing_to_judge(bench, tmp_path):
    run = copy_run(bench, tmp_path, lambda lines: "".join(lines[:20]))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="no intact checkpoint yet"):
        health.check(run, bench[4])


def test_rows_need_no_more_than_what_is_measured(bench, tmp_path):
    keys = ("step", "loss", "gradient_norm", "learning_rate", "held_out")
    run = copy_run(bench, tmp_path, lambda lines: "".join(json.dumps(
        {k: v for k, v in json.loads(line).items() if k in keys} | {"new_key": [1]}) + "\n"
        for line in lines))
    (run / "cost.json").unlink()
    assert health.check(run, bench[4])[1] == []


def test_steps_that_were_skipped_are_left_out(bench, tmp_path):
    def skip(line):
        return json.dumps(json.loads(line) | {"loss": None, "gradient_norm": None}) + "\n"
    run = copy_run(bench, tmp_path, lambda lines: "".join(
        skip(line) if number in (0, 30, len(lines) - 1) else line
        for number, line in enumerate(lines)))
    report, causes = health.check(run, bench[4])
    # The first step that moved a weight is the first: its loss is that of an untrained model.
    assert causes == [] and "first loss" in report and "training loss at 10%" in report


def test_a_loss_below_the_floor_means_that_the_future_leaks(bench):
    run = health.Record(bench[0] / "healthy-0")
    ((source, floor), *_), measured = run.floors.items(), {"different training documents, share": 1}
    off = {"first loss, over ln(vocabulary)": "too high"}
    for factor, cause in ((0.97, "init"), (0.85, "future")):
        run.rows.append({"step": 81, "loss": 1.0, "held_out": {source: factor * floor}})
        assert health.diagnose(run, measured, off) == [cause]


@pytest.mark.parametrize("change", [
    lambda lines: "".join(lines[:9]) + "{\n" + "".join(lines[10:]),
    lambda lines: "".join(lines[:9] + lines[30:]), lambda lines: "".join(lines[3:]),
    lambda lines: "".join(lines[:9]) + '{"step": 10}\n', lambda lines: ""])
def test_a_damaged_log_is_one_clear_line(bench, tmp_path, capsys, change):
    run = copy_run(bench, tmp_path, change)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: evaluate.main(["check", str(run)]))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "its log.jsonl must hold a whole row for each step from 1 on" in error


def test_exit_codes(bench, tmp_path, capsys, monkeypatch):
    run, path = str(bench[0] / "healthy-0"), tmp_path / "bands.json"
    monkeypatch.setattr(health, "BANDS", path)
    path.write_text(json.dumps(bench[4]))
    assert evaluate.main(["check", run]) == 0
    path.write_text(json.dumps(bench[4] | {"bands": {"learning rate, highest": [0, 1e-9]}}))
    assert evaluate.main(["check", run]) == 1
    assert "learning rate too high" in capsys.readouterr().out
    for place in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ValueError, match="no intact checkpoint"):
            health.check(place, bench[4])


def test_the_future_is_seen_only_with_a_leaking_mask():
    model = Transformer(ModelConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1))
    assert not health.sees_the_future(model)
    with planted.leaking():
        assert health.sees_the_future(model)


def test_bands_hold_every_run_that_they_were_made_of():
    runs = [{"first loss": 1.0, "gradient norm": 2.0, "x": 5.0}, {"first loss": 1.02, "x": 6.0,
                                                                  "gradient norm": 1.0}]
    bands = bands_script.make_bands(runs)
    assert all(bands[name][0] <= value <= bands[name][1] for run in runs
               for name, value in run.items())
    assert bands["gradient norm"] == [0.5, 4.0] and bands["first loss"][1] < 1.1
    assert bands_script.make_bands([{"repeats its input, share": 0.001}] * 2) == \
        {"repeats its input, share": [0.0, 0.004]}


def test_the_reference_script_makes_bands_and_goes_on_where_it_was(tmp_path, capsys):
    small = [f"--{k} {v}" for k, v in (
        ("steps", 20), ("batch_size", 2), ("row_length", 64), ("warmup_steps", 2),
        ("eval_every", 4), ("save_every", 10), ("hidden_size", 16), ("intermediate_size", 24),
        ("num_hidden_layers", 1), ("num_attention_heads", 2), ("num_key_value_heads", 1),
        ("device", "cpu"), ("precision", "fp32"), ("threads", 1))]
    variables = ["VOCAB=300", "TRAIN_ARGS=" + " ".join(small)]
    arguments = ["--seeds", "2", "--folder", str(tmp_path / "runs"), "--output",
                 str(tmp_path / "bands.json"), *variables]
    # The first stage's work is done already: of the documentation, that of a few modules.
    raw = tmp_path / "runs" / bands_script.recipe_hash(variables) / "seed-0" / "raw.jsonl"
    raw.parent.mkdir(parents=True)
    docs = {inspect.getdoc(value) or "" for module in (os, random, re, shutil, json, inspect, pathlib)
            for value in vars(module).values()}
    write_documents([s._asdict() for language in LANGUAGES for s in stories(language, 200, 1)]
                    + [{"text": text, "source": "python_docs"} for text in sorted(docs)], raw)
    bands_script.main(arguments)
    found = json.loads((tmp_path / "bands.json").read_text())
    assert found["seeds"] == 2 and found["recipe"]["steps"] == 20
    runs = sorted(tmp_path.glob("runs/*/seed-*"))
    assert [health.Record(run).config["seed"] for run in runs] == [0, 1]
    assert "bits per byte, stories_zh, at 100%" in found["bands"]
    assert "python_docs" in health.Record(runs[0]).rows[-1]["held_out"]
    assert not any("python_docs" in name for name in found["bands"])
    times = [run.joinpath("cost.json").stat().st_mtime_ns for run in runs]
    bands_script.main(arguments)
    assert times == [run.joinpath("cost.json").stat().st_mtime_ns for run in runs]
    for run in runs:
        assert health.check(run, found)[1] == []
