"""What a packed step launches is compiled for GPUs that are not here: no registers are spilled, and products and loads
are those that the kernels were written for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="triton is not here: it is installed on Linux on x86-64 alone")

SCRIPT = Path(__file__).parents[2] / "compile_kernels.py"

SHARED = {80: 163 * 1024, 90: 227 * 1024}
"""Bytes of shared memory that a block may have, by compute capability."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """A row for each kernel and what it was compiled with: see compile_kernels.py."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    environment |= {"TRITON_CACHE_DIR": str(folder / "cache")}
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) > 40
    kernels = {row["kernel"] for row in rows}
    assert kernels >= {"residual_norm", "residual_norm_grad", "gelu", "run_sums", "drop", "token_keys"}
    assert kernels >= {"narrow", "widen", "factor_grad", "squares", "clip_factors", "adamw"}
    assert kernels >= {"attention_tile", "attention_tile_grad", "attention_blocks"}
    assert kernels >= {"attention_blocks_grad_queries", "attention_blocks_grad_keys", "attention_position_grad"}
    assert {row["constants"]["L"] for row in rows if row["kernel"] == "attention_tile_grad"} == {16, 32, 64}
    return rows


def in_bf16(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if row["step"] != "MiniLM, scored in fp32"]


def test_no_registers_are_spilled(compiled: list[dict[str, Any]]) -> None:
    """A few bytes of a thread's stack cost nothing."""
    assert [row for row in compiled if row["local"] > 0 or row["stack"] > 64] == []


def test_blocks_fit_into_shared_memory(compiled: list[dict[str, Any]]) -> None:
    assert [row for row in compiled if row["shared"] > SHARED[row["capability"]]] == []


def test_products_of_bf16_are_those_of_tensor_cores(compiled: list[dict[str, Any]]) -> None:
    products = [row for row in in_bf16(compiled) if row["products"]]
    assert {row["kernel"] for row in products} >= {"narrow", "widen", "factor_grad", "attention_tile"}
    assert [row for row in products if not row["tensor_cores"]] == []


def test_products_of_fp32_are_exact(compiled: list[dict[str, Any]]) -> None:
    products = [row for row in compiled if row["step"] == "MiniLM, scored in fp32" and row["products"]]
    assert len(products) >= 4
    assert [row for row in products if row["tensor_cores"]] == [], "TF32 has 10 bits"


@pytest.mark.parametrize(("kernel", "parts"), [("adamw", 4), ("squares", 1)])
def test_the_optimizer_loads_16_bytes_at_once(compiled: list[dict[str, Any]], kernel: str, parts: int) -> None:
    rows = [row for row in compiled if row["kernel"] == kernel]
    assert {row["capability"] for row in rows} == {80, 90}
    assert all(row["wide_loads"] >= parts for row in rows)
