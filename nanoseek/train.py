"""The training loop: python -m nanoseek.train --preset tiny --out runs/tiny [--resume]

    train(TrainConfig(out="runs/tiny", steps=100))

A step takes a batch, accumulates gradients over its micro-batches, clips them and moves the
weights, unless its loss shows that they would be spoilt. What a run leaves in its folder:
checkpoints/, log.jsonl (a row a step), curve.svg, and at its end cost.json, the price tag. A run
that was stopped goes on with --resume and ends with the same weights, bit for bit, as one that was
not: on the same machine and torch. --branch_from continues another run's checkpoint in a new
folder: a constant first stage serves several horizons. Under torchrun, several ranks share it.

Recipe: DeepSeek LLM (arXiv 2401.02954, §2.3): warm-up, multi-step schedule, clipping at 1.0.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal
import statistics
import sys
import time

import torch

from nanoseek.checkpoint import checkpoints, newest_intact, write_whole
from nanoseek.cost import flops_per_token, format_price_tag, price_tag
from nanoseek.data import read_manifest
from nanoseek.scale.distributed import PARALLEL, ending_together
from nanoseek.evaluate import evaluate, nats
from nanoseek.lab.curve import write_curve
from nanoseek.generate import SAMPLING, write
from nanoseek.scale.machine import PRECISIONS, autocast, peak_memory
from nanoseek.model import CHECKPOINTING, PRESETS, ModelConfig, use_exact_onednn
from nanoseek.optim import (BETAS, OPTIMIZERS, parse_ramp, ramp_value, schedule_factor,
                            set_learning_rate)
from nanoseek.scale.run import Run

PATIENCE = 3  # diverged steps in a row that are skipped before the run stops


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
    batch_ramp: str = _setting("", "smaller batches first: 2:0.1,4:0.3 is 2 rows up to 10% of the "
                               "steps, 4 up to 30%")
    length_ramp: str = _setting("", "shorter rows first, as 64:0.2,128:0.4")
    accumulation: int = _setting(1, "micro-batches that a step is split into, to save memory")
    optimizer: str = _setting("muon", "muon or adamw")
    learning_rate: float = _setting(5e-3, "the peak")
    embedding_factor: float = _setting(5.0, "the embeddings' learning rate, in units of that")
    weight_decay: float = _setting(0.1, "of the layers' matrices")
    beta2: float = _setting(BETAS[1], "share of its mean of squared gradients that AdamW keeps, also "
                            "for what muon leaves to it")
    clip: float = _setting(1.0, "largest norm of the gradient")
    schedule: str = _setting("linear", "linear, multi_step, wsd, cosine or constant")
    decay_share: float = _setting(0.2, "share of the steps, the last, over which wsd decays")
    warmup_steps: int = _setting(20, "steps over which the rate rises to its peak")
    weights: str = _setting("", "shares of the sources: name=0.5,name=0.5 (default: by tokens)")
    document_mask: bool = _setting(True, "keep documents packed in one row from seeing each other")
    spike: float = _setting(3.0, "skip a step whose loss is so many nats above the recent median; "
                            "0: none")
    precision: str = _setting("auto", "fp32, bf16, fp16, or auto: the faster here, measured")
    threads: int = _setting(0, "CPU threads; 0: as many as are fastest here, measured")
    parallel: str = _setting("auto", "under torchrun: ddp, fsdp, or auto: fsdp from 1B parameters")
    activation_checkpointing: str = _setting("none", "none; selective: keep matrix products and "
                                             "recompute the rest; full: recompute all")
    compile: bool = _setting(False, "let torch.compile fuse the step, up to a minute for each shape "
                             "of a batch; pays on a GPU, little under fsdp")
    device: str = _setting("auto", "cpu, cuda, mps, or auto")
    seed: int = _setting(0, "of the weights' start and the order of the data")
    eval_every: int = _setting(240, "steps between evaluations")
    save_every: int = _setting(240, "steps between checkpoints")
    keep: int = _setting(2, "newest checkpoints kept, beside the best")
    branch_from: str = _setting("", "a checkpoint of another run of this data to go on from")
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
        for name, choices in (("optimizer", OPTIMIZERS), ("precision", ("auto", *PRECISIONS)),
                              ("parallel", PARALLEL),
                              ("activation_checkpointing", CHECKPOINTING)):
            if getattr(self, name) not in choices:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}: choose "
                                 f"{', '.join(choices[:-1])} or {choices[-1]}")
        above, least = (self.learning_rate, self.embedding_factor, self.clip), \
            (self.weight_decay, self.spike, self.threads)
        if not (all(0 < x < math.inf for x in above) and all(0 <= x < math.inf for x in least)
                and 0 < self.decay_share <= 1 and 0 <= self.beta2 < 1):
            raise ValueError("learning_rate, embedding_factor and clip must be above 0, "
                             "weight_decay, spike and threads at least 0, all of them finite, "
                             "decay_share above 0 and at most 1, and beta2 from 0 to below 1")
        for name, full in (("batch", self.batch_size), ("length", self.row_length)):
            stages = parse_ramp(getattr(self, f"{name}_ramp"))
            if stages and stages[-1][0] >= full:
                raise ValueError(f"{name}_ramp must stay below the full {name} of {full}, where "
                                 "it ends")
        if not 0 <= self.seed < 1 << 63:
            raise ValueError(f"seed {self.seed} must be at least 0 and below 2^63")
        schedule_factor(self.schedule, 0, self.steps, 0)  # refuses an unknown name

    def plan(self, step):
        """Return (learning rate, rows, tokens in a row) of a step (0-based)."""
        done = step / self.steps
        factor = schedule_factor(self.schedule, step, self.steps, self.warmup_steps,
                                 self.decay_share)
        return (self.learning_rate * factor,
                ramp_value(parse_ramp(self.batch_ramp), done, self.batch_size),
                ramp_value(parse_ramp(self.length_ramp), done, self.row_length))

    @property
    def tokens_folder(self):
        return self.tokens or os.path.join(self.out, "tokens")


TRAIN_PRESETS = {
    "tiny": TrainConfig(steps=3300, beta2=0.99, eval_every=660, save_every=660,
                        model=PRESETS["tiny"]),
    "small": TrainConfig(out="runs/small", steps=4000, batch_size=32, row_length=512,
                         learning_rate=3e-3, embedding_factor=1.0,
                         schedule="multi_step", warmup_steps=100, model=PRESETS["small"]),
    "gpt2-124m": TrainConfig(out="runs/gpt2-124m", steps=20000, batch_size=512, row_length=1024,
                             accumulation=16, learning_rate=2e-3, embedding_factor=1.0,
                             schedule="multi_step", warmup_steps=700,
                             eval_every=250, save_every=1000, model=PRESETS["gpt2-124m"]),
}


def train_step(run):
    """Take one step; return its row of log.jsonl.

    A step that would spoil the weights (a loss or gradient that is not finite, a spike) is
    skipped: its row says why, and its batch is gone.
    """
    rate, rows, row_length = run.config.plan(run.step)
    set_learning_rate(run.optimizers, rate)
    total = torch.zeros((), device=run.device)
    for batch, share, more in run.micro_batches():
        with run.ranks.accumulating(more):
            with autocast(run.device, run.choices["precision"]):
                part = run.loss(*batch) * share
            (part * run.scale.value).backward()
        total += part.detach()
    loss = run.ranks.mean(total).item()
    norm = clip_gradients(run)
    skipped = why_skip(run, loss, norm)
    for optimizer in run.optimizers:
        if not skipped:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.step += 1
    run.tokens += rows * row_length
    run.length_sum += rows * row_length ** 2
    row = {"step": run.step, "tokens": run.tokens, "loss": finite(loss), "learning_rate": rate,
           "gradient_norm": finite(norm), "rows": rows, "row_length": row_length}
    if run.scale.enabled:
        row["loss_scale"] = run.scale.value
    return row | ({"skipped": skipped} if skipped else {})


def clip_gradients(run):
    """Divide the gradients by the loss scale, clip their norm, and return what it was."""
    gradients = [p.grad for p in run.model.parameters()]
    if run.scale.value != 1:
        torch._foreach_div_(gradients, run.scale.value)
    norm = run.ranks.gathered(torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), run.config.clip, norm)
    return norm.item()


def why_skip(run, loss, norm):
    """Return why this step must not move the weights, or None.

    Raises ValueError when too many in a row diverged: then the weights themselves are lost.
    """
    overflowed = run.scale.enabled and run.scale.value > 1 and math.isfinite(loss) \
        and not math.isfinite(norm)
    run.scale.update(overflowed)
    if overflowed:
        return f"the gradient overflowed fp16; the loss scale is now {run.scale.value:g}"
    why = run.watch.objection(loss, norm)
    if run.watch.in_a_row > PATIENCE:
        raise ValueError(diverged(run, run.step + 1, why))
    return why


def diverged(run, step, why):
    """Return what to say of a run that cannot go on."""
    return (f"step {step} diverged: {why}. The last good checkpoint is "
            f"{newest_intact(run.folder) or 'not there yet'}: go on from it with --branch_from, "
            "another --out and a lower --learning_rate")


def finite(number):
    """Return a number that JSON can hold: None for NaN and infinity."""
    return number if math.isfinite(number) else None


def train(config, resume=False):
    """Train as `config` says; return the finished Run, or None when it was asked to stop.

    Raises ValueError for bad settings or data, for a folder that holds another run, and for a
    run that diverges.
    """
    use_exact_onednn()
    with ending_together():
        run = Run(config, resume)
        say_start(run)
        if not take_steps(run):
            return None
        finish(run)
        return run


def take_steps(run):
    """Take the steps that are left; return False when the run was asked to stop before the last."""
    config = run.config
    with stop_requests(run.ranks.size) as asked:
        while run.step < config.steps:
            began = time.perf_counter()
            row = train_step(run)
            row |= measure(run, row, time.perf_counter() - began)
            last, stopping = run.step == config.steps, run.ranks.any(asked)
            # Among steps that diverge, the weights may be spoilt already: nothing is made of them.
            settled = not run.watch.in_a_row
            if settled and (last or run.step % config.eval_every == 0):
                row["held_out"] = quick_evaluation(run)
            run.write_log(row)
            show(run, row)
            if last and row["loss"] is None:
                raise ValueError(diverged(run, run.step, "its loss is not finite"))
            if last or settled and (stopping or run.step % config.save_every == 0):
                run.save(score=row.get("held_out"))
            if stopping and not last:
                run.say(f"\nstopped after step {run.step}; the last checkpoint is "
                        f"{(checkpoints(run.folder) or ['not there yet'])[-1]}: go on with the "
                        "same command (make's, or your own with --resume)")
                return False
    return True


def measure(run, row, seconds):
    """Return what a step that took so long adds to its row: pace, share of the ceiling, memory."""
    run.seconds += seconds
    pace = row["rows"] * row["row_length"] / seconds
    flops = flops_per_token(run.config.model, row["row_length"])["total"] * pace
    return {"bits_per_byte": row["loss"] and row["loss"] / math.log(2) / run.bytes_per_token,
            "tokens_per_second": pace, "mfu": flops / run.ceiling,
            "memory": peak_memory(run.device)}


@contextlib.contextmanager
def stop_requests(ranks=1):
    """Yield a list that is filled when Ctrl-C (SIGINT) or SIGTERM asks the run to stop."""
    asked = []

    def ask(number, frame):
        # A second Ctrl-C does not wait for the step; torchrun itself may pass one on twice.
        if number in asked and number == signal.SIGINT and ranks == 1:
            raise KeyboardInterrupt
        asked.append(number)
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def quick_evaluation(run):
    """Return {source: bits per byte} on the first held-out documents of each source."""
    run.model.eval()
    found = {}
    for source, documents in run.held_out.items():
        text_bytes = sum(len(run.tokenizer.decode_bytes(ids[1:-1].tolist())) for ids in documents)
        found[source] = nats(run.model, documents) / math.log(2) / max(1, text_bytes)
    run.model.train()
    return found


def say_start(run):
    config = run.config
    count = sum(p.numel() for p in run.model.parameters())
    run.say(f"{'going on at step ' + str(run.step) if run.step else 'training'}: "
            f"{count:,} parameters, {config.steps} steps of {config.batch_size} rows × "
            f"{config.row_length} tokens, {run.choices['precision']} on {run.device.type} with "
            f"{run.choices['threads']} threads" + f" on each of {run.ranks.size} ranks"
            * (run.ranks.size > 1))


def show(run, row):
    """Show a step on the screen: all of it after an evaluation, a line now and then."""
    if "skipped" in row:
        run.say(f"step {run.step} skipped: {row['skipped']}")
    if "held_out" in row:
        show_progress(run, row)
        run.say("  held-out bits/byte, a quick look  " + "  ".join(
            f"{source} {value:.3f}" + (f" (floor {run.floors[source]:.3f})"
                                       if source in run.floors else "")
            for source, value in row["held_out"].items()))
        if not run.ranks.sliced:  # every token would gather the whole model anew
            show_samples(run)
        if run.ranks.first:
            write_curve(run.log, run.floors, run.folder / "curve.svg")
    elif sys.stdout.isatty():
        show_progress(run, row, end="\r")
    elif run.step % 25 == 0:
        show_progress(run, row)


def show_progress(run, row, end="\n"):
    # Of the last steps: a machine may have been busy, or the first step slow.
    pace = statistics.harmonic_mean(r["tokens_per_second"] for r in run.log[-25:])
    left = int((run.total_tokens - run.tokens) / pace)
    loss, bits = (row[k] if row[k] is not None else math.nan for k in ("loss", "bits_per_byte"))
    run.say(f"step {run.step:>5}/{run.config.steps}  loss {loss:.3f}  {bits:.3f} bits/byte  "
            f"{pace:,.0f} tokens/s  {left // 60}:{left % 60:02d} left", end=end, flush=True)


def show_samples(run, max_new_tokens=60):
    """Print how the model goes on from the beginning of a held-out document of each source."""
    run.model.eval()
    for source, documents in run.held_out.items():
        prompt = run.tokenizer.decode(documents[0][1:9].tolist()).rstrip("\ufffd")
        text = "".join(write(run.model, run.tokenizer, prompt, max_new_tokens=max_new_tokens,
                             seed=run.step, **SAMPLING))
        line = " ".join((prompt + "|" + text).split())
        # A model that knows little yet writes control characters, which a terminal would obey.
        run.say(f"  {source}: {''.join(c if c.isprintable() else '·' for c in line)}")
    run.model.train()


def finish(run):
    """Score all held-out text; print the price tag and store it as cost.json."""
    config = run.config
    run.model.eval()
    scores = evaluate(run.model, config.tokens_folder)
    tag = price_tag(config.model, tokens=run.tokens, seconds=run.seconds, ceiling=run.ceiling,
                    context=run.length_sum / run.tokens, peak_bytes=peak_memory(run.device))
    tag["bits_per_byte"] = {source: score.bits_per_byte for source, score in scores.items()}
    if run.ranks.first:
        write_whole(run.folder / "cost.json", json.dumps(tag, indent=1))
    run.say(f"finished in {run.seconds:.0f} s of training. The scores: python -m "
            f"nanoseek.evaluate {config.out}; the price tag, kept as {config.out}/cost.json:\n"
            f"{format_price_tag(tag)}\n")


def main(argv=None):
    from nanoseek.cli import Parser, add_flags, from_flags
    first = Parser("nanoseek.train", add_help=False)  # the help shows the preset's own values
    first.add_argument("--preset", choices=sorted(TRAIN_PRESETS), default="tiny",
                       help="settings to begin from (default tiny)")
    preset = first.parse_known_args(argv)[0].preset
    parser = Parser("nanoseek.train", "Train a model on token shards. The defaults below are those "
                    f"of --preset {preset}.", parents=[first])
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    add_flags(parser, TRAIN_PRESETS[preset])
    add_flags(parser, TRAIN_PRESETS[preset].model, skip=("vocab_size",))
    args = parser.parse_args(argv)
    config = from_flags(TRAIN_PRESETS[preset], args)
    if os.path.isfile(config.out):
        raise ValueError(f"{config.out} is a file: --out names the run's folder")
    vocab_size = read_manifest(config.tokens_folder)["vocab_size"]
    model = dataclasses.replace(from_flags(config.model, args), vocab_size=vocab_size)
    if train(dataclasses.replace(config, model=model), args.resume) is None:
        return 130  # as the shell reports a command that Ctrl-C ended


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
