"""A LLaMA-like decoder, the dense DeepSeek LLM: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    config = ModelConfig(hidden_size=64, num_hidden_layers=2)
    model = Transformer(config)
    logits = model(torch.zeros(1, 8, dtype=torch.long))       # (1, 8, vocab_size)
    value = loss(model, inputs, targets)                      # mean nats per target

Sources: DeepSeek LLM (arXiv 2401.02954, §2.2), LLaMA (2302.13971, §2.2), RMSNorm (1910.07467),
RoPE (2104.09864, §3.2), GQA (2305.13245, §2), SwiGLU (2002.05202, §2), sliding window (Mistral 7B,
2310.06825, §2), activation checkpointing (1604.06174; selective: 2205.05198, §5). Fields and
parameters have Hugging Face's names, so one vocabulary leads from the laptop to a published
config.json.

Start: all matrices are drawn with standard deviation initializer_range and nothing is scaled by
depth, as in DeepSeek LLM (§2.2), whose 0.006 belongs to 4096 and more wide. A matrix that keeps
the size of what passes through needs 1/√width: by that rule 0.006 becomes 0.034 at 128 wide. The
laptop presets take 0.02, GPT-2's, between the two; `tests/bench/bench_model.py start` compares:
after 150 steps 0.034 is ahead.

Shapes: B batch, T query positions, S key positions, C hidden_size, H attention heads,
K key-value heads, D head_dim, V vocab_size.
"""

import collections
import dataclasses
import functools
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import (CheckpointPolicy, checkpoint,
                                    create_selective_checkpoint_contexts)

