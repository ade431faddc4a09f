"""The layer table of the architecture: imports go down only, and what lies at the edge stays in its one file.

Modules are read, not imported: an import inside a function counts like one at the top.
"""

import ast
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What may import what: a module imports from its own layer and from those above it in this list.
LAYERS = [
    ("errors", "dtypes", "config", "version"),
    ("cluster", "transport"),
    ("graph",),
    ("ops",),
    ("gradients", "control_flow_gradients", "compiler"),
    ("runtime",),
    ("distributed",),
    ("session", "fetches"),
    ("train", "profiler"),
    ("cli", "__main__"),
    # The front door, mpirt/__init__.py, and TensorFlow's public namespaces (tf.nn, tf.math): they gather names.
    (
        "mpirt", "app", "collective", "debugging", "flags", "initializers", "linalg", "logging", "losses", "math", "nn", "queue", "random",
        "sparse", "summary", "test", "v2_switches",
    ),  # fmt: skip
]
LAYER_OF = {name: layer for layer, names in enumerate(LAYERS) for name in names}

# Packages that only one file imports.
EDGES = {"mpi4py": "mpirt/transport/mpi.py", "cupy": "mpirt/runtime/device.py", "cupyx": "mpirt/runtime/device.py"}

# Cycles that are wanted: an import inside a function, of what the importer's users expect as its method.
METHODS = {
    ("mpirt.graph.graph", "mpirt.graph.graph_def"): "Graph.as_graph_def(), as TensorFlow has it",
    ("mpirt.graph.operation", "mpirt.graph.graph_def"): "Operation.node_def, as TensorFlow has it",
}

# Written by protoc, in its own words.
GENERATED = "_pb2.py"


@dataclass(frozen=True)
class Import:
    """``importer`` imports the module ``imported`` on ``line``; ``at_run_time`` unless it is only for type checkers."""

    importer: str
    imported: str
    path: str
    line: int
    at_run_time: bool

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.importer} imports {self.imported}"


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; a package stands for its ``__init__``."""
    found = {}
    for path in sorted((ROOT / "mpirt").rglob("*.py")):
        if not path.name.endswith(GENERATED):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def imports() -> list[Import]:
    return [found for name, path in modules().items() for found in _imports_of(name, path)]


def _imports_of(name: str, path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(), str(path))
    for_type_checkers = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            # "from mpirt.graph import shapes" imports a module, "from mpirt.graph import Graph" a name out of one.
            targets = [full if (full := f"{base}.{alias.name}") in modules() else base for alias in node.names]
        else:
            continue
        for target in sorted(set(targets)):
            yield Import(name, target, str(path.relative_to(ROOT)), node.lineno, id(node) not in for_type_checkers)


def layer(module: str) -> int:
    parts = module.split(".")
    return LAYER_OF.get(parts[1] if len(parts) > 1 else parts[0], len(LAYERS))


def test_every_module_has_a_layer():
    without = {name.split(".")[1] for name in modules() if "." in name} - LAYER_OF.keys()
    assert not without, f"give these a place in LAYERS, above: {sorted(without)}"


def test_imports_go_down_only():
    inside = [i for i in imports() if i.imported.split(".")[0] == "mpirt"]
    upward = [i for i in inside if layer(i.imported) > layer(i.importer)]
    assert not upward, "imports that go up:\n" + "\n".join(
        f"{i} (layer {layer(i.importer)} from {layer(i.imported)})" for i in upward
    )


def test_no_module_imports_itself_round_a_corner():
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for found in imports():
        # A package whose __init__ gathers names from its own modules is above them: "from mpirt.graph import Graph" in
        # mpirt/graph/shapes.py would be a cycle, "from mpirt.graph.graph import Graph" is none.
        wanted = (found.importer, found.imported) in METHODS
        if found.at_run_time and not wanted and found.imported in graph and found.imported != found.importer:
            graph[found.importer].add(found.imported)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("modules import each other: " + " <- ".join(error.args[1]), pytrace=False)


@pytest.mark.parametrize("package", sorted(EDGES))
def test_an_edge_is_imported_in_one_file_only(package):
    elsewhere = [str(i) for i in imports() if i.imported.split(".")[0] == package and i.path != EDGES[package]]
    assert not elsewhere, f"only {EDGES[package]} may import {package}:\n" + "\n".join(elsewhere)


def test_importing_mpirt_starts_nothing():
    program = """
        import sys, threading
        import mpirt
        mpi = sys.modules.get("mpi4py.MPI")
        assert mpi is None or not mpi.Is_initialized(), "MPI is initialised"
        assert "cupy" not in sys.modules, "cupy is imported"
        assert threading.active_count() == 1, threading.enumerate()
        for package in ("sklearn", "tensorboard.plugins", "tensorflow", "torch", "multiprocessing.pool"):
            assert package not in sys.modules, f"{package} is imported"
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr
