"""arena.py, and evaluate.py for any folder: the scores of transformers, fair pairs."""

import json
import math
import os
import shutil

import numpy as np
import pytest
import torch

from nanoseek import cli, evaluate
from nanoseek.lab import arena, cloze
from nanoseek.checkpoint import save_model
from nanoseek.corpus import write_documents
from nanoseek.model import ModelConfig, Transformer
from nanoseek.corpus.stories import LANGUAGES, stories
from nanoseek.tokenizer import Tokenizer


def documents(count=8, seed=50):
    return [{"text": s.text, "source": s.source, "log2_probability": s.log2_probability,
             "split": "held_out" if n % 2 else "train"}
            for language in LANGUAGES for n, s in enumerate(stories(language, count, seed))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two untrained models of ours with different vocabularies, and a Llama folder of others."""
    folder = tmp_path_factory.mktemp("arena")
    texts = [s.text for language in LANGUAGES for s in stories(language, 200, 60)]
    for name, size, context in (("ours", 300, 64), ("other", 400, 48)):
        Tokenizer.train(texts, size).save(folder / f"{name}.json")
        torch.manual_seed(size)
        model = Transformer(ModelConfig(vocab_size=size, hidden_size=16, intermediate_size=24,
                                        num_hidden_layers=1, num_attention_heads=2,
                                        num_key_value_heads=1, max_position_embeddings=context,
                                        initializer_range=0.3)).eval()
        save_model(model, folder / name, folder / f"{name}.json")
        write_documents(documents(), folder / name / "clean.jsonl")
    (folder / "ours" / "cost.json").write_text(json.dumps(
        {"seconds": 60, "flops": 1e9, "dollars_rent": 0.01, "dollars_electricity": 0.01}))
    foreign_llama(folder / "llama", texts)
    return folder


def foreign_llama(folder, texts):
    """Save random weights and a byte-level tokenizer with their libraries, begin and end apart."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM
    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, 350, special_tokens=["<s>", "</s>"],
                                  show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=360, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, initializer_range=0.3)).save_pretrained(folder)


def test_bits_per_byte_agree_with_transformers_on_a_foreign_folder(folder):
    from tokenizers import Tokenizer as Theirs
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float32)
    tokenizer = Theirs.from_file(str(folder / "llama" / "tokenizer.json"))
    texts = ["Tom had a ball.", "小明有一个皮球。", "Who has the kite now? 现在呢？"]
    nats = 0.0
    for text in texts:
        ids = torch.tensor([[0, *tokenizer.encode(text).ids, 1]])
        assert ids.shape[1] <= 64
        with torch.no_grad():
            nats += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    expected = nats / math.log(2) / sum(len(t.encode("utf-8")) for t in texts)
    subject = evaluate.open_subject(folder / "llama")
    found = evaluate.score_texts(subject, {"s": [{"text": t} for t in texts]})["s"]
    assert found.bits_per_byte == pytest.approx(expected, abs=1e-3)
    assert found.documents == 3 and found.floor is None and found.way_to_floor is None


def test_a_long_text_slides_as_in_transformers_own_recipe(folder):
    """Half a context at a time, each window scoring what the one before did not."""
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(folder / "llama", dtype=torch.float32)
    subject = evaluate.open_subject(folder / "llama")
    text = documents()[0]["text"]
    ids = torch.from_numpy(subject.ids(text))[None]
    total, done, start = 0.0, 0, 0
    while done < ids.shape[1] - 1:
        end = min(start + 65, ids.shape[1])
        labels = ids[:, start:end].clone()
        labels[:, :done - start + 1] = -100
        with torch.no_grad():
            part = model(input_ids=ids[:, start:end][:, :64], labels=None).logits
            logits = part[:, :end - start - 1] if end - start > 64 else part[:, :-1]
        picked = labels[:, 1:1 + logits.shape[1]]
        total += torch.nn.functional.cross_entropy(
            logits[0], picked[0], ignore_index=-100, reduction="sum").item()
        done = end - 1
        start = max(0, done - 32)
    assert ids.shape[1] > 100
    assert evaluate.text_nats(subject, [text])[0] == pytest.approx(total, rel=1e-4)


