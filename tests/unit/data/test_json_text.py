"""What is written as JSON can be read by every program: no NaN and no Infinity."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path

import pytest

from rlhf.data.digest import digest_of, sealed, unsealed
from rlhf.data.json_text import json_text
from rlhf.data.responses import Form, write_rows
from rlhf.models.folder import config_text

ROOT = Path(__file__).resolve().parents[3]
NOT_FINITE = {"a": [1.5, math.nan, {"b": (math.inf, -math.inf)}], "c": "NaN"}
AS_NULL = {"a": [1.5, None, {"b": [None, None]}], "c": "NaN"}


def strict(text: str) -> object:
    """JSON as other languages read it."""

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("indent", [None, 1])
def test_numbers_that_are_not_finite_are_null(indent: int | None) -> None:
    assert strict(json_text(NOT_FINITE, indent=indent)) == AS_NULL
    assert strict(json_text({math.inf: 1})) == {"null": 1}
    assert json_text({"b": 1, "a": "é"}, sort_keys=True) == '{"a": "\\u00e9", "b": 1}'
    assert json_text({"a": "é"}, ascii_only=False) == '{"a": "é"}'
    with pytest.raises(TypeError):
        json_text({"a": object()})


@pytest.mark.parametrize("form", list(Form))
def test_a_file_of_rows_holds_none(tmp_path: Path, form: Form) -> None:
    write_rows(tmp_path / "rows", [NOT_FINITE], form)
    written = strict((tmp_path / "rows").read_text())
    assert written == ([AS_NULL] if form is Form.list else AS_NULL)


def test_a_sealed_record_holds_none_and_one_of_before_is_still_read() -> None:
    data = sealed(NOT_FINITE)
    strict(data.decode())
    assert unsealed(data) == AS_NULL
    # As records were written while NaN passed.
    plain = json.loads(json.dumps(NOT_FINITE))
    before = json.dumps(plain | {"seal": digest_of(plain)}).encode()
    assert b"Infinity" in before and unsealed(before) == AS_NULL
    with pytest.raises(ValueError, match="seal"):
        unsealed(before.replace(b"1.5", b"1.6"))


def test_a_model_keeps_its_infinite_limits() -> None:
    # Mamba 2 has such limits; transformers writes them so and reads them back.
    config = {"time_step_limit": [0.0, math.inf], "inner": {"low": -math.inf, "odd": math.nan}}
    assert strict(config_text(config)) == {
        "time_step_limit": [0.0, {"__float__": "Infinity"}],
        "inner": {"low": {"__float__": "-Infinity"}, "odd": {"__float__": "NaN"}},
    }


def writers() -> list[tuple[str, ast.Call]]:
    """Every call of `json.dump` and `json.dumps`, and where it stands."""
    calls = []
    for path in sorted([*ROOT.glob("rlhf/**/*.py"), *ROOT.glob("scripts/**/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("json.dump", "json.dumps"):
                calls.append((str(path.relative_to(ROOT)), node))
    return calls


def test_nothing_else_writes_json() -> None:
    loose = []
    for name, call in writers():
        settings = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        if settings.get("allow_nan") != "False":
            loose.append(name)
    # What is digested is not written, and digests of old records were taken with NaN.
    assert loose == ["rlhf/data/digest.py"]
    assert {name for name, _ in writers()} == {
        "rlhf/data/digest.py",
        "rlhf/data/json_text.py",
        "scripts/setup.py",
    }
