"""Very small random encoders with real tokenizers, saved as folders that transformers loads."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMaskedLM,
    BertTokenizerFast,
    RobertaConfig,
    RobertaForMaskedLM,
)

from manytune.data.splits import Encoded

__all__ = ["FLAT_FAMILIES", "TINY_FAMILIES", "make_small", "make_tiny", "make_tiny_of", "random_rows"]

TINY_FAMILIES = ("bert", "roberta")
FLAT_FAMILIES = (*TINY_FAMILIES, "mpnet")
"""Families with layers of our own, that differ in what embeddings, attention and head do."""

"""Those that most tests run over; `make_tiny_of` makes one of any family."""

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


_COMMON = {
    "vocab_size": len(_VOCABULARY),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 130,
    "initializer_range": 0.2,
}
_DROPOUTS = ("hidden_dropout_prob", "attention_probs_dropout_prob")
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "type_vocab_size": 0}
_OWN: dict[str, dict[str, Any]] = {
    "roberta": {"pad_token_id": 0},
    "xlm-roberta": {"pad_token_id": 0},
    "camembert": {"pad_token_id": 0},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "modernbert": {
        "local_attention": 16,
        "global_attn_every_n_layers": 2,
        "classifier_pooling": "mean",
        **{f"{name}_token_id": 0 for name in ("pad", "bos", "eos", "cls", "sep")},
    },
    "deberta": {"position_biased_input": False, "max_relative_positions": 24, **_RELATIVE},
    "deberta-v2": {
        "position_biased_input": False,
        "position_buckets": 8,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        **_RELATIVE,
    },
}
_OWN_DROPOUTS = {
    "distilbert": ("dropout", "attention_dropout", "seq_classif_dropout"),
    "albert": (*_DROPOUTS, "classifier_dropout_prob"),
    "modernbert": ("embedding_dropout", "mlp_dropout", "attention_dropout", "classifier_dropout"),
    "deberta": (*_DROPOUTS, "pooler_dropout"),
    "deberta-v2": (*_DROPOUTS, "pooler_dropout"),
}


def make_tiny_of(folder: Path, family: str, *, dropout: float = 0.1, **figures: Any) -> Path:
    """Save a random encoder of any family, of two layers and width 32, as its pretraining leaves it; see `make_tiny`.

    ModernBERT's second layer sees 8 tokens to each side, DeBERTa's positions have buckets. Biases and norms are no
    zeros and ones, so that one in the wrong place shows.
    """
    dropouts = dict.fromkeys(_OWN_DROPOUTS.get(family, _DROPOUTS), dropout)
    config = AutoConfig.for_model(family, **{**_COMMON, **_OWN.get(family, {}), **dropouts, **figures})
    torch.manual_seed(0)
    pooled = family in ("bert", "albert")  # whose pretraining trains the pooler
    model = (AutoModel if pooled else AutoModelForMaskedLM).from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter += 0.1 * torch.randn(parameter.shape)
            assert parameter.isfinite().all(), name
    model.save_pretrained(folder)
    BertTokenizerFast(vocab={token: index for index, token in enumerate(_VOCABULARY)}).save_pretrained(folder)
    return folder


def make_small(folder: Path, family: str, *, dropout: float = 0.1) -> Path:
    """Any of `FLAT_FAMILIES`."""
    make = make_tiny if family in TINY_FAMILIES else make_tiny_of
    return make(folder, family, dropout=dropout)


def random_rows(count: int, *, outputs: int = 2, seed: int = 0, longest: int = 30, types: bool = False) -> Encoded:
    """Rows of random token ids and labels."""
    draw = np.random.default_rng(seed)
    lengths = draw.integers(1, longest + 1, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = draw.integers(len(_SPECIAL), len(_VOCABULARY), offsets[-1])
    kinds = draw.integers(0, 2, offsets[-1]) if types else np.zeros(offsets[-1], dtype=np.int64)
    labels = draw.integers(0, outputs, count) if outputs > 1 else draw.uniform(0, 5, count).astype(np.float32)
    return Encoded(ids=ids, types=kinds, offsets=offsets, labels=labels, truncated=0)
