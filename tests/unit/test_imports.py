"""Imports point one way (`tool.importlinter` in pyproject.toml), and nothing that the driver loads imports
torch."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# Where a distribution has another name than what is imported of it.
DISTRIBUTIONS = {"hydra": "hydra-core", "vl_convert": "vl-convert-python", "yaml": "pyyaml"}

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "rlhf"
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "vllm",
    "deepspeed",
    "accelerate",
    "datasets",
    "safetensors",
    "tokenizers",
}
TORCH_FREE_ROOMS = (
    "config",
    "data",
    "evaluation",
    "run",
    "loop",
    "preflight",
    "command",
    "launch",
    "stages",
    "view",
)
TORCH_FREE_FILES = (
    "models/folder.py",
    "models/weight_files.py",
    "models/kinds.py",
    "models/heads.py",
    "models/context.py",
    "models/forward_tokens.py",
    "models/shape.py",
    "models/template_files.py",
    "generation/request.py",
    "generation/vllm_args.py",
    "training/memory_forecast.py",
)


def torch_free_files():
    """Files that the driver, or a stage without a model, imports."""
    files = list(PACKAGE.glob("*.py"))
    files += [path for room in TORCH_FREE_ROOMS for path in (PACKAGE / room).glob("*.py")]
    return sorted(files + [PACKAGE / name for name in TORCH_FREE_FILES])


def imported_at_the_top(path):
    """Names that importing a module imports; what stands in functions waits until it is needed."""
    for node in _outside_functions(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: absolute imports only"
            yield node.module


def _outside_functions(node):
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _outside_functions(child)


@pytest.mark.parametrize("path", torch_free_files(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_heavy_import_at_the_top_of_what_the_driver_loads(path):
    heavy = {name.split(".")[0] for name in imported_at_the_top(path)} & HEAVY
    assert not heavy, f"{path} imports {heavy} at its top"


def test_every_room_is_torch_free_or_known_to_be_heavy():
    heavy_rooms = {"generation", "scoring", "training", "models", "world"}
    rooms = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert rooms == heavy_rooms | set(TORCH_FREE_ROOMS), "say of a new room which it is"


def test_imports_point_one_way():
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stdout[done.stdout.find("Broken contracts") :] + done.stderr


def test_the_names_of_the_stages_functions_exist():
    """The table names functions as text, so that the driver imports none of them."""
    from rlhf.run.stage_table import STAGES

    for name, stage in STAGES.items():
        module, _, function = stage.function.partition(":")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        functions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert function in functions, f"{name}: {stage.function}"


def third_party(*folders):
    """The distributions that the Python files of some folders import, functions included."""
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    # A script also finds those that lie beside it.
    ours = {
        "rlhf",
        "scripts",
        "tests",
        "benchmarks",
        *(path.stem for path in (ROOT / "scripts").rglob("*.py")),
        *(path.name for path in (ROOT / "scripts").iterdir() if path.is_dir()),
    }
    names = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names.add(node.module)
    packages = {name.split(".")[0] for name in names} - ours - sys.stdlib_module_names
    return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in packages}


def names_in(lines):
    return {re.match(r"[\w.-]+", line)[0] for line in lines if re.match(r"\w", line)}


def test_everything_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = names_in(project["dependencies"])
    optional = {"vllm", "wandb", "ray"}
    extras = {name for lines in project["optional-dependencies"].values() for name in names_in(lines)}
    assert optional <= extras
    for_development = set()
    for name in ("dev.txt", "mutate.txt", "trackers.txt"):
        for_development |= names_in((ROOT / "requirements" / name).read_text(encoding="utf-8").splitlines())
    assert third_party("rlhf") - needed - optional == set()
    assert third_party("rlhf", "scripts", "tests") - needed - optional - for_development == set()
    assert needed - third_party("rlhf") == set()
    pinned = set()
    for path in (ROOT / "requirements").glob("*.txt"):
        pinned |= names_in(path.read_text(encoding="utf-8").splitlines())
    assert needed - pinned == set()


def test_text_is_read_and_written_in_utf8_whatever_the_locale():
    """In a locale without UTF-8 a file that is opened without an encoding cannot hold what ours hold."""
    without = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or not _opens_text(node):
                continue
            if "encoding" not in {keyword.arg for keyword in node.keywords}:
                without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert without == []


def _opens_text(call):
    if isinstance(call.func, ast.Attribute) and call.func.attr in ("read_text", "write_text"):
        return True
    if not isinstance(call.func, ast.Name) or call.func.id != "open":
        return False
    modes = [argument.value for argument in call.args[1:] if isinstance(argument, ast.Constant)]
    return not any("b" in mode for mode in modes)


@pytest.mark.parametrize("module", ["iterate", "check", "launch.preload_rules"])
def test_what_reads_no_shard_does_not_wait_for_arrow(module):
    """`--cfg job`, a look, and what calls its rules take half a second in all, and Arrow a third of one."""
    code = f"import sys, rlhf.{module}; print([name for name in ('pyarrow', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
