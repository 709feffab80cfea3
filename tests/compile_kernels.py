"""Compiles what packed steps launch, for GPUs that are not here; prints what came of each kernel, a JSON object a line.

    python compile_kernels.py FOLDER

It is a process of its own because Triton reads TRITON_INTERPRET, which the tests set, when it is imported.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from manytune.data.tasks import get_task
from manytune.methods import make_method
from manytune.models.loading import load_backbone
from manytune.packing import Member, PackedAdamW, PackedModel, build_layout
from manytune.packing.kernels import AdamWUpdate
from manytune.training.step import RunBatch, Stepper, plan_step
from tiny import make_tiny, make_tiny_of, random_rows

_TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.int64: "*i64", torch.int32: "*i32"}
_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"

ROBERTA_BASE = {"hidden_size": 768, "num_attention_heads": 12, "intermediate_size": 3072}
MINILM = {"hidden_size": 384, "num_attention_heads": 12, "intermediate_size": 1536}
LORA, BITFIT, FULL = ("lora", {"rank": 8, "dropout": 0.1}), ("bitfit", {}), ("full", {})


class _Compiling:
    """Stands in for the launch of kernels: compiles every variant once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.label = ""
        self._seen: set[Any] = set()

    def run(self, kernel: Any, *args: Any, grid: Any, warmup: bool = False, **named: Any) -> None:
        options = {name: named.pop(name) for name in ("num_warps", "num_stages") if name in named}
        given = dict(zip([each.name for each in kernel.params], args, strict=False)) | named
        signature, constants, attributes = {}, {}, {}
        for number, parameter in enumerate(kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize):
                signature[parameter.name], constants[parameter.name] = "constexpr", value
            elif isinstance(value, torch.Tensor):
                signature[parameter.name] = _TYPES[value.dtype]
                divisible = value.data_ptr() % 16 == 0
            else:
                signature[parameter.name] = "fp32" if isinstance(value, float) else "i32"
                divisible = signature[parameter.name] == "i32" and value % 16 == 0 and not parameter.do_not_specialize
            if signature[parameter.name] != "constexpr" and divisible:
                attributes[(number,)] = [["tt.divisibility", 16]]
        # Those that need most are compiled for another generation too.
        largest = kernel.__name__.startswith(("attention", "adamw", "squares")) and not named.get("FIRST")
        for capability in (90, 80) if largest and self.label == "roberta-base" else (90,):
            key = str((capability, kernel.__name__, signature, constants, attributes, options))
            if key not in self._seen:
                self._seen.add(key)
                numbers = {(list(signature).index(name),): value for name, value in constants.items()}
                source = ASTSource(fn=kernel, signature=signature, constexprs=numbers, attrs=attributes)
                made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
                dtypes = sorted({kind for kind in signature.values() if kind.startswith("*")})
                facts = {"step": self.label, "capability": capability, "kernel": kernel.__name__, "dtypes": dtypes}
                print(json.dumps(facts | {"constants": constants} | self._facts(made)), flush=True)

    def _facts(self, made: Any) -> dict[str, Any]:
        binary = self.folder / "kernel.cubin"
        binary.write_bytes(made.asm["cubin"])
        done = subprocess.run([_CUOBJDUMP, "-res-usage", binary], capture_output=True, text=True, check=True)
        used = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", done.stdout)
        assert used is not None, done.stdout
        ptx = made.asm["ptx"]
        return {
            "registers": int(used[1]),
            "stack": int(used[2]),  # bytes of each thread, where spilled registers go
            "local": int(used[3]),
            "shared": made.metadata.shared,  # bytes of each block
            "tensor_cores": "wgmma" in ptx or "mma.sync" in ptx,
            "products": "tt.dot" in made.asm["ttir"],
            "wide_loads": len(re.findall(r"ld\.global[\w.:]*\.v4\.b32", ptx)),
        }


def main() -> None:
    folder = Path(sys.argv[1])
    compiling = _Compiling(folder)
    JITFunction.run = lambda kernel, *args, **named: compiling.run(kernel, *args, **named)
    os.environ["MANYTUNE_KERNELS"] = "triton"
    task, data = get_task("builtin-acceptability"), random_rows(40, longest=100, seed=1)
    lengths = np.diff(data.offsets)  # rows for every kind of tile, and longer ones
    edges = (0, 16, 32, 64, 100)
    rows = np.array([np.flatnonzero((lengths > least) & (lengths <= most))[0] for least, most in pairwise(edges)])
    for label, shape, methods, dtype in (
        ("roberta-base", ROBERTA_BASE, (LORA, LORA, BITFIT), torch.bfloat16),
        ("roberta-base in full", ROBERTA_BASE, (FULL,), torch.bfloat16),
        ("MiniLM, scored in fp32", MINILM, (LORA,), torch.float32),
        ("MPNet in full", ROBERTA_BASE, (FULL,), torch.bfloat16),
    ):
        compiling.label = label
        family = "mpnet" if "MPNet" in label else "roberta"
        place = folder / f"{family}-{shape['hidden_size']}"
        if not place.exists():
            (make_tiny_of if family == "mpnet" else make_tiny)(place, family, **shape)
        backbone = load_backbone(str(place), 2)
        made = [
            make_method(name, learning_rate=1e-3, **settings).adapt(backbone.model_spec) for name, settings in methods
        ]
        model = PackedModel(backbone, [Member(seed, each) for seed, each in enumerate(made)], dtype=dtype)
        if "scored" in label:
            with torch.no_grad():
                model.forward(build_layout(data, [rows] * len(methods)))
            continue
        batches = [RunBatch(rows, len(rows), 0) for _ in methods]
        updates = [AdamWUpdate(1, 1e-3, max_grad_norm=1.0) for _ in methods]
        stepper = Stepper(model, PackedAdamW(model.bank, model.context.kernels), task)
        stepper.take(plan_step(model, task, data, batches, updates))


if __name__ == "__main__":
    main()