def test_a_model_without_a_begin_is_charged_for_its_first_token(folder):
    subject = evaluate.open_subject(folder / "ours")
    bare = subject._replace(begin=None, end=None)
    ids = bare.ids("Tom slept.")
    expected = math.log(300) + evaluate.nats(subject.model, [ids])
    assert evaluate.text_nats(bare, ["Tom slept."])[0] == pytest.approx(expected)


def test_answers_are_those_of_a_plain_sum(folder):
    """One choice at a time, the likelihood of all of its tokens, over its bytes."""
    torch.manual_seed(3)
    model = Transformer(ModelConfig(vocab_size=300, hidden_size=16, intermediate_size=24,
                                    num_attention_heads=2, num_key_value_heads=1,
                                    max_position_embeddings=2048, initializer_range=0.3)).eval()
    subject = evaluate.open_subject(folder / "ours")._replace(model=model)
    items = cloze.questions(3, seed=8)
    expected = []
    for item in items:
        rates, several = [], [subject.ids(item.context + c, whole=False) for c in item.choices]
        shared = evaluate.nats(model, [np.array(os.path.commonprefix([list(s) for s in several]))])
        for choice, ids in zip(item.choices, several):
            rates.append((evaluate.nats(model, [ids]) - shared) / len(choice.encode("utf-8")))
        expected.append(min(range(len(rates)), key=rates.__getitem__) == item.answer)
    assert evaluate.answer(subject, items).tolist() == expected and 0 < sum(expected) < len(items)


def test_a_model_that_knows_the_story_answers_every_question(folder, monkeypatch):
    items = cloze.questions(3, seed=9)
    subject = evaluate.open_subject(folder / "other")
    long = subject._replace(model=Transformer(ModelConfig(
        vocab_size=400, hidden_size=4, intermediate_size=4, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, max_position_embeddings=4096)))
    known = {item.context + item.choices[item.answer] for item in items}

    def oracle(model, pieces):
        return np.array([0.0 if subject.tokenizer.decode(ids[1:].tolist()) in known
                         else 1.0 * len(ids) for ids, _ in pieces])
    monkeypatch.setattr(evaluate, "piece_nats", oracle)
    assert evaluate.answer(long, items).all()


def test_wilson_against_published_values():
    low, high = evaluate.wilson(81, 263)  # Newcombe 1998, table 1: 0.2553 to 0.3662
    assert low == pytest.approx(0.2553, abs=1e-4) and high == pytest.approx(0.3662, abs=1e-4)
    assert evaluate.wilson(0, 20)[0] == pytest.approx(0)
    assert evaluate.wilson(20, 20)[1] == pytest.approx(1)


def test_mcnemar_equals_the_binomial_test():
    a = np.array([True] * 9 + [False] * 2 + [True] * 20)
    b = np.array([False] * 9 + [True] * 2 + [True] * 20)
    assert arena.mcnemar(a, b) == pytest.approx(0.0654296875)  # 2 · P(X ≤ 2), X of B(11, ½)
    assert arena.mcnemar(a, a) == 1


def test_the_sign_test_equals_all_signs_counted():
    import itertools
    differences = np.array([0.3, -0.1, 0.5, 0.2, 0.4, -0.05, 0.6, 0.1])
    sums = [abs(np.dot(s, differences)) for s in itertools.product((1, -1), repeat=8)]
    exact = np.mean([s >= abs(differences.sum()) - 1e-9 for s in sums])
    assert arena.sign_test(differences) == pytest.approx(exact, abs=0.02)
    assert arena.sign_test(np.zeros(5)) == 1


def test_equal_models_are_seldom_told_apart():
    """Over tables of ten comparisons of two equal models, Holm finds a difference in under 5%."""
    rng, wrong = np.random.default_rng(0), 0
    for _ in range(300):
        pairs = [(rng.random(60) < 0.6, rng.random(60) < 0.6) for _ in range(10)]
        wrong += any(arena.holm([(arena.mcnemar(a, b), 1) for a, b in pairs]))
    assert wrong / 300 <= 0.05
    assert arena.holm([(0.04, 1), (0.001, -1), (0.5, 1)]) == [0, -1, 0]


def run_arena(*arguments):
    return cli.run(lambda: arena.main([str(a) for a in arguments]))


