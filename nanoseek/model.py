"""A LLaMA-like decoder, the dense DeepSeek LLM: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    config = ModelConfig(hidden_size=64, num_hidden_layers=2)
    model = Transformer(config)
    logits = model(torch.zeros(1, 8, dtype=torch.long))       # (1, 8, vocab_size)
    value = loss(model, inputs, targets)                      # mean nats per target

Sources: DeepSeek LLM (arXiv 2401.02954, §2.2), LLaMA (2302.13971, §2.2), RMSNorm (1910.07467),
RoPE (2104.09864, §3.2), GQA (2305.13245, §2), SwiGLU (2002.05202, §2), activation checkpointing
(1604.06174). Fields and parameters have Hugging Face's names, so one vocabulary leads from the
laptop to a published config.json.

Shapes: B batch, T query positions, S key positions, C hidden_size, H attention heads,
K key-value heads, D head_dim, V vocab_size.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

LOGITS_CHUNK = 1 << 20  # logits in one piece of the loss: 4 MB of fp32, which stays in the cache


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
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self):
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                     "num_attention_heads", "num_key_value_heads", "max_position_embeddings"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least 1")
        if self.head_dim is not None and self.head_dim < 1:
            raise ValueError(f"head_dim is {self.head_dim}: it must be at least 1")
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
    "tiny": ModelConfig(),
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


def rotary_table(config, positions):
    """Return cosines and sines (T, 1, D/2), fp32, of the RoPE angles at `positions` (T,)."""
    pairs = torch.arange(0, config.head_size, 2, device=positions.device, dtype=torch.float32)
    frequencies = config.rope_theta ** (-pairs / config.head_size)
    angles = positions.float()[:, None, None] * frequencies  # (T, 1, D/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turn x (B, T, heads, D) by RoPE. Number i pairs with i + D/2, as in Hugging Face's Llama;
    the paper pairs neighbours: the same up to a fixed permutation of the weights' rows."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


class KVCache:
    """Keys and values of the positions seen so far, so that each new token costs one position.

    Two tensors (B, K, max_positions, D) a layer: 2·L·K·D numbers per token, H/K times fewer
    than with multi-head attention (GQA paper, §2).
    """

    def __init__(self, config, batch, max_positions, device=None, dtype=torch.float32):
        shape = (config.num_hidden_layers, batch, config.num_key_value_heads, max_positions,
                 config.head_size)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0  # positions filled; Transformer moves it on after the last layer

    def append(self, layer, keys, values):
        """Store keys and values (B, K, T, D) of new positions; return all (B, K, S, D)."""
        end = self.length + keys.shape[2]
        self.keys[layer, :, :, self.length:end] = keys
        self.values[layer, :, :, self.length:end] = values
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class RMSNorm(nn.Module):
    """x / rms(x) · weight over the last dimension, computed in fp32 (1910.07467, eq. 4)."""

    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Causal grouped-query attention: H query heads share K key-value heads."""

    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_size
        self.groups = config.num_attention_heads // config.num_key_value_heads
        queries = config.num_attention_heads * config.head_size
        keys = config.num_key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)

    def forward(self, x, cos, sin, mask=None, cache=None):
        B, T, _ = x.shape
        q = rotate(self.q_proj(x).view(B, T, -1, self.head_dim), cos, sin).transpose(1, 2)
        k = rotate(self.k_proj(x).view(B, T, -1, self.head_dim), cos, sin).transpose(1, 2)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D)
        if self.groups > 1:  # head h reads key-value head h // groups
            k = k.repeat_interleave(self.groups, dim=1)  # (B, H, S, D)
            v = v.repeat_interleave(self.groups, dim=1)
        # One new position sees all keys; several new ones without a mask start the sequence.
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None and T > 1)
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

    def forward(self, x, cos, sin, mask=None, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
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
        self.activation_checkpointing = False  # keep only each layer's input; recompute the rest
        self.apply(self._initialize)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _initialize(self, module):
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=self.config.initializer_range)

    def hidden(self, ids, document_ids=None, cache=None):
        """Return the normalised hidden states (B, T, C) before the logits.

        ids (B, T) int64; document_ids (B, T), where given, keep each position from seeing other
        documents of its row; cache: a KVCache that holds the positions before these.
        Raises ValueError for ids out of range or more positions than the context holds.
        """
        self._check(ids, cache)
        start = 0 if cache is None else cache.length
        positions = torch.arange(start, start + ids.shape[1], device=ids.device)
        cos, sin = rotary_table(self.config, positions)
        mask = attention_mask(ids, document_ids, start)
        x = self.model.embed_tokens(ids)  # (B, T, C)
        for layer in self.model.layers:
            if self.activation_checkpointing and self.training:
                x = checkpoint(layer, x, cos, sin, mask, use_reentrant=False)
            else:
                x = layer(x, cos, sin, mask, cache)
        if cache is not None:
            cache.length += ids.shape[1]
        return self.model.norm(x)

    def forward(self, ids, document_ids=None, cache=None):
        """Return logits (B, T, V) for ids (B, T); see `hidden` for the rest."""
        return self.lm_head(self.hidden(ids, document_ids, cache))

    def _check(self, ids, cache):
        end = ids.shape[1] + (0 if cache is None else cache.length)
        if end > self.config.max_position_embeddings:
            excess = end - self.config.max_position_embeddings
            raise ValueError(f"{end} positions exceed max_position_embeddings "
                             f"{self.config.max_position_embeddings} by {excess}: shorten the text")
        # A GPU would have to wait for this look at the values; there the kernel itself asserts.
        if ids.device.type == "cpu" and ids.numel():
            low, high = ids.min().item(), ids.max().item()
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(f"id {low if low < 0 else high} is outside the vocabulary of "
                                 f"{self.config.vocab_size}: the tokenizer is another model's")


