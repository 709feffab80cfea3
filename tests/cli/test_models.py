"""The list of encoder families, and what is in the local cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from command_line import Command

from manytune.methods import METHODS
from manytune.models.families import FAMILIES
from tiny import make_tiny_of


def models(home: Path, *words: str) -> str:
    """The command, as a process of its own: the hub's library reads the environment when it is imported."""
    command = [sys.executable, "-m", "manytune", "models", *words]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run(
        command, env={**environment, "HF_HOME": str(home)}, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_every_family_is_listed(command: Command, tmp_path: Path) -> None:
    done = command("models", cwd=tmp_path)
    assert done.code == 0
    assert all(name in done.out and family.checkpoint in done.out for name, family in FAMILIES.items())
    assert "Wqkv *" in done.out
    assert "query, value *" not in done.out


def test_models_in_the_cache_are_named(tiny: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    shutil.copytree(tiny, hub / "models--them--small" / "snapshots" / "abc")
    other = hub / "models--us--strange" / "snapshots" / "abc"
    shutil.copytree(tiny, other)
    (other / "config.json").write_text('{"model_type": "strange"}')
    shutil.copytree(tiny, hub / "models--them--no-weights" / "snapshots" / "abc")
    (hub / "models--them--no-weights" / "snapshots" / "abc" / "model.safetensors").unlink()
    (hub / "models--them--broken" / "snapshots" / "abc").mkdir(parents=True)
    (hub / "models--them--broken" / "snapshots" / "abc" / "config.json").write_text("{")
    found = json.loads(models(tmp_path, "--json"))
    assert {row["family"]: row["in the local cache"] for row in found["families"]} == {
        **{name: [] for name in FAMILIES},
        "bert": ["them/small"],
    }
    assert found["others in the local cache"] == {"strange": ["us/strange"]}
    assert "Also in the local cache, of strange: us/strange" in models(tmp_path)


def test_parameters_of_a_model_without_biases_leave_bitfit_out(command: Command, tmp_path: Path) -> None:
    make_tiny_of(tmp_path / "model", "modernbert")
    found = json.loads(command("params", "model", "--json", cwd=tmp_path).out)
    assert {row["method"] for row in found} == {*METHODS} - {"bitfit"}
    asked = command("params", "model", "--method", "bitfit", cwd=tmp_path)
    assert asked.code == 2
    assert "this backbone has none" in asked.err
