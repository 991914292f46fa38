"""Measure the tokenizer beside its peers: tokenizers (Rust), tiktoken (Rust) and the naive way.

"plain" is the chapter, nanoseek/tokenizer.py; "fast" is fast/bpe.py with fast/encode.py; "saves" is
how many times faster that makes it.

    python tests/bench/bench_tokenizer.py                     # every section: about five minutes
    python tests/bench/bench_tokenizer.py train encode --english book.txt --chinese poems.txt
    python tests/bench/bench_tokenizer.py large --megabytes 100

    train        seconds to learn a vocabulary of 4096, tokenizers on all cores
    encode       MB/s of one process, the same pattern and merges for all
    split        bytes per token on held-out text, by split pattern, at one vocabulary size
    vocabulary   what a larger vocabulary saves in tokens and costs in weights
    long         one megabyte without a space
    large        100 MB: memory and speed along the way

Medians of several runs, ours and the peers in turn (the chapter, which is slow, runs once). Without paths, English is the language
reference that Python carries, Chinese the story grammar, and code the source of Python's library.
"""

import argparse
import json
import pathlib
import pydoc_data.topics
import resource
import statistics
import sys
import sysconfig
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import tokenizers
from tokenizers import Regex, models, pre_tokenizers, trainers

import diff_tokenizer as peers
from nanoseek import tokenizer as ours
from nanoseek.corpus.stories import stories
from nanoseek.fast.bpe import FastTokenizer

VOCAB_SIZE = 4096


# ---- corpora -----------------------------------------------------------------------------

def library_source(folder, limit=8_000_000):
    files = sorted(pathlib.Path(folder).glob("*.py")) + sorted(pathlib.Path(folder).glob("*/*.py"))
    text = "\n".join(f.read_text("utf-8", "replace") for f in files if "test" not in str(f))
    return text[:limit]


def corpora(args):
    """Return {name: text} of the texts to measure on."""
    read = lambda path: pathlib.Path(path).read_text("utf-8")
    return {
        "English": read(args.english) if args.english else
        "\n\n".join(pydoc_data.topics.topics.values()),
        "Chinese": read(args.chinese) if args.chinese else
        "\n".join(story.text for story in stories("zh", 10_000, 0)),
        "code": read(args.code) if args.code else library_source(sysconfig.get_paths()["stdlib"]),
    }


def documents(text, size=2000):
    """Cut a text at line ends into documents of about `size` characters."""
    lines, parts, length = text.splitlines(keepends=True), [[]], 0
    for line in lines:
        parts[-1].append(line)
        length += len(line)
        if length > size:
            parts.append([])
            length = 0
    return ["".join(part) for part in parts if part]


def megabytes(texts):
    return sum(len(text.encode()) for text in texts) / 1e6


def medians(repeats, **actions):
    """Run the actions in turn, `repeats` times over: {name: median seconds}."""
    seconds = {name: [] for name in actions}
    for _ in range(repeats):
        for name, action in actions.items():
            began = time.perf_counter()
            action()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


# ---- sections ----------------------------------------------------------------------------

def peer_training(texts, pattern, vocab_size):
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    peer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=vocab_size, min_frequency=2, show_progress=False,
        special_tokens=[ours.END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))


