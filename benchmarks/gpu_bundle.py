"""One folder with all that `benchmarks/gpu.py` needs on a GPU machine without a network: wheels, rows, models.

    python benchmarks/gpu_bundle.py [.gpu] [--data GLUE] [--roberta FOLDER] [--there FILE]

The folder is made anew, has at most 60 MiB, and is left out by git. In it:

    wheels/             what manytune imports and a machine made for torch seldom has: `THERE` says what such a one has
    glue/CoLA/          the real rows
    roberta-base/       configuration and tokenizer; `gpu.py` draws weights of this shape there
    minilm/             all-MiniLM-L6-v2, its weights rounded to bf16: the whole model, at half the size

It is made where there is a network and manytune's development environment, `make env`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from safetensors.torch import load_file, save_file

from manytune.models.loading import locate

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 60 * 2**20
THERE = """absl-py accelerate aiohttp annotated-doc anyio attrs certifi click cloudpickle colorama contourpy coverage
filelock fsspec h11 httpx huggingface-hub hypothesis jinja2 joblib lightning markdown-it-py markupsafe matplotlib mpmath
networkx ninja numpy onnx onnxruntime packaging pandas peft pillow pip pluggy protobuf psutil pyarrow pygments pytest
pytest-xdist pyyaml regex requests rich safetensors scikit-learn scipy sentencepiece setuptools shellingham sympy
tensorboard threadpoolctl tokenizers torch torchmetrics tqdm transformers triton typer typing-extensions wheel"""
"""Packages that the GPU machine has, with what they need themselves; --there names a file with others."""

BESIDE = ("matplotlib", "peft", "accelerate", "plotly")
"""What the steps import beside manytune and what it requires; plotly has the script of the report's page."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def missing(there: frozenset[str]) -> list[str]:
    """`name==version` of each package that the steps need and that is not `there`, as it is installed here."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found: dict[str, str] = {}
    waiting = [canonicalize_name(Requirement(line).name) for line in (*required, *BESIDE)]
    while waiting:
        name = waiting.pop()
        if name in there or name in found:
            continue
        found[name] = metadata.version(name)
        needs = [Requirement(line) for line in metadata.requires(name) or ()]
        waiting += [canonicalize_name(need.name) for need in needs if not need.marker or need.marker.evaluate()]
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def download(packages: list[str], folder: Path, python: str) -> None:
    """The wheels of some packages, for x86-64 Linux and that version of CPython."""
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--disable-pip-version-check", "--python-version", python, "--implementation", "cp", *platforms]
    subprocess.run([*command, "--dest", str(folder), *packages], check=True)


def copy_files(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy those of the files that are there; the first must be."""
    target.mkdir(parents=True)
    for number, name in enumerate(names):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
        elif number == 0:
            raise SystemExit(f"{source} has no {name}.")


def copy_minilm(folder: Path) -> None:
    """All of MiniLM, its matrices in bf16."""
    source = Path(locate("minilm").path)
    copy_files(source, folder, ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"))
    tensors = load_file(source / "model.safetensors")
    rounded = {name: x.to(torch.bfloat16) if x.is_floating_point() else x for name, x in tensors.items()}
    save_file(rounded, folder / "model.safetensors", {"format": "pt"})


def main() -> None:
    shared = ROOT.parent / "shared"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / ".gpu")
    data = os.environ.get("MANYTUNE_GLUE_DIR", shared / "data/glue")
    parser.add_argument("--data", type=Path, default=data, help="a folder with GLUE's CoLA/train.tsv and dev.tsv")
    roberta = os.environ.get("MANYTUNE_ROBERTA_DIR", shared / "models/roberta-base")
    parser.add_argument("--roberta", type=Path, default=roberta, help="roberta-base's config.json and tokenizer.json")
    parser.add_argument("--there", type=Path, help="what the GPU machine has: the names that `pip list` prints there")
    parser.add_argument("--python", default="3.12", help="its version of Python")
    parser.add_argument("--no-wheels", action="store_true", help="models and rows alone")
    options = parser.parse_args()
    folder = options.folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "wheels").is_dir():
        raise SystemExit(f"{folder} is no bundle of an earlier call; name another folder, or remove it.")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    copy_files(options.data / "CoLA", folder / "glue/CoLA", ("train.tsv", "dev.tsv"))
    copy_files(options.roberta, folder / "roberta-base", ("config.json", "tokenizer.json", "tokenizer_config.json"))
    copy_minilm(folder / "minilm")
    there = options.there.read_text().split() if options.there else THERE.split()
    if not options.no_wheels:
        download(missing(frozenset(map(canonicalize_name, there))), folder / "wheels", options.python)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        print(f"{path.stat().st_size:>12,} {path.relative_to(folder)}")
    total = sum(path.stat().st_size for path in files)
    print(f"{total:>12,} bytes, {total / 2**20:.1f} MiB in {folder}")
    if total > MOST_BYTES:
        raise SystemExit(f"More than {MOST_BYTES / 2**20:.0f} MiB: name in --there what the machine has.")


if __name__ == "__main__":
    main()
