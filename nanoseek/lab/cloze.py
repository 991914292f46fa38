"""Questions with exactly one right answer, made from the story grammar, each testing one ability.

    items = questions(count=50, seed=1)     # of each ability, in each language
    items[0].context                        # 'Once there was a merry girl called Mia. … Soon'
    items[0].choices[items[0].answer]       # ' Mia ran to the shop.'

A question is a story up to a word, and several ways to go on to the end of that word's sentence,
of which the grammar allows exactly one. Wrong words are the story's other people and things, then
draws from the right one's own list, so that neither frequency nor novelty gives the answer away.

    name     who is spoken of: against the story's other people, then other names
    pronoun  he or she: two choices, the pronoun's person having been named before
    object   which thing, and so who has it: against the story's other thing, then other things
    season   what the season brings: weather, clothes, skills of another season
    ending   the last sentence: against the last sentences of other stories, about this one's people

Cloze tests: Taylor 1953; scored by likelihood: LAMBADA, 1606.06031, and HellaSwag, 1905.07830."""

import bisect
import itertools
import random
from collections import namedtuple

from nanoseek.corpus.stories import (LANGUAGES, START, Writer, grammar, make_table, read_on,
                                     sentence_bounds)

ABILITIES = ("name", "pronoun", "object", "season", "ending")
CHOICES = {ability: 2 if ability == "pronoun" else 4 for ability in ABILITIES}
CHANCE = {ability: 1 / count for ability, count in CHOICES.items()}
# The columns that a word in question may be written in, and the lists that it comes from.
KEYS = {"name": ({"text"}, {"name"}), "object": ({"text", "m"}, {"thing"}), "season": ((), ()),
        "pronoun": ({"they", "them", "their"}, {"name", "kin", "worker"})}
# Here right and wrong words are drawn alike: of four that differ, each is equally likely to be the
# commonest. Drawn again, a repeated word would be a rarer one, so the question is given up instead.
DRAWN_ALIKE = ("name", "object")
DRAWS = 40  # wrong choices tried for a question before it is given up

# A question: `context + choices[answer]` is the beginning of `story`, up to the end of a sentence.
Item = namedtuple("Item", "ability language context choices answer story")


class _TracedStory(Writer):
    """A story that remembers which slot wrote which piece, and where its sentences end."""
    def __init__(self, language, uniform):
        self.slots, self.tables = {}, {}  # number of a piece → Slot; variable → its Table
        super().__init__(grammar(language), uniform)
        self.language, self.bounds = language, sentence_bounds(self.text)
        self.begins = list(itertools.accumulate(map(len, self.out), initial=0))  # of the pieces

    def fill(self, slot):
        self.slots[len(self.out)] = slot
        if slot.variable not in self.state:
            self.tables[slot.variable] = self.grammar.words(slot, self.state)
        return super().fill(slot)

    def rest(self, begin, entry_of=lambda piece, slot: None):
        """Return the text from the character `begin` to the end of its sentence. entry_of(piece,
        slot) says whose word shall stand in a slot, None for what stood there."""
        end = self.bounds[bisect.bisect_right(self.bounds, begin)]
        first = bisect.bisect_right(self.begins, begin) - 1
        parts = []
        for piece in range(first, bisect.bisect_left(self.begins, end)):
            slot = self.slots.get(piece)
            entry = entry_of(piece, slot) if slot and slot.key else None
            parts.append(entry[slot.key] if entry else self.out[piece][:end - self.begins[piece]])
        return "".join(parts)[begin - self.begins[first]:]


