"""Optimizers (AdamW, Muon), schedules, ramps, loss scaling, and telling when a run diverges.

    optimizers = build_optimizers(model, "muon", learning_rate=3e-3, weight_decay=0.1)
    factor = schedule_factor("multi_step", step, total_steps=400, warmup_steps=20)
    set_learning_rate(optimizers, 3e-3 * factor)

Sources: AdamW (arXiv 1711.05101); multi-step schedule, betas, decay, clipping: DeepSeek LLM
(2401.02954, §2.3); Muon (Jordan 2024, kellerjordan.github.io/posts/muon), scaled to AdamW's step
(Moonlight, 2502.16982, §2.2), so that both share a learning rate; short rows first (2108.06084)."""

import math
import statistics

import torch

OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("linear", "multi_step", "wsd", "cosine", "constant")
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.1, 1.0  # DeepSeek LLM §2.3
FIRST_SCALE, GROW_AFTER = 2.0 ** 16, 2000  # the defaults of torch.amp.GradScaler
RECENT = 32  # usual losses that a loss is compared with
PATIENCE = 16  # bad steps in a row, leaps or not finite, after which a run has diverged


def schedule_factor(schedule, step, total_steps, warmup_steps, decay_share=0.2):
    """Return what the peak learning rate is multiplied by in `step` (0-based).

    A linear warm-up, then "constant"; "multi_step", ×0.316 from 80% and ×0.1 from 90% of the run
    (DeepSeek LLM, §2.3); "cosine", down to 0.1; "linear", to zero (2502.15938); "wsd", constant,
    then linear to zero over the last decay_share (2404.06395). ValueError for another name."""
    if schedule not in SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}: choose {', '.join(SCHEDULES)}")
    # The first gradients are large and AdamW's means still rough: begin with small steps.
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    share, decay_steps = step / total_steps, max(1, total_steps - warmup_steps)
    return {"constant": 1.0,
            "multi_step": 1.0 if share < 0.8 else 0.316 if share < 0.9 else 0.1,
            "cosine": 0.1 + 0.45 * (1 + math.cos(math.pi * ((step - warmup_steps) / decay_steps))),
            "linear": (total_steps - step) / decay_steps,
            "wsd": min(1.0, (1 - share) / decay_share)}[schedule]


def parse_ramp(text):
    """Read "64:0.2,128:0.4" as [(64, 0.2), (128, 0.4)]: 64 up to 20% of the steps, 128 to 40%."""
    try:
        stages = [(int(value), float(share)) for value, share in
                  (part.split(":") for part in text.split(",") if text)]
    except ValueError:
        raise ValueError(f"ramp {text!r} does not read as value:share,value:share") from None
    for (value, share), (next_value, next_share) in zip([(0, 0.0), *stages], stages):
        if not (value < next_value and share < next_share < 1):
            raise ValueError(f"ramp {text!r}: values must rise from 1 on, and shares of the steps "
                             "from above 0 to below 1")
    return stages


def ramp_value(stages, share, final):
    """Return the value of a parsed ramp when `share` of the steps is done; `final` after it."""
    return next((value for value, end in stages if share < end), final)


class LossScale:
    """What an fp16 loss is multiplied by, so that small gradients do not vanish (1710.03740, §3.2).

    Halved when a gradient overflows, which skips the step; doubled after GROW_AFTER good steps in
    a row. A power of two, so that dividing by it rounds nothing. Always 1 unless enabled."""
    def __init__(self, enabled):
        self.enabled, self.value = enabled, FIRST_SCALE if enabled else 1.0
        self.good, self.overflows = 0, 0

    def update(self, overflowed):
        """Take note of how a step went."""
        if overflowed and self.enabled:
            self.value, self.good, self.overflows = self.value / 2, 0, self.overflows + 1
        elif self.enabled:
            self.good += 1
        if self.good == GROW_AFTER:
            self.value, self.good = self.value * 2, 0

    def state_dict(self):
        return {"value": self.value, "good": self.good, "overflows": self.overflows}

    def load_state_dict(self, state):
        self.good, self.overflows = int(state["good"]), int(state["overflows"])
        self.value = float(state["value"])


