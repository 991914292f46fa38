"""DeepSeek Sparse Attention (DSA): a cheap indexer chooses the keys that attention then reads.

    part = Sparse(q_lora_rank=64, index_n_heads=4, index_head_dim=32, index_topk=64)
    model = Transformer(ModelConfig(attention=part))
    set_stage(model, "dense")       # for some steps, as V3.2 did; then set_stage(model, "sparse")

What latent attention still spends: each token is compared with all before it, in all heads. Most
of them get next to no weight. The idea (DeepSeek-V3.2, arXiv 2512.02556, §2.1): let a small part
guess which keys matter, the *lightning indexer*, and attend to the best index_topk of them alone.

    I(t, s) = Σⱼ wⱼ(t)·ReLU(qⱼ(t)·k(s))          the index score of key s for query t (eq. 1)

It has few narrow heads j, one key for all of them, and no values. So it still compares all pairs,
but cheaply, and the wide attention costs the same for each token, however long the text is. (Here
a mask hides the other keys, so a prompt and training compute all pairs. Only one new token fetches
few.)

A choice has no gradient, so the indexer has a loss of its own: it learns to say where attention
will look. Its target p is the attention of all heads added up, made to sum to 1:

    KL(p ‖ softmax(I))                           for each query (eq. 3)

* Dense stage: attention reads all keys, and the indexer learns from all of them.
* Sparse stage: attention reads the chosen keys, and p and softmax(I) are over these (eq. 4).

The indexer's inputs and target are detached: it learns from its loss alone, the rest of the model
from the model's loss alone. V3.2 was a trained model, of which only the indexer learnt in the dense
stage. Here nothing is frozen (an optimizer of the parameters with ".indexer." in their names would
do that), and a new model is in the sparse stage until a training loop says otherwise.

Where the report is silent, this follows DeepSeek's code, as transformers does. The index queries
come from the queries' latent. RoPE rotates the first P numbers, in halves, not neighbours. The key
has a LayerNorm, and scores are divided by √(I·J). A Hadamard matrix that DeepSeek's code applies
to queries and keys before fp8 changes no product and is left out, as is fp8. Our own choices: the
loss is the mean over queries, and of equal scores the later key wins, so that it does not matter
how many keys a mask hides.

Shapes: those of latent.py, J index_n_heads, I index_head_dim.
"""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn

from nanoseek.deepseek.latent import EPS, Latent, LatentAttention
from nanoseek.model import rotate


@dataclasses.dataclass(frozen=True)
class Sparse(Latent):
    """Latent attention's shape and the indexer's, in Hugging Face's names. The cache holds
    index_head_dim more numbers a token and layer. ValueError when numbers do not fit."""
    q_lora_rank: int = 64  # never None: the indexer's queries are made from it, too
    index_n_heads: int = 4
    index_head_dim: int = 32
    index_topk: int = 64  # keys that a query reads

    def __post_init__(self):
        super().__post_init__()
        if self.q_lora_rank is None or not self.rope_interleave:
            raise ValueError("sparse attention needs a q_lora_rank, of which its indexer makes "
                             "queries, and has rope_interleave true")
        if self.index_head_dim < self.qk_rope_head_dim:
            raise ValueError(f"index_head_dim {self.index_head_dim} is below qk_rope_head_dim "
                             f"{self.qk_rope_head_dim}: so many of its numbers are rotated")

    def module(self):
        return SparseAttention

    def cached(self, config):
        heads, latent, key = super().cached(config)
        return heads, latent, key + self.index_head_dim

    def widths(self, heads, context):
        wide, kept = super().widths(heads, context)
        # A query reads index_topk keys. The indexer scores all; it has no values, hence the half.
        index = self.index_n_heads * (self.index_head_dim + 1) / 2
        return wide * min(1, self.index_topk / context) + index, kept + self.index_head_dim / 2

    def count(self, hidden, heads):
        matrices, norms = super().count(hidden, heads)
        J, I = self.index_n_heads, self.index_head_dim
        return matrices + self.q_lora_rank * J * I + hidden * (I + J), norms + 2 * I


