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
    passages         what an earlier document has as well is cut out (corpus/passages.py); the
                     reader's long texts come first, then what is held out: training loses

A document that comes with a split belongs to one long text of the reader's: it keeps its split,
and neither the quality rules nor the cutting of boilerplate and passages touch it.
"""

import collections
import dataclasses
import hashlib
import re

from nanoseek import cli, duplicates
from nanoseek.corpus import cleaning
from nanoseek.corpus.cleaning import cut, fold, normalise
from nanoseek.corpus.passages import repeated_passages

SHORT_QUOTE = 50  # bytes: a shorter text may stand in another one by chance


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """What to remove and how much to hold out; 0 turns a stage off."""

    held_out: float = cli.setting(0.02, "share of each source never trained on", least=0, below=1)
    quality: bool = cli.setting(True, "apply the quality rules")
    boilerplate: int = cli.setting(5, "documents that share a first or last line until it is cut")
    threshold: float = cli.setting(0.8, "Jaccard index of near-duplicates", least=0, most=1)
    passage_bytes: int = cli.setting(300, "length from which a repeated passage is cut out")

    def __post_init__(self):
        cli.check_limits(self)
        for name, least in (("boilerplate", 2), ("passage_bytes", 32)):
            if (value := getattr(self, name)) and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}, or 0")


def curate(documents, config=None, find_near_duplicates=duplicates.find_near_duplicates):
    """Return (kept documents, report) for raw documents, each {"text", "source", …}.

    Kept documents are in the order they came in, each with a "split"; the given ones are not
    changed. The report is a dict ready for JSON. Raises ValueError for a document without text or
    source, and when nothing is left.
    """
    config = config or CurateConfig()
    rules = {name: f"{least} to {most} ({source})"
             for name, (least, most, source) in cleaning.LIMITS.items()}
    report = {"totals": {}, "removed": {}, "cut": {}, "rules": rules,
              "config": dataclasses.asdict(config)}
    kept = without_copies(normalised(documents, report), report)
    given = {id(document) for document in kept if "split" in document}
    if config.boilerplate:
        cut_boilerplate([d for d in kept if id(d) not in given], config.boilerplate, report)
    faults = (cleaning.faults([d["text"] for d in kept]) if config.quality
              else [None if d["text"] else "empty" for d in kept])  # it was boilerplate alone
    faulty = {id(document): fault for document, fault in zip(kept, faults)
              if fault and id(document) not in given}
    for document in kept:
        if id(document) in faulty:
            count(report, "removed", faulty[id(document)], document["text"])
    kept = [document for document in kept if id(document) not in faulty]
    if config.threshold:
        near = near_duplicates(kept, config.threshold, find_near_duplicates, report)
        kept = [document for document in kept if id(document) not in near]
    mark_splits(kept, config.held_out)
    if config.passage_bytes:
        cut_held_out(kept, given, config.passage_bytes, report)
        cut_passages(kept, given, config.passage_bytes, report)
        kept = [document for document in kept if document["text"]]
    if not kept:
        reasons = (f"{name} ({entry['documents']})" for name, entry in report["removed"].items())
        raise ValueError("no document is left; removed: " + (", ".join(reasons) or "none"))
    for document in kept:
        for name in ("out", f"out, {document['split']}"):
            count(report, "totals", name, document["text"])
    return kept, report


def normalised(documents, report):
    """Yield normalised copies of the documents that are not empty then."""
    for number, document in enumerate(documents, start=1):
        if not isinstance(document, dict) or not all(isinstance(document.get(key), str)
                                                     for key in ("text", "source")):
            raise ValueError(f'document {number} has no "text" or no "source" that is a string')
        count(report, "totals", "in", document["text"])
        clean = document | {"text": normalise(document["text"])}
        if clean["text"] != document["text"]:  # the probability was that of the other text
            clean.pop("log2_probability", None)
        if clean["text"]:
            yield clean
        else:
            count(report, "removed", "empty", document["text"])


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
            how = "copy" if equal else "copy but for case, spacing, punctuation"
            count(report, "removed", how, document["text"])
    return list(best.values())


def rank(document):
    text = document["text"]
    untidy = len(re.findall(r"[A-Z\s]", text))  # shouted or stretched copies have more of these
    return document.get("split") != "held_out", "split" not in document, untidy, -len(text)


def cut_boilerplate(documents, least, report):
    """Remove first and last lines that at least `least` documents share."""
    lines = cleaning.boilerplate_lines([document["text"] for document in documents], least)
    for document in documents if lines else ():
        text = cleaning.strip_lines(document["text"], lines)
        if text != document["text"]:
            shorten(document, text, report, "boilerplate")


def near_duplicates(documents, threshold, find_near_duplicates, report):
    """Return the ids of the documents to drop: each is near one that is kept, and not held out.

    In a cluster, where A is near B and B near C, A and C may have little in common. So its texts
    are taken in turn, the most typical first, and kept unless near one that is kept already.
    """
    dropped, given = set(), collections.Counter(d["source"] for d in documents if "split" in d)
    for cluster in find_near_duplicates([document["text"] for document in documents], threshold):
        members = [documents[n] for n in cluster]
        texts = [document["text"] for document in members]
        signatures, kept = duplicates.minhash_signatures(texts), []
        least = duplicates.worth_checking(texts, threshold, signatures.shape[1])
        # Typical is the text whose signature agrees most with those of the first 64.
        agreement = [(signatures[:64] == signature).sum() for signature in signatures]
        for n in sorted(range(len(members)), key=lambda n: (
                members[n].get("split") != "held_out", -agreement[n])):
            estimates = duplicates.estimate_jaccard(signatures[kept], signatures[n])
            twins = [(duplicates.jaccard(texts[k], texts[n]), k)
                     for k, estimate in zip(kept, estimates) if estimate >= min(least[k], least[n])
                     and not halves(members[k], members[n], given)]
            score, twin = max(twins, default=(0, n))
            if score < threshold or members[n].get("split") == "held_out":
                kept.append(n)
            else:
                dropped.add(id(members[n]))
                count(report, "removed", "near-duplicate", texts[n], example=
                      f"{texts[n][:70]} … is to {score:.0%} like {texts[twin][:70]} …")
    return dropped


def halves(one, other, given):
    """Return whether two documents are the two parts of one long text, which is cut by a split:
    these share most 5-grams without being copies of each other."""
    return one["source"] == other["source"] and given[one["source"]] == 2 \
        and "split" in one and "split" in other


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


def cut_held_out(documents, given, passage_bytes, report):
    """Cut out of training documents what is held out: a short text that stands in them whole, and
    of documents that came with a split, which are not cut otherwise, each long passage."""
    held_out = [d["text"] for d in documents if d["split"] == "held_out"]
    training = [d for d in documents if d["split"] == "train" and "log2_probability" not in d]
    short = [text for text in held_out if SHORT_QUOTE <= len(text.encode()) < passage_bytes]
    for document, spans in found_in(training, short, SHORT_QUOTE):  # where it is worth a look
        for quote in short if spans else ():
            if quote in document["text"]:
                text = normalise(document["text"].replace(quote, ""))
                cut_down(document, text, report, "quotes held-out text", quote)
    long = [document for document in training if id(document) in given]
    for document, spans in found_in(long, held_out, passage_bytes):
        cut_spans(document, spans, report, "quotes held-out text")


def found_in(documents, originals, size):
    """Return (document, spans) of what documents have in common with the originals."""
    texts = originals + [document["text"] for document in documents]
    return zip(documents, repeated_passages(texts, size, len(originals))[len(originals):])


def cut_passages(documents, given, passage_bytes, report):
    """Cut out what an earlier document has; first come long texts, then what is held out."""
    order = sorted(documents, key=lambda d: (id(d) not in given, d["split"] != "held_out"))
    found = repeated_passages([document["text"] for document in order], passage_bytes)
    for document, spans in zip(order, found):
        # Stories of the grammar share sentences by nature, and their known probability, from
        # which the floor is computed, holds for the whole text only.
        if id(document) not in given and "log2_probability" not in document:
            cut_spans(document, spans, report, "repeated passages")


def cut_spans(document, spans, report, reason):
    if spans:
        text = document["text"]
        cut_down(document, cut(text, spans), report, reason, text[slice(*spans[0])])


def cut_down(document, text, report, reason, example):
    """Give a document its shorter text, or none where that would have too few words."""
    if cleaning.broken_rule(text) == "too few words":
        count(report, "removed", f"{reason} throughout", document["text"])
        document["text"] = ""
    else:
        shorten(document, text, report, reason, example)


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def count(report, part, name, text, left="", example=None):
    """Add a text, less what is left of it, to an entry of the report; show the first examples."""
    entry = report[part].setdefault(name, {"documents": 0, "bytes": 0})
    entry["documents"] += 1
    entry["bytes"] += len(text.encode("utf-8", "replace")) - len(left.encode())
    if part != "totals" and len(entry.setdefault("examples", [])) < 3:
        entry["examples"].append((example or text)[:160])


def shorten(document, text, report, reason, example=None):
    """Give a document its shorter text; its probability was that of the longer one."""
    count(report, "cut", reason, document["text"], text, example)
    document["text"] = text
    document.pop("log2_probability", None)


if __name__ == "__main__":
    cli.run(lambda: cli.hand_over("nanoseek.lab.stages", None, "clean"))
