"""stories.py: the same bytes everywhere, a probability that adds up, a checker that finds faults."""

import hashlib
import math
import random
import re

import pytest

MODULE = "nanoseek.corpus.stories"
SHA256 = {"en": "5ad3ade1274049ef0b0c1f9f026cfdd2bc8a27f95d77af5a936c9f82a30d7215",
          "zh": "43dba543502416fdcbffff18ae3206b79d7598beb017fa10ba2094d25749ae1b"}


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_seed_gives_the_same_bytes_on_every_machine(module, language):
    found = module.stories(language, 200, 0)
    text = "\n".join(f"{story.text} {story.log2_probability:.6f}" for story in found)
    assert hashlib.sha256(text.encode("utf-8")).hexdigest() == SHA256[language]


@pytest.mark.contract
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_seed_gives_the_same_stories_and_fewer_of_them_are_the_first(module, language):
    found = module.stories(language, 200, 0)
    assert module.stories(language, 50, 0) == found[:50]
    assert module.stories(language, 50, 1) != found[:50]
    assert {story.source for story in found} == {f"stories_{language}"}


@pytest.mark.contract
@pytest.mark.parametrize("language", ["en", "zh"])
def test_stories_are_all_different_and_fit_the_tiny_context(module, language):
    texts = [story.text for story in module.stories(language, 3000, 5)]
    assert len(set(texts)) == 3000
    assert max(len(text.encode("utf-8")) for text in texts) < 1200


TOY = """\
list name | they
  Ann, Eve | she
  3 Tom | he
rule story
  {h=name} slept.<end>
  3 {h=name} sang, and {f=name(they!=h.they)} too.<end>
rule end
   {h.they} smiled.
  -
"""


@pytest.mark.contract
def test_the_probability_of_a_toy_grammar_is_that_of_its_texts(module, tmp_path, monkeypatch):
    path = tmp_path / "toy.txt"
    path.write_text(TOY, encoding="utf-8")
    toy = module.Grammar(path)
    monkeypatch.setattr(module, "grammar", lambda language: toy)
    # Frequencies of what it writes, against the probability that each story carries.
    seen = {}
    for seed in range(4000):
        story = module.stories("en", 1, seed)[0]
        count, stated = seen.get(story.text, (0, story.log2_probability))
        assert stated == pytest.approx(story.log2_probability)
        seen[story.text] = count + 1, stated
    stated = {text: 2 ** (log2 + 1) for text, (_, log2) in seen.items()}  # without the language
    assert sum(stated.values()) == pytest.approx(1, abs=0.01)
    for text, (count, _) in seen.items():
        spread = math.sqrt(stated[text] * (1 - stated[text]) / 4000)
        assert abs(count / 4000 - stated[text]) < 5 * spread


@pytest.mark.contract
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_text_has_the_probability_of_its_story_or_a_little_more(module, language):
    for story in module.stories(language, 20, 6):
        read = module.log2_probability(story.text)
        # A text with a second derivation has more than the one that was written.
        assert story.log2_probability - 1e-5 < read < story.log2_probability + 1
    assert module.log2_probability(story.text + "x") == -math.inf


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_checker_accepts_every_story_of_the_grammar(module, language, monkeypatch):
    """Stories in which each alternative of each rule is written at least once."""
    written, rules = set(), module.grammar(language).rules.values()
    choose = module.Writer.choose

    def remember(writer, table):
        item = choose(writer, table)
        if isinstance(item, tuple):  # no word, but an alternative
            written.add(id(item))
        return item
    monkeypatch.setattr(module.Writer, "choose", remember)
    uniform = random.Random(f"nanoseek stories {language} 9").random
    while len(written) < sum(map(len, rules)):
        before = len(written)
        story = module.Writer(module.grammar(language), uniform)
        if len(written) > before:
            assert module.check_story(story.text) == [], story.text


