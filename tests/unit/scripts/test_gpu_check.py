"""`scripts/gpu_check.py` around its steps: each has its line, however it ends; what they count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "scripts"

STEPS = {
    # First: what the others leave is not its.
    "hanging": (
        "import subprocess, sys, time\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
        "    kit.add('child', child.pid)\n"
        "    time.sleep(600)"
    ),
    "good": "kit.add('a figure', 2.0, 'of them', bar=1)",
    "missing": "",
    "refusing": "raise SkipStepError('there is no room')",
    "failing": "kit.add('before', 1)\n    raise ValueError('it broke\\nin two lines')",
    "dying": "import os, signal\n    os.kill(os.getpid(), signal.SIGKILL)",
    "low": "kit.add('too low', 1.0, bar=2)",
    "late": (
        "import json\n"
        "    from pathlib import Path\n"
        "    kit.add('written before', len(json.loads(Path(OUT, 'result.json').read_text())['steps']))"
    ),
}
MODULE = """
from gpu_kit.figures import SkipStepError
PACKAGES = {packages}
OUT = {out!r}

def measure(kit):
    pass
    {body}
"""
DRIVER = """
import sys
sys.path[:0] = {paths!r}
import gpu_check
# So long that only a step that hangs runs out of it, also on a machine that is busy.
SHARES = {{"hanging": 15}}
gpu_check.STEPS = tuple(gpu_check.Step(name, "what " + name, SHARES.get(name, 82)) for name in {names!r})
sys.exit(gpu_check.main({words!r}))
"""


def check(*words, **environment):
    return subprocess.run(
        [sys.executable, SCRIPTS / "gpu_check.py", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""} | environment,
        timeout=120,
    )


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What a kit of such steps has written, and what it printed."""
    folder = tmp_path_factory.mktemp("kit")
    out = folder / "out"
    (folder / "steps").mkdir()
    for name, body in STEPS.items():
        packages = ("no_such_package", "json") if name == "missing" else ()
        text = MODULE.format(packages=packages, out=str(out), body=body)
        (folder / "steps" / f"{name}_step.py").write_text(text)
    # Steps are modules of `gpu_kit`: in their processes it has one more folder.
    hook = f"import sys\nsys.path[:0] = {[str(ROOT), str(SCRIPTS)]!r}\nimport gpu_kit\n"
    (folder / "sitecustomize.py").write_text(hook + f"gpu_kit.__path__.append({str(folder / 'steps')!r})\n")
    words = ["size=toy", f"out={out}", "minutes=10"]
    code = DRIVER.format(paths=[str(ROOT), str(SCRIPTS)], names=list(STEPS), words=words)
    environment = os.environ | {"PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": "", "TMPDIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=900
    )
    result = json.loads((out / "result.json").read_text())
    return done, folder, {step["name"]: step for step in result["steps"]}


def test_every_step_has_its_line_however_it_ends(ended):
    done, folder, steps = ended
    assert done.returncode == 1, done.stderr
    went = {name: (step["status"], step["reason"]) for name, step in steps.items()}
    assert went == {
        "good": ("done", ""),
        "missing": ("skipped", "not installed: no_such_package"),
        "refusing": ("skipped", "there is no room"),
        "failing": ("failed", "exit code 1, ValueError: it broke"),
        "dying": ("failed", "killed by signal 9, nothing was printed"),
        "hanging": ("out of time", "what is below was measured before"),
        "low": ("done", ""),
        "late": ("done", ""),
    }
    table = (folder / "out" / "table.txt").read_text()
    assert table in done.stdout
    for name in STEPS:
        assert f"[{name}] what {name}: {went[name][0]}" in table
    assert "it broke\nin two lines" in (folder / "out" / "log.txt").read_text()
    assert "8 steps, 3 failed or out of time, 1 bars missed" in done.stdout


def test_what_was_measured_before_an_end_is_kept(ended):
    _, _, steps = ended
    assert [figure["name"] for figure in steps["failing"]["figures"]] == ["before"]
    assert [figure["met"] for figure in steps["good"]["figures"]] == [True]
    assert [figure["met"] for figure in steps["low"]["figures"]] == [False]
    # Written after each step: the last one found the seven before it.
    assert steps["late"]["figures"][0]["value"] == 7


