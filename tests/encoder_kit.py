"""A real BERT of two small layers with a vocabulary of its own: everything an encoder has, in a megabyte."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import torch
from collegium.router.encoder import Encoder, EncoderId, load_encoder
from router_kit import labelled
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel, BertTokenizerFast


def make_encoder(folder: Path, texts: Sequence[str], seed: int = 0) -> Path:
    """Write a sentence encoder with random weights, the words of `texts` and their letters as pieces."""
    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())})
    letters = sorted({letter for word in words for letter in word})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertWordPieceTokenizer(vocab=vocabulary, lowercase=True)
    parts = folder / "bert"
    BertTokenizerFast(tokenizer_object=tokenizer._tokenizer).save_pretrained(parts)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(parts)
    bert = Transformer(str(parts))
    SentenceTransformer(modules=[bert, Pooling(32, "mean"), Normalize()], device="cpu").save(str(folder / "encoder"))
    return folder / "encoder"


@cache
def tiny_encoder() -> Encoder:
    """The encoder with the words of the labelled prompts, opened as a user's own folder would be."""
    folder = make_encoder(Path(mkdtemp(prefix="collegium-encoder-")), [text for text, _ in labelled()])
    return load_encoder(EncoderId(str(folder)), tokens=64)
