"""Encoded splits, kept in the user's cache by their content: tokenizing a large task takes minutes, reading it seconds.

The key is a hash of all that token ids depend on. So an entry is never stale, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from manytune.data import splits
from manytune.data.splits import Encoded, Split
from manytune.utils.caches import own_folder, read_entry, user_cache, write_entry
from manytune.utils.errors import StoreError
from manytune.utils.npz import read_npz

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MOST_BYTES = 2 << 30
"""The entries used least lately are deleted beyond this."""


def encode_cached(split: Split, tokenizer: PreTrainedTokenizerBase, *, template: str, max_length: int) -> Encoded:
    """The same as `splits.encode`, from the cache if the same rows have been encoded before."""
    key = _key(split, tokenizer, template, max_length)
    if key is not None and (kept := _read(key, split)) is not None:
        return kept
    fresh = splits.encode(split, tokenizer, template=template, max_length=max_length)
    if key is not None:
        with suppress(StoreError, OSError):  # a cache that cannot be written is no reason not to train
            _write(key, fresh)
    return fresh


def _key(split: Split, tokenizer: Any, template: str, max_length: int) -> str | None:
    """What the token ids depend on; None where the tokenizer cannot be identified."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    parts = (
        split.fingerprint,
        # How the last call cut and padded stays in the tokenizer, and is no part of what it is.
        {**json.loads(backend.to_str()), "truncation": None, "padding": None},
        type(tokenizer).__name__,
        sorted(tokenizer.special_tokens_map.items()),
        tokenizer.model_input_names,
        template,
        max_length,
        [metadata.version(name) for name in ("tokenizers", "transformers")],
        Path(splits.__file__).read_bytes(),
    )
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _read(key: str, split: Split) -> Encoded | None:
    """An entry, or None if it is not there, or not whole."""
    try:
        entry = read_entry(own_folder(user_cache()) / "encoded", key, ".npz")
        if entry is None:
            return None
        path, content = entry
        parts = read_npz(content, most_bytes=len(content))  # it was written without compression
        ids, types, offsets = (parts[name].astype(np.int64) for name in ("ids", "types", "offsets"))
        truncated = int(parts["truncated"])
    except (StoreError, OSError, ValueError, KeyError, TypeError):
        return None
    with suppress(OSError):
        os.utime(path)  # see _MOST_BYTES
    if not ids.shape == types.shape == (len(ids),) or offsets.shape != (len(split) + 1,):
        return None
    if offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
        return None
    return Encoded(ids, types, offsets, split.labels, truncated)


def _write(key: str, rows: Encoded) -> None:
    content = BytesIO()
    np.savez(
        content,
        ids=rows.ids.astype(np.int32 if rows.ids.max(initial=0) < 1 << 31 else np.int64),
        types=rows.types.astype(np.uint8 if rows.types.max(initial=0) < 256 else np.int32),
        offsets=rows.offsets,
        truncated=rows.truncated,
    )
    path = write_entry(own_folder(user_cache()) / "encoded", key, content.getvalue(), ".npz")
    total = 0
    for entry in sorted(path.parent.glob("*.npz"), key=lambda entry: entry.stat().st_mtime, reverse=True):
        total += entry.stat().st_size
        if total > _MOST_BYTES and entry != path:
            entry.unlink(missing_ok=True)
