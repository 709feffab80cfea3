"""The rules of who imports whom, read from the source files."""

from __future__ import annotations

import ast
import re
import runpy
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import manytune

PACKAGE = Path(manytune.__file__).parent

# The way of the data: a package imports only what stands above it, and of its own.
ORDER = (*runpy.run_path(str(Path(__file__).parents[2] / "docs" / "make_modules.py"))["ORDER"], "__main__")

# Where every command and every report starts. What these load when they are imported, and so on, is light: `--help`,
# `status` and `report` are there in well under a second, and Ray's mailbox takes little memory.
STARTS = (
    *("manytune", "manytune.cli.main", "manytune.report.writing", "manytune.report.live_page.server"),
    "manytune.training.mailbox",
)
HEAVY = frozenset({"torch", "transformers", "datasets", "scipy", "sklearn", "pandas", "matplotlib", "plotly", "jinja2"})

# Who may never know of whom, whatever the order says.
FORBIDDEN = {
    "methods": {"data", "config", "storage", "packing", "training"},
    "training.loop": {"storage.directory", "report", "cli"},
    "executors": {"report", "cli"},
}

# File → why it may have more than 500 lines.
LONG_FILES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Import:
    """One imported module, and how."""

    target: str
    line: int
    at_start: bool
    """Whether it is imported when the file is: at module level, not inside a function."""
    for_types: bool
    """Whether only type checkers follow it (`if TYPE_CHECKING:`)."""


@cache
def sources() -> dict[str, Path]:
    """Dotted module name → file."""
    names = {path: path.relative_to(PACKAGE.parent).with_suffix("").parts for path in PACKAGE.rglob("*.py")}
    return {".".join(parts).removesuffix(".__init__"): path for path, parts in names.items()}


def component(module: str) -> str:
    """What of the package a module belongs to: manytune.packing.bank is part of packing."""
    return module.split(".")[1] if "." in module else "__init__"


def within(module: str, names: set[str]) -> bool:
    """Whether a module is one of these of manytune, or lies in one."""
    return any(f"{module}.".startswith(f"manytune.{name}.") for name in names)


@cache
def imports(module: str) -> tuple[Import, ...]:
    tree = ast.parse(sources()[module].read_text(encoding="utf-8"))
    package = module if sources()[module].name == "__init__.py" else module.rpartition(".")[0]
    return tuple(_walk(tree, package, at_start=True, for_types=False))


