r"""Write and judge small stories in English and Chinese whose probability is known exactly.

    python -m nanoseek.corpus.stories --language en --count 5 --seed 0

    stories("en", 2, seed=0)      # [Story(text='…', source='stories_en', log2_probability=-96.1…)]
    check_story(text)             # [] when consistent, else what is wrong, in plain words

A weighted grammar with a memory writes the stories. It stands in stories_en.txt and stories_zh.txt
beside this file, for a teacher to read and extend; the format is explained at the top of the
English one. Every random choice passes through `Writer.choose`, which adds its log2-probability,
so the mean of -log2 P over the bytes is a floor: on average, no model can need fewer bits.
(Shannon, A Mathematical Theory of Communication, 1948, §6 and §7.)

Glossary: *list* words to choose from, the common ones first; *rule* a set of alternatives, written
<so>; *slot* a place for a word, written {so}; *variable* what remembers a chosen word, so that it
can return: {h=name} chooses, {h} repeats, {h.they} is its pronoun; *shape* an alternative of the
rule `story`; *derivation* the choices that lead to a text; *floor* the entropy of the grammar.
"""

import functools
import itertools
import math
import pathlib
import random
import re
from bisect import bisect_right
from typing import NamedTuple

LANGUAGES = ("en", "zh")
NEARLY_ALIKE = (10, 3)  # (q, s) of Mandelbrot's law: the n-th word has weight 1 / (n + q)^s
LOG2_LANGUAGE = -1.0  # the corpus takes each language with probability 1/2
FACTS = ("name", "thing", "season")  # lists whose words no sentence may bring in from nowhere
SENTENCE_END = re.compile(r'[.!?]"?(?= *$| ["A-Z])|[。！？]”?')
VOWEL_SOUND = re.compile(r"(?!uni|use|one|eu)[aeiou]|hon(est|our)|hour", re.IGNORECASE)
MANY_PLACES = 8  # from so many on, a quick look first whether a sentence can be read at all
MOST_PLACES = 200  # readings followed behind a free sentence; without a bound they multiply
FREE_SHARE = 4  # one sentence in so many may be worded as the grammar never would


class Story(NamedTuple):
    """A story and the log2 of its probability, the choice of its language and its end included."""

    text: str
    source: str
    log2_probability: float


# ---------------------------------------------------------------------------------------------
# The grammar file
# ---------------------------------------------------------------------------------------------

class Condition(NamedTuple):
    """`attribute=value` or `variable.attribute!=variable.attribute`; a lone `variable`: is set."""

    variable: str  # of the left side; "" when it is the word to be chosen
    attribute: str
    equal: bool
    other: str  # variable of the right side, "" for a literal
    value: str  # attribute of that variable, or the literal


class Slot(NamedTuple):
    """`{variable=list(conditions).attribute}`; every part but one may be absent."""

    variable: str
    list: str  # "" when the variable is only repeated
    conditions: tuple
    key: str  # the attribute to print, with ^ before it for a capital; "" prints nothing


class Call(NamedTuple):
    """`<rule>`, with the space before it, which goes when the rule comes out empty."""

    rule: str
    lead: str


class Alternative(NamedTuple):
    """One way to write a rule: pieces of str, Slot and Call."""

    guards: tuple
    pieces: tuple
    line: int


class Table(NamedTuple):
    """What may be chosen, with cumulative weights and the log2-probability of each."""

    items: list
    cumulative: list
    log2: list


def make_table(items, weights):
    """Return the Table of items with these weights."""
    cumulative = list(itertools.accumulate(weights))
    return Table(items, cumulative, [math.log2(w / cumulative[-1]) for w in weights])


