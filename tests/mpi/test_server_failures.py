"""Servers in real processes: how a job with ``join`` ends, and what a rank that dies, sleeps or raises does to the others.

``tell`` prints a line ``rank 1: ...`` at once and whole; times are CLOCK_MONOTONIC, which all processes of a host share.
"""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.launch import Job, Result
from tests.mpirun_plugin import ExpectedStatus, Mpirun

START = """
import os, signal, sys, threading, time
import numpy as np
import mpirt as tf

def tell(what):
    line = f"rank {rank}: {what}".replace("\\n", " | ") + "\\n"
    os.write(1, line.encode())

rank = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0)

def grow(session, job="ps", task=0):
    with session.graph.as_default(), tf.device(f"/job:{job}/task:{task}"):
        v = tf.get_variable(f"{job}{task}", initializer=0.0)
        session.run(v.initializer)
        grown = v.assign_add(1.0)
    return grown
"""

PS_FIRST = """
server = tf.train.Server({"ps": 1, "worker": 2})
job = server.job_name
"""
WORKER_FIRST = """
server = tf.train.Server({"worker": 2, "ps": 1})
job = server.job_name
"""
# Rank 0 is a spare, which ends its script at once.
SPARE_FIRST = """
table = "rank 0 = * spare\\nrank 1 = * /job:ps/task:0\\nrank 2 = * /job:worker/task:0"
cluster = tf.cluster(tf.RankTable.from_text(table, 3))
server = tf.train.Server(cluster) if rank else None
job = server.job_name if rank else "spare"
"""
ROLES = {"ps": PS_FIRST, "worker": WORKER_FIRST, "spare": SPARE_FIRST}

USE = """
if job == "ps":
    server.join()
    tell("joined")
elif job == "worker":
    session = tf.Session(server.target)
    grown = grow(session)
    for _ in range(20):
        session.run(grown)
"""

