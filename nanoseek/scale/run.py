"""A run: everything that must be there again when training goes on, and the folder that holds it.

    run = Run(TrainConfig(out="runs/tiny"), resume=True)   # opens data, model, optimizers, log
    run.save()                                             # checkpoints/step-N, whole

A resumed run has its weights, optimizer state, loss scale, place in the data, random states,
counters, and what was chosen by measurement (threads, precision), so it takes the very steps that
it would have taken. Other settings are refused by name.
"""

import concurrent.futures
import json
import pathlib

import torch

from nanoseek.checkpoint import (checkpoints, find_checkpoint, load_checkpoint, load_model,
                                 newest_intact, save_checkpoint)
from nanoseek.cli import writing
from nanoseek.cost import measure_ceiling, parameters
from nanoseek.data import Loader, read_manifest
from nanoseek.evaluate import held_out
from nanoseek.model import Transformer, loss
from nanoseek.optim import WEIGHT_DECAY, LossScale, LossWatch, build_optimizers, parse_ramp
from nanoseek.scale.distributed import Ranks
from nanoseek.scale.folder import (as_json, check_settings, fingerprint, load_optimizer_tensors,
                                   optimizer_tensors, read_log, read_tokenizer,
                                   refusing_foreign_state)
from nanoseek.scale.machine import choose_precision, choose_threads, compiled_loss, pick_device
from nanoseek.tokenizer import Tokenizer

QUICK_TOKENS = 8192  # held-out tokens of each source that an evaluation on the way looks at


