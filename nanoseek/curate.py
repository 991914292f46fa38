r"""Clean raw documents: normalise, judge, drop copies, hold some out, and say what went and why.

    python -m nanoseek.curate raw.jsonl clean.jsonl          # and curation.json beside it

    [{"text": "A cat sat here, as it did most days.  \r\n", "source": "web"}, …] →
    [{"text": "A cat sat here, as it did most days.", "source": "web", "split": "train"}, …]

Stages, in this order (the report counts what each removed, and shows examples):
    normalise        one spelling for each text: NFC and the safe part of NFKC (Unicode Annex 15)
    copies           equal texts, and texts equal but for case, spacing, punctuation and width
    boilerplate      lines that frame many documents of a source are taken off
    quality          no broken rule, and no foreign script (corpus/cleaning.py)
    near-duplicates  Jaccard index of 5-grams of characters at least 0.8 (duplicates.py)
    split            "train" or "held_out" for every document, by a hash of its text
    passages         what an earlier document has as well is cut out (corpus/passages.py)
    held-out text    whole texts and long passages of it are cut out of training documents

A document with a split keeps it, is not judged, and only held-out text is cut from it."""

import collections
import dataclasses
import hashlib
import re

from nanoseek import cli, duplicates
from nanoseek.corpus import cleaning
from nanoseek.corpus.cleaning import cut, fold, normalise
from nanoseek.corpus.passages import letters, quotations, repeated_passages

SHORT_QUOTE = 50  # letters: a shorter text may stand in another one by chance
LONG_QUOTE = 300  # letters: a passage of this length is cut even where it is not the whole text


@dataclasses.dataclass(frozen=True)
class CurateConfig:
    """What to remove and how much to hold out; 0 turns a stage off."""

    held_out: float = cli.setting(0.02, "share of each source never trained on", least=0, below=1)
    quality: bool = cli.setting(True, "apply the quality rules")
    boilerplate: int = cli.setting(5, "documents that share a first and last line until it is cut")
    threshold: float = cli.setting(0.8, "Jaccard index of near-duplicates", least=0, most=1)
    passage_letters: int = cli.setting(300, "length from which a repeated passage is cut out")

    def __post_init__(self):
        cli.check_limits(self)
        for name, least in (("boilerplate", 2), ("passage_letters", 32)):
            if (value := getattr(self, name)) and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}, or 0")


def curate(documents, config=None, find_near_duplicates=duplicates.find_near_duplicates):
    """Return (kept documents, report) for raw documents, each {"text", "source", …}.

    Kept documents are in the order they came in, each with a "split"; the given ones are not
    changed. The report fits JSON. ValueError without text or source, or when nothing is left."""
    config = config or CurateConfig()
    rules = {name: f"{least} to {most} ({source})"
             for name, (least, most, source) in cleaning.LIMITS.items()}
    report = {"totals": {}, "removed": {}, "cut": {}, "rules": rules,
              "config": dataclasses.asdict(config)}
    kept = without_copies(normalised(documents, report), report)
    given = {id(document) for document in kept if "split" in document}
    if config.boilerplate:
        cut_boilerplate([d for d in kept if id(d) not in given], config.boilerplate, report)
    kept = left(kept)
    faults = cleaning.faults([document["text"] for document in kept]) if config.quality else []
    for document, fault in zip(kept, faults):
        if fault and id(document) not in given:
            drop(document, fault, report)
    if config.threshold:
        drop_near_duplicates(left(kept), config.threshold, find_near_duplicates, report)
    mark_splits(kept := left(kept), config.held_out)
    if config.passage_letters:  # held-out text comes first: training loses what it has, too
        order = sorted(kept, key=lambda d: (d["split"] != "held_out", id(d) not in given))
        cut_passages(order, given, config.passage_letters, "repeated passages", report)
    cut_held_out(left(kept), report)
    kept = left(kept)
    if all(document["split"] == "held_out" for document in kept):
        raise ValueError(f"no document is left to train on; gone: {', '.join(report['removed'])}")
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
        if document.get("split", "train") not in ("train", "held_out"):
            raise ValueError(f'document {number}: "split" must be "train" or "held_out"')
        count(report, "totals", "in", document["text"])
        clean = document | {"text": normalise(document["text"])}
        if not clean["text"]:
            count(report, "removed", "empty", document["text"])
            continue
        if clean["text"] != document["text"]:  # the probability was that of the other text
            clean.pop("log2_probability", None)
            count(report, "cut", "spelling and spaces", document["text"], clean["text"])
        yield clean


