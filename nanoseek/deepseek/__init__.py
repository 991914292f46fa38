"""DeepSeek's later tricks, as parts that drop in: each file is one, and imports only the model.

    config = ModelConfig(attention=Latent(kv_lora_rank=64), feed_forward=Experts(88, 16))
    model = Transformer(config)     # latent.py in place of Attention, experts.py in place of MLP
    config = ModelConfig(prediction=MultiToken())    # predict.py: a token more behind the next one
"""
