"""The wheel that users install: what is in it, and that it works by itself."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src" / "manytune"


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy, so that nothing is left in the source tree."""
    copy, out = tmp_path_factory.mktemp("copy"), tmp_path_factory.mktemp("dist")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
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
    assert {name for name in packed if name.startswith("manytune/")} == sources
    assert {name.split("/")[0].partition("-")[0] for name in packed} == {"manytune"}
    assert not [name for name in packed if "builtin_data" in name], "the grammars got into the wheel"


def test_it_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size < 1_000_000, "weights or data got into the wheel"


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
