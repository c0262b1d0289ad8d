"""The layers of ARCHITECTURE.md, read from the imports: core <- families <- nodes, cli <- launch."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "vla_ros"
FAMILIES = tuple(name for name in ("robots", "cameras", "teleop", "recording", "policies", "sim") if (PACKAGE / name).is_dir())
MAY_IMPORT = {
    "core": {"core"},
    **{family: {"core", family} for family in FAMILIES},
    "training": {"core", "policies", "recording", "training"},  # the simulator only through a lazy import string
    "nodes": {"core", "nodes", *FAMILIES},
    "cli": {"core", "nodes", "cli", "training", *FAMILIES},
}
ROS = {"rclpy", "launch", "launch_ros", "ament_index_python", "cv_bridge", "rcl_interfaces", "builtin_interfaces", "std_srvs"}
CORE_MAY_USE = {"numpy", "yaml", "xacro", *sys.stdlib_module_names}
BANNED_NAMES = ("utils", "manager", "helper")
FILE_LINES, NODE_LINES, FUNCTION_LINES = 250, 200, 40
SOURCES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yields (absolute dotted module, line) of every import in a file, wherever it stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write vla_ros. in full"
            yield node.module, node.lineno
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def layer(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", [path for path in SOURCES if path.parent != PACKAGE], ids=named)
def test_imports_only_lower_layers(path: Path):
    allowed = MAY_IMPORT[layer(path)]
    for module, line in imports(path):
        parts = module.split(".")
        if parts[0] == "vla_ros" and len(parts) > 1:
            assert parts[1] in allowed, f"{named(path)}:{line}: {layer(path)} may not import {module}; it may import {sorted(allowed)}"
        elif layer(path) not in ("nodes", "cli"):
            ros = parts[0] in ROS or parts[0].endswith("_msgs")
            assert not ros, f"{named(path)}:{line}: {module}; ROS belongs to nodes/ and cli/"
        if layer(path) == "core" and parts[0] != "vla_ros":
            assert parts[0] in CORE_MAY_USE, f"{named(path)}:{line}: core uses numpy, yaml, xacro and the standard library, not {module}"


@pytest.mark.parametrize("family", [*FAMILIES, "training"])
def test_a_family_is_imported_without_its_sdks(family: str):
    for module, line in imports(PACKAGE / family / "__init__.py"):
        assert module.split(".")[0] in {"vla_ros", "__future__", *CORE_MAY_USE}, f"{family}/__init__.py:{line} loads {module} for everybody"


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_size_and_names(path: Path):
    text = path.read_text()
    limit = NODE_LINES if path.stem.endswith("_node") else FILE_LINES
    assert len(text.splitlines()) <= limit, f"{named(path)} is longer than {limit} lines"
    assert not any(word in path.stem for word in BANNED_NAMES), f"{named(path)} says nothing about what it holds"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1 - docstring_lines(node)
            assert lines <= FUNCTION_LINES, f"{named(path)}:{node.lineno}: {node.name} has {lines} lines, {FUNCTION_LINES} are the limit"
        if isinstance(node, ast.ExceptHandler):
            silent = all(isinstance(statement, ast.Pass) for statement in node.body)
            catches_all = node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
            assert not (silent and catches_all), f"{named(path)}:{node.lineno} hides errors"


def docstring_lines(node: ast.FunctionDef) -> int:
    first = node.body[0]
    is_text = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first.end_lineno - first.lineno + 1 if is_text else 0


@pytest.mark.parametrize("path", SOURCES, ids=named)
def test_nothing_unpickles(path: Path):
    assert "pickle" not in {module.split(".")[0] for module, _ in imports(path)}
    calls = [ast.unparse(node.func) for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert "torch.load" not in calls, f"{named(path)}: weights travel as safetensors"


def test_launch_files_only_name_nodes():
    ours = ("vla_ros.core", "vla_ros.nodes.launching", "vla_ros.cli.environment")
    allowed = ("launch", "launch_ros", "ament_index_python", "pathlib", *ours)
    for path in sorted((ROOT / "launch").glob("*.launch.py")):
        for module, line in imports(path):
            assert any(module == name or module.startswith(f"{name}.") for name in allowed), f"{named(path)}:{line}: {module}"
