"""The training loop: python -m nanoseek.train --preset tiny --out runs/tiny [--resume]

    train(TrainConfig(out="runs/tiny", steps=100))

A step takes a batch, accumulates gradients over its micro-batches, clips them and moves the
weights. What a run leaves in its folder: checkpoints/, log.jsonl (a row a step), curve.svg, and
at its end cost.json, the price tag. A run that was stopped goes on with --resume and ends with
the same weights, bit for bit, as one that was not: on the same machine, torch and thread count.

Recipe: DeepSeek LLM (arXiv 2401.02954, §2.3): warm-up, multi-step schedule, clipping at 1.0.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
import pathlib
import signal
import statistics
import sys
import time

import torch

from nanoseek.checkpoint import (checkpoints, load_checkpoint, load_model, newest_intact,
                                 save_checkpoint)
from nanoseek.cost import measure_ceiling, price_tag
from nanoseek.data import Loader, read_manifest
from nanoseek.evaluate import evaluate, held_out, nats, write_curve
from nanoseek.generate import write
from nanoseek.model import (CHECKPOINTING, PRESETS, ModelConfig, Transformer, loss,
                            use_exact_onednn)
from nanoseek.optim import (OPTIMIZERS, build_optimizers, load_optimizer_tensors,
                            optimizer_tensors, schedule_factor, set_learning_rate)
from nanoseek.tokenizer import Tokenizer

QUICK_TOKENS = 8192  # held-out tokens of each source that an evaluation on the way looks at
# What a resumed run may change: none of these moves a weight.
HARMLESS = {"out", "tokens", "eval_every", "save_every", "keep"}


def _setting(default, text):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All that decides a run. Raises ValueError when the numbers do not fit together."""

    out: str = _setting("runs/tiny", "the run's folder")
    tokens: str = _setting("", "folder of token shards; tokens in the run's folder unless given")
    steps: int = _setting(1200, "how often the weights move")
    batch_size: int = _setting(8, "rows in a step, over all micro-batches")
    row_length: int = _setting(256, "tokens in a row")
    accumulation: int = _setting(1, "micro-batches that a step is split into, to save memory")
    optimizer: str = _setting("muon", "muon or adamw")
    learning_rate: float = _setting(5e-3, "the peak")
    embedding_factor: float = _setting(5.0, "the embeddings' learning rate, in units of that")
    weight_decay: float = _setting(0.1, "of the layers' matrices")
    clip: float = _setting(1.0, "largest norm of the gradient")
    schedule: str = _setting("linear", "linear, multi_step, wsd, cosine or constant")
    warmup_steps: int = _setting(20, "steps over which the rate rises to its peak")
    weights: str = _setting("", "shares of the sources: name=0.5,name=0.5 (default: by tokens)")
    document_mask: bool = _setting(True, "keep documents packed in one row from seeing each other")
    precision: str = _setting("auto", "fp32, bf16, or auto: bf16 on CUDA, else fp32")
    activation_checkpointing: str = _setting("none", "none; selective: keep matrix products and "
                                             "recompute the rest; full: recompute all")
    device: str = _setting("auto", "cpu, cuda, mps, or auto")
    seed: int = _setting(0, "of the weights' start and the order of the data")
    eval_every: int = _setting(240, "steps between evaluations")
    save_every: int = _setting(240, "steps between checkpoints")
    keep: int = _setting(2, "checkpoints kept")
    model: ModelConfig = ModelConfig()

    def __post_init__(self):
        for name in ("steps", "batch_size", "row_length", "accumulation", "eval_every",
                     "save_every", "keep"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size {self.batch_size} does not divide into accumulation "
                             f"{self.accumulation} micro-batches")
        if self.row_length > self.model.max_position_embeddings:
            raise ValueError(f"row_length {self.row_length} exceeds max_position_embeddings "
                             f"{self.model.max_position_embeddings}: shorten the rows")
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be at least 0 and below "
                             f"steps {self.steps}")
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer {self.optimizer!r}: choose "
                             f"{' or '.join(OPTIMIZERS)}")
        if self.activation_checkpointing not in CHECKPOINTING:
            raise ValueError(f"unknown activation_checkpointing {self.activation_checkpointing!r}: "
                             f"choose {', '.join(CHECKPOINTING)}")
        if self.precision not in ("auto", "fp32", "bf16"):
            raise ValueError(f"unknown precision {self.precision!r}: choose auto, fp32 or bf16")
        if not all(0 < x < math.inf for x in (self.learning_rate, self.embedding_factor,
                                               self.clip)) or not 0 <= self.weight_decay < math.inf:
            raise ValueError("learning_rate, embedding_factor and clip must be above 0, "
                             "weight_decay at least 0, and all of them finite")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed} must be at least 0 and below 2^63")
        schedule_factor(self.schedule, 0, self.steps, 0)  # refuses an unknown name

    @property
    def tokens_folder(self):
        return self.tokens or os.path.join(self.out, "tokens")


