r"""Write and judge small stories in English and Chinese whose probability is known exactly.

    stories("en", 2, seed=0)      # [Story(text='…', source='stories_en', log2_probability=-96.1…)]
    log2_probability(text)        # -96.1: read back from the text alone
    check_story(text)             # [] when consistent, else what is wrong, in plain words

A weighted grammar with a memory writes the stories. It stands beside this file, in stories_zh.txt
and in stories_en.txt, which explains its format at the top, for a teacher to extend. Every random
choice passes through `Writer.choose`, which adds its log2-probability. So the mean of -log2 P over
the bytes is a floor: on average, no model can need fewer bits (Shannon 1948, §6 and §7).

Glossary: *list* words to choose from, the common ones first; *rule* alternatives, written <so>;
*slot* a place for a word, {so}; *variable* what remembers a chosen word: {h=name} chooses, {h}
repeats it, {h.they} is its pronoun; *state* what is remembered, {variable: entry of a list};
*guard* a condition before an alternative, [so]; *derivation* the choices that lead to a text;
*floor* the entropy of the grammar."""

import functools
import math
import pathlib
import random
import re
from bisect import bisect_right
from collections import namedtuple
from itertools import accumulate, compress, pairwise

LANGUAGES = ("en", "zh")
NEARLY_ALIKE = (10, 3)  # (q, s) of Mandelbrot's law: the n-th word has weight 1 / (n + q)^s
LOG2_LANGUAGE = -1.0  # the corpus takes each language with probability 1/2
ROW = re.compile(r"(?:(\d+\.?\d*) )? *(.*)")
HEAD = re.compile(r"rule (?P<rule>\w+)|list (?P<list>\w+)( \^(?P<power>\d(\.\d+)?))?( *\|.*)?")
SLOT = re.compile(r"(\^?)(?:(\w+)([=:]))?(\w+)(?:\(([^()]*)\))?(?:\.(\w+))?")
CONDITION = re.compile(r"(!?)(?:(\w+)\.)?(\w+)(?:(!?=) *(?:(\w+)\.)?(.+))?")
SENTENCE_END = re.compile(r'[.!?]"?(?= *$| ["A-Z])|[。！？]”?')
VOWEL_SOUND = re.compile(r"(?!uni|use|one|eu)[aeiou]|hon(est|our)|hour", re.IGNORECASE)

Story = namedtuple("Story", "text source log2_probability")
# `attribute=value`, `variable.attribute!=other.value`, or a lone `variable`, which is to be set.
# variable: "" for the word to be chosen; other: "" where the value is meant literally.
Condition = namedtuple("Condition", "variable attribute equal other value")
# `{variable=list(conditions).key}`. again: whether it only repeats the variable, as {h} does; key:
# the attribute to print, with ^ before it for a capital letter, "" where nothing is printed.
Slot = namedtuple("Slot", "variable list again conditions key")
# `<rule>`. lead: the space before it, which goes when the rule comes out empty.
Call = namedtuple("Call", "rule lead")
# What may be chosen, with cumulative weights and the log2-probability of each.
Table = namedtuple("Table", "items cumulative log2")


def make_table(items, weights):
    """Return the Table of items with these weights."""
    cumulative = list(accumulate(weights))
    return Table(items, cumulative, [math.log2(w / cumulative[-1]) for w in weights])


