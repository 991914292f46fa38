"""The same, sooner: each file here replaces one part of a chapter by name and gives its results.

    model = speed_up(Transformer(config))     # the same weights under the same names

attention.py, window.py, loss.py and decode.py replace parts of a model; onednn.py chooses
the library of a process for matrix products. What each saves: `bench_model.py kernels` in
tests/bench. Nothing is imported here at the top, so that commands without a model load no torch."""


def speed_up(model):
    """Give the parts of a Transformer their faster classes, in place; return the model.

    Results differ from the chapter's in last bits only. Call it before the model is wrapped (DDP,
    FSDP) or compiled. On a GPU, or where torch compiles, the parts made for a CPU step aside."""
    from nanoseek import model as chapter
    from nanoseek.fast.decode import FastTransformer
    from nanoseek.fast.loss import FastHead
    from nanoseek.fast.window import WindowAttention
    faster = {chapter.Attention: WindowAttention, chapter.Head: FastHead,
              chapter.Transformer: FastTransformer}
    for module in model.modules():
        module.__class__ = faster.get(type(module), type(module))
    return model