TRAIN_PRESETS = {
    "tiny": TrainConfig(model=PRESETS["tiny"]),
    "small": TrainConfig(out="runs/small", steps=4000, batch_size=32, row_length=512,
                         learning_rate=3e-3, embedding_factor=1.0,
                         schedule="multi_step", warmup_steps=100, model=PRESETS["small"]),
    "gpt2-124m": TrainConfig(out="runs/gpt2-124m", steps=20000, batch_size=512, row_length=1024,
                             accumulation=16, learning_rate=2e-3, embedding_factor=1.0,
                             schedule="multi_step", warmup_steps=700,
                             eval_every=250, save_every=1000, model=PRESETS["gpt2-124m"]),
}


def pick_device(name):
    """Return the torch device of a setting; raises ValueError for one that is not here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "cpu"
    if name not in ("cpu", "cuda", "mps"):
        raise ValueError(f"unknown device {name!r}: choose auto, cpu, cuda or mps")
    if (name == "cuda" and not torch.cuda.is_available()) or \
            (name == "mps" and not torch.backends.mps.is_available()):
        raise ValueError(f"this machine has no {name} device: leave out --device")
    return torch.device(name)


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


class Run:
    """A run in progress: model, optimizers, loader, counters, and the folder they are saved to."""

    def __init__(self, config, resume):
        self.config, self.folder = config, pathlib.Path(config.out)
        manifest = read_manifest(config.tokens_folder)
        self.fingerprint = fingerprint(config.tokens_folder)
        self.device = pick_device(config.device)
        self.precision = config.precision if config.precision != "auto" else \
            "bf16" if self.device.type == "cuda" else "fp32"
        self.tokenizer_path = find_tokenizer(config.tokens_folder, manifest)
        self.tokenizer = Tokenizer.load(self.tokenizer_path)
        self.loader = Loader(config.tokens_folder, config.batch_size, config.row_length,
                             parse_weights(config.weights), config.seed)
        self.bytes_per_token = sum(
            share * manifest["splits"]["train"][source]["bytes"]
            / manifest["splits"]["train"][source]["tokens"]
            for source, share in self.loader.weights.items())
        self.held_out = held_out(config.tokens_folder, QUICK_TOKENS)
        self.floors = {source: -entry["log2_probability"] / entry["bytes"]
                       for source, entry in manifest["splits"]["held_out"].items()
                       if entry["log2_probability"]}
        self.step, self.seconds, self.log = 0, 0.0, []
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = _lock(self.folder)
        old = self._old_checkpoint(resume)
        self._build(old)

    def _old_checkpoint(self, resume):
        """Return the checkpoint to go on from, or None; refuse to write over a run."""
        if not checkpoints(self.folder):
            return None
        if not resume:
            raise ValueError(f"{self.folder} already holds checkpoints: go on with --resume, or "
                             "give another --out")
        found = newest_intact(self.folder)
        if found is None:
            raise ValueError(f"no checkpoint of {self.folder} is intact: mend one, or remove "
                             f"{self.folder / 'checkpoints'} to start anew")
        return found

    def _build(self, old):
        config = self.config
        if old is None:
            # Forked: the caller's random state stays as it was.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(config.seed)
                self.model = Transformer(config.model).to(self.device)
        else:
            self.model = load_model(old, self.device)
        self.model.activation_checkpointing = config.activation_checkpointing
        self.model.train()
        self.optimizers = build_optimizers(self.model, config.optimizer, config.learning_rate,
                                           config.weight_decay, config.embedding_factor)
        if old is not None:
            tensors, state = load_checkpoint(old)
            self._check_same(state)
            load_optimizer_tensors(self.model, self.optimizers, tensors)
            self.loader.load_state_dict(state["loader"])
            self.step, self.seconds = state["step"], state["seconds"]
        self._open_log()

    def _check_same(self, state):
        if state["fingerprint"] != self.fingerprint:
            raise ValueError(f"{self.config.tokens_folder} has changed since this run began: "
                             "start a new one with another --out")
        before, now = state["config"], as_json(self.config)
        changed = [f"{k} from {before.get(k)} to {now[k]}" for k in now
                   if before.get(k) != now[k] and k not in HARMLESS]
        if changed:
            raise ValueError(f"a resumed run keeps its settings; changed: {', '.join(changed)}")
        if state["precision"] != self.precision:
            raise ValueError(f"this run computed in {state['precision']}, here it would be "
                             f"{self.precision}: give --precision")

    def _open_log(self):
        """Keep the rows of log.jsonl up to this step: later ones are written again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "log.jsonl"
        if self.step and path.is_file():
            with path.open(encoding="utf-8") as file:
                for line in file:
                    with contextlib.suppress(ValueError):  # a line cut off by a crash
                        self.log.append(json.loads(line))
            self.log = [row for row in self.log if row["step"] <= self.step]
        _write_whole(path, "".join(json.dumps(row) + "\n" for row in self.log))
        self.log_file = path.open("a", encoding="utf-8")

    def write_log(self, row):
        self.log.append(row)
        self.log_file.write(json.dumps(row) + "\n")
        self.log_file.flush()

    def save(self):
        """Write a checkpoint of this step."""
        state = {"step": self.step, "seconds": self.seconds, "loader": self.loader.state_dict(),
                 "fingerprint": self.fingerprint, "precision": self.precision,
                 "config": as_json(self.config)}
        return save_checkpoint(self.folder, self.step, self.model,
                               optimizer_tensors(self.model, self.optimizers), state,
                               self.tokenizer_path, self.config.keep)


