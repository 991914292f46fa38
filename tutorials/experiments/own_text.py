"""How many steps is a text worth, and with which vocabulary? Trials on real texts.

    python tutorials/experiments/own_text.py TEXT … --steps 0 100 200 400   # train, and store
    python tutorials/experiments/own_text.py                                # print what is stored

Each text goes the way of `make train-tiny TEXT=…`: curated, encoded with a vocabulary by its size,
trained with the preset `own` for so many steps (0: what scale/sizing.py says), scored on what was
held out. own_text.json keeps a row for each trial: the scores of the best checkpoint and of the last.
The first trials stored only the last, and their seconds are those of a busy machine.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from nanoseek.corpus.own_text import read_text
from nanoseek.curate import curate
from nanoseek.data import read_manifest, write_shards
from nanoseek.evaluate import evaluate
from nanoseek.fast import pairs
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.lab.subject import open_subject
from nanoseek.scale.sizing import vocabulary
from nanoseek.train import TRAIN_PRESETS, train

STORE = pathlib.Path(__file__).with_name("own_text.json")


def prepare(text, vocab_size, folder):
    """Curate a text, train a tokenizer on it and encode it; return its manifest."""
    documents, _ = curate(read_text(text), find_near_duplicates=pairs.find_near_duplicates)
    texts = [document["text"] for document in documents if document["split"] == "train"]
    size = sum(len(text.encode()) for text in texts)
    tokenizer = FastTokenizer.train(texts, vocab_size or vocabulary(size))
    tokenizer.save(folder / "tokenizer.json")
    write_shards(documents, tokenizer.encode_batch, folder / "tokens", tokenizer.vocab_size,
                 tokenizer.eot_id, folder / "tokenizer.json", batched=True)
    return read_manifest(folder / "tokens")


def trial(text, steps, vocab_size, threads):
    """Train once; return the row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        manifest = prepare(text, vocab_size, folder)
        preset = TRAIN_PRESETS["own"]
        run = train(dataclasses.replace(
            preset, out=str(folder), steps=steps, threads=threads, memorise=True,
            warmup_steps=min(preset.warmup_steps, max(1, (steps or 99) // 4)),
            model=dataclasses.replace(preset.model, vocab_size=manifest["vocab_size"])))
        best = open_subject(folder)
        scores = {"best": evaluate(best.model, folder / "tokens"),
                  "end": evaluate(run.model, folder / "tokens")}
        [(source, score)] = scores["best"].items()
        entry = manifest["splits"]["train"][source]
        return {"text": pathlib.Path(text).name, "bytes": entry["bytes"],
                "tokens": entry["tokens"], "vocab_size": manifest["vocab_size"],
                "ruled": not steps, "steps": run.step, "epochs": run.tokens / entry["tokens"],
                "seconds": run.seconds, "unigram": score.unigram,
                **{when: found[source].bits_per_byte for when, found in scores.items()}}


def show(rows):
    """Print a line for each trial; those with a star took the steps of the rule."""
    print(f"{'text':<22}{'MB':>7}{'ids':>6}{'steps':>8}{'epochs':>7}{'seconds':>8}{'best':>7}"
          f"{'end':>7}{'unigram':>8}")
    for row in sorted(rows, key=lambda row: (row["bytes"], row["text"], row["steps"])):
        scores = [f"{row[name]:.3f}" if row[name] else "-" for name in ("best", "end", "unigram")]
        print(f"{row['text']:<22}{row['bytes'] / 1e6:>7.2f}{row['vocab_size']:>6}{row['steps']:>7}"
              f"{'*' if row['ruled'] else ' '}{row['epochs']:>7.1f}{row['seconds']:>8.0f}"
              f"{scores[0]:>7}{scores[1]:>7}{scores[2]:>8}")
    print("\nThe rule's run beside the best of all trials of its text:")
    for ruled in (row for row in rows if row["ruled"]):
        trials = [row["best"] or row["end"] for row in rows if row["text"] == ruled["text"]]
        if len(trials) > 1:
            print(f"{ruled['text']:<22}{len(trials):>3} trials, best {min(trials):.3f}, "
                  f"the rule's {ruled['best'] / min(trials) - 1:+.1%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("texts", nargs="*")
    parser.add_argument("--steps", nargs="+", type=int, default=[0])
    parser.add_argument("--vocab_size", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    rows = json.loads(STORE.read_text("utf-8")) if STORE.exists() else []
    for text in args.texts:
        for steps in args.steps:
            rows.append(trial(text, steps, args.vocab_size, args.threads))
            STORE.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    show(rows)


if __name__ == "__main__":
    main()
