"""Raw documents: bilingual stories, Python's documentation, the reader's own text, planted dirt.

    python -m nanoseek.corpus raw.jsonl --stories 52000 --seed 0      # half English, half Chinese
    python -m nanoseek.corpus raw.jsonl --text ~/books/dream.txt      # the reader's own text

A document is a dict with "text" and "source"; stages pass documents on as JSON lines.
Glossary: *source* a named part of the corpus; *dirt* what nobody wants to train on."""

from nanoseek.corpus.dirt import DIRT, Label, plant_dirt
from nanoseek.corpus.documents import read_documents, write_documents
from nanoseek.corpus.gather import CorpusConfig, gather
from nanoseek.corpus.own_text import read_text
from nanoseek.corpus.python_docs import library_files, python_docs
from nanoseek.corpus.stories import stories  # the function: the file of that name is loaded by now
