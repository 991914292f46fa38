"""A small run for tests: its tokens, its settings, its command line."""

import dataclasses
import pathlib
import random
import sys

import pytest

from nanoseek import data, train
from nanoseek.checkpoint import newest_intact
from nanoseek.model import ModelConfig
from nanoseek.scale import run as run_module
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


# `python -m nanoseek.train`, but for the seconds in which it measures what the machine can do.
TRAIN = ("from nanoseek import cli, train; from nanoseek.scale import run; "
         "run.measure_ceiling = lambda **_: 1e11; cli.run(train.main)")


def command(folder, *more):
    return [sys.executable, "-c", TRAIN, "--preset", "tiny", "--out", str(folder),
            "--steps", "60", "--batch_size", "2", "--row_length", "16", "--warmup_steps", "2",
            "--hidden_size", "16", "--intermediate_size", "24", "--num_hidden_layers", "2",
            "--num_attention_heads", "2", "--num_key_value_heads", "1", "--eval_every", "30",
            "--max_position_embeddings", "32", "--save_every", "5", "--device", "cpu",
            "--threads", "1", "--precision", "fp32", "--memorise",  # else a text this small ends it
            "--resume", *more]


@pytest.fixture(autouse=True)
def quick_ceiling(monkeypatch):
    monkeypatch.setattr(run_module, "measure_ceiling", lambda **_: 1e11)
