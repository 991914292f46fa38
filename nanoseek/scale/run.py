"""A run: everything that must be there again when training goes on, and the folder that holds it.

    run = Run(TrainConfig(out="runs/tiny"), resume=True)   # opens data, model, optimizers, log
    run.save()                                             # checkpoints/step-N, whole

A resumed run has its weights, optimizer state, loss scale, place in the data, random states,
counters and what was measured, so it takes the very steps that it would have taken."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
import statistics

import torch

from nanoseek import checkpoint, cli
from nanoseek.cost import measure_ceiling, parameters
from nanoseek.data import Loader, read_manifest
from nanoseek.evaluate import held_out
from nanoseek.model import Transformer, loss
from nanoseek.optim import WEIGHT_DECAY, LossScale, LossWatch, build_optimizers, parse_ramp
from nanoseek.scale import folder, machine, sizing
from nanoseek.scale.distributed import Ranks
from nanoseek.tokenizer import Tokenizer

QUICK_TOKENS = 8192  # held-out tokens of each source that an evaluation on the way looks at
LITTLE_TEXT = 50_000  # bytes of training text; with fewer, a model hardly learns more than letters
COUNTERS = {"step": int, "tokens": int, "length_sum": int, "seconds": float}


class Run:
    def __init__(self, config, resume, speed_up=None):
        self.config, self.folder, self.ranks = config, pathlib.Path(config.out), Ranks(config)
        self.device = self.ranks.device
        self.say = cli.tell if self.ranks.first else lambda *words, **how: None
        self.step, self.tokens, self.length_sum, self.seconds = 0, 0, 0, 0.0
        self._open_data()
        begun = checkpoint.checkpoints(self.folder)
        if begun and not resume:
            raise ValueError(f"{self.folder} already holds checkpoints: --resume, or another --out")
        source = self.folder if begun else config.branch_from
        old = self.ranks.agree(lambda: checkpoint.find_checkpoint(source) if source else None)
        self._build(old, speed_up)
        half = {"bf16": "bfloat16", "fp16": "float16"}.get(self.choices["precision"])
        self.ceiling = measure_ceiling(device=self.device.type, dtype=half) * self.ranks.size
        # A branch begins with the log of the run that it goes on from.
        self.log = folder.read_log(old.absolute().parent.parent, self.step) if old else []
        if self.ranks.first:
            with cli.writing(self.folder / "log.jsonl") as new:
                new.write_text("".join(json.dumps(row) + "\n" for row in self.log))

    def _open_data(self):
        """Open the tokens and what belongs to them; refuse what does not fit, before all else."""
        config, ranks, tokens = self.config, self.ranks, pathlib.Path(self.config.tokens_folder)
        manifest, self.fingerprint = read_manifest(tokens), folder.fingerprint(tokens)
        path = tokens.parent / "tokenizer.json"
        self.tokenizer_file = path.read_bytes()  # saved with each checkpoint, as it is now
        if hashlib.sha256(self.tokenizer_file).hexdigest() != manifest["tokenizer_sha256"]:
            raise ValueError(f"{path} did not encode {tokens}: build the tokens again")
        self.tokenizer = Tokenizer.load(path)
        if any(rows % ranks.size for rows, _ in parse_ramp(config.batch_ramp)):
            raise ValueError(f"batch_ramp {config.batch_ramp}: {ranks.size} ranks must divide rows")
        self.loader = Loader(tokens, config.batch_size, config.row_length,
                             parse_weights(config.weights), config.seed, ranks.rank, ranks.size)
        self.place = self.loader.state_dict()  # after the last batch that was handed out
        self.thread, self.coming = concurrent.futures.ThreadPoolExecutor(1), None
        # Of a micro-batch on this rank; a smaller batch of a ramp takes fewer of them.
        self.rows_at_once = max(1, config.batch_size // config.accumulation // ranks.size)
        train, held = manifest["splits"]["train"], manifest["splits"]["held_out"]
        self.bytes_per_token = sum(share * train[source]["bytes"] / train[source]["tokens"]
                                   for source, share in self.loader.weights.items())
        # After so many tokens in all, one of the sources begins anew.
        self.epoch = min(train[source]["tokens"] / share
                         for source, share in self.loader.weights.items())
        self.held_out = held_out(tokens, QUICK_TOKENS)
        self.floors = {source: -entry["log2_probability"] / entry["bytes"]
                       for source, entry in held.items() if entry["log2_probability"]}

    def _build(self, old, speed_up):
        """Make the model and all that moves it; put back what the checkpoint `old` holds of it."""
        config = self.config
        # In fp32, each weight with its gradient and one moment; a batch of ids and the next one.
        needed = 12 * parameters(config.model)["total"] + 48 * config.batch_size * config.row_length
        here = self.device.type == "cpu" and not self.ranks.sliced and hasattr(os, "sysconf")
        if here and needed > (there := os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")):
            raise MemoryError(f"training takes {needed:.2g} bytes or more, and it has {there:.2g}")
        tensors, state = checkpoint.load_checkpoint(old) if old else ({}, {})
        if old:
            with checkpoint.trusting(old / "trainer.json"):  # its choices must be some that can be
                c, *_ = state["choices"], {**state["config"]}, state["fingerprint"]
                dataclasses.replace(config, threads=int(c["threads"]), precision=c["precision"])
        torch.manual_seed(config.seed)  # on every rank alike
        self.model = (checkpoint.load_model(old) if old else Transformer(config.model)).train()
        if speed_up:
            speed_up(self.model)  # before anything is measured on it
        self.model.activation_checkpointing = config.activation_checkpointing
        if not self.ranks.sliced:  # slicing moves what it slices
            self.model.to(self.device)
        self.choices = self.ranks.agree(lambda: self._choose(state.get("choices", {})))
        if not config.steps:
            steps = self.choices["steps"]
            config = self.config = dataclasses.replace(
                config, steps=steps, warmup_steps=min(config.warmup_steps, steps // 4))
        torch.set_num_threads(self.choices["threads"])
        self.scale = LossScale(self.choices["precision"] == "fp16")
        self.watch = LossWatch(config.spike)
        self.loss = self.ranks.wrap(self.model, machine.compiled_loss() if config.compile else loss,
                                    self.choices["precision"], config.optimizer)
        # Only now: slicing replaces the weights.
        self.optimizers = build_optimizers(self.model, config.optimizer, config.learning_rate,
                                           WEIGHT_DECAY, config.embedding_factor, config.beta2)
        if old:
            folder.load_optimizer_tensors(self.model, self.optimizers, tensors, self.ranks.place)
            folder.check_settings(self, state, branching=old.parent.parent != self.folder)
            self.model.config = config.model  # only the context may be another one
            with checkpoint.trusting(old / "trainer.json"):
                self.load_state_dict(state)

    def _choose(self, kept):
        """Return {"threads", "precision", "steps"} as set, `kept` from a checkpoint or measured."""
        size = self.rows_at_once, self.config.row_length
        threads = self.config.threads or kept.get("threads")
        precision = kept.get("precision", self.config.precision)
        if not threads and self.device.type == "cpu":
            threads, tried = machine.choose_threads(self.model, *size, self.ranks.size)
            self.say(f"{threads} threads, fastest of {tried} (ms)")
        torch.set_num_threads(threads or torch.get_num_threads())
        if precision == "auto" and self.ranks.sliced:
            precision = "fp32" if self.device.type == "cpu" else "bf16"
        elif precision == "auto":
            precision, tried = machine.choose_precision(self.model, self.device, *size)
            self.say(f"precision {precision}, fastest of {tried} (ms)")
        steps = self.config.steps or kept.get("steps") or self._sized_steps(precision, size)
        return {"threads": torch.get_num_threads(), "precision": precision, "steps": steps}

    def _sized_steps(self, precision, shape):
        """Return as many steps as the text is worth and the minutes allow (scale/sizing.py)."""
        if self.ranks.sliced:
            raise ValueError("steps 0 measures a whole model, and this one is sliced: give --steps")
        config, largest = self.config, max(self.loader.weights, key=self.loader.weights.get)
        ids = self.loader.sources[largest].stream.ids[:sizing.SAMPLE].tolist()
        times = machine.step_times(self.model, self.device, precision, *shape)
        # A whole step takes about a quarter longer than its two passes.
        second = 1.25e-3 * statistics.median(times) * config.accumulation
        steps = sizing.steps(self.tokenizer.decode_bytes(ids), self.epoch,
                             config.batch_size * config.row_length, second, config.minutes)
        size = self.epoch * self.bytes_per_token
        self.say(f"{size / 1e3:,.0f} kB of text: {steps} steps, about {steps * second:.0f} s")
        if size < LITTLE_TEXT:
            self.say(f"{size:,.0f} bytes are too little to learn from: {LITTLE_TEXT:,} would do")
        return steps

    def state_dict(self):
        return {name: getattr(self, name) for name in COUNTERS} | {
            "choices": self.choices, "ranks": self.ranks.size, "device": self.device.type,
            "loader": self.place, "scale": self.scale.state_dict(),
            "watch": self.watch.state_dict(),
            "random": {"cpu": bytes(torch.get_rng_state().tolist()).hex()},
            "fingerprint": self.fingerprint, "config": folder.as_json(self.config)}

    def load_state_dict(self, state):
        vars(self).update({n: to(state[n]) for n, to in COUNTERS.items()}, place=state["loader"])
        for name in ("loader", "scale", "watch"):
            getattr(self, name).load_state_dict(state[name])
        torch.set_rng_state(torch.ByteTensor([*bytes.fromhex(state["random"]["cpu"])]))

    def write_log(self, row):
        self.log.append(row)
        if self.ranks.first:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save(self, score=None):
        """Write a checkpoint of this step; score: {source: bits per byte}, if it was evaluated."""
        state = self.state_dict() | {"score": folder.overall(score) if score else None}
        weights = self.ranks.whole(self.model.state_dict())
        tensors = self.ranks.whole(folder.optimizer_tensors(self.model, self.optimizers))
        if self.ranks.first:
            checkpoint.save_checkpoint(self.folder, self.step, self.model, tensors, state,
                                       self.tokenizer_file, self.config.keep, weights)

    def next_batch(self):
        """Return the batch of this step, and let a thread prepare the next one meanwhile."""
        batch = (self.coming or self._prepare(self.step)).result()
        self.place = self.loader.state_dict()
        self.coming = self._prepare(self.step + 1) if self.step + 1 < self.config.steps else None
        return batch

    def _prepare(self, step):
        return self.thread.submit(self.loader.next_batch, *self.config.plan(step)[1:])

    def micro_batches(self):
        """Yield ((inputs, targets, document_ids), share of the step, whether it is the last)."""
        batch = self.next_batch()
        parts = list(zip(*(part.to(self.device).split(self.rows_at_once) for part in batch)))
        for number, (inputs, targets, documents) in enumerate(parts, 1):
            yield ((inputs, targets, documents if self.config.document_mask else None),
                   len(inputs) / len(batch[0]), number == len(parts))


def parse_weights(text):
    """Read "a=0.7,b=0.3" as {source: share}; None for an empty text."""
    try:
        pairs = [part.rsplit("=", 1) for part in text.split(",") if text]
        return {name.strip(): float(share) for name, share in pairs} or None
    except ValueError:
        raise ValueError(f"weights {text!r} do not read as name=share,name=share") from None
