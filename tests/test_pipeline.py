"""The Makefile's chain, on a small text of the reader's own: whole, again, stopped, changed."""

import os
import pathlib
import random
import signal
import subprocess
import time

import pytest

from nanoseek.cli import lock

ROOT = pathlib.Path(__file__).parent.parent
SMALL = ("--steps 20 --batch_size 2 --row_length 32 --warmup_steps 2 --eval_every 10 "
         "--save_every 5 --hidden_size 16 --intermediate_size 24 --num_hidden_layers 1 "
         "--num_attention_heads 2 --num_key_value_heads 1 --max_position_embeddings 32 "
         "--device cpu --threads 1 --precision fp32")


def make(run, text, **more):
    variables = {"RUN": run, "TEXT": text, "VOCAB": 300, "TRAIN_ARGS": SMALL, **more}
    # Inside `make test` the outer make's flags must not reach this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.Popen(
        ["make", "train-tiny", *(f"{k}={v}" for k, v in variables.items())], cwd=ROOT,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", start_new_session=True)


def finished(process):
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0, output
    return output


def stamps(run):
    return {path.name: path.stat().st_mtime_ns for path in
            [*run.glob("[a-z]*.*"), run / "tokens" / "manifest.json"]}


@pytest.fixture
def text(tmp_path):
    rng = random.Random(0)
    words = ["the", "quick", "fox", "met", "a", "lazy", "dog", "and", "spoke", "of", "home"]
    path = tmp_path / "my own text.txt"
    path.write_text("\n".join(" ".join(rng.choices(words, k=8)) + "." for _ in range(400)),
                    encoding="utf-8")
    return path


def test_the_chain_runs_once_and_again_when_its_input_changed(tmp_path, text):
    run = tmp_path / "run"
    output = finished(make(run, text))
    assert "bits/byte" in output and "price tag" in output and "my own text" in output
    before = stamps(run)
    assert {"raw.jsonl", "clean.jsonl", "curation.json", "tokenizer.json", "cost.json",
            "log.jsonl", "report.html", "report.txt", "manifest.json"} <= before.keys()
    assert output.splitlines()[-1].endswith(f"{run}/report.html")
    assert str(max((run / "checkpoints").glob("step-*"))) in (run / "report.txt").read_text()
    again = finished(make(run, text))
    assert stamps(run) == before and "20/20" not in again and "bits/byte" in again
    # A copy has new time stamps and the same data: nothing of it is deleted or trained again.
    subprocess.run(["cp", "-r", run, tmp_path / "copy"], check=True)
    learned = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.*")}
    copied = finished(make(tmp_path / "copy", text))
    assert "holds new data" not in copied and "training:" not in copied and "bits/byte" in copied
    assert {run / path.relative_to(tmp_path / "copy"): path.read_bytes()
            for path in (tmp_path / "copy" / "checkpoints").rglob("*.*")} == learned
    text.write_text(text.read_text("utf-8").replace("fox", "owl"), encoding="utf-8")
    changed = finished(make(run, text))
    assert "holds new data" in changed and "training:" in changed and "20/20" in changed
    assert all(stamps(run)[name] > before[name] for name in before)


def test_ctrl_c_and_the_same_command_goes_on(tmp_path, text):
    run = tmp_path / "run"
    process = make(run, text, TRAIN_ARGS=SMALL.replace("--steps 20", "--steps 150"))
    log = run / "log.jsonl"
    deadline = time.monotonic() + 90
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to make and its child alike
    output = process.communicate(timeout=60)[0]
    assert process.returncode != 0 and "Traceback" not in output
    assert not (run / "cost.json").exists()
    steps = log.read_bytes().count(b"\n")
    assert 0 < steps < 150
    assert f"going on at step {steps}" in finished(
        make(run, text, TRAIN_ARGS=SMALL.replace("--steps 20", "--steps 150")))


@pytest.mark.parametrize("name, content", [
    ("empty.txt", ""), ("binary.txt", "\0"), ("table.csv", "text\na\n"), ("nowhere.txt", None),
    ("broken.jsonl", "{")])
def test_a_bad_text_is_one_clear_line_and_leaves_nothing(tmp_path, name, content):
    if content is not None:
        (tmp_path / name).write_text(content)
    process = make(tmp_path / "run", tmp_path / name)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "Traceback" not in output and name in output
    assert len(output.splitlines()) == 2  # and make's own
    assert not (tmp_path / "run").exists()


def test_a_text_of_which_nothing_is_left_leaves_no_folder(tmp_path):
    (tmp_path / "junk.jsonl").write_text('{"text": "a"}\n{"text": "b"}\n')
    process = make(tmp_path / "run", tmp_path / "junk.jsonl")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "no document is left" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("begun", [False, True])
def test_of_two_first_makes_one_is_refused_and_the_other_loses_nothing(tmp_path, text, begun):
    run = tmp_path / "run"
    run.mkdir()
    if begun:  # the other is at a later stage, else it writes raw.jsonl
        (run / "raw.jsonl").write_text('{"text": "of the other"}\n')
    held = lock(run)
    output = make(run, text).communicate(timeout=60)[0]
    assert f"another process works in {run}" in output and len(output.splitlines()) == 2
    assert {path.name for path in run.iterdir()} == {".lock", *["raw.jsonl"] * begun}
    held.close()


def test_a_lock_that_is_a_link_makes_no_file_elsewhere(tmp_path, text):
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock").symlink_to(tmp_path / "elsewhere")
    lock(run).close()
    (run / ".lock").unlink()
    (run / ".lock").symlink_to(tmp_path / "elsewhere")
    text.unlink()
    assert make(run, text).wait(60) == 2 and not (tmp_path / "elsewhere").exists()
