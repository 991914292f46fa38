"""curate.py on planted dirt, whose labels say what should go; splits, the report, the command."""

import collections
import json
import pathlib
import random
import re
import subprocess
import sys

import pytest
from sample_texts import GOOD, documents_of

from nanoseek import corpus, curate as installed, duplicates
from nanoseek.corpus import cleaning
from nanoseek.corpus.stories import stories
from nanoseek.fast import pairs
from nanoseek.lab import stages

MODULE = "nanoseek.curate"


def grams(text):
    return {text[i:i + 5] for i in range(max(1, len(text) - 4))}


def true_jaccard(left, right):
    return len(grams(left) & grams(right)) / len(grams(left) | grams(right))


def bilingual(count, seed=0):
    return [{"text": story.text, "source": story.source}
            for language in ("en", "zh") for story in stories(language, count // 2, seed)]


def test_stories_and_the_python_documentation_survive_the_rules(module):
    documents = bilingual(600) + corpus.python_docs()
    _, report = module.curate(documents)
    broken = [report["removed"][rule] for rule in cleaning.LIMITS if rule in report["removed"]]
    assert sum(entry["documents"] for entry in broken) <= 0.02 * (len(documents) - 600)
    assert not any(cleaning.broken_rule(d["text"]) for d in documents[:600])


# The whole ---------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.3, 0.8])
def test_planted_dirt_goes_and_clean_documents_stay(module, share):
    clean = bilingual(1200)
    kept_clean = {d["text"] for d in module.curate(clean)[0]}
    dirty, labels = corpus.plant_dirt([d for d in clean if d["text"] in kept_clean], 7, share)
    kept, report = module.curate([d | {"id": n} for n, d in enumerate(dirty)])
    survivors = {d["id"]: d["text"] for d in kept}
    missed = collections.defaultdict(list)
    for number, label in enumerate(labels):
        text = module.normalise(dirty[number]["text"])
        if label.kind in ("exact", "format", "near"):
            original = module.normalise(dirty[label.original]["text"])
            if label.kind != "near" or true_jaccard(text, original) >= 0.8:
                missed[label.kind].append(number in survivors and label.original in survivors)
        elif label.kind != "clean":
            missed[label.kind].append(survivors.get(number) == text)
    # One copy of each of the four passages stays, and so does what fewer than five pages have.
    allowed = {"passage": 4, "boilerplate": 0.2 * len(missed["boilerplate"])}
    for kind, flags in missed.items():
        assert sum(flags) <= allowed.get(kind, 0.02 * len(flags)), (kind, sum(flags), len(flags))
    # A clean document goes only when a copy of it stays in its place.
    groups = collections.defaultdict(set)
    for number, label in enumerate(labels):
        groups[label.original if label.original is not None else number].add(number)
    lost = [n for n, label in enumerate(labels) if label.kind == "clean"
            and not groups[n] & set(survivors)]
    assert len(lost) <= 0.03 * sum(label.kind == "clean" for label in labels)


def test_the_fast_search_of_pairs_changes_nothing(module):
    dirty, _ = corpus.plant_dirt(bilingual(600), 5, 0.5)
    plain, fast = module.curate(dirty), module.curate(dirty, None, pairs.find_near_duplicates)
    assert fast == plain and plain[1]["removed"]["near-duplicate"]["documents"] > 20


def test_every_kept_document_has_a_split_that_only_its_text_decides(module):
    documents = bilingual(2000)
    kept, _ = module.curate(documents)
    split = {d["text"]: d["split"] for d in kept}
    assert set(split.values()) == {"train", "held_out"}
    share = sum(s == "held_out" for s in split.values()) / len(split)
    assert 0.01 < share < 0.03
    fewer, _ = module.curate(documents[::-1][:1500])
    both = [d for d in fewer if d["text"] in split]
    assert len(both) > 1300 and all(split[d["text"]] == d["split"] for d in both)


def test_a_small_source_has_a_held_out_document_too(module):
    documents = documents_of(GOOD)
    kept, _ = module.curate(documents)
    assert [d["split"] for d in kept].count("held_out") == 1
    kept, _ = module.curate(documents, module.CurateConfig(held_out=0))
    assert {d["split"] for d in kept} == {"train"}


def test_a_given_split_stays_and_its_text_with_it(module):
    rough = "tick tock " * 400
    halves = [{"text": rough, "source": "clock", "split": "train"},
              {"text": rough.replace("tick", "knock"), "source": "clock", "split": "held_out"}]
    kept, _ = module.curate(halves)
    assert [d | {"text": d["text"] + " "} for d in kept] == halves


def passages(rng, count, words):
    """Return texts of random words, which have nothing in common."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [" ".join("".join(rng.choices(letters, k=rng.randrange(2, 9))) for _ in range(words))
            for _ in range(count)]


@pytest.mark.parametrize("fast", [False, True])
def test_no_held_out_text_is_left_in_training(module, fast):
    rng = random.Random(4)
    find = (pairs if fast else duplicates).find_near_duplicates
    # Near-copies, in another source, of the one or two documents that a source holds out.
    held = passages(rng, 2, 150)
    documents = [{"text": text, "source": "bench", "split": "held_out"} for text in held]
    copies = [text.split() for text in held for _ in range(4)]
    for n, copy in enumerate(copies):
        copy[5 + n::30] = ["other"] * len(copy[5 + n::30])
        documents.append({"text": " ".join(copy), "source": "web"})
    documents += [{"text": text, "source": "web"} for text in passages(rng, 30, 100)]
    kept, _ = module.curate(documents, find_near_duplicates=find)
    assert not any("other" in d["text"] for d in kept) and len(kept) == 32
    # All splits are given, and what is held out stands within longer training texts.
    hosts, long, short = (passages(rng, 9, words) for words in (90, 90, 20))
    documents = [{"text": text, "source": "a", "split": "held_out"} for text in long + short]
    documents += [{"text": f"{host}\n\n{inner}\n\n{host[::-1]}", "source": "b", "split": "train"}
                  for host, inner in zip(hosts * 2, long + short)]
    kept, report = module.curate(documents, find_near_duplicates=find)
    training = [d["text"] for d in kept if d["split"] == "train"]
    assert not any(inner[20:-20] in text for inner in long for text in training)
    assert not any(inner in text for inner in short for text in training)
    assert report["cut"]["quotes held-out text"]["documents"] >= 18
    assert sorted(d["text"] for d in kept if d["split"] == "held_out") == sorted(long + short)


def test_held_out_text_that_became_short_or_has_siblings_is_not_left_in_training(module):
    shared, own = passages(random.Random(3), 2, 60)
    documents = [{"text": "Here it begins.\n" + shared, "source": "a", "split": "held_out"},
                 {"text": f"{shared}\n{own[:90]}", "source": "b"},
                 {"text": f"A letter came. {own[:90]} Then we slept.", "source": "c",
                  "split": "train"}]
    kept, _ = module.curate(documents, module.CurateConfig(held_out=0.99))
    assert not any(own[:60] in d["text"] for d in kept if d["split"] == "train")
    questions = [f"In which part of the world lies the country of {name}?"
                 for name in ("Mali", "Togo", "Cuba")]
    documents = [{"text": text, "source": "q", "split": "held_out"} for text in questions]
    documents += [{"text": f"She asked me: {text} And nobody said a word that evening.",
                   "source": "q", "split": "train"} for text in questions]
    kept, _ = module.curate(documents)
    training = " ".join(d["text"] for d in kept if d["split"] == "train")
    assert training and not any(text in training for text in questions)
    with pytest.raises(ValueError, match='document 1: "split" must be'):
        module.curate([{"text": "one two three", "source": "s", "split": "test"}])


def test_a_text_goes_only_if_it_is_near_one_that_is_kept(module):
    words = passages(random.Random(6), 1, 300)[0].split()
    windows = [" ".join(words[start:start + 150]) for start in range(0, 144, 12)]
    kept, report = module.curate([{"text": text, "source": "s"} for text in windows],
                                 module.CurateConfig(passage_letters=0, held_out=0))
    left = [d["text"] for d in kept]
    assert 2 <= len(left) < len(windows)
    assert all(text in left or max(duplicates.jaccard(text, other) for other in left) >= 0.8
               for text in windows)
    assert re.search(r"is to \d\d% like", report["removed"]["near-duplicate"]["examples"][0])


def test_training_loses_what_the_held_out_documents_have(module):
    rng = random.Random(8)
    words = "the of and to old river mill stone bridge winter garden road lamp window and a".split()
    held = [" ".join(rng.choices(words, k=120)) + "." for _ in range(4)]
    near = " ".join(held[1].split()[:118]) + " closed."
    part = "It had been said before that " + held[2][:450] + " and so the tale went on to its end."
    documents = [{"text": text, "source": "s", "split": "train"} for text in (held[0], near)]
    documents += [{"text": part, "source": "s"}]
    documents += [{"text": text, "source": "s", "split": "held_out"} for text in held]
    kept, report = module.curate(documents)
    assert [d["text"] for d in kept if d.get("split") == "held_out" and d["text"] in held] == held
    train = " ".join(d["text"] for d in kept if d["text"] not in held)
    assert held[0] not in train and near not in train
    assert held[2][100:400] not in train and "It had been said before" in train


def test_probabilities_stay_with_unchanged_texts_only(module):
    documents = [{"text": GOOD[0], "source": "s", "log2_probability": -50.0},
                 {"text": GOOD[1] + "  ", "source": "s", "log2_probability": -60.0}]
    kept, _ = module.curate(documents)
    assert [d.get("log2_probability") for d in kept] == [-50.0, None]
    assert documents[1]["log2_probability"] == -60.0 and "split" not in documents[0]


def test_only_unequal_parts_of_one_text_are_taken_for_its_halves(module):
    rng = random.Random(2)
    saga = "".join(rng.choices("ACGT", k=40_000))  # any two long parts share all 5-grams
    halves = [{"text": saga[:36_000], "source": "dna", "split": "train"},
              {"text": saga[36_000:], "source": "dna", "split": "held_out"}]
    assert len(module.curate(halves)[0]) == 2
    held, other = passages(rng, 2, 150)
    copy = held.replace(held[300:310], "other word")
    pair = [{"text": copy, "source": "a", "split": "train"},
            {"text": held, "source": "a", "split": "held_out"}]
    with pytest.raises(ValueError, match="no document is left to train on; gone: near-duplicate"):
        module.curate(pair)
    more = [*pair, {"text": other, "source": "b", "split": "train"}]
    assert [d["text"] for d in module.curate(more)[0]] == [held, other]


def test_a_language_of_three_bytes_a_letter_is_cut_no_sooner(module):
    shared = "".join(random.Random(1).choices("दनमकरत सलपयजब", k=200))  # 550 bytes or so
    documents = [{"text": f"{word} {shared}", "source": "s"} for word in passages(random.Random(3), 2, 60)]
    assert "repeated passages" not in module.curate(documents, module.CurateConfig(
        quality=False, threshold=0, held_out=0))[1]["cut"]


def test_shared_passages_are_cut_but_not_out_of_stories(module):
    shared = bilingual(2)[0]["text"]
    assert len(shared) > 300
    documents = [{"text": f"{GOOD[0]} {shared}", "source": "s"},
                 {"text": f"{GOOD[3]}\n{shared}", "source": "s"}]
    kept, report = module.curate(documents)
    assert report["cut"]["repeated passages"]["documents"] == 1
    assert sorted(shared in d["text"] for d in kept) == [False, True]
    scored = [d | {"log2_probability": -9.0} for d in documents]
    assert [d["text"] for d in module.curate(scored)[0]] == [d["text"] for d in documents]


def test_the_report_accounts_for_every_document(module):
    dirty, _ = corpus.plant_dirt(bilingual(600), 3, 0.5)
    kept, report = module.curate(dirty)
    totals, removed = report["totals"], report["removed"]
    assert totals["in"]["documents"] == len(dirty) and totals["out"]["documents"] == len(kept)
    assert sum(e["documents"] for e in removed.values()) == len(dirty) - len(kept)
    assert all(1 <= len(entry["examples"]) <= 3 for entry in removed.values())
    assert totals["out"]["bytes"] == sum(len(d["text"].encode()) for d in kept)
    gone = [*removed.values(), *report["cut"].values()]
    assert totals["in"]["bytes"] - totals["out"]["bytes"] == sum(e["bytes"] for e in gone)
    assert report["cut"]["spelling and spaces"]["documents"] > 9
    json.dumps(report, allow_nan=False)
    lines = stages.curation_table(report).splitlines()
    assert len(lines) == len(totals) + len(removed) + len(report["cut"])


@pytest.mark.parametrize("documents, message", [
    ([{"source": "s"}], "document 1"), ([{"text": GOOD[0], "source": 3}], "document 1"),
    ([GOOD[0]], "document 1"),
    ([{"text": " \n", "source": "s"}], "no document is left"), ([], "no document is left"),
])
def test_documents_that_cannot_be_curated_are_refused(module, documents, message):
    with pytest.raises(ValueError, match=message):
        module.curate(documents)


@pytest.mark.parametrize("setting", [{"held_out": 1.0}, {"held_out": -0.1}, {"threshold": 2.0},
                                     {"passage_letters": 5}, {"boilerplate": 1}])
def test_settings_out_of_range_are_refused(module, setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        module.CurateConfig(**setting)


def test_every_stage_can_be_turned_off(module):
    off = module.CurateConfig(quality=False, boilerplate=0, threshold=0, passage_letters=0)
    kept, report = module.curate([{"text": "short", "source": "s"}], off)
    assert len(kept) == 1 and report["removed"] == {}


def test_a_document_of_boilerplate_alone_is_removed(module):
    menu = "Home | Stories | Weather | About us", "Copyright Green Lane Press. All rights."
    frames = ["\n".join([menu[0], f"On page {n} the old mill burns.", menu[1]]) for n in range(6)] + ["\n".join(menu)]
    kept, report = module.curate(documents_of(frames), module.CurateConfig(quality=False, threshold=0))
    assert [d["text"] for d in kept] == [f"On page {n} the old mill burns." for n in range(6)]
    assert {name: entry["documents"] for name, entry in report["removed"].items()} == {
        "boilerplate throughout": 1}


def test_a_long_document_and_many_copies(module):
    rng = random.Random(0)
    words = " ".join(d["text"] for d in bilingual(400)[:200]).split()
    long = " ".join(rng.choices(words, k=600_000))  # 3 MB
    documents = [{"text": long, "source": "s"}] + [{"text": GOOD[1], "source": "s"}] * 30_000
    kept, report = module.curate(documents)
    assert len(kept) == 2 and report["removed"]["copy"]["documents"] == 29_999


# The command -------------------------------------------------------------------------------

def run(folder, *arguments, **more):
    return subprocess.run([sys.executable, "-m", "nanoseek.curate", *arguments], cwd=folder,
                          capture_output=True, text=True, encoding="utf-8",
                          env={"PYTHONPATH": str(pathlib.Path(installed.__file__).parents[1]),
                               "PYTHONIOENCODING": "utf-8", "PYTHONDONTWRITEBYTECODE": "1"},
                          **more)  # a full disk must not cut a module's bytecode short


def test_the_command_writes_clean_documents_and_the_report(tmp_path):
    corpus.write_documents(bilingual(200), tmp_path / "raw.jsonl")
    done = run(tmp_path, "raw.jsonl", "out/clean.jsonl", "--held_out", "0.1")
    assert done.returncode == 0, done.stderr
    kept = list(corpus.read_documents(tmp_path / "out" / "clean.jsonl"))
    report = json.loads((tmp_path / "out" / "curation.json").read_text("utf-8"))
    assert {d["split"] for d in kept} == {"train", "held_out"}
    assert report["totals"]["out"]["documents"] == len(kept)
    assert done.stdout.startswith("in ") and "out, held_out" in done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_the_plain_chapter_alone_writes_the_same_files(tmp_path):
    corpus.write_documents(corpus.plant_dirt(bilingual(300), 2, 0.5)[0], tmp_path / "raw.jsonl")
    for folder, fast in (("fast", "true"), ("plain", "false")):
        done = run(tmp_path, "raw.jsonl", f"{folder}/clean.jsonl", "--fast", fast)
        assert done.returncode == 0, done.stderr
    for name in ("clean.jsonl", "curation.json"):
        assert (tmp_path / "fast" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()


@pytest.mark.parametrize("line, message", [
    (b"{broken", "line 2"), (b'{"source": "s"}', "line 2"), (b'"\xff"', "line 2"),
])
def test_a_broken_line_is_named_and_nothing_is_written(tmp_path, line, message):
    (tmp_path / "raw.jsonl").write_bytes(b'{"text": "fine", "source": "s"}\n' + line + b"\n")
    done = run(tmp_path, "raw.jsonl", "clean.jsonl")
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["raw.jsonl"]


def test_a_full_disk_leaves_what_was_there(tmp_path):
    resource = pytest.importorskip("resource", reason="Windows has no limit on files to try")
    corpus.write_documents(bilingual(200), tmp_path / "raw.jsonl")
    (tmp_path / "clean.jsonl").write_text("old")

    def files_of_5_kb():
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
    done = run(tmp_path, "raw.jsonl", "clean.jsonl", preexec_fn=files_of_5_kb)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "clean.jsonl").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"clean.jsonl", "curation.json", "raw.jsonl"}


def test_neither_the_output_nor_the_report_replaces_the_input(tmp_path):
    for name, output in (("raw.jsonl", "raw.jsonl"), ("curation.json", "clean.jsonl"),
                         ("raw.jsonl", "curation.json")):
        (tmp_path / name).write_text('{"text": "one", "source": "s"}\n', encoding="utf-8")
        done = run(tmp_path, name, output)
        assert done.returncode == 2 and "read and written" in done.stderr
        assert "one" in (tmp_path / name).read_text(encoding="utf-8")


def test_a_stage_that_is_killed_is_done_again(tmp_path, monkeypatch):
    """clean.jsonl, which make looks at, is written last."""
    from nanoseek.lab import stages
    corpus.write_documents(bilingual(200), tmp_path / "raw.jsonl")

    def killed(documents, path):
        assert (tmp_path / "curation.json").is_file()
        raise KeyboardInterrupt
    monkeypatch.setattr(stages, "write_documents", killed)
    with pytest.raises(KeyboardInterrupt):
        stages.clean([str(tmp_path / "raw.jsonl"), str(tmp_path / "clean.jsonl")])
    assert not (tmp_path / "clean.jsonl").exists()