def test_nothing_is_left_of_a_step_or_of_the_kit(ended):
    _, folder, steps = ended
    child = steps["hanging"]["figures"][0]["value"]
    assert not Path(f"/proc/{child}").exists()
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["log.txt", "result.json", "table.txt"]
    assert not list(folder.glob("gpu_check.*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["size=big"], "size=big: say full or toy"),
        (["sizes=toy"], "there is no 'sizes'; say size, out, only, minutes"),
        (["size=toy", "only=preload,shape"], "no step shape; there are machine, preload"),
        (["size=toy", "minutes=soon"], "minutes are a number"),
        (["size=toy", "minutes=0"], "say more than 0"),
        (["size=toy", "minutes=nan"], "say more than 0"),
        (["size=toy", "minutes=inf"], "less than a day"),
        ([], "no NVIDIA GPU is visible here"),
    ],
)
def test_a_wrong_word_is_refused_before_anything_begins(tmp_path, words, said):
    done = check(*words, f"out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture
def kit(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import gpu_check

    return gpu_check


def test_the_steps_share_the_time(kit):
    assert sum(step.share for step in kit.STEPS) <= 8 * 60
    for minutes in (8.0, 2.0):
        ends = kit.limits([step.share for step in kit.STEPS], minutes)
        assert ends == sorted(ends)
        assert ends[-1] < 60 * minutes
    for step in kit.STEPS:
        assert (SCRIPTS / "gpu_kit" / f"{step.name}_step.py").is_file()


def test_a_step_whose_packages_are_missing_leaves_its_time_to_all_others(kit, monkeypatch):
    engine = next(step for step in kit.STEPS if step.name == "engine")
    monkeypatch.setattr(kit, "missing", lambda packages: ["vllm"] if "vllm" in packages else [])
    assert kit.seconds_of(engine) == 2
    assert kit.seconds_of(kit.STEPS[2]) == kit.STEPS[2].share
    with_engine = kit.limits([step.share for step in kit.STEPS], 8)
    without = kit.limits([kit.seconds_of(step) for step in kit.STEPS], 8)
    assert without[2] > with_engine[2]


def test_what_a_step_needs_is_counted_as_stated(kit):
    from gpu_kit.flops import needed_flops, published_peak
    from gpu_kit.models import LLAMA_1B, LLAMA_8B, Shape

    shape = Shape(4, 8, 2, 2, 1, 10, tied=True)
    assert shape.weights_of_layer == 16 + 16 + 2 * 4 * 2 + 3 * 4 * 8
    # A prompt of 3 tokens, responses of 2 and 1: the prompt's pairs are 6, those of the responses 6 + 3 and 3 + 1.
    expected = 6 * 2 * shape.weights_of_layer * 6 + 6 * 40 * 3 + 12 * 2 * 4 * (6 + 9 + 4)
    assert needed_flops(shape, [(3, [2, 1])]) == expected
    assert LLAMA_8B.num_parameters == pytest.approx(8.03e9, rel=1e-3)
    assert LLAMA_1B.num_parameters == pytest.approx(1.236e9, rel=1e-3)
    assert published_peak("GPU 0: NVIDIA H100 80GB HBM3") == 989.4e12
    assert published_peak("GPU 0: NVIDIA H100 PCIe") == 756e12
    assert published_peak("GPU 0: NVIDIA L4") == 121e12
    assert published_peak("GPU 0: NVIDIA L40S") == 362.05e12
    assert published_peak("GPU 0: NVIDIA L40") == 181e12
    assert published_peak("GPU 0: NVIDIA H200 NVL") == 835e12
    assert published_peak("GPU 0: NVIDIA A100X") is None
    assert published_peak("GPU 0: something new") is None


def test_programs_are_hidden_and_those_beside_them_are_not(kit, tmp_path, monkeypatch):
    import shutil

    from gpu_kit.engine_step import path_without

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    for program in ("one/nvcc", "one/gcc", "two/cc"):
        (tmp_path / program).write_text("")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(str(tmp_path / name) for name in ("one", "two")))
    path = path_without(("nvcc", "ninja"), tmp_path / "links")
    assert shutil.which("nvcc", path=path) is None
    assert shutil.which("gcc", path=path) and shutil.which("cc", path=path)


def test_a_line_that_a_kill_has_cut_is_left_out(kit, tmp_path):
    from gpu_kit.figures import read_lines

    (tmp_path / "rows").write_text('{"name": "a"}\n{"name": "b')
    assert read_lines(tmp_path / "rows") == [{"name": "a"}]
    assert read_lines(tmp_path / "none") == []
