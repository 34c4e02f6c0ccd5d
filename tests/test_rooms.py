"""Files import only what stands above them in this list, so that each can be read without the rest.

vlpt.py -> data_stub.py -> readers/ -> training/ -> train_min.py -> transfer/ -> experiments/
-> docs/
"""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ["vlpt", "data_stub", "readers", "training", "train_min", "transfer", "experiments", "docs"]
FILES = sorted(
    path
    for room in ROOMS
    for path in [ROOT / f"{room}.py", *(ROOT / room).glob("**/*.py")]
    if path.is_file()
)
ONLY = {  # what a file may import beside Python's own library
    "vlpt": {"torch", "torchvision", "safetensors"},  # safetensors where a file needs it
    "data_stub": {"vlpt", "numpy", "PIL", "torch"},
    "test_vlpt": {"vlpt", "numpy", "torch", "torchvision", "pytest", "hypothesis", "scipy"},
}
# What transfer/ may import of the trainer: options, errors of one line, the checkpoint of a run.
TRAINING_IN_TRANSFER = {"training.options", "training.runs", "training.weights"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path) for path in FILES}


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, also inside functions, in full."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: expected absolute imports"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def project_modules(path: Path) -> set[str]:
    """The modules of this project that a file imports."""
    modules = set()
    for name in imports(path):
        candidates = {name, name.rpartition(".")[0]} & MODULES
        if candidates:
            modules.add(max(candidates, key=len))
    return modules


def test_the_list_of_rooms_is_complete():
    assert len(FILES) > 20 and {name.split(".")[0] for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_up_the_list_and_never_down(path):
    own = ROOMS.index(module_name(path).split(".")[0])
    for name in project_modules(path):
        assert ROOMS.index(name.split(".")[0]) <= own, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "transfer"], ids=module_name)
def test_of_the_trainer_a_detector_imports_little(path):
    names = {name for name in project_modules(path) if name.startswith(("training", "train_"))}
    assert names <= TRAINING_IN_TRANSFER


def test_no_imports_go_in_a_circle():
    graph = {module_name(path): project_modules(path) - {module_name(path)} for path in FILES}
    while graph:
        leaves = {name for name, needed in graph.items() if not needed & graph.keys()}
        assert leaves, f"a circle among {sorted(graph)}"
        graph = {name: needed for name, needed in graph.items() if name not in leaves}


@pytest.mark.parametrize(("module", "allowed"), ONLY.items())
def test_the_core_needs_few_packages(module, allowed):
    packages = {name.split(".")[0] for name in imports(ROOT / f"{module}.py")}
    assert packages - set(sys.stdlib_module_names) - {"__future__"} <= allowed


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_nothing_changes_where_python_looks_for_modules(path):
    assert "sys.path" not in path.read_text("utf-8")