def _pieces_in_question(story, ability, number):
    """Return the pieces whose word may be asked for, of every ability but the ending: a word chosen
    to fit a season named before, else one that was named before, the first time in its sentence; he
    and she take turns, as he is commoner."""
    keys, lists = KEYS[ability]
    gender = list(dict.fromkeys(e["they"] for e, _ in story.grammar.lists["name"]))[number % 2]
    found = {}
    for piece, slot in story.slots.items():
        before = story.text[:story.begins[piece]]
        if ability == "season":
            seasons = [story.state[c.other]["text"] if c.other else c.value
                       for c in slot.conditions if c.attribute == "season"]
            if slot.key and any(season in before for season in seasons):
                found[piece] = piece
        elif slot.again and slot.key.lstrip("^") in keys and slot.list in lists:
            entry = story.state[slot.variable]
            if entry["text"] in before and (ability != "pronoun" or entry["they"] == gender):
                sentence = bisect.bisect_right(story.bounds, len(before))
                found.setdefault((sentence, slot.variable), piece)
    return list(found.values())


def _other_words(story, piece, ability):
    """Yield the rest of the sentence from a piece with other words in place of its word: first the
    story's own, then draws from what the right one was drawn from, without end."""
    slot, (keys, _) = story.slots[piece], KEYS[ability]
    table = story.tables[slot.variable] if ability in DRAWN_ALIKE else \
        make_table(*zip(*story.grammar.lists[slot.list]))
    own = [entry for variable, entry in story.state.items() if variable != slot.variable
           and story.grammar.variables[variable] == slot.list]
    for entry in itertools.chain(own, (story.choose(table) for _ in itertools.count())):
        def entry_of(here, other):
            same = here == piece or other.variable == slot.variable != ""
            return entry if same and (not keys or other.key.lstrip("^") in keys) else None
        yield story.rest(story.begins[piece], entry_of)


def _other_endings(story, donors):
    """Yield the last sentences of other stories, about the people and things of this one."""
    while True:
        donor = donors[int(story.uniform() * len(donors))]
        yield donor.rest(donor.bounds[-2], lambda piece, slot: (
            story.state.get(slot.variable) if slot.again else None))


def _question(story, ability, donors, number):
    """Return the Item of this number made from a story, or None where it offers none."""
    if ability == "ending":
        start, others = story.bounds[-2], _other_endings(story, donors)
    elif pieces := _pieces_in_question(story, ability, number):
        piece = pieces[int(story.uniform() * len(pieces))]
        start, others = story.begins[piece], _other_words(story, piece, ability)
    else:
        return None
    right, wrong, wanted = story.rest(start), [], CHOICES[ability] - 1
    if ability in DRAWN_ALIKE:
        others = list(itertools.islice(others, wanted))
        if len({right, *others}) <= wanted:
            return None
    places = read_on(story.grammar, START, story.text[:start])
    for other in itertools.islice(others, DRAWS):
        if other not in (right, *wrong) and not read_on(story.grammar, places, other):
            wrong.append(other)
        if len(wrong) == wanted:
            break
    else:
        return None
    answer = number // 2 % 2 if ability == "pronoun" else number % CHOICES[ability]
    context = story.text[:start].rstrip()  # the space belongs to the word that follows it
    space, choices = story.text[len(context):start], [*wrong[:answer], right, *wrong[answer:]]
    return Item(ability, story.language, context, tuple(space + choice for choice in choices),
                answer, story.text)


def questions(count, seed=0, languages=LANGUAGES, avoid=frozenset()):
    """Return `count` Items of each ability in each language, always the same for a seed.

    The right choices stand equally often in each place (and are he as often as she); a story gives
    each ability one question at most. avoid: stories to pass over, as trained on."""
    items = []
    for language in languages:
        uniform = random.Random(f"nanoseek cloze {language} {seed}").random
        found = {ability: [] for ability in ABILITIES}
        donors = [_TracedStory(language, uniform) for _ in range(2 * DRAWS)]
        while min(map(len, found.values())) < count:
            story = _TracedStory(language, uniform)
            for ability, known in found.items():
                if len(known) < count and story.text not in avoid:
                    if item := _question(story, ability, donors, len(known)):
                        known.append(item)
        items += itertools.chain(*found.values())
    return items
