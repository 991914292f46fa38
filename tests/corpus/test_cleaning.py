"""cleaning.py: one spelling, rules that catch their kind and spare good text, boilerplate."""

import base64
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
    ("\x93Don\x92t!\x94 5 \x80", "“Don’t!” 5 €"), ("a\x85b", "a\nb"),
])
def test_normalise_folds_what_is_safe_and_leaves_the_rest(module, raw, clean):
    assert module.normalise(raw) == clean


@pytest.mark.parametrize("one, other, alike", [
    ("Hello, World!", "hello  world", True), ("你好，世界。", "你好世界", True),
    ("“Hi,” he said.", "\"hi\" he said", True), ("Don’t stop!", "don't stop", True),
    ("ＡＢＣ", "abc", True), ("The end …", "the end!!", True), ("x+y", "x-y", False),
    ("1.5", "15", False), ("x * y", "x / y", False), ("दिन", "दीन", False), ("hi 😀", "hi 😂", False),
    ("10²", "102", False), ("1½", "11⁄2", False), ("1 12 3", "11 2 3", False), (".5 mm", "5 mm", False),
    ("-5 degrees", "5 degrees", False), ("1, 2; 3", "1 2\n3", True), ("well-known", "well known", True),
    ("ｶﾞｽ", "ガス", True), ("Ｘ＋１", "x+1", True), ("A - B", "a: b", True),
])
def test_copies_differ_in_spelling_and_never_in_meaning(module, one, other, alike):
    assert (module.fold(one) == module.fold(other)) == alike


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
    ("repeated phrases", "\n".join(["a line of text"] * 12 + ["one more here", "and another one"]
                                   + ["a line of text"] * 12)),
    ("few different words", " ".join(random.Random(1).choices(["boots", "hats", "shoes"], k=60))),
    ("lines too short", "\n".join(f"{word}line" for word in "abcdefghijklm")),
])
def test_each_rule_catches_its_kind(module, rule, text):
    assert module.broken_rule(module.normalise(text)) == rule


@pytest.mark.parametrize("text", [
    # Written for this test: Vietnamese, Polish, Finnish, Turkish, Swahili, Hindi, Tamil, Thai,
    # Burmese, Arabic, Greek, long German words, Japanese, Chinese verse, code with comments.
    "Chiếc cối xay cũ nằm bên bờ sông, và từ mùa thu đến giờ chưa ai nghe thấy tiếng nó quay. " * 2,
    "Stary młyn stoi nad rzeką i od jesieni nikt go nie słyszał, choć woda płynie jak dawniej.",
    "Vanhan myllyn ratas seisoo hiljaa, eikä kukaan muista, milloin jauhoja viimeksi kuljetettiin.",
    "Eski değirmen nehrin kıyısında duruyor ve sonbahardan beri kimse onun sesini duymadı.",
    "Kinu cha zamani kiko kando ya mto na tangu vuli hakuna aliyesikia sauti yake tena.",
    "पुरानी चक्की नदी के किनारे खड़ी है और पतझड़ के बाद से किसी ने उसकी आवाज़ नहीं सुनी है।",
    "பழைய ஆலை ஆற்றங்கரையில் நிற்கிறது, இலையுதிர்காலத்திலிருந்து யாரும் அதன் ஒலியைக் கேட்கவில்லை.",
    "โรงสีเก่าตั้งอยู่ริมแม่น้ำ และตั้งแต่ฤดูใบไม้ร่วงก็ไม่มีใครได้ยินเสียงของมันอีกเลย",
    "ဆန်စက်ဟောင်းသည် မြစ်ကမ်းဘေးတွင် ရပ်နေပြီး ဆောင်းဦးကတည်းက ၎င်း၏အသံကို မည်သူမျှ မကြားရပါ။",
    "تقف الطاحونة القديمة على ضفة النهر، ومنذ الخريف لم يسمع أحد صوتها.",
    "Ο παλιός μύλος στέκει δίπλα στο ποτάμι και από το φθινόπωρο κανείς δεν τον έχει ακούσει.",
    "Für Straßenbahnhaltestellen und Lebensmittelverpackungen gelten Verwaltungsvorschriften.",
    "古い水車小屋は川のそばに立っていて、秋からだれもその音を聞いていません。",
    "江上晚来风渐起，舟中客子听新雨。半生行路知何处，一夜潮声到枕边。灯影摇窗人未睡，故山明月几回圆。",
    "# Count the words.\ncounts = {}\nfor word in words:\n    # one more of this word\n"
    "    counts[word] = counts.get(word, 0) + 1\n# the most frequent first\nprint(counts)",
])
def test_clean_text_of_any_language_breaks_no_rule(module, text):
    assert module.broken_rule(module.normalise(text)) is None


REFRAIN = "\nRow, row, the night is long,\nrow, row, the wind is strong,\nrow, my brothers, row.\n"
VERSES = ["The evening bell is ringing", "The morning lamp is burning", "The winter ice is breaking"]
NUMBERS = "One Two Three Four Five Six Seven Eight Nine Ten".split()


