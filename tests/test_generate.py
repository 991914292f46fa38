"""generate.py: the cache changes nothing, and sampling follows its settings."""

import collections

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek import generate
from nanoseek.fast.decode import FastTransformer
from nanoseek.model import KVCache, ModelConfig, Transformer
from nanoseek.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Transformer(ModelConfig(vocab_size=61, hidden_size=32, intermediate_size=48,
                                   num_hidden_layers=2, max_position_embeddings=40,
                                   initializer_range=0.3)).eval()


def test_greedy_generation_equals_the_uncached_way(model):
    ids = [3, 1, 4, 1, 5]
    expected = list(ids)
    with torch.no_grad():
        for _ in range(20):
            expected.append(int(model(torch.tensor([expected]))[0, -1].argmax()))
    assert generate.generate(model, ids, 20, temperature=0) == expected[len(ids):]


def test_generation_ends_at_the_context_and_at_stop_ids(model):
    assert len(generate.generate(model, [1, 2, 3], 500, seed=1)) == 37
    free = generate.generate(model, [1], 20, temperature=0)
    stopped = generate.generate(model, [1], 20, temperature=0, stop_ids=[free[7]])
    assert stopped == free[:free.index(free[7])]


def test_a_seed_gives_the_same_text_and_another_seed_another(model):
    one, two, three = (generate.generate(model, [1], 20, seed=seed) for seed in (1, 1, 2))
    assert one == two != three


@pytest.mark.parametrize("settings, expected", [
    ({}, [0.5, 0.25, 0.15, 0.1]), ({"top_k": 2}, [2 / 3, 1 / 3, 0, 0]),
    ({"top_p": 0.6}, [2 / 3, 1 / 3, 0, 0]), ({"top_p": 0.5}, [1, 0, 0, 0]),
    ({"temperature": 0.5}, [0.25 / 0.345, 0.0625 / 0.345, 0.0225 / 0.345, 0.01 / 0.345]),
    ({"temperature": 0}, [1, 0, 0, 0])])
def test_samples_follow_the_distribution(settings, expected):
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    generator = torch.Generator().manual_seed(0)
    drawn = generate.sample(logits.expand(4000, -1), **settings, generator=generator)
    counts = collections.Counter(drawn.tolist())
    for token, share in zip((1, 3, 2, 0), expected):
        assert abs(counts[token] / 4000 - share) < 0.04  # five standard deviations
        assert share > 0 or counts[token] == 0


def test_many_continuations_at_once_each_follow_the_model(model):
    prompts = [[1, 2], [3, 4], [5, 6]]
    assert generate.generate_many(model, prompts, 20, temperature=0) == \
        [generate.generate(model, prompt, 20, temperature=0) for prompt in prompts]
    # Of different lengths, one of them up to the end of its context: each as alone.
    ragged = [[1], [2, 3, 4, 5], [6] * 38, [7, 8]]
    assert generate.generate_many(model, ragged, 500, temperature=0) == \
        [generate.generate(model, prompt, 500, temperature=0) for prompt in ragged]
    stopped = generate.generate_many(model, [[1]] * 50, 20, stop_ids=range(20), seed=1)
    assert len({len(row) for row in stopped}) > 5
    assert all(token >= 20 for row in stopped for token in row)


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), window=st.integers(1, 30),
       kv_heads=st.sampled_from([1, 2, 4]))
def test_a_rolling_cache_and_padding_change_nothing(lengths, window, kv_heads):
    torch.manual_seed(0)
    model = Transformer(ModelConfig(vocab_size=61, hidden_size=32, intermediate_size=48,
                                    num_key_value_heads=kv_heads, max_position_embeddings=40,
                                    sliding_window=window, initializer_range=0.3)).eval()
    prompts = [torch.randint(61, (length,)).tolist() for length in lengths]
    expected = [list(prompt) for prompt in prompts]
    with torch.no_grad():
        for ids in expected:
            for _ in range(12):
                ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert generate.generate_many(model, prompts, 12, temperature=0) == \
        [ids[len(prompt):] for ids, prompt in zip(expected, prompts)]