class Indexer(nn.Module):
    """Scores all keys for each query; the modules have DeepSeek's names."""

    def __init__(self, config, part):
        super().__init__()
        self.part = part
        J, I = part.index_n_heads, part.index_head_dim
        self.wq_b = nn.Linear(part.q_lora_rank, J * I, bias=False)
        self.wk = nn.Linear(config.hidden_size, I, bias=False)
        self.k_norm = nn.LayerNorm(I, EPS)
        self.weights_proj = nn.Linear(config.hidden_size, J, bias=False)
        self.auxiliary_loss = self.divergence = 0.0  # see `learn`

    def keys(self, x, rotary):
        """x (B, T, C) → the keys of new positions, (B, 1, T, I)."""
        return self.turn(self.k_norm(self.wk(x))[:, :, None], rotary)

    def forward(self, x, q_latent, keys, rotary):
        """x (B, T, C), q_latent (B, T, q_lora_rank), keys (B, 1, S, I) → scores (B, 1, T, S)."""
        q = self.turn(self.wq_b(q_latent).unflatten(-1, (self.part.index_n_heads, -1)), rotary)
        weights = self.weights_proj(x) * (q.shape[1] * q.shape[3]) ** -0.5  # (B, T, J)
        # In fp32 at least, as DeepSeek's: rounded scores would often be equal.
        wide = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            scores = F.relu(q.to(wide) @ keys.to(wide).mT)  # (B, J, T, S)
            return torch.einsum("btj,bjts->bts", weights.to(wide), scores)[:, None]

    def turn(self, heads, rotary):
        """Rotate the first P numbers of (B, T, heads, I) by their position → (B, heads, T, I)."""
        P = self.part.qk_rope_head_dim
        turned = rotate(heads[..., :P], *(table.to(heads.dtype) for table in rotary))
        return torch.cat((turned, heads[..., P:]), dim=-1).transpose(1, 2)

    def learn(self, scores, target, seen):
        """Make the indexer's loss of scores and target (B, 1, T, S) over the keys that are seen."""
        logs = scores.masked_fill(~seen, -torch.inf).log_softmax(dim=-1).masked_fill(~seen, 0.0)
        loss = F.kl_div(logs, target, reduction="sum") / logs[..., 0].numel()
        self.divergence = loss.detach()
        # Only its gradient is added to the model's loss, whose value stays that of the model.
        self.auxiliary_loss = loss - self.divergence


class SparseAttention(LatentAttention):
    """Latent attention to the keys that the indexer chooses."""

    def __init__(self, config, part, layer):
        super().__init__(config, part, layer)
        self.indexer, self.stage = Indexer(config, part), "sparse"

    def forward(self, x, rotary, mask, cache=None):
        """x (B, T, C) → (B, T, C); the inputs are those of model.Attention."""
        part = self.part
        q_latent = self.q_a_layernorm(self.q_a_proj(x))
        q, q_rope, latent, k_rope = self.project(x, q_latent, rotary)
        keys = self.indexer.keys(x.detach(), rotary)
        if cache is not None:  # the indexer's keys stand behind the rotated ones
            latent, k_rope = cache.append(self.layer, latent, torch.cat((k_rope, keys), dim=-1))
            k_rope, keys = k_rope.split([part.qk_rope_head_dim, part.index_head_dim], dim=-1)
        learns = self.training and torch.is_grad_enabled()
        chooses = self.stage == "sparse" and latent.shape[2] > part.index_topk
        self.indexer.auxiliary_loss = 0.0  # that of an earlier batch is past
        if learns or chooses:
            seen = visible(mask, q, latent)
            scores = self.indexer(x.detach(), q_latent.detach(), keys, rotary)  # (B, 1, T, S)
            if chooses:
                mask = seen = seen & best(scores.masked_fill(~seen, -torch.inf), part.index_topk)
            if learns:
                self.indexer.learn(scores, self.target(q, q_rope, latent, k_rope, seen), seen)
        if chooses and q.shape[2] == 1:  # for one new token, only what it reads is fetched
            picks = seen.byte().topk(part.index_topk, dim=-1).indices  # (B, 1, 1, index_topk)
            latent, k_rope = (kept.take_along_dim(picks.mT, dim=2) for kept in (latent, k_rope))
            mask = seen.take_along_dim(picks, dim=3)  # hidden ones, where too few may be seen
        return self.attend(q, q_rope, latent, k_rope, mask)

    @torch.no_grad()
    def target(self, q, q_rope, latent, k_rope, seen):
        """Return the attention that all heads together pay to the keys seen, (B, 1, T, S)."""
        scores = torch.cat((q, q_rope), dim=-1) @ self.keys_values(latent, k_rope)[0].mT
        scores = (scores * self.scale).masked_fill(~seen, -torch.inf)
        wide = torch.promote_types(scores.dtype, torch.float32)
        return scores.softmax(dim=-1, dtype=wide).mean(dim=1, keepdim=True)


def set_stage(model, stage):
    """Let all sparse attention of a model read every key, "dense", or the chosen ones, "sparse"."""
    if stage not in ("dense", "sparse"):
        raise ValueError(f"unknown stage {stage!r}: choose dense or sparse")
    for module in model.modules():
        if isinstance(module, SparseAttention):
            module.stage = stage


def visible(mask, q, latent):
    """Return a mask as bool: nanoseek/fast gives −∞ for what is hidden, None where causal."""
    T, S = q.shape[2], latent.shape[2]
    if mask is None:
        return torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return mask if mask.dtype == torch.bool else mask == 0


def best(scores, k):
    """Return which k of the scores (…, S) are highest, as bool; of equal ones the last."""
    least = scores.topk(k, dim=-1, sorted=False).values.amin(dim=-1, keepdim=True)
    above, equal = scores > least, scores == least
    room = k - above.sum(dim=-1, keepdim=True)
    behind = equal.sum(dim=-1, keepdim=True) - equal.cumsum(dim=-1)  # equal ones that come later
    return above | equal & (behind < room)
