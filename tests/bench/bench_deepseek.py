"""What DeepSeek's parts cost here: a step beside the plain model's, sending tokens to experts,
decoding from latents, reading few keys, and with drafts.

    python tests/bench/bench_deepseek.py [step | dispatch | decode | sparse | draft]    # or all

Ways take turns, and the least of several rounds counts.
"""

import copy
import dataclasses
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2]))

import torch

from nanoseek.corpus.stories import stories
from nanoseek.cost import flops_per_token, memory, parameters
from nanoseek.deepseek.experts import Experts, Mixture
from nanoseek.deepseek.latent import Latent, LatentAttention
from nanoseek.deepseek.predict import MultiToken, generate_ahead
from nanoseek.deepseek.presets import PRESETS
from nanoseek.deepseek.sparse import Sparse
from nanoseek.fast import speed_up
from nanoseek.fast.bpe import FastTokenizer
from nanoseek.generate import generate
from nanoseek.model import KVCache, ModelConfig, Transformer, loss, rotary_table
from nanoseek.optim import build_optimizers, schedule_factor, set_learning_rate


def race(rounds, **ways):
    """Return {name: the least seconds of a call}; the first round only warms up."""
    times = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began)
    return {name: min(found[1:]) for name, found in times.items()}


def step():
    """Forward and backward of 8 rows of 256: tiny, and with each part in its place."""
    tiny, v3 = PRESETS["tiny"], PRESETS["tiny-v3"]
    configs = {"tiny": tiny, "latent": dataclasses.replace(tiny, attention=v3.attention),
               "experts": dataclasses.replace(tiny, feed_forward=v3.feed_forward), "tiny-v3": v3}
    ids, ways = torch.randint(4096, (8, 256)), {}
    for name, config in configs.items():
        model = speed_up(Transformer(config).train())

        def one(model=model):
            loss(model, ids, ids).backward()
            model.zero_grad()
        ways[name] = one
    seconds = race(8, **ways)
    print(f"{'a step of 8 × 256':<20}{'ms':>8}{'of tiny':>9}{'parameters':>12}{'FLOPs/token':>13}"
          f"{'cache, bytes a token':>22}")
    for name, config in configs.items():
        kept = memory(config, 1, 1, "full")["kv_cache"]
        print(f"{name:<20}{1000 * seconds[name]:>8.1f}{seconds[name] / seconds['tiny']:>8.2f}x"
              f"{parameters(config)['total']:>12,}"
              f"{flops_per_token(config, 256)['total']:>13,}{kept:>22,}")


def dispatch():
    """At about 10M parameters: what a mixture does besides its experts' products."""
    part = Experts(128, 32, 4)
    config = ModelConfig(hidden_size=256, intermediate_size=640, feed_forward=part)
    mixture, x = Mixture(config, part), torch.randn(8, 256, 256)
    sizes = torch.bincount(mixture.gate(x.flatten(0, 1))[0].flatten(), minlength=32).tolist()
    visits = torch.randn(sum(sizes), 256).split(sizes)

    def products():
        for expert, part in zip(mixture.experts, visits):
            expert(part).sum().backward()
        mixture.shared_experts(x).sum().backward()
    seconds = race(8, whole=lambda: mixture(x).sum().backward(), products=products)
    more = seconds["whole"] / seconds["products"] - 1
    print(f"\n32 experts of 128, 4 for each of 2,048 tokens 256 wide, forward and backward: "
          f"{1000 * seconds['whole']:.1f} ms, the products alone {1000 * seconds['products']:.1f}: "
          f"choosing and sorting {more:+.0%}")


def decode():
    """One new token behind S old ones: keys and values expanded, or absorbed."""
    part = Latent(64, None, 32, 16, 32)
    config = ModelConfig(hidden_size=256, num_attention_heads=8, attention=part)
    layer = LatentAttention(config, part, 0)
    print(f"\n{'tokens in the cache':<20}{'expanded ms':>12}{'absorbed ms':>12}{'times':>8}")
    with torch.inference_mode():
        for length in (1, 4, 16, 64, 256, 1024, 4096):
            q, q_rope = torch.randn(1, 8, 1, 32), torch.randn(1, 8, 1, 16)
            inputs = q, q_rope, torch.randn(1, 1, length, 64), torch.randn(1, 1, length, 16), None
            seconds = race(60, expanded=lambda: layer.expanded(*inputs),
                           absorbed=lambda: layer.absorbed(*inputs))
            print(f"{length:<20}{1000 * seconds['expanded']:>12.3f}"
                  f"{1000 * seconds['absorbed']:>12.3f}"
                  f"{seconds['expanded'] / seconds['absorbed']:>7.2f}x")


