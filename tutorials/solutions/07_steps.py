"""Worked solutions of 07_steps.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count a ramp
answer = (40 * 2 + 80 * 4 + 280 * 8) * 256  # 675,840


# 2. Find the control
def rows_of_control(config):
    """the TrainConfig of a run with a ramp of rows → rows in each step of its control"""
    rows = [config.plan(step)[1] for step in range(config.steps)]
    return sum(rows) / len(rows)


# 3. Write a schedule
def wsd(step, steps, warmup):
    """number of the step, counted from 0, of so many steps and steps of warm-up → factor"""
    if step < warmup:
        return (step + 1) / warmup
    return min(1.0, (1 - step / steps) / 0.2)


# 4. Write Newton–Schulz
def orthogonalised(gradient, rounds=30):
    """a matrix (rows ≤ columns) → the nearest one whose singular values are all 1"""
    x = gradient / gradient.norm()
    for _ in range(rounds):
        x = 1.5 * x - 0.5 * x @ x.T @ x
    return x
