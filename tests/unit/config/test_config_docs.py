"""docs/configuration.md is the schema, and every key of the schema does something."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rlhf.config import schema as config

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ROOT / "scripts" / "document_config.py"
SECTIONS = [
    value for value in vars(config).values() if isinstance(value, type) and dataclasses.is_dataclass(value)
]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("document_config", SCRIPT)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_an_old_page_is_noticed(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "configuration.md"
    old.write_text("old")
    monkeypatch.setattr(script, "ROOT", tmp_path)
    monkeypatch.setattr(script, "TARGET", old)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    assert script.main() == 1
    assert old.read_text() == "old"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT)])
    assert script.main() == 0
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--check"])
    assert script.main() == 0


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_field_and_section_has_a_docstring(script: ModuleType, section: type) -> None:
    source = script.schema()
    nodes = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}
    fields = script.all_fields(source, nodes, section.__name__)
    assert [field.name for field in fields] == [field.name for field in dataclasses.fields(section)]
    assert [field.name for field in fields if not field.doc] == []
    assert ast.get_docstring(nodes[section.__name__])


def test_every_key_is_on_the_page(script: ModuleType) -> None:
    page = script.render(script.schema())

    def keys(section: type, prefix: str) -> list[str]:
        found = []
        for field in dataclasses.fields(section):
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            if dataclasses.is_dataclass(default):
                found += keys(type(default), f"{prefix}{field.name}.")
            else:
                found.append(f"{prefix}{field.name}")
        return found

    missing = [key for key in keys(config.Config, "") if f"| `{key}` |" not in page]
    assert missing == []
    assert "| `dpo.learning_rate` | number > 0 | `5.0e-7` |" in page
    assert (
        "| `pair.strategy` | `best_worst`, `best_random`, `best_second`, `best_sigma`, `random` | `best_worst` |"
        in page
    )


def names_used() -> set[str]:
    """Attributes and string constants of all code but the schema."""
    used: set[str] = set()
    for path in (ROOT / "rlhf").rglob("*.py"):
        if path.parent.name == "config" and path.name in ("schema.py", "training.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                used.add(node.value)
    return used


def test_no_key_is_dead() -> None:
    used = names_used()
    dead = [f"{s.__name__}.{f.name}" for s in SECTIONS for f in dataclasses.fields(s) if f.name not in used]
    assert dead == [], "nothing reads these keys: use them or remove them"
