"""The training loop: python -m nanoseek.train --preset tiny --out runs/tiny [--resume]

    train(TrainConfig(out="runs/tiny", steps=100))

A step takes a batch, adds up the gradients of its micro-batches, clips them and moves the weights,
unless its loss or gradient is not finite. The run's folder gets checkpoints/, log.jsonl (a
row a step), report.html, at the end cost.json, the price tag. A run that was stopped goes on with
--resume and ends with the same weights, bit for bit on the same machine and torch. --branch_from
goes on from another run's checkpoint, in a new folder. Under torchrun, several ranks share the run.

A Run (scale/run.py) holds the model, its optimizers, the data and all counters: micro_batches()
yields (batch, its share of the step, whether it is the last); loss(*batch) is a loss; `ranks` are
all processes, `scale` is the loss scale of fp16, `watch` tells divergence, `choices` are measured.

Recipe: DeepSeek LLM (arXiv 2401.02954, §2.3): warm-up, multi-step schedule, clipping at 1.0; the
tiny preset's schedule is linear, and Muon takes AdamW's place for matrices."""

import contextlib
import dataclasses
import math
import os
import time

import torch

from nanoseek import cli
from nanoseek.checkpoint import newest_intact
from nanoseek.cli import setting
from nanoseek.cost import flops_per_token
from nanoseek.data import read_manifest
from nanoseek.deepseek.experts import after_step
from nanoseek.deepseek.presets import PRESETS
from nanoseek.fast import speed_up
from nanoseek.fast.onednn import use_exact_onednn
from nanoseek.lab.console import evaluate_quickly, finish, say_start, show, stop_requests
from nanoseek.model import CHECKPOINTING, ModelConfig
from nanoseek.optim import (BETAS, CLIP, OPTIMIZERS, PATIENCE, SCHEDULES, parse_ramp, ramp_value,
                            schedule_factor, set_learning_rate)
from nanoseek.scale.distributed import ending_together
from nanoseek.scale.folder import memorised_from, set_aside_run_on_other_data
from nanoseek.scale.machine import PRECISIONS, autocast, peak_memory
from nanoseek.scale.run import Run

EARLY = (10, 30, 100, 300)  # steps after which held-out text is scored besides


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """All settings of a run. Raises ValueError when the numbers do not fit together."""

    # Input and output.
    out: str = setting("runs/tiny", "the run's folder")
    tokens: str = setting("", "folder of token shards; tokens in the run's folder unless given")
    branch_from: str = setting("", "a checkpoint of another run of this data to go on from")
    # What a step sees.
    steps: int = setting(1200, "how often the weights move; 0: sized to the text", least=0)
    minutes: float = setting(3.0, "time that steps sized to the text may take", above=0)
    batch_size: int = setting(8, "rows in a step, over all micro-batches", least=1)
    row_length: int = setting(256, "tokens in a row", least=1)
    batch_ramp: str = setting("", "smaller batches first: 2:0.1,4:0.3 is 2 rows to 10%, 4 to 30%")
    length_ramp: str = setting("", "shorter rows first, as 64:0.2,128:0.4")
    weights: str = setting("", "shares of the sources: name=0.5,name=0.5 (default: by tokens)")
    document_mask: bool = setting(True, "keep documents packed in one row from seeing each other")
    # How the weights move.
    optimizer: str = setting("muon", "muon or adamw", choices=OPTIMIZERS)
    learning_rate: float = setting(5e-3, "the peak", above=0, most=1e6)
    embedding_factor: float = setting(5.0, "its factor beside the layers", above=0, most=1e6)
    beta2: float = setting(BETAS[1], "AdamW's memory of squared gradients", least=0, below=1)
    schedule: str = setting("linear", ", ".join(SCHEDULES), choices=SCHEDULES)
    decay_share: float = setting(0.2, "share of the steps in which wsd decays", above=0, most=1)
    warmup_steps: int = setting(20, "steps over which the rate rises to its peak", least=0)
    spike: float = setting(3.0, "stop where losses stay so many nats above usual; 0: no", least=0)
    # On what, and how fast.
    device: str = setting("auto", "cpu, cuda, mps, or auto")
    precision: str = setting("auto", "fp32, bf16, fp16, or auto: the faster here, measured",
                             choices=("auto", *PRECISIONS))
    threads: int = setting(0, "CPU threads; 0: as many as are fastest, measured", least=0, most=512)
    parallel: str = setting("auto", "under torchrun: ddp, fsdp, or auto: fsdp from 1B parameters",
                            choices=("auto", "ddp", "fsdp"))
    fast: bool = setting(True, "nanoseek/fast; false: the plain chapters, equal but for rounding")
    compile: bool = setting(False, "let torch.compile fuse the step: pays on a GPU, not under fsdp")
    # Less memory for more time.
    accumulation: int = setting(1, "micro-batches that a step is split into", least=1)
    activation_checkpointing: str = setting("none", "none, selective: keep only matrix products, "
                                            "or full: keep nothing", choices=CHECKPOINTING)
    # The rest.
    seed: int = setting(0, "of the first weights and the data's order", least=0, below=1 << 63)
    eval_every: int = setting(240, "steps between evaluations; some come sooner", least=1)
    save_every: int = setting(240, "steps between checkpoints", least=1)
    memorise: bool = setting(False, "go on where held-out text only gets worse")
    keep: int = setting(2, "newest checkpoints kept, beside the best", least=1)
    model: ModelConfig = ModelConfig()

    def __post_init__(self):
        cli.check_limits(self)
        if self.batch_size % self.accumulation:
            raise ValueError(f"batch_size must be a multiple of accumulation {self.accumulation}")
        if self.row_length > self.model.max_position_embeddings:
            raise ValueError(f"row_length {self.row_length} exceeds max_position_embeddings "
                             f"{self.model.max_position_embeddings}: shorten the rows")
        if 0 < self.steps <= self.warmup_steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} must be below steps {self.steps}")
        for name, full in (("batch", self.batch_size), ("length", self.row_length)):
            if any(n >= full for n, _ in parse_ramp(getattr(self, f"{name}_ramp"))):
                raise ValueError(f"{name}_ramp must stay below the full {name} of {full}")

    def plan(self, step):
        """Return (learning rate, rows, tokens in a row) of a step (0-based)."""
        done = step / self.steps
        return (self.learning_rate * schedule_factor(self.schedule, step, self.steps,
                                                     self.warmup_steps, self.decay_share),
                ramp_value(parse_ramp(self.batch_ramp), done, self.batch_size),
                ramp_value(parse_ramp(self.length_ramp), done, self.row_length))

    @property
    def tokens_folder(self):
        return self.tokens or os.path.join(self.out, "tokens")


