"""Small models with the parts of nanoseek/deepseek."""

import torch

from nanoseek.deepseek.experts import Experts
from nanoseek.deepseek.latent import Latent
from nanoseek.model import ModelConfig, Transformer

# Shapes that differ in each choice: queries' latent or none, groups, shared experts, dense layers,
# values wider than keys, either order of RoPE's pairs, both routers, and each part alone.
PARTS = {
    "v3": (Latent(16, None, 8, 4, 8), Experts(16, 8, 2)),
    "v3 groups": (Latent(16, 12, 8, 4, 12), Experts(16, 8, 2, 2, 4, 2, first_k_dense_replace=1,
                                                    routed_scaling_factor=2.5)),
    "v3 halves": (Latent(12, 10, 6, 8, 4, False), Experts(12, 6, 3, first_k_dense_replace=2,
                                                          norm_topk_prob=False)),
    "v3 one group left": (Latent(16, 24, 8, 4, 8), Experts(16, 12, 4, 2, 3, 1)),
    "latent alone": (Latent(16, 12, 8, 4, 12), None),
    "latent, plain queries": (Latent(20, None, 6, 6, 10, False), None),
    "v2": (Latent(16, 12, 8, 4, 12), Experts(16, 8, 3, scoring_func="softmax",
                                             norm_topk_prob=False)),
    "v2 groups": (Latent(16, None, 8, 4, 12), Experts(16, 8, 3, 2, 4, 2, first_k_dense_replace=1,
                                                      scoring_func="softmax", norm_topk_prob=False,
                                                      routed_scaling_factor=16.0)),
    "experts alone": (None, Experts(16, 8, 2)),
    "experts alone, softmax": (None, Experts(16, 8, 2, scoring_func="softmax",
                                             norm_topk_prob=False))}


def build_with(attention, feed_forward, seed=0, **changes):
    """Return a small model in eval mode; its biases are not zero, so that they count."""
    torch.manual_seed(seed)
    fields = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
              "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
              "tie_word_embeddings": False, "initializer_range": 0.2}
    model = Transformer(ModelConfig(**{**fields, "attention": attention,
                                       "feed_forward": feed_forward, **changes})).eval()
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.normal_(std=0.3)
    return model
