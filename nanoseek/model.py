"""A LLaMA-like decoder, the dense DeepSeek LLM: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    model = Transformer(ModelConfig(hidden_size=64, num_hidden_layers=2))
    logits = model(torch.zeros(1, 8, dtype=torch.long))       # (1, 8, vocab_size)
    value = loss(model, inputs, targets)                      # mean nats per target

Each id becomes a vector. In each layer, attention reads it and those before it, then the MLP
changes each by itself. From the last vectors the head makes logits: a score for each next token.

Sources: DeepSeek LLM (arXiv 2401.02954, §2.2), LLaMA (2302.13971, §2.2); each part names its own.
Shapes: B batch, T query positions, S key positions, C hidden_size, H attention heads,
K key-value heads, D head_dim, V vocab_size."""

import dataclasses
import functools

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

CHECKPOINTING = ("none", "selective", "full")


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Llama 3.1's longer context: what rotates slowly rotates `factor` times slower still."""
    factor: float
    low_freq_factor: float  # slow: fewer rotations than this in the original context
    high_freq_factor: float  # fast, and left alone: more than this; between them it fades
    original_max_position_embeddings: int


@dataclasses.dataclass(frozen=True)
class Part:
    """The shape of what stands in for a layer's Attention or MLP: nanoseek/deepseek has some."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The shape of a Transformer, in Hugging Face's names. ValueError when numbers do not fit."""
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
    initializer_range: float = 0.02  # GPT-2's; `tests/bench/bench_model.py start` compares
    attention: Part | None = None  # None: Attention
    feed_forward: Part | None = None  # None: MLP
    prediction: Part | None = None  # None: of the next token only

    def __post_init__(self):
        # All fields, and those of rope_scaling where there is one.
        for name, value in (vars(self) | vars(self.rope_scaling or self)).items():
            if not (value is None or isinstance(value, (bool, RopeScaling, Part))
                    or isinstance(value, (int, float)) and 0 < value < torch.inf):
                raise ValueError(f"{name} is {value!r}: it must be a finite number above 0")
        if (scaling := self.rope_scaling) and scaling.high_freq_factor <= scaling.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        C, H, K = self.hidden_size, self.num_attention_heads, self.num_key_value_heads
        if self.head_dim is None and self.attention is None and C % H:
            raise ValueError(f"hidden_size {C} does not divide into num_attention_heads {H}")
        if H % K:
            raise ValueError(f"num_attention_heads {H} is no multiple of num_key_value_heads {K}")
        if self.head_size % 2:
            raise ValueError(f"head_dim {self.head_size} is odd: RoPE rotates pairs of numbers")

    @property
    def head_size(self):
        return (getattr(self.attention, "qk_rope_head_dim", self.head_dim)  # D: RoPE rotates it
                or self.hidden_size // self.num_attention_heads)


PRESETS = {  # in the order of the fields: vocabulary, width, MLP's width, layers, heads, K
    "tiny": ModelConfig(4096, max_position_embeddings=256,  # as its rows: no more is trained
                        tie_word_embeddings=False),  # tying keeps rare tokens too alike
    "gpt2-124m": ModelConfig(50304, 768, 2048, 12, 12, 12, max_position_embeddings=1024),
    # As published: DeepSeek LLM, Table 2, and the vocabulary of its config.json.
    "deepseek-llm-7b": ModelConfig(102400, 4096, 11008, 30, 32, 32, max_position_embeddings=4096,
                                   tie_word_embeddings=False, initializer_range=0.006),
    "deepseek-llm-67b": ModelConfig(102400, 8192, 22016, 95, 64, 8, max_position_embeddings=4096,
                                    tie_word_embeddings=False, initializer_range=0.006)}


def rotary_frequencies(size, theta, device):
    """Return by what angle one position rotates each pair of numbers: (D/2,), fp32."""
    pairs = torch.arange(0, size, 2, device=device, dtype=torch.float32)
    return 1.0 / theta ** (pairs / size)  # Hugging Face's order of operations, for its rounding


def rotary_table(config, positions):
    """Return the cosines and sines of RoPE at positions (…, T): two of (…, T, 1, D), fp32."""
    frequencies = rotary_frequencies(config.head_size, config.rope_theta, positions.device)
    if (scaling := config.rope_scaling) is not None:
        rotations = scaling.original_max_position_embeddings / (2 * torch.pi / frequencies)
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        fast = ((rotations - low) / (high - low)).clamp(0, 1)  # from 0, slow, to 1
        frequencies = (1 - fast) * (frequencies / scaling.factor) + fast * frequencies
    angles = positions.float()[..., None, None] * frequencies  # (…, T, 1, D/2)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)  # signs: see rotate


def rotate(x, cos, sin):
    """Rotate pairs (a, b) of x (B, T, heads, D) to (a·cos − b·sin, b·cos + a·sin): RoPE
    (2104.09864, §3.2). Pairs are i, i + D/2 (Hugging Face's Llama); in the paper, neighbours."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


class KVCache:
    """Keys and values of the positions seen so far, so that each new token costs one position. With
    a sliding window it is a ring: position p goes to slot p % size, over the one that left the
    window. starts (B,): the column at which each row begins, where prompts are padded in front."""
    def __init__(self, config, batch, max_positions, device=None, dtype=torch.float32, starts=None):
        self.size = min(max_positions, config.sliding_window or max_positions)
        K, *widths = (config.attention.cached(config) if config.attention
                      else (config.num_key_value_heads, config.head_size, config.head_size))
        self.keys, self.values = self.kept = [
            torch.zeros(config.num_hidden_layers, batch, K, self.size, width, device=device,
                        dtype=dtype) for width in widths]
        self.starts, self.device, self.length = starts, device, 0  # length: positions stored

    def columns(self, new):
        """Return where the keys that `append` returns stand in the text (S,), the new ones last."""
        return torch.arange(max(0, self.length - self.size), self.length + new, device=self.device)

    def append(self, layer, keys, values):
        """Store keys and values (B, K, T, D) of new positions; return all kept: (B, K, S, D)."""
        T, seen = keys.shape[2], []
        slots = self.columns(T) % self.size  # old and new
        for kept, new in zip((self.keys[layer], self.values[layer]), (keys, values)):
            seen.append(torch.cat((kept[..., slots[:-T], :], new), dim=-2))  # (B, K, S, D)
            # Only now: the first of the new positions may see what the last ones overwrite.
            kept[..., slots[-T:][-self.size:], :] = new[..., -self.size:, :]
        return seen


class RMSNorm(nn.RMSNorm):
    """x / √(mean(x²) + eps) · weight over the last dimension, in fp32 (1910.07467, eq. 4)."""
    def forward(self, x):
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention: H query heads share K key-value heads (2305.13245, §2)."""
    def __init__(self, config, layer):
        super().__init__()
        H, K, D = config.num_attention_heads, config.num_key_value_heads, config.head_size
        self.layer, self.head_dim = layer, D
        self.q_proj = nn.Linear(config.hidden_size, H * D, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, K * D, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, K * D, bias=False)
        self.o_proj = nn.Linear(H * D, config.hidden_size, bias=False)

    def forward(self, x, rotary, mask, cache=None):
        """x (B, T, C) → (B, T, C); see `rotary_table` and `Transformer.mask`."""
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim))  # (B, T, H or K, D)
                   for project in (self.q_proj, self.k_proj, self.v_proj))
        cos, sin = (table.to(q.dtype) for table in rotary)
        q, k, v = (heads.transpose(1, 2)  # (B, H or K, T, D)
                   for heads in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        if cache is not None:
            k, v = cache.append(self.layer, k, v)  # (B, K, S, D)
        y = self.attend(q, k, v, mask)  # (B, H, T, D)
        return self.o_proj(y.transpose(1, 2).flatten(-2))

    def attend(self, q, k, v, mask):
        """Return softmax(q·kᵀ/√D)·v over the keys that the mask lets each query see."""
        return F.scaled_dot_product_attention(q, k, v, mask, enable_gqa=True)


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
    """Attention and MLP, each on a normalised copy of x that is added back (pre-norm)."""
    def __init__(self, config, layer):
        super().__init__()
        self.self_attn = (config.attention.build if config.attention else Attention)(config, layer)
        self.mlp = config.feed_forward.build(config, layer) if config.feed_forward else MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rotary, mask, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), rotary, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Head(nn.Linear):
    """Hidden states (…, C) → logits (…, V), and the loss that they give."""
    def cross_entropy(self, hidden, targets):
        """Return the mean of −log softmax(logits)[target], fp32: hidden (N, C), targets (N,)."""
        return F.cross_entropy(self(hidden).float(), targets)


