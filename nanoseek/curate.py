r"""Clean raw documents: normalise, judge, drop copies, hold some out, and say what went and why.

    python -m nanoseek.curate raw.jsonl clean.jsonl          # and curation.json beside it

    [{"text": "A cat sat here, as it did most days.  \r\n", "source": "web"}, …] →
    [{"text": "A cat sat here, as it did most days.", "source": "web", "split": "train"}, …]

Stages, in this order (the report counts what each removed, and shows examples):
    normalise        one spelling for each text: NFC and the safe part of NFKC (Unicode Annex 15)
    copies           equal texts, and texts equal but for case, spacing, punctuation and width
    boilerplate      first and last lines that many documents share are taken off
    quality          no broken rule, and no foreign script (corpus/cleaning.py)
    near-duplicates  Jaccard index of 5-grams of characters at least 0.8 (duplicates.py)
    split            "train" or "held_out" for every document, by a hash of its text
    passages         what an earlier document has as well is cut out (corpus/passages.py);
                     the reader's own long texts come first, then what is held out: so
                     training loses what both have

A document that comes with a split belongs to one long text of the reader's: it keeps its split,
and neither the quality rules nor the cutting of boilerplate and passages touch it.
"""

import collections
import dataclasses
import hashlib
import re

from nanoseek import cli, duplicates
from nanoseek.cli import setting
from nanoseek.corpus import cleaning
from nanoseek.corpus.cleaning import cut, fold, normalise
from nanoseek.corpus.passages import repeated_passages


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """What to remove and how much to hold out; 0 turns a stage off."""

    held_out: float = setting(0.02, "share of each source never trained on", least=0, below=1)
    quality: bool = setting(True, "apply the quality rules")
    boilerplate: int = setting(5, "documents that share a first or last line until it is cut")
    threshold: float = setting(0.8, "Jaccard index of near-duplicates", least=0, most=1)
    passage_bytes: int = setting(300, "length from which a repeated passage is cut out")

    def __post_init__(self):
        cli.check_limits(self)
        for name, least in (("boilerplate", 2), ("passage_bytes", 32)):
            if (value := getattr(self, name)) and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}, or 0")


def curate(documents, config=None, find_near_duplicates=duplicates.find_near_duplicates):
    """Return (kept documents, report) for raw documents, each {"text", "source", …}.

    Kept documents are in the order they came in, each with a "split"; the given ones are not
    changed. A story whose text was changed loses its "log2_probability", which no longer describes
    it. The report is a dict ready for JSON. Raises ValueError for a document without text or
    source, and when nothing is left.
    """
    config = config or CurateConfig()
    report = {"totals": {}, "removed": {}, "cut": {}}
    kept = without_copies(normalised(documents, report), report)
    given = {id(document) for document in kept if "split" in document}
    if config.boilerplate:
        cut_boilerplate([d for d in kept if id(d) not in given], config.boilerplate, report)
    if config.quality:
        faults = cleaning.faults([document["text"] for document in kept])
        drop(report, kept, {id(document): fault for document, fault in zip(kept, faults)
                            if fault and id(document) not in given})
    drop(report, kept, {id(d): "empty" for d in kept if not d["text"]})  # boilerplate alone
    if config.threshold:
        copies = near_duplicates(kept, config.threshold, find_near_duplicates)
        drop(report, kept, dict.fromkeys(copies, "near-duplicate"))
    mark_splits(kept, config.held_out)
    if config.passage_bytes:
        kept = cut_passages(kept, given, config.passage_bytes, report)
    if not kept:
        reasons = (f"{name} ({entry['documents']})" for name, entry in report["removed"].items())
        raise ValueError("no document is left; removed: " + (", ".join(reasons) or "none"))
    return kept, finished(report, kept, config)


def normalised(documents, report):
    """Yield normalised copies of the documents that are not empty then."""
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, dict) or not all(isinstance(document.get(key), str)
                                                     for key in ("text", "source")):
            raise ValueError(f'document {number} has no "text" or no "source" that is a string')
        count(report["totals"], "in", size_of(document["text"]))
        clean = document | {"text": normalise(document["text"])}
        if clean["text"] != document["text"]:  # the probability was that of the other text
            clean.pop("log2_probability", None)
        if clean["text"]:
            yield clean
        else:
            remove(report, "empty", document)


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def without_copies(documents, report):
    """Keep one of each group of copies, in the place of the first: held out, else the tidiest."""
    best = {}
    for document in documents:
        key = digest(fold(document["text"]) or document["text"])
        rival = best.setdefault(key, document)
        if rival is not document:
            equal = document["text"] == rival["text"]
            if rank(document) < rank(rival):
                best[key], document = document, rival
            remove(report, "copy" if equal else "copy but for case, spacing, punctuation", document)
    return list(best.values())