def test_the_report_holds_every_row_and_is_written_as_markdown(folder, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_text("Once there was\n\n从前\n", encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", folder / "ours", folder / "llama", "--cloze", 2, "--judged", 2,
                  "--prompts", tmp_path / "prompts.txt", "--markdown", tmp_path / "a.md")
    captured = capsys.readouterr()
    printed = captured.out
    assert captured.err.splitlines() == ["scoring held-out text …", "asking cloze questions …",
                                         "writing and checking stories …"]
    assert not stop.value.code and (tmp_path / "a.md").read_text("utf-8") == printed
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    for label in ("bits per byte of stories_en (floor", "cloze pronoun (chance 50%)", "cloze all",
                  "consistent stories_zh (of 2)", "tokens/s", "weights, bytes", "training, dollars",
                  "quality per dollar"):
        assert any(line.startswith("| " + label) for line in table), label
    paid = next(line for line in table if line.startswith("| training, dollars"))
    assert paid.count("0.02000") == 2 and paid.rstrip(" |").endswith("-")
    same = next(line for line in table if line.startswith("| bits per byte of stories_en"))
    assert same.split("|")[2].strip() + " ≈" == same.split("|")[3].strip()
    assert "ours and" in printed and "cannot be told apart here" in printed
    assert printed.count("- " + str(folder / "ours") + ": Once there was") == 2
    assert "**从前**" in printed


@pytest.fixture
def broken(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    save_model(evaluate.open_subject(folder / "ours").model, tmp_path / "mute")
    (tmp_path / "none.txt").write_text(" \n\n")
    (tmp_path / "docs.jsonl").write_text("")
    write_documents([{**d, "split": "held_out"} for d in documents()], tmp_path / "seen.jsonl")
    save_model(evaluate.open_subject(folder / "ours").model, tmp_path / "mixed",
               folder / "other.json")
    return tmp_path


@pytest.mark.parametrize("second, more, message", [
    ("empty", [], "holds no model"), ("mute", [], "tokenizer.json"), ("absent", [], "no model"),
    ("mixed", [], "do not belong together"),
    ("ours", ["--prompts", "none.txt"], "holds no prompt"),
    ("ours", ["--prompts", "absent.txt"], "absent.txt"),
    ("ours", ["--text", "docs.jsonl"], "no held-out document"),
    ("ours", ["--text", "seen.jsonl"], "trained on 8 of the 16"),
    ("ours", ["--markdown", "empty"], "is a folder"), ("ours", ["--cloze", "-1"], "at least 0"),
    (None, [], "two folders")])
def test_bad_input_is_one_clear_line(folder, broken, monkeypatch, capsys, second, more, message):
    monkeypatch.chdir(broken)
    rivals = [] if second is None else [folder / "ours" if second == "ours" else second]
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", *rivals, *more)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1
    assert captured.out == ""


@pytest.mark.parametrize("name, text, message", [
    ("cost.json", "{", "cost.json is damaged"), ("cost.json", "[]", "cost.json is damaged"),
    ("cost.json", '{"seconds": "x"}', "cost.json is damaged"),
    ("cost.json", '{"flops": null}', "cost.json is damaged"),
    ("trainer.json", "{", "trainer.json is damaged"), ("trainer.json", "[]", "trainer.json is"),
    ("trainer.json", "{}", "trainer.json is damaged"),
    ("trainer.json", '{"config": {"tokens": 7}}', "trainer.json is damaged")])
def test_a_damaged_file_of_a_run_is_one_clear_line(folder, tmp_path, capsys, name, text, message):
    shutil.copytree(folder / "ours", tmp_path / "run")
    (tmp_path / "run" / name).write_text(text)
    (tmp_path / "run" / "checksums.json").unlink()  # which would name the file first
    with pytest.raises(SystemExit) as stop:
        run_arena(folder / "ours", tmp_path / "run", "--cloze", 1, "--judged", 0)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and message in captured.err and captured.err.count("\n") == 1


def test_a_single_folder_is_scored_on_text_and_asked(folder, capsys):
    text = str(folder / "ours" / "clean.jsonl")
    evaluate.main([str(folder / "llama"), "--text", text, "--cloze", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("stories_en") and "of 4 each" in printed[-2]
    assert all(ability in printed[-1] for ability in cloze.ABILITIES)