class Grammar:
    """A grammar file in memory.

    lists: name → [(entry, weight)], an entry being {attribute: text}; rules: name → [(alternative,
    weight)], an alternative being (guards, pieces), pieces of str, Slot, Call; variables: name →
    the list it draws from. Raises ValueError naming the line at fault."""
    def __init__(self, path):
        self.path, self.lists, self._tables = pathlib.Path(path), {}, {}
        number, head, names, rows = 0, None, set(), []
        try:
            text = re.sub(r"(?m)^[^\S\n]*(#.*)?$", "", self.path.read_text("utf-8"))
            self.variables = dict(re.findall(r"\{\^?(\w+)[=:](\w+)", text)[::-1])  # the first wins
            for number, line in enumerate(text.split("\n"), start=1):
                if line.startswith(" ") and head:
                    rows.append((number, head, *ROW.fullmatch(line.strip()).groups()))
                elif line:
                    head = HEAD.fullmatch(line.rstrip())
                    if not head or head.group("list", "rule") in names:
                        raise ValueError(f"{line!r} is here twice, or no head of a list or a rule")
                    names.add(head.group("list", "rule"))
            self.rules = {head["rule"]: [] for _, head, *_ in rows if head["rule"]}
            if "story" not in self.rules:
                raise ValueError("the file ends without a rule 'story'")
            # A rule may use what stands below it: so all lists come first.
            for number, head, weight, row in sorted(rows, key=lambda row: bool(row[1]["rule"])):
                if weight and not float(weight):
                    raise ValueError("a weight of 0 could never be chosen: remove the line")
                if head["list"]:
                    self._add_words(head, float(weight or 0), row)
                else:
                    rule = self.rules[head["rule"]]
                    rule.append((self._alternative(row), float(weight or (1 + len(rule)) ** -2)))
        except ValueError as error:
            raise ValueError(f"{self.path}, line {number}: {error}") from None

    def _add_words(self, head, weight, row):
        """Add the entries of a row `word, word | cell | cell` to its list."""
        entries = self.lists.setdefault(head["list"], [])
        words, *cells = map(str.strip, row.split("|"))
        _, *columns = map(str.strip, head[0].split("|"))
        shift, power = (0, float(head["power"])) if head["power"] else NEARLY_ALIKE
        for text in map(str.strip, words.split(",")):
            if text in ("", *(e["text"] for e, _ in entries)) or len(cells) != len(columns):
                raise ValueError(f"{text!r} is in the list twice, or has not all of its columns")
            entry = {"text": text, **dict(zip(columns, cells)), "": ""}  # "" prints nothing
            if entry.setdefault("a", "-") == "-":
                entry["a"] = ("an " if VOWEL_SOUND.match(text) else "a ") + text
            entry.update({"^" + k: v[:1].upper() + v[1:] for k, v in entry.items()})
            entries.append((entry, weight or (1 + len(entries) + shift) ** -power))

    def _alternative(self, row):
        """Read a row `[guard, guard] text {slot} <rule>` of a rule."""
        guards, template = re.fullmatch(r"(?:\[([^]]*)\] ?)?(.*)", row).groups("")
        pieces = []
        for part in re.split(r"(\{[^{}]*\}| ?<\w+>)", "" if template == "-" else template):
            if found := re.fullmatch(r"\{(.*)\}", part):
                pieces.append(self._slot(found[1]))
            elif (found := re.fullmatch(r"( ?)<(\w+)>", part)) and found[2] in self.rules:
                pieces.append(Call(found[2], found[1]))
            elif set(part) & set("{}<>"):
                raise ValueError(f"{part!r} is no rule, or a bracket in it has no partner")
            elif part:
                pieces.append(part)
        return read_conditions(guards, guard=True), tuple(pieces)

    def _slot(self, text):
        """Read the inside of {variable=list(condition, condition).attribute}."""
        found = SLOT.fullmatch(text)
        if not found:
            raise ValueError(f"cannot read the slot {{{text}}}")
        capital, variable, sign, name, conditions, attribute = found.groups("")
        key = "" if sign == ":" else capital + (attribute or "text")
        conditions = read_conditions(conditions)
        again = not variable and name in self.variables
        if again:
            variable, name = name, self.variables[name]
        if variable and self.variables[variable] != name:
            raise ValueError(f"variable {variable!r} draws from two lists")
        needed = [(name, key), *((name, c.attribute) for c in conditions),
                  *((self.variables.get(c.other), c.value) for c in conditions if c.other)]
        for source, column in needed:
            if source not in self.lists or column not in self.lists[source][0][0]:
                raise ValueError(f"{text!r} needs a list {source!r} with a column {column!r}")
        return Slot(variable, name, again, conditions, key)

    def words(self, slot, state):
        """Return the Table of entries that may stand in a slot in this state."""
        if slot.variable in state:
            if not slot.again:
                raise ValueError(f"{self.path}: {slot.variable!r} is chosen twice")
            return Table([state[slot.variable]], [1.0], [0.0])
        seen = tuple(state[c.other][c.value] if c.other in state else None
                     for c in slot.conditions if c.other)
        words = self.lists[slot.list]
        fit = (all(holds(c, entry, state) for c in slot.conditions) for entry, _ in words)
        return self._table((slot, seen), words, fit)

    def alternatives(self, name, state):
        """Return the Table of alternatives that a rule may take in this state."""
        rule = self.rules[name]
        fit = tuple(all(holds(g, None, state) for g in guards) for (guards, _), _ in rule)
        return self._table((name, fit), rule, fit)

    def _table(self, key, rows, fit):
        """Return the Table of those rows that fit, made once for each key."""
        if key not in self._tables:
            fitting = list(compress(rows, fit))
            if not fitting:
                raise ValueError(f"{self.path}: nothing can be chosen for {key}")
            self._tables[key] = make_table(*zip(*fitting))
        return self._tables[key]


