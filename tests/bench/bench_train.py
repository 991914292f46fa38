"""What the loop costs beside the mathematics, and what saving costs, at the tiny shape.

    python tests/bench/bench_train.py [--steps 200]

A real run of the tiny preset on stories, with its log and its progress, whose forward passes,
backward passes, clipping and optimizer steps are timed from inside. Whatever else happens between
one row of log.jsonl and the next is overhead: preparing batches, schedules, looking at the loss,
measuring, logging. All shares are of one run, so a slow machine does not change them much.
Saving is timed apart, and taken as often as the preset saves.
"""

import argparse
import contextlib
import dataclasses
import io
import pathlib
import statistics
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]

import torch

from kill_resume import prepare
from nanoseek import train
from nanoseek.scale.run import Run

BUDGET, SAVING = 0.05, 0.01  # what overhead and saving may take


def timed(function, spent, label):
    """Return the function, adding the seconds that it takes to spent[label]."""
    def call(*args, **kwargs):
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent[label] = spent.get(label, 0.0) + time.perf_counter() - began
    return call


@contextlib.contextmanager
def clock(first, last):
    """Within it, one run may train. Yield {part: seconds}, of the steps first + 1 to last."""
    spent, found = {}, {}
    real = Run.__init__, Run.write_log, torch.Tensor.backward, train.clip_gradients

    def begin(run, *arguments):
        real[0](run, *arguments)
        run.loss = timed(run.loss, spent, "forward")
        run.next_batch = timed(run.next_batch, spent, "batches")
        for optimizer in run.optimizers:
            optimizer.step = timed(optimizer.step, spent, "optimizer")

    def write_log(run, row):
        timed(real[1], spent, "log")(run, row)
        if run.step == first:
            spent.clear()
            found["began"] = time.perf_counter()
        elif run.step == last:
            found.update(spent)
            found["all"] = time.perf_counter() - found.pop("began")
    Run.__init__, Run.write_log = begin, write_log
    torch.Tensor.backward = timed(real[2], spent, "backward")
    train.clip_gradients = timed(real[3], spent, "clipping")
    try:
        yield found
    finally:
        Run.__init__, Run.write_log, torch.Tensor.backward, train.clip_gradients = real


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        preset = train.TRAIN_PRESETS["tiny"]
        model = dataclasses.replace(preset.model, vocab_size=prepare(folder, 4000, 2048))
        config = dataclasses.replace(preset, out=str(folder), steps=steps, model=model,
                                     eval_every=steps, save_every=steps)
        with contextlib.redirect_stdout(io.StringIO()), clock(20, steps - 1) as parts:
            run = train.train(config)
        if run is None:  # asked to stop
            sys.exit(130)
        saves = []
        for _ in range(7):
            began = time.perf_counter()
            run.save()
            saves.append(time.perf_counter() - began)
    count, seconds = steps - 21, parts.pop("all")
    step = seconds / count
    print(f"tiny: {config.batch_size} rows x {config.row_length} tokens, "
          f"{run.choices['precision']}, {run.choices['threads']} threads; {count} steps")
    parts["other"] = seconds - sum(parts.values())
    for name, spent in parts.items():
        print(f"{name:<12}{1000 * spent / count:>9.2f} ms{spent / seconds:>8.1%}")
    overhead = sum(parts[name] for name in ("batches", "log", "other")) / seconds
    print(f"{'step':<12}{1000 * step:>9.2f} ms; overhead (batches, log, other) {overhead:.1%}, "
          f"of which at most {BUDGET:.0%} is wished: {'yes' if overhead <= BUDGET else 'NO'}")
    number = -(-preset.steps // preset.save_every)
    share = number * statistics.median(saves) / (preset.steps * step)
    print(f"{'saving':<12}{1000 * statistics.median(saves):>9.2f} ms, {number} times in "
          f"{preset.steps} steps: {share:.2%} of a run; at most {SAVING:.0%} is wished: "
          f"{'yes' if share <= SAVING else 'NO'}")


if __name__ == "__main__":
    main()
