"""train.py: it learns, resumes bit for bit, and refuses what would change a run silently."""

import dataclasses
import hashlib
import json
import math
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
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from nanoseek import cli, data, generate, train
from nanoseek.scale import machine, run as run_module
from nanoseek.checkpoint import checkpoints, load_model, lock, newest_intact
from nanoseek.cost import format_price_tag
from nanoseek.model import ModelConfig, Transformer
from nanoseek.scale.run import Run
from nanoseek.tokenizer import Tokenizer

ROOT = pathlib.Path(__file__).parent.parent
MODEL = ModelConfig(hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                    num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=32)


def make_run(folder, sentences=None):
    """Fill a run's folder with a tokenizer and token shards of two small sources."""
    rng = random.Random(0)
    names = ["Ann", "Bob", "小明", "小红"]
    documents = [
        {"text": f"{rng.choice(names)} has {rng.randint(1, 9)} cats and {rng.choice(names)} none.",
         "source": f"s{i % 2}", "split": "held_out" if i % 20 in (7, 14) else "train",
         **({"log2_probability": -9.0} if i % 2 else {})} for i in range(sentences or 200)]
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer.train([d["text"] for d in documents], 280)
    tokenizer.save(folder / "tokenizer.json")
    data.write_shards(documents, tokenizer.encode, folder / "tokens", tokenizer.vocab_size,
                      tokenizer.eot_id, folder / "tokenizer.json")
    return folder, dataclasses.replace(MODEL, vocab_size=tokenizer.vocab_size)


def settings(folder, model, **changes):
    return train.TrainConfig(**{**dict(
        out=str(folder), model=model, steps=12, batch_size=4, row_length=16, warmup_steps=2,
        eval_every=6, save_every=4, device="cpu", precision="fp32", threads=1), **changes})


def final_weights(folder):
    return (newest_intact(folder) / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch):
    monkeypatch.setattr(run_module, "measure_ceiling", lambda device: 1e11)


def test_one_batch_is_learned_by_heart(tmp_path):
    folder, model = make_run(tmp_path / "r")
    torch.manual_seed(0)
    run = Run(settings(folder, model, steps=150, learning_rate=0.02, schedule="constant"),
                    resume=False)
    batch = run.loader.next_batch()
    run.batches.next = lambda *shapes: batch
    losses = [train.train_step(run)["loss"] for _ in range(150)]
    assert losses[0] > 5 and losses[-1] < 0.5


def test_a_checkpoint_from_before_a_setting_had_its_default(tmp_path):
    config = settings(*make_run(tmp_path / "r"))
    state = Run(config, resume=False).state_dict()
    for name in ("beta2", "compile"):
        del state["config"][name]
    check = run_module.check_same
    assert check(config, state, False, state["fingerprint"]) == ([], True)
    with pytest.raises(ValueError, match="beta2 from 0.95 to 0.5"):
        check(dataclasses.replace(config, beta2=0.5), state, False, state["fingerprint"])


COMPILED = """
import sys, torch
from nanoseek import train
assert "torch._dynamo" not in sys.modules  # a second that a run without --compile need not wait
compiler, powers = torch.compile, []
def trace(graph, inputs):
    powers.append(sum("pow" in str(node.target) for node in graph.graph.nodes))
    return graph
def compile_whole(function, **settings):
    return compiler(function, backend=trace, fullgraph=True, **settings)
torch.compile = compile_whole
train.main(sys.argv[1:])
assert powers == [0, 0], powers  # one graph for each of two shapes, none of which computes RoPE's
"""
QUICK = ["--device", "cpu", "--precision", "fp32", "--threads", "1", "--steps", "4",
         "--warmup_steps", "1", "--row_length", "16", "--batch_size", "4", "--hidden_size", "16",
         "--intermediate_size", "24"]


