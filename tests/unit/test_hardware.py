from __future__ import annotations

import mmap
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from forked import run_forked
from manytune.models.loading import load_backbone
from manytune.packing import PackedModel
from manytune.utils import hardware
from manytune.utils.devices import DEVICES
from manytune.utils.errors import StudyError
from manytune.utils.hardware import PeakMemory, choose_device, choose_dtype
from manytune.utils.version import __version__
from tiny import make_tiny

CPU = torch.device("cpu")


class TestDevice:
    def test_every_device_that_has_a_name_can_be_looked_for(self) -> None:
        assert {"auto", *hardware._AVAILABLE} == set(DEVICES)

    @pytest.mark.parametrize(
        ("here", "chosen"),
        [({"cuda", "mps", "cpu"}, "cuda"), ({"mps", "cpu"}, "mps"), ({"cpu"}, "cpu")],
        ids=["all", "mps", "cpu"],
    )
    def test_auto_takes_the_fastest_that_is_here(
        self, here: set[str], chosen: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.only(here, monkeypatch)
        assert choose_device("auto").type == chosen
        for name in here:
            assert choose_device(name).type == name

    def test_one_that_is_not_here_is_refused(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.only({"mps", "cpu"}, monkeypatch)
        with pytest.raises(StudyError, match="cuda is not available on this machine; available are: auto, mps, cpu"):
            choose_device("cuda")

    @pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:1", ""])
    def test_one_that_is_unknown_is_refused(self, name: str) -> None:
        with pytest.raises(StudyError, match=rf"--device: '{name}' is not one of: auto, cpu, cuda, mps, cuda:N\."):
            choose_device(name)

    def test_a_numbered_gpu_must_be_there_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.only({"cuda", "cpu"}, monkeypatch)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert choose_device("cuda:1") == torch.device("cuda", 1)
        with pytest.raises(StudyError, match="--devices: cuda:2 is not available on this machine"):
            choose_device("cuda:2", "--devices")

    def test_what_is_here_is_asked_of_torch(self) -> None:
        found = {name: available() for name, available in hardware._AVAILABLE.items()}
        assert found == {
            "cuda": torch.cuda.is_available(),
            "mps": torch.backends.mps.is_available(),
            "cpu": True,
        }

    def only(self, here: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        for name in hardware._AVAILABLE:
            monkeypatch.setitem(hardware._AVAILABLE, name, partial(here.__contains__, name))


class TestDtype:
    @pytest.mark.parametrize(
        ("able", "dtype"),
        [
            ({"avx512_bf16": True}, torch.bfloat16),
            ({"amx_bf16": True, "avx512_bf16": False}, torch.bfloat16),
            ({"avx2": True}, torch.float32),
        ],
        ids=["avx512", "amx", "neither"],
    )
    def test_auto_is_bf16_where_the_cpu_multiplies_in_it(
        self, able: Mapping[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
        assert choose_dtype("auto", CPU) is dtype
        assert choose_dtype("fp32", CPU) is torch.float32
        assert choose_dtype("bf16", CPU) is torch.bfloat16

    @pytest.mark.parametrize(
        ("limit", "dtype"),
        [("AVX2", torch.float32), ("avx512_core", torch.float32), ("ALL", torch.bfloat16), ("", torch.bfloat16)],
    )
    def test_auto_heeds_the_limit_of_onednn(
        self, limit: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        assert choose_dtype("auto", CPU) is dtype

    @pytest.mark.parametrize("able", [True, False])
    def test_auto_on_a_gpu_leaves_emulation_out(self, able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        def supported(*, including_emulation: bool) -> bool:
            return including_emulation or able

        monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
        assert (choose_dtype("auto", torch.device("cuda")) is torch.bfloat16) == able

    def test_auto_elsewhere_is_fp32(self) -> None:
        assert choose_dtype("auto", torch.device("mps")) is torch.float32


class TestProvenance:
    def test_the_machine(self) -> None:
        facts = hardware.describe(CPU)
        assert facts["device"] == "cpu"
        assert facts["accelerator"] is None
        assert facts["threads"] == torch.get_num_threads()
        assert facts["cores"] >= 1
        assert facts["memory_bytes"] > 2**28
        assert facts["system"] == f"{platform.system()} {platform.machine()}"

    def test_what_cannot_be_found_out_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_args: object, **_options: object) -> str:
            raise OSError

        monkeypatch.setattr(Path, "read_text", refuse)
        monkeypatch.setattr(os, "sysconf", refuse)
        monkeypatch.setattr(platform, "processor", lambda: "")
        facts = hardware.describe(CPU)
        assert (facts["processor"], facts["memory_bytes"]) == (None, None)

    def test_versions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = hardware.versions()
        assert found["python"] == platform.python_version()
        assert found["torch"] == torch.__version__
        assert found["manytune"] == __version__
        assert {"transformers", "safetensors", "numpy", "datasets"} <= set(found)
        monkeypatch.setattr(hardware, "_PACKAGES", ("no-such-package",))
        assert set(hardware.versions()) == {"python", "manytune"}

    def test_the_commit_is_of_a_source_tree_and_of_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        module = tmp_path.joinpath(*Path(hardware.__file__).parts[-4:])
        monkeypatch.setattr(hardware, "__file__", str(module))
        assert hardware.git_commit() is None
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "commit.gpgsign=false")
        for words in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "first"]):
            subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
        commit = hardware.git_commit()
        assert commit is not None
        assert len(commit) == 40
        monkeypatch.setenv("PATH", "")
        assert hardware.git_commit() is None


@pytest.mark.skipif(platform.system() != "Linux", reason="only Linux tells a process its peak since a moment")
class TestPeakMemory:
    def test_it_is_the_most_since_it_was_made(self) -> None:
        size = 2**27
        first = PeakMemory(CPU)
        before = first.bytes()
        with mmap.mmap(-1, size) as block:  # what torch frees may stay with the C library
            block.write(b"1" * size)
        peak = first.bytes()
        assert before is not None
        assert peak is not None
        assert peak - before > size / 2
        later = PeakMemory(CPU).bytes()
        assert later is not None
        assert peak - later > size / 2

    @pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
    def test_what_was_freed_before_does_not_count(self) -> None:
        """As by the pack before, whose memory is kept for the next step."""
        hardware.keep_freed_memory()
        first = PeakMemory(CPU)
        blocks = [torch.ones(2**18) for _ in range(128)]  # 128 MiB
        peak = first.bytes()
        del blocks
        kept, later = psutil.Process().memory_info().rss, PeakMemory(CPU).bytes()
        assert peak is not None
        assert later is not None
        assert peak - kept < 2**25, "it is kept indeed"
        assert peak - later > 2**26

    def test_it_is_none_rather_than_the_whole_past(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_args: object) -> None:
            raise PermissionError

        monkeypatch.setattr(Path, "write_text", refuse)
        assert PeakMemory(CPU).bytes() is None


def test_an_allocation_that_fails_is_known_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert hardware.is_out_of_memory(caught.value)
    assert hardware.is_out_of_memory(MemoryError())
    assert not hardware.is_out_of_memory(RuntimeError("the device is gone"))
    assert not hardware.is_out_of_memory(ValueError("out of memory"))


def test_the_systems_count_of_processes_killed_for_memory() -> None:
    found = hardware.oom_kills()
    if found is None:
        pytest.skip("this system does not count them")
    boot, count = found.split()
    assert boot
    assert int(count) >= 0


class TestErrorsOfAGpu:
    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
            RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
            RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
            RuntimeError("CUDA driver error: cudaErrorMemoryAllocation"),
            RuntimeError("Triton Error [CUDA]: out of memory"),
            torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        ],
        ids=str,
    )
    def test_memory_that_ran_out_costs_no_process(self, error: Exception) -> None:
        assert hardware.is_out_of_memory(error)
        assert not hardware.has_lost_device(error)

    @pytest.mark.parametrize(
        "error",
        [
            torch.AcceleratorError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported"),
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            RuntimeError("CUDA error: misaligned address"),
            RuntimeError("CUDA error: unspecified launch failure"),
            RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"),
            RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa)`"),
            torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
        ],
        ids=str,
    )
    def test_after_some_the_process_cannot_go_on(self, error: Exception) -> None:
        assert hardware.has_lost_device(error)
        assert not hardware.is_out_of_memory(error)

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("Expected all tensors to be on the same device, but found cuda:0 and cpu"),
            RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
            ValueError("CUDA error: misaligned address"),
            KeyError("misaligned address"),
        ],
        ids=str,
    )
    def test_others_are_of_the_pack_alone(self, error: Exception) -> None:
        assert not hardware.has_lost_device(error)
        assert not hardware.is_out_of_memory(error)


_SETTINGS = """
import sys, torch
from manytune.utils.hardware import use_exact_products
backends, program = torch.backends, sys.argv[1]
exec(program)
use_exact_products()
use_exact_products()
precisions = [backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision]
precisions += [backends.cudnn.rnn.fp32_precision, backends.mkldnn.matmul.fp32_precision]
assert precisions == ["ieee"] * 4, precisions
assert torch.get_float32_matmul_precision() == "highest"
assert not backends.cuda.matmul.allow_tf32 and not backends.cudnn.allow_tf32
assert not backends.cuda.matmul.allow_bf16_reduced_precision_reduction
assert not backends.cuda.cudnn_sdp_enabled()
"""


@pytest.mark.parametrize(
    "program",
    [
        "",
        "torch.set_float32_matmul_precision('medium')",
        "backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True",
        "backends.fp32_precision = 'tf32'",
        "backends.cudnn.fp32_precision = 'tf32'",
        "backends.cuda.matmul.fp32_precision = backends.cudnn.conv.fp32_precision = 'tf32'",
    ],
)
def test_products_are_exact_whatever_the_program_asked_for(program: str) -> None:
    run_forked([sys.executable, "-W", "error", "-c", _SETTINGS, program], check=True)


def test_products_are_exact_whatever_the_environment_asks_for() -> None:
    """Torch reads the variable when it is imported."""
    asked = {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1", "NVIDIA_TF32_OVERRIDE": "1"}
    code = f"import os\n{_SETTINGS}\nassert os.environ['NVIDIA_TF32_OVERRIDE'] == '0'"
    program = "assert backends.cuda.matmul.allow_tf32, 'the environment is heeded'"
    subprocess.run([sys.executable, "-c", code, program], env={**os.environ, **asked}, check=True)


def test_who_builds_a_pack_has_exact_products(tmp_path: Path) -> None:
    backbone = load_backbone(str(make_tiny(tmp_path)), 2)
    torch.backends.cuda.matmul.allow_tf32 = True
    PackedModel(backbone, [])
    assert not torch.backends.cuda.matmul.allow_tf32


class TestGpu:
    """What is known of a GPU; none is here, so torch is asked for one that it makes up."""

    DEVICE = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def _gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        facts = SimpleNamespace(name="NVIDIA H100", total_memory=80 * 2**30, major=9, minor=0)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: facts.name)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(hardware, "_version", {"triton": "3.6.0"}.get)

    def test_a_record_names_it(self) -> None:
        facts = hardware.describe(self.DEVICE)
        assert (facts["device"], facts["accelerator"], facts["capability"]) == ("cuda", "NVIDIA H100", "9.0")
        assert (facts["cuda"], facts["triton"], facts["accelerator_memory_bytes"]) == ("13.0", "3.6.0", 80 * 2**30)
        assert "driver" in facts

    def test_what_decides_how_it_adds_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert hardware.accelerator_arithmetic(self.DEVICE) == "NVIDIA H100, CUDA 13.0, triton 3.6.0"
        assert hardware.accelerator_arithmetic(CPU) is None
        monkeypatch.setattr(hardware, "_version", {}.get)
        assert hardware.accelerator_arithmetic(self.DEVICE) == "NVIDIA H100, CUDA 13.0"

    def test_memory_that_torch_keeps_is_free(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (100, 1000))

        def segment(device: int, pool: tuple[int, int]) -> dict[str, Any]:
            return {"device": device, "segment_pool_id": pool, "total_size": 70, "allocated_size": 50}

        # Of recorded steps, and of another GPU, what is not in use serves nobody here.
        segments = [segment(0, (0, 0)), segment(0, (0, 3)), segment(1, (0, 0))]
        monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
        assert hardware.free_memory(self.DEVICE) == 120