def read_conditions(texts, guard=False):
    """Read conditions with commas between; those of a guard may lack a right side."""
    conditions = []
    for text in filter(None, texts.split(",")):
        found = CONDITION.fullmatch(text.strip())
        if not found or not (guard or found[4]) or found[1] and found[4]:
            raise ValueError(f"cannot read the condition {text!r}")
        no, variable, attribute, sign, other, value = found.groups("")
        if guard and not variable:  # [s=winter] looks at s.text, [k] whether k is set
            variable, attribute = attribute, "text"
        conditions.append(Condition(variable, attribute, "!" not in no + sign, other, value))
    return tuple(conditions)


def holds(condition, entry, state):
    """Tell whether a condition holds for an entry (or a guard), given what is remembered."""
    left = state.get(condition.variable) if condition.variable else entry
    if left is None or not condition.value:
        return (left is not None) == condition.equal
    if condition.other and condition.other not in state:
        return True
    right = state[condition.other][condition.value] if condition.other else condition.value
    left = left[condition.attribute]
    # Cells may hold several words, of which one in common is enough.
    shared = condition.attribute != "text" and set(left.split()) & set(right.split())
    return (left == right or bool(shared)) == condition.equal


@functools.cache
def grammar(language):
    """Return the Grammar of a language, read once per process from the file beside this one."""
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}: choose {' or '.join(LANGUAGES)}")
    return Grammar(pathlib.Path(__file__).with_name(f"stories_{language}.txt"))


class Writer:
    """Writes one story: its pieces, its memory, its bits; `text` when it is written."""
    def __init__(self, rules, uniform):
        self.grammar, self.uniform = rules, uniform
        self.out, self.state, self.log2 = [], {}, 0.0
        self.write("story")
        self.text = "".join(self.out)

    def choose(self, table):
        """Choose from a Table and account for it: the only place where chance comes in."""
        last = len(table.items) - 1
        if last == 0:
            return table.items[0]
        index = bisect_right(table.cumulative, self.uniform() * table.cumulative[-1], 0, last)
        self.log2 += table.log2[index]
        return table.items[index]

    def write(self, rule, lead=""):
        """Write a rule: its own text, and that of the rules it calls."""
        _, pieces = self.choose(self.grammar.alternatives(rule, self.state))
        for piece in (lead, *pieces) if pieces else ():
            if type(piece) is Call:
                self.write(piece.rule, piece.lead)
            else:
                self.out.append(piece if type(piece) is str else self.fill(piece))

    def fill(self, slot):
        """Return the word of a slot, and remember it where the slot has a variable."""
        entry = self.choose(self.grammar.words(slot, self.state))
        if slot.variable:
            self.state[slot.variable] = entry
        return entry[slot.key]