class Grammar:
    """A grammar file in memory.

    lists: name → [(entry, weight)], an entry being {attribute: text}; rules: name → [(Alternative,
    weight)]; variables: name → the list it draws from. Raises ValueError naming the line at fault.
    """

    def __init__(self, path):
        self.path, self.lists, self.rules, self.variables = pathlib.Path(path), {}, {}, {}
        self._tables, self._lines = {}, {}
        with open(path, encoding="utf-8") as file:
            rows = [(n, row.rstrip("\n")) for n, row in enumerate(file, start=1)]
        header = None
        for number, row in rows:
            if not row.strip() or row.lstrip().startswith("#"):
                continue
            if not row.startswith(" "):
                header = self._read_header(number, row)
            elif header is None:
                self.fail(number, "this line belongs to no list or rule")
            elif header[0] == "list":
                self._read_entries(number, row.strip(), header)
            else:
                self._read_alternative(number, row.strip(), header)
        self._check()

    def fail(self, number, why):
        """Raise ValueError for a line of the file."""
        raise ValueError(f"{self.path}, line {number}: {why}")

    def _read_header(self, number, row):
        kind, name, *attributes = [part.strip() for part in re.split(r"^(\w+) |\|", row) if part]
        found = re.fullmatch(r"(\w+)(?: \^([0-9]+\.?[0-9]*))?", name)
        if kind not in ("list", "rule") or not found:
            self.fail(number, f"{row!r} should read 'list name' or 'rule name'")
        name, power = found.groups()
        known = self.lists if kind == "list" else self.rules
        if name in known:
            self.fail(number, f"{kind} {name!r} stands in line {self._lines[kind, name]} already")
        known[name], self._lines[kind, name] = [], number
        if power and (kind == "rule" or float(power) > 9):
            self.fail(number, "a power, at most 9, stands in the head of a list only")
        law = (0, float(power)) if power else NEARLY_ALIKE
        return kind, name, law, ["text", *attributes]

    def _weight(self, number, row):
        """Split an explicit weight (None if there is none) from a row."""
        weight, rest = re.fullmatch(r"(?:(\d+\.?\d*) )?(.*)", row).groups()
        if weight and not float(weight):
            self.fail(number, "a weight of 0 could never be chosen: remove the line")
        return weight and float(weight), rest.strip()

    def _read_entries(self, number, row, header):
        _, name, (shift, power), attributes = header
        entries = self.lists[name]
        weight, rest = self._weight(number, row)
        texts, *cells = [cell.strip() for cell in rest.split("|")]
        if len(cells) != len(attributes) - 1:
            self.fail(number, f"list {name} has {len(attributes)} columns, this line has "
                              f"{len(cells) + 1}")
        for text in texts.split(","):
            entry = dict(zip(attributes, [text.strip(), *cells]))
            if not entry["text"]:
                self.fail(number, "a word is missing beside a comma")
            if any(entry["text"] == other["text"] for other, _ in entries):
                self.fail(number, f"{text.strip()!r} is in list {name} twice")
            if entry.setdefault("a", "-") == "-":
                entry["a"] = ("an " if VOWEL_SOUND.match(entry["text"]) else "a ") + entry["text"]
            entry.update({"^" + k: v[:1].upper() + v[1:] for k, v in entry.items()})
            entries.append((entry, weight or (1 + len(entries) + shift) ** -power))

    def _read_alternative(self, number, row, header):
        alternatives = self.rules[header[1]]
        weight, rest = self._weight(number, row)
        guards, template = re.fullmatch(r"(?:\[([^]]*)\] ?)?(.*)", rest).groups()
        guards = tuple(self._condition(number, part, True) for part in (guards or "").split(",")
                       if part)
        pieces = () if template == "-" else tuple(self._pieces(number, template))
        weight = weight or (1 + len(alternatives)) ** -2
        alternatives.append((Alternative(guards, pieces, number), weight))

    def _pieces(self, number, template):
        for part in re.split(r"(\{[^{}]*\}| ?<\w+>)", template):
            if part.startswith("{") and part.endswith("}"):
                yield self._slot(number, part[1:-1])
            elif part.lstrip().startswith("<"):
                yield Call(part.strip(" <>"), part[:part.index("<")])
            elif set(part) & set("{}<>"):
                self.fail(number, f"a bracket in {part!r} has no partner")
            elif part:
                yield part

    def _slot(self, number, text):
        form = r"(\^?)(?:(\w+)([=:]))?(\w+)(?:\(([^()]*)\))?(?:\.(\w+))?"
        found = re.fullmatch(form, text)
        if not found:
            self.fail(number, f"cannot read the slot {{{text}}}")
        capital, variable, sign, name, conditions, attribute = found.groups()
        conditions = tuple(self._condition(number, part, False)
                           for part in (conditions or "").split(",") if part)
        key = "" if sign == ":" else capital + (attribute or "text")
        if variable:
            if self.variables.setdefault(variable, name) != name:
                self.fail(number, f"variable {variable!r} draws from list "
                                  f"{self.variables[variable]!r} elsewhere, here from {name!r}")
            return Slot(variable, name, conditions, key)
        return Slot("", name, conditions, key)  # _check tells lists from variables

    def _condition(self, number, text, guard):
        found = re.fullmatch(r"(!?)(?:(\w+)\.)?(\w+)(?:(!?=)(?:(\w+)\.)?(.+))?", text.strip())
        if not found or not (guard or found[4]) or (found[1] and found[4]):
            self.fail(number, f"cannot read the condition {text!r}")
        no, variable, attribute, sign, other, value = found.groups()
        if guard and not variable:  # [s=winter] looks at s.text, [k] whether k is set
            variable, attribute = attribute, "text"
        return Condition(variable or "", attribute, sign != "!=" and not no, other or "",
                         value.strip() if value else "")

    def _check(self):
        """Refuse names that mean nothing; tell slots that repeat a variable from choices."""
        if "story" not in self.rules:
            self.fail(1, "the file has no rule 'story'")
        for kind, name in self._lines:
            if not (self.lists if kind == "list" else self.rules)[name]:
                self.fail(self._lines[kind, name], f"{kind} {name!r} is empty")
        for name, alternatives in self.rules.items():
            self.rules[name] = [(a._replace(pieces=tuple(self._resolve(a.line, p)
                                                         for p in a.pieces)), w)
                                for a, w in alternatives]

    def _resolve(self, number, piece):
        if type(piece) is Call and piece.rule not in self.rules:
            self.fail(number, f"there is no rule {piece.rule!r}")
        if type(piece) is not Slot:
            return piece
        if not piece.variable and piece.list in self.variables:
            piece = piece._replace(variable=piece.list, list="")
        source = piece.list or self.variables[piece.variable]
        if source not in self.lists:
            self.fail(number, f"there is no list or variable {source!r}")
        self._need(number, source, piece.key or "text")
        for condition in piece.conditions:
            self._need(number, source, condition.attribute)
            if condition.other:
                if condition.other not in self.variables:
                    self.fail(number, f"there is no variable {condition.other!r}")
                self._need(number, self.variables[condition.other], condition.value)
        return piece

    def _need(self, number, source, key):
        if key not in self.lists[source][0][0]:
            self.fail(number, f"list {source!r} has no column {key.lstrip('^')!r}")

    def holds(self, condition, entry, state):
        """Tell whether a condition holds for an entry (or a guard), given what is remembered."""
        left = state.get(condition.variable) if condition.variable else entry
        if left is None or not condition.value:
            return (left is not None) == condition.equal
        if condition.other and condition.other not in state:
            return True
        right = state[condition.other][condition.value] if condition.other else condition.value
        left = left[condition.attribute]
        same = left == right or condition.attribute != "text" and bool(
            set(left.split()) & set(right.split()))
        return same == condition.equal

    def words(self, slot, state):
        """Return the Table of entries that a choosing slot may take in this state."""
        seen = [state[c.other][c.value] if c.other in state else None
                for c in slot.conditions if c.other]
        key = (slot.list, slot.conditions, *seen)
        if key not in self._tables:
            fit = [(e, w) for e, w in self.lists[slot.list]
                   if all(self.holds(c, e, state) for c in slot.conditions)]
            if not fit:
                raise ValueError(f"{self.path}: no word of list {slot.list!r} fits "
                                 f"{slot.conditions} with {seen}")
            self._tables[key] = make_table(*zip(*fit))
        return self._tables[key]

    def alternatives(self, name, state):
        """Return the Table of alternatives that a rule may take in this state (None: in any)."""
        every = self.rules[name]
        fit = tuple(state is None or all(self.holds(g, None, state) for g in a.guards)
                    for a, _ in every)
        if (name, fit) not in self._tables:
            if not any(fit):
                self.fail(self._lines["rule", name], f"no alternative of rule {name!r} fits")
            self._tables[name, fit] = make_table(*zip(*itertools.compress(every, fit)))
        return self._tables[name, fit]


