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


@pytest.mark.parametrize("one, other, alike", [
    ("Hello, World!", "hello  world", True), ("你好，世界。", "你好世界", True),
    ("“Hi,” he said.", "\"hi\" he said", True), ("Don’t stop!", "don't stop", True),
    ("ＡＢＣ", "abc", True), ("The end …", "the end!!", True), ("x+y", "x-y", False),
    ("1.5", "15", False), ("x * y", "x / y", False), ("दिन", "दीन", False), ("hi 😀", "hi 😂", False),
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
    ("repeated lines", "\n".join(["a line of text"] * 3 + ["one more here", "and another one"])),
    ("few different words", " ".join(random.Random(1).choices(["boots", "hats", "shoes"], k=60))),
    ("lines too short", "\n".join(f"{word}line" for word in "abcdefghijklm")),
])
def test_each_rule_catches_its_kind(module, rule, text):
    assert module.broken_rule(module.normalise(text)) == rule


@pytest.mark.parametrize("text", [
    # Written for this test: Vietnamese, Polish, Finnish, Turkish, Swahili, Hindi, Tamil, Thai,
    # Burmese, Arabic, Greek, Japanese, Chinese verse, code with comments.
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
    "古い水車小屋は川のそばに立っていて、秋からだれもその音を聞いていません。",
    "江上晚来风渐起，舟中客子听新雨。半生行路知何处，一夜潮声到枕边。灯影摇窗人未睡，故山明月几回圆。",
    "# Count the words.\ncounts = {}\nfor word in words:\n    # one more of this word\n"
    "    counts[word] = counts.get(word, 0) + 1\n# the most frequent first\nprint(counts)",
])
def test_clean_text_of_any_language_breaks_no_rule(module, text):
    assert module.broken_rule(module.normalise(text)) is None


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
