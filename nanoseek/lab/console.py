"""Between a run and who watches it: progress on the screen, a quick look at its quality, Ctrl-C.

    row["held_out"] = evaluate_quickly(run)      # {source: bits per byte}
    show(run, row)                               # of log.jsonl: on the screen and in report.html
    with stop_requests() as asked: ...           # not empty once the run is asked to stop"""

import contextlib
import json
import math
import signal
import statistics
import sys

from nanoseek import cli
from nanoseek.cost import parameters, price_tag
from nanoseek.evaluate import bits_per_byte, evaluate
from nanoseek.generate import SAMPLING, write
from nanoseek.lab.page import write_page
from nanoseek.lab.price_tag import format_price_tag
from nanoseek.scale.folder import fingerprint, memorised_from
from nanoseek.scale.machine import peak_memory


def evaluate_quickly(run):
    """Return {source: bits per byte} on the first held-out documents of each source."""
    found = {source: bits_per_byte(run.model.eval(), run.tokenizer, documents)
             for source, documents in run.held_out.items()}
    run.model.train()
    return found


def say_start(run):
    config = run.config
    run.say(f"{'going on at step ' + str(run.step) if run.step else 'training'}: "
            f"{parameters(config.model)['total']:,} parameters, {config.steps} steps of "
            f"{config.batch_size} rows × {config.row_length} tokens, {run.choices['precision']} "
            f"on {run.device.type}, {run.choices['threads']} threads, {run.ranks.size} rank(s)")
    some = range(0, config.steps, 1 + config.steps // 1000)  # ramps change the steps' sizes
    read = statistics.fmean(math.prod(config.plan(n)[1:]) for n in some) * config.steps / run.epoch
    run.say(f"each token is read {read:,.1f} times" + " at most" * (len(run.loader.weights) > 1))
    if not run.held_out:
        run.say("no document is held out: nothing is scored, and the last checkpoint is used")


def show(run, row):
    """Show a step: a line now and then, and after an evaluation its scores, samples and page."""
    if "untrained" in row:
        run.say("untrained: held-out bits/byte  " + "  ".join(
            f"{source} {bits:.3f}" for source, bits in row["untrained"].items()))
    if "skipped" in row:
        run.say(f"step {run.step} skipped: {row['skipped']}")
    config, scores, terminal = run.config, row.get("held_out"), sys.stdout.isatty()
    if scores is None and not terminal and run.step % 25:
        return
    # By the pace of the last steps, and as if all steps to come were of full size.
    pace = statistics.harmonic_mean(r["tokens_per_second"] for r in run.log[-25:])
    left = int((config.steps - run.step) * config.batch_size * config.row_length / pace)
    run.say(f"step {run.step:>5}/{config.steps}  loss {row['loss'] or float('nan'):.3f}  "
            f"{row['bits_per_byte'] or float('nan'):.3f} bits/byte  {pace:,.0f} tokens/s  "
            f"epoch {run.tokens / run.epoch:.1f}  {left // 60}:{left % 60:02d} left",
            end="   \r" if terminal and scores is None else "\n")
    if scores is None or not run.ranks.first:
        return
    floors = {source: f" (floor {floor:.3f})" for source, floor in run.floors.items()}
    run.say("  held-out bits/byte, a quick look  " + "  ".join(
        f"{source} {bits:.3f}{floors.get(source, '')}" for source, bits in scores.items()))
    # Not at first, and not where the model is sliced: every token would gather the whole of it.
    for source, documents in run.held_out.items() if run.step > 50 and not run.ranks.sliced else ():
        prompt = run.tokenizer.decode(documents[0][1:9]).rstrip("\ufffd")
        text = f"{prompt}|" + "".join(write(run.model.eval(), run.tokenizer, prompt,
                                            max_new_tokens=60, seed=run.step, **SAMPLING))
        # A model that knows little yet writes control characters, which a terminal would obey.
        run.say(f"  {source}: {''.join(c if c.isprintable() else ' ' for c in text)}")
    run.model.train()
    write_page(run.folder / "report.html", config.out, run.log, run.floors)


def finish(run):
    """Score all held-out text; print the price tag and store it as cost.json."""
    config = run.config
    if fingerprint(config.tokens_folder) != run.fingerprint:
        raise ValueError(f"{config.tokens_folder} was written anew while {run.folder} trained on "
                         "it: the checkpoints are whole, but have no text to be scored on")
    if (step := memorised_from(run.log)) is not None:
        run.say(f"from step {step} on it learnt its text by heart: held-out text got worse. That "
                "step's checkpoint is the one that is used; --memorise goes on nevertheless")
    scores = evaluate(run.model.eval(), config.tokens_folder)
    tag = price_tag(config.model, tokens=run.tokens, seconds=run.seconds, ceiling=run.ceiling,
                    context=run.length_sum / run.tokens, peak_bytes=peak_memory(run.device))
    tag["bits_per_byte"] = {source: score.bits_per_byte for source, score in scores.items()}
    if run.ranks.first:
        with cli.writing(run.folder / "cost.json") as new:
            new.write_text(json.dumps(tag, indent=1))
    run.say(f"finished in {run.seconds:.0f} s of training; scores: python -m nanoseek.evaluate "
            f"{config.out}; the price tag, in {config.out}/cost.json:\n{format_price_tag(tag)}\n")


@contextlib.contextmanager
def stop_requests(ranks=1):
    """Yield a list that is filled when Ctrl-C (SIGINT) or SIGTERM asks the run to stop."""
    asked = []

    def ask(number, frame):
        asked.append(number)
        if ranks == 1:  # a second Ctrl-C does not wait for the step; torchrun passes it on twice
            signal.signal(signal.SIGINT, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, ask))
        yield asked