def as_json(config):
    """Return a TrainConfig as a flat dict, the model's fields among the others."""
    flat = dataclasses.asdict(config)
    return {**flat, **flat.pop("model")}


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


def train_step(run):
    """Take one step; return its loss (nats per token), gradient norm and learning rate."""
    config = run.config
    rate = config.learning_rate * schedule_factor(
        config.schedule, run.step, config.steps, config.warmup_steps)
    set_learning_rate(run.optimizers, rate)
    batch = [part.to(run.device).chunk(config.accumulation) for part in run.loader.next_batch()]
    total = torch.zeros((), device=run.device)
    for inputs, targets, document_ids in zip(*batch):
        with torch.autocast(run.device.type, torch.bfloat16, enabled=run.precision == "bf16"):
            part = loss(run.model, inputs, targets,
                        document_ids if config.document_mask else None) / config.accumulation
        part.backward()
        total += part.detach()
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), config.clip)
    if not math.isfinite(total.item() + norm.item()):
        raise ValueError(f"the loss or its gradient is not finite at step {run.step + 1}: start "
                         "anew with a lower --learning_rate and another --out")
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.step += 1
    return {"loss": total.item(), "gradient_norm": norm.item(), "learning_rate": rate}


def quick_evaluation(run):
    """Return {source: bits per byte} on the first held-out documents of each source."""
    run.model.eval()
    found = {}
    for source, documents in run.held_out.items():
        text_bytes = sum(len(run.tokenizer.decode_bytes(ids[1:-1].tolist())) for ids in documents)
        found[source] = nats(run.model, documents) / math.log(2) / max(1, text_bytes)
    run.model.train()
    return found


def show_samples(run, max_new_tokens=60):
    """Print how the model goes on from the beginning of a held-out document of each source."""
    run.model.eval()
    for source, documents in run.held_out.items():
        prompt = run.tokenizer.decode(documents[0][1:9].tolist()).rstrip("\ufffd")
        text = "".join(write(run.model, run.tokenizer, prompt, max_new_tokens=max_new_tokens,
                             temperature=0.8, top_p=0.95, seed=run.step))
        line = " ".join((prompt + "|" + text).split())
        # A model that knows little yet writes control characters, which a terminal would obey.
        print(f"  {source}: {''.join(c if c.isprintable() else '·' for c in line)}")
    run.model.train()


def show_progress(run, row, end="\n"):
    bits = row["loss"] / math.log(2) / run.bytes_per_token
    # Of the last steps: a machine may have been busy, or the first step slow.
    pace = statistics.harmonic_mean(r["tokens_per_second"] for r in run.log[-25:])
    step_tokens = run.config.batch_size * run.config.row_length
    left = int((run.config.steps - run.step) * step_tokens / pace)
    print(f"step {run.step:>5}/{run.config.steps}  loss {row['loss']:.3f}  {bits:.3f} bits/byte  "
          f"{pace:,.0f} tokens/s  {left // 60}:{left % 60:02d} left",
          end=end, flush=True)


@contextlib.contextmanager
def stop_requests():
    """Yield a list that is filled when Ctrl-C (SIGINT) or SIGTERM asks the run to stop."""
    asked = []

    def ask(number, frame):
        if asked:  # a second Ctrl-C does not wait for the step
            raise KeyboardInterrupt
        asked.append(number)
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def train(config, resume=False):
    """Train as `config` says; return the finished Run, or None when it was asked to stop.

    Raises ValueError for bad settings or data, and for a folder that holds another run.
    """
    use_exact_onednn()
    run = Run(config, resume)
    say_start(run)
    step_tokens = config.batch_size * config.row_length
    with stop_requests() as asked:
        while run.step < config.steps:
            began = time.perf_counter()
            row = train_step(run)
            took = time.perf_counter() - began
            run.seconds += took
            row = {"step": run.step, "tokens": run.step * step_tokens, **row,
                   "tokens_per_second": step_tokens / took}
            last = run.step == config.steps
            if last or run.step % config.eval_every == 0:
                row["held_out"] = quick_evaluation(run)
            run.write_log(row)
            if "held_out" in row:
                show_evaluation(run, row)
            elif sys.stdout.isatty():
                show_progress(run, row, end="\r")
            elif run.step % 25 == 0:
                show_progress(run, row)
            if last or asked or run.step % config.save_every == 0:
                folder = run.save()
            if asked and not last:
                print(f"\nstopped after step {run.step}, saved in {folder}: go on with the same "
                      "command (make's, or your own with --resume)")
                return None
    finish(run)
    return run


def say_start(run):
    count = sum(p.numel() for p in run.model.parameters())
    print(f"{'going on at step ' + str(run.step) if run.step else 'training'}: "
          f"{count:,} parameters, {run.config.steps} steps of "
          f"{run.config.batch_size} rows × {run.config.row_length} tokens, {run.precision} on "
          f"{run.device.type} with {torch.get_num_threads()} threads")


def show_evaluation(run, row):
    show_progress(run, row)
    print("  held-out bits/byte, a quick look  " + "  ".join(
        f"{source} {value:.3f}" + (f" (floor {run.floors[source]:.3f})"
                                   if source in run.floors else "")
        for source, value in row["held_out"].items()))
    show_samples(run)
    write_curve(run.log, run.floors, run.folder / "curve.svg")


def finish(run):
    """Score all held-out text, measure the machine, and store the price tag as cost.json."""
    config = run.config
    run.model.eval()
    scores = evaluate(run.model, config.tokens_folder)
    tag = price_tag(config.model, tokens=run.step * config.batch_size * config.row_length,
                    seconds=run.seconds, ceiling=measure_ceiling(device=run.device.type),
                    context=config.row_length, peak_bytes=peak_memory(run.device))
    tag["bits_per_byte"] = {source: score.bits_per_byte for source, score in scores.items()}
    _write_whole(run.folder / "cost.json", json.dumps(tag, indent=1))
    print(f"finished in {run.seconds:.0f} s of training. The scores: python -m nanoseek.evaluate "
          f"{config.out}; the price tag: python -m nanoseek.cost {config.out}")


def _lock(folder):
    """Return the open lock file of a run; it frees itself when the process ends, however it ends.

    Raises ValueError when another process trains there.
    """
    file = (folder / ".lock").open("w")
    try:
        import fcntl  # not on Windows
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):  # others: a disk that knows no locks
            raise ValueError(f"another process trains in {folder}: wait for it, or give another "
                             "--out") from None
    return file


def _write_whole(path, text):
    """Write a file under another name and rename it: it is never there in part."""
    writing = path.with_name(path.name + ".writing")
    writing.write_text(text, encoding="utf-8")
    os.replace(writing, path)


def peak_memory(device):
    """Return the most bytes that the process (on CUDA: the allocator) has held, or None."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    try:
        import resource  # not on Windows
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # kilobytes but on macOS


def main(argv=None):
    from nanoseek.cli import Parser, add_flags, from_flags
    parser = Parser("nanoseek.train", "Train a model on token shards.")
    parser.add_argument("--preset", choices=sorted(TRAIN_PRESETS), default="tiny",
                        help="settings to begin from")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    add_flags(parser, TrainConfig)
    add_flags(parser, ModelConfig, skip=("vocab_size",))
    args = parser.parse_args(argv)
    config = from_flags(TRAIN_PRESETS[args.preset], args)
    vocab_size = read_manifest(config.tokens_folder)["vocab_size"]
    model = dataclasses.replace(from_flags(config.model, args), vocab_size=vocab_size)
    if train(dataclasses.replace(config, model=model), args.resume) is None:
        return 130  # as the shell reports a command that Ctrl-C ended


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