@functools.lru_cache(maxsize=None)
def grammar(language):
    """Return the Grammar of a language, read once per process from the file beside this one."""
    if language not in LANGUAGES:
        raise ValueError(f"unknown language {language!r}: choose {' or '.join(LANGUAGES)}")
    return Grammar(pathlib.Path(__file__).with_name(f"stories_{language}.txt"))


# ---------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------

class Writer:
    """One story in the making: its pieces so far, its memory, its bits."""

    def __init__(self, grammar_, uniform):
        self.grammar, self.uniform = grammar_, uniform
        self.out, self.state, self.log2 = [], {}, 0.0

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
        pieces = self.choose(self.grammar.alternatives(rule, self.state)).pieces
        if pieces and lead:
            self.out.append(lead)
        for piece in pieces:
            if type(piece) is str:
                self.out.append(piece)
            elif type(piece) is Call:
                self.write(piece.rule, piece.lead)
            else:
                self.out.append(self.fill(piece))

    def fill(self, slot):
        if not slot.list:
            return self.state[slot.variable][slot.key]
        entry = self.choose(self.grammar.words(slot, self.state))
        if slot.variable:
            if slot.variable in self.state:
                raise ValueError(f"{self.grammar.path}: {slot.variable!r} is chosen twice")
            self.state[slot.variable] = entry
        return entry[slot.key] if slot.key else ""


