"""run.py and folder.py: resumed bit for bit, and what would change a run silently is refused."""

import dataclasses
import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from nanoseek import cli, train
from nanoseek.checkpoint import checkpoints, load_model, newest_intact
from nanoseek.cli import lock
from nanoseek.corpus.gather import main as write_corpus
from nanoseek.data import Loader
from nanoseek.evaluate import evaluate
from nanoseek.lab import bill, health, stages
from nanoseek.lab.subject import open_subject
from nanoseek.scale import machine
from nanoseek.scale.folder import check_settings, memorised_from, read_log
from nanoseek.scale.run import Run
from small_run import (ROOT, command, final_weights, make_run, quick_ceiling,  # noqa: F401
                       settings)


def test_a_checkpoint_from_before_a_setting_had_its_default(tmp_path, capsys):
    run = Run(settings(*make_run(tmp_path / "r")), resume=False)
    state = run.state_dict()
    for name in ("beta2", "compile", "fast"):
        del state["config"][name]
    check_settings(run, state, False)
    assert "rounding" not in capsys.readouterr().out
    run.config = dataclasses.replace(run.config, beta2=0.5)
    with pytest.raises(ValueError, match="beta2 from 0.95 to 0.5"):
        check_settings(run, state, False)


def test_a_checkpoint_made_with_another_value_of_what_is_now_constant_is_refused(tmp_path):
    run = Run(settings(*make_run(tmp_path / "r")), resume=False)
    state = run.state_dict()
    assert state["config"]["clip"] == 1.0 and state["config"]["weight_decay"] == 0.1
    state["config"]["clip"] = 0.5
    with pytest.raises(ValueError, match="changed: clip from 0.5 to 1.0"):
        check_settings(run, state, False)
    check_settings(run, state, True)


@pytest.mark.parametrize("changes", [{}, {"optimizer": "adamw", "accumulation": 2},
                                     {"activation_checkpointing": "full", "precision": "bf16"},
                                     {"precision": "fp16", "optimizer": "adamw"},
                                     {"batch_ramp": "2:0.4", "length_ramp": "6:0.3,10:0.65"}])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, changes):
    whole, model = make_run(tmp_path / "whole")
    broken, _ = make_run(tmp_path / "broken")
    real, drawn = train.train_step, {}

    def stop_after_seven(run):
        row = real(run)
        drawn.setdefault(str(run.folder), []).append(torch.rand(2).tolist())
        if run.step == 7 and run.folder == broken:
            os.kill(os.getpid(), signal.SIGINT)
        return row
    monkeypatch.setattr(train, "train_step", stop_after_seven)
    train.train(settings(whole, model, **changes))
    assert train.train(settings(broken, model, **changes)) is None
    torch.manual_seed(99)  # in a new process, the generators begin elsewhere
    train.train(settings(broken, model, **changes), resume=True)
    assert drawn[str(whole)] == drawn[str(broken)] and len(drawn[str(whole)]) == 12
    assert final_weights(whole) == final_weights(broken)
    one, other = (load_file(newest_intact(f) / "trainer.safetensors") for f in (whole, broken))
    assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)
    losses = [[(row["step"], row["loss"], row.get("held_out")) for row in
               map(json.loads, (folder / "log.jsonl").read_text().splitlines())]
              for folder in (whole, broken)]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("way", ["ramps", "two ranks"])
