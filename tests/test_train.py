"""train.py: it learns, skips what would spoil the weights, and answers bad settings in one line."""

import dataclasses
import json
import math
import shutil
import subprocess
import sys

import pytest
import torch

from nanoseek import cli, generate, train
from nanoseek.checkpoint import checkpoints, find_checkpoint, load_model
from nanoseek.data import write_shards
from nanoseek.fast import speed_up
from nanoseek.lab.price_tag import format_price_tag
from nanoseek.scale import folder as folder_module
from nanoseek.scale import run as run_module
from nanoseek.scale.run import Run
from nanoseek.tokenizer import Tokenizer
from small_run import ROOT, TRAIN, final_weights, make_run, quick_ceiling, settings  # noqa: F401


def test_one_batch_is_learned_by_heart(tmp_path):
    folder, model = make_run(tmp_path / "r")
    torch.manual_seed(0)
    run = Run(settings(folder, model, steps=150, learning_rate=0.02, schedule="constant"),
                    resume=False)
    batch = run.loader.next_batch()
    run.next_batch = lambda: batch
    losses = [train.train_step(run)["loss"] for _ in range(150)]
    assert losses[0] > 5 and losses[-1] < 0.5


def test_rows_may_be_as_long_as_the_model_of_the_flags(tmp_path, monkeypatch):
    folder, _ = make_run(tmp_path / "r")
    seen = []
    monkeypatch.setattr(train, "train", lambda config, *_: seen.append(config))
    train.main(["--out", str(folder), "--row_length", "1024", "--max_position_embeddings", "1024"])
    assert seen[0].row_length == seen[0].model.max_position_embeddings == 1024