def rank(document):
    # Shouted or stretched copies have more capitals and spaces; of equals, the longest is kept.
    untidy = len(re.findall(r"[A-Z\s]", document["text"]))
    return (document.get("split") != "held_out", "split" not in document, untidy,
            -len(document["text"]))


def cut_boilerplate(documents, least, report):
    """Remove first and last lines that at least `least` documents share."""
    lines = cleaning.boilerplate_lines([document["text"] for document in documents], least)
    for document in documents if lines else ():
        text = cleaning.strip_lines(document["text"], lines)
        if text != document["text"]:
            shorten(report, "boilerplate", document, text, document["text"])


def near_duplicates(documents, threshold, find_near_duplicates):
    """Return the ids to drop: all of a cluster but its held-out or else its most typical text."""
    # A source with two documents that came with a split is one long text: its halves share most
    # 5-grams without being copies of each other.
    halves = collections.Counter(d["source"] for d in documents if "split" in d)
    pool = [d for d in documents if "split" not in d or halves[d["source"]] > 2]
    copies = set()
    for cluster in find_near_duplicates([document["text"] for document in pool], threshold):
        members = [pool[n] for n in cluster]
        best = [d for d in members if d.get("split") == "held_out"]
        if not best:  # the member whose signature agrees most with those of the first 64
            signatures = duplicates.minhash_signatures([d["text"] for d in members])
            agreement = [(signatures[:64] == signature).sum() for signature in signatures]
            best = [members[agreement.index(max(agreement))]]
        copies |= {*map(id, members)} - {*map(id, best)}
    return copies


def mark_splits(documents, share):
    """Give each document without a split one, by a hash of its text: stable from run to run."""
    drawn = collections.defaultdict(list)
    for document in documents:
        if "split" not in document:
            draw = int.from_bytes(digest(document["text"])[:8], "big") / 2**64
            document["split"] = "held_out" if draw < share else "train"
            drawn[document["source"]].append((draw, document))
    for pairs in drawn.values():  # a small source gets one held-out document as well
        if share and len(pairs) > 1 and all(d["split"] == "train" for _, d in pairs):
            min(pairs, key=lambda pair: pair[0])[1]["split"] = "held_out"


def cut_passages(documents, given, passage_bytes, report):
    """Cut out what an earlier document has; first come long texts, then what is held out."""
    order = sorted(documents, key=lambda d: (id(d) not in given, d["split"] != "held_out"))
    found = repeated_passages([document["text"] for document in order], passage_bytes)
    emptied = {}
    for document, spans in zip(order, found):
        # Stories of the grammar share sentences by nature, and their known probability, from
        # which the floor is computed, holds for the whole text only.
        if not spans or id(document) in given or "log2_probability" in document:
            continue
        text = cut(document["text"], spans)
        if cleaning.broken_rule(text) == "too few words":
            emptied[id(document)] = "repeated passages throughout"
        else:
            first = document["text"][slice(*spans[0])]
            shorten(report, "repeated passages", document, text, first)
    drop(report, order, emptied)
    return [document for document in documents if id(document) not in emptied]


def size_of(text):
    return len(text.encode("utf-8", "replace"))


def count(entries, name, size, example=None):
    """Add a document of so many bytes to an entry of the report, which shows the first examples."""
    entry = entries.setdefault(name, {"documents": 0, "bytes": 0})
    entry["documents"] += 1
    entry["bytes"] += size
    if example is not None and len(entry.setdefault("examples", [])) < 3:
        entry["examples"].append(example[:160])


def remove(report, reason, document):
    count(report["removed"], reason, size_of(document["text"]), document["text"])


def drop(report, documents, reasons):
    """Remove from the list the documents in `reasons`, {id(document): reason}."""
    for document in documents:
        if id(document) in reasons:
            remove(report, reasons[id(document)], document)
    documents[:] = [document for document in documents if id(document) not in reasons]


def shorten(report, reason, document, text, example):
    """Give a document its shorter text, and forget what was known of the longer one."""
    count(report["cut"], reason, size_of(document["text"]) - size_of(text), example)
    document["text"] = text
    document.pop("log2_probability", None)


def finished(report, kept, config):
    """Return the report with what is left, the rules and the settings."""
    for document in kept:
        size = size_of(document["text"])
        count(report["totals"], "out", size)
        count(report["totals"], f"out, {document['split']}", size)
    rules = {name: f"{least} to {most} ({source})"
             for name, (least, most, source) in cleaning.LIMITS.items()}
    return report | {"rules": rules, "config": dataclasses.asdict(config)}


if __name__ == "__main__":
    cli.run(lambda: cli.hand_over("nanoseek.lab.stages", None, "clean"))
