"""dirt.py: the share of dirt is met, its labels are true."""

import collections
import json
import re
import unicodedata

import pytest
from sample_texts import documents_of

MODULE = "nanoseek.corpus.dirt"


ENGLISH = [f"The {adjective} miller of {place}, who had {count} sons, said to them that the wheel "
           f"would stand still until {season}. They waited by the river: nobody knew why."
           for adjective in ("old", "young", "tall", "poor") for place in ("Ashby", "Oak", "Wick")
           for count in ("two", "three", "nine") for season in ("spring", "autumn", "noon")]
CHINESE = [f"{place}有个{adjective}磨坊主，他有{count}个儿子。他对他们说：水车要等到{season}才会转动，"
           "于是大家坐在河边等着，谁也不知道为什么。"
           for adjective in ("年老的", "年轻的", "高个子") for place in ("东村", "西庄", "南镇")
           for count in "两三九" for season in ("春天", "秋天", "中午")]
CLEAN = documents_of(ENGLISH, "en") + documents_of(CHINESE, "zh")


@pytest.mark.parametrize("share", [0.0, 0.22, 0.5, 0.9])
def test_the_share_of_dirt_is_met_in_equal_parts(module, share):
    documents, labels = module.plant_dirt(CLEAN, 5, share)
    counts = collections.Counter(label.kind for label in labels)
    clean = counts.pop("clean")
    assert len(documents) == len(labels)
    assert 1 - clean / len(labels) == pytest.approx(share, abs=0.03)
    assert set(counts) == (set(module.DIRT) if share else set())
    assert max(counts.values(), default=0) == min(counts.values(), default=0)


def test_labels_tell_the_truth(module):
    documents, labels = module.plant_dirt(CLEAN, 5, 0.8)
    texts = {d["text"] for d in CLEAN}
    assert collections.Counter(d["text"] for d, label in zip(documents, labels)
                               if label.kind == "clean").most_common(1)[0][1] == 1
    for document, label in zip(documents, labels):
        text = document["text"]
        if label.original is not None:
            original = documents[label.original]["text"]
            assert labels[label.original].kind == "clean"
        if label.kind in ("clean", "exact"):
            assert text in texts and (label.kind == "clean" or text == original)
        elif label.kind == "near":
            words, others = (re.findall(r"[一-龥]|[^\W一-龥]+", t) for t in (text, original))
            changed = sum(a != b for a, b in zip(words, others)) / len(words)
            assert len(words) == len(others) and changed <= label.changed <= 0.11
        elif label.kind == "format":
            assert text != original
            assert re.sub(r"[\W_]", "", fold(text)) == re.sub(r"[\W_]", "", fold(original))
        elif label.kind == "boilerplate":
            assert text.split("\n\n")[1] in texts
        else:
            assert text not in texts and label.original is None


def fold(text):
    return unicodedata.normalize("NFKC", text).lower()


def test_dirt_is_the_same_for_a_seed_and_changes_nothing_given(module):
    before = json.dumps(CLEAN)
    first = module.plant_dirt(CLEAN, 1, 0.5)
    assert json.dumps(CLEAN) == before
    assert module.plant_dirt(CLEAN, 1, 0.5) == first != module.plant_dirt(CLEAN, 2, 0.5)
    with pytest.raises(ValueError, match="share"):
        module.plant_dirt(CLEAN, 1, 1.0)
    with pytest.raises(ValueError, match="give a document"):
        module.plant_dirt([], 1)


def test_dirt_among_odd_documents(module):
    odd = documents_of(["", "?", "one", "字", "two words"] * 4)
    documents, labels = module.plant_dirt(odd, 3, 0.8)
    assert {label.kind for label in labels} == {"clean", *module.DIRT}
