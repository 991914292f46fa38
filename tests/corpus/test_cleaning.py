"""cleaning.py: one spelling, rules that catch their kind and spare good text, boilerplate."""

import random
import re
import unicodedata

import pytest
from hypothesis import given, settings, strategies
from sample_texts import GOOD

MODULE = "nanoseek.corpus.cleaning"


# Normalising -------------------------------------------------------------------------------

@settings(deadline=None)
@given(text=strategies.text())
def test_normalised_text_is_nfc_clean_and_stays_as_it_is(module, text):
    once = module.normalise(text)
    assert module.normalise(once) == once
    assert unicodedata.normalize("NFC", once) == once
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" and ord(c) < 128
                   for c in once)
    assert not re.search(r"\s\n|\n\n\n|\r|^\n|\s$", once.replace("\n\n", "\n"))


@pytest.mark.parametrize("raw, clean", [
    ("cafe\u0301", "café"), ("a\r\nb\rc", "a\nb\nc"), ("ＡＢＣ１２３", "ABC123"),
    ("你好，世界！（真的）", "你好，世界！（真的）"), ("10² ½ ™", "10² ½ ™"),
    ("\ufeffa\u200bb\u00adc", "abc"), ("  indented\n    code  ", "  indented\n    code"),
    ("a\u00a0b\u3000c", "a b c"), ("\ud800x", "?x"), ("\x00\x1b", ""),
])
def test_normalise_folds_what_is_safe_and_leaves_the_rest(module, raw, clean):
    assert module.normalise(raw) == clean


# Quality -----------------------------------------------------------------------------------

@pytest.mark.parametrize("text", GOOD)
def test_good_text_in_either_language_passes_every_rule(module, text):
    assert module.broken_rule(text) is None


@pytest.mark.parametrize("rule, text", [
    ("too few words", "Click here."),
    ("words too long", "QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVphYmNkZWZnaGlq " * 8),
    ("mostly numbers", "12 31 44 and 5 16 27 of 38 49"),
    ("symbols", "#one #two #three #four #five and so on #six"),
    ("unprintable", GOOD[0] + "\ufffd" * 9),
    ("mojibake", GOOD[1].encode().decode("latin-1")), ("mojibake", GOOD[0].replace(" ", "\u00a0")
     .encode().decode("cp1252")), ("mojibake", ("今天天气" * 9).encode().decode("gbk")),
    ("links", "see http://www.one.example/two/three and http://www.four.example/five/six today"),
    ("repeated phrases", "buy our boots today " * 30),
    ("repeated lines", "\n".join(["a line of text here"] * 4 + ["another one"])),
    ("few different words", " ".join(random.Random(1).choices(["boots", "hats", "shoes"], k=60))),
    ("lines too short", "\n".join(f"{word}line" for word in "abcdefghijklm")),
    ("no function words", "red green blue cyan teal pink gold grey lime navy plum rust sage sand "
     "wine rose mint jade iris ivory khaki coral amber azure beige black brown ebony frost lemon"),
])
def test_each_rule_catches_its_kind(module, rule, text):
    assert module.broken_rule(module.normalise(text)) == rule


def test_each_rule_is_measured_and_names_its_limits_and_source(module):
    assert [name for name, _ in module.measures(GOOD[0])] == [*module.LIMITS]
    assert all(source and least <= most for least, most, source in module.LIMITS.values())


def test_what_is_in_a_rare_script_is_foreign_however_good(module):
    russian = "Старая мельница стоит у реки, и никто не слышал её с осени."
    faults = module.faults([*GOOD * 20, russian, "Click here."])
    assert faults == [None] * 80 + ["foreign script", "too few words"]
    assert module.faults([russian] * 3) == [None] * 3 and module.faults([]) == []


# Boilerplate -------------------------------------------------------------------------------

def test_boilerplate_is_a_long_line_that_many_texts_begin_or_end_with(module):
    menu = "Home | Stories | Weather | About us"
    texts = [f"{menu}\n\nbody number {n}\nThe end." for n in range(12)]
    lines = module.boilerplate_lines(texts, 10)
    assert lines == {menu}  # "The end." is short enough for literature
    assert module.strip_lines(texts[3], lines) == "body number 3\nThe end."
    assert module.boilerplate_lines(texts, 13) == set()
