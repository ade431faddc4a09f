"""The main job, as a user starts it: it learns, on any number of ranks alike, and says so once."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from tests.launch import Result, rank_environment
from tests.mpirun_plugin import Mpirun

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "jobs" / "digits" / "train.py"
TASKS = ("/job:ps/task:0", "/job:ps/task:1", "/job:worker/task:0", "/job:worker/task:1")
EPOCHS = 30

Train = Callable[..., tuple[Result, npt.NDArray[np.float32]]]


@pytest.fixture
def train(mpirun: Mpirun, tmp_path: Path) -> Train:
    """Runs the job on a number of ranks (None: without a launcher), in another folder than its own; gives its losses, too."""

    def run(n: int | None, *args: str, table: str | None = None) -> tuple[Result, npt.NDArray[np.float32]]:
        losses = tmp_path / "losses.npy"
        losses.unlink(missing_ok=True)
        env = {"MPIRT_RANK_TABLE": str(ROOT / table)} if table else {}
        result = mpirun(n, TRAIN, ["--losses", str(losses), *args], env=env, cwd=tmp_path, timeout=90)
        return result, np.load(losses)

    return run


@pytest.fixture(scope="module")
def of_one_process(tmp_path_factory: pytest.TempPathFactory) -> npt.NDArray[np.float32]:
    """The losses of one process that hosts all four tasks."""
    losses = tmp_path_factory.mktemp("digits") / "losses.npy"
    environment = {k: v for k, v in rank_environment({}).items() if k != "PYTHONPATH"}
    subprocess.run([sys.executable, str(TRAIN), "--losses", str(losses)], env=environment, check=True, capture_output=True, timeout=90)
    found: npt.NDArray[np.float32] = np.load(losses)
    return found


def rank_lines(hosted: list[str]) -> str:
    """The rank table as the report shows it: what each rank hosts."""
    return "".join(rf"rank {rank}  host \S+  {re.escape(tasks)}\n" for rank, tasks in enumerate(hosted))


def on_cpu(*tasks: str) -> str:
    return ", ".join(f"{task} [CPU:0]" for task in tasks)


@pytest.mark.parametrize(
    ("n", "table", "hosted"),
    [
        pytest.param(None, None, [on_cpu(*TASKS)], marks=pytest.mark.one_mpi),
        pytest.param(2, None, [on_cpu(*TASKS[:2]), on_cpu(*TASKS[2:])], marks=pytest.mark.one_mpi),
        (4, None, [on_cpu(task) for task in TASKS]),
        pytest.param(4, "hostfiles/digits-4.toml", [on_cpu(task) for task in TASKS], marks=pytest.mark.one_mpi),
        pytest.param(6, None, [*(on_cpu(task) for task in TASKS), "spare", "spare"], marks=pytest.mark.one_mpi),
    ],
    ids=["python", "2-ranks", "4-ranks", "4-ranks-by-table", "6-ranks"],
)
def test_it_learns_the_same_on_any_number_of_ranks_and_reports_on_rank_0_only(
    train: Train, of_one_process: npt.NDArray[np.float32], n: int | None, table: str | None, hosted: list[str]
) -> None:
    result, losses = train(n, table=table)
    report = re.fullmatch(
        rank_lines(hosted)
        + r"placement ((?:\d+ operations on /job:(?:ps|worker)/task:[01]/device:CPU:0(?:, )?){4})\n"
        + r"traffic   \d+ messages of ([\d,]+) bytes, ([\d,]+) bytes in shared memory, between ranks in each step\n"
        + r"trained   30 epochs in \d+\.\d\d s, ([\d,]+) samples/s\n"
        + r"loss      (\d\.\d{4}) -> (\d\.\d{4})\n"
        + r"accuracy  (0\.\d{4}|1\.0000) on 360 test images\n",
        result.stdout,
    )
    assert report, result
    assert all(f"on {task}/device:CPU:0" in report[1] for task in TASKS)
    nbytes, shared, rate = (int(report[i].replace(",", "")) for i in (2, 3, 4))
    assert (nbytes + shared == 0) == (n is None) and rate > 0
    assert float(report[7]) >= 0.96
    assert [report[5], report[6]] == [f"{losses[0]:.4f}", f"{losses[-1]:.4f}"]
    assert "epoch" not in result.stderr, "a progress bar, though this is no terminal"

    assert losses.shape == of_one_process.shape == (EPOCHS * (1437 // 128),)
    np.testing.assert_allclose(losses, of_one_process, rtol=1e-5, atol=1e-6)


@pytest.mark.one_mpi
def test_two_runs_with_one_rank_table_and_seed_are_equal_bit_for_bit(train: Train) -> None:
    first, again = (train(4, "--epochs", "3", "--seed", "3", table="hostfiles/digits-4.toml")[1] for _ in range(2))
    other = train(None, "--epochs", "3", "--seed", "4")[1]
    assert first.tobytes() == again.tobytes()
    assert not np.allclose(first, other), "the seed changes nothing"


@pytest.mark.one_mpi
def test_on_a_terminal_it_shows_a_progress_bar() -> None:
    """In one process; mpirun gives ranks no terminal."""
    terminal, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 100))
    command = [sys.executable, str(TRAIN), "--epochs", "3"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env=rank_environment({})) as process:
        os.close(theirs)
        shown = b""
        while select.select([terminal], [], [], 60)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError:  # Linux: nobody has the other end any more
                break
        os.close(terminal)
        assert process.wait(30) == 0
    assert re.search(rb"100%\|\S+ *\| 3/3 \[[^\]]*epoch", shown), shown
