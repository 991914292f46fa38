"""Worked solutions of 03_precision.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count: from 2^8 on, seven mantissa bits leave a spacing of 2
answer = 256


# 2. A format of their own
bits, most, worst = 1 + 5 + 6, (2 - 2.0 ** -6) * 2 ** 15, 2.0 ** -7


# 3. Round by chance
def stochastic_round(x, generator):
    """x (n,) fp64 → fp64 (n,), each one of x's two neighbours in bf16, x itself on average"""
    exponent = torch.frexp(x).exponent - 1
    spacing = 2.0 ** (exponent.clamp(min=-126) - 7).double()
    chance = torch.rand(x.shape, generator=generator, dtype=torch.float64)
    return torch.floor(x / spacing + chance) * spacing


# 4. Remember the rest
def compensated_add(weight, rest, update):
    """bf16 weight, rest and update → (weight, rest), bf16, with the update added to the two"""
    wanted = update + rest
    new = weight + wanted
    return new, wanted - (new - weight)


# 5. Mend this step: divide by the scale first, then clip
def scaled_step(parameters, value, scale):
    """leave the clipped gradients of a loss as if it had no scale; False: skip this step"""
    (value * scale.value).backward()
    for p in parameters:
        p.grad /= scale.value
    norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    overflowed = not math.isfinite(norm)
    scale.update(overflowed)
    return not overflowed
