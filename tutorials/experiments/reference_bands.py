"""Train healthy runs with several seeds and write the bands that `evaluate check` holds runs to.

    python tutorials/experiments/reference_bands.py                     # nanoseek/lab/bands.json
    python tutorials/experiments/reference_bands.py --seeds 2 --output b.json \\
        STORIES=400 TRAIN_ARGS="--steps 50"                             # scaled down

The recipe is that of `make train-tiny`, which does the work, 3 to 4 minutes a seed on two cores;
what stands after the flags goes to make. Stopped, the same command goes on where it was; a changed
recipe (word lists, Makefile, preset) starts anew. The seed decides the weights' start and the
order of the data; the data are the same.
"""

import argparse
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nanoseek.lab import health
from nanoseek.train import TRAIN_PRESETS

# What makes a run another recipe, rather than a sick one: bands of other numbers say nothing.
RECIPE = ("steps", "batch_size", "row_length", "optimizer", "schedule", "vocab_size",
          "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
          "num_key_value_heads", "tie_word_embeddings")
DATA = ("raw.jsonl", "clean.jsonl", "curation.json", "tokenizer.json", "tokens")
# A band reaches from the least healthy value over this factor to the greatest times it.
FACTORS = {"learning rate": 1.5, "gradient norm": 2.0, "repeats": 4.0, "different": 1.02,
           "first loss": 1.05}
FACTOR = 1.15


def recipe_hash(variables):
    """Return a short name of all that decides these runs, so that another recipe starts anew."""
    files = [ROOT / "Makefile", *sorted((ROOT / "nanoseek" / "corpus").glob("stories_*.txt"))]
    parts = [path.read_bytes() for path in files] + [repr((TRAIN_PRESETS, variables)).encode()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def train_seed(folder, seed, variables):
    """Train seed number `seed` in folder/seed-N with make; take the data of seed 0."""
    run, first = folder / f"seed-{seed}", folder / "seed-0"
    if run != first and not run.exists():
        half = folder / ".copying"
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir()
        for name in DATA:  # with their times, so that make redoes none of them
            copy = shutil.copytree if (first / name).is_dir() else shutil.copy2
            copy(first / name, half / name)
        os.replace(half, run)
    # Inside another make its flags must not reach this one.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    subprocess.run(["make", f"RUN={run}", f"SEED={seed}", *variables, f"{run}/cost.json"],
                   cwd=ROOT, env=environment, check=True)
    return run


def make_bands(measured):
    """Return {name: [least, most]} of several healthy runs' measures, of what all of them have."""
    bands = {}
    for name in measured[0]:
        values = [m[name] for m in measured if name in m]
        factor = next((f for start, f in FACTORS.items() if name.startswith(start)), FACTOR)
        if len(values) == len(measured):
            least = 0 if name.startswith("repeats") else min(values) / factor  # none is no fault
            bands[name] = [float(f"{least:.4g}"), float(f"{max(values) * factor:.4g}")]
    return bands


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5, help="healthy runs to train")
    parser.add_argument("--folder", default="runs/bands", help="where they go")
    parser.add_argument("--output", default=health.BANDS, help="the bands")
    parser.add_argument("variables", nargs="*", metavar="NAME=VALUE", help="for make")
    args = parser.parse_args(argv)
    if args.seeds < 2:
        parser.error("seeds must be at least 2: one run shows no spread")
    folder = pathlib.Path(args.folder).resolve() / recipe_hash(args.variables)
    runs = [health.Record(train_seed(folder, seed, args.variables)) for seed in range(args.seeds)]
    bands = {"recipe": {name: runs[0].config[name] for name in RECIPE},
             "seeds": args.seeds, "bands": make_bands([health.measure(r) for r in runs])}
    part = pathlib.Path(f"{args.output}.part")
    part.write_text(json.dumps(bands, indent=1) + "\n", encoding="utf-8")
    os.replace(part, args.output)
    print(f"{args.output}: {len(bands['bands'])} bands of {args.seeds} seeds")


if __name__ == "__main__":
    main()
