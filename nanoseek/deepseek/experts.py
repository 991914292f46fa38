"""A mixture of experts (DeepSeekMoE): many small MLPs, of which each token visits a few.

    part = Experts(moe_intermediate_size=88, n_routed_experts=16, num_experts_per_tok=3)
    model = Transformer(ModelConfig(feed_forward=part))

What the chapter spends: every token is multiplied with every weight. The idea (DeepSeekMoE, arXiv
2401.06066, §3): of a layer's weights a token needs few. A *router* scores the experts, and only the
best num_experts_per_tok compute. So a model has more to know with, at the FLOPs of a small one.

* Fine-grained (§3.1): many narrow experts, so that a token can combine several.
* Shared (§3.2): n_shared_experts are visited by every token, and keep what all need.
* In groups (DeepSeek-V2, 2405.04434, §2.2.2): experts on one machine are a group, and a token goes
  to the topk_group best of n_group only, so that it is not sent everywhere.

A router left alone sends all tokens to a few experts, which then learn most. Two ways to balance:

* With a loss (2401.06066, eq. 12–14): α·E·Σᵢ fᵢ·Pᵢ, where fᵢ is the share of choices that fell on
  expert i and Pᵢ its mean score. It is least when all get equally many, but pulls at the weights.
* Without (V3, 2412.19437, §2.1.2; 2408.15664): a bias on each expert's score counts for the choice,
  not for the weight with which the expert is heard. After each step it moves down by `bias_speed`
  where the load was above the mean, and up where it was below.

Shapes: N tokens, C hidden_size, E routed experts, k experts for each token.
"""

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import nn

from nanoseek.model import MLP, Part


@dataclasses.dataclass(frozen=True)
class Experts(Part):
    """The shape of a mixture, in Hugging Face's names. ValueError when numbers do not fit.

    scoring_func "sigmoid" is V3's router, a group's score that of its two best experts, biased;
    "softmax" V2's, a group's score that of its best, and the balance left to balance_loss.
    """
    moe_intermediate_size: int = 88
    n_routed_experts: int = 16
    num_experts_per_tok: int = 3
    n_shared_experts: int = 1
    n_group: int = 1
    topk_group: int = 1
    first_k_dense_replace: int = 0  # so many layers keep their MLP
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True  # the weights of the chosen experts add up to 1, before the factor:
    routed_scaling_factor: float = 1.0
    bias_speed: float = 0.001  # V3, §4.2; 0: the bias stays
    balance_loss: float = 0.0  # α; V2 took 0.003

    def __post_init__(self):
        limits = {"first_k_dense_replace": 0, "bias_speed": 0, "balance_loss": 0}
        for name, value in vars(self).items():
            whole = type(value) is int and value >= limits.get(name, 1)
            fits = {int: whole, bool: isinstance(value, bool), str: value in ("sigmoid", "softmax"),
                    float: type(value) in (int, float) and 0 <= value < math.inf}
            if not fits[self.__annotations__[name]]:
                raise ValueError(f"{name} is {value!r}: see nanoseek/deepseek/experts.py")
        E, k, groups = self.n_routed_experts, self.num_experts_per_tok, self.n_group
        if E % groups or self.topk_group > groups:
            raise ValueError(f"n_group {groups} must divide n_routed_experts {E}, and topk_group "
                             f"{self.topk_group} be at most n_group")
        if k > E // groups * self.topk_group:
            raise ValueError(f"num_experts_per_tok {k} exceeds the {E // groups * self.topk_group} "
                             "experts that a token may choose from")
        if self.scoring_func == "sigmoid" and E // groups < 2:
            raise ValueError("a group is scored by its two best experts: n_group is too large")
        if self.scoring_func == "softmax" and self.norm_topk_prob:
            raise ValueError("norm_topk_prob goes with scoring_func sigmoid only, as in DeepSeek's")

    def build(self, config, layer):
        return MLP(config) if layer < self.first_k_dense_replace else Mixture(config, self)

    def count(self, hidden, layers, dense):
        """Return the numbers of all layers' weights, and of those that one token does not meet.
        dense: that of an MLP."""
        mixtures = max(0, layers - self.first_k_dense_replace)
        expert = 3 * hidden * self.moe_intermediate_size
        whole = (self.n_routed_experts + self.n_shared_experts) * expert
        router = self.n_routed_experts * hidden
        idle = (self.n_routed_experts - self.num_experts_per_tok) * expert
        return (layers - mixtures) * dense + mixtures * (whole + router), mixtures * idle