def attention_mask(ids, document_ids, start):
    """Return True where a query may look (broadcast to (B, H, T, S)), or None for plain causal.

    None lets the fused kernel skip the upper triangle; a mask is built only for packed
    documents, or for several new positions behind a filled cache.
    """
    T = ids.shape[1]
    if document_ids is None and (start == 0 or T == 1):
        return None
    queries = torch.arange(start, start + T, device=ids.device)
    causal = queries[:, None] >= torch.arange(start + T, device=ids.device)  # (T, S)
    if document_ids is None:
        return causal
    return causal & (document_ids[:, None, :, None] == document_ids[:, None, None, :])


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden @ weight.T without ever holding all logits.

    Loss and gradients are computed together, a few rows at a time, in place (DeepSeek LLM §2.4
    computes its cross-entropy in place too): the (B·T, V) logits, their softmax and their
    gradient would each be larger than everything else in a small model.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        hidden_grad, weight_grad = torch.empty_like(hidden), torch.zeros_like(weight)
        total = hidden.new_zeros((), dtype=torch.float32)
        rows = max(1, LOGITS_CHUNK // weight.shape[0])
        for part in range(0, len(targets), rows):
            h, target = hidden[part:part + rows], targets[part:part + rows, None]
            logits = (h @ weight.T).float()  # (rows, V)
            norm = logits.logsumexp(dim=-1, keepdim=True)
            total += (norm - logits.gather(1, target)).sum()
            grad = logits.sub_(norm).exp_()  # softmax, then minus one at the target
            grad.scatter_add_(1, target, grad.new_full(target.shape, -1.0))
            grad = grad.div_(len(targets)).to(h.dtype)
            hidden_grad[part:part + rows] = grad @ weight
            weight_grad += grad.T @ h
        ctx.save_for_backward(hidden_grad, weight_grad)
        return total / len(targets)

    @staticmethod
    def backward(ctx, grad_output):
        hidden_grad, weight_grad = ctx.saved_tensors
        return hidden_grad * grad_output, weight_grad * grad_output, None


def loss(model, inputs, targets, document_ids=None):
    """Return the mean cross-entropy in nats (a scalar) of targets (B, T) given inputs (B, T)."""
    hidden = model.hidden(inputs, document_ids)
    weight = model.lm_head.weight
    return _LinearCrossEntropy.apply(hidden.flatten(0, 1), weight.to(hidden.dtype),
                                     targets.flatten())
