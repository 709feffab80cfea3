"""Write docs/commands/: a page for each command, with its help and what it really prints.

    python docs/make_pages.py FOLDER

FOLDER holds the tutorial's study: study.yaml, tickets.csv, new.csv, `results`, and `short`, a shorter study of the
same file. What is missing is made, which takes some minutes.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from manytune.data.glue_zip import write_zip

DOCS = Path(__file__).parent
MOST_LINES, HEAD = 42, 30

EXAMPLES: dict[str, tuple[str, ...]] = {
    "init": ("manytune init another.yaml", "manytune init tickets-study.yaml --data tickets.csv"),
    "quick": ("manytune quick new.csv",),
    "check": ("manytune check study.yaml",),
    "params": ("manytune params roberta-base --labels 2",),
    "plan": (
        "manytune plan --difference 0.02 --sd 0.02 --sd-seeds 5 --looks 5,10,20",
        "manytune plan --difference 0.02 --from results",
    ),
    "run": ("manytune run study.yaml --dry-run", "manytune run study.yaml --out results --quiet"),
    "status": ("manytune status results",),
    "watch": ("timeout --signal=INT 5 manytune watch results",),
    "show": ("manytune show results tickets-bitfit-lr4e-3-s0",),
    "report": ("manytune report results",),
    "best": ("manytune best results",),
    "extend": ('manytune extend results --seeds 6 --method "lora rank=16 learning_rate=1e-3" --dry-run',),
    "compare": ("manytune compare results short",),
    "predict": (
        "manytune predict results new.csv --out predicted.csv",
        'manytune predict results --text "Where is my parcel?" "It should have come on Monday."',
    ),
    "evaluate": ("manytune evaluate results labelled.csv --run tickets-full-lr1e-4-s0",),
    "export": (
        "manytune export results --run tickets-bitfit-lr4e-3-s0 --to bitfit",
        "manytune export results --run tickets-lora-r4-lr2e-3-s0 --to adapter",
        "manytune export results --run tickets-lora-r4-lr2e-3-s0 --format onnx --to onnx",
    ),
    "submit": ("manytune submit glue.zip", "manytune submit results"),
    "clean": ("manytune clean results --dry-run",),
    "tasks": ("manytune tasks",),
    "methods": ("manytune methods",),
    "models": ("manytune models",),
    "schema": ("manytune schema",),
}
"""Command → what its page shows, in the order of the pages."""

MADE = ("another.yaml", "tickets-study.yaml", "bitfit", "adapter", "onnx", "predicted.csv")
"""What the examples write."""


def help_of(name: str, cwd: Path) -> str:
    """A command's help."""
    return shell(f"manytune {name} --help", cwd)


def shell(command: str, cwd: Path) -> str:
    """What a command prints, errors included."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "HF_HUB_OFFLINE": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    done = subprocess.run(command, shell=True, cwd=cwd, env=environment, check=False, **pipes)
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines())


def shortened(text: str) -> str:
    """The beginning of what is too long for a page."""
    lines = text.splitlines()
    if len(lines) <= MOST_LINES:
        return text
    return "\n".join([*lines[:HEAD], f"… {len(lines) - HEAD} more lines"])


def page(name: str, cwd: Path) -> str:
    """A command's page."""
    parts = [f"# manytune {name}", f"```text\n{help_of(name, cwd)}\n```"]
    for command in EXAMPLES[name]:
        parts.append(f"```console\n$ {command}\n{shortened(shell(command, cwd))}\n```")
    return "\n\n".join(parts) + "\n"


def prepare(folder: Path) -> None:
    """Train the studies that the examples read, unless they are there, and remove what earlier examples wrote."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("tickets.csv", "new.csv", "labelled.csv"):
        shutil.copy(DOCS / "tutorial" / name, folder)
    (study,) = re.findall(r"^```yaml\n(.*?)^```", (DOCS / "tutorial.md").read_text(), re.MULTILINE | re.DOTALL)
    (folder / "study.yaml").write_text(study)
    print(shell("manytune run study.yaml --out results", folder))
    print(shell("manytune run study.yaml training.epochs=2 'seeds=[0,1]' --out short", folder))
    write_zip(folder / "glue.zip", {})
    for name in MADE:
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def main() -> None:
    """Write the pages and their list."""
    folder = Path(sys.argv[1]).resolve()
    prepare(folder)
    pages = DOCS / "commands"
    pages.mkdir(exist_ok=True)
    index = [
        "# The commands",
        "",
        "Written by `docs/make_pages.py`, on the study of [the tutorial](../tutorial.md).",
        "",
    ]
    for name in EXAMPLES:
        text = page(name, folder)
        (pages / f"{name}.md").write_text(text)
        summary = re.search(r"^Usage:.*?\n\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)
        assert summary is not None
        index.append(f"- [{name}]({name}.md): {' '.join(summary.group(1).split())}")
    (pages / "README.md").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    main()