def test_a_compiled_step_takes_the_same_way(tmp_path):
    """In a process of its own: the compiler leaves tensors behind that have no memory."""
    plain, compiled = (make_run(tmp_path / name)[0] for name in ("plain", "compiled"))
    flags = [*QUICK, "--length_ramp", "8:0.5"]
    train.main(["--out", str(plain), *flags])
    subprocess.run([sys.executable, "-c", COMPILED, "--out", str(compiled), "--compile", *flags],
                   check=True, cwd=ROOT)
    expected, found = ([json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]
                       for folder in (plain, compiled))
    assert len(expected) == 4 and found == pytest.approx(expected, rel=1e-5)


def test_a_compiler_that_is_missing_is_one_clear_line(tmp_path):
    folder, _ = make_run(tmp_path / "r")
    done = subprocess.run(
        [sys.executable, "-m", "nanoseek.train", "--out", str(folder), "--compile", *QUICK],
        cwd=ROOT, capture_output=True, text=True, env={
            "PATH": "", "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "c")})
    assert done.returncode == 2
    assert "leave out --compile" in done.stderr and "Traceback" not in done.stderr
    assert not checkpoints(folder)


def test_a_run_leaves_what_it_should(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model, steps=40, eval_every=20))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert set(rows[19]["held_out"]) == {"s0", "s1"}
    for row in rows:
        bytes_per_token = row["loss"] / math.log(2) / row["bits_per_byte"]
        assert 1 < bytes_per_token < 3 and 0 < row["mfu"] < 1 and row["memory"] > 1e7
        assert row["tokens_per_second"] > 0 and 0 < row["learning_rate"] <= 0.005
        assert row["gradient_norm"] > 0
    tag = json.loads((folder / "cost.json").read_text())
    assert tag["tokens"] == 40 * 4 * 16
    svg = (folder / "curve.svg").read_text()
    assert "stroke-dasharray" in svg and svg.count("<polyline") == 2
    said = capsys.readouterr().out
    for words in ("bits/byte", "tokens/s", "s1", "the price tag"):
        assert words in said
    assert format_price_tag(tag) in said
    # The folder is a Hugging Face Llama with the same tokenizer.
    from transformers import AutoModelForCausalLM, AutoTokenizer
    checkpoint = checkpoints(folder)[-1]
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    text = "Ann has 3 cats and 小明 none."
    ids = Tokenizer.load(checkpoint / "tokenizer.json").encode(text)
    assert AutoTokenizer.from_pretrained(checkpoint)(text)["input_ids"] == ids
    ours = load_model(folder)
    with torch.no_grad():
        one, other = ours(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    assert ((one - other).norm() / other.norm()).item() <= 1e-5


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


def command(folder, *more):
    return [sys.executable, "-m", "nanoseek.train", "--preset", "tiny", "--out", str(folder),
            "--steps", "60", "--batch_size", "2", "--row_length", "16", "--warmup_steps", "2",
            "--hidden_size", "16", "--intermediate_size", "24", "--num_hidden_layers", "2",
            "--num_attention_heads", "2", "--num_key_value_heads", "1", "--eval_every", "30",
            "--max_position_embeddings", "32", "--save_every", "5", "--device", "cpu",
            "--threads", "1", "--precision", "fp32",
            "--resume", *more]


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


def test_accumulation_equals_the_large_batch(tmp_path):
    folder, model = make_run(tmp_path / "r")
    grads = []
    for accumulation in (1, 4):
        run = Run(settings(folder, model, accumulation=accumulation), resume=False)
        for optimizer in run.optimizers:
            optimizer.step = lambda: None
            optimizer.zero_grad = lambda set_to_none: None
        train.train_step(run)
        grads.append([p.grad for p in run.model.parameters()])
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


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
    said = capsys.readouterr().out
    assert "passed over a damaged checkpoint" in said and "going on at step 8" in said
    assert final_weights(folder) == expected


def spoil(monkeypatch, spoilt, value=float("nan")):
    """Let the loss of the given steps (1-based) be `value`."""
    real = Run.__init__

    def begin(run, *arguments):
        real(run, *arguments)
        compute = run.loss
        run.loss = lambda *batch: compute(*batch) + (
            value if run.step + 1 in spoilt else 0.0)
    monkeypatch.setattr(Run, "__init__", begin)


def test_a_diverged_step_moves_no_weight_and_says_so(tmp_path, monkeypatch, capsys):
    folder, model = make_run(tmp_path / "r")
    spoil(monkeypatch, {2})
    run = Run(settings(folder, model), False)
    train.train_step(run)
    before = [p.clone() for p in run.model.parameters()]
    row = train.train_step(run)
    assert row["loss"] is None and "the loss is nan" in row["skipped"]
    assert all(torch.equal(p, q) for p, q in zip(before, run.model.parameters()))
    assert "skipped" not in train.train_step(run)
    assert not any(torch.equal(p, q) for p, q in zip(before, run.model.parameters()))


def test_a_run_that_keeps_diverging_stops_and_names_the_last_good_checkpoint(
        tmp_path, monkeypatch, capsys):
    folder, model = make_run(tmp_path / "r")
    spoil(monkeypatch, {3, 6, 7, 8, 9})
    with pytest.raises(ValueError, match="step 9 diverged.*nan.*step-00000004"):
        train.train(settings(folder, model))
    said = capsys.readouterr().out
    assert said.count("skipped: the loss is nan") == 4
    # No checkpoint from among the diverged steps, although one was due after the eighth.
    assert [path.name for path in checkpoints(folder)] == ["step-00000004"]
    rows = [json.loads(line, parse_constant=pytest.fail) for line in
            (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [3, 6, 7, 8]


def test_a_changed_setting_of_the_model_is_refused_by_its_own_name(tmp_path):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model, steps=4))
    changed = dataclasses.replace(model, rope_theta=500.0)
    with pytest.raises(ValueError, match="changed: rope_theta from 10000.0 to 500.0$"):
        Run(settings(folder, changed, steps=4), True)


def test_a_run_whose_last_step_diverges_saves_nothing_of_it(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    spoil(monkeypatch, {6, 12})  # evaluations were due after both
    with pytest.raises(ValueError, match="step 12 diverged.*not finite.*step-00000008"):
        train.train(settings(folder, model))
    assert [path.name for path in checkpoints(folder)] == ["step-00000004", "step-00000008"]
    assert not (folder / "cost.json").exists()


def test_a_spike_is_skipped_alike_after_a_resume(tmp_path, monkeypatch):
    spoil(monkeypatch, {36}, 4.0)
    weights = []
    for stop in (None, 34):
        folder, model = make_run(tmp_path / str(stop))
        changes = {"steps": 40, "save_every": 17, "eval_every": 40}
        if stop:  # the losses that the spike is compared with lie before the resume
            real = Run.write_log

            def crash(run, row):
                real(run, row)
                if run.step == stop + 2:
                    raise ZeroDivisionError
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(Run, "write_log", crash)
                train.train(settings(folder, model, **changes))
        run = train.train(settings(folder, model, **changes), resume=True)
        assert [row["step"] for row in run.log if "leapt" in row.get("skipped", "")] == [36]
        run.lock.close()
        weights.append(final_weights(folder))
    assert weights[0] == weights[1]


def test_an_overflow_of_fp16_is_skipped_counted_and_logged(tmp_path):
    folder, model = make_run(tmp_path / "r")
    run = Run(settings(folder, model, precision="fp16"), False)
    run.scale.value = 2.0 ** 100
    before = [p.clone() for p in run.model.parameters()]
    row = train.train_step(run)
    assert "overflowed fp16" in row["skipped"] and row["loss"] > 0
    assert run.scale.overflows == 1 and run.scale.value == 2.0 ** 99 == row["loss_scale"]
    assert all(torch.equal(p, q) for p, q in zip(before, run.model.parameters()))
    assert run.watch.in_a_row == 0
    run.scale.value = 2.0 ** 10
    assert "skipped" not in train.train_step(run) and run.scale.overflows == 1
    assert not any(torch.equal(p, q) for p, q in zip(before, run.model.parameters()))


def test_fp16_learns_as_fp32_does(tmp_path):
    losses = []
    for precision in ("fp32", "fp16"):
        folder, model = make_run(tmp_path / precision)
        run = Run(settings(folder, model, precision=precision, steps=60), False)
        losses.append([train.train_step(run)["loss"] for _ in range(60)])
    assert losses[0][0] - losses[0][-1] > 1
    assert losses[1][-1] == pytest.approx(losses[0][-1], abs=0.1)


def test_what_was_measured_is_kept_on_resume(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    monkeypatch.setattr(run_module, "choose_precision", lambda *_: ("bf16", "measured"))
    monkeypatch.setattr(run_module, "choose_threads", lambda *_: (1, "measured"))
    config = settings(folder, model, precision="auto", threads=0)
    Run(config, False).save()
    for name in ("choose_precision", "choose_threads"):
        monkeypatch.setattr(run_module, name, lambda *_: pytest.fail("measured again"))
    assert Run(config, True).choices == {"precision": "bf16", "threads": 1}
    # Naming what was measured is no change; naming another precision is.
    Run(dataclasses.replace(config, precision="bf16"), True)
    with pytest.raises(ValueError, match="precision from auto to fp32"):
        Run(dataclasses.replace(config, precision="fp32"), True)


def test_measuring_moves_no_weight_and_picks_the_faster(tmp_path, monkeypatch):
    model = Transformer(MODEL)
    before = [p.clone() for p in model.parameters()]
    device = torch.device("cpu")
    assert machine.choose_precision(model, device, 2, 16)[0] in ("fp32", "bf16")
    assert min(machine.step_times(model, device, "fp16", 2, 16, seconds=0.0)) > 0
    assert all(torch.equal(p, q) and q.grad is None for p, q in zip(before, model.parameters()))
    pace = {"fp32": 1.0, "bf16": 0.5}
    monkeypatch.setattr(machine, "step_times", lambda *given: [pace[given[2]], 9.0])
    assert machine.choose_precision(model, device, 2, 16)[0] == "bf16"
    pace["bf16"] = 0.95  # not worth its lost digits
    assert machine.choose_precision(model, device, 2, 16)[0] == "fp32"


@pytest.mark.parametrize("cores, seconds, best", [
    (8, {8: 3.0, 4: 2.0, 2: 4.0}, 4), (2, {2: 1.0, 1: 1.5}, 2), (2, {2: 9.0, 1: 1.0}, 1),
    (4, {4: 3.0, 2: 2.0, 1: 1.0}, 1), (1, {}, 1)])
def test_threads_are_halved_while_that_is_faster(monkeypatch, cores, seconds, best):
    now = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(machine, "cores", lambda: cores)
    tried = []

    def step_times(*_):
        tried.append(torch.get_num_threads())
        return [0.1, seconds[tried[-1]], 9.0]
    monkeypatch.setattr(machine, "step_times", step_times)
    try:
        assert machine.choose_threads(None, 2, 16)[0] == best == torch.get_num_threads()
        assert tried == list(seconds)
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
        assert machine.choose_threads(None, 2, 16) == (best, "OMP_NUM_THREADS")
    finally:
        torch.set_num_threads(now)


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
    said = capsys.readouterr().out
    assert "branching at step 12: the same as a run planned so" in said
    assert final_weights(branch) == final_weights(whole)
    logs = [[(r["step"], r["loss"], r["learning_rate"]) for r in
             map(json.loads, (f / "log.jsonl").read_text().splitlines())] for f in (whole, branch)]
    assert logs[0] == logs[1]
    # The branch is a run of its own, which is resumed as any other.
    (branch / "cost.json").unlink()
    train.train(settings(branch, model, branch_from=checkpoint, **plan), resume=True)
    assert final_weights(branch) == final_weights(whole)


@pytest.mark.parametrize("lose", ["log", "a row in the middle"])
def test_rows_that_the_log_lacks_are_said(tmp_path, capsys, lose):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model))
    assert "the log of" not in capsys.readouterr().out
    if lose == "log":  # of a checkpoint copied out of its run
        checkpoint = shutil.copytree(checkpoints(folder)[-1], tmp_path / "elsewhere" / "copy")
        branch, _ = make_run(tmp_path / "branch")
        run = Run(settings(branch, model, steps=20, branch_from=str(checkpoint)), False)
        assert run.log == [] and f"the log of {checkpoint} lacks 12 of 12 rows" in \
            capsys.readouterr().out
    else:
        lines = (folder / "log.jsonl").read_text().splitlines(keepends=True)
        (folder / "log.jsonl").write_text("".join([*lines[:5], lines[5][:9] + "\n", *lines[6:]]))
        run = Run(settings(folder, model), True)
        assert [row["step"] for row in run.log] == [1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12]
        assert "lacks 1 of 12 rows: the curve" in capsys.readouterr().out


def test_a_branch_that_departs_from_its_past_says_so_or_is_refused(tmp_path, monkeypatch, capsys):
    stage, model = make_run(tmp_path / "stage")
    checkpoint = str(first_stage(stage, model, monkeypatch))
    branch, _ = make_run(tmp_path / "branch")

    def begin(**changes):
        return Run(settings(branch, model, **{**FIRST_STAGE, "branch_from": checkpoint,
                                              **changes}), False)
    for changes in ({"schedule": "linear"}, {"learning_rate": 0.001}, {"batch_ramp": "2:0.5"},
                    {"clip": 0.5}, {"beta2": 0.5}):
        run = begin(**changes)
        assert not run.as_planned
        assert "not the same as a run planned so" in capsys.readouterr().out
    assert run.optimizers[-1].param_groups[0]["betas"] == (0.9, 0.5)
    with pytest.raises(ValueError, match="a branch keeps these settings; changed: seed from 0 to"):
        begin(seed=1)
    with pytest.raises(ValueError, match="changed: optimizer from muon to adamw"):
        begin(optimizer="adamw")
    with pytest.raises(ValueError, match="steps 12 ends before the branch begins, at step 12"):
        begin(steps=12)
    with pytest.raises(ValueError, match="nowhere is no checkpoint of a run"):
        begin(branch_from="nowhere")
    damaged = pathlib.Path(checkpoint) / "trainer.json"
    damaged.write_text("{}")
    with pytest.raises(ValueError, match="trainer.json is damaged"):
        begin()
    assert not checkpoints(branch)


def test_ramps_give_each_step_its_shape(tmp_path):
    folder, model = make_run(tmp_path / "r")
    run = Run(settings(folder, model, batch_ramp="1:0.25,2:0.5", length_ramp="8:0.75",
                       accumulation=2), False)
    rows = [train.train_step(run) for _ in range(12)]
    assert [row["rows"] for row in rows] == [1] * 3 + [2] * 3 + [4] * 6
    assert [row["row_length"] for row in rows] == [8] * 9 + [16] * 3
    assert rows[-1]["tokens"] == run.tokens == run.total_tokens == 3 * 8 + 3 * 16 + 3 * 32 + 3 * 64


RAMPS = st.lists(st.tuples(st.integers(1, 7), st.floats(0.001, 0.999)), max_size=3,
                 unique_by=(lambda stage: stage[0], lambda stage: stage[1])).map(
    lambda stages: ",".join(f"{value}:{share}" for value, share in zip(
        *(sorted(numbers) for numbers in zip(*stages)))) if stages else "")


@given(steps=st.integers(1, 300), first=st.integers(0, 300), batch_ramp=RAMPS, length_ramp=RAMPS)
def test_the_tokens_to_come_are_the_sum_over_the_steps(steps, first, batch_ramp, length_ramp):
    config = train.TrainConfig(steps=steps, batch_ramp=batch_ramp, length_ramp=length_ramp,
                               warmup_steps=0)
    first = min(first, steps)
    assert run_module.tokens_to_come(config, first) == \
        sum(rows * length for _, rows, length in map(config.plan, range(first, steps)))


def test_a_billion_steps_are_counted_at_once():
    config = train.TrainConfig(steps=10 ** 9, batch_ramp="2:0.25")
    assert run_module.tokens_to_come(config, 0) == 10 ** 9 * 256 * (2 + 3 * 8) // 4


def test_settings_that_only_round_otherwise_are_said_and_others_refused(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    Run(settings(folder, model), False).save()
    Run(settings(folder, model, accumulation=2, compile=True, keep=5), True)
    assert "equal but for rounding, since these changed: accumulation from 1 to 2, " \
        "compile from False to True\n" in capsys.readouterr().out
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
    assert "trainer.safetensors is damaged or not a safetensors" in refused(settings(other, wider))
    (checkpoint / "trainer.safetensors").write_bytes(whole)
    state = json.loads((checkpoint / "trainer.json").read_text())
    for bad in ({}, {**state, "scale": None}, {**state, "config": 7},
                {**state, "loader": {}}, {k: v for k, v in state.items() if k != "random"}):
        (checkpoint / "trainer.json").write_text(json.dumps(bad))
        reseal(checkpoint)
        assert "trainer.json of this checkpoint is not what" in refused(settings(other, wider))
    assert not (tmp_path / "exploded").exists()


def test_a_full_disk_is_one_clear_line_and_earlier_checkpoints_stay(tmp_path):
    folder, _ = make_run(tmp_path / "r")
    subprocess.run(command(folder, "--steps", "5"), cwd=ROOT, check=True, capture_output=True)
    before = newest_intact(folder)
    full, _ = make_run(tmp_path / "full")
    # No file may grow beyond 12 kB, which the log stays below and the weights do not.
    done = subprocess.run(
        command(full, "--steps", "9", "--save_every", "7", "--branch_from", str(before)), cwd=ROOT,
        capture_output=True, text=True, encoding="utf-8",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (12000, 12000)))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "step 7 could not be saved" in done.stderr and "are intact: make room" in done.stderr
    assert list((full / "checkpoints").iterdir()) == [] and newest_intact(folder) == before
    # With room again, the same command goes on.
    subprocess.run(command(full, "--steps", "9", "--branch_from", str(before)), cwd=ROOT,
                   check=True, capture_output=True)
    assert newest_intact(full).name == "step-00000009"


@pytest.mark.parametrize("arguments, message", [
    (["--heads", "4"], "unrecognized arguments: --heads"),
    (["--preset", "huge"], "invalid choice: 'huge'"),
    (["--steps", "many"], "invalid int value: 'many'"),
    (["--document_mask", "perhaps"], "neither true nor false"),
    (["--steps", "0"], "steps is 0"),
    (["--num_attention_heads", "5"], "does not divide into num_attention_heads 5"),
    (["--num_key_value_heads", "3"], "num_key_value_heads 3"),
    (["--row_length", "1000"], "row_length 1000 exceeds"),
    (["--accumulation", "3"], "does not divide into accumulation 3"),
    (["--warmup_steps", "400"], "warmup_steps 400"),
    (["--schedule", "stairs"], "unknown schedule 'stairs'"),
    (["--optimizer", "sgd"], "unknown optimizer 'sgd'"),
    (["--precision", "fp64"], "unknown precision 'fp64'"),
    (["--parallel", "zero"], "unknown parallel 'zero'"),
    (["--batch_ramp", "2:0.5,1:0.9"], "values must rise"),
    (["--batch_ramp", "8:0.5"], "batch_ramp must stay below the full batch of 8"),
    (["--length_ramp", "long"], "does not read as value:share"),
    (["--length_ramp", "256:0.5"], "length_ramp must stay below the full length of 256"),
    (["--decay_share", "0"], "decay_share"), (["--beta2", "1"], "beta2"),
    (["--spike", "-1"], "spike"),
    (["--threads", "-1"], "threads"),
    (["--branch_from", "nowhere"], "nowhere"),
    (["--device", "tpu"], "unknown device 'tpu'"),
    (["--weights", "s0"], "do not read as"),
    (["--weights", "s0=0.5,s0=0.5"], "each name once"),
    (["--weights", "s0=nan"], "sum to 1"),
    (["--head_dim", "0"], "head_dim is 0"),
    (["--rope_theta", "nan"], "rope_theta"),
    (["--initializer_range", "-1"], "initializer_range"),
    (["--learning_rate", "nan"], "learning_rate"),
    (["--clip", "inf"], "all of them finite"),
    (["--weight_decay", "nan"], "weight_decay"),
    (["--seed", "-1"], "seed -1"),
    (["--weights", "s0=0.5,s9=0.5"], "no source is called 's9'"),
    (["--preset", "huge"], "invalid choice: 'huge'"), (["--preset"], "expected one argument"),
    (["--out", __file__], "test_train.py is a file"),
    (["--tokens", "nowhere"], "nowhere holds no manifest.json")])
def test_bad_settings_are_one_clear_line(tmp_path, capsys, arguments, message):
    folder, _ = make_run(tmp_path / "r")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.main(["--out", str(folder), "--steps", "400", *arguments]))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert message in captured.err and captured.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokens"]


def test_help_shows_the_values_of_the_preset(capsys):
    for preset, config in (("tiny", train.TRAIN_PRESETS["tiny"]),
                           ("small", train.TRAIN_PRESETS["small"])):
        with pytest.raises(SystemExit):
            train.main(["--preset", preset, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"those of --preset {preset}." in said
        assert f"how often the weights move (default {config.steps})" in said
        assert f"--hidden_size int (default {config.model.hidden_size})" in said


def test_a_run_without_an_intact_checkpoint_is_not_begun_anew(tmp_path):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model))
    for checkpoint in checkpoints(folder):
        (checkpoint / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ValueError, match="no checkpoint of .* is intact"):
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
    second = subprocess.run(command(folder, "--steps", "100000"), cwd=ROOT, capture_output=True,
                            text=True, encoding="utf-8")
    process.kill()  # after which nothing is in the way of going on
    process.communicate()
    assert second.returncode == 2 and "another process trains in" in second.stderr
    assert second.stderr.count("\n") == 1
    assert lock(folder)


def test_a_text_too_short_for_one_row_is_one_clear_line(tmp_path, capsys):
    folder, _ = make_run(tmp_path / "r", sentences=10)
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.main(["--out", str(folder)]))
    assert stop.value.code == 2
    assert "too few for one row of 256" in capsys.readouterr().err


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, model = make_run(tmp_path_factory.mktemp("g") / "r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "measure_ceiling", lambda device: 1e11)
        train.train(settings(folder, model, steps=60, eval_every=60))
    return folder


def generated(folder, capsys, *arguments):
    generate.main([str(folder), *arguments])
    return capsys.readouterr().out


def test_generation_streams_the_same_text_for_a_seed(trained, capsys):
    one = generated(trained, capsys, "--prompt", "Ann", "--seed", "5")
    assert one.startswith("Ann") and one == generated(trained, capsys, "--prompt", "Ann",
                                                      "--seed", "5")


@pytest.mark.parametrize("prompt, message", [("cats and " * 40, "the context holds 32"),
                                             ("Ann", "top_p"), ("Ann", "below 2^63")])
def test_bad_prompts_are_one_clear_line(trained, capsys, prompt, message):
    more = {"top_p": ["--top_p", "2"], "below 2^63": ["--seed", str(1 << 63)]}.get(message, [])
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: generate.main([str(trained), "--prompt", prompt, *more]))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_damaged_checkpoint_is_one_clear_line(trained, tmp_path, capsys):
    copy = tmp_path / "copy"
    shutil.copytree(checkpoints(trained)[-1], copy)
    (copy / "model.safetensors").write_bytes(b"x")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: generate.main([str(copy)]))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert "model.safetensors is damaged" in captured.err and captured.err.count("\n") == 1


def test_an_unwritable_folder_is_one_clear_line(tmp_path, capsys):
    folder, _ = make_run(tmp_path / "r")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.main(["--out", str(tmp_path / "file" / "run"),
                                    "--tokens", str(folder / "tokens")]))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.err.count("\n") == 1
