"""generate.py: the cache changes nothing, and sampling follows its settings."""

import collections

import pytest
import torch

from nanoseek import generate
from nanoseek.model import ModelConfig, Transformer


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
    stopped = generate.generate_many(model, [[1]] * 50, 20, stop_ids=range(20), seed=1)
    assert len({len(row) for row in stopped}) > 5
    assert all(token >= 20 for row in stopped for token in row)


@pytest.mark.parametrize("ids, settings, message", [
    ([], {}, "prompt is empty"), ([1] * 40, {}, "the context holds 40"),
    ([1], {"top_p": 0}, "top_p"), ([1], {"temperature": -1}, "temperature")])
def test_bad_requests_are_refused(model, ids, settings, message):
    with pytest.raises(ValueError, match=message):
        generate.generate(model, ids, 5, **settings)