@pytest.mark.parametrize("text", [
    # Songs: with a refrain, in which each line stands three times, that counts.
    "\n".join(verse + REFRAIN for verse in VERSES), "天上星星亮晶晶。\n摇啊摇，摇到外婆桥。\n" * 3 + "月儿弯弯。",
    "\n".join(3 * f"{who} sleeps by the river,\n" + "And the mill goes round.\n" + 3 * "Turn, mill, turn,\n"
              for who in ("The miller", "His daughter", "The donkey")),
    "\n".join(f"{more} brown jugs on the miller's wall,\n{more} brown jugs on the miller's wall,\n"
              f"And if one jug should happen to fall,\n{less} brown jugs on the miller's wall."
              for more, less in zip(NUMBERS[::-1], NUMBERS[-2::-1])),
    # A recipe, sums, a proof, steps in formulas, a dialogue line by line, halting speech.
    "Soup\n\nOnions\nCarrots\nLeeks\nButter\nSalt\nPepper\nThyme\nCream\n\nCut all of it. Boil it. Stir.",
    "12 * 34 = 12 * 30 + 12 * 4\n= 360 + 48\n= 408\nCheck: 408 / 12 = 34, so that is right.",
    "Let n be even. Then n = 2k.\nn + 2 = 2k + 2\n= 2(k + 1).\nSo n + 2 is even. Q.E.D.",
    "\n".join(f"x_{n} = x_{n - 1} - f(x_{n - 1}) / g(x_{n - 1})" for n in range(1, 13)),
    "\n".join("ANN.\nYes.|BEN.\nNo.|ANN.\nYes!|BEN.\nWhy?|ANN.\nBecause.|BEN.\nOh, Ann.".split("|")),
    "“Well … I … I do not know … maybe … it was dark … and I heard …” She stopped. “What …?”",
])
def test_lines_that_repeat_by_nature_break_no_rule(module, text):
    assert module.broken_rule(module.normalise(text)) is None


def test_base64_is_told_from_languages_of_long_words_whatever_it_holds(module):
    rng = random.Random(3)
    for _ in range(200):
        text = base64.encodebytes(rng.randbytes(rng.randrange(200, 900))).decode()
        assert module.broken_rule(module.normalise(text)) == "words too long"


def test_each_rule_is_measured_and_names_its_limits_and_source(module):
    assert [name for name, _ in module.measures(GOOD[0])] == [*module.LIMITS]
    assert all(source and least <= most for least, most, source in module.LIMITS.values())


def test_what_is_in_a_rare_script_is_foreign_however_good(module):
    russian = "Старая мельница стоит у реки, и никто не слышал её с осени."
    faults = module.faults([*GOOD * 20, russian, "Click here."])
    assert faults == [None] * 80 + ["foreign script", "too few words"]
    assert module.faults([russian] * 3) == [None] * 3 and module.faults([]) == []


# Boilerplate -------------------------------------------------------------------------------

MENU, NOTICE = "Home | Stories | Weather | About us", "Copyright Green Lane Press. All rights."


def test_boilerplate_frames_many_texts(module):
    texts = [f"{MENU}\n\nbody number {n}\nThe end.\n{NOTICE}" for n in range(12)]
    lines = module.boilerplate_lines(texts, 10)
    assert lines == {MENU, NOTICE}
    assert module.strip_lines(texts[3], lines) == "body number 3\nThe end."
    assert module.boilerplate_lines(texts, 13) == set()
    # It is so many of a small corpus, and a share of a large one.
    many = [f"A paragraph.\nNumber {n}." for n in range(5000)]
    assert module.boilerplate_lines(texts[:9] + many, 5) == set()
    assert module.boilerplate_lines(texts + many, 5) == {MENU, NOTICE}


@pytest.mark.parametrize("paragraph", ["A short paragraph.", "A paragraph as long as a chapter. " * 90])
def test_a_footer_alone_is_found_in_many_texts(module, paragraph):
    texts = [f"{n} {paragraph}\n\n{NOTICE}" for n in range(30)]
    assert module.boilerplate_lines([f"{text[:9]}\n{text}\n{MENU}" for text in texts[:5]], 5) == {
        NOTICE, MENU}  # two lines at one end are a frame, too
    assert module.boilerplate_lines(texts, 5) == {NOTICE}
    assert module.boilerplate_lines(texts[:19], 5) == set()
    assert module.boilerplate_lines(texts + [f"{n}\n{n}" for n in range(130)], 5) == set()


@pytest.mark.parametrize("text", [
    "Tale {n} of a king.\nHe had {n} sons.\nAnd they lived happily ever after.",
    "import collections, itertools\nfrom pathlib import Path\n\ndef f{n}():\n    return {n}\n\n"
    "if __name__ == \"__main__\":\n    f{n}()",
    "Which of the rivers is the longest?\nThe answer is {n}.\nI wrote it in the year {n}.",
    "谁知道天上的星星一共有多少颗？\n有{n}颗。\n也许有{n}{n}颗。",
])
def test_what_texts_share_by_nature_is_no_boilerplate(module, text):
    assert module.boilerplate_lines([text.replace("{n}", str(n)) for n in range(6)], 5) == set()


def test_a_run_of_marks_is_cut_to_what_scripts_have(module):
    text = "e" + "\u0316\u0301" * 5000 + "f"  # to sort so many takes a minute
    assert 20 < len(module.normalise(text)) < 40
    few = "e" + "\u0316\u0301" * 9 + "f"
    assert module.normalise(few) == unicodedata.normalize("NFC", few)