def test_bytes_of_the_cache_are_those_computed():
    for kv_heads, window in ((4, None), (2, None), (1, None), (1, 8)):
        config = ModelConfig(num_key_value_heads=kv_heads, sliding_window=window)
        cache = KVCache(config, 3, 20)
        each = 2 * config.num_hidden_layers * kv_heads * config.head_size * 4
        assert cache.keys.nbytes + cache.values.nbytes == 3 * each * (window or 20)


@pytest.mark.parametrize("ids, settings, message", [
    ([], {}, "prompt is empty"), ([1] * 40, {}, "the context holds 40"),
    ([1], {"top_p": 0}, "top_p"), ([1], {"temperature": -1}, "temperature"),
    ([1], {"top_k": -1}, "top_k"), ([1], {"seed": 1 << 63}, "seed")])
def test_bad_requests_are_refused(model, ids, settings, message):
    with pytest.raises(ValueError, match=message):
        generate.generate(model, ids, 5, **settings)


@pytest.mark.parametrize("temperature", [1e-6, 1e-38, 1e-45, 5e-324])
def test_the_smallest_temperatures_take_the_likeliest(temperature):
    logits = torch.tensor([[1.0, 3.0, 2.0], [50.0, -50.0, 0.0]])
    assert generate.sample(logits, temperature).tolist() == [1, 0]


@pytest.mark.parametrize("temperature", [0, 0.7])
def test_scores_that_are_not_finite_are_named(temperature):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="training has diverged"):
            generate.sample(torch.tensor([[1.0, bad]]), temperature)
    hidden = torch.tensor([[1.0, -float("inf")]])  # a choice that is ruled out is none of these
    assert generate.sample(hidden, temperature).tolist() == [0]


def test_the_end_of_the_context_is_told_and_no_other_end(model):
    for count, stop, told in ((36, [], []), (37, [], []), (38, [], [40]), (500, [], [40]),
                              (500, range(61), [])):
        full = []
        list(generate.stream(model, [1, 2, 3], count, stop, when_full=full.append))
        assert full == told


@pytest.mark.parametrize("written, shown", [
    ("天地".encode(), "天地"), ("天地".encode()[:-1], "天"), ("天地".encode()[:-2], "天"),
    (b"\x80a\xffb", "\ufffda\ufffdb"), (b"a\xff\xff", "a"), (b"\x80", ""), (b"a\n", "a\n")])
def test_a_text_that_ends_inside_a_character_ends_before_it(monkeypatch, model, written, shown):
    monkeypatch.setattr(generate, "stream", lambda *_, **__: iter(written))
    assert "".join(generate.write(model, Tokenizer([]), "")) == shown  # its first ids are bytes


def test_the_command_writes_the_same_text_with_the_plain_model(tmp_path, monkeypatch, capsys):
    Tokenizer.train(["low lower lowest"] * 9, vocab_size=264).save(tmp_path / "tokenizer.json")
    monkeypatch.setattr(generate, "find_checkpoint", lambda folder, best: tmp_path)
    kinds, texts = [], []
    # A prompt is normalised as training text is: full-width letters, line ends, a last space.
    for prompt, flags in (("low", []), ("ｌｏｗ ", ["--fast", "false"])):
        torch.manual_seed(0)
        model = Transformer(ModelConfig(vocab_size=264, hidden_size=32, intermediate_size=48,
                                        max_position_embeddings=40, initializer_range=0.3)).eval()
        monkeypatch.setattr(generate, "load_model", lambda folder: model)
        generate.main(["folder", "--prompt", prompt, "--temperature", "0", *flags])
        said = capsys.readouterr()
        texts.append(said.out)
        assert said.err == "\nthe context of 40 tokens is full\n"
        kinds.append(type(model))
    assert kinds == [FastTransformer, Transformer]
    assert texts[0] == texts[1] and texts[0].startswith("low") and len(texts[0]) > 5
    generate.main(["folder", "--prompt", "low\r\n", "--temperature", "0"])
    assert capsys.readouterr().out.startswith("low\n")  # the end of a line is part of a prompt