class Transformer(nn.Module):
    """The language model: ids (B, T) int64 → logits (B, T, V); see `hidden` for its inputs."""
    def __init__(self, config):
        super().__init__()
        self.config, self.activation_checkpointing = config, "none"
        self.model = nn.ModuleDict({
            "embed_tokens": nn.Embedding(config.vocab_size, config.hidden_size),
            "layers": nn.ModuleList(
                [DecoderLayer(config, layer) for layer in range(config.num_hidden_layers)]
                + (config.prediction.build(config) if config.prediction else [])),
            "norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})
        self.lm_head = Head(config.hidden_size, config.vocab_size, bias=False)
        for module in self.modules():  # all matrices alike, none scaled by depth (DeepSeek, §2.2)
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, std=config.initializer_range)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def forward(self, ids, document_ids=None, cache=None):
        return self.lm_head(self.hidden(ids, document_ids, cache))

    def hidden(self, ids, document_ids=None, cache=None):
        """Return what the head reads, the normalised vectors (B, T, C) of ids (B, T). document_ids
        (B, T) keep the documents of a row apart; cache: a KVCache of what came before."""
        x, T = self.embed(ids, cache), ids.shape[1]
        columns = torch.arange(T, device=ids.device) if cache is None else cache.columns(T)  # (S,)
        positions = columns[-T:]  # the new ones are the last
        if cache is not None and cache.starts is not None:
            document_ids = columns >= cache.starts[:, None]  # padding is a document of its own
            positions = (positions - cache.starts[:, None]).clamp(min=0)  # (B, T)
        rotary, mask = rotary_table(self.config, positions), self.mask(ids, columns, document_ids)
        for layer in self.model.layers[:self.config.num_hidden_layers]:
            x = self.apply_layer(layer, x, rotary, mask, cache)
        if cache is not None:
            cache.length += T
        return self.model.norm(x)

    def embed(self, ids, cache=None):
        """Return the vectors (B, T, C) of ids; ValueError for unknown ones, or more than fit."""
        if ids.ndim != 2:
            raise ValueError(f"ids are of shape {tuple(ids.shape)}, not (B, T): ids[None] is a row")
        end, cap = ids.shape[1], self.config.max_position_embeddings
        if cache is not None:  # the shortest row decides; `generate` stops the others
            end += cache.length - (0 if cache.starts is None else int(cache.starts.max()))
        if end > cap:
            raise ValueError(f"{end} positions exceed max_position_embeddings {cap} by {end - cap}")
        try:
            return self.model.embed_tokens(ids)
        except IndexError:
            wrong = ids[(ids < 0) | (ids >= self.config.vocab_size)][0]
            raise ValueError(f"id {wrong} is outside the vocabulary of the model") from None

    def mask(self, ids, columns, document_ids=None):
        """Return which of the keys, at columns (S,), each id sees: bool (T, S) or (B, 1, T, S)."""
        T, window = ids.shape[1], self.config.sliding_window or len(columns)
        distance = columns[-T:, None] - columns  # of each id, the last ones, to each key
        seen = (distance >= 0) & (distance < window)  # nothing later; window: 2310.06825
        if document_ids is not None:
            seen = seen & (document_ids[:, None, -T:, None] == document_ids[:, None, None, :])
        return seen

    def apply_layer(self, layer, *inputs):
        """Call a layer. To save memory, training may keep its input only ("full": Chen et al.,
        1604.06174) or its matrix products too ("selective": Korthikanti et al., 2205.05198, §5)."""
        mode = self.activation_checkpointing
        if mode not in CHECKPOINTING:
            raise ValueError(f"unknown checkpointing {mode!r}: choose {', '.join(CHECKPOINTING)}")
        if mode == "none" or not self.training:
            return layer(*inputs)
        products = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
        more = {} if mode == "full" else {"context_fn": functools.partial(  # from torch 2.5 on
            torch.utils.checkpoint.create_selective_checkpoint_contexts, products)}
        return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False, **more)


def loss(model, inputs, targets, document_ids=None):
    """Return the mean cross-entropy in nats (a scalar, fp32) of targets (B, T) given inputs (B, T).
    Targets below 0, such as −100, do not count and never meet the head. Parts may add a loss."""
    ignored = not torch.compiler.is_compiling() and targets.min() < 0  # while a GPU has no work yet
    hidden, more = model.hidden(inputs, document_ids), 0.0
    if model.training and model.config.prediction:  # of which only the gradient is added
        more = model.config.prediction.pull(model, hidden, inputs, targets, document_ids)
    if ignored:
        hidden, targets = hidden[targets >= 0], targets[targets >= 0]
    value = more + model.lm_head.cross_entropy(hidden.flatten(0, -2), targets.flatten())
    return value + sum(getattr(p, "auxiliary_loss", 0.0) for p in model.modules() if p.training)