def stories(language, count, seed):
    """Return `count` different stories of a language ("en" or "zh") as a list of Story.

    The same seed gives the same stories on every machine, and fewer of them are the first of more.
    `log2_probability` is that of the derivation, the bit for the language included; that a repeated
    story is thrown away raises it by a share no larger than that of the repeats, which is left out.
    """
    if count < 0:
        raise ValueError(f"count is {count}: give 0 or more")
    # Seeding with a str and random() are the parts of `random` that no Python version changes.
    uniform = random.Random(f"nanoseek stories {language} {seed}").random
    rules, found, seen = grammar(language), [], set()
    while len(found) < count:
        writer = Writer(rules, uniform)
        writer.write("story")
        text = "".join(writer.out)
        if text not in seen:
            seen.add(text)
            # Rounded, since the last digits of log2 differ between machines.
            found.append(Story(text, f"stories_{language}",
                               round(writer.log2 + LOG2_LANGUAGE, 6)))
    return found


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------

class _Reader:
    """Finds the derivations of a text, or of one sentence.

    strict: choices and guards as when writing. Not strict: a slot takes any word of its list,
    whatever is remembered (the state then holds what stood there last), and guards are ignored.
    """

    def __init__(self, grammar_, strict=True, remember=True):
        self.grammar, self.strict, self._indexes = grammar_, strict, {}
        self.remember = remember  # without, readings that end at one place are one: never many

    def read(self, pieces, text, found):
        """Carry each (position, state, log2) of `found` over the pieces; return those that fit."""
        for piece in pieces:
            if type(piece) is str:
                found = [(at + len(piece), state, log2) for at, state, log2 in found
                         if text.startswith(piece, at)]
            else:
                step = self._rule if type(piece) is Call else self._slot
                found = [end for start in found for end in step(piece, text, *start)]
                if not self.remember:
                    found = list({end[0]: end for end in found}.values())
                if not self.strict:  # only to explain: some readings say enough
                    found = found[:MOST_PLACES]
            if not found:
                break
        return found

    def _rule(self, call, text, at, state, log2):
        table = self.grammar.alternatives(call.rule, state if self.strict else None)
        ends = []
        for alternative, bits in zip(table.items, table.log2):
            if not alternative.pieces:
                ends.append((at, state, log2 + bits))
            elif text.startswith(call.lead, at):
                start = (at + len(call.lead), state, log2 + bits)
                ends += self.read(alternative.pieces, text, [start])
        return ends

    def _slot(self, slot, text, at, state, log2):
        known = state.get(slot.variable) if self.strict and not slot.list else None
        if known:
            word = known[slot.key]
            return [(at + len(word), state, log2)] if text.startswith(word, at) else []
        words = self._words(slot, state).get(text[at:at + 1] if slot.key else "", ())
        keep = slot.variable and self.remember
        return [(at + len(word), {**state, slot.variable: entry} if keep else state,
                 log2 + bits) for word, entry, bits in words if text.startswith(word, at)]

    def _words(self, slot, state):
        """Return {first letter: [(word, entry, log2)]} of what may stand in a slot."""
        if not slot.list or not self.strict:
            name = slot.list or self.grammar.variables[slot.variable]
            slot = slot._replace(list=name, conditions=())
        table = self.grammar.words(slot, state)
        if (id(table), slot.key) not in self._indexes:
            index = self._indexes[id(table), slot.key] = {}
            for entry, bits in zip(table.items, table.log2):
                word = entry[slot.key] if slot.key else ""
                index.setdefault(word[:1], []).append((word, entry, bits))
        return self._indexes[id(table), slot.key]


