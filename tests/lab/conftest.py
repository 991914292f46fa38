"""What the tests of judging share: models of ours and of others in one folder, and documents."""

import json

import pytest
import torch

from nanoseek.checkpoint import save_model
from nanoseek.corpus import write_documents
from nanoseek.corpus.stories import LANGUAGES, stories
from nanoseek.model import ModelConfig, Transformer
from nanoseek.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def documents():
    """Stories of both languages, half of them held out."""
    return [{"text": s.text, "source": s.source, "log2_probability": s.log2_probability,
             "split": "held_out" if n % 2 else "train"}
            for language in LANGUAGES for n, s in enumerate(stories(language, 8, 50))]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, documents):
    """Two untrained models of ours with different vocabularies, and a Llama folder of others."""
    folder = tmp_path_factory.mktemp("arena")
    texts = [s.text for language in LANGUAGES for s in stories(language, 200, 60)]
    for name, size, context in (("ours", 300, 64), ("other", 400, 48)):
        Tokenizer.train(texts, size).save(folder / f"{name}.json")
        torch.manual_seed(size)
        model = Transformer(ModelConfig(vocab_size=size, hidden_size=16, intermediate_size=24,
                                        num_hidden_layers=1, num_attention_heads=2,
                                        num_key_value_heads=1, max_position_embeddings=context,
                                        initializer_range=0.3)).eval()
        save_model(model, folder / name, folder / f"{name}.json")
        write_documents(documents, folder / name / "clean.jsonl")
    (folder / "ours" / "cost.json").write_text(json.dumps(
        {"seconds": 60, "flops": 1e9, "dollars_rent": 0.01, "dollars_electricity": 0.01}))
    foreign_llama(folder / "llama", texts)
    return folder


def foreign_llama(folder, texts):
    """Save random weights and a byte-level tokenizer with their libraries, begin and end apart."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM
    folder.mkdir()
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(texts, 350, special_tokens=["<s>", "</s>"],
                                  show_progress=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    torch.manual_seed(5)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=360, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
        bos_token_id=0, eos_token_id=1, initializer_range=0.3)).save_pretrained(folder)
