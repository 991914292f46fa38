"""Between a run and who watches it: progress on the screen, a quick look at its quality, Ctrl-C.

    row["held_out"] = evaluate_quickly(run)      # {source: bits per byte}
    show(run, row)                               # of log.jsonl: on the screen and in curve.svg
    with stop_requests() as asked: ...           # not empty once the run is asked to stop
"""

import contextlib
import json
import math
import signal
import statistics
import sys

from nanoseek import cli
from nanoseek.cost import parameters, price_tag
from nanoseek.evaluate import evaluate, nats
from nanoseek.generate import SAMPLING, write
from nanoseek.lab.curve import write_curve
from nanoseek.lab.price_tag import format_price_tag
from nanoseek.scale.folder import fingerprint
from nanoseek.scale.machine import peak_memory


def evaluate_quickly(run):
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
    run.say(f"{'going on at step ' + str(run.step) if run.step else 'training'}: "
            f"{parameters(config.model)['total']:,} parameters, {config.steps} steps of "
            f"{config.batch_size} rows × {config.row_length} tokens, {run.choices['precision']} "
            f"on {run.device.type}, {run.choices['threads']} threads, {run.ranks.size} rank(s)")


def say_stopped(run):
    run.say(f"\nstopped after step {run.step}: go on with the same command (make's, or your own "
            "with --resume)")


def show(run, row):
    """Show a step on the screen: all of it after an evaluation, a line now and then."""
    if "skipped" in row:
        run.say(f"step {run.step} skipped: {row['skipped']}")
    terminal, evaluated = sys.stdout.isatty(), "held_out" in row
    if evaluated or terminal or run.step % 25 == 0:
        show_progress(run, row, end="\r" if terminal and not evaluated else "\n")
    if evaluated:
        floors = {source: f" (floor {floor:.3f})" for source, floor in run.floors.items()}
        run.say("  held-out bits/byte, a quick look  " + "  ".join(
            f"{source} {value:.3f}{floors.get(source, '')}"
            for source, value in row["held_out"].items()))
        if not run.ranks.sliced:  # every token would gather the whole model anew
            show_samples(run)
        if run.ranks.first:
            write_curve(run.log, run.floors, run.folder / "curve.svg")


def show_progress(run, row, end):
    # The pace of the last steps: a machine may have been busy, or the first step slow.
    pace = statistics.harmonic_mean(r["tokens_per_second"] for r in run.log[-25:])
    # With a ramp, this counts more than will come: as if all steps to come were of full size.
    left = int((run.config.steps - run.step) * run.config.batch_size * run.config.row_length / pace)
    run.say(f"step {run.step:>5}/{run.config.steps}  loss {row['loss'] or math.nan:.3f}  "
            f"{row['bits_per_byte'] or math.nan:.3f} bits/byte  {pace:,.0f} tokens/s  "
            f"{left // 60}:{left % 60:02d} left", end=end, flush=True)


def show_samples(run):
    """Print how the model goes on from the beginning of a held-out document of each source."""
    run.model.eval()
    for source, documents in run.held_out.items():
        prompt = run.tokenizer.decode(documents[0][1:9].tolist()).rstrip("\ufffd")
        text = "".join(write(run.model, run.tokenizer, prompt, max_new_tokens=60, seed=run.step,
                             **SAMPLING))
        line = " ".join((prompt + "|" + text).split())
        # A model that knows little yet writes control characters, which a terminal would obey.
        run.say(f"  {source}: {''.join(c if c.isprintable() else '·' for c in line)}")
    run.model.train()


def finish(run):
    """Score all held-out text; print the price tag and store it as cost.json."""
    config = run.config
    if fingerprint(config.tokens_folder) != run.fingerprint:
        raise ValueError(f"{config.tokens_folder} was written anew while {run.folder} trained on "
                         "it: the checkpoints are whole, but there is no text to score them on")
    scores = evaluate(run.model.eval(), config.tokens_folder)
    tag = price_tag(config.model, tokens=run.tokens, seconds=run.seconds, ceiling=run.ceiling,
                    context=run.length_sum / run.tokens, peak_bytes=peak_memory(run.device))
    tag["bits_per_byte"] = {source: score.bits_per_byte for source, score in scores.items()}
    if run.ranks.first:
        with cli.writing(run.folder / "cost.json") as new:
            new.write_text(json.dumps(tag, indent=1))
    run.say(f"finished in {run.seconds:.0f} s of training. The scores: python -m "
            f"nanoseek.evaluate {config.out}; the price tag, kept as {config.out}/cost.json:\n"
            f"{format_price_tag(tag)}\n")


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