TRAIN_PRESETS = {
    "tiny": TrainConfig(steps=3300, beta2=0.99, eval_every=660, save_every=660,
                        model=PRESETS["tiny"]),
    "own": TrainConfig(out="runs/own", steps=0, beta2=0.99, eval_every=100, save_every=100,
                       model=PRESETS["tiny"]),  # for a text of the reader's own
    "gpt2-124m": TrainConfig(out="runs/gpt2-124m", steps=20000, batch_size=512, row_length=1024,
                             accumulation=16, learning_rate=2e-3, embedding_factor=1.0,
                             schedule="multi_step", warmup_steps=700, eval_every=250,
                             save_every=1000, model=PRESETS["gpt2-124m"]),
}
TRAIN_PRESETS["tiny-v3"] = dataclasses.replace(TRAIN_PRESETS["tiny"], out="runs/tiny-v3",
                                               model=PRESETS["tiny-v3"])


def train(config, resume=False, restart_on_new_data=False):
    """Train as `config` says; return the finished Run, or None when it was asked to stop.

    restart_on_new_data: set aside a run that stands there, if it is one on other tokens."""
    if config.fast:
        use_exact_onednn()
    os.makedirs(config.out, exist_ok=True)
    first = os.environ.get("RANK", "0") == "0"  # of the ranks, one keeps the folder
    with ending_together(), cli.lock(config.out) if first else contextlib.nullcontext():
        if restart_on_new_data and first:
            set_aside_run_on_other_data(config.out, config.tokens_folder)
        run = Run(config, resume, speed_up if config.fast else None)
        config = run.config  # with its steps, where they were sized to the text
        say_start(run)
        with stop_requests(run.ranks.size) as asked:
            enough = memorised_from(run.log) and not config.memorise
            while run.step < config.steps and not enough:
                # Not where the model is sliced: what scoring gathers first cannot be trained on.
                untrained = ({} if run.step or run.ranks.sliced
                             else {"untrained": evaluate_quickly(run)})
                row = timed_step(run) | untrained
                last, stopping = run.step == config.steps, run.ranks.mean(len(asked)) > 0
                # A leap alone is a hard batch; more may be spoilt weights: no score, no checkpoint.
                settled = run.watch.in_a_row <= 1 and row["loss"] is not None
                if settled and (last or run.step in EARLY or run.step % config.eval_every == 0):
                    row["held_out"] = evaluate_quickly(run)
                    enough = memorised_from([*run.log, row]) and not config.memorise
                run.write_log(row)
                show(run, row)
                if last or settled and (stopping or "held_out" in row
                                        or run.step % config.save_every == 0):
                    run.save(score=row.get("held_out"))
                if stopping and not last:
                    run.say(f"\nstopped after step {run.step}: go on with make's command or your "
                            "own with --resume")
                    return None
        finish(run)
        return run


