"""fast/decode.py: one position at a time gives the logits of whole texts."""

import copy
import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoseek import model as chapter
from nanoseek.fast import decode, speed_up
from nanoseek.generate import generate, generate_many
from test_model import LLAMA3, build, random_ids, relative_difference, shapes


def uneven(model):
    """Give the norms of a model weights that are not all one."""
    for module in model.modules():
        if isinstance(module, chapter.RMSNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 2)
    return model


@settings(max_examples=40, deadline=None)
@given(shape=shapes(), lengths=st.lists(st.integers(2, 9), min_size=1, max_size=3),
       steps=st.integers(1, 12), scaled=st.booleans(), chunk=st.sampled_from([1, 5, 64]))
def test_one_position_at_a_time_gives_the_logits_of_the_whole_text(shape, lengths, steps, scaled,
                                                                   chunk):
    """Rows of different lengths side by side, each with the logits that the chapter gives alone."""
    model = uneven(build(chapter, **shape, rope_scaling=chapter.RopeScaling(**LLAMA3)
                         if scaled else None))
    longest = max(lengths)
    ids = random_ids(model.config, len(lengths), longest + steps)
    starts = None if len(set(lengths)) == 1 else longest - torch.tensor(lengths)
    cache = chapter.KVCache(model.config, len(lengths), longest + steps, starts=starts)
    exact = copy.deepcopy(model).double()
    with torch.no_grad():
        plain, expected = ([each(ids[row:row + 1, longest - length:])[0, length:]
                            for row, length in enumerate(lengths)] for each in (model, exact))
        speed_up(model)(ids[:, :longest], cache=cache)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "ROPE_CHUNK", chunk)
            found = torch.cat([model(ids[:, at:at + 1], cache=cache)
                               for at in range(longest, longest + steps)], dim=1)
    # Some shapes round badly, whoever computes: the chapter's own error in fp32 is the measure.
    for row, logits in enumerate(expected):
        error, usual = (relative_difference(each.double(), logits) for each in (found[row],
                                                                               plain[row]))
        assert error <= max(1e-5, 2 * usual)


@settings(max_examples=15, deadline=None)
@given(shape=shapes(), parts=st.lists(st.integers(1, 9), min_size=1, max_size=5))
def test_single_positions_and_pieces_may_take_turns(shape, parts):
    model = speed_up(uneven(build(chapter, **shape)))
    ids = random_ids(model.config, 2, sum(parts))
    cache = chapter.KVCache(model.config, 2, sum(parts))
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids.split(parts, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(ids), rtol=1e-3, atol=1e-3)


def test_a_cache_of_bf16_serves_a_model_of_bf16():
    model = speed_up(build(chapter, initializer_range=0.05)).bfloat16()
    ids = random_ids(model.config, 1, 20)
    cache = chapter.KVCache(model.config, 1, 20, dtype=torch.bfloat16)
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in ids.split([9, 1, 1, 9], dim=1)]
        assert relative_difference(torch.cat(pieces, dim=1).float(), model(ids).float()) < 1e-2


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4), window=st.integers(1, 30),
       kv_heads=st.sampled_from([1, 2, 4]))
def test_generation_equals_the_chapters(lengths, window, kv_heads):
    model = uneven(build(chapter, num_key_value_heads=kv_heads, sliding_window=window))
    prompts = [random_ids(model.config, 1, length)[0].tolist() for length in lengths]
    expected = generate_many(model, prompts, 12, temperature=0)
    assert generate_many(speed_up(model), prompts, 12, temperature=0) == expected


def test_other_weights_take_another_cache():
    """What was looked up belongs to a cache; the next one sees the weights as they are then."""
    model = speed_up(build(chapter))
    before = generate(model, [1, 2], 8, temperature=0)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.flip(0))
    after = generate(model, [1, 2], 8, temperature=0)
    model.__class__ = chapter.Transformer
    assert generate(model, [1, 2], 8, temperature=0) == after != before


def test_a_cache_goes_when_nobody_holds_it():
    model = speed_up(build(chapter))
    cache = chapter.KVCache(model.config, 1, 8)
    with torch.no_grad():
        model(torch.tensor([[1]]), cache=cache)
    gone = weakref.ref(cache)
    gc.disable()
    try:
        del cache
        assert gone() is None  # at once: no circle keeps it for the collector
    finally:
        gc.enable()
