"""Worked solutions of 00_model.ipynb: paste one over the exercise's unsolved lines."""

# 1. Perplexity
def perplexity(bits_per_byte, bytes_per_token):
    """→ the number of equally likely tokens that would be as hard"""
    return 2 ** (bits_per_byte * bytes_per_token)


# 2. Tie the embeddings
saved = config.vocab_size * config.hidden_size  # 1,024 · 128 = 131,072
share = saved / sum(weights.numel() for weights in model.parameters())


# 3. Without residuals: means of means of means, so that all positions become alike
def bare_block(x, layer):
    """x (B, T, C) and the weights of a layer → (B, T, C), with nothing added back"""
    seen = attention(rms_norm(x, layer.input_layernorm.weight), layer.self_attn)
    return swiglu(rms_norm(seen, layer.post_attention_layernorm.weight), layer.mlp)


# 4. Below the floor: triu(2) leaves the next token in sight, the very one to be predicted
def leaky_head(q, k, v):
    """queries, keys, values (…, T, D) → (…, T, D)"""
    scores = q @ k.mT / q.shape[-1] ** 0.5
    later = torch.ones(scores.shape[-2:]).triu(1).bool()
    return scores.masked_fill(later, -math.inf).softmax(dim=-1) @ v
