"""Very small random encoders with real tokenizers, saved as folders that transformers loads."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast, RobertaConfig, RobertaForMaskedLM

from manytune.data import Encoded

__all__ = ["TINY_FAMILIES", "make_tiny", "random_rows"]

TINY_FAMILIES = ("bert", "roberta")

_CHARACTERS = [*string.ascii_lowercase, *string.digits, *string.punctuation]
_SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_VOCABULARY = [*_SPECIAL, *_CHARACTERS, *("##" + character for character in _CHARACTERS)]


def make_tiny(folder: Path, family: str = "bert", *, dropout: float = 0.1, **figures: Any) -> Path:
    """Save a random encoder of two layers, width 32, and a tokenizer that spells words out.

    The weights are larger than a fresh model's, so that attention is far from uniform and a mistake shows.
    """
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "vocab_size": len(_VOCABULARY),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "max_position_embeddings": 130,
        "initializer_range": 0.2,
        **figures,
    }
    if family == "bert":
        model = BertForMaskedLM(BertConfig(**common))
        # The checkpoint of a BERT holds a pooler.
        torch.manual_seed(1)
        from transformers import BertModel

        pooled = BertModel(BertConfig(**common))
        pooled.load_state_dict(model.bert.state_dict(), strict=False)
        pooled.save_pretrained(folder)
    else:
        model = RobertaForMaskedLM(RobertaConfig(**common, type_vocab_size=1, pad_token_id=0))
        model.save_pretrained(folder)
    vocabulary = {token: index for index, token in enumerate(_VOCABULARY)}
    tokenizer = BertTokenizerFast(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    return folder


def random_rows(count: int, *, outputs: int = 2, seed: int = 0, longest: int = 30, types: bool = False) -> Encoded:
    """Rows of random token ids and labels."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = draw.integers(len(_SPECIAL), len(_VOCABULARY), offsets[-1])
    kinds = draw.integers(0, 2, offsets[-1]) if types else np.zeros(offsets[-1], dtype=np.int64)
    labels = draw.integers(0, outputs, count) if outputs > 1 else draw.uniform(0, 5, count).astype(np.float32)
    return Encoded(ids=ids, types=kinds, offsets=offsets, labels=labels, truncated=0)
