"""Kill training at random instants and see that, resumed, it ends as if nothing had happened.

    python tests/bench/kill_resume.py --kills 200
    python tests/bench/kill_resume.py --kills 20 --seed 3

A run is started, killed with SIGKILL after a random time (in a step, an evaluation, a save, or
before its first checkpoint), started again with resume, killed again, … until one start is let
through. Then its weights, its optimizer tensors and its logged losses must be, to the last bit,
those of an undisturbed run. Each way to train of WAYS takes its turn. Exit code 1 if any differs.
"""

import argparse
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import torch

from nanoseek import checkpoint, data, train
from nanoseek.model import ModelConfig
from nanoseek.stories import LANGUAGES, stories
from nanoseek.tokenizer import Tokenizer

WAYS = {"muon": {}, "adamw": {"optimizer": "adamw"}, "accumulation": {"accumulation": 2},
        "bf16": {"precision": "bf16"}, "activation checkpointing": {"activation_checkpointing": "full"}}
KILLS_A_RUN = 5


def prepare(folder):
    """Write a tokenizer and token shards of a few stories; return their vocabulary's size."""
    told = [story for language in LANGUAGES for story in stories(language, 150, 0)]
    tokenizer = Tokenizer.train([story.text for story in told], 384)
    tokenizer.save(folder / "tokenizer.json")
    documents = [{**story._asdict(), "split": "train" if i % 15 else "held_out"}
                 for i, story in enumerate(told)]
    data.write_shards(documents, tokenizer.encode, folder / "tokens", tokenizer.vocab_size,
                      tokenizer.eot_id, folder / "tokenizer.json")
    return tokenizer.vocab_size


def start(config):
    """Start or go on with a run in a process of its own; return its number.

    Forked, so that torch need not be imported each time: the parent has computed nothing with it,
    so there are no threads yet that a fork would lose.
    """
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with open(pathlib.Path(config.out) / "said.txt", "a") as said, \
                contextlib.redirect_stdout(said):
            torch.set_num_threads(1)
            train.measure_ceiling = lambda device: 1e11  # the machine's speed does not matter here
            train.train(config, resume=True)
        code = 0
    finally:
        os._exit(code)


def outcome(folder):
    """Return hashes of a run's end: {what: sha256}."""
    last = checkpoint.newest_intact(folder)
    found = {name: hashlib.sha256((last / name).read_bytes()).hexdigest()
             for name in ("model.safetensors", "trainer.safetensors")}
    rows = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    losses = [(row["step"], row["loss"], row["gradient_norm"], row.get("held_out")) for row in rows]
    return {**found, "losses": hashlib.sha256(repr(losses).encode()).hexdigest()}


def settings(data_folder, folder, vocab_size, changes):
    model = ModelConfig(vocab_size=vocab_size, hidden_size=32, intermediate_size=64,
                        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
                        max_position_embeddings=64)
    folder.mkdir()
    shutil.copy(data_folder / "tokenizer.json", folder)
    shutil.copytree(data_folder / "tokens", folder / "tokens")
    return train.TrainConfig(**{**dict(
        out=str(folder), model=model, steps=40, batch_size=4, row_length=48, warmup_steps=4,
        eval_every=13, save_every=3, device="cpu", precision="fp32"), **changes})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, began = random.Random(args.seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        base = pathlib.Path(temporary)
        (base / "data").mkdir()
        vocab_size = prepare(base / "data")
        expected, seconds = {}, {}
        for number, (way, changes) in enumerate(WAYS.items()):
            config = settings(base / "data", base / f"whole-{number}", vocab_size, changes)
            started = time.perf_counter()
            assert os.waitpid(start(config), 0)[1] == 0, (base / f"whole-{number}")
            seconds[way] = time.perf_counter() - started
            expected[way] = outcome(pathlib.Path(config.out))
        kills, while_saving, unborn, runs, wrong = 0, 0, 0, 0, 0
        while kills < args.kills:
            way = list(WAYS)[runs % len(WAYS)]
            folder = base / f"run-{runs}"
            config = settings(base / "data", folder, vocab_size, WAYS[way])
            left = min(KILLS_A_RUN, args.kills - kills)
            while True:
                child = start(config)
                if left:
                    time.sleep(rng.uniform(0, 0.6 * seconds[way]))
                    os.kill(child, signal.SIGKILL)
                status = os.waitpid(child, 0)[1]
                if os.WIFSIGNALED(status):
                    left, kills = left - 1, kills + 1
                    unborn += not checkpoint.checkpoints(folder)
                    while_saving += any(not path.name.startswith("step-") for path in
                                        (folder / "checkpoints").glob("*"))
                else:
                    assert status == 0, (folder / "said.txt").read_text()[-2000:]
                    break
            found = outcome(folder)
            differs = [what for what in found if found[what] != expected[way][what]]
            wrong += bool(differs)
            if differs:
                print(f"run {runs} ({way}): {', '.join(differs)} differ")
            runs += 1
            shutil.rmtree(folder)
    print(f"{kills} kills in {runs} runs ({', '.join(WAYS)}), {while_saving} of them left a half-"
          f"written checkpoint, {unborn} came before the first; {runs - wrong} of {runs} runs "
          f"ended equal to an undisturbed one in weights, optimizer tensors and losses "
          f"({time.perf_counter() - began:.0f} s)")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
