"""The asynchronous job, as a user starts it: parameter servers that only join, workers at their own pace."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.launch import Result
from tests.mpirun_plugin import Mpirun

JOBS = Path(__file__).resolve().parents[2] / "jobs" / "digits"
UPDATES = 45 * (1437 // 64)  # at least: those under way when the last of them was made are finished, too

History = dict[str, npt.NDArray[np.generic]]
Train = Callable[..., tuple[Result, History]]


@pytest.fixture
def train(mpirun: Mpirun, tmp_path: Path) -> Train:
    """Runs the job on a number of ranks (None: without a launcher), in another folder than its own; gives its history, too."""

    def run(n: int | None, *args: str) -> tuple[Result, History]:
        path = tmp_path / "history.npz"
        path.unlink(missing_ok=True)
        result = mpirun(n, JOBS / "train_async.py", ["--history", str(path), *args], cwd=tmp_path, timeout=90)
        with np.load(path) as history:
            return result, dict(history)

    return run


def described(history: History, chosen: npt.NDArray[np.bool_]) -> str:
    staleness = (history["applied"] - history["read"])[chosen]
    return f"{len(staleness)} updates, staleness mean {staleness.mean():.2f}, max {staleness.max()}"


@pytest.mark.parametrize(
    ("n", "ps", "workers"),
    [
        pytest.param(None, 2, 2, marks=pytest.mark.one_mpi),
        (2, 2, 2),
        (4, 2, 2),
        pytest.param(5, 2, 2, marks=pytest.mark.one_mpi),
        pytest.param(None, 1, 3, marks=pytest.mark.one_mpi),
        (4, 1, 3),
    ],
    ids=["python", "2-ranks", "4-ranks", "5-ranks", "python-1-ps-3-workers", "4-ranks-1-ps-3-workers"],
)
def test_workers_at_their_own_pace_lose_no_update_and_learn_like_the_synchronous_job(
    train: Train, n: int | None, ps: int, workers: int
) -> None:
    result, history = train(n, "--ps", str(ps), "--workers", str(workers))
    worker, read, applied, loss = (history[key] for key in ("worker", "read", "applied", "loss"))

    # Every update was counted once, and each worker's reads show all that it did before.
    total = len(applied)
    assert UPDATES <= total < UPDATES + workers
    np.testing.assert_array_equal(applied, np.arange(total))
    assert (read >= 0).all() and (read <= applied).all()
    assert set(worker) == set(range(workers))
    for each in range(workers):
        assert (read[worker == each][1:] > applied[worker == each][:-1]).all()
    assert (applied - read).max() >= 1, "the workers waited for each other"

    hosts, report = result.stdout.split("trained ")
    assert len(hosts.splitlines()) == (n or 1)
    assert hosts.count("/job:ps/") == ps and hosts.count("/job:worker/") == workers
    lines = re.fullmatch(
        rf"  {total} updates in \d+\.\d\d s, ([\d,]+) samples/s\n"
        + "".join(f"worker {each}  {re.escape(described(history, worker == each))}\n" for each in range(workers))
        + rf"together  {re.escape(described(history, worker >= 0))}\n"
        + rf"loss      {loss[0]:.4f} -> {loss[-1]:.4f}\n"
        + r"accuracy  (0\.\d{4}|1\.0000) on 360 test images\n",
        report,
    )
    assert lines, result
    assert int(lines[1].replace(",", "")) > 0
    assert float(lines[2]) >= 0.96, "the synchronous job's bound in test_digits.py"
    assert "update" not in result.stderr, "a progress bar, though this is no terminal"


@pytest.mark.one_mpi
def test_one_worker_misses_no_update_and_gets_the_same_losses_wherever_it_runs(train: Train) -> None:
    options = ["--workers", "1", "--epochs", "3"]
    alone = train(None, *options)[1]
    assert not (alone["applied"] - alone["read"]).any()
    assert alone["loss"][0] > 2 and alone["loss"][-1] < 1
    for n in (2, 3):
        again = train(n, *options)[1]
        assert not (again["applied"] - again["read"]).any()
        np.testing.assert_allclose(again["loss"], alone["loss"], rtol=1e-5, atol=1e-6)
    other = train(None, *options, "--seed", "1")[1]
    assert not np.allclose(other["loss"], alone["loss"]), "the seed changes nothing"


@pytest.mark.parametrize("n", [*(pytest.param(n, marks=pytest.mark.one_mpi) for n in (None, 2)), 4])
def test_a_worker_that_fails_ends_the_job_with_its_error_though_others_wait_for_it(mpirun: Mpirun, n: int | None) -> None:
    script = f"""
        import sys
        sys.path.insert(0, {str(JOBS)!r})
        import train_async

        def batches(num_examples, size, seed, whole=train_async.batches):
            for number, rows in enumerate(whole(num_examples, size, seed)):
                if seed[1] == 1 and number == 5:
                    raise RuntimeError("worker 1 has no more data")
                yield rows

        train_async.batches = batches
        train_async.main()
        """
    result = mpirun(n, script, timeout=30, expect_rc="nonzero")
    assert "RuntimeError: worker 1 has no more data" in result.stderr and "accuracy" not in result.stdout, result


def test_a_batch_larger_than_the_data_is_refused(mpirun: Mpirun) -> None:
    result = mpirun(None, JOBS / "train_async.py", ["--batch", "1438"], expect_rc=2)
    assert result.stderr.endswith("error: --batch 1438: there are 1437 images to train on\n")
