"""What a benchmark has measured so far, in a JSON file that is whole after every measurement; and on which machine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from manytune.utils import hardware
from manytune.utils.files import write_atomically

LIMITS = ("ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "ATEN_CPU_CAPABILITY", "MANYTUNE_KERNEL_TARGET")
"""Variables that limit the instructions which oneDNN, MKL, torch and our kernels use."""

INSTRUCTIONS = ("avx2", "avx512_f", "avx512_bf16", "amx_bf16", "neon", "asimd", "bf16", "sve", "sve2", "sme")
"""What products and kernels can be faster with, as torch calls them."""


class Measurements:
    """Parts of a result by name, saved after each measurement.

    Args:
        path: The file; None keeps nothing.
        facts: Of what and where it is measured.
        resume: Go on with what the file lacks; otherwise the parts that are measured again begin anew.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], *, resume: bool) -> None:
        self.path, self.resume = path, resume
        there = path is not None and path.exists()
        self.parts: dict[str, Any] = json.loads(path.read_text()) if path is not None and there else {}
        if there and resume:
            now = json.loads(json.dumps(facts))
            other = [name for name in now if now[name] != self.parts.get(name)]
            if other:
                lines = "\n".join(f"  {name}: {self.parts.get(name)} there, {now[name]} here" for name in other)
                raise SystemExit(f"{path} was measured otherwise:\n{lines}\nMeasure anew without --resume.")
        self.parts |= facts

    def begin(self, part: str, empty: Any) -> Any:
        """A part's measurements so far, or `empty`: a list or dict to be filled, with `save` after each filling."""
        if not (self.resume and part in self.parts):
            self.parts[part] = empty
        return self.parts[part]

    def save(self) -> None:
        """Write what there is."""
        self.parts["load_at_end"] = os.getloadavg()
        if self.path is not None:
            write_atomically(self.path, json.dumps(self.parts, indent=2, default=str) + "\n")

    def in_turn(self, kept: dict[str, list[float]], ways: Mapping[str, Callable[[], float]], rounds: int) -> None:
        """Measure every way once a round, and round by round, so that a change of the machine meets all alike."""
        for done in range(rounds):
            for way, measure in ways.items():
                if len(kept.setdefault(way, [])) <= done:
                    kept[way].append(measure())
                    self.save()


def machine(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """The processor, the instructions it has and those that are used, and the dtype of products."""
    able = torch.cpu.get_capabilities()
    limits = {name: os.environ[name] for name in LIMITS if name in os.environ}
    used = torch.backends.cpu.get_cpu_capability()
    stand_in = None
    if device.type == "cpu" and able.get("avx512_f") and used == "AVX2":
        stand_in = "a CPU with AVX-512 that stands in for one with AVX2 alone"
    return {
        **hardware.describe(device),
        "processor_name": able.get("cpu_name"),
        "instructions": [name for name in INSTRUCTIONS if able.get(name)],
        "limits": limits,
        "instructions_used_by_torch": used,
        "stand_in": stand_in,
        "dtype": str(dtype).removeprefix("torch."),
    }
