"""Worked solutions of 08_price_tag.ipynb: paste one over the exercise's unsolved lines."""

# 1. Predict the number
answer = 6 * 1e10 * 2e11  # 1.2e22


# 2. Write MFU
def utilisation(tokens_per_second, flops_per_token, chips, peak):
    """→ the share of the peak of all chips that the model's FLOPs reach"""
    return tokens_per_second * flops_per_token / (chips * peak)


# 3. Interpolate a crossing
def crossing(seconds_before, bits_before, seconds_after, bits_after, target):
    """→ the seconds at which the bits per byte reach the target"""
    share = (bits_before - target) / (bits_before - bits_after)
    return seconds_before ** (1 - share) * seconds_after ** share


# 4. Mend this bill: recomputation is work that the model does not need
def mfu_of(seconds, tokens, each, peak, checkpointing):
    """each: what cost.flops_per_token returned"""
    return each["total"] * tokens / seconds / peak


# 5. Which chip?
def cheapest(flops, chips):
    """FLOPs, {name: (peak, MFU, dollars an hour)} → a name"""
    return min(chips, key=lambda name: flops / chips[name][0] / chips[name][1] * chips[name][2])
