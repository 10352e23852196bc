"""The one-token changes that `mutate_modules.py` draws from, and those of them that no test could notice."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cosmic_ray.plugins
import parso.tree
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")

ROOMS = ("command", "config", "data", "evaluation", "launch", "loop", "models", "preflight", "run")

NOT_IN_UNIT_TESTS = {
    "launch/preload": "imports torch and the engines: tests/integration/launch",
    "preflight/tokenizers": "loads tokenizers: tests/integration/preflight",
    "models/comparison": "renders by a tokenizer: tests/integration/scoring",
    "models/engine_folder": "makes folders for vLLM: tests/integration/generation",
    "models/fallback": "loads engines: tests/integration/generation",
}
"""Modules that import no torch at their top and yet are tested with models only."""

HEAVY = {"torch", "transformers", "tokenizers", "safetensors", "datasets"}

# Not `|`: most stand in annotations, which nothing evaluates; the others join sets and mappings.
OPERATORS = [
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt")),
    *(f"ReplaceComparisonOperator_{pair}" for pair in ("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul")),
    *(f"ReplaceBinaryOperator_{pair}" for pair in ("FloorDiv_Div", "Mod_Add", "Pow_Mul", "BitAnd_BitOr")),
    "NumberReplacer",
    "ReplaceAndWithOr",
    "ReplaceOrWithAnd",
    "ReplaceTrueWithFalse",
    "ReplaceFalseWithTrue",
    "ReplaceUnaryOperator_USub_UAdd",
    "ReplaceUnaryOperator_Delete_Not",
    "ReplaceBreakWithContinue",
    "ReplaceContinueWithBreak",
]
"""Names of cosmic-ray's operators: one token becomes another one, or a `not` goes."""

ARITHMETIC = {"arith_expr", "term", "power", "shift_expr", "expr", "and_expr"}
"""Nodes in which an operator stands between two values; elsewhere `*` may be a bare star of a signature."""

Key = tuple[str, str, str, str]
"""Module, function, the line before and after, as `equivalent_mutants.toml` lists them."""


@dataclass(frozen=True)
class Mutant:
    """One change of one module: the `occurrence`-th that cosmic-ray's `operator` offers there.

    `module` is like `data/labels`, `source` its text, `function` like `Labels.read` (empty: the module's own
    lines). `before` is the line to change, without its indentation.
    """

    module: str
    source: str = field(repr=False)
    line: int
    function: str
    before: str
    operator: str
    occurrence: int

    @cached_property
    def text(self) -> str:
        """The whole module with the change in it."""
        text = mutate_code(self.source, operator_named(self.operator), self.occurrence)
        assert isinstance(text, str)
        return text

    @property
    def after(self) -> str:
        """The line as it is then."""
        return self.text.splitlines()[self.line - 1].strip()

    @property
    def key(self) -> Key:
        """What it is known by in the list of equivalents: no line number, no spaces."""
        return (*self.key_of_line, without_spaces(self.after))

    @property
    def key_of_line(self) -> tuple[str, str, str]:
        """The same of all mutants of a line."""
        return self.module, self.function, without_spaces(self.before)


def without_spaces(text: str) -> str:
    """For comparing lines of code however they are set."""
    return "".join(text.split())


def torch_free_modules(project: Path, asked: list[str]) -> list[str]:
    """Modules such as `data/labels` whose room has unit tests, in order; `asked` chooses rooms or modules."""
    modules = []
    for path in sorted((project / "rlhf").glob("*/*.py")):
        module = f"{path.parent.name}/{path.stem}"
        room = path.parent.name
        if asked and room not in asked and module not in asked:
            continue
        if not asked and (room not in ROOMS or module in NOT_IN_UNIT_TESTS):
            continue
        if path.stem != "__init__" and not imports_at_top(path) & HEAVY:
            modules.append(module)
    return modules


def imports_at_top(path: Path) -> set[str]:
    """The packages that a module imports when it is imported itself."""
    packages = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            packages |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.partition(".")[0])
    return packages


def operator_named(name: str) -> Any:
    """One of cosmic-ray's operators, which its plugins name."""
    return cosmic_ray.plugins.get_operator(f"core/{name}")()


def mutants_of(project: Path, module: str) -> Iterator[Mutant]:
    """Every change that the operators offer in a module."""
    source = (project / "rlhf" / f"{module}.py").read_text()
    lines = source.splitlines()
    functions = function_of_each_line(source)
    nodes = list(ast_nodes(get_ast(source)))
    for name in OPERATORS:
        operator = operator_named(name)
        # counted as `mutate_code` counts them
        occurrence = -1
        for node in nodes:
            for (line, _column), _end in operator.mutation_positions(node):
                occurrence += 1
                if name.startswith("ReplaceBinary") and node.parent.type not in ARITHMETIC:
                    continue
                if is_a_guard(node):
                    continue
                before = lines[line - 1].strip()
                yield Mutant(module, source, line, functions[line], before, name, occurrence)


def is_a_guard(node: Any) -> bool:
    """Whether a value keeps us from mistakes of our own, and nothing that runs depends on it.

    That is so of `frozen=True` and the like in decorators, and of `strict=True` of `zip`, which is given
    columns of one length.
    """
    argument = parso.tree.search_ancestor(node, "argument")
    if argument is not None and argument.children[0].get_code().strip() == "strict":
        return True
    return parso.tree.search_ancestor(node, "decorator") is not None


def function_of_each_line(source: str) -> list[str]:
    """`Class.method` of each line, counted from 1; empty where a line is in no function and no class."""
    names = [""] * (source.count("\n") + 2)

    def name_lines(node: ast.AST, outer: str) -> None:
        for child in ast.iter_child_nodes(node):
            name = outer
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                name = f"{outer}.{child.name}".lstrip(".")
                assert child.end_lineno is not None
                names[child.lineno : child.end_lineno + 1] = [name] * (child.end_lineno + 1 - child.lineno)
            name_lines(child, name)

    name_lines(ast.parse(source), "")
    return names


def listed_equivalents() -> set[Key]:
    """Keys of the mutants that `equivalent_mutants.toml` lists; `becomes` there is one line or several."""
    keys = set()
    for entry in tomllib.loads(EQUIVALENT.read_text())["mutant"]:
        becomes = entry["becomes"]
        assert entry["reason"], entry
        for after in [becomes] if isinstance(becomes, str) else becomes:
            keys.add(
                (entry["module"], entry["function"], without_spaces(entry["line"]), without_spaces(after))
            )
    return keys
