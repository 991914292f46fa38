"""Questions with exactly one right answer, made from the story grammar, each testing one ability.

    items = questions(count=50, seed=1)     # of each ability, in each language
    items[0].context                        # 'Once there was a merry girl called Mia. … Soon'
    items[0].choices[items[0].answer]       # ' Mia ran to the shop.'

A question is a story up to a word, and several ways to go on to the end of that word's sentence,
of which the grammar allows exactly one: the others are read against it and refused where they
fit. Wrong words are the story's other people and things, then draws from the list that the right
one was drawn from, so that neither frequency nor novelty gives the answer away.

    name     who is spoken of: against the story's other people, then other names
    pronoun  he or she: two choices, the pronoun's person having been named before
    object   which thing, and so who has it: against the story's other thing, then other things
    season   what the season brings: weather, clothes, skills of another season
    ending   the last sentence: against the last sentences of other stories, about this one's people

Cloze tests: Taylor 1953; choices scored by likelihood as in LAMBADA and HellaSwag (1606.06031,
1905.07830).
"""

import hashlib
import itertools
import random
from typing import NamedTuple

from nanoseek.corpus.stories import LANGUAGES, Writer, grammar, make_table, plan_of, sentences

ABILITIES = ("name", "pronoun", "object", "season", "ending")
CHOICES = 4  # of every ability but the pronoun: there are only two
CHANCE = {ability: 1 / (2 if ability == "pronoun" else CHOICES) for ability in ABILITIES}
KEYS = {  # the columns that a word in question may be written in, and the lists it comes from
    "name": ({"text"}, {"name"}), "object": ({"text", "m"}, {"thing"}),
    "pronoun": ({"they", "them", "their"}, {"name", "kin", "worker"})}
# Of four draws from one list, given that they differ, each is as likely to be the commonest: so these
# questions are given up, not drawn again, where two are the same. Else the right word, drawn first,
# would be the commoner one, and who knows only that would be right half the time.
DRAWN_ALIKE = ("name", "object")
DRAWS = 40  # wrong choices tried for a question before it is given up


class Item(NamedTuple):
    """A question: `context + choices[answer]` is the beginning of `story`, up to a sentence end."""

    ability: str
    language: str
    context: str
    choices: tuple
    answer: int
    story: str


def digest(text):
    """Return what stands for a document when two corpora are compared."""
    return hashlib.sha256(text.strip().encode("utf-8")).hexdigest()


class _Told(Writer):
    """A story that remembers which slot wrote what, and where its sentences lie."""

    def __init__(self, language, uniform):
        super().__init__(grammar(language), uniform)
        self.language = language
        self.slots, self.tables = {}, {}  # place in `out` → Slot; variable → what it was drawn from
        self.write("story")
        self.text = "".join(self.out)
        self.begins = list(itertools.accumulate(map(len, self.out), initial=0))  # of the pieces
        self.spans, end = [], 0  # of the sentences, in characters
        for sentence in sentences(self.text):
            begin = self.text.index(sentence, end)
            end = begin + len(sentence)
            self.spans.append((begin, end))
        self.plan, self._places = plan_of(language), [[(0, {})]]

    def fill(self, slot):
        self.slots[len(self.out)] = slot
        if slot.variable and slot.list:
            self.tables[slot.variable] = self.grammar.words(slot, self.state)
        return super().fill(slot)

    def sentence(self, place):
        """Return the number of the sentence that the piece at `place` stands in."""
        return next(n for n, (_, end) in enumerate(self.spans) if self.begins[place] < end)

    def fits(self, number, sentence):
        """Tell whether the grammar allows this sentence after the first `number` sentences."""
        while len(self._places) <= number:
            begin, end = self.spans[len(self._places) - 1]
            self._places.append(self.plan.steps(self._places[-1], self.text[begin:end],
                                                self.plan.reader))
        return bool(self.plan.steps(self._places[number], sentence, self.plan.reader))

    def written(self, first, end, word):
        """Write the pieces from `first` to the character `end` anew.

        word(place, slot): what shall stand in a slot, None for what stood there.
        """
        parts = []
        for place in range(first, len(self.out)):
            if self.begins[place] >= end:
                break
            new = word(place, self.slots[place]) if place in self.slots else None
            parts.append(self.out[place][:end - self.begins[place]] if new is None else new)
        return "".join(parts)


