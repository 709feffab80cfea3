"""Steps of `gpu.py` that check training in one process: against the CPU, packed against alone, and repeated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import metadata
from typing import Any

import torch
from gpu_place import BITFIT, FULL, HEAD, LORA, MINILM, ROBERTA, Place, Trained, relative_error, train, what
from torch import Tensor

from manytune.packing.kernels import kernel_path
from manytune.utils import hardware

STEP_BOUND = 1e-3
"""The largest error of gradients and losses of one step in fp32."""
PACKED_BOUND = 2e-2
"""The largest difference of what a run has moved, packed and alone, after 30 steps in fp32: Adam's first steps move an
element by the sign of its gradient, so where that is nearly zero, rounding decides."""


def versions(place: Place) -> None:
    """Machine, driver, versions, and the flags that decide what fp32 means."""
    packages = ("torch", "triton", "transformers", "tokenizers", "peft", "accelerate", "numpy", "pydantic")
    found = {}
    for name in packages:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    place.note(python=sys.version.split()[0], **found, commit=hardware.git_commit(), kernels=kernel_path(place.device))
    place.note(**hardware.describe(place.device), load=os.getloadavg()[0])
    if not place.is_cuda:
        return
    properties = torch.cuda.get_device_properties(place.device)
    place.note(
        gpu=properties.name,
        capability=f"{properties.major}.{properties.minor}",
        memory_bytes=properties.total_memory,
        processors=properties.multi_processor_count,
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        driver=_driver(),
    )
    place.note(
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        allow_tf32=torch.backends.cuda.matmul.allow_tf32,
        bf16_reduced_precision_reduction=torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction,
        allocator=os.environ.get("PYTORCH_CUDA_ALLOC_CONF"),
        bf16=torch.cuda.is_bf16_supported(including_emulation=False),
    )


def _driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"]
    if shutil.which("nvidia-smi") is None:
        return None
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or None


WORK: dict[str, dict[str, Any]] = {
    "LoRA, ranks 2 and 8": what({**LORA, "rank": [2, 8]}, seeds=2),
    "BitFit": what(BITFIT, seeds=2),
    "head": what(HEAD, seeds=2),
    "full": what(FULL),
}


@contextmanager
def environment(**variables: str) -> Iterator[None]:
    """Variables that a pack reads when it is made."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def one_step(place: Place) -> None:
    """Losses, gradients and what AdamW makes of them with clipping: device against CPU, two layers, fp32.

    After the first step AdamW's mean is a tenth of the clipped gradient, so gradients are read from there.
    """
    cpu = torch.device("cpu")
    for name in place.models:
        bench = place.bench(place.model(name, layers=2), "fp32")
        for work, methods in WORK.items():
            with environment(MANYTUNE_KERNELS="plain"):
                wanted = train(bench, methods, (1, 2), cpu)
            ours = train(bench, methods, (1, 2), place.device)
            errors = compared(
                ours, wanted, (("gradient", "exp_avg", 1), ("square", "exp_avg_sq", 2), ("moved", "value", 2))
            )
            errors["loss"] = max(abs(a - b) / abs(b) for a, b in zip(ours.losses[1], wanted.losses[1], strict=True))
            checked = max(errors["gradient"], errors["loss"])
            place.note(
                model=name, work=work, **errors, passed=checked <= STEP_BOUND and errors["moved"] <= PACKED_BOUND
            )
            place.let_go()


def compared(ours: Trained, wanted: Trained, parts: tuple[tuple[str, str, int], ...]) -> dict[str, float]:
    """The largest error of any run, of its head or of what trains in its backbone; `parts`: (name, part, step)."""
    return {
        name: max(
            relative_error(*(each.vector(run, part, step, head=head) for each in (ours, wanted)))
            for run in range(len(ours.runs))
            for head in (False, True)
        )
        for name, part, step in parts
    }


def packed(place: Place) -> None:
    """Runs of a pack against each of them alone, on the device in fp32: bits if they are the same, else the error."""
    name = ROBERTA if ROBERTA in place.models else MINILM
    steps = 10 if place.small else 30
    bench = place.bench(place.model(name), "fp32")
    work = what({**LORA, "rank": [2, 8]}, BITFIT, seeds=1 if place.small else 2)
    together = train(bench, work, (1, steps), place.device)
    for number, run in enumerate(together.runs):
        alone = train(bench, work, (1, steps), place.device, only=number)
        moved = [(together.vector(number, "value", step), alone.vector(0, "value", step)) for step in (1, steps)]
        errors = [relative_error(*pair) for pair in moved]
        losses = [
            max(abs(together.losses[step][number] - alone.losses[step][0]) for step in range(1, last + 1))
            for last in (1, steps)
        ]
        place.note(
            model=name,
            run=run.label,
            seed=run.seed,
            same_bits_after_1_step=torch.equal(*moved[0]),
            same_bits=torch.equal(*moved[1]),
            error_after_1_step=errors[0],
            error=errors[1],
            loss_difference_after_1_step=losses[0],
            loss_difference=losses[1],
            passed=errors[1] <= PACKED_BOUND,
        )
        place.let_go()


def repeat(place: Place) -> None:
    """The same training twice, and with CUDA graphs off, to the bit, in fp32 and bf16."""
    name = ROBERTA if ROBERTA in place.models else MINILM
    steps = 10 if place.small else 30
    works = {
        "LoRA and BitFit": what({**LORA, "rank": [2, 8]}, BITFIT, seeds=2),
        "head": WORK["head"],
        "full": WORK["full"],
    }
    for precision in ("fp32", "bf16"):
        bench = place.bench(place.model(name), precision)
        for work, methods in works.items():
            first = train(bench, methods, (steps,), place.device)
            place.let_go()
            second = train(bench, methods, (steps,), place.device)
            place.let_go()
            with environment(MANYTUNE_CUDA_GRAPHS="0"):
                without = train(bench, methods, (steps,), place.device)
            place.let_go()
            again, graphs = differing(first, second, steps), differing(first, without, steps)
            place.note(
                model=name,
                precision=precision,
                work=work,
                repeated_differs_in=again,
                graphs_off_differs_in=graphs,
                passed=not again and not graphs,
            )


def differing(one: Trained, other: Trained, step: int) -> list[str]:
    """Names of what is not equal to the bit: tensors of the bank (five of them), and losses."""
    a, b = (found.checkpoints[step].tensors for found in (one, other))
    names = [name for name in a if not _equal(a, b, name)]
    return [*names[:5], *(["losses"] if one.losses != other.losses else [])]


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor], name: str) -> bool:
    return name in b and torch.equal(a[name], b[name])