def log2_probability(text):
    """Return log2 of the summed probability of all derivations of a text, language included.

    Minus infinity for a text that the grammar cannot write. That of a Story is of one derivation;
    where its text has a second one, this is larger.
    """
    rules = grammar(language_of(text))
    ends = _Reader(rules).read((Call("story", ""),), text, [(0, {}, 0.0)])
    total = math.fsum(2.0 ** log2 for at, _, log2 in ends if at == len(text))
    return math.log2(total) + LOG2_LANGUAGE if total else -math.inf


# ---------------------------------------------------------------------------------------------
# Judging
# ---------------------------------------------------------------------------------------------

def sentences(text):
    """Split a story into its sentences: after . ! ? and a closing quote, before a capital."""
    return [part for part in map(str.strip, _cut(text, "")) if part]


def _cut(text, after):
    """Cut a text at its sentence ends, seeing also the text that comes after."""
    ends = [m.end() for m in SENTENCE_END.finditer(text + after) if m.end() <= len(text)]
    return [text[a:b] for a, b in zip([0, *ends], [*ends, len(text)])]


class Plan:
    """The order in which the sentences of a grammar may stand: a graph whose nodes are sentences.

    nodes: the guards and pieces of each; node 0 stands before the story and is empty; follow: the
    nodes that may come after each; ends: the nodes that may be the last.
    """

    def __init__(self, rules):
        self.rules, self.nodes, self.follow = rules, [((), ())], [[]]
        self.reader, self.loose = _Reader(rules), _Reader(rules, strict=False)
        self.any = _Reader(rules, strict=False, remember=False)
        self._line, self._answers = None, {}  # of the sentence looked at last, node → may write it
        self.ends = set(self._add("story", [0], (), ()))

    def _add(self, rule, heads, guards, silent):
        """Append a rule to the nodes `heads`; return its last nodes.

        guards, silent: conditions and silent choices that belong to the sentence that comes next.
        """
        ends = []
        for alternative, _ in self.rules.rules[rule]:
            last, before, choices = heads, guards + alternative.guards, silent
            for part in self._parts(alternative):
                if type(part) is Call:
                    last = self._add(part.rule, last, before, choices)
                elif all(type(piece) is Slot and not piece.key for piece in part):
                    choices += part
                    continue
                else:
                    self.nodes.append((before, choices + part))
                    self.follow.append([])
                    for node in last:
                        self.follow[node].append(len(self.nodes) - 1)
                    last = [len(self.nodes) - 1]
                before, choices = (), ()
            ends += last
        return list(dict.fromkeys(ends))

    def _parts(self, alternative):
        """Yield the sentences of an alternative (tuples of pieces) and its rules of sentences."""
        part = []
        for index, piece in enumerate(alternative.pieces):
            rest = alternative.pieces[index + 1:]
            if type(piece) is Call and self._whole(piece.rule):
                yield from [tuple(part)] if part else []
                part = []
                yield piece
            elif type(piece) is str:
                *done, piece = _cut(piece, self._opening(rest))
                for text in done:
                    yield (*part, text if part else text.lstrip())
                    part = []
                part += [piece] if part and piece else [piece.lstrip()] if piece.strip() else []
            else:
                part.append(piece._replace(lead="") if type(piece) is Call and not part else piece)
        yield from [tuple(part)] if part else []

    def _whole(self, rule):
        """Tell whether a rule writes whole sentences, not parts of one."""
        last = next(a.pieces[-1] for a, _ in self.rules.rules[rule] if a.pieces)
        return self._whole(last.rule) if type(last) is Call else \
            type(last) is str and len(_cut(last, "")) > 1

    def _opening(self, pieces):
        """Return a text that these pieces may begin with: enough to see a capital."""
        for piece in pieces:
            if type(piece) is str:
                return piece
            if type(piece) is Call:
                return piece.lead + self._opening(
                    next(a.pieces for a, _ in self.rules.rules[piece.rule] if a.pieces))
            if piece.key:
                words = self.rules.lists[piece.list or self.rules.variables[piece.variable]]
                return words[0][0][piece.key]
        return ""

    def steps(self, places, line, reader):
        """Return the (node, state) that a sentence leads to from any (node, state) of places."""
        found, many = {}, len(places) > MANY_PLACES
        for node, state in places:
            for after in self.follow[node]:
                guards, pieces = self.nodes[after]
                if (not many or self._may(after, line)) and \
                        all(self.rules.holds(g, None, state) for g in guards):
                    for at, new, _ in reader.read(pieces, line, [(0, state, 0.0)]):
                        if at == len(line):
                            found[(after, *map(id, new.values()))] = (after, new)
        return list(found.values())

    def knows(self, line):
        """Tell whether the grammar can write this sentence, wherever."""
        return any(self._may(node, line) for node in range(len(self.nodes)))

    def _may(self, node, line):
        """Tell whether a node can write this sentence, whatever is remembered: quick to refuse."""
        if self._line != line:
            self._line, self._answers = line, {}
        if node not in self._answers:
            self._answers[node] = any(at == len(line) for at, _, _ in self.any.read(
                self.nodes[node][1], line, [(0, {}, 0.0)]))
        return self._answers[node]

    def explain(self, places, line):
        """Say why a sentence that the grammar can write does not fit in any of these places."""
        clashes = []
        for node, state in places[:5]:  # enough to name a likely cause
            for _, new in self.steps([(node, state)], line, self.loose):
                clashes.append([(self.rules.variables[v], state[v]["text"]) for v in state
                                if new[v] is not state[v]])
        if not clashes:
            return "it does not follow from the sentence before"
        best = min(clashes, key=len)
        return " and ".join(f"the {kind} should be {word}" for kind, word in best) or \
            "it does not agree with what was said before"

    def strangers(self, line, states):
        """Return the facts in a freely worded sentence that the story has not brought in."""
        known = [{id(entry) for entry in state.values()} for state in states]
        found = []
        for name in FACTS:
            for entry, _ in self.rules.lists[name]:
                if _has_word(line, entry["text"]) and not any(id(entry) in k for k in known):
                    found.append(entry["text"])
        for pronoun in {entry["they"] for entry, _ in self.rules.lists["name"]}:
            people = {e.get("they") for state in states for e in state.values()}
            if _has_word(line, pronoun) and pronoun not in people:
                found.append(pronoun)
        return found


