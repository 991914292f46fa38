"""What does curation do to training? Equal tokens from a dirty crawl and from its curated half.

    python tutorials/experiments/dirt.py            # all runs that dirt.json lacks; the curve
    python tutorials/experiments/dirt.py --runs 1   # only the next one

A pool of stories is crawled at several shares of dirt (`plant_dirt`: copies, near-copies,
boilerplate, junk, in equal parts). A small model is trained twice on as many tokens: on the crawl
as it is, and on what `curate` left of it. Both are scored on the same held-out stories, which are
clean and have no near-duplicate in the pool or any crawl. The tokenizer is that of the clean pool
for all runs, so that what is compared is the training alone. Each seed draws its own dirt, weights
and order. Half a minute a run on one core; results go to dirt.json one by one, the curve to
dirt.svg.
"""

import argparse
import contextlib
import json
import os
import pathlib
import statistics
import sys
import tempfile

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from nanoseek.corpus import plant_dirt
from nanoseek.curate import CurateConfig, curate
from nanoseek.data import write_shards
from nanoseek.fast.pairs import find_near_duplicates
from nanoseek.model import ModelConfig
from nanoseek.corpus.stories import stories
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.train import TrainConfig, train

SHARES = (0.0, 0.22, 0.5, 0.75, 0.9)  # 22% to 90% are the duplicates of DeepSeek LLM's Table 1
CORPORA = ("dirty", "curated")
SEEDS = (0, 1, 2)
POOL, HELD_OUT = 2000, 100  # stories in each language
MODEL = ModelConfig(vocab_size=1024, hidden_size=64, intermediate_size=176, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256)
TRAINING = dict(steps=300, batch_size=8, row_length=256, eval_every=300, save_every=300, keep=1)
SETUP = {"pool": POOL, "held_out": HELD_OUT, **TRAINING, "hidden_size": MODEL.hidden_size,
         "num_hidden_layers": MODEL.num_hidden_layers, "vocab_size": MODEL.vocab_size}


def story_documents(count, seed):
    return [{"text": story.text, "source": story.source}
            for language in ("en", "zh") for story in stories(language, count, seed)]


def without_near(documents, others, threshold):
    """Return the documents that have no near-duplicate among others."""
    texts = [document["text"] for document in documents + others]
    near = {n for cluster in find_near_duplicates(texts, threshold) for n in cluster
            if cluster[-1] >= len(documents)}
    return [document for n, document in enumerate(documents) if n not in near]


def corpus(pool, share, kind, seed):
    """Return (training documents, held-out documents) of a run."""
    held_out = without_near(story_documents(HELD_OUT, seed=5), pool, 0.6)
    crawl = plant_dirt(pool, seed, share)[0]
    assert without_near(held_out, crawl, 0.8) == held_out, "a held-out story is in the crawl"
    if kind == "curated":
        crawl = curate(crawl, CurateConfig(held_out=0), find_near_duplicates)[0]
    return crawl, [document | {"split": "held_out"} for document in held_out]


def run(share, kind, seed, folder):
    """Train and score once; return the result, fit for JSON."""
    pool = story_documents(POOL, seed=4)
    documents, held_out = corpus(pool, share, kind, seed)
    tokenizer = FastTokenizer.train([d["text"] for d in pool], MODEL.vocab_size)
    tokenizer.save(folder / "tokenizer.json")
    manifest = write_shards(documents + held_out, tokenizer.encode_batch, folder / "tokens",
                            tokenizer.vocab_size, tokenizer.eot_id, folder / "tokenizer.json",
                            batched=True)
    with open(os.devnull, "w") as quiet, contextlib.redirect_stdout(quiet):
        if train(TrainConfig(out=str(folder), seed=seed, model=MODEL, **TRAINING)) is None:
            raise KeyboardInterrupt
    bits = json.loads((folder / "cost.json").read_text("utf-8"))["bits_per_byte"]
    sizes = {source: entry["bytes"] for source, entry in manifest["splits"]["held_out"].items()}
    return {"share": share, "corpus": kind, "seed": seed, "documents": len(documents),
            "tokens": sum(entry["tokens"] for entry in manifest["splits"]["train"].values()),
            "bits_per_byte": sum(bits[s] * sizes[s] for s in sizes) / sum(sizes.values())}


def load(path=HERE / "dirt.json"):
    """Return the results so far; refuse those of another set-up."""
    if not path.exists():
        return []
    stored = json.loads(path.read_text("utf-8"))
    if stored["setup"] != SETUP:
        sys.exit(f"{path} is of another set-up: move it away")
    return stored["results"]


def store(results, path=HERE / "dirt.json"):
    part = path.with_suffix(".writing")
    rows = ",\n".join(json.dumps(result) for result in results)
    part.write_text(f'{{"setup": {json.dumps(SETUP)},\n"results": [\n{rows}\n]}}\n', "utf-8")
    os.replace(part, path)


def summary(results):
    """Return {corpus: [(share, mean, lowest, highest of the seeds)]} of bits per byte."""
    found = {}
    for kind in CORPORA:
        for share in SHARES:
            bits = [r["bits_per_byte"] for r in results
                    if (r["share"], r["corpus"]) == (share, kind)]
            if bits:
                found.setdefault(kind, []).append(
                    (share, statistics.mean(bits), min(bits), max(bits)))
    return found


def plot(results):
    """Draw bits per byte over the share of dirt, with the range of the seeds; return the figure."""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for (kind, rows), colour in zip(summary(results).items(), ("#d0662c", "#3b82c4")):
        shares, means, low, high = zip(*rows)
        axes.fill_between(shares, low, high, color=colour, alpha=0.25, linewidth=0)
        axes.plot(shares, means, "o-", color=colour)
        axes.annotate(kind, (shares[-1], means[-1]), (6, 0), textcoords="offset points",
                      color=colour, va="center")
    axes.set(xlabel="share of dirty documents in the crawl", ylabel="held-out bits per byte",
             xlim=(-0.02, 1.06))
    return figure


def report(results):
    print("share of dirt   corpus     documents     tokens   epochs   bits/byte (the seeds' range)")
    trained = TRAINING["steps"] * TRAINING["batch_size"] * TRAINING["row_length"]
    for kind, rows in summary(results).items():
        for share, mean, low, high in rows:
            one = next(r for r in results if (r["share"], r["corpus"]) == (share, kind))
            print(f"{share:>13.0%}   {kind:<8}{one['documents']:>12,}{one['tokens']:>11,}"
                  f"{trained / one['tokens']:>9.2f}   {mean:.3f} ({low:.3f} to {high:.3f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, help="at most so many runs (default: all missing)")
    limit = parser.parse_args().runs
    results = load()
    done = {(r["share"], r["corpus"], r["seed"]) for r in results}
    missing = [(share, kind, seed) for seed in SEEDS for share in SHARES for kind in CORPORA
               if (share, kind, seed) not in done]
    for share, kind, seed in missing[:limit]:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(share, kind, seed, pathlib.Path(folder)))
        store(results)
        print(results[-1], flush=True)
    report(results)
    if len(missing) <= (limit if limit is not None else len(missing)):
        plot(results).savefig(HERE / "dirt.svg", bbox_inches="tight")


if __name__ == "__main__":
    main()