def timed_step(run):
    """Take one step; return its row with its pace, share of the ceiling and memory."""
    began = time.perf_counter()
    row = train_step(run)
    seconds = time.perf_counter() - began
    run.seconds += seconds
    pace = row["rows"] * row["row_length"] / seconds
    flops = flops_per_token(run.config.model, row["row_length"])["total"] * pace
    return row | {"bits_per_byte": row["loss"] and row["loss"] / math.log(2) / run.bytes_per_token,
                  "tokens_per_second": pace, "mfu": flops / run.ceiling,
                  "memory": peak_memory(run.device)}


def train_step(run):
    """Take one step, or skip it if it would spoil the weights; return its row of log.jsonl."""
    learning_rate, rows, row_length = run.config.plan(run.step)
    set_learning_rate(run.optimizers, learning_rate)
    # The gradients of the micro-batches add up to those of the batch, each weighted by its share.
    total = torch.zeros((), device=run.device)
    for batch, share, last in run.micro_batches():
        run.ranks.average_gradients(now=last)  # ranks exchange them once a step
        with autocast(run.device, run.choices["precision"]):
            part = run.loss(*batch) * share
        (part * run.scale.value).backward()
        total += part.detach()
    loss = run.ranks.mean(total)
    norm = clip_gradients(run)
    skipped = reason_to_skip(run, loss, norm)
    for optimizer in run.optimizers:
        if not skipped:
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    after_step(run.model, taken=not skipped)
    run.step += 1
    run.tokens += rows * row_length
    run.length_sum += rows * row_length ** 2
    loss, norm = (n if math.isfinite(n) else None for n in (loss, norm))  # JSON knows no NaN
    return ({"step": run.step, "tokens": run.tokens, "loss": loss, "learning_rate": learning_rate,
             "gradient_norm": norm, "rows": rows, "row_length": row_length}
            | ({"loss_scale": run.scale.value} if run.scale.enabled else {})
            | ({"skipped": skipped} if skipped else {}))


def clip_gradients(run):
    """Divide the gradients by the loss scale, clip their norm, and return what it was."""
    gradients = [p.grad for p in run.model.parameters()]
    if run.scale.value != 1:
        torch._foreach_div_(gradients, run.scale.value)
    norm = run.ranks.gathered(torch.nn.utils.get_total_norm(gradients))
    torch.nn.utils.clip_grads_with_norm_(run.model.parameters(), CLIP, norm)
    return norm.item()


def reason_to_skip(run, loss, norm):
    """Return why this step must not move the weights, or None; ValueError if the run diverged."""
    overflowed = run.scale.value > 1 and math.isfinite(loss) and not math.isfinite(norm)
    run.scale.update(overflowed)
    if overflowed:  # of the scaled gradient: the model is well, only the scale was too large
        return f"the gradient overflowed fp16; the loss scale is now {run.scale.value:g}"
    reason, step = run.watch.reason_to_skip(loss, norm), run.step + 1
    if run.watch.in_a_row > PATIENCE or step == run.config.steps and not math.isfinite(loss):
        reason = reason or f"the loss leapt to {loss:.3f} and did not come down again"
        good = newest_intact(run.folder)
        how = f"go on from {good} with --branch_from, another --out and" if good else "begin with"
        raise ValueError(f"step {step} diverged: {reason}: {how} a lower --learning_rate")
    return reason


def main(argv=None):
    first = cli.Parser("nanoseek.train", add_help=False)  # the help shows the preset's own values
    first.add_argument("--preset", choices=sorted(TRAIN_PRESETS), default="tiny",
                       help="settings to begin from (default tiny)")
    name = first.parse_known_args(argv)[0].preset
    preset = TRAIN_PRESETS[name]
    parser = cli.Parser("nanoseek.train", "Train a model on token shards. The defaults below are "
                        f"those of --preset {name}.", parents=[first])
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint")
    parser.add_argument("--restart_on_new_data", action="store_true",
                        help="begin anew, and set the old run aside, if the tokens are others")
    cli.add_flags(parser, preset)
    cli.add_flags(parser, preset.model, skip=("vocab_size",))
    args = parser.parse_args(argv)
    args.model = cli.from_flags(preset.model, args)
    config = cli.from_flags(preset, args)
    size = read_manifest(config.tokens_folder)["vocab_size"]
    config = dataclasses.replace(config, model=dataclasses.replace(args.model, vocab_size=size))
    if train(config, args.resume, args.restart_on_new_data) is None:
        return 130  # as the shell reports a command that Ctrl-C ended


if __name__ == "__main__":
    cli.run(main)
