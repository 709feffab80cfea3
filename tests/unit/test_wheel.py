"""The wheel that users install: what is in it, and that it works by itself."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import torch

from tiny import make_tiny

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "manytune"
PLOTLY = "manytune/report/templates/plotly.min.js"

OF_EXTRAS = "accelerate|datasets|matplotlib|onnx|onnxruntime|onnxscript|pandas|peft|plotly|pyarrow|ray"
"""Packages that `pip install manytune` alone does not bring."""


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing is left in the source tree."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    shutil.copytree(SOURCES, copy / "src" / "manytune")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, copy)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    return Parser().parsestr(read(wheel, "METADATA"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def read(wheel: Path, name: str) -> str:
    """The text of a file of the wheel's .dist-info."""
    (path,) = (each for each in names(wheel) if each.endswith(f".dist-info/{name}"))
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(path).decode()


def test_it_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    sources = {
        f"manytune/{path.relative_to(SOURCES).as_posix()}"
        for path in SOURCES.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert len(sources) >= 40
    assert {"manytune/py.typed", "manytune/storage/record.py", "manytune/report/task_table.py"} <= sources
    assert "manytune/data/builtin.jsonl.gz" in sources
    packed = names(wheel)
    assert {name for name in packed if name.startswith("manytune/")} == sources | {PLOTLY}
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"manytune"}
    assert not [name for name in packed if "builtin_data" in name], "the grammars got into the wheel"


def test_it_is_small(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        charts = archive.getinfo(PLOTLY).compress_size
    assert 1_000_000 < charts < 2_000_000
    assert wheel.stat().st_size - charts < 1_000_000, "weights or data got into the wheel"


def test_its_name_says_pure_python(wheel: Path) -> None:
    assert re.fullmatch(r"manytune-\d+\.\d+\.\d+-py3-none-any\.whl", wheel.name)


def test_its_metadata_is_the_projects(wheel: Path, metadata: Message) -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        project = tomllib.load(file)["project"]
    assert metadata["Name"] == "manytune"
    assert metadata["Version"] == wheel.name.split("-")[1]
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["License-Expression"] == "Apache-2.0"
    assert set(metadata.get_all("Provides-Extra", [])) == set(project["optional-dependencies"])
    required = [each for each in metadata.get_all("Requires-Dist", []) if "extra ==" not in each]
    assert len(required) == len(project["dependencies"])
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_carries_the_whole_licence(wheel: Path) -> None:
    text = read(wheel, "licenses/LICENSE")
    assert "Apache License\n                           Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_it_installs_one_command(wheel: Path) -> None:
    points = configparser.ConfigParser()
    points.read_string(read(wheel, "entry_points.txt"))
    assert {name: dict(points[name]) for name in points.sections()} == {
        "console_scripts": {"manytune": "manytune.cli:main"}
    }


def test_it_trains_reports_and_predicts_without_any_extra(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    for path in Path(torch.__file__).parents[1].iterdir():
        if not re.fullmatch(rf"({OF_EXTRAS}|manytune)(-.*)?|.*\.pth", path.name):
            with suppress(FileExistsError):
                (site / path.name).symlink_to(path)
    program = f"import sys; sys.path.append({str(site)!r}); from manytune import cli; print(cli.__file__); cli.main()"

    def manytune(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-I", "-S", "-c", program, *map(str, arguments)]  # no other folder of packages
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    study = tmp_path / "study.yaml"
    training = "{max_steps: 2, max_length: 16, eval_every: 2}"
    methods = "[{method: bitfit, learning_rate: 1e-3}]"
    study.write_text(
        f"name: bare\nmodel: {make_tiny(tmp_path / 'tiny')}\ntasks: [builtin-acceptability]\nseeds: [0]\n"
        f"training: {training}\nmethods: {methods}\n"
    )
    done = manytune("run", study, "--out", "results", "--quiet")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.splitlines()[0]).is_relative_to(tmp_path)
    assert done.stdout.count("No figures as PNG and SVG, which need matplotlib: pip install 'manytune[figures]'") == 1
    assert "plotly.js v" in (tmp_path / "results" / "report" / "index.html").read_text(encoding="utf-8")
    assert not (tmp_path / "results" / "report" / "figures").exists()
    done = manytune("predict", "results", "--text", "The cat sat.")
    assert done.returncode == 0, done.stderr

    done = manytune("predict", "results", "rows.parquet")
    assert done.returncode == 2
    assert "rows.parquet: Parquet needs the package pyarrow: pip install 'manytune[parquet]'. Or give" in done.stderr
    done = manytune("run", study, "tasks=[cola]", "--out", "cola")
    assert done.returncode == 2
    assert "needs the package datasets: pip install 'manytune[hub]'.\nWithout the hub, give a folder" in done.stderr


def test_it_runs_by_itself(wheel: Path, tmp_path: Path, metadata: Message) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['--version']; "
        "from manytune import cli; print(cli.__file__); sys.exit(cli.main())"
    )
    path, *version = run(sys.executable, "-c", program).splitlines()
    assert Path(path).is_relative_to(tmp_path)
    assert metadata["Version"] in " ".join(version)