def test_killed_at_random_instants_a_run_ends_as_if_nothing_had_happened(way):
    seed = random.SystemRandom().randrange(10**6)  # the instants differ each time; it is printed
    done = subprocess.run([sys.executable, "tests/bench/kill_resume.py", "--kills", "2", "--seed",
                           str(seed), "--ways", way], cwd=ROOT, capture_output=True, text=True,
                          encoding="utf-8")
    assert done.returncode == 0, f"seed {seed}: {done.stdout}{done.stderr[-3000:]}"
    assert "2 kills in" in done.stdout and "runs ended equal" in done.stdout


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    folder, _ = make_run(tmp_path / "r")
    process = subprocess.Popen(command(folder, "--steps", "100000"), cwd=ROOT, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8")
    log = folder / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert "--resume" in said.splitlines()[-1]
    steps = len(log.read_text().splitlines())
    assert newest_intact(folder).name == f"step-{steps:08d}"


def test_a_resumed_run_keeps_its_settings_and_its_data(tmp_path):
    folder, model = make_run(tmp_path / "r")
    with pytest.raises(SystemExit):
        cli.run(lambda: train.main(["--out", str(tmp_path / "missing")]))
    train.train(settings(folder, model))
    with pytest.raises(ValueError, match="already holds checkpoints"):
        train.train(settings(folder, model))
    with pytest.raises(ValueError, match="changed: learning_rate from 0.005 to 0.5"):
        train.train(settings(folder, model, learning_rate=0.5), resume=True)
    make_run(folder, sentences=160)
    with pytest.raises(ValueError, match="is not the data that this run began with"):
        train.train(settings(folder, model), resume=True)


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model))
    expected = final_weights(folder)
    weights = checkpoints(folder)[-1] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    train.train(settings(folder, model), resume=True)
    said = "".join(capsys.readouterr())
    assert "passed over a damaged checkpoint" in said and "going on at step 10" in said
    assert final_weights(folder) == expected


def test_a_changed_setting_of_the_model_is_refused_by_its_own_name(tmp_path):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model, steps=4))
    changed = dataclasses.replace(model, rope_theta=500.0)
    with pytest.raises(ValueError, match="changed: rope_theta from 10000.0 to 500.0$"):
        Run(settings(folder, changed, steps=4), True)


def test_what_was_measured_is_kept_on_resume(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    monkeypatch.setattr(machine, "choose_precision", lambda *_: ("bf16", "measured"))
    monkeypatch.setattr(machine, "choose_threads", lambda *_: (1, "measured"))
    config = settings(folder, model, precision="auto", threads=0)
    Run(config, False).save()
    for name in ("choose_precision", "choose_threads"):
        monkeypatch.setattr(machine, name, lambda *_: pytest.fail("measured again"))
    assert Run(config, True).choices == {"precision": "bf16", "threads": 1, "steps": 12}
    # Naming what was measured is no change; naming another precision is.
    Run(dataclasses.replace(config, precision="bf16"), True)
    with pytest.raises(ValueError, match="precision from auto to fp32"):
        Run(dataclasses.replace(config, precision="fp32"), True)


FIRST_STAGE = {"steps": 100, "save_every": 12, "schedule": "constant", "eval_every": 100}


def first_stage(folder, model, monkeypatch):
    """Train a constant first stage; return its checkpoint after 12 steps."""
    real = train.train_step

    def stop_after_twelve(run):
        if run.step == 11:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(run)
    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", stop_after_twelve)
        assert train.train(settings(folder, model, **FIRST_STAGE)) is None
    return newest_intact(folder)


@pytest.mark.parametrize("plan", [
    {"steps": 16, "schedule": "wsd", "decay_share": 0.25}, {"steps": 15, "schedule": "multi_step"},
    {"steps": 24, "schedule": "constant", "accumulation": 1}])
def test_a_branch_of_a_constant_stage_equals_a_run_planned_so(tmp_path, monkeypatch, capsys, plan):
    stage, model = make_run(tmp_path / "stage")
    checkpoint = str(first_stage(stage, model, monkeypatch))
    whole, branch = (make_run(tmp_path / name)[0] for name in ("whole", "branch"))
    plan = {**FIRST_STAGE, **plan}
    train.train(settings(whole, model, **plan))
    capsys.readouterr()
    train.train(settings(branch, model, branch_from=checkpoint, **plan))
    assert "going on at step 12" in capsys.readouterr().out
    assert final_weights(branch) == final_weights(whole)
    logs = [[(r["step"], r["loss"], r["learning_rate"]) for r in
             map(json.loads, (f / "log.jsonl").read_text().splitlines())] for f in (whole, branch)]
    assert logs[0] == logs[1]
    # The branch is a run of its own, which is resumed as any other.
    (branch / "cost.json").unlink()
    train.train(settings(branch, model, branch_from=checkpoint, **plan), resume=True)
    assert final_weights(branch) == final_weights(whole)


def test_a_branch_of_a_checkpoint_copied_out_of_its_run_begins_without_a_log(tmp_path):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model))
    checkpoint = shutil.copytree(checkpoints(folder)[-1], tmp_path / "elsewhere" / "copy")
    branch, _ = make_run(tmp_path / "branch")
    run = Run(settings(branch, model, steps=20, branch_from=str(checkpoint)), False)
    assert run.log == [] and run.step == 12