SCORES_CHUNK = 1 << 19  # attention scores at once on a CPU: 2 MB of fp32, which stays in the cache
SHORT = 256  # keys up to which a CPU can be faster with these than with torch's own kernel
LOGITS_CHUNK = 1 << 20  # logits in one piece of the loss: 4 MB of fp32, which stays in the cache
CUDA_LOGITS_CHUNK = 1 << 28  # there 1 GB: small pieces would leave most of the chip idle
LEAST_ROWS = 256  # in such a piece, since each goes over the whole gradient of the head
TURNS = 64  # positions whose RoPE is made into matrices at once, for generation
WINDOW_BLOCK = 64  # queries in a block of the sliding window, at least: fewer would idle a core
CHECKPOINTING = ("none", "selective", "full")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's longer context ("llama3" in config.json): what turns slowly turns `factor` times
    slower still, what turns fast stays, and between the two bounds one fades into the other."""

    factor: float
    low_freq_factor: float  # slow: fewer turns than this in the original context
    high_freq_factor: float  # fast: more turns than this
    original_max_position_embeddings: int

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if not isinstance(value, (int, float)) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}: it must be a number above 0")
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"high_freq_factor {self.high_freq_factor} must be above "
                             f"low_freq_factor {self.low_freq_factor}")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a Transformer. Raises ValueError when the numbers do not fit together."""

    vocab_size: int = 2048
    hidden_size: int = 128
    intermediate_size: int = 352
    num_hidden_layers: int = 2
    num_attention_heads: int = 4
    num_key_value_heads: int = 2  # K = H is multi-head, K = 1 multi-query attention
    head_dim: int | None = None  # hidden_size / num_attention_heads unless given
    max_position_embeddings: int = 512
    sliding_window: int | None = None  # positions that one sees, itself among them; None: all
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                     "num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        for name in ("head_dim", "sliding_window"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if not (0 < self.rope_theta < math.inf and 0 < self.rms_norm_eps < math.inf
                and 0 <= self.initializer_range < math.inf):
            raise ValueError("rope_theta and rms_norm_eps must be above 0, initializer_range at "
                             "least 0, and all of them finite")
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} does not divide into num_attention_heads "
                f"{self.num_attention_heads}: change one of them, or give head_dim")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} does not divide into "
                f"num_key_value_heads {self.num_key_value_heads}: each must serve equally many")
        if self.head_size % 2:
            raise ValueError(f"head_dim {self.head_size} is odd: RoPE turns pairs of numbers")

    @property
    def head_size(self):
        """D: head_dim where it is given, else hidden_size / num_attention_heads."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


# The published shapes: DeepSeek LLM, Table 2 and the vocabulary of its config.json.
PRESETS = {
    # Untied: few stories hold a rare word, and the output's gradient, which reaches every word at
    # every step, would make the rare ones alike before the model can tell them apart.
    "tiny": ModelConfig(vocab_size=4096, tie_word_embeddings=False),
    "small": ModelConfig(vocab_size=4096, hidden_size=256, intermediate_size=704,
                         num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2),
    "gpt2-124m": ModelConfig(vocab_size=50304, hidden_size=768, intermediate_size=2048,
                             num_hidden_layers=12, num_attention_heads=12, num_key_value_heads=12,
                             max_position_embeddings=1024),
    "deepseek-llm-7b": ModelConfig(vocab_size=102400, hidden_size=4096, intermediate_size=11008,
                                   num_hidden_layers=30, num_attention_heads=32,
                                   num_key_value_heads=32, max_position_embeddings=4096,
                                   tie_word_embeddings=False, initializer_range=0.006),
    "deepseek-llm-67b": ModelConfig(vocab_size=102400, hidden_size=8192, intermediate_size=22016,
                                    num_hidden_layers=95, num_attention_heads=64,
                                    num_key_value_heads=8, max_position_embeddings=4096,
                                    tie_word_embeddings=False, initializer_range=0.006),
}


def rotary_frequencies(size, theta, device):
    """Return by what angle one position turns each pair of numbers: (D/2,), fp32.

    Computed in the order of Hugging Face's Llama: far out, a last bit of theirs would show.
    """
    pairs = torch.arange(0, size, 2, device=device, dtype=torch.float32)
    return 1.0 / theta ** (pairs / size)


def rotary_table(config, positions):
    """Return cosines and sines, fp32, of the RoPE angles at `positions` (…, T): each (…, T, 1, D).

    The sines of the first half are negated, as `rotate` wants them.
    """
    frequencies = rotary_frequencies(config.head_size, config.rope_theta, positions.device)
    scaling = config.rope_scaling
    if scaling is not None:
        turns = scaling.original_max_position_embeddings / (2 * math.pi / frequencies)
        fast = ((turns - scaling.low_freq_factor)
                / (scaling.high_freq_factor - scaling.low_freq_factor)).clamp(0, 1)
        frequencies = (1 - fast) * (frequencies / scaling.factor) + fast * frequencies
    angles = positions.float()[..., None, None] * frequencies  # (…, T, 1, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x, cos, sin):
    """Turn x (B, T, heads, D) by RoPE. Number i pairs with i + D/2, as in Hugging Face's Llama;
    the paper pairs neighbours: the same up to a fixed permutation of the weights' rows."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class KVCache:
    """Keys and values of the positions seen so far, so that each new token costs one position.

    Two tensors (B, K, size, D) a layer: 2·L·K·D numbers per position, H/K times fewer than with
    multi-head attention (GQA paper, §2). With a sliding window they hold only its positions, and
    position p overwrites what stood at p modulo size. `starts` (B,), where given, is the column at
    which each row begins: prompts of different lengths are padded in front.
    """

    def __init__(self, config, batch, max_positions, device=None, dtype=torch.float32, starts=None):
        self.size = min(max_positions, config.sliding_window or max_positions)
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, self.size,
                 config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.starts = starts
        self.length = 0  # positions seen; Transformer moves it on after the last layer
        self.weights = None  # the model's, as `_decode` takes them: looked up once
        self._turns, self._turned = (), 0  # matrices of RoPE, and the position of the first
        # Computed once: for a small model it would cost as much per token as a layer.
        self.rotary = [table.to(dtype) for table in
                       rotary_table(config, torch.arange(max_positions, device=device))]

    def positions(self, new):
        """Return the positions (S,) of the keys that `append` returns for `new` more."""
        end, device = self.length + new, self.keys.device
        if end <= self.size:
            return torch.arange(end, device=device)
        if new == 1:  # slot by slot
            return end - 1 - (end - 1 - torch.arange(self.size, device=device)) % self.size
        return torch.arange(max(0, self.length - self.size), end, device=device)

    def append(self, layer, keys, values):
        """Store keys and values (B, K, T, D) of new positions; return those (B, K, S, D) to see."""
        start, new = self.length, keys.shape[2]
        end, found = start + new, []
        for kept, more in ((self.keys[layer], keys), (self.values[layer], values)):
            if end <= self.size:
                kept[:, :, start:end] = more
                found.append(kept[:, :, :end])
            else:
                before = torch.arange(max(0, start - self.size), start, device=kept.device)
                after = torch.arange(max(start, end - self.size), end, device=kept.device)
                found.append(torch.cat((kept[:, :, before % self.size], more), dim=2))
                kept[:, :, after % self.size] = more[:, :, -len(after):]
        return found

    def turn(self):
        """Return RoPE at the next position as a matrix (D, D), or (B, D, D) where rows differ.

        Made for some positions at once: alone, each would cost a third of what a small layer does.
        """
        at = self.length - self._turned
        if not 0 <= at < len(self._turns):
            table, at, self._turned = self.rotary[0], 0, self.length
            count = TURNS if self.starts is None else max(1, TURNS // len(self.starts))
            positions = torch.arange(self.length, min(self.length + count, len(table)),
                                     device=table.device)
            if self.starts is not None:
                positions = (positions - self.starts[:, None]).clamp(min=0)  # (B, count)
            identity = torch.eye(table.shape[-1], dtype=table.dtype, device=table.device)
            matrices = rotate(identity, *(table[positions] for table in self.rotary))
            self._turns = matrices.unbind(-3)
        return self._turns[at]

    def slots(self):
        """Return of each layer the keys and values (B, K, S, D) that one more position sees, and
        those parts (B, K, D) of them that are its own, still to be filled."""
        slot, end = self.length % self.size, min(self.length + 1, self.size)
        return zip(self.keys[:, :, :, :end].unbind(), self.values[:, :, :, :end].unbind(),
                   self.keys[:, :, :, slot].unbind(), self.values[:, :, :, slot].unbind())


# What the positions of a forward pass may see: RoPE's tables; a mask to add to the scores, None for
# plain causal; `back`, None unless the window is computed by blocks: how many blocks each looks
# back beside its own.
Sight = collections.namedtuple("Sight", "cos sin mask back")


def additive(visible, dtype):
    """Return 0 where `visible` and -inf elsewhere: turned once, not by the kernel in each layer."""
    return torch.zeros_like(visible, dtype=dtype).masked_fill_(~visible, -math.inf)


class _ShortAttention(torch.autograd.Function):
    """Attention by plain matrix products, some queries at a time with the keys up to them.

    On a CPU torch's kernel works in small tiles: in bf16, and where oneDNN does the products, most
    of its time goes beside them. `tests/bench/bench_model.py attention` compares. What is kept for
    the backward pass is the same: queries, keys, values and results. The scores are computed again.
    """

    @staticmethod
    def forward(ctx, q, k, v, mask):
        shape, groups = q.shape, q.shape[1] // k.shape[1]
        q = (q * shape[-1] ** -0.5).unflatten(1, (-1, groups)).flatten(0, 1)  # (B·K, H/K, T, D)
        k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B·K, S, D)
        y = torch.empty_like(q)
        with torch.autocast("cpu", enabled=False):
            for some, end in _ShortAttention.blocks(q, k):
                weights = _ShortAttention.weights(q, k, mask, some, end)
                y[:, :, some] = (weights @ v[:, :end]).unflatten(1, (groups, -1))
        ctx.save_for_backward(q, k, v, y, mask)
        ctx.shape = shape
        return y.view(shape)

    @staticmethod
    def blocks(q, k):
        """Yield slices of the queries, each with about SCORES_CHUNK scores, and how many of the
        keys the last query of each may see."""
        (heads, groups, T, _), S = q.shape, k.shape[1]
        size = max(16, SCORES_CHUNK // (heads * groups * S) // 16 * 16)
        for first in range(0, T, size):
            last = min(first + size, T)
            yield slice(first, last), S - T + last

    @staticmethod
    def weights(q, k, mask, some, end):
        """Return the attention weights (B·K, H/K·some, end) of some queries."""
        scores = q[:, :, some].flatten(1, 2) @ k[:, :end].mT
        T = some.stop - some.start
        if mask is None:  # keys of other blocks all stand before
            mask = torch.full((T, T), -math.inf, dtype=q.dtype).triu_(1)
            scores.unflatten(1, (-1, T))[..., end - T:].add_(mask)
        else:  # (T, S) for all, or (B, 1, T, S): each head has its row's
            mask = mask[..., None, some, :end]
            scores.view(len(mask), -1, q.shape[1], T, end).add_(mask)
        return scores.softmax(dim=-1)

    @staticmethod
    def backward(ctx, grad):
        q, k, v, y, mask = ctx.saved_tensors
        grad = grad.reshape(q.shape)
        along = (grad * y).sum(dim=-1, keepdim=True)
        q_grad = torch.empty_like(q)
        wide = torch.promote_types(k.dtype, torch.float32)  # for sums over blocks
        k_grad, v_grad = (torch.zeros_like(k, dtype=wide) for _ in range(2))
        for some, end in _ShortAttention.blocks(q, k):
            weights = _ShortAttention.weights(q, k, mask, some, end)
            queries, part = q[:, :, some].flatten(1, 2), grad[:, :, some].flatten(1, 2)
            v_grad[:, :end] += weights.mT @ part
            scores_grad = part @ v[:, :end].mT
            scores_grad.sub_(along[:, :, some].flatten(1, 2)).mul_(weights)
            q_grad[:, :, some] = (scores_grad @ k[:, :end]).unflatten(1, (q.shape[1], -1))
            k_grad[:, :end] += scores_grad.mT @ queries
        B, _, _, D = ctx.shape
        return (q_grad.mul_(D ** -0.5).view(ctx.shape),
                *(x.to(k.dtype).unflatten(0, (B, -1)) for x in (k_grad, v_grad)), None)


def _tiles_are_slow(dtype):
    """Tell whether torch's kernel is slower for short rows than plain products are."""
    if dtype == torch.float32:  # "bf16" is oneDNN's leave: see use_exact_onednn
        return torch.backends.mkldnn.matmul.fp32_precision == "bf16"
    return dtype != torch.float16


def attend(q, k, v, mask=None):
    """Return softmax(q·kᵀ/√D + mask)·v, (B, H, T, D), causal where no mask is given.

    q (B, H, T, D); k and v (B, K, S, D), S = T without a mask; mask (T, S) or (B, 1, T, S), in
    which query i sees no key after the (S - T + i)-th: its own, for the queries are the last.
    """
    if q.is_cpu and 1 < q.shape[2] and k.shape[2] <= SHORT \
            and not torch.compiler.is_compiling() and _tiles_are_slow(q.dtype):
        return _ShortAttention.apply(q, k, v, mask)
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None,
                                          enable_gqa=q.shape[1] != k.shape[1])


