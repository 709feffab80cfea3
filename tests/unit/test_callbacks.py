"""Callbacks: what a list of them and a user's one do with a call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from manytune.training.callbacks import Callback, CallbackList, ForwardingCallback, GuardedCallback, PackEnd
from manytune.utils.errors import ManytuneError, StoreError
from record_factory import make_record

HOOKS: Mapping[str, tuple[Any, ...]] = {
    "on_study_begin": ([], {}),
    "on_train_begin": ("p", "cola", "mae", ["a"], 10, 2),
    "on_step_end": ("p", 3, [0.5]),
    "on_evaluate": ("p", 3, {}, ("a", 0.5)),
    "on_room": ("p", 3, 1, {"a": 0}),
    "on_checkpoint": ("p", 3),
    "on_run_end": ("p", make_record()),
    "on_pack_end": (PackEnd("p", "done"),),
    "on_message": ("well", "error"),
    "on_study_end": (),
}


class Log(ForwardingCallback):
    def __init__(self, error: BaseException | None = None) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.error = error

    def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
        self.calls.append((hook, tuple(arguments.values())))
        if self.error is not None:
            raise self.error


def test_every_method_is_called_in_each_of_a_list() -> None:
    assert HOOKS.keys() == {name for name in vars(Callback) if name.startswith("on_")}
    logs = [Log(), Log()]
    callbacks = CallbackList([logs[0], GuardedCallback(logs[1])])
    for hook, values in HOOKS.items():
        getattr(callbacks, hook)(*values)
    assert logs[0].calls == logs[1].calls == list(HOOKS.items())


def test_names_and_defaults_of_arguments_are_the_protocols() -> None:
    log = Log()
    CallbackList([log]).on_message(text="well")
    log.on_train_begin("p", "cola", runs=["a"], metric="mae", total_steps=10)
    assert log.calls == [("on_message", ("well", "info")), ("on_train_begin", ("p", "cola", "mae", ["a"], 10, 0))]
    with pytest.raises(TypeError):
        log.on_checkpoint("p")  # type: ignore[call-arg]


def test_the_end_of_a_study_reaches_all_the_last_first() -> None:
    order: list[str] = []

    class Named(Callback):
        def __init__(self, name: str) -> None:
            self.name = name

        def on_study_end(self) -> None:
            order.append(self.name)
            if self.name == "b":
                raise ValueError("b")

    with pytest.raises(ValueError, match="b"):
        CallbackList(map(Named, "abc")).on_study_end()
    assert order == ["c", "b", "a"]


@pytest.mark.parametrize("error", [StoreError("The disk is full."), KeyboardInterrupt()])
def test_what_a_users_callback_may_raise_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        GuardedCallback(Log(error)).on_checkpoint("p", 1)
    assert raised.value is error


def test_any_other_error_of_a_users_callback_names_it() -> None:
    with pytest.raises(ManytuneError, match="The callback Log failed in on_step_end: MemoryError: all of it") as raised:
        GuardedCallback(Log(MemoryError("all of it"))).on_step_end("p", 1, [])
    assert isinstance(raised.value.__cause__, MemoryError)
