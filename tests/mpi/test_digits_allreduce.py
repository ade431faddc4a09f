"""Data-parallel training by all-reduce, as a user starts it: it learns what one process learns on the whole batch, in both run modes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.launch import Result, rank_environment
from tests.mpirun_plugin import Mpirun

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "digits" / "train_allreduce.py"
EPOCHS = 30


@pytest.fixture(scope="module")
def on_the_whole_batch(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.float32]:
    """The losses of one worker alone: no collective, the whole batch in one piece."""
    losses = tmp_path_factory.mktemp("digits") / "losses.npy"
    environment = {k: v for k, v in rank_environment({}).items() if k != "PYTHONPATH"}
    command = [sys.executable, str(JOB), "--workers", "1", "--losses", str(losses)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=90)
    found: npt.NDArray[np.float32] = np.load(losses)
    return found


@pytest.mark.parametrize(
    ("n", "workers", "options"),
    [
        pytest.param(None, 2, [], marks=pytest.mark.one_mpi),
        pytest.param(2, 2, [], marks=pytest.mark.one_mpi),
        (2, 2, ["--servers"]),
        pytest.param(3, 4, ["--servers"], marks=pytest.mark.one_mpi),
    ],
    ids=["python", "2-ranks", "2-ranks-servers", "4-workers-on-3-ranks-servers"],
)
def test_it_learns_what_one_worker_learns_on_the_whole_batch(
    mpirun: Mpirun, tmp_path: Path, on_the_whole_batch: npt.NDArray[np.float32], n: int | None, workers: int, options: list[str]
) -> None:
    losses = tmp_path / "losses.npy"
    result: Result = mpirun(n, JOB, ["--workers", str(workers), "--losses", str(losses), *options], cwd=tmp_path, timeout=90)
    report = re.search(r"loss      (\d\.\d{4}) -> (\d\.\d{4})\naccuracy  (0\.\d{4}|1\.0000) on 360 test images\n\Z", result.stdout)
    assert report, result
    assert float(report[3]) >= 0.96
    found = np.load(losses)
    assert found.shape == on_the_whole_batch.shape == (EPOCHS * (1437 // 128),)
    # Parts are summed in another order than the whole; what that changes in the last digit grows from step to step.
    np.testing.assert_allclose(found[:60], on_the_whole_batch[:60], rtol=2e-4, atol=2e-5)
    np.testing.assert_allclose(found, on_the_whole_batch, rtol=2e-4, atol=5e-3)
    traffic = re.search(r"traffic   \d+ messages of ([\d,]+) bytes, ([\d,]+) bytes in shared memory, between", result.stdout)
    assert traffic and ({traffic[1], traffic[2]} == {"0"}) == (n is None)
