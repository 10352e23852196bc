"""Change one token of a module at a time and see whether its unit tests notice: `make mutate`.

    python scripts/mutate_modules.py [seed=0] [mutants=70] [modules=data,run/lock] [processes=2]

The changes (`<` for `<=`, + for −, a constant plus one, `and` for `or`, …) are cosmic-ray's. A sample of all
that the torch-free modules offer is drawn by the seed. Each mutant is run in a copy of the project against
the unit tests of its module's room, `tests/unit/<room>`, until one fails. Cosmic-ray's own runner has one
test command for all modules and changes the files where they lie; so only its operators are used here.

Prints each mutant that nothing notices, then a table by module. Exit code 1 below 85 % noticed, 2 when the
tests fail without any change. Mutants listed in `equivalent_mutants.toml` change nothing that a test could
see: they are drawn, and neither run nor counted. (`mutate_commit.py` is another thing: chosen breaks of the
commit protocol, each with the test that has to notice.)
"""

from __future__ import annotations

import ast
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from queue import Queue
from typing import Any

import cosmic_ray.plugins
import parso.tree
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[1]
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")

LEAST_NOTICED = 0.85

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

MEMORY_KB = 16 * 2**20
"""Address space of one run of the tests: a mutant that grows for ever ends itself and not the machine."""


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


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: `noticed`, `time` (the tests did not end), `survived` or `equivalent`."""

    mutant: Mutant
    outcome: str


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


def test_files(project: Path, module: str) -> list[str]:
    """The unit tests of a module's room; those of its own name come first, then those that name it."""
    room, _, name = module.partition("/")
    folder = project / "tests" / "unit" / room

    def distance(path: Path) -> tuple[int, str]:
        if path.stem.startswith(f"test_{name}"):
            return 0, path.name
        return 1 if f"{room}.{name}" in path.read_text() else 2, path.name

    return [str(path.relative_to(project)) for path in sorted(folder.glob("test_*.py"), key=distance)]


