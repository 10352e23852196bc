"""The built wheel has all it needs to start: every experiment composes in an empty folder, away from the
checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENTS = sorted(path.stem for path in (ROOT / "configs" / "experiment").glob("*.yaml"))


def run(*command, cwd, **environment):
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that the wheel was installed in."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("rlhf", "configs"):  # a copy: building leaves folders behind
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    offline = ["--no-deps", "--no-index", "--quiet"]
    run("-m", "pip", "wheel", ".", "--no-build-isolation", *offline, "--wheel-dir", "..", cwd=source)
    (wheel,) = folder.glob("*.whl")
    run("-m", "pip", "install", str(wheel), *offline, "--target", "site", cwd=folder)
    shutil.rmtree(source)
    return folder / "site"


def test_every_package_is_in_the_wheel(installed):
    inside = {str(path.relative_to(installed)) for path in (installed / "rlhf").rglob("*.py")}
    assert inside == {str(path.relative_to(ROOT)) for path in (ROOT / "rlhf").rglob("*.py")}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_composes_in_an_empty_folder(installed, tmp_path, experiment):
    said = run(
        "-m",
        "rlhf.iterate",
        f"experiment={experiment}",
        "--cfg",
        "job",
        cwd=tmp_path,
        PYTHONPATH=str(installed),
    )
    assert "num_iterations:" in said
    assert list(tmp_path.iterdir()) == []


def test_a_tool_starts_from_the_wheel(installed, tmp_path):
    row = '{"prompt": "a", "responses": ["b", "c"], "rewards": [1, 0]}\n'
    (tmp_path / "scored.jsonl").write_text(row)
    run(
        "-m", "rlhf.pair", "input=scored.jsonl", "output=pairs.jsonl", cwd=tmp_path, PYTHONPATH=str(installed)
    )
    assert '"chosen": [{"role": "assistant", "content": "b"}]' in (tmp_path / "pairs.jsonl").read_text()