def sparse():
    """A layer of latent attention beside a sparse one that reads 64 keys: a whole row without a cache,
    where sparse attention masks what it does not read, and one new token, where it fetches 64."""
    parts = {"latent": Latent(64, 64, 32, 16, 32), "sparse": Sparse(64, 64, 32, 16, 32)}
    configs = {name: ModelConfig(hidden_size=256, num_hidden_layers=1, num_attention_heads=8,
                                 attention=part) for name, part in parts.items()}
    layers = {name: config.attention.build(config, 0).eval() for name, config in configs.items()}

    def show(title, lengths, measure, style):
        print(f"\n{title:<44}{'latent':>12}{'sparse':>12}{'times':>9}")
        for length in lengths:
            latent, found = measure(length).values()
            print(f"{length:<44,}{latent:>12{style}}{found:>12{style}}{latent / found:>8.2f}x")

    def row(length):
        rotary = rotary_table(configs["latent"], torch.arange(length))
        mask, x = torch.ones(length, length, dtype=torch.bool).tril(), torch.randn(1, length, 256)
        return race(3 if length < 4096 else 1, **{
            name: lambda layer=layer: layer(x, rotary, mask)
            for name, layer in layers.items()})

    def token(length):
        rotary = rotary_table(configs["latent"], torch.tensor([length]))
        mask, x, ways = torch.ones(1, length + 1, dtype=torch.bool), torch.randn(1, 1, 256), {}
        for name, layer in layers.items():
            cache = KVCache(configs[name], 1, length + 1)
            cache.length = length
            for kept in cache.kept:
                kept.normal_()
            ways[name] = lambda layer=layer, cache=cache: layer(x, rotary, mask, cache)
        return race(40, **ways)

    def flops(length):
        return {name: flops_per_token(config, length)["attention"] / 3
                for name, config in configs.items()}
    with torch.inference_mode():
        show("positions: FLOPs of attention a token", (256, 1024, 4096), flops, ",.0f")
        show("positions of a row: seconds", (256, 1024, 4096), row, ".4f")
        show("tokens in the cache: seconds of a new one", (256, 1024, 4096, 16384), token, ".6f")


def trained_on_stories(config, steps, texts):
    """Return a plain model after some steps of 8 rows of 128 tokens, and its tokenizer."""
    tokenizer = FastTokenizer.train(texts, config.vocab_size)
    ids = torch.tensor([i for text in tokenizer.encode_batch(texts)
                        for i in (tokenizer.eot_id, *text.tolist())])
    documents, plain = (ids == tokenizer.eot_id).cumsum(0), Transformer(config)
    model = speed_up(Transformer(config).train())
    optimizers = build_optimizers(model, "muon", 5e-3, 0.1, embedding_factor=5.0, beta2=0.99)
    for n in range(steps):
        at = torch.randint(len(ids) - 129, (8, 1)) + torch.arange(128)
        value = loss(model, ids[at], ids[at + 1], documents[at])
        value.backward()
        set_learning_rate(optimizers, 5e-3 * schedule_factor("linear", n, steps, 20))
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    print(f"\n{steps} steps, {value:.2f} nats a token at the end")
    plain.load_state_dict(model.state_dict())
    return plain.eval(), tokenizer


def draft(layers=4, steps=150, new=80):
    """Greedy decoding by the plain loop, and with the drafts of a model trained a short while."""
    config = ModelConfig(1024, 128, 352, layers, max_position_embeddings=160,
                         tie_word_embeddings=False, prediction=MultiToken())
    texts = [story.text for language in ("en", "zh") for story in stories(language, 1000, 0)]
    model, tokenizer = trained_on_stories(config, steps, texts)
    prompts = [[tokenizer.eot_id, *tokenizer.encode(story.text)[:12]]
               for language in ("en", "zh") for story in stories(language, 1, 1)]
    accepted = [right for ids in prompts for right in generate_ahead(model, ids, new)[1]]
    print(f"{layers} layers: {sum(accepted) / len(accepted):.0%} of the drafts accepted")
    for name, one in (("chapter", model), ("fast", speed_up(copy.deepcopy(model)))):
        seconds = race(2, plain=lambda: [generate(one, ids, new, temperature=0) for ids in prompts],
                       drafted=lambda: [generate_ahead(one, ids, new) for ids in prompts])
        print(f"{name:<10}ms for a token: " + ", ".join(
            f"{way} {1000 * least / len(prompts) / new:.2f}" for way, least in seconds.items()))


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(2)
    ways = {way.__name__: way for way in (step, dispatch, decode, sparse, draft)}
    for name in sys.argv[1:] or ways:
        ways[name]()
