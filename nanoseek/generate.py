"""Prompt → text, one cached token at a time.

    ids = generate(model, tokenizer.encode("从前"), max_new_tokens=50, temperature=0.8, seed=1)

Temperature and top-k as in GPT-2 (Radford 2019), top-p after Holtzman et al. (arXiv 1904.09751)."""

import math
import sys

import torch

from nanoseek.checkpoint import find_checkpoint, load_model
from nanoseek.model import KVCache
from nanoseek.tokenizer import Tokenizer

SAMPLING = {"temperature": 0.5, "top_p": 0.95}  # a small model's unlikely tokens are often bad


def sample(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Return ids (B,) drawn from logits (B, V); temperature 0 takes the most likely.

    top_k > 0 keeps the k likeliest, top_p < 1 the smallest set that holds that much probability."""
    if not logits.amax(dim=-1).isfinite().all():
        raise ValueError("the model's scores are not finite: its training has diverged")
    if temperature == 0:
        return logits.argmax(dim=-1)
    # The likeliest is all that is left below a millionth, where numbers would overflow.
    probabilities = torch.softmax(logits.float() / max(temperature, 1e-6), dim=-1)
    if top_k > 0 or top_p < 1:
        ranked, order = probabilities.sort(descending=True)
        before = ranked.cumsum(-1) - ranked  # probability of all that are likelier
        drop = before >= top_p
        drop[:, top_k or len(order[0]):] = True
        probabilities = torch.zeros_like(ranked).scatter_(-1, order, ranked.masked_fill(drop, 0))
    return torch.multinomial(probabilities, 1, generator=generator)[:, 0]


@torch.inference_mode()
def sample_steps(model, prompts, max_new_tokens, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    """Yield one new id for each prompt a step: a tensor (B,).

    prompts: B lists of ids; shorter ones are padded in front, and the padding masked. Ends when the
    context of the shortest is full; the caller drops what longer ones got past theirs."""
    context, lengths = model.config.max_position_embeddings, [len(ids) for ids in prompts]
    shortest, longest = min(lengths, default=0), max(lengths, default=0)
    if not shortest:
        raise ValueError("the prompt is empty: begin with the end-of-text token at least")
    if longest >= context:
        raise ValueError(f"the prompt has {longest} tokens, the context holds {context}: cut it")
    if not 0 <= temperature < math.inf or not 0 < top_p <= 1 or not 0 <= seed < 1 << 63 \
            or min(top_k, max_new_tokens) < 0:
        raise ValueError("temperature, top_k, max_new_tokens and seed must be at least 0, the seed "
                         "below 2^63, and top_p above 0 and at most 1")
    weight = model.lm_head.weight
    device, generator = weight.device, torch.Generator(weight.device).manual_seed(seed)
    total = min(max_new_tokens, context - shortest)
    starts = None if shortest == longest else longest - torch.tensor(lengths, device=device)
    cache = KVCache(model.config, len(prompts), longest + total, device, weight.dtype, starts)
    # First all prompts at once, (B, longest); then each new id alone, (B, 1).
    new = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in prompts], device=device)
    for _ in range(total):
        hidden = model.hidden(new, cache=cache)
        new = sample(model.lm_head(hidden[:, -1]), temperature, top_k, top_p, generator)[:, None]
        yield new[:, 0]


def stream(model, ids, max_new_tokens=200, stop_ids=(), when_full=None, **settings):
    """Yield new ids (ints) after the prompt, until one of stop_ids, which is not yielded. Where the
    context ends first, its length is given to when_full."""
    for tokens in sample_steps(model, [ids], max_new_tokens, **settings):
        if (token := tokens.item()) in stop_ids:
            return
        yield token
    context = model.config.max_position_embeddings
    if when_full and len(ids) + max_new_tokens > context:
        when_full(context)


def generate_many(model, prompts, max_new_tokens=200, stop_ids=(), **settings):
    """Return the continuations of several prompts, made side by side, as lists of ids. With
    temperature 0 they are those that each prompt gets alone, but for rounding."""
    found, going = [[] for _ in prompts], {*range(len(prompts))}
    for tokens in sample_steps(model, prompts, max_new_tokens, **settings):
        new = tokens.tolist()
        going = {row for row in going if new[row] not in stop_ids}
        if not going:
            break
        for row in going:
            found[row].append(new[row])
    context = model.config.max_position_embeddings
    return [ids[:context - len(prompt)] for ids, prompt in zip(found, prompts)]


def generate(model, ids, max_new_tokens=200, **settings):
    """Return the new ids as a list; the settings are those of `sample_steps` and `stream`."""
    return list(stream(model, ids, max_new_tokens, **settings))


def write(model, tokenizer, prompt, begin=None, ends=None, **settings):
    """Yield what follows `prompt`, never half a character. begin, ends: lists of ids, or eot."""
    eot = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    ids = stream(model, (begin or eot) + tokenizer.encode(prompt), stop_ids=ends or eot, **settings)
    held = ""  # "\ufffd" is shown when more follows: at the end it is half of a character
    for piece in tokenizer.decode_stream(ids):
        text = held + piece
        yield (whole := text.rstrip("\ufffd"))
        held = text[len(whole):]


def main(argv=None):
    from nanoseek.cli import Parser, add_fast_flag
    from nanoseek.corpus.cleaning import normalise
    from nanoseek.fast import speed_up
    from nanoseek.lab.subject import document_ends
    parser = Parser("nanoseek.generate", "Let a model go on with a text.")
    parser.add_argument("folder", help="a run, a checkpoint, or a Llama folder")
    parser.add_argument("--prompt", default="", help="the beginning (default: none)")
    parser.add_argument("--max_new_tokens", type=int, default=300, help="at most so many")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest")
    parser.add_argument("--top_k", type=int, default=0, help="keep so many likeliest ids; 0: all")
    parser.add_argument("--top_p", type=float, help="keep the likeliest of this probability")
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text")
    parser.set_defaults(**SAMPLING)
    add_fast_flag(parser)
    settings = vars(parser.parse_args(argv))
    prompt = settings["prompt"]  # which is spelt as training text is, but may end a line
    settings["prompt"] = normalise(prompt) + "\n" * prompt.endswith("\n")
    folder = find_checkpoint(settings.pop("folder"), best=True)
    model, tokenizer = load_model(folder), Tokenizer.load(folder / "tokenizer.json")
    if settings.pop("fast"):
        speed_up(model)
    settings["begin"], settings["ends"] = document_ends(folder, tokenizer, model.config.vocab_size)
    pieces = write(model, tokenizer, **settings, when_full=lambda context: print(
        f"\nthe context of {context} tokens is full", file=sys.stderr))
    # A bad prompt is refused before anything shows.
    print(settings["prompt"] + next(pieces, ""), end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


if __name__ == "__main__":
    from nanoseek.cli import run
    run(main)