class Run:
    """A run in progress: model, optimizers, loader, counters, and the folder they are saved to."""

    def __init__(self, config, resume, speed_up=None):
        self.config, self.folder = config, pathlib.Path(config.out)
        self.ranks = Ranks(config.parallel, parameters(config.model)["total"])
        self.device = pick_device(config.device, self.ranks.local_rank)
        self.say = print if self.ranks.first else lambda *words, **how: None
        self._open_data()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ranks.start(self.device)
        self.step, self.tokens, self.length_sum, self.seconds = 0, 0, 0, 0.0
        old, branching = self.ranks.agree(lambda: self._old_checkpoint(resume))
        self._build(old, branching, speed_up)
        self.ceiling = measure_ceiling(device=self.device.type) * self.ranks.size
        self._open_log(old)

    def _open_data(self):
        """Open the tokens and what belongs to them; refuse what does not fit, before all else."""
        config = self.config
        manifest = read_manifest(config.tokens_folder)
        self.fingerprint = fingerprint(config.tokens_folder)
        path, self.tokenizer_file = read_tokenizer(config.tokens_folder, manifest)
        self.tokenizer = Tokenizer.load(path)
        for rows in [config.batch_size, *(n for n, _ in parse_ramp(config.batch_ramp))]:
            if rows % self.ranks.size:
                raise ValueError(f"a batch of {rows} rows does not divide among "
                                 f"{self.ranks.size} ranks: change batch_size or batch_ramp")
        self.loader = Loader(config.tokens_folder, config.batch_size, config.row_length,
                             parse_weights(config.weights), config.seed, rank=self.ranks.rank,
                             world=self.ranks.size)
        self.place = self.loader.state_dict()  # after the last batch that was handed out
        self.thread, self.coming = concurrent.futures.ThreadPoolExecutor(1), None
        train = manifest["splits"]["train"]
        self.bytes_per_token = sum(share * train[source]["bytes"] / train[source]["tokens"]
                                   for source, share in self.loader.weights.items())
        self.held_out = held_out(config.tokens_folder, QUICK_TOKENS)
        self.floors = {source: -entry["log2_probability"] / entry["bytes"]
                       for source, entry in manifest["splits"]["held_out"].items()
                       if entry["log2_probability"]}

    def _old_checkpoint(self, resume):
        """Return (the checkpoint to go on from or None, whether it is another run's)."""
        branch = self.config.branch_from
        if not checkpoints(self.folder):
            return (find_checkpoint(branch), True) if branch else (None, False)
        if not resume:
            raise ValueError(f"{self.folder} already holds checkpoints: go on with --resume, or "
                             "give another --out")
        found = newest_intact(self.folder)
        if found is None:
            raise ValueError(f"no checkpoint of {self.folder} is intact: mend one, or remove "
                             f"{self.folder / 'checkpoints'} to start anew")
        return found, False

    def _build(self, old, branching, speed_up):
        """Make the model and all that moves it; put back what the checkpoint `old` holds of it."""
        config, kept = self.config, {}
        if old:
            tensors, state = load_checkpoint(old)
            with refusing_foreign_state():
                check_settings(self, state, branching)
                kept = state["choices"]
        torch.manual_seed(config.seed)  # on every rank alike
        self.model = load_model(old) if old else Transformer(config.model)
        if speed_up:
            speed_up(self.model)  # before anything is measured on it
        self.model.activation_checkpointing = config.activation_checkpointing
        self.model.train()
        if not self.ranks.sliced:  # slicing moves what it slices
            self.model.to(self.device)
        self.choices = self.ranks.agree(lambda: self._choose(kept))
        torch.set_num_threads(self.choices["threads"])
        self.scale = LossScale(self.choices["precision"] == "fp16")
        self.watch = LossWatch(config.spike)
        self.loss = self.ranks.wrap(self.model, self.choices["precision"], config.optimizer,
                                    compiled_loss() if config.compile else loss)
        self.optimizers = build_optimizers(self.model, config.optimizer, config.learning_rate,
                                           WEIGHT_DECAY, config.embedding_factor, config.beta2)
        if old:
            load_optimizer_tensors(self.model, self.optimizers, tensors, self.ranks.place)
            with refusing_foreign_state():
                self.load_state_dict(state)

    def _choose(self, kept):
        """Return {"threads", "precision"} as set, as `kept` from a checkpoint, or as measured."""
        size = self.rows_at_once, self.config.row_length
        threads = self.config.threads or kept.get("threads")
        precision = kept.get("precision", self.config.precision)
        if threads:
            torch.set_num_threads(threads)
        elif self.device.type == "cpu":
            threads, why = choose_threads(self.model, *size, self.ranks.size)
            print(f"{threads} threads ({why})")
        if precision == "auto" and self.ranks.sliced:
            precision = "fp32" if self.device.type == "cpu" else "bf16"
        elif precision == "auto":
            precision, why = choose_precision(self.model, self.device, *size)
            print(f"precision {precision} ({why})")
        return {"threads": torch.get_num_threads(), "precision": precision}

    @property
    def rows_at_once(self):
        """The rows of a micro-batch on this rank; a smaller batch of a ramp takes fewer of them."""
        return max(1, self.config.batch_size // self.config.accumulation // self.ranks.size)

    def state_dict(self):
        return {"step": self.step, "tokens": self.tokens, "length_sum": self.length_sum,
                "seconds": self.seconds, "choices": self.choices, "ranks": self.ranks.size,
                "device": self.device.type, "loader": self.place,
                "scale": self.scale.state_dict(), "watch": self.watch.state_dict(),
                "random": {"cpu": bytes(torch.get_rng_state().tolist()).hex()},
                "fingerprint": self.fingerprint, "config": as_json(self.config)}

    def load_state_dict(self, state):
        for name in ("step", "tokens", "length_sum", "seconds"):
            setattr(self, name, state[name])
        self.place = state["loader"]
        for name in ("loader", "scale", "watch"):
            getattr(self, name).load_state_dict(state[name])
        random = bytes.fromhex(state["random"]["cpu"])
        torch.set_rng_state(torch.tensor([*random], dtype=torch.uint8))

    def _open_log(self, old):
        """Keep the rows of log.jsonl up to this step, a branch those of the run it goes on from."""
        self.log = read_log(old.absolute().parent.parent, self.step) if old else []
        if len(self.log) < self.step:  # a checkpoint copied out of its run, or a damaged log
            self.say(f"the log of {old} lacks {self.step - len(self.log)} of {self.step} rows: "
                     "the curve and the health check will miss them")
        if self.ranks.first:
            with writing(self.folder / "log.jsonl") as new:
                new.write_text("".join(json.dumps(row) + "\n" for row in self.log))

    def write_log(self, row):
        self.log.append(row)
        if self.ranks.first:
            with (self.folder / "log.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    def save(self, score=None):
        """Write a checkpoint of this step; on the first rank, return its folder.

        score: {source: bits per byte}, if evaluated; the one of the lowest mean is kept as best.
        """
        state = self.state_dict() | {"score": sum(score.values()) / len(score) if score else None}
        weights = self.ranks.whole(self.model.state_dict())
        tensors = self.ranks.whole(optimizer_tensors(self.model, self.optimizers))
        if self.ranks.first:
            return save_checkpoint(self.folder, self.step, self.model, tensors, state,
                                   self.tokenizer_file, self.config.keep, weights)

    def next_batch(self):
        """Return the batch of this step, and let a thread prepare the next one meanwhile."""
        batch, self.place = (self.coming or self._prepare(self.step)).result()
        self.coming = self._prepare(self.step + 1) if self.step + 1 < self.config.steps else None
        return batch

    def _prepare(self, step):
        _, rows, row_length = self.config.plan(step)
        return self.thread.submit(lambda: (self.loader.next_batch(rows, row_length),
                                           self.loader.state_dict()))

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
