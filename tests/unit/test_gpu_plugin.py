"""Where there is no GPU, its tests are left out with a word, and asking for them is refused with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEST = "tests/gpu/test_device_gpu.py"


def pytest_says(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def test_tests_that_need_a_gpu_are_left_out_of_an_ordinary_run() -> None:
    status, said = pytest_says("--collect-only", "-q", TEST, "tests/unit/test_schedule.py")
    assert status == 0 and "test_device_gpu" not in said and "test_schedule" in said and " deselected" in said
    status, said = pytest_says("--collect-only", TEST)
    assert status == 5 and "gpu: hidden; tests marked gpu need --gpu" in said


def test_a_gpu_that_is_asked_for_and_not_there_ends_the_run() -> None:
    status, said = pytest_says("--gpu", TEST)
    assert status == 4 and "--gpu: cupy is not installed here or sees no GPU" in said


def test_the_check_says_how_it_is_used_and_what_it_lacks(tmp_path: Path) -> None:
    script = ROOT / "scripts" / "gpu-check"
    said = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=30, check=True).stdout
    assert "scripts/gpu-check [--wheels DIR] [--results DIR] [--without-figures]" in said
    for name in ("bash", "dirname", "cat", "sed", "basename"):
        (tmp_path / name).symlink_to(f"/usr/bin/{name}")
    bare = subprocess.run(["/bin/bash", script], env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=30, check=False)
    assert bare.returncode == 2 and "no nvidia-smi: this machine has no NVIDIA driver" in bare.stderr
