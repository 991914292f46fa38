"""evaluate.py: bits per byte against a plain sum, windows that score everything once."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanoseek import data, evaluate
from nanoseek.checkpoint import save_model
from nanoseek.lab.report import format_scores
from nanoseek.model import ModelConfig, Transformer

EOT = 256


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=257, hidden_size=32, intermediate_size=48,
                                   num_hidden_layers=2, max_position_embeddings=32,
                                   initializer_range=0.1)).eval()


@given(st.integers(0, 200), st.integers(1, 40), st.data())
def test_windows_predict_every_id_once_with_enough_past(count, context, draw):
    stride = draw.draw(st.integers(1, context))
    seen = []
    for piece, skip in evaluate.windows(list(range(count)), context, stride):
        assert len(piece) <= context + 1
        for place, predicted in enumerate(piece[1:]):
            if place >= skip:
                seen.append(predicted)
                past = place + 1
                assert past == predicted or past >= context - stride
    assert seen == list(range(1, count))


def test_nats_equal_a_plain_sum_one_document_at_a_time(model):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 257, n) for n in (2, 33, 5, 17, 1, 29)]
    expected = 0.0
    with torch.no_grad():
        for ids in documents:
            logits = model(torch.from_numpy(ids[None, :-1])) if len(ids) > 1 else None
            if logits is not None:
                rows = logits[0].log_softmax(-1)
                expected -= rows[torch.arange(len(ids) - 1), torch.from_numpy(ids[1:])].sum().item()
    assert evaluate.nats(model, documents) == pytest.approx(expected, rel=1e-5)


def test_nats_equal_transformers_own_loss(model, tmp_path):
    from transformers import AutoModelForCausalLM
    save_model(model, tmp_path / "m")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    ids = torch.randint(257, (1, 30), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = theirs(input_ids=ids, labels=ids).loss.item() * 29
    assert evaluate.nats(model, [ids[0].numpy()]) == pytest.approx(expected, rel=1e-5)


def test_scores_by_source(model, tmp_path):
    def bytes_of(text):
        return list(text.encode("utf-8"))
    documents = [{"text": "train me", "source": "known"}, {"text": "training", "source": "free"},
                 {"text": "held", "source": "known", "split": "held_out", "log2_probability": -6.0},
                 {"text": "é", "source": "known", "split": "held_out", "log2_probability": -3.0},
                 {"text": "out", "source": "free", "split": "held_out"}]
    data.write_shards(documents, bytes_of, tmp_path / "t", 257, EOT)
    scores = evaluate.evaluate(model, tmp_path / "t")
    known, free = scores["known"], scores["free"]
    assert known.documents == 2 and known.floor == 9.0 / 6
    expected = evaluate.nats(model, [np.array([EOT, *bytes_of(text), EOT])
                                     for text in ("held", "é")])
    assert known.bits_per_byte == pytest.approx(expected / math.log(2) / 6)
    # Unigram by hand: 9 training tokens plus one for each of the 257 ids.
    counts = {token: bytes_of("training").count(token) for token in bytes_of("out")}
    bits = -sum(math.log2((n + 1) / (9 + 257)) for n in counts.values()) - math.log2(2 / 266)
    assert free.unigram == pytest.approx(bits / 3)
    assert free.floor is None
    way = (known.unigram - known.bits_per_byte) / (known.unigram - 1.5)
    table = format_scores(scores)
    assert "known" in table and "1.500" in table and f"{way:.0%}\n" in table


def test_a_quick_look_equals_the_scores(model, tmp_path):
    class Bytes:
        decode_bytes = staticmethod(bytes)
    documents = [{"text": text, "source": "s", "split": split}
                 for text, split in (("train", "train"), ("held out", "held_out"), ("é", "held_out"))]
    data.write_shards(documents, lambda text: list(text.encode("utf-8")), tmp_path / "t", 257, EOT)
    scores = evaluate.evaluate(model, tmp_path / "t")
    held = evaluate.held_out(tmp_path / "t")["s"]
    assert evaluate.bits_per_byte(model, Bytes, held) == pytest.approx(scores["s"].bits_per_byte)
    assert len(held) == 2 and len(evaluate.held_out(tmp_path / "t", limit=9)["s"]) == 1


def test_another_vocabulary_is_refused(model, tmp_path):
    documents = [{"text": "a", "source": "s"}, {"text": "b", "source": "s", "split": "held_out"}]
    data.write_shards(documents, lambda text: [1], tmp_path / "t", 300)
    with pytest.raises(ValueError, match="vocabulary of 300"):
        evaluate.evaluate(model, tmp_path / "t")