def corruptions(language, text, rng):
    """Yield (kind, text) with the hero's name swapped, or the sentences shuffled."""
    names = {"en": ["Tom", "Lily", "Ben", "Anna", "Sam", "Mia", "Lucy"],
             "zh": ["小明", "小红", "小刚", "小丽", "小虎", "小兰"]}[language]
    name = next((n for n in names if n in text), None)
    if name:
        places = [m.start() for m in re.finditer(name, text)]
        other = rng.choice([n for n in names if n not in text])
        if len(places) > 2:
            place = rng.choice(places[1:])
            yield "name", text[:place] + other + text[place + len(name):]
    ends = r"(?<=[.!?]) (?=[A-Z])" if language == "en" else r"(?<=[。！？])(?=[^”])"
    lines = re.split(ends, text)
    order = list(range(len(lines)))
    while len(lines) > 3 and order == sorted(order):
        rng.shuffle(order)
    if len(lines) > 3:
        yield "order", (" " if language == "en" else "").join(lines[i] for i in order)


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_checker_finds_what_was_spoiled(module, language):
    rng, found = random.Random(0), {"name": [], "order": []}
    for story in module.stories(language, 150, 11):
        for kind, text in corruptions(language, story.text, rng):
            found[kind].append(bool(module.check_story(text)))
    for kind, results in found.items():
        assert len(results) > 50
        assert sum(results) / len(results) >= 0.95, kind


@pytest.mark.parametrize("language", ["en", "zh"])
def test_reading_a_story_in_parts_finds_what_reading_it_at_once_does(module, language):
    """Wherever a text is cut, also inside a word: the places to which its parts lead are as many
    and as probable, and the checker agrees with the probability."""
    rng, rules = random.Random(2), module.grammar(language)
    for story in module.stories(language, 10, 13):
        for text in [story.text, *(text for _, text in corruptions(language, story.text, rng))]:
            cuts = sorted(rng.sample(range(len(text)), 3))
            places = module.START
            for start, end in zip([0, *cuts], [*cuts, len(text)]):
                places = module.read_on(rules, places, text[start:end])
            places = module.read_on(rules, places, module.END)
            total = math.fsum(2.0 ** place.log2 for place in places)
            log2 = math.log2(total) if total else -math.inf
            assert log2 == pytest.approx(module.log2_probability(text))
            assert (log2 > -math.inf) == (module.check_story(text) == [])


def test_the_checker_names_the_sentence_and_what_breaks_off(module):
    story = module.stories("en", 1, 4)[0].text
    bounds = module.sentence_bounds(story)
    assert bounds[0] == 0 and bounds[-1] == len(story) and len(bounds) > 5
    assert all(story[bound - 1] in '.!?"' and story[bound] == " " for bound in bounds[1:-1])
    assert module.check_story(story[:bounds[-2]]) == ["the story breaks off"]
    for text in ("", "  ", "\0", story + module.END, story + " x"):
        assert module.check_story(text) != []
    third = story[:bounds[2]] + " Xylophones slept." + story[bounds[3]:]
    assert module.check_story(third) == ["sentence 3 is not one that may follow those before it"]


def test_english_articles_agree(module):
    for story in module.stories("en", 2000, 3):
        assert not re.search(r"\b[Aa] (?=[aeio])(?!one|once|eu)", story.text), story.text
        assert not re.search(r"\b[Aa]n [bcdfgjklmnpqrstvwxyz]", story.text), story.text


def test_words_enough_and_none_of_the_other_language(module):
    english = " ".join(story.text for story in module.stories("en", 2000, 1))
    chinese = "".join(story.text for story in module.stories("zh", 2000, 1))
    assert english.isascii()
    assert not re.search("[A-Za-z]", chinese)
    assert len(set(re.findall(r"[a-z'-]+", english.lower()))) > 1000
    assert len(set(chinese)) > 900


@pytest.mark.parametrize("line, number, message", [
    ("rule story\n  {nobody} slept.", 2, "nobody"), ("rule story\n  Ann <went>.", 2, "went"),
    ("list name\n  Ann, Ann\nrule story\n  x", 2, "twice"), ("  lost line", 1, "no head"),
    ("list name | they\n  Ann\nrule story\n  x", 2, "columns"), ("rule other\n  x", 3, "story"),
    ("list x ^400\n  a, b\nrule story\n  x", 1, "no head"), ("rule story ^2\n  x", 1, "no head"),
    ("list x\n  a\nlist y\n  b\nrule story\n  {v=x}\n  {v=y}", 7, "two lists"),
    ("rule story\n  {name", 2, "partner"), ("rule story\n  x\n  0 y", 3, "weight of 0")])
def test_a_wrong_entry_is_named_with_its_line(module, tmp_path, line, number, message):
    path = tmp_path / "bad.txt"
    path.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=f"line {number}: .*{message}"):
        module.Grammar(path)
