"""Measure data.py: the loader beside the tiny model that it feeds, and a build's time and memory.

    python tests/bench/bench_data.py loader     # tokens a second, served and consumed
    python tests/bench/bench_data.py build      # shards from ever more text: time and peak memory
"""

import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek import data, model, optim
from nanoseek.corpus.stories import stories
from nanoseek.fast.bpe import FastTokenizer


def story_documents(count, seed=0):
    return [{"text": story.text, "source": story.source}
            for language in ("en", "zh") for story in stories(language, count // 2, seed)]


def pace(step, seconds=5.0):
    """Call step() for so long; return the tokens that it says it handled in a second."""
    step()  # the first lays an epoch out, or warms the caches
    began, tokens = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        tokens += step()
    return tokens / (time.perf_counter() - began)


def loader(count=6000):
    """Serve batches of several sizes; train the tiny model on as it would be, in the same run."""
    documents = story_documents(count)
    tokenizer = FastTokenizer.train([d["text"] for d in documents], 2048)
    with tempfile.TemporaryDirectory() as folder:
        data.write_shards(documents, tokenizer.encode_batch, pathlib.Path(folder, "tokens"),
                          tokenizer.vocab_size, tokenizer.eot_id, batched=True)
        served = data.Loader(pathlib.Path(folder, "tokens"), 8, 256)
        net = model.Transformer(model.PRESETS["tiny"])
        optimizers = optim.build_optimizers(net, "muon", 5e-3, 0.1, 5.0)

        def train():
            inputs, targets, document_ids = served.next_batch()
            model.loss(net, inputs, targets, document_ids).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            return inputs.numel()
        consumed = pace(train)
        print(f"the tiny model trains on {consumed:,.0f} tokens a second")
        for size in ((8, 256), (64, 256), (8, 64), (8, 1024)):
            rate = pace(lambda: served.next_batch(*size).inputs.numel())
            print(f"batches of {size[0]:>2} x {size[1]:>4}: {rate:>12,.0f} tokens a second, "
                  f"{rate / consumed:,.0f} times as many")


def build(sizes=(10, 100, 1000)):
    """Build shards from so many megabytes of stories, each size in a process of its own."""
    for size in sizes:
        subprocess.run([sys.executable, __file__, "grow", str(size)], check=True)


def grow(megabytes):
    """Encode stories (the same ones again and again) as bytes: what is measured is the writer."""
    import resource
    documents = story_documents(2000)
    one = sum(len(d["text"].encode()) for d in documents) / 1e6
    repeated = (d for _ in range(round(int(megabytes) / one)) for d in documents)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        manifest = data.write_shards(repeated, lambda text: list(text.encode()),
                                     pathlib.Path(folder, "tokens"), 257, 256)
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    sources = manifest["splits"]["train"].values()
    print(f"{sum(s['bytes'] for s in sources) / 1e6:>7,.0f} MB, "
          f"{sum(s['documents'] for s in sources):>9,} documents in {seconds:>6.1f} s; peak memory "
          f"{peak / 1e3:,.0f} MB, {before / 1e3:,.0f} before", flush=True)


if __name__ == "__main__":
    parts = {"loader": loader, "build": build, "grow": grow}
    asked = sys.argv[1] if len(sys.argv) > 1 else "all"
    if asked == "all":
        loader()
        build()
    elif asked in parts:
        parts[asked](*sys.argv[2:])
    else:
        sys.exit(f"bench_data.py: {asked!r} is none of {', '.join(parts)}")