def test_a_branch_changes_its_plan_and_nothing_else(tmp_path, monkeypatch):
    stage, model = make_run(tmp_path / "stage")
    checkpoint = str(first_stage(stage, model, monkeypatch))
    branch, _ = make_run(tmp_path / "branch")

    def begin(**changes):
        return Run(settings(branch, model, **{**FIRST_STAGE, "branch_from": checkpoint,
                                              **changes}), False)
    for changes in ({"schedule": "linear"}, {"learning_rate": 0.001}, {"batch_ramp": "2:0.5"},
                    {"spike": 0.5}, {"beta2": 0.5}):
        run = begin(**changes)
    assert run.optimizers[-1].param_groups[0]["betas"] == (0.9, 0.5)
    with pytest.raises(ValueError, match="goes on keeps these settings; changed: seed from 0 to"):
        begin(seed=1)
    with pytest.raises(ValueError, match="changed: optimizer from muon to adamw"):
        begin(optimizer="adamw")
    with pytest.raises(ValueError, match="raise --steps: the branch begins at step 12"):
        begin(steps=12)
    with pytest.raises(ValueError, match="nowhere holds no model"):
        begin(branch_from="nowhere")
    damaged = pathlib.Path(checkpoint) / "trainer.json"
    damaged.write_text("{}")
    with pytest.raises(ValueError, match="trainer.json is damaged"):
        begin()
    assert not checkpoints(branch)


def test_settings_that_only_round_otherwise_are_said_and_others_refused(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    Run(settings(folder, model), False).save()
    Run(settings(folder, model, accumulation=2, compile=True, keep=5, fast=False), True)
    said = capsys.readouterr().out
    assert "equal but for rounding, since these changed: " in said
    for change in ("accumulation from 1 to 2", "compile from False to True",
                   "fast from True to False"):
        assert change in said
    with pytest.raises(ValueError, match="changed: batch_size from 4 to 2, .*learning_rate"):
        Run(settings(folder, model, batch_size=2, learning_rate=0.1), True)


def reseal(checkpoint):
    """Make the checksums of a tampered checkpoint right again."""
    (checkpoint / "checksums.json").write_text(json.dumps({
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in checkpoint.iterdir() if path.name != "checksums.json"}))


def refused(config):
    """Resume; return the one line that says why not."""
    with pytest.raises(ValueError) as error:
        train.train(config, resume=True)
    return str(error.value)


def test_a_foreign_or_malicious_checkpoint_is_named_and_nothing_of_it_runs(tmp_path):
    folder, model = make_run(tmp_path / "r")
    other, wider = make_run(tmp_path / "other")
    wider = dataclasses.replace(wider, hidden_size=32)
    Run(settings(other, wider), False).save()
    shutil.copytree(other / "checkpoints", folder / "checkpoints")
    assert "hidden_size from 32 to 16" in refused(settings(folder, model))
    shutil.rmtree(folder / "checkpoints")
    foreign, _ = make_run(tmp_path / "foreign", sentences=160)  # another corpus and tokenizer
    shutil.copytree(other / "checkpoints", foreign / "checkpoints")
    assert "is not the data that this run began with" in refused(settings(foreign, wider))

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)
    checkpoint = checkpoints(other)[0]
    whole = (checkpoint / "trainer.safetensors").read_bytes()
    torch.save(Bomb(), checkpoint / "trainer.safetensors")
    reseal(checkpoint)
    assert "trainer.safetensors is damaged or missing" in refused(settings(other, wider))
    (checkpoint / "trainer.safetensors").write_bytes(whole)
    state = json.loads((checkpoint / "trainer.json").read_text())
    for bad in ({}, {**state, "scale": None}, {**state, "config": 7},
                {**state, "loader": {}}, {k: v for k, v in state.items() if k != "random"}):
        (checkpoint / "trainer.json").write_text(json.dumps(bad))
        reseal(checkpoint)
        assert "trainer.json is damaged" in refused(settings(other, wider))
    assert not (tmp_path / "exploded").exists()


