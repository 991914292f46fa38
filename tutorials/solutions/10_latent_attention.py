"""Worked solutions of 10_latent_attention.ipynb: paste one over the exercise's unsolved lines."""

# 1. Count: a latent of 512 and 64 rotated numbers, against a key and a value of 128
answer = (512 + 64) / (2 * 128)  # 2.25


# 2. Absorb the values
def absorbed_result(weights, latents, up):
    """weights (1, S), latents (S, R), up (V, R) → the head's result (1, V)"""
    return (weights @ latents) @ up.T


# 3. Mend this score
def broken_scores(q, q_rope, keys, shared):
    """q (N,), q_rope (P,), keys (S, N) of a head, shared (S, P) → scores (S,)"""
    return (keys @ q + shared @ q_rope) / (len(q) + len(q_rope)) ** 0.5


# 4. A prompt at once: expanding is paid once for all new tokens, long scores for each pair
def products_of_prompt(form, T, S, heads, part):
    """multiplications of a layer for T new tokens at the end of S, "expanded" or "absorbed" """
    R, N = part.kv_lora_rank, part.qk_nope_head_dim
    P, V = part.qk_rope_head_dim, part.v_head_dim
    if form == "expanded":
        return S * heads * (N + V) * R + T * S * heads * 2 * (N + P)
    return T * heads * (N + V) * R + T * S * heads * 2 * (R + P)