class LossWatch:
    """Tell a run that diverges from one that meets a hard batch.

    A loss may leap because the weights are spoilt, or because the batch is hard, which must be
    learnt like any other. What follows tells: after a hard batch losses are as usual again."""
    def __init__(self, spike):
        self.spike = spike  # a leap: so many nats above the median of `recent`; 0: no limit
        self.recent, self.in_a_row = [], 0  # the last usual losses; the steps since then

    def reason_to_skip(self, loss, gradient_norm):
        """Return why a step with this loss (nats per token) would spoil the weights, or None."""
        usual = statistics.median(self.recent) if len(self.recent) == RECENT else math.inf
        self.in_a_row += 1
        if not math.isfinite(loss) or not math.isfinite(gradient_norm):
            return f"the loss is {loss:.3f}, the norm of its gradient {gradient_norm:.3f}"
        if not self.spike or loss <= usual + self.spike:
            self.in_a_row, self.recent = 0, [*self.recent[1 - RECENT:], loss]
        return None

    def state_dict(self):
        return {"recent": self.recent, "in_a_row": self.in_a_row}

    def load_state_dict(self, state):
        self.recent, self.in_a_row = [*map(float, state["recent"])], int(state["in_a_row"])


def newton_schulz(matrices, rounds=5):
    """Return the nearest (semi-)orthogonal matrices, roughly, of a batch (N, rows ≤ columns).

    Each round applies aX + b(XXᵀ)X + c(XXᵀ)²X, for X = UΣVᵀ the same as U(aΣ + bΣ³ + cΣ⁵)Vᵀ:
    the directions stay, and singular values that are not tiny come between 0.7 and 1.2."""
    a, b, c = 3.4445, -4.7750, 2.0315  # Jordan: steep at zero, so five rounds suffice
    # The Frobenius norm is at least the largest singular value, so that all begin between 0 and 1.
    x = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(rounds):
        gram = x @ x.mT  # (N, rows, rows): of the shorter side
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


class Muon(torch.optim.Optimizer):
    """Momentum, then each matrix's update made orthogonal (Jordan 2024), equal shapes at once."""
    def __init__(self, parameters, lr=1e-3, weight_decay=WEIGHT_DECAY, momentum=0.95):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        if any(p.ndim != 2 for group in self.param_groups for p in group["params"]):
            raise ValueError("Muon takes matrices: give vectors and the like to AdamW")

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}  # (rows, columns), rows ≤ columns → the parameters of that shape
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(sorted(p.shape)), []).append(p)
            for parameters in shapes.values():
                momenta = [self._momentum(p, group["momentum"]) for p in parameters]
                for p, update in zip(parameters, newton_schulz(torch.stack(momenta))):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    # 0.2·√max(rows, columns): the size of an AdamW step (Moonlight, §2.2).
                    p.add_(update if p.shape[0] <= p.shape[1] else update.mT,
                           alpha=-group["lr"] * (0.2 * math.sqrt(max(p.shape))))

    def _momentum(self, p, momentum):
        """Update the momentum; return its Nesterov look-ahead, with rows ≤ columns, in fp32."""
        if p not in self.state:
            self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffer = self.state[p]["momentum_buffer"].lerp_(p.grad, 1 - momentum)  # a fading mean
        update = p.grad.lerp(buffer, momentum).float()  # where one more gradient like this leads
        return update if p.shape[0] <= p.shape[1] else update.mT


def build_optimizers(model, name, learning_rate, weight_decay, embedding_factor=1.0,
                     beta2=BETAS[1]):
    """Return a model's optimizers: "adamw", or "muon", with AdamW for all but the layers' matrices.

    embedding_factor: the rate of embeddings, head and norms, in units of the matrices' own; a
    row that rarely has a gradient needs large steps. beta2: with 0.95 AdamW averages the squared
    gradients of about 20 steps, with 0.99 of 100; in 20 steps a rare token may have had none."""
    if name not in OPTIMIZERS:
        raise ValueError(f"unknown optimizer {name!r}: choose {' or '.join(OPTIMIZERS)}")
    tables = [part for part in model.modules() if isinstance(part, torch.nn.Embedding)]
    heads = [part for part in model.modules() if isinstance(part, torch.nn.Linear)
             and part.out_features in {table.num_embeddings for table in tables}]
    of_tokens = {id(part.weight) for part in [*tables, *heads[-1:]]}  # the last: the head itself
    matrices = [p for p in model.parameters() if p.ndim == 2 and id(p) not in of_tokens]
    rest = [p for p in model.parameters() if p.ndim != 2 or id(p) in of_tokens]
    # No weight decay for these: a rare token's row would fade between its few gradients.
    groups = [{"params": rest, "weight_decay": 0.0, "factor": embedding_factor,
               "lr": learning_rate * embedding_factor}]
    muon = [Muon(matrices, learning_rate, weight_decay)] if name == "muon" and matrices else []
    if not muon:
        groups.append({"params": matrices, "weight_decay": weight_decay})
    return [*muon, torch.optim.AdamW(groups, learning_rate, (BETAS[0], beta2), fused=True)]


def set_learning_rate(optimizers, learning_rate):
    """Give every group of every optimizer this learning rate, times its own factor."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group.get("factor", 1.0)