def naive_seconds(texts, merges, samples=6):
    """Estimate the time to learn all merges the naive way: time single steps along the way.

    The naive way keeps every occurrence of every chunk, and counts all pairs for each merge.
    """
    split = FastTokenizer([]).split
    steps = []
    for target in range(0, len(merges), len(merges) // samples):
        tokenizer = FastTokenizer(merges[:target], special_tokens=[])
        known = {chunk: tokenizer.encode(chunk) for chunk in {c for t in texts for c in split(t)}}
        chunks = [known[chunk] for text in texts for chunk in split(text)]
        began = time.perf_counter()
        naive_step(chunks, 256 + target)
        steps.append(time.perf_counter() - began)
    return statistics.mean(steps) * len(merges)


def naive_step(chunks, new_id):
    pairs = {}
    for chunk in chunks:
        for pair in zip(chunk, chunk[1:]):
            pairs[pair] = pairs.get(pair, 0) + 1
    best = min(pairs, key=lambda pair: (-pairs[pair], pair))
    merged = []
    for chunk in chunks:
        result, i = [], 0
        while i < len(chunk):
            if i + 1 < len(chunk) and (chunk[i], chunk[i + 1]) == best:
                result.append(new_id)
                i += 2
            else:
                result.append(chunk[i])
                i += 1
        merged.append(result)
    return merged


def once(action):
    """Return the seconds that an action takes, run once."""
    return medians(1, action=action)["action"]


def train(texts, args):
    print(f"\nTraining, vocabulary {VOCAB_SIZE}, seconds (median of {args.repeats}; plain once)")
    print(f"{'':18}{'MB':>6}{'plain':>8}{'fast':>8}{'saves':>7}{'tokenizers':>12}{'ratio':>7}"
          f"{'naive (estimate)':>18}{'×':>7}")
    for name, text in texts.items():
        parts = documents(text)
        for label, pattern in (("", ours.DEFAULT_PATTERN), (", GPT-2's", ours.GPT2_PATTERN)):
            plain = once(lambda: ours.Tokenizer.train(parts, VOCAB_SIZE, pattern=pattern))
            took = medians(args.repeats,
                           fast=lambda: FastTokenizer.train(parts, VOCAB_SIZE, pattern=pattern),
                           theirs=lambda: peer_training(parts, pattern, VOCAB_SIZE))
            line = (f"{name + label:18}{megabytes(parts):6.1f}{plain:8.2f}{took['fast']:8.2f}"
                    f"{plain / took['fast']:7.1f}{took['theirs']:12.2f}"
                    f"{took['fast'] / took['theirs']:7.2f}")
            if not label:
                merges = [*FastTokenizer.train(parts, VOCAB_SIZE).merges]
                naive = naive_seconds(parts, merges)
                line += f"{naive:18,.0f}{naive / took['fast']:7,.0f}"
            print(line, flush=True)


def encode(texts, args):
    print(f"\nEncoding, one process, MB/s (median of {args.repeats}; plain once)")
    print(f"{'':22}{'MB':>6}{'plain':>7}{'fast':>7}{'saves':>7}{'tokenizers':>12}"
          f"{'ratio':>7}{'tiktoken':>10}{'ratio':>7}")
    for name, text in texts.items():
        tokenizer = FastTokenizer.train([text], VOCAB_SIZE)
        plain = ours.Tokenizer(list(tokenizer.merges))
        peer = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.content()))
        encoding = peers.tiktoken_of(tokenizer, ours.DEFAULT_PATTERN)
        for label, parts in ((", one text", [text]), (", documents", documents(text))):
            plain.merge.cache_clear()
            took = {"plain": once(lambda: plain.encode_batch(parts)), **medians(
                args.repeats, fast=lambda: tokenizer.encode_batch(parts),
                theirs=lambda: [peer.encode(part) for part in parts],
                tiktoken=lambda: [encoding.encode_ordinary(part) for part in parts])}
            speed = {key: megabytes(parts) / seconds for key, seconds in took.items()}
            print(f"{name + label:22}{megabytes(parts):6.1f}{speed['plain']:7.2f}"
                  f"{speed['fast']:7.1f}{speed['fast'] / speed['plain']:7.1f}{speed['theirs']:12.1f}"
                  f"{speed['fast'] / speed['theirs']:7.1f}{speed['tiktoken']:10.1f}"
                  f"{speed['fast'] / speed['tiktoken']:7.2f}", flush=True)
            mine = [row.tolist() for row in tokenizer.encode_batch(parts)]
            assert mine == [row.tolist() for row in plain.encode_batch(parts)]
            assert mine == [encoding.encode_ordinary(part) for part in parts]
            assert mine == [peer.encode(part).ids for part in parts]


def split(texts, args):
    patterns = {"ours": ours.DEFAULT_PATTERN, "GPT-2": ours.GPT2_PATTERN, "Llama 3": peers.LLAMA3,
                "DeepSeek LLM": (*peers.DEEPSEEK, r"\p{N}")}
    print(f"\nBytes per token on the held-out last tenth, vocabulary {VOCAB_SIZE}, by split")
    print(f"{'':10}" + "".join(f"{name:>14}" for name in patterns))
    for name, text in texts.items():
        cut = len(text) * 9 // 10
        rates = []
        for pattern in patterns.values():
            tokenizer = FastTokenizer.train([text[:cut]], VOCAB_SIZE, pattern=pattern)
            rates.append(megabytes([text[cut:]]) * 1e6 / len(tokenizer.encode(text[cut:])))
        print(f"{name:10}" + "".join(f"{rate:14.3f}" for rate in rates), flush=True)


