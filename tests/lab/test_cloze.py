"""cloze.py: one right answer to every question, shown with the checker that judges stories."""

import collections

import pytest

from nanoseek.lab import cloze
from nanoseek.corpus.stories import check_story, log2_probability, stories

COUNT = 8


@pytest.fixture(scope="module")
def items():
    return cloze.questions(COUNT, seed=3)


def test_exactly_one_choice_is_consistent(items):
    """The beginning that a choice leads to may only be unfinished; every other is a fault."""
    for item in items:
        for number, choice in enumerate(item.choices):
            problems = check_story(item.context + choice)
            if number == item.answer:
                assert problems in ([], ["the story breaks off"]), (item, problems)
            else:
                assert problems and problems != ["the story breaks off"], (item, choice)


def test_the_right_choice_goes_on_to_a_whole_story_and_no_other_does(items):
    for item in items:
        right = item.context + item.choices[item.answer]
        assert item.story.startswith(right) and check_story(item.story) == []
        assert log2_probability(item.story) > -1e9
        for choice in item.choices:
            if choice != item.choices[item.answer]:
                rest = item.story[len(right):]
                assert check_story(item.context + choice + rest), (item, choice)


def test_counts_places_and_choices_are_balanced(items):
    kinds = collections.Counter((item.ability, item.language) for item in items)
    assert kinds == {(a, language): COUNT for a in cloze.ABILITIES for language in ("en", "zh")}
    for ability in cloze.ABILITIES:
        several = [item for item in items if item.ability == ability]
        wanted = 2 if ability == "pronoun" else 4
        assert cloze.CHANCE[ability] == 1 / wanted
        assert all(len(set(item.choices)) == wanted for item in several)
        places = collections.Counter(item.answer for item in several)
        assert len(places) == wanted and max(places.values()) - min(places.values()) <= 2
        stories_used = [item.story for item in several]
        assert len(set(stories_used)) == len(stories_used)


def test_a_seed_gives_the_same_questions_and_another_gives_others(items):
    assert cloze.questions(COUNT, seed=3) == items
    few = cloze.questions(1, seed=3, languages=["zh"])
    assert cloze.questions(1, seed=4, languages=["zh"]) != few
    assert [item.language for item in few] == ["zh"] * 5
    assert cloze.questions(1, seed=3, languages=["zh"]) == few


def test_a_choice_reaches_to_the_end_of_its_sentence_and_owns_its_space(items):
    for item in items:
        assert item.context == item.context.rstrip()
        for choice in item.choices:
            assert choice.startswith(" ") == (item.language == "en"), item
            assert choice.rstrip()[-1] in '.!?"。！？”', item


def test_no_story_that_was_trained_on_is_asked_about(items):
    used = {item.story for item in items}
    again = cloze.questions(COUNT, seed=3, avoid=used)
    assert not used & {item.story for item in again}
    # The corpus is written with other seeds: no question meets it but by chance.
    corpus = {s.text for language in ("en", "zh") for s in stories(language, 500, 0)}
    assert not corpus & used


def test_frequency_alone_answers_little(monkeypatch):
    """Who always takes the word that is commoner in stories does not get far above chance."""
    abilities = ("name", "pronoun", "object")  # the others ask for no single word
    monkeypatch.setattr(cloze, "ABILITIES", abilities)
    items = cloze.questions(60, seed=3)
    text = {language: "\n".join(s.text for s in stories(language, 2000, 9))
            for language in ("en", "zh")}
    for ability in abilities:
        several = [item for item in items if item.ability == ability]

        def count(item, choice):
            word = choice.split()[0].strip('.,!?"') if item.language == "en" else choice[:2]
            return text[item.language].count(word)
        right = sum(max(range(len(item.choices)), key=lambda n: count(item, item.choices[n]))
                    == item.answer for item in several)
        assert right / len(several) < cloze.CHANCE[ability] + 0.2, ability
