"""train.py: it learns, resumes bit for bit, and refuses what would change a run silently."""

import dataclasses
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from nanoseek import cli, data, generate, train
from nanoseek.checkpoint import checkpoints, load_model, newest_intact
from nanoseek.model import ModelConfig
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
        eval_every=6, save_every=4, device="cpu", precision="fp32"), **changes})


def final_weights(folder):
    return (newest_intact(folder) / "model.safetensors").read_bytes()


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch):
    monkeypatch.setattr(train, "measure_ceiling", lambda device: 1e11)


def test_one_batch_is_learned_by_heart(tmp_path):
    folder, model = make_run(tmp_path / "r")
    torch.manual_seed(0)
    run = train.Run(settings(folder, model, steps=150, learning_rate=0.02, schedule="constant"),
                    resume=False)
    batch = run.loader.next_batch()
    run.loader.next_batch = lambda: batch
    losses = [train.train_step(run)["loss"] for _ in range(150)]
    assert losses[0] > 5 and losses[-1] < 0.5


def test_a_run_leaves_what_it_should(tmp_path, capsys):
    folder, model = make_run(tmp_path / "r")
    train.train(settings(folder, model, steps=40, eval_every=20))
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert set(rows[19]["held_out"]) == {"s0", "s1"}
    tag = json.loads((folder / "cost.json").read_text())
    assert tag["tokens"] == 40 * 4 * 16
    svg = (folder / "curve.svg").read_text()
    assert "stroke-dasharray" in svg and svg.count("<polyline") == 2
    said = capsys.readouterr().out
    assert "bits/byte" in said and "tokens/s" in said and "s1" in said and "the price tag: python -m nanoseek.cost" in said
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
                                     {"activation_checkpointing": "selective", "precision": "bf16"}])
def test_stopped_and_resumed_equals_uninterrupted(tmp_path, monkeypatch, changes):
    whole, model = make_run(tmp_path / "whole")
    broken, _ = make_run(tmp_path / "broken")
    train.train(settings(whole, model, **changes))
    real = train.train_step

    def stop_after_seven(run):
        row = real(run)
        if run.step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        return row
    monkeypatch.setattr(train, "train_step", stop_after_seven)
    assert train.train(settings(broken, model, **changes)) is None
    monkeypatch.setattr(train, "train_step", real)
    train.train(settings(broken, model, **changes), resume=True)
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
            "--resume", *more]


def test_killed_at_a_random_step_and_resumed_ends_with_the_same_weights(tmp_path):
    whole, _ = make_run(tmp_path / "whole")
    killed, _ = make_run(tmp_path / "killed")
    subprocess.run(command(whole), cwd=ROOT, check=True, capture_output=True)
    step = random.SystemRandom().randint(1, 55)
    process = subprocess.Popen(command(killed), cwd=ROOT, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    log = killed / "log.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.read_bytes().count(b"\n") >= step:
            break
        time.sleep(0.001)
    process.kill()
    output = process.communicate()[0]
    assert process.returncode == -signal.SIGKILL, output
    subprocess.run(command(killed), cwd=ROOT, check=True, capture_output=True)
    assert final_weights(whole) == final_weights(killed), f"killed at step {step}"


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
        run = train.Run(settings(folder, model, accumulation=accumulation), resume=False)
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
    with pytest.raises(ValueError, match="has changed since this run began"):
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


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    folder, model = make_run(tmp_path / "r")
    run = train.Run(settings(folder, model), resume=False)
    with torch.no_grad():
        run.model.model.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match="not finite at step 1"):
        train.train_step(run)


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
    (["--tokens", "nowhere"], "nowhere holds no manifest.json")])
def test_bad_settings_are_one_clear_line(tmp_path, capsys, arguments, message):
    folder, _ = make_run(tmp_path / "r")
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: train.main(["--out", str(folder), "--steps", "400", *arguments]))
    captured = capsys.readouterr()
    assert stop.value.code == 2
    assert message in captured.err and captured.err.count("\n") == 1
    assert sorted(path.name for path in folder.iterdir()) == ["tokenizer.json", "tokens"]


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
    assert train._lock(folder)


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
        patch.setattr(train, "measure_ceiling", lambda device: 1e11)
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
                                             ("Ann", "top_p")])
def test_bad_prompts_are_one_clear_line(trained, capsys, prompt, message):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: generate.main([str(trained), "--prompt", prompt, "--top_p", "2"]
                                      if message == "top_p" else [str(trained), "--prompt",
                                                                  prompt]))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert message in captured.err and captured.err.count("\n") == 1


def test_a_damaged_checkpoint_is_one_clear_line(trained, tmp_path, capsys):
    import shutil
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
