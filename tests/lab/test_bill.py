"""bill.py: what the command line prints, published bills, and plans for this machine."""

import dataclasses
import json
import pathlib
import shlex
import statistics
import subprocess
import sys

import pytest

from nanoseek import cost, data
from nanoseek.deepseek.hugging_face import countable
from nanoseek.lab import bill
from nanoseek.lab.planner import plan
from nanoseek.lab.price_tag import format_price_tag, show
from nanoseek.model import ModelConfig
from nanoseek.tokenizer import Tokenizer

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "tutorials" / "experiments"))
from why_cheap import calibrate

pytestmark = pytest.mark.usefixtures("one_thread")
TINY = {"vocab_size": 160, "hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
        "tie_word_embeddings": True}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    tag = cost.price_tag(TINY, 5e6, 50, 1e11, 64)
    tag["bits_per_byte"] = {"stories": 1.25}
    (folder / "cost.json").write_text(json.dumps(tag), encoding="utf-8")
    return folder


def test_a_run_shows_its_tag(run, capsys):
    bill.main([str(run)])
    shown = capsys.readouterr().out
    assert format_price_tag(json.loads((run / "cost.json").read_text())) in shown
    assert "1.250" in shown


def test_presets_and_config_files_are_priced(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    for what in (str(tmp_path), str(tmp_path / "config.json")):
        bill.main([what])
        assert "checkpointing selective" in capsys.readouterr().out
    bill.main(["deepseek-llm-67b", "--gpu", "H800", "--tokens", "2e12"])
    shown = capsys.readouterr().out
    assert "67.4 B" in shown and "601,200 h" in shown and "median" in shown


def test_flops_agree_with_published_ones():
    ratios = {row["model"]: row["ratio"] for row in calibrate() if row["ratio"]}
    assert ratios.keys() == {"Llama 3.1 405B", "GPT-3 175B"}
    assert all(abs(ratio - 1) <= 0.05 for ratio in ratios.values())


def test_mfu_agrees_with_the_plain_rule():
    """6·N·D ÷ (hours × peak), worked out apart; attention in full then adds 6 to 47%."""
    plain = {"Llama 2 7B": .39, "Llama 2 13B": .38, "Llama 2 70B": .43, "Llama 3 8B": .16,
             "Llama 3 70B": .28, "Llama 3.1 405B": .34, "DeepSeek 67B": .38, "DeepSeek-V2": .20,
             "DeepSeek-V3": .35, "TinyLlama 1.1B": .51, "MPT-7B": .36, "GPT-2 124M": .53,
             "GPT-2 1558M": .46, "BLOOM 176B": .32}
    peaks = {"A100": 312e12, "H100": 989e12, "H800": 989e12}
    rows = {row["model"]: row for row in calibrate() if row["mfu"]}
    assert rows.keys() == plain.keys()
    for name, row in rows.items():
        count = cost.parameters(countable(row["config"]))
        active = count["total"] - count["idle"]
        most = row["gpu_hours"] * 3600 * peaks[row["chip"]]
        assert 6 * active * row["tokens"] / most == pytest.approx(plain[name], abs=0.01)
        assert row["mfu"] == pytest.approx(row["flops"] / most)
    assert rows["DeepSeek 67B"]["mfu"] / .38 == pytest.approx(1.08, abs=0.02)
    assert rows["GPT-2 124M"]["mfu"] / .53 == pytest.approx(1.15, abs=0.02)


def test_each_bill_is_predicted_from_the_others():
    rows = calibrate()
    for row in rows:
        others = [other["flops"] / (other["gpu_hours"] * 3600) for other in rows
                  if other["model"] != row["model"] and other["chip"] == row["chip"]
                  and other["gpu_hours"] and "n_routed_experts" not in other["config"]]
        if not row["gpu_hours"] or not others:
            assert row["error"] is None
        else:
            hours = row["flops"] / statistics.median(others) / 3600
            assert row["error"] == pytest.approx(hours / row["gpu_hours"] - 1)
    assert sum(row["error"] is not None for row in rows) == 13


def test_the_usual_mfu_of_a_chip_is_the_median_of_its_bills():
    rows = [row for row in calibrate() if row["mfu"] and "n_routed_experts" not in row["config"]]
    usual = cost.tables()["usual_mfu"]
    assert usual.keys() == {row["chip"] for row in rows} | {"other"}
    for chip, (mfu, source) in usual.items():
        here = [row["mfu"] for row in rows if chip in (row["chip"], "other")]
        assert mfu == pytest.approx(statistics.median(here), rel=1e-9)
        assert chip == "other" or f"median of {len(here)} " in source and chip in source


def test_a_plan_prints_a_command_that_train_reads(capsys):
    bill.main(["plan", "--dollars", "100", "--gpu", "H100", "--tokens", "my $token's"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("python -m nanoseek.train ")
    words = shlex.split(lines[-1])[3:]
    flags = dict(zip(words[::2], words[1::2]))
    planned = plan(dollars=100, gpu="H100")
    assert flags["--hidden_size"] == str(planned["config"]["hidden_size"])
    assert flags["--steps"] == str(planned["steps"]) and flags["--tokens"] == "my $token's"
    assert flags["--out"] == "runs/plan" and flags["--schedule"] == "multi_step"
    from nanoseek.train import TrainConfig
    known = {f"--{field.name}" for kind in (TrainConfig, ModelConfig)
             for field in dataclasses.fields(kind)}
    assert set(flags) <= known


@pytest.fixture
def tokens(tmp_path):
    """Token shards with a vocabulary of 512."""
    documents = [{"text": "a" * 300, "source": "a", "split": split}
                 for split in ("train", "held_out")]
    Tokenizer.train(["some text"], 257).save(tmp_path / "tokenizer.json")
    data.write_shards(documents, lambda text: list(text.encode()), tmp_path / "tokens", 512, 511,
                      tmp_path / "tokenizer.json")
    return str(tmp_path / "tokens")


def test_a_plan_in_minutes_fills_the_time(monkeypatch, capsys, tokens):
    tried = []

    def run(words, stdout):
        tried.append(dict(zip(words[3::2], words[4::2])))
        pathlib.Path(tried[0]["--out"], "cost.json").write_text('{"flops_per_second": 1e11}')
        return subprocess.CompletedProcess(words, 0)
    monkeypatch.setattr(cost, "measure_ceiling", lambda device: 2e11)
    monkeypatch.setattr(subprocess, "run", run)
    bill.main(["plan", "--minutes", "3", "--tokens", tokens])
    shown = capsys.readouterr()
    words = shlex.split(shown.out.splitlines()[-1])
    flags = dict(zip(words[3::2], words[4::2]))
    (trial,) = tried
    assert trial["--tokens"] == tokens and int(trial["--steps"]) < int(flags["--steps"])
    shape = {name: int(flags[f"--{name}"]) for name in TINY if name[:3] not in ("voc", "tie")}
    assert all(trial[f"--{name}"] == str(size) for name, size in shape.items())
    assert flags["--optimizer"] == "muon"
    # The steps fill the time at the speed that was measured, with the vocabulary of the tokens.
    each = cost.flops_per_token({**shape, "vocab_size": 512}, int(flags["--row_length"]))["total"]
    trained = int(flags["--steps"]) * int(flags["--batch_size"]) * int(flags["--row_length"])
    assert each * trained / 1e11 == pytest.approx(180, rel=0.01)
    assert "3.0 min" in shown.out


def test_minutes_too_many_are_named(monkeypatch, tokens):
    monkeypatch.setattr(cost, "measure_ceiling", lambda device: 3e11)
    with pytest.raises(ValueError, match="shard the model over several devices"):
        bill.main(["plan", "--minutes", "1e11", "--tokens", tokens])


def test_tokens_decide_the_vocabulary(tokens, capsys):
    bill.main(["plan", "--flops", "1e18", "--tokens", tokens])
    count = plan(flops=1e18, vocab_size=512)["parameters"]
    assert f"parameters  {show(count)}" in capsys.readouterr().out


def test_a_plan_is_tried_out_by_real_steps(monkeypatch, tokens, capfd):
    monkeypatch.setattr(cost, "measure_ceiling", lambda device: 3e8)
    config = {**TINY, "vocab_size": 512, "max_position_embeddings": 512}
    planned = bill.plan_here({"seconds": 10, "context": 64, "config": config}, tokens)
    assert planned["config"] == config and planned["seconds"] == 10 and planned["flops"] > 0
    with pytest.raises(SystemExit, match="2"):
        bill.plan_here({"seconds": 10, "context": 10 ** 9, "config": config}, tokens)
    assert "row_length" in capfd.readouterr().err


def test_a_plan_in_minutes_needs_tokens(tmp_path):
    with pytest.raises(ValueError, match="absent"):
        bill.main(["plan", "--minutes", "3", "--tokens", str(tmp_path / "absent")])


@pytest.mark.parametrize("argv", [
    ["nowhere"], ["tiny", "extra"], ["tiny", "--gpu", "H1", "--tokens", "1e9"],
    ["tiny", "--tokens", "many"], ["tiny", "--colour", "red"], [], ["plan"],
    ["plan", "--dollars", "-100", "--gpu", "H100"], ["plan", "--flops", "10"],
    ["plan", "--dollars", "100"], ["plan", "--minutes", "-1"],
    ["plan", "--minutes", "1e300"], ["plan", "--minutes", "1", "--flops", "1e18"],
    ["plan", "--flops", "1e18", "--memory_gb", "0"], ["plan", "--flops", "1e18", "--mfu", "0.5"]])
def test_bad_command_lines(argv, capsys):
    with pytest.raises((ValueError, SystemExit)) as caught:
        bill.main(argv)
    if caught.type is SystemExit:
        assert caught.value.code == 2
        assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", "\udcff"])
def test_a_damaged_tag_is_named(run, content):
    (run / "cost.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="cost.json"):
        bill.main([str(run)])


def test_bad_input_ends_in_one_line_and_exit_code_2():
    done = subprocess.run([sys.executable, "-m", "nanoseek.cost", "plan", "--dollars", "5", "--gpu",
                           "H200"], capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "nanoseek.cost: H200 has no known watts: give it\n"
