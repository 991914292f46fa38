"""Worked solutions of 11_experts.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count: layers with experts, experts not visited, three matrices each
answer = (60 - 1) * (160 - 6) * 3 * 5120 * 1536


# 2. The balance loss
def balance(scores, chosen):
    """scores (N, E), chosen (N, k) → a tensor without dimensions"""
    E = scores.shape[1]
    visits = torch.bincount(chosen.flatten(), minlength=E) / chosen.numel()
    share = (scores / scores.sum(dim=1, keepdim=True)).mean(dim=0)
    return E * (visits * share).sum()


# 3. Mend this choice: the bias chooses, the plain score is heard
def broken_choice(scores, bias, k):
    """scores (N, E), bias (E,) → numbers of the experts (N, k), and their weights (N, k)"""
    chosen = (scores + bias).topk(k, dim=-1).indices
    weights = scores.gather(1, chosen)
    return chosen, weights / weights.sum(dim=-1, keepdim=True)


# 4. The best groups
def allowed(scores, groups, best):
    """scores (N, E) → bool (N, E): may the token visit the expert?"""
    of_groups = scores.unflatten(-1, (groups, -1)).topk(2, dim=-1).values.sum(dim=-1)
    chosen = of_groups.topk(best, dim=-1).indices
    marked = torch.zeros(of_groups.shape).bool().scatter_(1, chosen, True)
    return marked.repeat_interleave(scores.shape[1] // groups, dim=1)
