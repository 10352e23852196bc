"""What the set-up makes of a machine's driver; nothing is installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "setup.py"
spec = importlib.util.spec_from_file_location("setup_script", SCRIPT)
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)

LISTING = "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-0)\n  MIG 1g.10gb Device 0: (UUID: MIG-0)\nGPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """Puts an nvidia-smi on PATH that says such a CUDA version."""

    def install(cuda):
        tool = tmp_path / "nvidia-smi"
        header = f"| NVIDIA-SMI 570.86   Driver Version: 570.86   CUDA Version: {cuda} |"
        tool.write_text(f"#!/bin/sh\ncase $1 in -L) echo '{LISTING}';; *) echo '{header}';; esac\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    return install


def test_gpus_are_counted_without_their_parts(driver, monkeypatch):
    driver("13.0")
    assert setup.choose_variant("auto", {}) == ("cuda", "2 NVIDIA GPUs found: GPU 0: NVIDIA H100 80GB HBM3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert setup.choose_variant("auto", {}) == ("cpu", "no NVIDIA GPU found")


@pytest.mark.parametrize("version", ["12.8", "12.9", "11.4"])
def test_an_old_driver_is_said_before_gigabytes_are_fetched(driver, capsys, version):
    driver(version)
    with pytest.raises(SystemExit) as left:
        setup.check_driver("auto")
    assert left.value.code == 2
    said = capsys.readouterr().err
    for part in (f"runs CUDA {version}", "need 13.0 or later", "newer driver", "VARIANT=cpu", "VARIANT=cuda"):
        assert part in said
    setup.check_driver("cuda")  # what is built here may run elsewhere
    assert "they will not see its GPUs" in capsys.readouterr().out


@pytest.mark.parametrize("version", ["13.0", "13.2", "14.1", "N/A"])
def test_a_new_or_unknown_driver_is_no_reason_to_stop(driver, capsys, version):
    driver(version)
    setup.check_driver("auto")
    assert capsys.readouterr() == ("", "")


def test_it_runs_with_the_standard_library_alone():
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='loaded')"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
