"""The page of a run: its curve while it trains, and then all that `nanoseek.evaluate` found.

    python -m nanoseek.evaluate runs/tiny --samples 2 --page runs/tiny/report.html

One HTML file that loads nothing else. page.html, beside this file, draws it from the data that
`write_page` puts into it. The *surprise map* shades each token of a held-out text by the bits that
the model needs for it, in a story by those above the grammar's own: what is still unlearnt."""

import json
import math
import pathlib

import numpy as np

from nanoseek.checkpoint import read_json, trusting
from nanoseek.cli import writing
from nanoseek.corpus.stories import END, START, grammar, language_of, read_on
from nanoseek.evaluate import held_out, piece_nats, windows
from nanoseek.lab.price_tag import format_price_tag

TEMPLATE = pathlib.Path(__file__).with_name("page.html")
SHOWN_IDS = 240  # of a text that is no story, and may be a book
SHOWN_ROWS = 500  # of a log, but for evaluations: as good as all to the eye


def write_page(path, name, log, floors, **more):
    """Write a run's page from rows of its log, {source: floor} and what `find_more` returns."""
    keys, every = ("tokens", "bits_per_byte", "held_out", "untrained"), 1 + len(log) // SHOWN_ROWS
    rows = [{key: row[key] for key in keys if key in row} for n, row in enumerate(log)
            if n % every == 0 or "held_out" in row]
    data = json.dumps({"name": name, "log": rows, "floors": floors, **more})
    # Where "</script>" stood in a text, the script would end.
    page = TEMPLATE.read_text("utf-8").replace('"what write_page puts here"',
                                               data.replace("<", r"\u003c"))
    with writing(path) as new:
        new.write_text(page, "utf-8")


def token_bits(model, ids):
    """Return the model's bits for each id but the first, read in windows as for a score."""
    context = model.config.max_position_embeddings
    # One piece for each id, which ends with it; all before it in the window is context only.
    pieces = [(piece[:n + 2], n) for piece, skip in windows(ids, context, max(1, context // 2))
              for n in range(skip, len(piece) - 1)]
    return piece_nats(model, pieces) / math.log(2)


def grammar_bits(texts):
    """Return the grammar's bits for each of the texts that make up a story and END; [] for others.

    The probability of a beginning is the sum over all derivations that begin so, and the bits of a
    text are how much log2 of it falls. The choice of the language falls to the first one."""
    rules, places, levels = grammar(language_of("".join(texts))), START, [0.0]
    for text in texts:
        places = read_on(rules, places, text)
        if not places:
            return []
        levels.append(math.log2(math.fsum(2.0 ** place.log2 for place in places)))
    return (-np.diff(levels)).tolist()


def surprise_map(subject, ids, story):
    """Return the texts of a document's ids, and what the model and the grammar need for each. Ids
    that end within a character are joined to those after them; the end of the document is END."""
    shown = ids if story else ids[:SHOWN_IDS]
    pieces = [subject.tokenizer.decode_bytes([i]) for i in shown[1:].tolist()]
    if len(shown) == len(ids):
        pieces[-1] = END.encode()
    texts, bits, held, needs = [], [], b"", 0.0
    for piece, more in zip(pieces, token_bits(subject.model, shown)):
        held, needs = held + piece, needs + more
        try:
            texts.append(held.decode("utf-8"))
        except UnicodeDecodeError:
            continue
        bits.append(needs)
        held, needs = b"", 0.0
    return {"texts": texts, "model": bits, "grammar": grammar_bits(texts) if story else []}


def find_more(subject, scores):
    """Return what a page shows beside the curve: the scores, a surprise map for each source, and
    what curation.json, cost.json and trainer.json tell, where they are there."""
    paths = (subject.tokens.parent / "curation.json", subject.folder / "trainer.json",
             subject.run / "cost.json")
    report, state, bill = (read_json(path) if path.is_file() else {} for path in paths)
    kinds = {"removed": "− ", "cut": "~ ", "totals": ""}
    with trusting(*paths):
        found = {"bill": bill and format_price_tag(bill),
                 "settings": {**state.get("config", {}), **state.get("choices", {})},
                 "curation": [(sign + name, entry["documents"], entry["bytes"],
                               [*entry.get("examples", [])]) for kind, sign in kinds.items()
                              for name, entry in report.get(kind, {}).items()]}
    return {**found, "checkpoint": str(subject.folder), "scores": scores, "maps": {
        source: surprise_map(subject, documents[0], scores[source].floor)
        for source, documents in held_out(subject.tokens).items()}}
