"""Worked solutions of 09_health.ipynb: paste one over the exercise's unsolved lines."""

# 1. Before the first step
answer = math.log2(50_257) / 4.5  # 3.47 bits per byte


# 2. Mend this batch: the last position of a row predicts the first id of the next row
def batch_of(ids, length):
    """ids (N,) → inputs and targets (rows, length), as many whole rows as there are"""
    rows = (len(ids) - 1) // length
    return (ids[:rows * length].view(rows, length),
            ids[1:rows * length + 1].view(rows, length))


# 3. A hard batch, or divergence?
def diverged(losses, leap=3.0, patience=5):
    """list of losses, one for each step so far → True or False"""
    if not math.isfinite(losses[-1]):
        return True
    usual = statistics.median(losses[:-patience])
    return min(losses[-patience:]) > usual + leap


# 4. When to stop
def memorised_since(looks):
    """[(step, held-out loss), …] → step of the best look, or None"""
    best, bits = min(looks, key=lambda look: look[1])
    later = [other for step, other in looks if step > best]
    return best if len(later) >= 2 and min(later) >= 1.02 * bits else None


# 5. Held-out text in the training text
def leaked(held_out, training):
    """list of texts, list of texts → a number"""
    from nanoseek.duplicates import jaccard
    return sum(any(jaccard(text, other) >= 0.8 for other in training) for text in held_out)
