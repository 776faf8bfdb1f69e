# SPDX-License-Identifier: Apache-2.0
"""The rules of the house, checked on the source: who may import whom, who may import torch, sizes, a README per room."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ziggurat"

# A room may import rooms that stand before it, and itself. The ground floor is the single files.
GROUND_FLOOR = ("errors", "units", "clock", "registry", "durable")
ROOMS = (
    *(
        "programs",
        "memory",
        "fabric",
        "hardware",
        "workload",
        "scheduling",
        "simulation",
        "kernels",
        "quantization",
        "accelerators",
    ),
    *("engine", "server", "cluster", "training", "federation", "recall", "catalog", "cli"),
)
# Neighbours on one floor that do not know each other: "later: earlier".
STRANGERS = {("kernels", "simulation"), ("training", "server"), ("training", "cluster"), ("recall", "federation")}
ORDER = {name: rank for rank, name in enumerate((*GROUND_FLOOR, *ROOMS))}

NO_TORCH = (*GROUND_FLOOR, "programs", "memory", "fabric", "hardware", "workload", "scheduling", "simulation")
# These may use torch inside a function, so that `--help` and `plan` stay quick, and never when imported.
NO_TORCH_AT_IMPORT = ("catalog", "cli")
HEAVY = ("torch", "transformers")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 40
# Offenders that are known and will be mended: "path" or "path:function" -> lines today. The lists may only shrink.
LONG_FILES: dict[str, int] = {}
LONG_FUNCTIONS: dict[str, int] = {}


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def room_of(path: Path) -> str | None:
    """The room of a file; None for the package's own facade, which hands out names of higher rooms lazily."""
    parts = path.relative_to(PACKAGE).parts
    if len(parts) == 1:
        return None if parts[0] in ("__init__.py", "__main__.py") else path.stem
    return parts[0]


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imported(tree: ast.AST, path: Path, *, top_level_only: bool = False) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, those inside functions too; ``from a import b`` gives ``a`` and ``a.b``."""
    stack = list(ast.iter_child_nodes(tree))
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the full name"
            assert node.module is not None
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)
        elif top_level_only and (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(node)):
            continue
        stack.extend(ast.iter_child_nodes(node))


def trees() -> Iterator[tuple[Path, str, ast.Module]]:
    for path in sources():
        room = room_of(path)
        if room is not None:
            yield path, room, parsed(path)


def test_every_room_has_a_place_in_the_order() -> None:
    rooms = {room for _, room, _ in trees()}
    assert rooms <= set(ORDER), f"not in the order of rooms: {sorted(rooms - set(ORDER))}"


def test_imports_point_one_way() -> None:
    wrong = []
    for path, room, tree in trees():
        for line, module in imported(tree, path):
            parts = module.split(".")
            if parts[0] != "ziggurat" or len(parts) < 2 or parts[1] not in ORDER or parts[1] == room:
                continue
            if ORDER[parts[1]] > ORDER[room] or (room, parts[1]) in STRANGERS:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {parts[1]}")
    assert not wrong, "\n".join(sorted(set(wrong)))


def test_rooms_without_torch_do_not_name_it() -> None:
    wrong = []
    for path, room, tree in trees():
        if room not in NO_TORCH and room not in NO_TORCH_AT_IMPORT:
            continue
        for line, module in imported(tree, path, top_level_only=room in NO_TORCH_AT_IMPORT):
            if module.split(".")[0] in HEAVY:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {module}")
    assert not wrong, "\n".join(wrong)


def test_rooms_without_torch_load_without_it() -> None:
    modules = []
    for path, room, _ in trees():
        if room in NO_TORCH or room in NO_TORCH_AT_IMPORT or path == PACKAGE / "kernels" / "__init__.py":
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            if not dotted.endswith("__main__"):
                modules.append(dotted)
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, f'importing {name} loads torch'\n"
        "from ziggurat import kernels\n"
        "kernels.describe('auto')\n"
        "assert 'torch' not in sys.modules, 'the native kernels load torch'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def functions(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """(qualified name, lines without decorators and docstring) of every function; a nested one counts by itself only."""
    stack: list[tuple[str, ast.AST]] = [("", tree)]
    while stack:
        prefix, parent = stack.pop()
        for node in ast.iter_child_nodes(parent):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{prefix}{node.name}"
                stack.append((f"{name}.", node))
                if not isinstance(node, ast.ClassDef):
                    yield name, own_lines(node)
            else:
                stack.append((prefix, node))


def own_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    lines = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    for child in node.body:
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            lines -= (child.end_lineno or child.lineno) - child.lineno + 1
    return lines


def compare(found: dict[str, int], allowed: dict[str, int], limit: int) -> None:
    grown = {name: lines for name, lines in found.items() if lines > allowed.get(name, limit)}
    mended = [name for name in allowed if found.get(name, 0) <= limit]
    assert not grown, f"over {limit} lines: {grown}"
    assert not mended, f"mended, take them off the allow-list: {mended}"


def test_files_are_short() -> None:
    found = {}
    for folder in (PACKAGE, ROOT / "tests", ROOT / "scripts", ROOT / "native"):
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".js", ".css") and "CMakeFiles" not in path.parts:
                found[str(path.relative_to(ROOT))] = len(path.read_text(encoding="utf-8").splitlines())
    compare(found, LONG_FILES, MAX_FILE_LINES)


def test_functions_are_short() -> None:
    found: dict[str, int] = {}
    for path in sources():
        for name, lines in functions(parsed(path)):
            key = f"{path.relative_to(ROOT)}:{name}"
            found[key] = max(lines, found.get(key, 0))
    compare(found, LONG_FUNCTIONS, MAX_FUNCTION_LINES)


def test_every_room_has_a_readme() -> None:
    rooms = {PACKAGE / room for _, room, _ in trees() if (PACKAGE / room).is_dir()}
    missing = sorted(str(room.relative_to(ROOT)) for room in rooms if not (room / "README.md").is_file())
    assert not missing, f"no README.md: {missing}"


def test_every_source_names_its_licence() -> None:
    missing = []
    for folder in (PACKAGE, ROOT / "tests", ROOT / "scripts", ROOT / "native"):
        for path in folder.rglob("*"):
            if path.suffix in (".py", ".cpp", ".h", ".sh") and "CMakeFiles" not in path.parts:
                head = path.read_text(encoding="utf-8").splitlines()[:2]
                if not any("SPDX-License-Identifier: Apache-2.0" in line for line in head):
                    missing.append(str(path.relative_to(ROOT)))
    assert not missing, f"no licence line: {missing}"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def f():\n    import torch\n", ["torch"]),
        ("from torch import nn\n", ["torch", "torch.nn"]),
        ("class A:\n    def f(self):\n        from ziggurat import engine\n", ["ziggurat", "ziggurat.engine"]),
    ],
)
def test_the_walk_sees_lazy_imports(source: str, expected: list[str]) -> None:
    assert [module for _, module in imported(ast.parse(source), Path("x.py"))] == expected
