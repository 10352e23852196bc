"""Write docs/configuration.md from the schema: `python scripts/document_config.py [--check]`.

Defaults and meanings are read from the source, so that they stand on the page as they are written (`5.0e-7`);
ranges come from the fields themselves.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the package need not be installed

from rlhf.config import fields as ranges  # noqa: E402

SOURCES = [ROOT / "rlhf" / "config" / name for name in ("schema.py", "training.py")]
TARGET = ROOT / "docs" / "configuration.md"
CHOICES = ROOT / "rlhf" / "config" / "choices.py"


@dataclass
class Field:
    """One key of a section, as written, and the range of a number."""

    name: str
    type: str
    default: str
    doc: str
    within: str = ""


def all_fields(source: str, classes: dict[str, ast.ClassDef], name: str) -> list[Field]:
    """The fields of a dataclass, those it inherits first."""
    fields: list[Field] = []
    for base in classes[name].bases:
        fields += all_fields(source, classes, ast.unparse(base))
    return fields + class_fields(source, classes[name])


def class_fields(source: str, node: ast.ClassDef) -> list[Field]:
    """The fields that a dataclass adds, with the docstrings below them; "" where one is missing."""
    fields = []
    for statement, following in zip(node.body, [*node.body[1:], None], strict=True):
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        doc = ""
        if isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
            doc = " ".join(str(following.value.value).split())
        annotation = ast.unparse(statement.annotation)
        default = yaml_default(source, statement.value) if statement.value else "(required)"
        within = range_of(statement.value) if re.search(r"\b(int|float)\b", annotation) else ""
        if annotation.startswith(("list", "dict")):
            within = ""  # ranges are of numbers; what is in a list is checked with others
        fields.append(Field(statement.target.id, annotation, default, doc, within))
    return fields


def range_of(value: ast.expr | None) -> str:
    """The range of a number as text: what `setting(…, within=NAME)` names, else positive."""
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg == "within":
                return str(getattr(ranges, ast.unparse(keyword.value)))
    return str(ranges.POSITIVE)


def yaml_default(source: str, value: ast.expr) -> str:
    """A default as one would write it in YAML; numbers keep their digits (PyYAML takes 5e-7 for text)."""
    if isinstance(value, ast.Call):
        if value.args:  # setting(0.1, within=…)
            return yaml_default(source, value.args[0])
        factory = next(k.value for k in value.keywords if k.arg in ("default_factory", "factory"))
        if isinstance(factory, ast.Lambda):
            return ast.get_source_segment(source, factory.body) or ""
        return {"list": "[]", "dict": "{}"}.get(ast.unparse(factory), "")
    if isinstance(value, ast.Attribute):
        return value.attr
    if isinstance(value, ast.Constant) and (value.value is None or isinstance(value.value, bool)):
        return {None: "null", True: "true", False: "false"}[value.value]
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return value.value
    return ast.get_source_segment(source, value) or ""


def yaml_type(annotation: str, enums: dict[str, list[str]]) -> str:
    """A type as a reader of YAML knows it."""
    if annotation.startswith("Optional["):
        return yaml_type(annotation[len("Optional[") : -1], enums) + " or null"
    if annotation in enums:
        return ", ".join(f"`{choice}`" for choice in enums[annotation])
    names = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    if annotation.startswith("list["):
        return f"list of {names[annotation[5:-1]]}" if annotation != "list[int]" else "list of whole numbers"
    return names.get(annotation, "mapping" if annotation.startswith("dict") else annotation)


def schema() -> str:
    """The source of all sections."""
    return "\n".join(path.read_text(encoding="utf-8") for path in SOURCES)


def render(source: str) -> str:
    """The whole page."""
    module = ast.parse(source)
    classes = {node.name: node for node in module.body if isinstance(node, ast.ClassDef)}
    enums = {
        node.name: [
            s.targets[0].id
            for s in node.body
            if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
        ]
        for node in ast.parse(CHOICES.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    lines = [
        "# Configuration",
        "",
        "<!-- Generated by scripts/document_config.py from rlhf/config/schema.py; do not edit. -->",
        "",
        "Every key can be set in an experiment's YAML file or on the command line (`dpo.beta=0.05`).",
        "Defaults are the paper's. Write small numbers with a point (`5.0e-7`): YAML takes `5e-7` for text.",
    ]

    def section(prefix: str, name: str) -> None:
        node = classes[name]
        fields = all_fields(source, classes, name)
        lines.extend(
            ["", f"## {prefix or 'Top level'}", "", " ".join((ast.get_docstring(node) or "").split()), ""]
        )
        lines.extend(["| key | type | default | meaning |", "|---|---|---|---|"])
        for field in fields:
            if field.type not in classes:
                key = f"`{prefix + '.' if prefix else ''}{field.name}`"
                cells = (key, f"{yaml_type(field.type, enums)} {field.within}".strip())
                lines.append(
                    "| " + " | ".join(escape(c) for c in (*cells, f"`{field.default}`", field.doc)) + " |"
                )
        for field in fields:
            named = re.fullmatch(r"(dict\[str, )?(\w+)\]?", field.type)
            if named and named[2] in classes:
                section(
                    f"{prefix + '.' if prefix else ''}{field.name}{'.NAME' if named[1] else ''}", named[2]
                )

    section("", "Config")
    return "\n".join(lines) + "\n"


def escape(cell: str) -> str:
    """A table cell must not hold a bare pipe."""
    return cell.replace("|", "\\|")


def main() -> int:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description="Generate docs/configuration.md from the schema.")
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit 1 when the page is out of date"
    )
    page = render(schema())
    if not parser.parse_args().check:
        TARGET.parent.mkdir(exist_ok=True)
        TARGET.write_text(page, encoding="utf-8")
        return 0
    if TARGET.exists() and TARGET.read_text(encoding="utf-8") == page:
        return 0
    print(
        f"{TARGET.relative_to(ROOT)} is out of date: run `python scripts/document_config.py`", file=sys.stderr
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