def vocabulary(texts, args):
    print("\nThe price of a vocabulary: held-out last tenth; FLOPs to train 2 layers × 128 on it")
    for name, text in texts.items():
        cut = len(text) * 9 // 10
        print(f"{name:10}{'ids':>8}{'bytes/token':>13}{'tokens/char':>13}{'head':>7}{'FLOPs':>11}")
        for size in (512, 1024, 2048, 4096, 8192, 16384):
            tokenizer = FastTokenizer.train([text[:cut]], size)
            tokens, head = len(tokenizer.encode(text[cut:])), tokenizer.vocab_size * 128
            weights = 12 * 2 * 128 ** 2 + head  # Kaplan et al. 2020, §2.1: 12 d² a layer, V d
            print(f"{'':10}{tokenizer.vocab_size:8,}{megabytes([text[cut:]]) * 1e6 / tokens:13.3f}"
                  f"{tokens / len(text[cut:]):13.3f}{head / weights:7.0%}"
                  f"{6 * weights * tokens:11.3g}", flush=True)


def long(texts, args):
    print("\nOne text of a million characters without a space, seconds (tiktoken beside it)")
    for name, text in texts.items():
        run = "".join(filter(str.isalpha, text))
        run = (run * (1 + 1_000_000 // len(run)))[:1_000_000]
        tokenizer = FastTokenizer.train([text], VOCAB_SIZE)
        encoding = peers.tiktoken_of(tokenizer, ours.DEFAULT_PATTERN)
        for size in (250_000, 500_000, 1_000_000):
            took = medians(1, ours=lambda: tokenizer.encode(run[:size]),
                           tiktoken=lambda: encoding.encode_ordinary(run[:size]))
            print(f"{name:10}{size:>10,} characters: {took['ours']:6.2f} ({took['tiktoken']:.2f})")


def large(texts, args):
    """Train on and encode many megabytes of Python source and Chinese, streamed from disk."""
    folders = [sysconfig.get_paths()[key] for key in ("stdlib", "purelib")]
    paths = [path for folder in folders for path in sorted(pathlib.Path(folder).rglob("*.py"))]
    chinese = documents(texts["Chinese"])

    def stream():
        total, number = 0, 0
        for path in paths:
            for text in (path.read_text("utf-8", "replace"), chinese[number % len(chinese)]):
                total, number = total + len(text.encode()), number + 1
                yield text
            if total > args.megabytes * 1e6:
                return

    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"\n{args.megabytes} MB, streamed: peak memory before {peak():,.0f} MB")
    began = time.perf_counter()
    tokenizer = FastTokenizer.train(stream(), 32768, progress=print)
    print(f"trained 32,768 ids in {time.perf_counter() - began:.0f} s; peak {peak():,.0f} MB")
    began, block, size = time.perf_counter(), [], 0
    for text in stream():
        block.append(text)
        size += len(text.encode())
        if size > 1e7:
            tokenizer.encode_batch(block)
            took, began = time.perf_counter() - began, time.perf_counter()
            print(f"encoded {size / 1e6:.0f} MB: {size / 1e6 / took:.1f} MB/s; peak {peak():,.0f} MB",
                  flush=True)
            block, size = [], 0


SECTIONS = {"train": train, "encode": encode, "split": split, "vocabulary": vocabulary,
            "long": long, "large": large}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--english", help="a text file")
    parser.add_argument("--chinese", help="a text file")
    parser.add_argument("--code", help="a text file")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--megabytes", type=int, default=100, help="of the section large")
    args = parser.parse_args()
    unknown = set(args.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"no section {unknown.pop()}: there are {', '.join(SECTIONS)}")
    texts = corpora(args)
    for name in args.sections or SECTIONS:
        SECTIONS[name](texts, args)


if __name__ == "__main__":
    main()
