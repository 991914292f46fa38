"""report.py: cloze answers against a plain sum, intervals, and what the command prints."""

import os
import shutil

import numpy as np
import pytest
import torch

from nanoseek import cli, data, evaluate
from nanoseek.evaluate import nats
from nanoseek.lab import cloze, report
from nanoseek.lab.subject import open_subject
from nanoseek.model import ModelConfig, Transformer
from nanoseek.tokenizer import Tokenizer


def test_answers_are_those_of_a_plain_sum(folder):
    """One choice at a time, the likelihood of all of its tokens, over its bytes."""
    torch.manual_seed(3)
    model = Transformer(ModelConfig(vocab_size=300, hidden_size=16, intermediate_size=24,
                                    num_attention_heads=2, num_key_value_heads=1,
                                    max_position_embeddings=2048, initializer_range=0.3)).eval()
    subject = open_subject(folder / "ours")._replace(model=model)
    items = cloze.questions(3, seed=8)
    expected = {ability: [] for ability in cloze.ABILITIES}
    for item in items:
        rates, several = [], [subject.ids(item.context + c, whole=False) for c in item.choices]
        shared = nats(model, [np.array(os.path.commonprefix([list(s) for s in several]))])
        for choice, ids in zip(item.choices, several):
            rates.append((nats(model, [ids]) - shared) / len(choice.encode("utf-8")))
        expected[item.ability].append(min(range(len(rates)), key=rates.__getitem__) == item.answer)
    assert {a: right.tolist() for a, right in report.answer(subject, items).items()} == expected
    assert 0 < sum(map(sum, expected.values())) < len(items)


def test_a_model_that_knows_the_story_answers_every_question(folder, monkeypatch):
    items = cloze.questions(3, seed=9)
    subject = open_subject(folder / "other")
    long = subject._replace(model=Transformer(ModelConfig(
        vocab_size=400, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=4096)))
    known = {item.context + item.choices[item.answer] for item in items}

    def oracle(model, pieces):
        return np.array([0.0 if subject.tokenizer.decode(ids[1:].tolist()) in known
                         else 1.0 * len(ids) for ids, _ in pieces])
    monkeypatch.setattr(report, "piece_nats", oracle)
    right = report.answer(long, items)
    assert all(each.all() and len(each) == 6 for each in right.values()) and len(right) == 5


@pytest.mark.parametrize("right, count, shown", [  # Newcombe 1998, table 1
    (81, 263, "31% (26%–37%)"), (15, 148, "10% (6%–16%)"), (0, 20, "0% (0%–16%)"),
    (1, 29, "3% (1%–17%)"), (20, 20, "100% (84%–100%)")])
def test_wilsons_intervals_are_the_published_ones(right, count, shown):
    assert report.format_share(np.arange(count) < right) == shown


def test_a_run_is_scored_sampled_and_asked(folder, documents, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(folder / "ours", run)
    tokenizer = Tokenizer.load(folder / "ours.json")
    data.write_shards(documents, tokenizer.encode, run / "tokens", tokenizer.vocab_size,
                      tokenizer.eot_id, folder / "ours.json")
    evaluate.main([str(run), "--cloze", "2", "--samples", "1"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("stories_en") and "stories_zh, the first 1 samples" in printed
    assert "of 4 each" in printed[-2]
    assert all(ability in printed[-1] for ability in cloze.ABILITIES)


def test_tokens_from_elsewhere_are_found(folder, documents, tmp_path, capsys):
    run, tokenizer = tmp_path / "run", Tokenizer.load(folder / "ours.json")
    shutil.copytree(folder / "ours", run)
    data.write_shards(documents, tokenizer.encode, tmp_path / "shards", tokenizer.vocab_size,
                      tokenizer.eot_id, folder / "ours.json")
    (run / "checksums.json").unlink()
    (run / "trainer.json").write_text('{"config": {"tokens": "%s"}}' % (tmp_path / "shards"))
    evaluate.main([str(run), "--cloze", "0"])
    assert "stories_zh" in capsys.readouterr().out


def test_a_folder_without_tokens_is_sent_to_the_arena(folder):
    with pytest.raises(ValueError, match="evaluate arena .*llama --text"):
        evaluate.main([str(folder / "llama")])


@pytest.mark.parametrize("arguments, message", [
    (["--samples", "-1"], "at least 0"), (["--cloze", "-1"], "at least 0"), ([], "nowhere")])
def test_bad_input_is_one_clear_line(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda: evaluate.main(["nowhere", *arguments]))
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