def test_a_full_disk_is_one_clear_line_and_earlier_checkpoints_stay(tmp_path):
    folder, _ = make_run(tmp_path / "r")
    train.main(command(folder, "--steps", "5")[3:])
    before = newest_intact(folder)
    full, _ = make_run(tmp_path / "full")
    # No file may grow beyond 12 kB, which the log stays below and the weights do not.
    done = subprocess.run(
        command(full, "--steps", "9", "--save_every", "7", "--branch_from", str(before)), cwd=ROOT,
        capture_output=True, text=True, encoding="utf-8",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000)))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "could not be written" in done.stderr or "File too large" in done.stderr
    assert list((full / "checkpoints").iterdir()) == [] and newest_intact(folder) == before
    # With room again, the same command goes on.
    train.main(command(full, "--steps", "9", "--branch_from", str(before))[3:])
    assert newest_intact(full).name == "step-00000009"


def test_a_run_without_an_intact_checkpoint_is_not_begun_anew(tmp_path):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model))
    for checkpoint in checkpoints(folder):
        (checkpoint / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no intact checkpoint"):
        train.train(settings(folder, model), resume=True)
    assert len(checkpoints(folder)) == 2


def test__a_second_run_in_the_same_folder_is_refused(tmp_path, capsys):
    folder, _ = make_run(tmp_path / "r")
    process = subprocess.Popen(command(folder, "--steps", "100000"), cwd=ROOT,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    log = folder / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(SystemExit) as second:
        cli.run(lambda: train.main(command(folder, "--steps", "100000")[3:]))
    process.kill()  # after which nothing is in the way of going on
    process.communicate()
    said = capsys.readouterr().err
    assert second.value.code == 2 and "another process works in" in said
    assert said.count("\n") == 1
    assert lock(folder)


COMMANDS = {write_corpus: ["{run}/raw.jsonl", "--stories", "4"],
            stages.clean: ["{other}/raw.jsonl", "{run}/clean.jsonl"],
            stages.learn_tokenizer: ["train", "{other}/raw.jsonl", "{run}/tokenizer.json"],
            stages.encode: ["{other}/raw.jsonl", "{other}/tokenizer.json", "{run}/tokens"]}


def test_no_command_writes_into_the_folder_of_a_run_in_progress(tmp_path):
    folder, model = make_run(tmp_path / "r")
    other, _ = make_run(tmp_path / "other", sentences=160)
    (other / "raw.jsonl").write_text('{"text": "a story", "source": "s"}\n' * 99)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    held = lock(folder)
    for main, arguments in COMMANDS.items():
        with pytest.raises(ValueError, match="another process works in .*r: wait"):
            main([word.format(run=folder, other=other) for word in arguments])
        assert {path: path.read_bytes() for path in folder.rglob("*")
                if path.is_file() and path.name != ".lock"} == before
    for inside in ("tokens/manifest.json", "checkpoints/tokenizer.json"):
        with pytest.raises(ValueError, match="another process works in"):
            stages.learn_tokenizer(["train", f"{other}/raw.jsonl", f"{folder}/{inside}"])
    with pytest.raises(ValueError, match="another process works in"):
        train.train(settings(folder, model))
    held.close()
    stages.learn_tokenizer([word.format(run=folder, other=other)
                            for word in COMMANDS[stages.learn_tokenizer]])
    lock(folder).close()  # the command has let it go
    with pytest.raises(ValueError, match="tokenizer.json did not encode"):
        train.train(settings(folder, model))


def test_a_run_keeps_the_tokenizer_it_began_with(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    expected, real = (folder / "tokenizer.json").read_bytes(), train.train_step

    def replace(run):  # as a program that knows no lock could
        (folder / "tokenizer.json").write_bytes(expected.replace(b"Ann", b"Eve") + b" ")
        return real(run)
    monkeypatch.setattr(train, "train_step", replace)
    train.train(settings(folder, model))
    assert [(path / "tokenizer.json").read_bytes() for path in checkpoints(folder)] == \
        [expected, expected]


def test_new_data_begin_a_new_run_and_the_same_data_do_not(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    flags = [*command(folder, "--steps", "6")[3:], "--restart_on_new_data"]
    train.main(flags)
    mine = shutil.copytree(checkpoints(folder)[0], folder / "checkpoints" / "step-00000005-mine")

    def left():
        return {path: path.read_bytes() for path in folder.glob("checkpoints/*/*")}, \
            (folder / "log.jsonl").read_bytes()
    before = left()
    make_run(folder)  # written again, byte for byte the same
    train.main(flags)
    assert left() == before and "holds new data" not in capsys.readouterr().out
    # A copy is the same run.
    copy = shutil.copytree(folder, tmp_path / "copy")
    train.main([word if word != str(folder) else str(copy) for word in flags])
    assert "going on at step 6" in capsys.readouterr().out
    # Killed between new tokens and training, or in training: the same command goes on.
    make_run(folder, sentences=160)
    train.main([*flags, "--steps", "5", "--save_every", "9"])
    said = capsys.readouterr().out
    assert "holds new data" in said and "training:" in said and said.count("holds new data") == 1
    assert [path.name for path in checkpoints(folder)] == ["step-00000005"]
    aside = folder / "before"  # nothing is lost: the reader's own copy is there, too
    assert (aside / "checkpoints" / mine.name).is_dir() and checkpoints(aside)
    assert (aside / "log.jsonl").read_bytes() == before[1]
    assert len((folder / "log.jsonl").read_text().splitlines()) == 5
    lock_held = lock(folder)
    make_run(folder)
    with pytest.raises(ValueError, match="another process works in"):
        train.main(flags)
    assert len(checkpoints(folder)) == 1
    lock_held.close()
    for checkpoint in checkpoints(folder):  # damaged: nobody knows what it was trained on
        (checkpoint / "trainer.json").write_text("{")
    with pytest.raises(ValueError, match="no intact checkpoint"):
        train.main(flags)


def test_new_data_that_cannot_be_trained_on_cost_nothing(tmp_path):
    folder, model = make_run(tmp_path / "r")
    flags = [*command(folder, "--steps", "6")[3:], "--restart_on_new_data"]
    train.main(flags)
    before = {path.name: path.read_bytes() for path in folder.glob("checkpoints/*/*")}
    make_run(folder, sentences=160)
    with pytest.raises(ValueError, match="no source is called"):
        train.main([*flags, "--weights", "nobody=1.0"])
    assert {path.name: path.read_bytes()
            for path in folder.glob("before/checkpoints/*/*")} == before


def test_a_checkpoint_that_names_no_data_is_left_alone(tmp_path):
    folder, model = make_run(tmp_path / "r")
    flags = [*command(folder, "--steps", "6")[3:], "--restart_on_new_data"]
    train.main(flags)
    for checkpoint in checkpoints(folder):
        (checkpoint / "trainer.json").write_text("{}")
    with pytest.raises(ValueError, match="intact"):
        train.main(flags)
    assert checkpoints(folder) and not (folder / "before").exists()


def test_tokens_changed_under_a_run_are_not_scored(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    real = train.train_step

    def step(run):
        if run.step == 3:
            make_run(folder, sentences=160)
        return real(run)
    monkeypatch.setattr(train, "train_step", step)
    with pytest.raises(ValueError, match="was written anew while"):
        train.main(command(folder, "--steps", "6")[3:])
    assert checkpoints(folder) and not (folder / "cost.json").exists()


def test_a_move_that_was_broken_off_goes_on(tmp_path):
    folder, model = make_run(tmp_path / "r")
    flags = [*command(folder, "--steps", "6")[3:], "--restart_on_new_data"]
    train.main(flags)
    log = (folder / "log.jsonl").read_bytes()
    (folder / "before").mkdir()  # killed when only the log was moved
    (folder / "log.jsonl").rename(folder / "before" / "log.jsonl")
    make_run(folder, sentences=160)
    train.main(flags)
    assert (folder / "before" / "log.jsonl").read_bytes() == log
    assert checkpoints(folder / "before") and checkpoints(folder)


def test_a_reader_that_has_gone_ends_no_training(tmp_path):
    folder, _ = make_run(tmp_path / "r")
    reader, gone = os.pipe()
    os.close(reader)  # as `train … | head -2` does, only sooner
    done = subprocess.run(command(folder, "--steps", "9"), cwd=ROOT, stdout=gone,
                          stderr=subprocess.PIPE, text=True)
    os.close(gone)
    assert done.returncode == 0 and not done.stderr
    assert newest_intact(folder).name == "step-00000009" and (folder / "cost.json").is_file()


def values_in(value, path=()):
    """Yield the way to each value of a JSON file, of a list to its first."""
    for key in value if isinstance(value, dict) else range(len(value[:1])) if isinstance(value, list) else ():
        yield (*path, key)
        yield from values_in(value[key], (*path, key))


@pytest.mark.parametrize("name", ["trainer.json", "config.json", "cost.json", "tokens/manifest.json", "log.jsonl"])
def test_a_value_of_another_type_in_a_run_s_files_is_one_clear_line(tmp_path, name):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model, eval_every=12))
    checkpoint, file = newest_intact(folder), folder / name
    file = checkpoint / name if not file.exists() else file
    lines = file.read_text().splitlines() if name == "log.jsonl" else [file.read_text()]
    rng, answers = random.Random(name), []
    whole = json.loads(lines[-1]) | ({"bos_token_id": 1} if name == "config.json" else {})
    for path in values_in({k: v for k, v in whole.items() if (name, k) != ("trainer.json", "config")}):
        bad = json.loads(lines[-1])
        inner = bad
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = rng.choice([None, -1, "x", [], [[1]], {"a": 1}, 1.5, float("inf"), 10 ** 30])
        file.write_text("\n".join([*lines[:-1], json.dumps(bad)]) + "\n")
        reseal(checkpoint)
        for use in {"cost.json": [lambda: bill.main([str(folder)])],
                    "config.json": [lambda: open_subject(folder)],
                    "tokens/manifest.json": [lambda: evaluate(load_model(checkpoint), folder / "tokens"),
                                             lambda: Loader(folder / "tokens", 2, 8).next_batch()],
                    "log.jsonl": [lambda: health.check(folder), lambda: memorised_from(read_log(folder))]
                    }.get(name, [lambda: train.train(settings(folder, model, eval_every=12, steps=12), resume=True)]):
            try:
                use()
            except (ValueError, OverflowError, MemoryError) as error:  # as cli.run answers in a line
                answers.append(str(error))
    assert answers or name == "log.jsonl"  # whose rows are passed over