class Router(nn.Linear):
    """Chooses the experts of each token; counts how many tokens each expert gets."""

    def __init__(self, hidden_size, part):
        super().__init__(hidden_size, part.n_routed_experts, bias=False)
        self.part, self.auxiliary_loss = part, 0.0  # what balance_loss makes, for model.loss
        if part.scoring_func == "sigmoid":
            self.register_buffer("e_score_correction_bias", torch.zeros(part.n_routed_experts))
        # Tokens that each expert got since the last step, (E,); twice where layers are recomputed.
        self.load = 0

    def forward(self, x):
        """x (N, C) → the numbers of the experts that each token visits, and their weights, (N, k).
        In fp32 at least: a rounded score would send tokens elsewhere."""
        part, wide = self.part, torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.to(wide), self.weight.to(wide))  # (N, E)
        v3 = part.scoring_func == "sigmoid"
        scores = logits.sigmoid() if v3 else logits.softmax(dim=-1)
        with torch.no_grad():
            chosen = self.choose(scores + self.e_score_correction_bias if v3 else scores)
        weights = scores.gather(1, chosen)  # without the bias
        if part.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        self.auxiliary_loss = 0.0  # that of an earlier batch is past, also where none is made now
        if self.training and torch.is_grad_enabled():
            load = torch.bincount(chosen.flatten(), minlength=part.n_routed_experts)
            self.load = self.load + load
            if part.balance_loss:
                share = scores / scores.sum(dim=-1, keepdim=True)
                self.auxiliary_loss = part.balance_loss * part.n_routed_experts * (
                    (load / chosen.numel()) * share.mean(dim=0)).sum()
        return chosen, weights * part.routed_scaling_factor

    def choose(self, scores):
        """Return the numbers (N, k) of the best experts, within the best groups."""
        part = self.part
        if part.n_group > 1:
            grouped = scores.unflatten(-1, (part.n_group, -1))  # (N, groups, experts in each)
            two = 2 if part.scoring_func == "sigmoid" else 1
            groups = grouped.topk(two, dim=-1).values.sum(dim=-1)
            best = groups.topk(part.topk_group, dim=-1).indices
            out = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(1, best, False)
            scores = grouped.masked_fill(out[..., None], -math.inf).flatten(-2)
        return scores.topk(part.num_experts_per_tok, dim=-1).indices

    def after_step(self, taken):
        """Move the bias against the load of the step, if it was taken, and begin a new count."""
        if taken and torch.is_tensor(self.load) and self.part.scoring_func == "sigmoid":
            load = self.load.float()
            if torch.distributed.is_initialized():  # the load of all ranks
                torch.distributed.all_reduce(load)
            self.e_score_correction_bias += self.part.bias_speed * (load.mean() - load).sign()
        self.load = 0


def after_step(model, taken=True):
    """Tell the routers of a model that a step has ended; one that was not taken is forgotten. Of
    all parts the loss is dropped, and with it the batch that it remembers."""
    for module in model.modules():
        if isinstance(module, Router):
            module.after_step(taken)
        if hasattr(module, "auxiliary_loss"):
            module.auxiliary_loss = 0.0


class Mixture(nn.Module):
    """Shared experts, one MLP of all their widths, plus the routed ones that a token visits."""

    def __init__(self, config, part):
        super().__init__()
        self.gate = Router(config.hidden_size, part)
        wide = part.n_shared_experts * part.moe_intermediate_size
        narrow = dataclasses.replace(config, intermediate_size=part.moe_intermediate_size)
        self.experts = nn.ModuleList(MLP(narrow) for _ in range(part.n_routed_experts))
        self.shared_experts = MLP(dataclasses.replace(config, intermediate_size=wide))

    def forward(self, x):
        """x (B, T, C) → (B, T, C)."""
        tokens = x.flatten(0, -2)  # (N, C)
        chosen, weights = self.gate(tokens)
        # Sorted by expert, the tokens of each stand together: one product for all of them.
        order = chosen.flatten().argsort(stable=True)  # of the N·k visits
        visitor = order // chosen.shape[1]
        visits = tokens[visitor].split(torch.bincount(
            chosen.flatten(), minlength=len(self.experts)).tolist())
        # An expert that nobody visits computes nothing, and its gradient is zero.
        results = torch.cat([expert(part) for expert, part in zip(self.experts, visits)])
        results = results * weights.flatten()[order, None].to(results.dtype)
        routed = torch.zeros_like(tokens, dtype=results.dtype).index_add(0, visitor, results)
        return self.shared_experts(x) + routed.view(x.shape)
