"""Plant the usual bugs in training runs, one at a time: does the health check name each?

    python tutorials/experiments/planted_bugs.py                    # scaled down: 2 minutes
    python tutorials/experiments/planted_bugs.py --store            # and keep the curves beside it
    python tutorials/experiments/planted_bugs.py --run runs/tiny    # its recipe, bands.json
    python tutorials/experiments/planted_bugs.py --run runs/tiny --stop 500  # a seventh of the steps

Scaled down, it first trains healthy runs for bands of its own; then healthy runs of other seeds,
which must raise nothing, and a run with each bug. The bugs are planted the way they happen: in
settings, in the data, or in the code that trains, which then also runs the check.
"""

import argparse
import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import signal
import sys
from statistics import fmean
from unittest import mock

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import torch.nn.functional as F

from reference_bands import RECIPE, make_bands

from nanoseek import data, model, train as loop
from nanoseek.checkpoint import read_json
from nanoseek.cli import writing
from nanoseek.evaluate import evaluate
from nanoseek.lab import health
from nanoseek.corpus import read_documents
from nanoseek.model import ModelConfig
from nanoseek.corpus.stories import LANGUAGES, stories
from nanoseek.fast.attention import FastAttention
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.tokenizer import Tokenizer
from nanoseek.train import TrainConfig

STORED = pathlib.Path(__file__).with_suffix(".json")  # what 09_health draws
SMALL = TrainConfig(steps=240, batch_size=8, row_length=128, eval_every=48, save_every=240,
                    warmup_steps=12, model=ModelConfig(
                        vocab_size=512, hidden_size=64, intermediate_size=176))


