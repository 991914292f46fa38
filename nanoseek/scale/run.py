"""A run: everything that must be there again when training goes on, and the folder that holds it.

    run = Run(TrainConfig(out="runs/tiny"), resume=True)   # opens data, model, optimizers, log
    run.save()                                            # checkpoints/step-N, whole or not at all

A resumed run has its weights, optimizer state, loss scale, place in the data, random states,
counters, and whatever was chosen by measurement (threads, precision), so it takes the very steps
that it would have taken. What it may not have is other settings: those are refused by name.
"""

import bisect
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import pathlib

import torch

from nanoseek.checkpoint import (checkpoints, load_checkpoint, load_model, lock, newest_intact,
                                 read_log, save_checkpoint, verify, write_whole)
from nanoseek.cost import measure_ceiling
from nanoseek.data import Loader, read_manifest
from nanoseek.scale.distributed import Ranks
from nanoseek.evaluate import held_out
from nanoseek.scale.machine import (choose_precision, choose_threads, pick_device, random_states,
                              set_random_states)
from nanoseek.model import Transformer
from nanoseek.optim import (LossScale, LossWatch, build_optimizers, load_optimizer_tensors,
                            optimizer_tensors, parse_ramp)
from nanoseek.tokenizer import Tokenizer

QUICK_TOKENS = 8192  # held-out tokens of each source that an evaluation on the way looks at
# What a resumed run may change: none of these moves a weight,
HARMLESS = {"out", "tokens", "eval_every", "save_every", "keep", "branch_from"}
# these move the last bits only, which is said,
ROUNDING = {"accumulation", "activation_checkpointing", "compile", "device", "threads", "parallel"}
# and these, another plan for the steps to come, only a branch may change.
PLAN = {"steps", "batch_size", "row_length", "batch_ramp", "length_ramp", "learning_rate",
        "schedule", "decay_share", "warmup_steps"}
FREE_IN_A_BRANCH = PLAN | {"weight_decay", "beta2", "clip", "spike"}