def _walk(node: ast.AST, package: str, *, at_start: bool, for_types: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            for target in _targets(child, package):
                yield Import(target, child.lineno, at_start, for_types)
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            yield from _walk(ast.Module(child.body, []), package, at_start=at_start, for_types=True)
            yield from _walk(ast.Module(child.orelse, []), package, at_start=at_start, for_types=for_types)
        else:
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from _walk(child, package, at_start=at_start and not inside, for_types=for_types)


def _targets(node: ast.Import | ast.ImportFrom, package: str) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    base = ".".join([*parents, *([node.module] if node.module else [])])
    for alias in node.names:
        inner = f"{base}.{alias.name}"
        yield inner if inner in sources() else base


def arrows(module: str) -> dict[str, int]:
    """The modules of manytune that a module really uses → the line; those for type checkers are none."""
    return {
        each.target: each.line
        for each in imports(module)
        if each.target.split(".")[0] == "manytune" and not each.for_types
    }


def test_the_files_are_all_seen() -> None:
    assert len(sources()) >= 40
    assert {"manytune", "manytune.storage.record", "manytune.report", "manytune.report.task_table"} <= set(sources())
    assert sum(len(imports(module)) for module in sources()) >= 300
    assert arrows("manytune.report.task_table").keys() >= {"manytune.storage.record", "manytune.stats.describe"}


def test_every_module_has_its_place_in_the_order() -> None:
    assert {component(module) for module in sources()} == {"__init__", *ORDER}
    assert len(ORDER) == len(set(ORDER))
    assert len([path for path in PACKAGE.iterdir() if path.name != "__pycache__"]) <= 20


def test_a_file_name_stands_for_one_thing() -> None:
    """Only `base.py`, by convention a package's interface, is there twice; and no two names differ by an s alone."""
    names = [path.stem for path in sources().values() if path.stem not in ("__init__", "__main__", "base")]
    assert len(names) >= 100
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert [name for name in names if f"{name}s" in names] == []


def test_a_class_name_stands_for_one_class() -> None:
    names: dict[str, list[str]] = {}
    for module, path in sources().items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                names.setdefault(node.name.lstrip("_"), []).append(module)
    assert len(names) >= 200
    assert {name: modules for name, modules in names.items() if len(modules) > 1} == {}


def test_arrows_only_point_up() -> None:
    place = {name: index for index, name in enumerate(ORDER)}
    wrong = [
        f"{module}:{line} imports {target}"
        for module in sources()
        if module != "manytune"
        for target, line in arrows(module).items()
        if component(target) == "__init__" or place[component(target)] > place[component(module)]
    ]
    assert not wrong


def test_there_is_no_cycle() -> None:
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " → ".join([*path, module])
        if module not in done:
            for target in arrows(module):
                follow(target, (*path, module))
            done.add(module)

    for module in sources():
        follow(module, ())
    assert done == set(sources())


@cache
def light() -> dict[str, str]:
    """Each module that is loaded with `STARTS` → the one that loads it; an import inside a function does not count."""
    found = dict.fromkeys(STARTS, "")
    todo = list(STARTS)
    while todo:
        module = todo.pop()
        targets = {each.target for each in imports(module) if each.at_start and not each.for_types} & set(sources())
        targets |= {target.rpartition(".")[0] for target in targets} & set(sources())  # importing a.b loads a
        todo += targets - found.keys()
        found |= {target: module for target in targets - found.keys()}
    return found


def test_what_commands_start_with_imports_nothing_heavy() -> None:
    assert len(light()) >= 40
    wrong = [
        f"{module}:{each.line} (loaded by {by}) imports {each.target}"
        for module, by in light().items()
        for each in imports(module)
        if each.at_start and not each.for_types and each.target.split(".")[0] in HEAVY
    ]
    assert not wrong


def test_a_fresh_interpreter_loads_nothing_heavy() -> None:
    program = f"""
import importlib, sys
for module in {sorted(light())!r}:
    importlib.import_module(module)
    heavy = sorted({set(HEAVY)!r} & set(sys.modules))
    assert not heavy, f"{{module}} loads {{heavy}}"
print(len(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > len(light())


@pytest.mark.parametrize(("who", "whom"), sorted(FORBIDDEN.items()))
def test_some_never_know_of_others(who: str, whom: set[str]) -> None:
    modules = [module for module in sources() if within(module, {who})]
    assert modules
    wrong = [
        f"{module}:{each.line} imports {each.target}"
        for module in modules
        for each in imports(module)
        if within(each.target, whom)
    ]
    assert not wrong


def _hands_on(node: ast.stmt, root: bool) -> bool:
    """Whether a statement of an `__init__` file is a docstring, an import, or `__all__`."""
    match node:
        case ast.Expr(ast.Constant(str())) | ast.Import() | ast.ImportFrom():
            return True
        case ast.Assign([ast.Name("__all__")]) | ast.AnnAssign(ast.Name("__all__")):
            return True
        case ast.If(test, body, []) if "TYPE_CHECKING" in ast.dump(test):
            return all(_hands_on(each, root=False) for each in body)
        case ast.FunctionDef("__getattr__" | "__dir__"):  # PEP 562: the package's own names, when first used
            return root
        case ast.Assign([ast.Name()], ast.Dict()) | ast.AnnAssign(ast.Name(), _, ast.Dict()):
            return root  # the table that it reads: name → module
    return False


def test_init_files_only_hand_names_on() -> None:
    files = sorted(PACKAGE.rglob("__init__.py"))
    assert len(files) >= 6
    wrong = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in files
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if not _hands_on(node, root=path.parent == PACKAGE)
    ]
    assert not wrong


def test_every_folder_is_a_package() -> None:
    assert {path.parent for path in PACKAGE.rglob("*.py")} == {path.parent for path in PACKAGE.rglob("__init__.py")}


def test_a_file_of_more_than_500_lines_has_a_reason() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text(encoding="utf-8").splitlines())
        for path in sources().values()
    }
    assert {name for name, length in lengths.items() if length > 500} == set(LONG_FILES)


UNSAFE = {
    "pickle": "what is unpickled can run code",
    "shelve": "it unpickles",
    "marshal": "it crashes on what is not its own",
    "dill": "it unpickles",
    "joblib": "it unpickles",
}
UNSAFE_CALLS = {
    "torch.load": "it unpickles: use safetensors",
    "yaml.load": "it may build any object: use yaml.safe_load",
    "yaml.unsafe_load": "it builds any object: use yaml.safe_load",
    "eval": "it runs what it is given",
    "exec": "it runs what it is given",
    "os.system": "it gives a name to a shell",
}


@pytest.mark.parametrize("module", sorted(sources()))
def test_nothing_is_used_that_could_run_what_it_reads(module: str) -> None:
    found = [f"line {each.line}: {each.target}" for each in imports(module) if each.target.split(".")[0] in UNSAFE]
    for node in ast.walk(ast.parse(sources()[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in UNSAFE_CALLS or (name.startswith("subprocess.") and "shell=True" in ast.unparse(node)):
                found.append(f"line {node.lineno}: {name}")
        elif isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            value = ast.unparse(node.value)
            if value != "False":
                found.append(f"line {node.lineno}: {node.arg}={value}")
    assert found == []


# Where the name of one method may stand in code, beside the method's own file. Kernels and banks know low-rank updates;
# the tensors that runs train have peft's names.
MAY_SAY_LORA = {
    "methods.lora": "the method",
    "methods.dora": "which is LoRA and more",
    "methods.registry": "the table of methods",
    "methods.adaptation": "names of tensors in snapshots, and the stream of keyed dropout",
    "packing": "the kernels",
    "storage.artifacts": "keys that earlier versions wrote",
}


def _names(path: Path) -> Iterator[tuple[int, str]]:
    """Identifiers and texts of a source file, docstrings aside."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if id(node) in docstrings:
            continue
        for value in vars(node).values():
            if isinstance(value, str):
                yield getattr(node, "lineno", 0), value


def test_nothing_else_knows_a_single_method() -> None:
    """Whoever needs something of a method asks the run's method object."""
    seen, wrong = 0, []
    for module, path in sources().items():
        found = [(line, name) for line, name in _names(path) if "lora" in name.lower() or "bitfit" in name.lower()]
        seen += len(found)
        if not within(module, {*MAY_SAY_LORA, "methods.bitfit"}):
            wrong += [f"{module}:{line} {name!r:.60}" for line, name in found]
    templates = [path for path in PACKAGE.rglob("*") if path.suffix in {".html", ".css", ".js"}]
    assert len(templates) >= 5
    wrong += [path.name for path in templates if re.search("lora|bitfit", path.read_text("utf-8"), re.IGNORECASE)]
    assert seen >= 30
    assert not wrong
