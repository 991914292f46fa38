"""Kill training at random instants and see that, resumed, it ends as if nothing had happened.

    python tests/bench/kill_resume.py --kills 200
    python tests/bench/kill_resume.py --kills 20 --seed 3 --ways fp16 ramps

A run is started, killed with SIGKILL after a random time (in a step, an evaluation, a save, or
before its first checkpoint), started again with resume, killed again, … until one start is let
through. Then its weights, its optimizer tensors and its logged losses must be, to the last bit,
those of an undisturbed run. Each way to train of WAYS takes its turn; of two ranks, one drawn by
lot is killed, and the other has to end by itself. Exit code 1 if anything differs.
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
import socket
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import torch.distributed.fsdp  # here, so that no fork has to
import torch.distributed.tensor

from nanoseek import checkpoint, data, train
from nanoseek.scale import run as run_module
from nanoseek.model import ModelConfig
from nanoseek.corpus.stories import LANGUAGES, stories
from nanoseek.fast.bpe import FastTokenizer

RAMPS = {"batch_ramp": "2:0.4", "length_ramp": "16:0.3,32:0.65"}
WAYS = {"muon": {}, "adamw": {"optimizer": "adamw"}, "accumulation": {"accumulation": 2},
        "bf16": {"precision": "bf16"}, "fp16": {"precision": "fp16"}, "ramps": RAMPS,
        "activation checkpointing": {"activation_checkpointing": "full"},
        "two ranks": {**RAMPS, "accumulation": 2},
        "two ranks, sliced": {"optimizer": "adamw", "parallel": "fsdp", "precision": "bf16"}}
KILLS_A_RUN = 5
PATIENCE = 20  # seconds in which the rank beside a killed one has to end


def prepare(folder, count=150, vocab_size=384):
    """Write a tokenizer and token shards of some stories; return their vocabulary's size."""
    told = [story for language in LANGUAGES for story in stories(language, count, 0)]
    tokenizer = FastTokenizer.train([story.text for story in told], vocab_size)
    tokenizer.save(folder / "tokenizer.json")
    documents = [{**story._asdict(), "split": "train" if i % 15 else "held_out"}
                 for i, story in enumerate(told)]
    data.write_shards(documents, tokenizer.encode, folder / "tokens", tokenizer.vocab_size,
                      tokenizer.eot_id, folder / "tokenizer.json")
    return tokenizer.vocab_size


def start(config, ranks):
    """Start or go on with a run in processes of its own; return their numbers.

    Forked, so that torch need not be imported each time: the parent has computed nothing with it,
    so there are no threads yet that a fork would lose.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [_fork(config, {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)})
            for rank in range(ranks)]


def _fork(config, environment):
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        os.environ.update(environment)
        with open(pathlib.Path(config.out) / "said.txt", "a") as said, \
                contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            run_module.measure_ceiling = lambda **_: 1e11  # the machine's speed matters not
            try:
                train.train(config, resume=True)
                code = 0
            except ValueError as error:
                print(error)
                code = 2
    finally:
        os._exit(code)


def finish(children, kill, rng):
    """Wait for the ranks of a run, first killing one after `kill` seconds; return their exit codes.

    As torchrun does, ask a rank that is still there some seconds later to end (SIGTERM), and in
    the end kill it: its code is then None.
    """
    codes, steps = {}, []
    if kill is not None:
        time.sleep(kill)
        os.kill(rng.choice(children), signal.SIGKILL)
        now = time.monotonic()
        steps = [(now + PATIENCE / 4, signal.SIGTERM), (now + PATIENCE, signal.SIGKILL)]
    killed = set()
    while len(codes) < len(children):
        for child in set(children) - set(codes):
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                codes[child] = None if child in killed else os.waitstatus_to_exitcode(status)
        if steps and time.monotonic() > steps[0][0]:
            _, number = steps.pop(0)
            for child in set(children) - set(codes):
                os.kill(child, number)
                killed |= {child} if number == signal.SIGKILL else set()
        time.sleep(0.002)
    return list(codes.values())


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
        eval_every=20, save_every=3, device="cpu", precision="fp32", threads=1), **changes})


class Tally:
    """Kills runs of each way in turn and counts what came of it."""

    def __init__(self, base, ways, rng):
        self.base, self.ways, self.rng = base, ways, rng
        self.kills, self.saving, self.unborn, self.runs, self.wrong, self.hung = 0, 0, 0, 0, 0, 0
        (base / "data").mkdir()
        self.vocab_size = prepare(base / "data")
        self.expected, self.seconds = {}, {}
        for number, way in enumerate(ways):
            config, ranks = self.config(way, f"whole-{number}")
            began = time.perf_counter()
            codes = finish(start(config, ranks), None, rng)
            assert set(codes) == {0}, (pathlib.Path(config.out) / "said.txt").read_text()[-2000:]
            self.seconds[way] = time.perf_counter() - began
            self.expected[way] = outcome(pathlib.Path(config.out))

    def config(self, way, name):
        return settings(self.base / "data", self.base / name, self.vocab_size, WAYS[way]), \
            2 if way.startswith("two ranks") else 1

    def run(self, way, kills):
        """Kill a run `kills` times, let it end, and compare."""
        config, ranks = self.config(way, f"run-{self.runs}")
        folder = pathlib.Path(config.out)
        while True:
            instant = self.rng.uniform(0, 0.6 * self.seconds[way]) if kills else None
            codes = finish(start(config, ranks), instant, self.rng)
            if set(codes) == {0}:
                break
            assert kills and codes.count(1) == 0, (folder / "said.txt").read_text()[-2000:]
            kills, self.kills, self.hung = kills - 1, self.kills + 1, self.hung + (None in codes)
            self.unborn += not checkpoint.checkpoints(folder)
            self.saving += any(not path.name.startswith("step-") for path in
                               (folder / "checkpoints").glob("*"))
        found = outcome(folder)
        differs = [what for what in found if found[what] != self.expected[way][what]]
        print(f"run {self.runs} ({way}), {self.kills} kills so far: "
              + (f"{', '.join(differs)} DIFFER" if differs else "equal"), flush=True)
        self.runs, self.wrong = self.runs + 1, self.wrong + bool(differs)
        shutil.rmtree(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), metavar="WAY",
                        help=f"some of: {', '.join(map(repr, WAYS))} (default: all)")
    args = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        tally = Tally(pathlib.Path(temporary), args.ways, random.Random(args.seed))
        while tally.kills < args.kills:
            way = args.ways[tally.runs % len(args.ways)]
            tally.run(way, min(KILLS_A_RUN, args.kills - tally.kills))
    print(f"{tally.kills} kills in {tally.runs} runs ({', '.join(args.ways)}), {tally.saving} of "
          f"them left a half-written checkpoint, {tally.unborn} came before the first, "
          f"{tally.hung} left a rank that did not end; {tally.runs - tally.wrong} of {tally.runs} "
          f"runs ended equal to an undisturbed one in weights, optimizer tensors and losses "
          f"({time.perf_counter() - began:.0f} s)")
    sys.exit(tally.wrong + tally.hung > 0)


if __name__ == "__main__":
    main()