COMPILED = """
import sys, torch
from nanoseek import train
from nanoseek.scale import run
run.measure_ceiling = lambda **_: 1e11
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
         "--intermediate_size", "24", "--num_hidden_layers", "2"]


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
        [sys.executable, "-c", TRAIN, "--out", str(folder), "--compile", *QUICK],
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
    page = (folder / "report.html").read_text("utf-8")
    drawn = json.loads(page.split("const run = ")[1].split(";</script>")[0])
    assert len(drawn["log"]) == 40 and drawn["log"][-1]["held_out"] == rows[-1]["held_out"]
    assert drawn["floors"].keys() <= {"s0", "s1"} and drawn["floors"]
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


def test_a_run_that_only_memorises_stops_and_its_best_checkpoint_is_taken(tmp_path, monkeypatch,
                                                                          capsys):
    def scored(run):  # falls to step 8, then rises
        return {"s0": 2.0 + abs(8 - run.step) / 10, "s1": 1.0}
    monkeypatch.setattr(train, "evaluate_quickly", scored)
    folder, model = make_run(tmp_path / "r")
    more = {"steps": 60, "eval_every": 4, "save_every": 60, "learning_rate": 0.02}
    run = train.train(settings(folder, model, **more))
    rows = folder_module.read_log(folder)
    assert run.step == 12 and [row["step"] for row in rows if "held_out" in row] == [4, 8, 10, 12]
    assert rows[0]["untrained"] == {"s0": 2.8, "s1": 1.0}
    assert "from step 8 on it learnt its text by heart" in capsys.readouterr().out
    assert find_checkpoint(folder, best=True).name == "step-00000008"
    assert find_checkpoint(folder).name == "step-00000012" and (folder / "cost.json").exists()
    # It goes on from the newest where that is asked for.
    assert train.train(settings(folder, model, memorise=True, **more), resume=True).step == 60


def test_what_memorising_is():
    def log(*rows):
        return [{"step": n, "loss": loss, "held_out": held and {"a": held}}
                for n, (loss, held) in enumerate(rows, start=1)]
    worse = log((3, 3), (2, 2), (1.5, 2.1), (1, 2.2))
    assert folder_module.memorised_from(worse) == 2
    assert folder_module.memorised_from(worse[:3]) is None  # once may be chance
    assert folder_module.memorised_from(log((3, 3), (2, 2), (1.5, 2.01), (1, 2.2))) is None
    assert folder_module.memorised_from(log((3, 3), (2, 2), (9, 2.1), (9, 2.2))) is None  # diverged
    assert folder_module.memorised_from(log((3, None), (2, None))) is None
    # A source at 2 that worsens by a twentieth weighs less than one at 0.2 that halves.
    mixed = [row | {"held_out": held} for row, held in zip(worse, (
        {"a": 2.0, "b": 0.4}, {"a": 2.0, "b": 0.3}, {"a": 2.1, "b": 0.2}, {"a": 2.1, "b": 0.15}))]
    assert folder_module.memorised_from(mixed) is None


def test_steps_are_sized_to_the_text_and_kept(tmp_path, monkeypatch, capsys):
    folder, model = make_run(tmp_path / "r")
    more = {"steps": 0, "warmup_steps": 20, "save_every": 10, "eval_every": 100, "keep": 99}
    # Measured passes of 8 s make a step of 10 s: 24 in 4 minutes.
    monkeypatch.setattr(run_module.machine, "step_times", lambda *_: [7e3, 8e3, 9e3])
    run = train.train(settings(folder, model, minutes=4.0, **more))
    assert run.step == 24 and run.config.warmup_steps == 6
    assert "24 steps, about 240 s" in capsys.readouterr().out
    for late in checkpoints(folder)[1:]:
        shutil.rmtree(late)
    again = train.train(settings(folder, model, minutes=1e-9, **more), resume=True)
    assert again.step == 24 and "going on at step 10" in capsys.readouterr().out
    # Where time is no limit, the text is: its tokens are read some times.
    monkeypatch.setattr(run_module.machine, "step_times", lambda *_: [1e-3])
    folder, model = make_run(tmp_path / "other")
    run = Run(settings(folder, model, **more), resume=False)
    assert 1 < run.config.steps * 4 * 16 / run.epoch < 20


def test_a_run_goes_on_with_the_context_that_it_is_given(tmp_path):
    """Runs of before had a context of which their rows trained a half."""
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, dataclasses.replace(model, max_position_embeddings=64), steps=4))
    run = train.train(settings(folder, model, steps=4), resume=True)
    assert run.model.config.max_position_embeddings == model.max_position_embeddings == 32


def test_the_context_of_each_preset_is_what_its_rows_train():
    """Positions that no row reaches are never trained, and spoil scores and samples."""
    for preset in train.TRAIN_PRESETS.values():
        assert preset.model.max_position_embeddings == preset.row_length


def test_the_plain_chapters_train_to_the_same_losses(tmp_path, monkeypatch):
    losses, sped_up = {}, []
    monkeypatch.setattr(train, "speed_up", lambda model: sped_up.append(speed_up(model)))
    for fast in (False, True):
        folder, model = make_run(tmp_path / str(fast))
        run = train.train(settings(folder, model, fast=fast))
        losses[fast] = [row["loss"] for row in run.log]
        assert len(sped_up) == fast
    assert losses[False] == pytest.approx(losses[True], rel=1e-4)


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
    monkeypatch.setattr(train, "PATIENCE", 3)
    with pytest.raises(ValueError, match="step 9 diverged.*nan.*step-00000004"):
        train.train(settings(folder, model))
    said = capsys.readouterr().out
    assert said.count("skipped: the loss is nan") == 4
    # No checkpoint from among the diverged steps, although one was due after the eighth.
    assert [path.name for path in checkpoints(folder)] == ["step-00000004"]
    rows = [json.loads(line, parse_constant=pytest.fail) for line in
            (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "skipped" in row] == [3, 6, 7, 8]


def test_a_run_whose_last_step_diverges_saves_nothing_of_it(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    spoil(monkeypatch, {6, 12})  # evaluations were due after both
    with pytest.raises(ValueError, match="step 12 diverged: the loss is nan.*step-00000010"):
        train.train(settings(folder, model))
    assert [path.name for path in checkpoints(folder)] == ["step-00000008", "step-00000010"]
    assert not (folder / "cost.json").exists()


def test_hard_batches_are_learnt_and_evaluations_fall_on_them_too(tmp_path, monkeypatch):
    folder, model = make_run(tmp_path / "r")
    spoil(monkeypatch, range(40, 61, 5), 4.0)
    run = train.train(settings(folder, model, steps=60, save_every=50, eval_every=50))
    assert not any("skipped" in row for row in run.log)
    assert [row["step"] for row in run.log if row["step"] > 30 and "held_out" in row] == [50, 60]
    assert "step-00000050" in {path.name for path in checkpoints(folder)}


def test_losses_that_leap_and_stay_high_end_a_run_alike_after_a_resume(tmp_path, monkeypatch):
    spoil(monkeypatch, range(36, 80), 4.0)
    for stop in (None, 37):
        folder, model = make_run(tmp_path / str(stop))
        changes = {"steps": 80, "save_every": 36, "eval_every": 80}
        if stop:  # after a checkpoint with the first leap; what it is compared with lies before
            real = Run.write_log

            def crash(run, row):
                real(run, row)
                if run.step == stop:
                    raise ZeroDivisionError
            with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
                patch.setattr(Run, "write_log", crash)
                train.train(settings(folder, model, **changes))
        with pytest.raises(ValueError, match="step 52 diverged: the loss leapt .*step-00000036"):
            train.train(settings(folder, model, **changes), resume=True)
        assert [path.name for path in checkpoints(folder)][-1] == "step-00000036"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rate_that_ruins_the_weights_ends_the_run(tmp_path, monkeypatch, optimizer):
    """No loss is written in here: they are those of weights that really diverge."""
    folder, model = make_run(tmp_path / "r")
    plan = train.TrainConfig.plan

    def ruin(config, step):
        rate, *shape = plan(config, step)
        return (rate if step < 60 else 30.0, *shape)
    monkeypatch.setattr(train.TrainConfig, "plan", ruin)
    with pytest.raises(ValueError, match="step 7[78] diverged"):
        train.train(settings(folder, model, steps=200, save_every=4, optimizer=optimizer))
    assert load_model(folder) and checkpoints(folder)[-1].name <= "step-00000062"


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


def test_ramps_give_each_step_its_shape(tmp_path):
    folder, model = make_run(tmp_path / "r")
    run = Run(settings(folder, model, batch_ramp="1:0.25,2:0.5", length_ramp="8:0.75",
                       accumulation=2), False)
    rows = [train.train_step(run) for _ in range(12)]
    assert [row["rows"] for row in rows] == [1] * 3 + [2] * 3 + [4] * 6
    assert [row["row_length"] for row in rows] == [8] * 9 + [16] * 3
    assert rows[-1]["tokens"] == run.tokens == 3 * 8 + 3 * 16 + 3 * 32 + 3 * 64


@pytest.mark.parametrize("arguments, message", [
    (["--threads", "100000"], "at most 512"), (["--learning_rate", "1e39"], "at most 1000000"),
    (["--heads", "4"], "unrecognized arguments: --heads"),
    (["--preset", "huge"], "invalid choice: 'huge'"),
    (["--steps", "many"], "invalid int value: 'many'"),
    (["--document_mask", "perhaps"], "neither true nor false"),
    (["--steps", "-1"], "steps is -1"),
    (["--num_attention_heads", "5"], "does not divide into num_attention_heads 5"),
    (["--num_key_value_heads", "3"], "num_key_value_heads 3"),
    (["--row_length", "1000"], "row_length 1000 exceeds"),
    (["--accumulation", "3"], "must be a multiple of accumulation 3"),
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
    (["--device", "tpu"], "no tpu device"),
    (["--weights", "s0"], "do not read as"),
    (["--weights", "s0=0.5,s0=0.5"], "sum to 1"),
    (["--weights", "s0=nan"], "sum to 1"),
    (["--head_dim", "0"], "head_dim is 0"),
    (["--rope_theta", "nan"], "rope_theta"),
    (["--initializer_range", "-1"], "initializer_range"),
    (["--learning_rate", "nan"], "learning_rate"),
    (["--embedding_factor", "inf"], "embedding_factor is inf: it must be above 0"),
    (["--fast", "perhaps"], "neither true nor false"),
    (["--seed", "-1"], "seed is -1"),
    (["--weights", "s0=0.5,s9=0.5"], "no source is called 's9'"),
    (["--preset", "huge"], "invalid choice: 'huge'"), (["--preset"], "expected one argument"),
    *(([f"--{name}", str(10 ** 9)], "too large for this machine: training takes") for name in (
        "num_hidden_layers", "batch_size", "intermediate_size")),
    (["--out", __file__], "test_train.py"),
    (["--tokens", "nowhere"], "nowhere holds no manifest.json")])
def test_bad_settings_are_one_clear_line(tmp_path, capsys, arguments, message):
    folder, _ = make_run(tmp_path / "r")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.main(["--out", str(folder), "--steps", "400", *arguments]))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert message in captured.err and captured.err.count("\n") == 1
    assert {path.name for path in folder.iterdir()} <= {"tokenizer.json", "tokens", ".lock"}


def test_help_shows_the_values_of_the_preset(capsys):
    for preset, config in (("tiny", train.TRAIN_PRESETS["tiny"]),
                           ("gpt2-124m", train.TRAIN_PRESETS["gpt2-124m"])):
        with pytest.raises(SystemExit):
            train.main(["--preset", preset, "--help"])
        said = " ".join(capsys.readouterr().out.split())
        assert f"those of --preset {preset}." in said
        assert f"sized to the text (default {config.steps})" in said
        assert f"--hidden_size int (default {config.model.hidden_size})" in said


def test_a_text_shorter_than_a_row_is_trained_on(tmp_path):
    folder, _ = make_run(tmp_path / "r", sentences=10)
    train.main(["--out", str(folder), "--steps", "2", "--warmup_steps", "1", "--batch_size", "2",
                "--precision", "fp32", "--threads", "1"])
    state = json.loads((checkpoints(folder)[-1] / "trainer.json").read_text())
    assert state["step"] == 2  # two rows of 256 in each, read from texts of a few tokens
    assert all(place["epoch"] > 0 for place in state["loader"]["sources"].values())


def test_where_nothing_is_held_out_that_is_said(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    tokenizer = Tokenizer.load(folder / "tokenizer.json")
    write_shards([{"text": "Ann has 3 cats.", "source": "s0"}] * 40, tokenizer.encode,
                 folder / "tokens", tokenizer.vocab_size, tokenizer.eot_id,
                 folder / "tokenizer.json")
    train.train(settings(folder, model))
    assert "no document is held out: nothing is scored" in capsys.readouterr().out


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder, model = make_run(tmp_path_factory.mktemp("g") / "r")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "measure_ceiling", lambda **_: 1e11)
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
