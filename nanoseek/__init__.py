"""nanoseek: how a DeepSeek-style language model is trained cheaply, small enough to read."""

__version__ = "0.1.0"
