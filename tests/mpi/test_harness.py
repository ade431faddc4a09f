"""The harness itself: whatever a rank does, its test ends soon, tells all, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launch import Job, find_launcher

REPOSITORY = Path(__file__).resolve().parents[2]

# Run by one inner pytest; each test below judges one of these. The file is its own rootdir, so nothing of ours configures it.
INNER_TESTS = '''
import os, signal, sys, time
import pytest

@pytest.fixture
def made_in(request):
    return os.getpid()

@pytest.mark.ranks(2)
def test_good(rank, nranks, made_in, tmp_path, shared_path, capfd):
    from mpi4py import MPI
    comm = MPI.COMM_WORLD
    assert (comm.rank, comm.size) == (rank, nranks)
    assert made_in == os.getpid()
    (tmp_path / "own").write_text(str(rank))
    (shared_path / str(rank)).write_text("")
    comm.Barrier()
    assert sorted(os.listdir(shared_path)) == ["0", "1"]
    assert (tmp_path / "own").read_text() == str(rank)
    print("seen"); assert capfd.readouterr().out == "seen\\n"

@pytest.mark.ranks([1, 3])
@pytest.mark.parametrize("word", ["a"])
def test_several_sizes(nranks, word):
    from mpi4py import MPI
    assert MPI.COMM_WORLD.size == nranks and word == "a"

@pytest.mark.ranks(2, env={"MPIRT_STALL_S": "7"})
def test_env():
    assert os.environ["MPIRT_STALL_S"] == "7" and "MPIRT_LOG" not in os.environ

@pytest.mark.ranks(2)
def test_skipped_by_all():
    pytest.skip("no such thing here")

@pytest.mark.ranks(2)
def test_skipped_by_one(rank):
    if rank == 1: pytest.skip("not me")

@pytest.mark.ranks(2)
@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail(rank):
    assert rank == 1

@pytest.mark.ranks(2)
def test_one_fails_the_other_waits(rank):
    from mpi4py import MPI
    print("printed by", rank)
    if rank == 0:
        assert 1 + 1 == 3
    MPI.COMM_WORLD.recv(source=0)

@pytest.mark.ranks(2)
def test_both_fail_one_late(rank):
    time.sleep(0.5 * rank)
    raise ValueError(f"from rank {rank}")

@pytest.mark.ranks(2, timeout=3)
def test_deadlock(rank):
    from mpi4py import MPI
    MPI.COMM_WORLD.recv(source=1 - rank)

@pytest.mark.ranks(2)
def test_segfault(rank):
    from mpi4py import MPI
    if rank == 1: os.kill(os.getpid(), signal.SIGSEGV)
    MPI.COMM_WORLD.recv(source=1)

@pytest.mark.ranks(2)
def test_lost(rank):
    if rank == 1: os._exit(0)

@pytest.mark.ranks(2)
def test_lost_while_the_other_waits(rank):
    if rank == 1: os._exit(0)
    time.sleep(60)

@pytest.mark.ranks(2, timeout=4)
def test_hangs_at_exit(rank):
    import atexit
    if rank == 1: atexit.register(time.sleep, 60)

@pytest.mark.ranks(2)
def test_broken_fixture(rank, no_such_fixture):
    pass

@pytest.mark.ranks(2)
def test_leaves_a_process(rank):
    import subprocess
    if rank == 0: subprocess.Popen(["sleep", "61"], start_new_session=True)
'''


@dataclass
class Case:
    outcome: str  # passed, failure, error, skipped
    text: str
    seconds: float


@pytest.fixture(scope="module")
def cases(tmp_path_factory, pytestconfig):
    """Every inner test's outcome, report and duration, by its name."""
    folder = tmp_path_factory.mktemp("inner")
    (folder / "test_inner.py").write_text(INNER_TESTS)
    launcher = find_launcher(pytestconfig.getoption("--mpirun")).path
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, f"--rootdir={folder}", "--junitxml=report.xml"]
    command += ["test_inner.py", f"--mpirun={launcher}", "-p", "tests.mpirun_plugin"]
    command += ["-p", "no:cacheprovider", "-p", "no:pytest_mpi"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MPIRT_LOG": "DEBUG"}
    run = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1, run.stdout + run.stderr
    found = {}
    for case in ET.parse(folder / "report.xml").iter("testcase"):
        verdict = next(iter(case), None)
        text = "" if verdict is None else verdict.text or ""
        found[case.get("name")] = Case("passed" if verdict is None else verdict.tag, text, float(case.get("time") or 0))
    return found


@pytest.mark.one_mpi
@pytest.mark.parametrize(
    "name", ["good", "env", "several_sizes[n1-a]", "several_sizes[n3-a]", "expected_to_fail", "skipped_by_all"]
)
def test_what_all_ranks_agree_on_is_the_outcome(cases, name):
    expected = "skipped" if name in ("skipped_by_all", "expected_to_fail") else "passed"
    assert (cases[f"test_{name}"].outcome, cases[f"test_{name}"].seconds < 10) == (expected, True), cases[f"test_{name}"].text


def test_a_skip_on_some_ranks_only_is_a_failure(cases):
    assert cases["test_skipped_by_one"].outcome == "failure"


def test_a_failing_rank_is_reported_within_seconds_with_the_stack_of_the_rank_that_waits(cases):
    case = cases["test_one_fails_the_other_waits"]
    assert case.outcome == "failure" and case.seconds < 10
    assert "---- rank 0: failed" in case.text and "assert (1 + 1) == 3" in case.text and "printed by 0" in case.text
    assert "---- rank 1: STILL IN THE TEST" in case.text and "in test_one_fails_the_other_waits" in case.text


def test_ranks_that_fail_a_little_later_still_tell_why(cases):
    text = cases["test_both_fail_one_late"].text
    assert "ValueError: from rank 0" in text and "ValueError: from rank 1" in text


def test_a_deadlock_ends_at_the_time_limit_with_both_stacks(cases):
    case = cases["test_deadlock"]
    assert case.outcome == "failure" and 3 <= case.seconds < 10
    assert case.text.count("in test_deadlock") == 2 and "TIMED OUT" in case.text


def test_a_segmentation_fault_shows_where(cases):
    case = cases["test_segfault"]
    assert case.outcome == "failure" and case.seconds < 10
    assert "Fatal Python error: Segmentation fault" in case.text and "in test_segfault" in case.text


@pytest.mark.parametrize("name", ["test_lost", "test_lost_while_the_other_waits"])
def test_a_rank_that_ends_without_an_outcome_is_lost_whatever_mpirun_says(cases, name):
    assert cases[name].outcome == "failure" and cases[name].seconds < 10
    assert "---- rank 1: LOST" in cases[name].text


def test_a_rank_that_hangs_in_its_exit_is_a_failure(cases):
    assert cases["test_hangs_at_exit"].outcome == "failure" and "TIMED OUT" in cases["test_hangs_at_exit"].text


def test_a_missing_fixture_is_reported_from_the_rank(cases):
    assert "no_such_fixture" in cases["test_broken_fixture"].text


def test_a_process_left_running_is_a_failure_and_killed(cases):
    assert cases["test_leaves_a_process"].outcome == "failure" and "sleep 61" in cases["test_leaves_a_process"].text
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    assert b"sleep\x0061\x00" not in commands


# ---- the mpirun fixture ------------------------------------------------------------------------------------------------


def test_a_script_runs_on_n_ranks_and_its_output_and_status_come_back(mpirun, monkeypatch):
    monkeypatch.setenv("MPIRT_LOG", "DEBUG")
    result = mpirun(
        3,
        """
        import os, sys
        from mpi4py import MPI
        print(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, sys.argv[1], os.environ["WORD"], os.environ.get("MPIRT_LOG"))
        MPI.COMM_WORLD.Barrier()
        sys.exit(5)
        """,
        ["argument"],
        env={"WORD": "word"},
        expect_rc=5,
    )
    assert sorted(result.stdout.splitlines()) == [f"{rank} 3 argument word None" for rank in range(3)]


def test_the_launcher_keeps_lines_whole_that_ranks_write_by_one_write_as_fast_as_they_can(mpirun):
    """So a test may ask that a line begins with what tells its rank: lines of two ranks are never joined, and none is lost."""
    script = """
import os
rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK"))
for number in range(400):
    os.write(1, (f"rank {rank}: {number} " + "x" * (number * 37 % 1500) + "\\n").encode())
"""
    result = mpirun(3, script)
    expected = {f"rank {rank}: {number} " + "x" * (number * 37 % 1500) for rank in range(3) for number in range(400)}
    lines = result.stdout.splitlines()
    assert len(lines) == len(expected) and set(lines) == expected


def test_each_rank_gets_arguments_of_its_own_and_all_are_one_job(mpirun):
    script = """
        import os, sys
        from mpi4py import MPI
        print(MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size, *sys.argv[1:], os.environ["WORD"])
        """
    own = [["--job=ps"], ["--job=worker", "--task=0"], []]
    result = mpirun(3, script, ["all"], rank_args=own, env={"WORD": "word"})
    assert sorted(result.stdout.splitlines()) == ["0 3 all --job=ps word", "1 3 all --job=worker --task=0 word", "2 3 all word"]


def test_without_a_launcher_a_script_is_one_process(mpirun):
    assert mpirun(None, "import os; print('OMPI_COMM_WORLD_RANK' in os.environ)").stdout == "False\n"


def test_another_status_than_expected_fails_with_the_output(mpirun):
    with pytest.raises(pytest.fail.Exception, match="(?s)expected exit status 0 .* got exit status 3.*last words"):
        mpirun(2, "import sys; print('last words'); sys.exit(3)")


def test_a_script_past_its_time_is_killed_and_its_stacks_are_shown(mpirun):
    began = time.monotonic()
    result = mpirun(2, "import time\ndef nap(): time.sleep(60)\nnap()", timeout=3, expect_rc=None)
    assert result.timed_out and time.monotonic() - began < 10
    assert sorted(result.stacks) == [0, 1] and all("in nap" in stack for stack in result.stacks.values())


def test_a_killed_rank_ends_the_job(mpirun):
    job = mpirun.start(2, "from mpi4py import MPI\nimport time\nprint('up', flush=True)\ntime.sleep(60)")
    job.wait_for("up")
    pid = job.pid(1)
    job.signal(1, signal.SIGKILL)
    result = job.wait(20)
    assert result.rc != 0 and not result.timed_out
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_stopped_rank_is_killed_at_the_time_limit(mpirun):
    job = mpirun.start(2, "from mpi4py import MPI\nprint('up', flush=True)\nMPI.COMM_WORLD.Barrier()\nMPI.COMM_WORLD.recv()")
    job.wait_for("up")
    job.signal(0, signal.SIGSTOP)
    assert job.wait(2).timed_out
    assert job.processes() == {}


def test_a_job_that_a_test_forgot_is_stopped_with_the_fixture(pytestconfig):
    with Job(find_launcher(pytestconfig.getoption("--mpirun")), 2, ["-c", "import time; time.sleep(60)"]) as job:
        job.pid(1)
        assert len(job.processes()) >= 3
    assert job.processes() == {} and not job.folder.exists()


# ---- pytest-mpi --------------------------------------------------------------------------------------------------------


def test_tests_written_for_pytest_mpi_run_on_all_ranks(mpirun):
    file = Path(__file__).parent / "test_pytest_mpi.py"
    options = ["-p", "pytest_mpi", "--with-mpi", "-x", "-p", "no:cacheprovider", "--color=no"]
    result = mpirun(2, ["-m", "mpi4py", "-m", "pytest", *options, str(file)], cwd=REPOSITORY)
    assert result.stdout.count("3 passed") == 2, result
