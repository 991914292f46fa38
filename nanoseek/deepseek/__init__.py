"""DeepSeek's later tricks, as parts that drop in: each of the four files below is one, and
imports only the model, sparse.py also latent.py, on which it builds.

    config = ModelConfig(attention=Latent(kv_lora_rank=64), feed_forward=Experts(88, 16))
    model = Transformer(config)     # latent.py in place of Attention, experts.py in place of MLP
    config = ModelConfig(attention=Sparse())         # sparse.py: latents, of which few are read
    config = ModelConfig(prediction=MultiToken())    # predict.py: a token more behind the next one
"""