def without_copies(documents, report):
    """Keep one of each group of copies, in the place of the first: held out, else the tidiest."""
    best = {}
    for document in documents:
        key = digest(fold(document["text"]) or document["text"])
        rival = best.setdefault(key, document)
        if rival is not document:
            if rank(document) < rank(rival):
                best[key], document = document, rival
            count(report, "removed", "copy", document["text"])
    return list(best.values())


def rank(document):
    text = document["text"]
    untidy = len(re.findall(r"[A-Z\s]", text))  # shouted or stretched copies have more of these
    return document.get("split") != "held_out", "split" not in document, untidy, -len(text)


def cut_boilerplate(documents, least, report):
    """Remove first and last lines that frame at least `least` documents of a source."""
    texts = collections.defaultdict(list)
    for document in documents:
        texts[document["source"]].append(document["text"])
    lines = set().union(*(cleaning.boilerplate_lines(each, least) for each in texts.values()))
    for document in documents if lines else ():
        text = cleaning.strip_lines(document["text"], lines)
        if text != document["text"]:
            shorten(document, text, "boilerplate", report)


def drop_near_duplicates(documents, threshold, find_near_duplicates, report):
    """Drop what is near a document that is kept, and is not held out itself.

    In a cluster, where A is near B and B near C, A and C may have little in common. So its texts
    are taken in turn, the most typical first, and kept unless near one that is kept already."""
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
            # Parts of a long text may share most 5-grams, but no copy is twice as long.
            twins = [(duplicates.jaccard(texts[k], texts[n]), k)
                     for k, estimate in zip(kept, estimates) if estimate >= min(least[k], least[n])
                     and 0.5 < len(texts[k]) / len(texts[n]) < 2]
            score, twin = max(twins, default=(0, n))
            if score < threshold or members[n].get("split") == "held_out":
                kept.append(n)
            else:
                drop(members[n], "near-duplicate", report,
                     f"{texts[n][:70]} … is to {score:.0%} like {texts[twin][:70]} …")


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


def cut_held_out(documents, report):
    """Cut held-out text out of training documents: texts that they quote whole, long passages."""
    held_out = [document for document in documents if document["split"] == "held_out"]
    training = [d for d in documents if d["split"] == "train" and "log2_probability" not in d]
    quotes = [d["text"] for d in held_out if letters(d["text"]) >= SHORT_QUOTE]
    for number, quote in quotations([document["text"] for document in training], quotes):
        if quote in (text := training[number]["text"]):  # it may have been cut with another one
            text = normalise(text.replace(quote, ""))
            shorten(training[number], text, "quotes held-out text", report, quote)
    cut_passages(held_out + training, {id(document) for document in held_out}, LONG_QUOTE,
                 "quotes held-out text", report, originals=len(held_out))


def cut_passages(documents, whole, least, reason, report, originals=None):
    """Cut out what an earlier document, or one of the originals, has; ids in `whole` stay whole."""
    found = repeated_passages([document["text"] for document in documents], least, originals)
    for document, spans in zip(documents, found):
        # Stories of the grammar share sentences by nature, and their known probability, from
        # which the floor is computed, holds for the whole text only.
        if spans and id(document) not in whole and "log2_probability" not in document:
            text = document["text"]
            shorten(document, cut(text, spans), reason, report, text[slice(*spans[0])])


def digest(text):
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def count(report, part, name, text, rest="", example=None):
    """Add a text, less the rest that stays, to an entry of the report; show the first examples."""
    entry = report[part].setdefault(name, {"documents": 0, "bytes": 0})
    entry["documents"] += 1
    entry["bytes"] += len(text.encode("utf-8", "replace")) - len(rest.encode())
    if part != "totals" and len(entry.setdefault("examples", [])) < 3:
        entry["examples"].append((example or text)[:160])


def left(documents):
    return [document for document in documents if document["text"]]


def drop(document, reason, report, example=None):
    count(report, "removed", reason, document["text"], example=example)
    document["text"] = ""


def shorten(document, text, reason, report, example=None):
    """Give a document its shorter text, or drop it where that would have too few words."""
    if cleaning.broken_rule(text) == "too few words":
        return drop(document, f"{reason} throughout", report)
    count(report, "cut", reason, document["text"], text, example)
    document["text"] = text
    document.pop("log2_probability", None)  # it was that of the longer text


if __name__ == "__main__":
    cli.run(lambda: cli.hand_over("nanoseek.lab.stages", None, "clean"))