class Run:
    """A run in progress: model, optimizers, loader, counters, and the folder they are saved to."""

    def __init__(self, config, resume):
        self.config, self.folder = config, pathlib.Path(config.out)
        self.ranks = Ranks()
        self.device = pick_device(config.device, self.ranks.local_rank)
        self.say = print if self.ranks.first else lambda *words, **how: None
        self._open_data()
        self.step, self.tokens, self.length_sum, self.seconds = 0, 0, 0, 0.0
        self.score, self.as_planned = None, True
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = lock(self.folder) if self.ranks.first else None
        self.ranks.start(self.device)
        old = self.ranks.agree(lambda: self._old_checkpoint(resume))
        self._build(*old)
        self.total_tokens = self.tokens + tokens_to_come(config, self.step)
        self.ceiling = measure_ceiling(device=self.device.type) * self.ranks.size
        self._open_log(old[0])

    def _open_data(self):
        config = self.config
        manifest = read_manifest(config.tokens_folder)
        if config.branch_from and not checkpoints(self.folder):
            if not (pathlib.Path(config.branch_from) / "trainer.json").is_file():
                raise ValueError(f"{config.branch_from} is no checkpoint of a run: name a folder "
                                 "such as runs/a/checkpoints/step-00001200")
            verify(config.branch_from)
        self.fingerprint = fingerprint(config.tokens_folder)
        self.tokenizer_path = find_tokenizer(config.tokens_folder, manifest)
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        for rows in [config.batch_size, *(n for n, _ in parse_ramp(config.batch_ramp))]:
            if rows % self.ranks.size:
                raise ValueError(f"a batch of {rows} rows does not divide among "
                                 f"{self.ranks.size} ranks: change batch_size or batch_ramp")
        self.loader = Loader(config.tokens_folder, config.batch_size, config.row_length,
                             parse_weights(config.weights), config.seed, rank=self.ranks.rank,
                             world=self.ranks.size)
        self.batches = Batches(self.loader, pin=self.device.type == "cuda")
        self.bytes_per_token = sum(
            share * manifest["splits"]["train"][source]["bytes"]
            / manifest["splits"]["train"][source]["tokens"]
            for source, share in self.loader.weights.items())
        self.held_out = held_out(config.tokens_folder, QUICK_TOKENS)
        self.floors = {source: -entry["log2_probability"] / entry["bytes"]
                       for source, entry in manifest["splits"]["held_out"].items()
                       if entry["log2_probability"]}

    def _old_checkpoint(self, resume):
        """Return (the checkpoint to go on from or None, whether it is another run's)."""
        branch = self.config.branch_from
        if not checkpoints(self.folder):
            return (pathlib.Path(branch), True) if branch else (None, False)
        if not resume:
            raise ValueError(f"{self.folder} already holds checkpoints: go on with --resume, or "
                             "give another --out")
        found = newest_intact(self.folder)
        if found is None:
            raise ValueError(f"no checkpoint of {self.folder} is intact: mend one, or remove "
                             f"{self.folder / 'checkpoints'} to start anew")
        return found, False

    def _build(self, old, branching):
        config, state = self.config, None
        if old is not None:
            tensors, state = load_checkpoint(old)
            self._check(state, branching)
        torch.manual_seed(config.seed)  # on every rank alike
        self.model = Transformer(config.model) if old is None else load_model(old)
        self.ranks.choose_engine(self.model, config.parallel)
        if not self.ranks.sliced:  # slicing moves what it slices
            self.model.to(self.device)
        self.model.activation_checkpointing = config.activation_checkpointing
        self.model.train()
        self.choices = self.ranks.agree(lambda: self._choose(state and state["choices"]))
        self.scale = LossScale(self.choices["precision"] == "fp16")
        self.watch = LossWatch(config.spike)
        self.loss = self.ranks.wrap(self.model, self.device, self.choices["precision"],
                                    config.optimizer, config.compile)
        self.optimizers = build_optimizers(self.model, config.optimizer, config.learning_rate,
                                           config.weight_decay, config.embedding_factor,
                                           config.beta2)
        torch.set_num_threads(self.choices["threads"])
        if state is not None:
            load_optimizer_tensors(self.model, self.optimizers, tensors, self.ranks.place)
            with naming_a_foreign_state():
                self._load_state(state)

    def _choose(self, before):
        """Return what is chosen by measurement: a run keeps it, a new setting replaces it."""
        config, size = self.config, (self.rows_at_once, self.config.row_length)
        found = dict(before or {})
        if config.threads or "threads" not in found:
            found["threads"] = config.threads or torch.get_num_threads()
            if self.device.type == "cpu" and not config.threads:
                found["threads"], why = choose_threads(self.model, *size, self.ranks.size)
                print(f"{found['threads']} threads ({why})")
        torch.set_num_threads(found["threads"])
        if "precision" not in found:
            found["precision"] = config.precision
            if config.precision == "auto" and self.ranks.sliced:
                found["precision"] = "fp32" if self.device.type == "cpu" else "bf16"
            elif config.precision == "auto":
                found["precision"], why = choose_precision(self.model, self.device, *size)
                print(f"precision {found['precision']} ({why})")
        return found

    @property
    def rows_at_once(self):
        """The rows of a micro-batch on this rank; a smaller batch of a ramp takes fewer of them."""
        return max(1, self.config.batch_size // self.config.accumulation // self.ranks.size)

    def _check(self, state, branching):
        """Refuse, by name, what would silently make this another run; say what only rounds."""
        with naming_a_foreign_state():
            changed, self.as_planned = check_same(self.config, state, branching, self.fingerprint)
            for what, before, now in (("ranks", state["ranks"], self.ranks.size),
                                      ("device", state["device"], self.device.type)):
                if before != now:
                    changed.append(f"{what} from {before} to {now}")
        if changed:
            self.say(f"equal but for rounding, since these changed: {', '.join(changed)}")
        if branching:
            self.say(f"branching at step {state['step']}: " + (
                "the same as a run planned so from its start" if self.as_planned else
                "not the same as a run planned so from its start: the steps so far went otherwise"))

    def state_dict(self):
        return {"step": self.step, "tokens": self.tokens, "length_sum": self.length_sum,
                "seconds": self.seconds, "score": self.score, "as_planned": self.as_planned,
                "choices": self.choices, "ranks": self.ranks.size, "device": self.device.type,
                "loader": self.batches.state, "scale": self.scale.state_dict(),
                "watch": self.watch.state_dict(), "random": random_states(),
                "fingerprint": self.fingerprint, "config": as_json(self.config)}

    def _load_state(self, state):
        for name in ("step", "tokens", "length_sum", "seconds"):
            setattr(self, name, state[name])
        for name in ("loader", "scale", "watch"):
            getattr(self, name).load_state_dict(state[name])
        self.batches.state = state["loader"]
        set_random_states(state["random"])

    def _open_log(self, old):
        """Keep the rows of log.jsonl up to this step: later ones are written again."""
        # A branch takes over the rows of the run that it goes on from.
        self.log = read_log(old.absolute().parent.parent, self.step) if old else []
        if len(self.log) < self.step:  # a checkpoint copied out of its run, or a damaged log
            self.say(f"the log of {old} lacks {self.step - len(self.log)} of {self.step} rows: "
                     "the curve and the health check will miss them")
        if self.ranks.first:
            path = self.folder / "log.jsonl"
            write_whole(path, "".join(json.dumps(row) + "\n" for row in self.log))
            self.log_file = path.open("a", encoding="utf-8")

    def write_log(self, row):
        self.log.append(row)
        if self.ranks.first:
            self.log_file.write(json.dumps(row) + "\n")
            self.log_file.flush()

    def save(self, score=None):
        """Write a checkpoint of this step; return its folder.

        score: {source: bits per byte} where this step was evaluated; the checkpoint with the
        lowest mean is kept as the best.
        """
        self.score = sum(score.values()) / len(score) if score else None
        weights = self.ranks.whole(self.model.state_dict())
        tensors = self.ranks.whole(optimizer_tensors(self.model, self.optimizers))
        if not self.ranks.first:
            return None
        try:
            return save_checkpoint(self.folder, self.step, self.model, tensors, self.state_dict(),
                                   self.tokenizer_path, self.config.keep, weights)
        except OSError as error:
            raise ValueError(f"step {self.step} could not be saved ({error}); the earlier "
                             "checkpoints are intact: make room, and go on with --resume") from None

    def micro_batches(self):
        """Yield ((inputs, targets, document_ids), its share of the step, whether more follow)."""
        shape, following = (self.config.plan(step)[1:] for step in (self.step, self.step + 1))
        batch = self.batches.next(shape, following if self.step + 1 < self.config.steps else None)
        parts = list(zip(*(part.to(self.device, non_blocking=True).split(self.rows_at_once)
                           for part in batch)))
        for number, (inputs, targets, documents) in enumerate(parts, 1):
            yield ((inputs, targets, documents if self.config.document_mask else None),
                   len(inputs) / len(batch[0]), number < len(parts))


@contextlib.contextmanager
def naming_a_foreign_state():
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("trainer.json of this checkpoint is not what this version writes "
                         f"({error!r}): start anew with another --out") from None


class Batches:
    """Batches of a Loader, the next one prepared by another thread while a step computes.

    `state` is the loader's after the last batch that was handed out, not the one in preparation.
    """

    def __init__(self, loader, pin=False):
        self.loader, self.pin, self.state = loader, pin, loader.state_dict()
        self.thread, self.coming = concurrent.futures.ThreadPoolExecutor(1), None

    def next(self, shape, following=None):
        """Return a batch of shape (rows, row_length); begin to prepare one of shape `following`."""
        coming = self.coming or self.thread.submit(self._prepare, *shape)
        batch, self.state = coming.result()
        self.coming = following and self.thread.submit(self._prepare, *following)
        return batch

    def _prepare(self, rows, row_length):
        batch = self.loader.next_batch(rows, row_length)
        # From pinned memory, a GPU fetches it by itself.
        return [part.pin_memory() if self.pin else part for part in batch], self.loader.state_dict()


def tokens_to_come(config, first):
    """Return how many tokens the steps from `first` (0-based) on take: their sum, not step by step.

    Between the ends of the ramps' stages all steps are of one size.
    """
    ends = {first, config.steps} | {
        max(first, bisect.bisect_left(range(config.steps), share, key=lambda s: s / config.steps))
        for ramp in (config.batch_ramp, config.length_ramp) for _, share in parse_ramp(ramp)}
    return sum((end - begin) * math.prod(config.plan(begin)[1:])
               for begin, end in itertools.pairwise(sorted(ends)))


def as_json(config):
    """Return a TrainConfig as a flat dict, the model's fields among the others."""
    flat = dataclasses.asdict(config)
    return flat.pop("model") | flat


def check_same(config, state, branching, fingerprint):
    """Return (changes that only round otherwise, whether the past is as `config` plans it).

    state: that of the checkpoint to go on from. Raises ValueError naming every setting whose
    change would silently make the run another one, and for other data.
    """
    if state["fingerprint"] != fingerprint:
        raise ValueError(f"{config.tokens_folder} is not the data that this run began with: "
                         "start a new one with another --out")
    # A setting that the checkpoint does not know came later, and its default is what was before.
    before, now = as_json(type(config)()) | state["config"], as_json(config)
    changed = {k: f"{k} from {before[k]} to {now[k]}" for k in now
               if before[k] != now[k] and k not in HARMLESS}
    for name, auto in (("precision", "auto"), ("threads", 0)):  # what was measured is kept
        if now[name] in (auto, state["choices"][name]):
            changed.pop(name, None)
    refused = set(changed) - ROUNDING - (FREE_IN_A_BRANCH if branching else set())
    if refused:
        raise ValueError(f"a {'branch' if branching else 'resumed run'} keeps these settings; "
                         f"changed: {', '.join(changed[k] for k in now if k in refused)}")
    if state["step"] >= config.steps and branching:
        raise ValueError(f"steps {config.steps} ends before the branch begins, at step "
                         f"{state['step']}: raise --steps")
    old = dataclasses.replace(config, **{name: before[name] for name in PLAN})
    as_planned = state["as_planned"] and not changed.keys() & (FREE_IN_A_BRANCH - PLAN) and \
        all(config.plan(step) == old.plan(step) for step in range(state["step"]))
    return [changed[k] for k in changed if k in ROUNDING], as_planned


def fingerprint(tokens_folder):
    """Return the sha256 of the manifest, which holds those of the shards and the tokenizer."""
    return hashlib.sha256((pathlib.Path(tokens_folder) / "manifest.json").read_bytes()).hexdigest()


def find_tokenizer(tokens_folder, manifest):
    """Return the path of the tokenizer.json beside the tokens; check that it is theirs."""
    path = pathlib.Path(tokens_folder).parent / "tokenizer.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: it belongs beside the tokens")
    if hashlib.sha256(path.read_bytes()).hexdigest() != manifest["tokenizer_sha256"]:
        raise ValueError(f"{path} is not the tokenizer that encoded {tokens_folder}: "
                         "build the tokens again")
    return path


def parse_weights(text):
    """Read "a=0.7,b=0.3" as {source: share}; None for an empty text."""
    if not text:
        return None
    try:
        pairs = [part.rsplit("=", 1) for part in text.split(",")]
        weights = {name.strip(): float(share) for name, share in pairs}
        if len(weights) < len(pairs):
            raise ValueError
        return weights
    except ValueError:
        raise ValueError(f"weights {text!r} do not read as name=share,name=share, each name "
                         "once") from None
