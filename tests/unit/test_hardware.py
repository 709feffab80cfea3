from __future__ import annotations

import mmap
import os
import platform
import subprocess
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from manytune.utils import hardware
from manytune.utils.devices import DEVICES
from manytune.utils.errors import StudyError
from manytune.utils.hardware import PeakMemory, choose_device, choose_dtype
from manytune.utils.version import __version__

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