class Runner:
    """Runs unit tests in copies of the project, as many at a time as there are copies."""

    def __init__(self, folder: Path, processes: int) -> None:
        self.copies: Queue[Path] = Queue()
        self.running: set[subprocess.Popen[str]] = set()
        self.first = folder / "copy_0"
        left_out = shutil.ignore_patterns(".*", "__pycache__", "runs", "outputs", "multirun", "build")
        shutil.copytree(ROOT, self.first, ignore=left_out)
        # Compiled files that are held against the source's content, not its size and second: a mutant may
        # have both of the original.
        command = [sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "rlhf"]
        subprocess.run(command, cwd=self.first, check=True)
        self.seconds: dict[str, float] = {}
        self.processes = processes

    def first_run(self, rooms: list[str]) -> None:
        """All must pass without a change. Their time tells how long a mutant may take."""
        with ThreadPoolExecutor(self.processes) as pool:
            passed = list(pool.map(self._passes, rooms))
        if not all(passed):
            print("mutate: tests fail without any change: mend them first.", file=sys.stderr)
            sys.exit(2)
        for number in range(1, self.processes):
            self.copies.put(Path(shutil.copytree(self.first, self.first.with_name(f"copy_{number}"))))
        self.copies.put(self.first)

    def _passes(self, room: str) -> bool:
        begin = time.monotonic()
        code, output = self.pytest(self.first, [f"tests/unit/{room}"], seconds=1800, write_compiled=True)
        self.seconds[room] = time.monotonic() - begin
        print(f"tests/unit/{room:<12} {self.seconds[room]:4.0f} s without a change", flush=True)
        if code != 0:
            print(output, file=sys.stderr)
        return code == 0

    def pytest(
        self, copy: Path, files: list[str], seconds: float, write_compiled: bool = False
    ) -> tuple[int | None, str]:
        """pytest's exit code (None: it did not end in time) and what it said."""
        arguments = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--tb=short"]
        # the same examples for every mutant
        arguments += ["--hypothesis-seed=0", *files]
        limited = ["sh", "-c", f'ulimit -v {MEMORY_KB}; exec "$@"', "sh", *arguments]
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        if not write_compiled:
            environment["PYTHONDONTWRITEBYTECODE"] = "1"
        process = subprocess.Popen(
            limited,
            cwd=copy,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self.running.add(process)
        try:
            output, _ = process.communicate(timeout=seconds)
            return process.returncode, output
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            self.end(process)

    def end(self, process: subprocess.Popen[str]) -> None:
        """Ends a run of the tests with all that it started, which may have outlived it."""
        self.running.discard(process)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def verdict(self, mutant: Mutant) -> Verdict:
        """Tests one mutant in a copy that is free."""
        room = mutant.module.partition("/")[0]
        copy = self.copies.get()
        path = copy / "rlhf" / f"{mutant.module}.py"
        original = path.read_text()
        path.write_text(mutant.text)
        try:
            # generous, since other work on the machine may slow everything down
            limit = 60 + 5 * self.seconds[room]
            code, _ = self.pytest(copy, test_files(copy, mutant.module), limit)
        finally:
            path.write_text(original)
            self.copies.put(copy)
        if code is None:
            return Verdict(mutant, "time")
        return Verdict(mutant, "noticed" if code else "survived")

    def verdicts(self, mutants: list[Mutant]) -> Iterator[Verdict]:
        """Verdicts as they come."""
        pool = ThreadPoolExecutor(self.processes)
        try:
            for future in as_completed([pool.submit(self.verdict, mutant) for mutant in mutants]):
                yield future.result()
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(self.running):
                self.end(process)
            raise
        pool.shutdown()


def show(mutant: Mutant, outcome: str) -> None:
    """A mutant as a person reads it."""
    print(f"{outcome}  rlhf/{mutant.module}.py:{mutant.line}  {mutant.function or 'the module itself'}")
    print(f"    - {mutant.before}\n    + {mutant.after}", flush=True)


def print_table(verdicts: list[Verdict]) -> float:
    """One line for each module, and the share noticed of those that are not equivalent."""
    print(f"\n{'module':<28}{'mutants':>8}{'noticed':>9}{'by time':>9}{'equivalent':>12}{'survived':>10}")
    counts: dict[str, Counter[str]] = {}
    for each in verdicts:
        counts.setdefault(each.mutant.module, Counter())[each.outcome] += 1
        counts.setdefault("~all", Counter())[each.outcome] += 1
    for module, count in sorted(counts.items()):
        noticed = count["noticed"] + count["time"]
        print(
            f"{module.lstrip('~'):<28}{count.total():>8}{noticed:>9}{count['time']:>9}"
            f"{count['equivalent']:>12}{count['survived']:>10}"
        )
    total = counts["~all"]
    noticed = total["noticed"] + total["time"]
    return noticed / max(1, noticed + total["survived"])


def main() -> int:
    """Draws, tests, and prints; 1 when too many survive."""
    settings = {"seed": "0", "mutants": "70", "modules": "", "processes": "2"}
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        if name not in settings:
            print(
                f"mutate: {argument!r} is none of {', '.join(f'{key}=' for key in settings)}", file=sys.stderr
            )
            return 2
        settings[name] = value
    asked = [name for name in settings["modules"].split(",") if name]
    equivalents = listed_equivalents()
    with tempfile.TemporaryDirectory() as folder:
        # All is read from the copy: the project may change while this goes on.
        runner = Runner(Path(folder), int(settings["processes"]))
        modules = torch_free_modules(runner.first, asked)
        offered = [mutant for module in modules for mutant in mutants_of(runner.first, module)]
        if not offered:
            print(f"mutate: no torch-free module fits modules={settings['modules']}", file=sys.stderr)
            return 2
        size = min(int(settings["mutants"]), len(offered))
        sample = random.Random(int(settings["seed"])).sample(offered, size)
        print(
            f"{size} of {len(offered)} mutants of {len(modules)} modules, seed {settings['seed']}", flush=True
        )
        to_test = [mutant for mutant in sample if mutant.key not in equivalents]
        verdicts = [Verdict(mutant, "equivalent") for mutant in sample if mutant.key in equivalents]
        runner.first_run(sorted({mutant.module.partition("/")[0] for mutant in to_test}))
        for verdict in runner.verdicts(to_test):
            verdicts.append(verdict)
            if verdict.outcome in ("survived", "time"):
                show(verdict.mutant, verdict.outcome)
    share = print_table(verdicts)
    lines_offered = {mutant.key_of_line for mutant in offered}
    for key in sorted(equivalents):
        if key[0] in modules and key[:3] not in lines_offered:
            print(f"listed as equivalent, but not in the code any more: {key}")
    print(f"noticed={share:.1%} least={LEAST_NOTICED:.0%} seed={settings['seed']} mutants={size}")
    return int(share < LEAST_NOTICED)


if __name__ == "__main__":
    sys.exit(main())
