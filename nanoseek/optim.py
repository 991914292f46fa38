"""Optimizers and schedules: AdamW with groups, Muon for the matrices, multi-step rates.

    optimizers = build_optimizers(model, "muon", learning_rate=3e-3, weight_decay=0.1)
    factor = schedule_factor("multi_step", step, total_steps=400, warmup_steps=20)
    set_learning_rate(optimizers, 3e-3 * factor)

Sources: AdamW (arXiv 1711.05101); multi-step schedule, betas and weight decay of DeepSeek LLM
(2401.02954, §2.3); Muon (Jordan 2024, kellerjordan.github.io/posts/muon), with the step scaled to
AdamW's size as in Moonlight (2502.16982, §2.2), so that both share one learning rate.
"""

import math

import torch

OPTIMIZERS = ("muon", "adamw")
BETAS = (0.9, 0.95)  # DeepSeek LLM §2.3
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # Jordan: steep at zero, so five rounds suffice
MULTI_STEP = ((0.8, 1.0), (0.9, 0.316), (1.0, 0.1))  # DeepSeek LLM §2.3: up to this share, factor


def schedule_factor(schedule, step, total_steps, warmup_steps, decay_share=0.2):
    """Return what the peak learning rate is multiplied by in `step` (0-based).

    A linear warm-up, then "constant"; "multi_step": ×0.316 from 80% and ×0.1 from 90% of the run
    (DeepSeek LLM); "cosine" down to 0.1; "linear": all the way down to zero (2502.15938); "wsd":
    constant, then linear to zero over the last decay_share (2404.06395). Raises ValueError for
    another name.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share = step / total_steps
    if schedule == "constant":
        return 1.0
    if schedule == "multi_step":
        return next(factor for end, factor in MULTI_STEP if share < end or end == 1.0)
    if schedule == "cosine":
        way = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * way))
    if schedule == "linear":
        return (total_steps - step) / max(1, total_steps - warmup_steps)
    if schedule == "wsd":
        return min(1.0, (1 - share) / decay_share)
    raise ValueError(f"unknown schedule {schedule!r}: choose linear, multi_step, wsd, cosine or "
                     "constant")


def newton_schulz(matrices, rounds=5):
    """Return the nearest (semi-)orthogonal matrices, roughly, of a batch (N, rows ≤ columns).

    Each round applies aX + b(XXᵀ)X + c(XXᵀ)²X, which moves all singular values towards 1.
    """
    a, b, c = NEWTON_SCHULZ
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum, then each matrix's update made orthogonal (Jordan 2024).

    Matrices of equal shape (up to transposing) go through Newton–Schulz as one batch in fp32: on
    a CPU one at a time in bf16, torch.optim.Muon's way, costs as much as half the model.
    """

    def __init__(self, parameters, lr=1e-3, weight_decay=0.1, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay,
                                      "momentum": momentum})
        for parameter in (p for group in self.param_groups for p in group["params"]):
            if parameter.ndim != 2:
                raise ValueError(f"Muon takes matrices, not a shape {tuple(parameter.shape)}: "
                                 "give the others to AdamW")

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}  # (rows, columns), rows ≤ columns → the parameters of that shape
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
            for parameters in shapes.values():
                updates = newton_schulz(torch.stack(
                    [self._momentum(p, group["momentum"]) for p in parameters]))
                for p, update in zip(parameters, updates):
                    # 0.2·√max(rows, columns): the size of an AdamW step (Moonlight, §2.2).
                    scale = 0.2 * math.sqrt(max(p.shape))
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update if p.shape[0] <= p.shape[1] else update.mT,
                           alpha=-group["lr"] * scale)

    def _momentum(self, p, momentum):
        """Move the momentum on; return its Nesterov look-ahead, wide side last, in fp32."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        buffer = state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
        update = p.grad.lerp(buffer, momentum).float()
        return update if p.shape[0] <= p.shape[1] else update.mT


def build_optimizers(model, name, learning_rate, weight_decay, embedding_factor=1.0):
    """Return the optimizers ("adamw", or "muon" for the layers' matrices with AdamW for the rest).

    Embeddings and norms get no weight decay with either: a rare token's row would fade between
    its few gradients. Their rate is embedding_factor times that of the matrices: with few steps,
    a row that rarely has a gradient needs large ones. Raises ValueError for another name.
    """
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose {' or '.join(OPTIMIZERS)}")
    parameters = list(model.named_parameters())  # a tied lm_head is listed once
    matrices = [p for n, p in parameters if p.ndim == 2 and ".layers." in n]
    rest = [p for n, p in parameters if p.ndim != 2 or ".layers." not in n]
    groups = [{"params": rest, "weight_decay": 0.0, "factor": embedding_factor}]
    optimizers = []
    if name == "muon":
        optimizers.append(Muon(matrices, learning_rate, weight_decay))
    else:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    optimizers.append(torch.optim.AdamW(groups, learning_rate, BETAS, fused=True))
    set_learning_rate(optimizers, learning_rate)
    return optimizers


def set_learning_rate(optimizers, learning_rate):
    """Give every group of every optimizer this learning rate, times its own factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("factor", 1.0)


def optimizer_tensors(model, optimizers):
    """Return the state of the optimizers as {"parameter.key": tensor}, to be stored."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {f"{names[p]}.{key}": tensor for optimizer in optimizers
            for p, state in optimizer.state.items() for key, tensor in state.items()}


def load_optimizer_tensors(model, optimizers, tensors):
    """Put back what optimizer_tensors returned; raises ValueError when a tensor is missing."""
    by_parameter = {}
    for name, tensor in tensors.items():
        parameter, key = name.rsplit(".", 1)
        by_parameter.setdefault(parameter, {})[key] = tensor
    names = {parameter: name for name, parameter in model.named_parameters()}
    for optimizer in optimizers:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if names[p] not in by_parameter:
                raise ValueError(f"the checkpoint has no optimizer state for {names[p]}: "
                                 "it was made with another optimizer")
            optimizer.state[p] = {
                # AdamW keeps its step count on the CPU unless fused there.
                key: tensor.to(p.device) for key, tensor in by_parameter[names[p]].items()}
