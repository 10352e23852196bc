"""The process that workers are forked from: no GPU touched, no thread but Arrow's, nothing left out."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.launch.machine import starting_environment
from rlhf.launch.preload import MODULES

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import gc, sys
from pathlib import Path
import rlhf.launch.NAME as preload
names = sorted((task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir())
torch = sys.modules.get("torch")
print("torch", torch is not None)
print("cuda", torch is not None and torch.cuda.is_initialized())
print("missing", [name for name in preload.MODULES if name not in sys.modules])
print("frozen", gc.get_freeze_count() > 100000)
print("threads", [name for name in names if not name.startswith(("python", "jemalloc_bg_thd"))], len(names))
"""


@pytest.mark.parametrize(
    ("module", "is_heavy"), [("preload", True), ("preload_light", False), ("preload_rules", False)]
)
def test_preloading_touches_no_gpu_and_starts_no_thread_that_a_fork_would_lose(module, is_heavy):
    environment = dict(os.environ, **starting_environment("cpu"), PYTHONPATH=str(ROOT))
    done = subprocess.run(
        [sys.executable, "-c", CODE.replace("NAME", module)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.split(" ")[0] in
                ("torch", "cuda", "missing", "frozen", "threads"))  # fmt: skip
    assert said["torch"] == str(is_heavy)
    assert said["cuda"] == "False", done.stderr
    assert said["missing"] == "[]"
    assert said["frozen"] == str(is_heavy)
    assert said["threads"].startswith("[]"), said
    assert int(said["threads"].rsplit(" ", 1)[1]) <= 2, said


def test_what_is_imported_with_the_cuda_packages_starts_no_compiler(tmp_path):
    # Not installed with the CPU packages: as it decides, at its import, whether it starts processes.
    (tmp_path / "humming").mkdir()
    decides = (
        "import os; print('compiles', os.environ.get('HUMMING_DISABLE_PARALLEL_BUILD') != '1', flush=True)"
    )
    (tmp_path / "humming" / "__init__.py").write_text(decides)
    environment = dict(os.environ, **starting_environment("cpu"), PYTHONPATH=f"{ROOT}:{tmp_path}")
    done = subprocess.run(
        [sys.executable, "-c", "import rlhf.launch.preload"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    # Where vLLM imports it no more, neither line is there, and the variable can go.
    assert "compiles False" in done.stdout.splitlines(), done.stdout + done.stderr


def test_a_module_that_cannot_be_imported_is_left_for_its_stage():
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    code = "import sys; sys.modules['vllm'] = None; import rlhf.launch.preload; print('up')"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=300
    )
    assert "up" in done.stdout, done.stderr
    assert "vllm" in MODULES