def write_data(folder, documents, tokenizer, encode=None):
    """Write tokenizer.json and tokens; with `encode`, ids of another tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(folder / "tokenizer.json")
    data.write_shards(documents, encode or tokenizer.encode, folder / "tokens",
                      tokenizer.vocab_size, tokenizer.eot_id, folder / "tokenizer.json")


def write_documents(count, held_out):
    """Return stories of both languages, the first `held_out` of each held out."""
    return [{"text": s.text, "source": s.source, "log2_probability": s.log2_probability,
             "split": "held_out" if n < held_out else "train"}
            for language in LANGUAGES for n, s in enumerate(stories(language, count, 0))]


# --- the bugs: each changes settings, documents or ids, or the code while it trains ------------

def too_high(config):
    return dataclasses.replace(config, learning_rate=config.learning_rate * 8)


def no_warmup(config):
    return dataclasses.replace(config, warmup_steps=0)


def wild_weights(config):
    model = dataclasses.replace(config.model, initializer_range=10 * config.model.initializer_range)
    return dataclasses.replace(config, model=model)


def duplicated(documents):
    """Return as many training documents, a twentieth of them twenty times over."""
    several = [d for d in documents if d.get("split") != "held_out"]
    return [d for d in documents if d.get("split") == "held_out"] + several[::20] * 20


@contextlib.contextmanager
def not_shifted():
    real = data.Loader.next_batch

    def next_batch(self, *sizes, **named):
        batch = real(self, *sizes, **named)
        return batch._replace(targets=batch.inputs)
    with mock.patch.object(data.Loader, "next_batch", next_batch):
        yield


@contextlib.contextmanager
def leaking():
    def attend(self, q, k, v, mask):  # of the mask nothing is left
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    with mock.patch.object(model.Attention, "attend", attend), \
            mock.patch.object(FastAttention, "attend", attend):
        yield


BUGS = {  # name: (what is planted, where, the cause that the check must name)
    "learning rate too high": (too_high, "config", "high"),
    "no warm-up": (no_warmup, "config", "warmup"),
    "targets not shifted": (not_shifted, "code", "shift"),
    "mask leaks the future": (leaking, "code", "future"),
    "wrong initialisation": (wild_weights, "config", "init"),
    "duplicated data": (duplicated, "data", "copies"),
    "tokenizer mismatch": (None, "ids", "tokenizer"),
}


@contextlib.contextmanager
def stopped_after(steps):
    """Let runs stop after so many steps, as Ctrl-C stops them; None: let them end."""
    real = loop.train_step

    def train_step(run):
        row = real(run)
        if run.step == steps:
            signal.raise_signal(signal.SIGTERM)
        return row
    with mock.patch.object(loop, "train_step", train_step):
        yield


def trained(config, folder, tokens):
    """Train quietly in `folder`, anew where a run was half done; return the folder."""
    if not (folder / "trained").is_file():
        for name in ("checkpoints", "log.jsonl"):
            path = folder / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(ValueError):
            # A run whose loss is no longer finite ends with a ValueError, and is checked as it is.
            loop.train(dataclasses.replace(config, out=str(folder), tokens=str(tokens)))
        (folder / "trained").touch()
    return folder


def plant(name, config, documents, tokenizer, folder, tokens, bands, judge=health.check):
    """Train with one bug of BUGS in `folder`; return what judge(folder, bands), run in the same
    code, says of it: the (report, causes) of the health check, unless given."""
    change, where, _ = BUGS[name]
    if where == "config":
        config = change(config)
    elif where in ("data", "ids") and not (folder / "tokens").exists():
        encode = None
        if where == "ids":  # of a tokenizer that has seen one language only
            one = documents[-1]["source"]
            encode = FastTokenizer.train([d["text"] for d in documents if d["source"] == one],
                                     tokenizer.vocab_size).encode
        write_data(folder, change(documents) if change else documents, tokenizer, encode)
    if where in ("data", "ids"):
        tokens = folder / "tokens"
    with change() if where == "code" else contextlib.nullcontext():
        return judge(trained(config, folder, tokens), bands)


def curves(folder):
    """Return what a notebook draws of a run: its losses, its scores, what they are held to."""
    run = health.Record(folder)
    scores, measured = evaluate(run.model, run.tokens).values(), health.measure(run)
    held_out = {0: run.rows[0]["untrained"]} | {  # by step
        row["step"]: row["held_out"] for row in run.rows if "held_out" in row}
    other = [run.tokenizer.encode(run.tokenizer.decode(ids[1:-1])) != ids[1:-1].tolist()
             for documents in run.texts.values() for ids in documents]

    def short(numbers, digits=4):
        return [number and float(f"{number:.{digits}g}") for number in numbers]
    return {
        "loss": short(row["loss"] for row in run.rows),
        "gradient_norm": short((row["gradient_norm"] for row in run.rows), 3),
        "bits_per_nat": run.rows[0]["bits_per_byte"] / run.rows[0]["loss"],  # bits a byte, of these
        # Bits per byte, the mean of both languages.
        "held_out": [[step, *short([fmean(found.values())])] for step, found in held_out.items()],
        "unigram": fmean(s.unigram for s in scores), "floor": fmean(s.floor for s in scores),
        "measured": dict(zip(measured, short(measured.values()))),
        "sees the future": health.sees_the_future(run.model),
        "documents whose ids change when decoded and encoded": fmean(other)}


def healthy(config, folder, tokens, seeds):
    """Train healthy runs; return their folders."""
    return [trained(dataclasses.replace(config, seed=seed), folder / f"healthy-{seed}", tokens)
            for seed in seeds]


def small_bands(config, folder, tokens, seeds):
    """Return bands of healthy runs of a recipe."""
    measured = [health.measure(health.Record(run))
                for run in healthy(config, folder, tokens, seeds)]
    flat = {**dataclasses.asdict(config), **dataclasses.asdict(config.model)}
    return {"recipe": {name: flat[name] for name in RECIPE}, "seeds": len(measured),
            "bands": make_bands(measured)}


def config_of(run):
    """Return the TrainConfig of a finished run."""
    flat = health.Record(run).config  # the model's fields stand among the others

    def of(config_class):
        return {f.name: flat[f.name] for f in dataclasses.fields(config_class) if f.name in flat}
    return TrainConfig(**of(TrainConfig), model=ModelConfig(**of(ModelConfig)))


def table(config, folder, documents, tokenizer, tokens, bands, healthy_runs, judge=health.check):
    """Print what the check says of healthy runs and of every bug; return how often it is wrong."""
    failed = 0
    print(f"{'planted':<26}{'named':<7}what the check says", flush=True)
    for run in healthy(config, folder, tokens, range(10, 10 + healthy_runs)):
        report, causes = judge(run, bands)
        failed += bool(causes)
        print(f"{'nothing, another seed':<26}{'no' if causes else 'yes':<7}"
              f"{report.splitlines()[-1]}", flush=True)
    for name, (_, _, cause) in BUGS.items():
        report, causes = plant(name, config, documents, tokenizer,
                               folder / name.replace(" ", "-"), tokens, bands, judge)
        failed += causes != [cause]
        print(f"{name:<26}{'yes' if causes == [cause] else 'no':<7}"
              f"{'; '.join(read_json(health.CAUSES)[c] for c in causes) or 'healthy'}", flush=True)
    return failed


def store(found):
    """Write what the notebook draws, a run a line."""
    lines = [f"  {json.dumps(name)}: {json.dumps(run)}" for name, run in found.pop("runs").items()]
    rest = [f" {json.dumps(name)}: {json.dumps(value)}" for name, value in found.items()]
    with writing(STORED) as new:
        new.write_text("{\n" + ",\n".join(rest) + ',\n "runs": {\n' + ",\n".join(lines) + "}}\n")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--run", help="a finished run, whose recipe, data and bands are taken")
    parser.add_argument("--folder", default="runs/planted", help="where the runs go")
    parser.add_argument("--healthy", type=int, default=2, help="healthy runs to check as well")
    parser.add_argument("--stop", type=int, help="stop each run after so many steps: it is held to "
                                                 "the landmarks that it reached")
    parser.add_argument("--store", action="store_true", help=f"keep the curves in {STORED.name}")
    args = parser.parse_args(argv)
    if args.store and args.run:
        parser.error("--store keeps the small runs: give it without --run")
    if args.stop is not None and not args.run:
        parser.error("--stop goes with --run: bands of small runs need their ends")
    folder = pathlib.Path(args.folder) / \
        (f"own-{args.stop or 'whole'}" if args.run else "small")
    if args.run:
        run = pathlib.Path(args.run)
        config, tokens, bands = config_of(run), run / "tokens", None
        documents = list(read_documents(run / "clean.jsonl"))
        tokenizer = Tokenizer.load(run / "tokenizer.json")
    else:
        config, tokens, documents = SMALL, folder / "data" / "tokens", write_documents(2000, 60)
        tokenizer = FastTokenizer.train([d["text"] for d in documents], SMALL.model.vocab_size)
        if not tokens.exists():
            write_data(folder / "data", documents, tokenizer)
        bands = small_bands(config, folder, tokens, range(3))
    kept, names = {}, {name.replace(" ", "-"): name for name in BUGS}

    def judge(run, bands):
        report, causes = health.check(run, bands)
        if args.store:
            kept[names.get(run.name, run.name)] = curves(run) | {"named": causes}
        return report, causes
    with stopped_after(args.stop):
        failed = table(config, folder, documents, tokenizer, tokens, bands, args.healthy, judge)
    if args.store:
        store({"bands": bands, "runs": kept, "seeds": [
            health.measure(health.Record(folder / f"healthy-{seed}")) for seed in range(3)]})
    return failed


if __name__ == "__main__":
    sys.exit(main())
