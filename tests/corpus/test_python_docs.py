"""python_docs.py: the texts are those that help() shows, and nothing is imported."""

import inspect
import json
import pathlib
import string
import sys

import pytest

MODULE = "nanoseek.corpus.python_docs"


@pytest.fixture(scope="module")
def docs(module):
    return module.python_docs()


def test_python_docs_are_those_that_help_shows(docs):
    text = "\n".join(document["text"] for document in docs)
    for documented in (json.dumps, string.Template, pathlib.Path.read_text, json):
        assert inspect.getdoc(documented) in text
    assert 'The "if" statement' in text
    assert {document["source"] for document in docs} == {"python_docs"}
    assert 1e6 < len(text.encode()) < 8e6


def test_python_docs_import_nothing_with_side_effects(docs):
    assert len(docs) > 100 and not {"antigravity", "this", "turtle"} & set(sys.modules)
