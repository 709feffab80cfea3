"""JSON from files that anybody may have written."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

__all__ = ["parse_json"]


def parse_json(
    text: str | bytes,
    object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None,
    *,
    surrogates: bool = False,
) -> Any:
    """What a JSON text holds.

    Args:
        text: The JSON text.
        object_pairs_hook: As for `json.loads`.
        surrogates: Whether texts in it may have half of a surrogate pair, because the caller looks at them.

    Raises:
        ValueError: It is no JSON, nested so deeply that it was hardly meant to be read, or has half of a surrogate
            pair, which is no character and can be written nowhere.
    """
    try:
        value = json.loads(text, object_pairs_hook=object_pairs_hook)
        if not surrogates and (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeEncodeError:
        raise ValueError("it has half of a surrogate pair, which is no character") from None
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except ValueError as error:  # Python's limit on the digits of an integer
        raise ValueError("an integer has thousands of digits") from error
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