def _mentions(told, ability):
    """Yield the places where a word returns that was named before, the first of each sentence."""
    (keys, lists), variables, seen = KEYS[ability], told.grammar.variables, set()
    for place, slot in told.slots.items():
        mark = told.sentence(place), slot.variable
        if not slot.list and slot.key.lstrip("^") in keys and mark not in seen and \
                variables[slot.variable] in lists and \
                told.state[slot.variable]["text"] in told.text[:told.begins[place]]:
            seen.add(mark)
            yield place


def _seasonal(told):
    """Yield the places of words that were chosen to fit a season named before."""
    for place, slot in told.slots.items():
        for condition in slot.conditions:
            if slot.list and slot.key and condition.attribute == "season":
                season = told.state[condition.other]["text"] \
                    if condition.other else condition.value
                if season in told.text[:told.begins[place]]:
                    yield place


def _others(told, place, ability):
    """Yield the rest of the sentence from `place` with other words in the place of one.

    The story's own words come first, then draws from what the right one was drawn from.
    """
    slot, variables = told.slots[place], told.grammar.variables
    name = slot.list or variables[slot.variable]
    keys = KEYS.get(ability, [None])[0]
    table = told.tables[slot.variable] if ability in DRAWN_ALIKE else \
        make_table(*zip(*told.grammar.lists[name]))
    own = [entry for variable, entry in told.state.items()
           if variables[variable] == name and variable != slot.variable]
    end = told.spans[told.sentence(place)][1]
    for entry in itertools.chain(own, (told.choose(table) for _ in range(DRAWS))):
        yield told.written(place, end, lambda here, other: entry[other.key] if other.key and (
            here == place or other.variable == slot.variable != "") and (
            keys is None or other.key.lstrip("^") in keys) else None)


def _endings(told, donors):
    """Yield the last sentences of other stories, about the people and things of this one."""
    for _ in range(DRAWS):
        donor = donors[int(told.uniform() * len(donors))]
        begin, end = donor.spans[-1]
        first = next(place for place in range(len(donor.out)) if donor.begins[place + 1] > begin)

        def word(place, slot):
            return told.state[slot.variable][slot.key] \
                if slot.variable in told.state and slot.key and not slot.list else None
        yield donor.written(first, end, word)[max(0, begin - donor.begins[first]):]


def _question(told, ability, donors, number):
    """Return the Item of this number made from a story, or None where it offers none."""
    wanted = round(1 / CHANCE[ability])
    answer = number // 2 % 2 if ability == "pronoun" else number % wanted
    if ability == "ending":
        line, at = len(told.spans) - 1, told.spans[-1][0]
        wrong = _endings(told, donors)
    else:
        places = list(_seasonal(told) if ability == "season" else _mentions(told, ability))
        if ability == "pronoun":  # he and she in turn: in stories he is commoner
            both = list(dict.fromkeys(e["they"] for e, _ in told.grammar.lists["name"]))
            places = [place for place in places
                      if told.state[told.slots[place].variable]["they"] == both[number % 2]]
        if not places:
            return None
        place = places[int(told.uniform() * len(places))]
        line, at = told.sentence(place), told.begins[place]
        wrong = _others(told, place, ability)
    begin, end = told.spans[line]
    right = told.text[at:end]
    if ability in DRAWN_ALIKE:
        wrong = list(itertools.islice(wrong, wanted - 1))
        if len({right, *wrong}) < wanted:
            return None
    found = []
    for other in wrong:
        if other not in (right, *found) and not told.fits(line, told.text[begin:at] + other):
            found.append(other)
            if len(found) == wanted - 1:
                break
    else:
        return None
    found.insert(answer, right)
    context = told.text[:at].rstrip()  # the space belongs to the word that follows it
    space = told.text[len(context):at]
    return Item(ability, told.language, context, tuple(space + c for c in found), answer,
                told.text)


def questions(count, seed=0, languages=LANGUAGES, avoid=frozenset()):
    """Return `count` Items of each ability in each language.

    The same seed gives the same questions, the right choices stand equally often in each place
    (and are he as often as she), and a story gives each ability one question at most. avoid:
    digests of documents, such as those trained on, that are passed over as stories.
    """
    return [item for language in languages for item in _questions(count, seed, language, avoid)]


def _questions(count, seed, language, avoid):
    uniform = random.Random(f"nanoseek cloze {language} {seed}").random
    found = {ability: [] for ability in ABILITIES}
    donors = [_Told(language, uniform) for _ in range(2 * DRAWS)]
    while min(map(len, found.values())) < count:
        told = _Told(language, uniform)
        if digest(told.text) in avoid:
            continue
        for ability, items in found.items():
            if len(items) < count:
                item = _question(told, ability, donors, len(items))
                items += [item] if item else []
    return [item for items in found.values() for item in items]
