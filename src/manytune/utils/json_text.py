"""JSON from files that anybody may have written."""

from __future__ import annotations

import json
from typing import Any


def parse_json(text: str | bytes, decoder: json.JSONDecoder | None = None) -> Any:
    """What a JSON text holds.

    Args:
        text: The JSON text.
        decoder: Another one than Python's own, for text of which the caller judges the characters.

    Raises:
        ValueError: It is no JSON, nested so deeply that it was hardly meant to be read, or, without `decoder`, has half
            of a surrogate pair, which is no character and can be written nowhere.
    """
    try:
        if decoder is not None:
            return decoder.decode(text if isinstance(text, str) else text.decode())
        value = json.loads(text)
        if (b"\\u" if isinstance(text, bytes) else "\\u") in text:  # type: ignore[operator]
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