def stories(language, count, seed):
    """Return `count` different stories of a language ("en" or "zh") as a list of Story.

    The same seed gives the same stories on every machine, and fewer of them are the first of more.
    Repeats are thrown away; that this makes the others a little more probable is left out."""
    if count < 0:
        raise ValueError(f"count is {count}: give 0 or more")
    # Seeding with a str and random() are the parts of `random` that no Python version changes.
    uniform = random.Random(f"nanoseek stories {language} {seed}").random
    rules, found = grammar(language), {}  # text → Story
    while len(found) < count:
        story = Writer(rules, uniform)
        log2 = round(story.log2 + LOG2_LANGUAGE, 6)  # further digits differ between machines
        found.setdefault(story.text, Story(story.text, f"stories_{language}", log2))
    return list(found.values())


# A place in a derivation: the pieces still to be written, a tuple whose last is END, what is
# remembered, and the log2-probability of the choices so far.
Place = namedtuple("Place", "pieces state log2")
END = "\0"  # stands for the end of a story, which no story contains
START = [Place((Call("story", ""), END), {}, LOG2_LANGUAGE)]


def read_on(rules, places, text):
    """Return the Places to which a text leads from any of `places`: all its derivations so far.
    Reads like a Writer writes, but follows every choice whose words stand in the text."""
    found, todo = [], [(*place, 0) for place in places]
    while todo:
        pieces, state, log2, at = todo.pop()
        if at == len(text):
            found.append(Place(pieces, state, log2))
        if at == len(text) or not pieces:  # the text is read, or has more than the story
            continue
        piece, rest, left = pieces[0], pieces[1:], text[at:]
        if type(piece) is str:
            if left.startswith(piece):
                todo.append((rest, state, log2, at + len(piece)))
            elif piece.startswith(left):  # the text ends within this piece
                found.append(Place((piece[len(left):], *rest), state, log2))
        elif type(piece) is Call:
            table = rules.alternatives(piece.rule, state)
            for (_, new), bits in zip(table.items, table.log2):
                lead = piece.lead if new else ""
                if left.startswith(lead):
                    todo.append(((*new, *rest), state, log2 + bits, at + len(lead)))
        else:
            table = rules.words(piece, state)
            for entry, bits in zip(table.items, table.log2):
                word = entry[piece.key]
                if left.startswith(word) or word.startswith(left):
                    after = {**state, piece.variable: entry} if piece.variable else state
                    todo.append(((word, *rest), after, log2 + bits, at))
    return found


def log2_probability(text):
    """Return log2 of the summed probability of all derivations of a text, language included.

    Minus infinity for a text that the grammar cannot write. A Story states that of one derivation;
    where its text has a second one, this is larger."""
    places = read_on(grammar(language_of(text)), START, text + END)
    total = math.fsum(2.0 ** place.log2 for place in places)
    return math.log2(total) if total else -math.inf


def language_of(text, share=0.0):
    """Return "zh" for a text of which more than this share is Chinese characters, else "en"."""
    return "zh" if len(re.findall(r"[\u4e00-\u9fff]", text)) > share * len(text) else "en"


def sentence_bounds(text):
    """Return 0 and where the sentences of a story end; a space between two is the second one's."""
    return sorted({0, *(match.end() for match in SENTENCE_END.finditer(text)), len(text)})


def check_story(text):
    """Return what is inconsistent in a story, in plain words: an empty list when nothing is.

    A story is consistent when the grammar can write it: so each sentence agrees with those before
    in names, pronouns, objects and who has them, seasons, places and promises, and the last one
    may end a story, which a promise not yet kept forbids."""
    rules, text, places = grammar(language_of(text)), text.strip(), START
    for number, (start, end) in enumerate(pairwise(sentence_bounds(text)), start=1):
        places = read_on(rules, places, text[start:end])
        if not places:
            return [f"sentence {number} is not one that may follow those before it"]
    return [] if read_on(rules, places, END) else ["the story breaks off"]
