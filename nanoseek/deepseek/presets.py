"""The model's presets and, with DeepSeek's parts, those published, and one to train here."""

from nanoseek.deepseek.experts import Experts
from nanoseek.deepseek.latent import Latent
from nanoseek.model import PRESETS as DENSE, ModelConfig

# As in the config.json of each; here without the YaRN that stretches their context.
PUBLISHED = {"num_key_value_heads": 128, "num_attention_heads": 128, "tie_word_embeddings": False,
             "attention": Latent(512, 1536, 128, 64, 128), "max_position_embeddings": 4096}
PRESETS = DENSE | {
    "deepseek-v2-lite": ModelConfig(
        102400, 2048, 10944, 27, 16, 16, max_position_embeddings=4096, tie_word_embeddings=False,
        attention=Latent(512, None, 128, 64, 128),
        feed_forward=Experts(1408, 64, 6, 2, first_k_dense_replace=1, scoring_func="softmax",
                             norm_topk_prob=False)),
    "deepseek-v2": ModelConfig(
        102400, 5120, 12288, 60, **PUBLISHED,
        feed_forward=Experts(1536, 160, 6, 2, 8, 3, first_k_dense_replace=1,
                             scoring_func="softmax", norm_topk_prob=False,
                             routed_scaling_factor=16.0)),
    "deepseek-v3": ModelConfig(
        129280, 7168, 18432, 61, **PUBLISHED,
        feed_forward=Experts(2048, 256, 8, 1, 8, 4, first_k_dense_replace=3,
                             routed_scaling_factor=2.5)),
    # The preset tiny with these parts. A token meets 1 + 3 experts of 88: as wide as its MLP.
    "tiny-v3": ModelConfig(
        4096, max_position_embeddings=256, tie_word_embeddings=False,
        attention=Latent(64, None, 32, 16, 32), feed_forward=Experts(88, 16, 3))}
