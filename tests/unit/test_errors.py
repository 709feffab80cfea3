from __future__ import annotations

import inspect

import pytest

from manytune.utils import errors
from manytune.utils.errors import ManytuneError, choices


def test_every_error_is_one_of_ours_with_the_exit_code_of_wrong_input():
    classes = [
        value for value in vars(errors).values() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]
    assert len(classes) == 6
    for kind in classes:
        assert issubclass(kind, ManytuneError)
        assert kind.exit_code == 2
        assert str(kind("what is wrong")) == "what is wrong"


@pytest.mark.parametrize(
    ("received", "suggestion"),
    [("lorra", " Did you mean 'lora'?"), ("LORA", ""), ("qqq", ""), ("bitfitt", " Did you mean 'bitfit'?")],
)
def test_choices_lists_what_is_allowed_and_suggests_only_what_is_near(received, suggestion):
    expected = f"{received!r} is not one of: full, bitfit, lora.{suggestion}"
    assert choices(received, ["full", "bitfit", "lora"]) == expected


def test_choices_takes_any_iterable_once():
    assert choices("b", iter(["a"])) == "'b' is not one of: a."