def window_mask(window, document_ids):
    """Return (visible, back): the mask (B·n, 1, size, S) of n blocks of `size` queries, each beside
    the S = (back + 1)·size keys that its window reaches, for document_ids (B, T), none below 0."""
    size = max(WINDOW_BLOCK, -(-window // 2))  # two blocks back: half a window computed for nothing
    back, past = -(-(window - 1) // size), -document_ids.shape[1] % size
    queries = F.pad(document_ids, (0, past), value=-1).unfold(1, size, size)  # (B, n, size)
    keys = F.pad(document_ids, (back * size, past), value=-1).unfold(1, (back + 1) * size, size)
    at = torch.arange(-back * size, size, device=document_ids.device)
    distance = at[-size:, None] - at  # (size, S)
    # Padded rows see themselves: a row that saw nothing would be 0/0.
    visible = (distance >= 0) & (distance < window) & (queries[..., None] == keys[:, :, None])
    return visible.flatten(0, 1)[:, None], back


def window_attention(q, k, v, mask, back):
    """Attention by blocks: keys that no window reaches are never multiplied.

    q (B, T, H, D), k and v (B, T, K, D) → (B, H, T, D). Costs T·window in time and memory, where
    all keys cost T² in time.
    """
    B, T, _, D = q.shape
    size = mask.shape[2]
    blocks = -(-T // size)

    def cut(x, back):  # (B, T, heads, D) → (B·n, heads, (back + 1)·size, D)
        x = F.pad(x, (0, 0, 0, 0, back * size, blocks * size - T))
        x = x.view(B, blocks + back, size, -1, D).transpose(2, 3)  # (B, back + n, heads, size, D)
        return torch.cat([x[:, i:i + blocks] for i in range(back + 1)], dim=3).flatten(0, 1)
    y = attend(cut(q, 0), cut(k, back), cut(v, back), mask)
    return y.unflatten(0, (B, blocks)).transpose(1, 2).flatten(2, 3)[:, :, :T]


class _RMSNorm(torch.autograd.Function):
    """RMSNorm with its gradient written out: autograd's own passes over x cost the CPU thrice."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        scale = square.div_(x.shape[-1]).add_(eps).rsqrt_()
        normed = x * scale
        ctx.save_for_backward(normed, weight, scale)
        return normed * weight

    @staticmethod
    def backward(ctx, grad):
        normed, weight, scale = ctx.saved_tensors
        product = grad * normed
        along = (product @ weight / weight.shape[0]).unsqueeze(-1)
        x_grad = (grad * weight).addcmul_(normed, along, value=-1).mul_(scale)
        return x_grad, product.flatten(0, -2).sum(0), None


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, computed in fp32 (1910.07467, eq. 4)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        weight = self.weight.float()
        if x.is_cpu and torch.is_grad_enabled():
            return _RMSNorm.apply(x.float(), weight, self.eps).to(x.dtype)
        return F.rms_norm(x.float(), weight.shape, weight, self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention: H query heads share K key-value heads."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_size
        queries = config.num_attention_heads * config.head_size
        keys = config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x, sight, cache=None):
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, -1, self.head_dim), sight.cos, sight.sin)
        k = rotate(self.k_proj(x).view(B, T, -1, self.head_dim), sight.cos, sight.sin)
        v = self.v_proj(x).view(B, T, -1, self.head_dim)
        keys, values = k.transpose(1, 2), v.transpose(1, 2)  # (B, K, T, D)
        if cache is not None:
            keys, values = cache.append(self.layer, keys, values)
        if sight.back is not None:
            y = window_attention(q, k, v, sight.mask, sight.back)
        else:
            y = attend(q.transpose(1, 2), keys, values, sight.mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x)) (2002.05202, eq. 6)."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Attention and MLP, each on a normalised copy that is added back (pre-norm)."""

    def __init__(self, config, layer):
        super().__init__()
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, sight, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), sight, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Embedding, layers and the last norm: everything but the logits (Hugging Face's `model`)."""

    def __init__(self, config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Transformer(nn.Module):
    """The language model: ids (B, T) int64 → logits (B, T, V)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.activation_checkpointing = "none"  # or "selective", "full": see `_through`
        self.apply(self._initialize)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _initialize(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def hidden(self, ids, document_ids=None, cache=None):
        """Return the normalised hidden states (B, T, C) before the logits.

        ids (B, T) int64; document_ids (B, T), where given, keep each position from seeing other
        documents of its row; cache: a KVCache that holds the positions before these, with which a
        single position has no gradients.
        Raises ValueError for ids out of range or more positions than the context holds.
        """
        self._check_length(ids, cache)
        x = self._embed(ids)  # (B, T, C)
        if cache is not None and ids.shape[1] == 1:
            # All that is kept may be seen, but for the padding before rows of other lengths.
            mask = None if cache.starts is None else self._sight(ids, None, cache).mask
            x = self._decode(x[:, 0], mask, cache)[:, None]
        else:
            sight = self._sight(ids, document_ids, cache)
            for layer in self.model.layers:
                x = self._through(layer, x, sight, cache)
            x = self.model.norm(x)
        if cache is not None:
            cache.length += ids.shape[1]
        return x

    @torch.no_grad()
    def _decode(self, x, mask, cache):
        """Take one more position, x (B, C), through the layers and the last norm.

        The mathematics of their forward in half as many calls, for in a small model a call costs
        more than its arithmetic: weights are looked up once, RMSNorm divides by the length of x,
        √C·rms(x), and RoPE, which all heads and layers share, is one matrix.
        """
        (B, C), config = x.shape, self.config
        D, K, linear = config.head_size, config.num_key_value_heads, F.linear
        if cache.weights is None:
            weights = [[w if w.ndim == 2 else w.float() * math.sqrt(C) for w in part.parameters()]
                       for part in (*self.model.layers, self.model.norm)]
            least = torch.full((1, 1), math.sqrt(C * config.rms_norm_eps), device=x.device)
            cache.weights = *weights, least
        *layers, (last,), least = cache.weights

        def norm(x, weight):  # x / √(|x|²/C + eps) · weight
            length = torch.linalg.vector_norm(x.float(), dim=-1, keepdim=True)
            return (x / torch.hypot(length, least)).mul_(weight).type_as(x)
        turn = cache.turn().expand(B, D, D)
        for weights, (keys, values, key, value) in zip(layers, cache.slots()):
            q, k, v, o, gate, up, down, first, second = weights  # in the order of their modules
            h = norm(x, first)
            key.copy_(torch.bmm(linear(h, k).view(B, K, D), turn))
            value.copy_(linear(h, v).view(B, K, D))
            # The heads of a group stand as positions before their key-value head: no copies.
            y = torch.bmm(linear(h, q).view(B, -1, D), turn).view(B, K, -1, D)
            y = F.scaled_dot_product_attention(y, keys, values, mask)
            x = x + linear(y.reshape(B, -1), o)
            h = norm(x, second)
            x = x + linear(F.silu(linear(h, gate)) * linear(h, up), down)
        return norm(x, last)

    def _through(self, layer, x, sight, cache):
        """Apply a layer. Where training saves memory it keeps the layer's input ("full") and the
        results of its matrix products ("selective"), and computes the rest again when needed."""
        mode = self.activation_checkpointing
        if mode not in CHECKPOINTING:
            raise ValueError(f"unknown activation_checkpointing {mode!r}: choose "
                             f"{', '.join(CHECKPOINTING)}")
        if mode == "none" or not self.training:
            return layer(x, sight, cache)
        contexts = {"context_fn": _selective} if mode == "selective" else {}
        return checkpoint(layer, x, sight, use_reentrant=False, preserve_rng_state=False,
                          **contexts)

    def _embed(self, ids):
        if torch.compiler.is_compiling():
            return self.model.embed_tokens(ids)
        try:  # the kernel looks at each id anyway; on a GPU it asserts
            return self.model.embed_tokens(ids)
        except IndexError:
            low, high = ids.min().item(), ids.max().item()
            raise ValueError(f"id {low if low < 0 else high} is outside the vocabulary of "
                             f"{self.config.vocab_size}: the tokenizer is another model's") from None

    def _sight(self, ids, document_ids, cache):
        """Return the Sight of new positions; a mask only where "all before me" does not say it."""
        config, (_, T) = self.config, ids.shape
        start = 0 if cache is None else cache.length
        at = torch.arange(start, start + T, device=ids.device)
        starts = None if cache is None else cache.starts
        if cache is None:
            cos, sin = (t.to(_compute_dtype(self)) for t in rotary_table(config, at))
        elif starts is None:
            cos, sin = (table[start:start + T] for table in cache.rotary)
        else:
            cos, sin = (table[(at - starts[:, None]).clamp(min=0)] for table in cache.rotary)
        if starts is not None and start == 0:  # what stands before the row is another document
            document_ids = (at >= starts[:, None]).long()
        window = config.sliding_window or start + T
        if document_ids is None and starts is None and (T == 1 or start == 0 and T <= window):
            return Sight(cos, sin, None, None)
        if start == 0 and T > window:
            documents = torch.zeros_like(ids) if document_ids is None else document_ids
            visible, back = window_mask(window, documents)
            return Sight(cos, sin, additive(visible, cos.dtype), back)
        keys = at if cache is None else cache.positions(T)
        visible = (keys <= at[:, None]) & (keys > at[:, None] - window)  # (T, S)
        if document_ids is not None:
            visible = visible & (document_ids[:, None, :, None] == document_ids[:, None, None, :])
        elif starts is not None:
            visible = visible & (keys >= starts[:, None, None, None])
        return Sight(cos, sin, additive(visible, cos.dtype), None)  # (B, 1, T, S) or (T, S)

    def forward(self, ids, document_ids=None, cache=None):
        """Return logits (B, T, V) for ids (B, T); see `hidden` for the rest."""
        return self.lm_head(self.hidden(ids, document_ids, cache))

    def _check_length(self, ids, cache):
        end = ids.shape[1]
        if cache is not None:
            # Of rows of different lengths the shortest decides: `generate` drops the others.
            end += cache.length - (0 if cache.starts is None else int(cache.starts.max()))
        if end > self.config.max_position_embeddings:
            excess = end - self.config.max_position_embeddings
            raise ValueError(f"{end} positions exceed max_position_embeddings "
                             f"{self.config.max_position_embeddings} by {excess}: shorten the text")


def _compute_dtype(model):
    """Return the dtype of matrix products: the weights', or autocast's."""
    weight = model.lm_head.weight
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _keep_products(context, operation, *args, **settings):
    if operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


_selective = functools.partial(create_selective_checkpoint_contexts, _keep_products)


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden @ weight.T without ever holding all logits.

    Loss and gradients are computed together, a few rows at a time, in place (DeepSeek LLM §2.4
    computes its cross-entropy in place too): the (B·T, V) logits, their softmax and their
    gradient would each be larger than everything else in a small model. Products are computed in
    `low`, all sums in fp32. The mean is taken last: divided by thousands of tokens before the
    products, and before the loss is scaled, gradients would vanish in fp16.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, low):
        hidden_grad = torch.empty_like(hidden, dtype=torch.float32)
        weight_grad = torch.zeros_like(weight, dtype=torch.float32)
        total = hidden.new_zeros((), dtype=torch.float32)
        chunk = CUDA_LOGITS_CHUNK if hidden.is_cuda else LOGITS_CHUNK
        rows = max(LEAST_ROWS, chunk // weight.shape[0])
        low_weight = weight.to(low)
        for part in range(0, len(targets), rows):
            h, target = hidden[part:part + rows].to(low), targets[part:part + rows, None]
            logits = (h @ low_weight.T).float()  # (rows, V)
            highest = logits.amax(dim=-1, keepdim=True)
            total -= (logits.gather(1, target) - highest).sum()
            grad = logits.sub_(highest).exp_()
            norm = grad.sum(dim=-1, keepdim=True)
            total += norm.log().sum()
            grad.div_(norm)  # softmax, then minus one at the target
            if torch.compiler.is_compiling():  # which fuses this with all around it
                grad = grad - (torch.arange(len(weight), device=grad.device) == target).float()
            else:
                grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            grad = grad.to(low)
            hidden_grad[part:part + rows] = grad @ low_weight
            weight_grad += grad.T @ h
        ctx.save_for_backward(hidden_grad, weight_grad)
        ctx.dtypes = hidden.dtype, weight.dtype
        return total / len(targets)

    @staticmethod
    def backward(ctx, grad_output):
        share = grad_output / len(ctx.saved_tensors[0])
        return *((grad * share).to(dtype) for grad, dtype
                 in zip(ctx.saved_tensors, ctx.dtypes)), None, None


def loss(model, inputs, targets, document_ids=None, scored=None):
    """Return the mean cross-entropy in nats (a scalar, fp32) of targets (B, T) given inputs (B, T).

    scored (B, T) bool, where given: which targets count; the others, such as padding, never meet
    the head. All false: NaN. Raises ValueError for one that is not bool, or of another shape.
    Under autocast (bf16, fp16) it is computed as the layers are, and summed in fp32.
    """
    hidden = model.hidden(inputs, document_ids)
    if scored is not None:
        if scored.dtype != torch.bool or scored.shape != targets.shape:
            raise ValueError(f"scored is {scored.dtype} {tuple(scored.shape)}: it must be bool, "
                             f"of the targets' shape {tuple(targets.shape)}")
        hidden, targets = hidden[scored], targets[scored]
    low = _compute_dtype(model)
    with torch.autocast(hidden.device.type, enabled=False):
        return _LinearCrossEntropy.apply(hidden.flatten(0, -2), model.lm_head.weight,
                                         targets.flatten(), low)


def use_exact_onednn():
    """Let oneDNN do the CPU's fp32 matrix products if it does so exactly; return whether.

    torch's default, MKL, leaves AVX-512 unused on AMD: there oneDNN is twice as fast. torch offers
    it for fp32 only with leave to round to bf16, which some chips (AMX) do; so it is tried here.
    The setting is the process's.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    settings = torch.backends.mkldnn.matmul
    before, settings.fp32_precision = settings.fp32_precision, "bf16"
    left, right = torch.rand(2, 256, 256, generator=torch.Generator().manual_seed(0))
    exact = left.double() @ right.double()
    error = ((left @ right).double() - exact).norm() / exact.norm()
    if error > 1e-5:  # fp32 leaves about 1e-7, bf16 1e-3
        settings.fp32_precision = before
    return bool(error <= 1e-5)