# How the script of a worker goes on and ends.
ENDS = {
    "closes, ends": "    session.close()",
    "forgets to close, ends": "    pass",
    "closes, joins": "    session.close()\n    server.join()",
    "forgets to close, joins": "    server.join()",
    "drops the session, joins": "    del session, grown\n    server.join()",
    "joins in a thread": "    session.close()\n    threading.Thread(target=server.join).start()",
    "has a thread that goes on": """
    def more():
        time.sleep(0.3)
        session.run(grown)
        session.close()
    threading.Thread(target=more).start()
    if rank != 1:
        server.join()
""",
    "stops its server": "    session.close()\n    server.stop()",
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("first", ["ps", *(pytest.param(role, marks=pytest.mark.one_mpi) for role in ROLES if role != "ps")])
def test_a_job_ends_by_itself_with_status_0(mpirun: Mpirun, first: str, end: str) -> None:
    result = mpirun(3, START + ROLES[first] + USE + ENDS[end] + '\nif rank:\n    tell("end")\n', timeout=20)
    assert "joined" in result.stdout and result.seconds < 15, result
    assert not result.stderr.strip(), result


def test_nothing_hangs_when_half_of_the_ranks_end_at_once_and_the_others_join(mpirun: Mpirun) -> None:
    script = START + """
server = tf.train.Server({"worker": 4})
if rank % 2:
    server.join()
"""
    assert mpirun(4, script, timeout=30).seconds < 20


# ---- scripts that fail


@pytest.mark.parametrize(
    ("fails", "said", "rc"),
    [
        ("raise KeyError('no such fruit')", r"uncaught KeyError, ending the job: \| Traceback .*'no such fruit'", 1),
        ("sys.exit(3)", r"with exit status 3, ending the job\.", 3),
        ("session.run(tf.check_numerics(tf.constant(np.nan), 'bad'))", r"uncaught InvalidArgumentError, .*bad : Tensor had NaN", 1),
        ("session.close(); server.join(); raise ValueError('after join')", r"uncaught ValueError, ending the job: .*after join", 1),
    ],
)
@pytest.mark.parametrize("who", [0, 2])
def test_a_script_that_fails_while_others_are_in_join_ends_the_job(
    mpirun: Mpirun, who: int, fails: str, said: str, rc: ExpectedStatus
) -> None:
    roles = WORKER_FIRST if who == 0 else PS_FIRST
    result = mpirun(3, START + roles + USE + f"    if rank == {who}:\n        {fails}\n    server.join()\n", expect_rc=rc, timeout=20)
    assert result.seconds < 10, result
    assert re.search(rf"\[rank {who} of 3.*?{said}", re.sub(r"\n\s*", " | ", result.stderr)), result


def test_a_rank_that_is_killed_while_all_others_join_ends_the_job(mpirun: Mpirun) -> None:
    with mpirun.start(3, START + PS_FIRST + 'tell("up")\nif rank == 1:\n    time.sleep(60)\nserver.join()\n') as job:
        for rank in range(3):
            job.wait_for(f"rank {rank}: up")
        job.signal(1, signal.SIGKILL)
        result = job.wait(10)
    assert result.rc != 0 and not result.timed_out and not result.leftovers, result


# ---- a rank that dies while the launcher lets the others live

SURVIVING = {"openmpi": [["--continuous"], ["--with-ft", "ulfm"]], "mpich": [["-disable-auto-cleanup"]]}
# MPICH's launcher kills all ranks, whatever it was told, when it sees a child ended by a signal; so it must see a shell that ends.
UNDER = {"openmpi": [], "mpich": ["sh", "-c", 'trap : USR1; "$@"; exit $?', "sh"]}

DEATH = START + """
cluster = tf.cluster({"ps": 2, "worker": 3})
server = tf.train.Server(cluster)
if server.job_name == "ps":
    server.join()
    tell("joined")
    sys.exit(0)
mine = server.task_index
session = tf.Session(server.target)
if mine == 2:  # a step that is blocked on the rank that will die
    with tf.device("/job:ps/task:1"):
        element = tf.FIFOQueue(1, tf.float32).dequeue()
else:
    element = grow(session, task=mine)
    session.run(element)
tell("ready")
try:
    if mine == 0:
        while not os.path.exists(FLAG):
            session.run(element)
        count = session.run(element)
        time.sleep(0.5)
        for _ in range(200):
            session.run(element)
        assert session.run(element) == count + 201
        tell("went on")
    else:
        while True:
            session.run(element)
except tf.errors.UnavailableError as error:
    tell(f"{time.monotonic():.3f} {error}")
try:
    session.run(element)
    tell("runs")
except tf.errors.UnavailableError as error:
    tell(f"again {error}")
session.close()
tell("end")
"""


def survivors(mpirun: Mpirun, option: list[str], script: str, victim: int, flag: Path, ready: list[int]) -> tuple[Result, float, int]:
    """Kill ``victim`` once the ranks of ``ready`` say so; how the job ended, when that was, and its process id."""
    with mpirun.start(5, f"FLAG = {str(flag)!r}\n" + script, mpirun_args=option, under=UNDER[mpirun.mpi]) as job:
        for rank in ready:
            job.wait_for(f"rank {rank}: ready")
        time.sleep(0.2)
        pid, killed = job.pid(victim), time.monotonic()
        job.signal(victim, signal.SIGKILL)
        flag.touch()
        result = job.wait(25)
    return result, killed, pid


def options(mpirun: Mpirun) -> list[list[str]]:
    return SURVIVING[mpirun.mpi]


@pytest.mark.parametrize("option", [0, 1])
def test_a_dead_rank_fails_the_steps_that_need_it_at_once_and_the_others_go_on(mpirun: Mpirun, tmp_path: Path, option: int) -> None:
    if option >= len(options(mpirun)):
        pytest.skip("this MPI's launcher has but one way to let the others live")
    for attempt in range(3):  # noise of other jobs on this machine only adds
        if max(fails_within(mpirun, option, tmp_path / f"killed{attempt}")) < 0.5:
            return
    pytest.fail("steps that need a dead rank didn't fail at once")


def fails_within(mpirun: Mpirun, option: int, flag: Path) -> list[float]:
    """Seconds from the death of rank 1 to the failures of the two steps that need it."""
    seconds: list[float] = []
    result, killed, pid = survivors(mpirun, options(mpirun)[option], DEATH, 1, flag, [2, 3, 4])
    assert not result.timed_out and result.rc != 0, result
    mend = r" \|   Mend: \S.*$"
    gone = rf"rank 1 \(host \S+, pid {pid}, /job:ps/task:1\) is gone: its process has ended\.{mend}"
    for rank in (3, 4):  # one in a loop of steps, one blocked in a step
        # An MPI that knows of dead processes may be the first to tell, of the message that can't come or go.
        by_mpi = rf"\w.* (?:from|to) rank 1 \(\S+, tag \d+\) failed on rank {rank} of 5: MPI_ERR_PROC_FAILED: Process Failure\.{mend}"
        said = rf"(?:{gone}|{by_mpi})" if "ulfm" in options(mpirun)[option] else gone
        lines = re.findall(rf"^rank {rank}: (.*)$", result.stdout, re.MULTILINE)
        assert len(lines) == 4 and (lines[0], lines[3]) == ("ready", "end"), result
        told = re.match(rf"(\d+\.\d+) {said}", lines[1])
        assert told and re.match(rf"again {said}", lines[2]), result
        seconds.append(float(told[1]) - killed)
    assert re.findall(r"^rank 2: (.*)$", result.stdout, re.MULTILINE) == ["ready", "went on", "runs", "end"], result
    return seconds


CLIENT_DIES = START + """
cluster = tf.cluster({"ps": 1, "worker": 4})
server = tf.train.Server(cluster)
if rank == 0:
    server.join()
    sys.exit(0)
session = tf.Session(server.target)
grown = grow(session, task=0)
if rank == 1:  # with steps in flight: one that waits, and others that run
    with tf.device("/job:ps/task:0"):
        element = tf.FIFOQueue(1, tf.float32, shared_name="jobs").dequeue()
    threading.Thread(target=lambda: session.run(element), daemon=True).start()
    time.sleep(0.2)
    tell("ready")
    while True:
        session.run(grown)
session.close()
if rank == 2:
    tell("ready")
    while not os.path.exists(FLAG):
        time.sleep(0.01)
    time.sleep(0.3)
    with tf.Graph().as_default(), tf.Session(server.target) as session:
        grown = grow(session, task=0)
        before = session.run(grown)
        for _ in range(200):
            session.run(grown)
        tell(f"counted {session.run(grown) - before}")
        with tf.device("/job:ps/task:0"):
            queue = tf.FIFOQueue(1, tf.float32, shared_name="jobs")
        session.run(queue.enqueue(5.0))  # the dead client's dequeue must not have taken it
        tell(f"took {session.run(queue.dequeue())}")
    tell("end")
server.join()
"""


def test_a_client_that_is_killed_with_steps_in_flight_leaves_its_server_to_the_next(mpirun: Mpirun, tmp_path: Path) -> None:
    result, _, _ = survivors(mpirun, options(mpirun)[0], CLIENT_DIES, 1, tmp_path / "killed", [1, 2])
    assert not result.timed_out and result.rc != 0, result
    told = re.findall(r"^rank 2: (.*)$", result.stdout, re.MULTILINE)
    assert told == ["ready", "counted 201.0", "took 5.0", "end"], result


def test_the_notice_of_a_death_that_mpichs_launcher_sends_kills_nobody_and_a_handler_of_the_users_stays(mpirun: Mpirun) -> None:
    if mpirun.mpi != "mpich":
        pytest.skip("only MPICH's launcher sends SIGUSR1, with -disable-auto-cleanup")
    script = START + """
if rank == 2:
    signal.signal(signal.SIGUSR1, lambda number, frame: tell("noticed"))
""" + PS_FIRST + """
tell("up")
if rank == 0:
    server.join()
elif rank == 1:
    session = tf.Session(server.target)
    grown = grow(session)
    for _ in range(30):
        session.run(grown)
        time.sleep(0.02)
    session.close()
else:
    server.join()
"""
    with mpirun.start(3, script) as job:
        for rank in range(3):
            job.wait_for(f"rank {rank}: up")
        for rank in range(3):
            job.signal(rank, signal.SIGUSR1)
        result = job.wait(20)
    assert result.rc == 0 and not result.timed_out, result
    assert result.stdout.count("rank 2: noticed") == 1, result


# ---- a rank that sleeps


def test_a_deadline_holds_though_a_rank_is_stopped_says_who_and_the_session_goes_on(mpirun: Mpirun) -> None:
    script = START + PS_FIRST + """
if job == "ps":
    tell("up")
    server.join()
elif rank == 1:
    session = tf.Session(server.target)
    grown = grow(session)
    session.run(grown)
    tell("ready")
    while True:
        began = time.perf_counter()
        try:
            session.run(grown, options=tf.RunOptions(timeout_in_ms=400))
        except tf.errors.DeadlineExceededError as error:
            tell(f"{time.perf_counter() - began:.2f} {error}")
            break
    tell("on")
    before = session.run(grown)
    for _ in range(100):
        session.run(grown)
    tell(f"counted {session.run(grown) - before}")
    session.close()
"""
    with mpirun.start(3, script) as job:
        job.wait_for("rank 1: ready")
        job.signal(0, signal.SIGSTOP)
        job.wait_for("rank 1: on", timeout=10)
        time.sleep(0.3)
        job.signal(0, signal.SIGCONT)
        result = job.wait(20)
    assert result.rc == 0 and not result.timed_out, result
    told = re.search(
        r"^rank 1: (\d\.\d\d) the step did not end within its timeout of 0\.4 s; it was waiting for (?:tensor 'AssignAdd:0' from"
        r" /job:ps/task:0 on rank 0 \(for fetch\)|rank 0 \(host \S+, pid \d+, /job:ps/task:0\) to end its part of the step.*?)\. .*"
        r"\| +Mend: find out what the other side does meanwhile, or allow more time"
        r" \(operation_timeout_in_ms of the session's config, timeout_in_ms of RunOptions\)\.$",
        result.stdout, re.MULTILINE,
    )  # fmt: skip
    assert told and 0.4 <= float(told[1]) < 0.9, result
    assert "rank 1: counted 101.0" in result.stdout, result


# ---- what waiting costs


def cpu_seconds(job: Job, rank: int) -> float:
    fields = Path(f"/proc/{job.pid(rank)}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_rank_in_join_uses_less_than_5_percent_of_a_core_when_nothing_happens(mpirun: Mpirun) -> None:
    """Rank 2 only joins. Rank 0 joins and has a step that is blocked there, for rank 1, which waits for it and joins, too."""
    script = START + PS_FIRST + """
if rank == 1:
    session = tf.Session(server.target)
    with tf.device("/job:ps/task:0"):
        element = tf.FIFOQueue(1, tf.float32).dequeue()
    threading.Thread(target=lambda: (tell("blocked"), session.run(element)), daemon=True).start()
    time.sleep(8)
    os._exit(0)
tell("up")
server.join()
"""
    for _ in range(3):  # noise of other jobs on this machine only adds
        with mpirun.start(3, script) as job:
            for line in ("rank 0: up", "rank 1: blocked", "rank 2: up"):
                job.wait_for(line)
            time.sleep(1)
            before, began = [cpu_seconds(job, rank) for rank in range(3)], time.monotonic()
            time.sleep(4)
            took = time.monotonic() - began
            shares = [(cpu_seconds(job, rank) - b) / took for rank, b in enumerate(before)]
        if shares[2] < 0.05 and max(shares) < 0.08:
            return
    pytest.fail(f"shares of a core: {shares}")
