"""Imports point one way (docs/design.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "rlhf"
HEAVY = {"torch", "transformers", "trl", "vllm", "deepspeed", "accelerate", "datasets", "safetensors", "tokenizers"}
LIGHT = ["errors", "config", "data", "run", "preflight", "loop", "command", "launch", "stages", "evaluation"]
"""Rooms and files that the driver imports."""
LIGHT_FILES = ["iterate", "stage", "generate", "score", "pair", "answer", "rewardbench", "bestofn", "check"]
LAYERS = [
    {"errors"},
    {"config"},
    {"data", "evaluation"},
    {"models"},
    {"run"},
    {"launch"},
    {"preflight", "loop"},
    {"command"},
    {"iterate", "check"},
    {"stage", "generate", "score", "pair", "answer", "rewardbench", "bestofn"},
]
"""Each may import those above it and its own."""
ENGINES = ("generation", "scoring", "training")


def modules():
    return sorted(PACKAGE.rglob("*.py"))


def imported(path, everywhere):
    """Names a module imports: at its top, or also inside functions."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if everywhere else _outside_functions(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            yield node.module
            if node.module == "rlhf":
                yield from (f"rlhf.{alias.name}" for alias in node.names)


def _outside_functions(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _outside_functions(child)


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def parts_imported(path, everywhere=True):
    return {name.split(".")[1] for name in imported(path, everywhere) if name.startswith("rlhf.")}


@pytest.mark.parametrize("path", [p for p in modules() if part_of(p) in (*LIGHT, *LIGHT_FILES)])
def test_no_heavy_import_at_the_top_of_what_the_driver_loads(path):
    found = {name.split(".")[0] for name in imported(path, everywhere=False)} & HEAVY
    assert not found, f"{path} imports {found} at its top"


@pytest.mark.parametrize("path", modules())
def test_layers_import_downwards_only(path):
    part = part_of(path)
    level = next((i for i, layer in enumerate(LAYERS) if part in layer), None)
    if level is None:
        return
    allowed = set().union(*LAYERS[: level + 1])
    assert parts_imported(path, everywhere=False) <= allowed, path


@pytest.mark.parametrize("path", [p for p in modules() if part_of(p) in ENGINES])
def test_engines_do_not_import_each_other_or_the_driver(path):
    forbidden = {"loop", "command", "iterate", "launch", "stages", *ENGINES} - {part_of(path)}
    assert not parts_imported(path) & forbidden, path


@pytest.mark.parametrize("path", [p for p in modules() if part_of(p) in ("iterate", "loop", "run")])
def test_the_loop_names_stages_and_never_imports_them(path):
    assert "stages" not in parts_imported(path)