def _has_word(line, word):
    if word.isascii():
        return re.search(rf"\b{re.escape(word)}\b", line, re.IGNORECASE) is not None
    return word in line


@functools.lru_cache(maxsize=None)
def plan_of(language):
    """Return the Plan of a language, made once per process."""
    return Plan(grammar(language))


def check_story(text):
    """Return what is inconsistent in a story, in plain words: an empty list when nothing is.

    A sentence that the grammar can write is judged by its rules: it must stand where a story of
    some shape allows it, and its names, pronouns, objects and who has them, seasons, places and
    promises must agree with the sentences before. A sentence worded as the grammar never would is
    judged only by its names, objects, seasons and pronouns: none may come from nowhere; and only
    one sentence in FREE_SHARE may be of that kind. The last sentence must be one that may end a
    story, which a promise made and not yet kept forbids. Spelling and beauty are not judged.
    """
    plan, lines = plan_of(language_of(text)), sentences(text)
    places, free, problems = [(0, {})], [], []
    for number, line in enumerate(lines, start=1):
        after = plan.steps(places, line, plan.reader)
        if not after and plan.knows(line):
            return [f"sentence {number}: {plan.explain(places, line)}"]
        if not after:  # it may stand for a sentence of the plan, or be one more
            free.append((number, line))
            if len(free) > len(lines) // FREE_SHARE:  # decided; going on would only take longer
                return [f"sentences {', '.join(str(n) for n, _ in free)} are not of this world"]
            after = places + [(n, state) for node, state in places for n in plan.follow[node]]
            after = list({(node, *map(id, state.values())): (node, state)
                          for node, state in after}.values())[:MOST_PLACES]
        places = after
    for number, line in free:
        problems += [f"sentence {number}: {word} comes from nowhere"
                     for word in plan.strangers(line, [state for _, state in places])]
    if not any(node in plan.ends for node, _ in places):
        problems.append("the story breaks off" if lines else "there is no story")
    return problems


def language_of(text, share=0.0):
    """Return "zh" for a text of which more than this share is Chinese characters, else "en"."""
    return "zh" if len(re.findall(r"[\u4e00-\u9fff]", text)) > share * len(text) else "en"


def main(argv=None):
    """Print stories."""
    from nanoseek import cli
    parser = cli.Parser("nanoseek.corpus.stories", "Print stories of the bilingual grammar.")
    parser.add_argument("--language", default="en", choices=LANGUAGES, help="en or zh")
    parser.add_argument("--count", type=int, default=5, help="how many stories")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other stories")
    args = parser.parse_args(argv)
    for story in stories(args.language, args.count, args.seed):
        print(f"{story.text}\n    {story.log2_probability:.1f} bits\n")


if __name__ == "__main__":
    from nanoseek import cli
    cli.run(main)
