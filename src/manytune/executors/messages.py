"""JSON messages between the driver and a process that trains: packs, and calls of its callback; nothing is unpickled.

A call is {"hook": name, argument: value, …}.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from manytune.config.plan import Pack, packs_from_json, packs_to_json, runs_from_json, runs_to_json
from manytune.executors.orders import Orders
from manytune.storage.record import HistoryRow, RunRecord
from manytune.training.callbacks import Callback, ForwardingCallback, PackEnd

_SECONDS_BETWEEN_STEPS = 0.25


class CallSender(ForwardingCallback):
    """Sends every call to the driver; of steps, four a second at most."""

    def __init__(self, send: Callable[[dict[str, Any]], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._send = send
        self._clock = clock
        self._last_step = float("-inf")

    def forward(self, hook: str, arguments: Mapping[str, Any]) -> None:
        """Send a call, unless it is of a step too soon after the last."""
        if hook == "on_step_end":
            now = self._clock()
            if now - self._last_step < _SECONDS_BETWEEN_STEPS:
                return
            self._last_step = now
        self._send(call_message(hook, arguments))


def call_message(hook: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The message of one call."""
    return {"hook": hook, **_converted(_TO_JSON, arguments)}


def replay(message: Mapping[str, Any], callback: Callback) -> PackEnd | None:
    """Make the call that a message is of; the end of a pack is returned instead: what follows, the driver decides."""
    arguments = _converted(_FROM_JSON, message)
    hook = arguments.pop("hook")
    if hook == "on_pack_end":
        end: PackEnd = arguments["end"]
        return end
    getattr(callback, hook)(**arguments)
    return None


def _converted(converters: _Converters, values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: converters[name](value) if name in converters else value for name, value in values.items()}


_Converters = Mapping[str, Callable[[Any], Any]]

# Arguments that are more than JSON has, by their names.
_TO_JSON: _Converters = {
    "rows": lambda rows: {run_id: row.model_dump(mode="json") for run_id, row in rows.items()},
    "record": RunRecord.to_json,
    "end": asdict,
}
_FROM_JSON: _Converters = {
    "rows": lambda rows: {run_id: HistoryRow(**row) for run_id, row in rows.items()},
    "best": lambda best: None if best is None else tuple(best),
    "record": RunRecord.from_json,
    "end": lambda end: PackEnd(**end),
}


def pack_message(pack: Pack, ended: Sequence[str]) -> dict[str, Any]:
    """A pack to train, and which of its runs have a record."""
    return {"packs": packs_to_json([pack]), "ended": list(ended)}


def pack_in(message: Mapping[str, Any]) -> tuple[Pack, list[str]]:
    """What `pack_message` holds."""
    (pack,) = packs_from_json(message["packs"])
    return pack, message["ended"]


def orders_message(orders: Orders) -> dict[str, Any]:
    """Orders for a pack."""
    values = {"pack_id": orders.pack_id, "leave": dict(orders.leave), "close": orders.close}
    return {"orders": {**values, "join": runs_to_json(orders.join)}}


def orders_in(message: Mapping[str, Any]) -> Orders:
    """What `orders_message` holds."""
    values = message["orders"]
    return Orders(values["pack_id"], runs_from_json(values["join"]), values["leave"], values["close"])


def encoded(message: Mapping[str, Any]) -> bytes:
    """A message as UTF-8 bytes of JSON."""
    return json.dumps(message).encode()
