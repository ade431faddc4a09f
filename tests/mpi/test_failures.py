"""Whatever goes wrong under mpirun gives one clear error on every rank that needs it, no hang, and a non-zero exit status.

Most tests are cases of a table: a script, what each rank tells, what else is printed, the exit status. ``tell`` prints one line
``rank 1: ...`` with ``|`` for the ends of lines, so that whole messages can be matched rank by rank. In an expected text
``{rank1}`` stands for how messages name that rank, and ``{at:word}`` for the script's line with the comment ``# word``.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.launch import Job, Result, find_launcher
from tests.mpirun_plugin import ExpectedStatus, Mpirun

START = """
import os, signal, sys, time
import numpy as np
import mpirt as tf

def tell(what):
    line = f"rank {rank}: {what}".replace("\\n", " | ") + "\\n"
    os.write(1, line.encode())  # at once and whole, as mpirun mixes the output of all ranks

def attempt(function):
    try:
        tell(f"got {function()!r}")
    except Exception as error:
        tell(f"{type(error).__name__}: {error}")

rank, size = int(os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or 0), 0
"""

CLUSTER = """
cluster = tf.cluster()
size = cluster.size
"""

VARIABLE = CLUSTER + """
with tf.device("/job:worker/task:1"):
    v = tf.Variable(1.0, name="v")
    grown = v.assign_add(1.0)
session = tf.Session()
session.run(v.initializer)
"""

SAME_CALLS = (
    " | Mend: a collective Session needs every rank to call run() with the same fetches in the same order;"
    " keep run() out of `if rank == 0:` and out of loops whose length differs between ranks."
)
TIMEOUT = (
    "DeadlineExceededError: the step did not end within its timeout of 0.3 s; it was waiting for tensor 'slow:0' from"
    " /job:worker/task:1 on rank 1 (for fetch). | defined at {at:slow}. | failed on RANK. | Mend: find out what the other side does"
    " meanwhile, or allow more time (operation_timeout_in_ms of the session's config, timeout_in_ms of RunOptions)."
)
ALONE = (
    "FailedPreconditionError: the launcher started 3 processes, but for MPI this one is alone (rank 0 of 1): launcher and library"
    " are of different MPIs. Library: ...; started by ... | Mend: use the mpirun that belongs to this library; ..."
)


@dataclass(frozen=True)
class Case:
    """A script on several ranks, and what must come of it."""

    id: str
    script: str
    tells: tuple[str, ...] = ()  # lines of every rank, whole and in order; a text with [rank] in front is of that rank only
    prints: tuple[str, ...] = ()  # parts of standard error, in any order
    never: tuple[str, ...] = ()  # what must not be printed
    rc: ExpectedStatus = 0
    ranks: int = 3
    env: dict[str, str] = field(default_factory=dict)
    within: float = 15.0


def expected(text: str, script: str, ranks: int) -> str:
    """The pattern of an expected text."""
    lines = {m[1]: n for n, line in enumerate(script.splitlines(), 1) if (m := re.search(r"# (\w+)$", line))}
    pattern = re.escape(text).replace(re.escape(" | "), r" \|\s+")
    pattern = re.sub(r"\\\{rank(\d)\\\}", r"rank \1 \\(host \\S+, pid \\d+(?:, (?:/job:worker/task:\1|spare))?\\)", pattern)
    pattern = re.sub(r"\\\{at:(\w+)\\\}", lambda m: rf"\S+\.py:{lines[m[1]]}", pattern)
    return pattern.replace(re.escape("..."), ".*")


def judge(case: Case, result: Result) -> None:
    script = (START + case.script).lstrip("\n")
    for rank in range(case.ranks):
        told = re.findall(rf"^rank {rank}: (.*)$", result.stdout, re.MULTILINE)
        wanted = [re.sub(r"^\[\d\]", "", text) for text in case.tells if text.startswith(f"[{rank}]") or not re.match(r"\[\d\]", text)]
        patterns = [expected(text, script, case.ranks) for text in wanted]
        assert len(told) == len(patterns), f"rank {rank} told {told}\n{result}"
        for line, pattern in zip(told, patterns, strict=True):
            assert re.fullmatch(pattern, line), f"rank {rank} told\n  {line}\nnot\n  {pattern}\n{result}"
    printed = re.sub(r"\n\s*", " | ", result.stderr)
    for text in case.prints:
        assert re.search(expected(text, script, case.ranks), printed), f"{text!r} is not in\n{printed}"
    for text in case.never:
        assert not re.search(expected(text, script, case.ranks), printed), f"{text!r} is in\n{printed}"
    assert result.seconds < case.within, result


FAILING_STEPS = Case(
    "failures of steps",
    CLUSTER + """
def eat(x):
    if x > 1:
        raise KeyError("no such fruit")
    return x

with tf.device("/job:worker/task:1"):
    x = tf.placeholder(tf.float32, [], "x")
    n = tf.placeholder(tf.int32, [2], "n")
    y = tf.py_func(eat, [x], tf.float32, name="eat")  # eat
    y.set_shape([])
    v = tf.Variable(1.0, name="v")  # v
with tf.device("/job:worker/task:0"):
    z = tf.identity(y, name="z")
    w = v + 1
    total = tf.reduce_sum(n)
    late = tf.check_numerics(z - y * np.inf, "late", name="late")  # late
session = tf.Session()
attempt(lambda: session.run(z, {x: 1.0}))
attempt(lambda: session.run(z, {x: 2.0}))
attempt(lambda: session.run(w))
attempt(lambda: session.run(total, {n: [1, 2, 3]}))
attempt(lambda: session.run(total, {n: [1.5, 2.5]}))
attempt(lambda: session.run(total, {n: [2**40, 1]}))
attempt(lambda: session.run(total, {n: None}))
attempt(lambda: session.run(total, {n: [1, 2]} if rank == 1 else {n: "not looked at"}))
attempt(lambda: session.run(total, {n: [3, 4]} if rank == 1 else None))
attempt(lambda: session.run(late, {x: 1.0}))
attempt(lambda: session.run([z, late], {x: 7.0}))
session.run(v.initializer)
attempt(lambda: session.run(w))
attempt(lambda: session.run(z, {x: 0.5}))
""",
    tells=(
        "got np.float32(1.0)",
        "UnknownError: 'eat' (PyFunc): the Python function failed with KeyError: 'no such fruit' | Traceback (most recent call last):"
        "... | KeyError: 'no such fruit' | defined at {at:eat}. | failed on {rank1}, /job:worker/task:1/device:CPU:0.",
        "FailedPreconditionError: Attempting to use uninitialized value v | defined at {at:v}. | failed on {rank1}"
        "... | Mend: run its initializer first (tf.global_variables_initializer()), in a run of its own, or restore a checkpoint.",
        "ValueError: Cannot feed value of shape (3,) for Tensor 'n:0', which has shape (2,) | failed on {rank1}.",
        "TypeError: Cannot feed a value of type float64 for Tensor 'n:0' of type int32: something would be lost."
        " Convert it yourself if that is meant, e.g. value.astype('int32'). | failed on {rank1}.",
        "TypeError: Cannot feed Tensor 'n:0' of type int32: the values 1 to 1099511627776 don't fit into it. | failed on {rank1}.",
        "TypeError: the value of the feed 'n:0' is None. | failed on {rank1}.",
        "got np.int32(3)",
        "got np.int32(7)",
        "InvalidArgumentError: late : Tensor had Inf values... | defined at {at:late}. | failed on {rank0}, ...CPU:0.",
        "UnknownError: 'eat' (PyFunc): ...KeyError: 'no such fruit' | defined at {at:eat}. | failed on {rank1}, ...",
        "got np.float32(2.0)",
        "got np.float32(0.5)",
    ),
)

CASES = (
    FAILING_STEPS,
    Case(
        "a feed given only where the placeholder does not live",
        CLUSTER + """
with tf.device("/job:worker/task:1"):
    x = tf.placeholder(tf.float32, [], "x")  # x
    y = x + 1
session = tf.Session()
attempt(lambda: session.run(y, {x: 1.0} if rank == 0 else None))
attempt(lambda: session.run(y))
attempt(lambda: session.run(y, {x: 1.0}))
""",
        tells=(
            "InvalidArgumentError: 'x:0' is fed on rank(s) 0, but it lives on {rank1}, which doesn't feed it. | defined at {at:x}."
            " | Mend: feed 'x:0' on rank 1 (or on every rank: values count only there), or pin it to another task.",
            "InvalidArgumentError: You must feed a value for placeholder tensor 'x' with dtype float32 and shape (). | defined at {at:x}."
            " | Mend: pass feed_dict={x: value} to run().",
            "got np.float32(2.0)",
        ),
    ),
    Case(
        "different graphs",
        CLUSTER + """
a = tf.constant(1.0, name="a")
if rank == 2:
    b = tf.multiply(a, 2.0, name="b")  # mul
else:
    b = tf.subtract(a, 2.0, name="b")  # sub
attempt(lambda: tf.Session().run(b))
""",
        tells=(
            "InvalidArgumentError: ranks built different graphs; the first operation that differs is number 2 of what the fetches need:"
            " | rank 0: b = Sub(..., defined at {at:sub} | {rank2}: b = Mul(..., defined at {at:mul}"
            " | (ranks 0, 1 agree; rank 2 stands alone.) | Mend: build the same graph on every rank:"
            " no operation may depend on the rank, on time, on a set's order or on a random name.",
        ),
        rc=1,
    ),
    Case(
        "one rank has an operation more",
        CLUSTER + """
a = tf.constant(1.0, name="a")
extra = [tf.Assert(True, [a])] if rank == 1 else []  # assert
with tf.control_dependencies(extra):
    b = tf.identity(a, name="b")  # b
attempt(lambda: tf.Session().run(b))
""",
        tells=(
            "InvalidArgumentError: ranks built different graphs; ... | rank 0: b = Identity(..., defined at {at:b}"
            " | {rank1}: Assert/..., defined at {at:assert} | (ranks 0, 2 agree; rank 1 stands alone.) | Mend: ...",
        ),
        rc=1,
    ),
    Case(
        "different fetches",
        CLUSTER + """
a, b = tf.constant(1.0, name="a"), tf.constant(2.0, name="b")
session = tf.Session()
if rank == 1:
    attempt(lambda: session.run(b))  # b
else:
    attempt(lambda: session.run(a))  # a
""",
        tells=(
            "AbortedError: ranks don't make the same calls: collective call 0 is | {rank0}: run([a:0]) of session 0 at {at:a}"
            " | {rank1}: run([b:0]) of session 0 at {at:b}" + SAME_CALLS,
        ),
        rc=1,
    ),
    Case(
        "different fetches of steps that have run before",
        VARIABLE + """
session.run(v), session.run(grown)
if rank == 0:
    attempt(lambda: session.run(v))  # v
else:
    attempt(lambda: session.run(grown))  # grown
""",
        tells=(
            "[0]AbortedError: ranks don't make the same calls: collective call 3 is | {rank0}: run([v:0]) of session 0 at {at:v}"
            " | rank ...: run([AssignAdd:0]) of session 0 at {at:grown}" + SAME_CALLS,
            "[1]got np.float32(3.0)",
            "[2]got np.float32(3.0)",
        ),
        prints=("[r1] AbortedError: ranks don't make the same calls", "[r2] AbortedError: ranks don't make the same calls"),
        rc=1,
        env={"MPIRT_STALL_S": "0.2"},
    ),
    Case(
        "run in an if of rank 0",
        VARIABLE + """
session.run(v)
if rank == 0:
    attempt(lambda: session.run(v))  # run
""",
        tells=(
            "[0]AbortedError: ranks don't make the same calls: collective call 2 is | rank ...: the end of its script"
            " | {rank0}: run([v:0]) of session 0 at {at:run}" + SAME_CALLS,
        ),
        prints=("[r1] AbortedError: ranks don't make the same calls", "[r2] AbortedError: ranks don't make the same calls"),
        rc=1,
    ),
    Case(
        "a rank ends its script early",
        VARIABLE + """
for i in range(4):
    if rank == 1 and i == 2:
        sys.exit(0)
    session.run(v)  # run
""",
        prints=(
            "AbortedError: ranks don't make the same calls: collective call 3 is | {rank1}: the end of its script"
            " | ...: run([v:0]) of session 0 at {at:run}",
        ),
        rc=1,
    ),
    Case(
        "sys.exit(3)",
        VARIABLE + """
if rank == 1:
    sys.exit(3)  # exit
session.run(v)
""",
        prints=("/job:worker/task:1] left the script at {at:exit} with exit status 3, ending the job.",),
        never=("is gone", "uncaught"),
        rc=3,
    ),
    Case(
        "an uncaught exception",
        VARIABLE + """
if rank == 1:
    raise KeyError("no such fruit")  # raise
session.run(v)
""",
        prints=("[rank 1 of 3, ...] uncaught KeyError, ending the job: | Traceback (most recent call last): | ...'no such fruit'",),
        never=("is gone", "uncaught UnavailableError"),
        rc=1,
    ),
    Case(
        "an uncaught exception of rank 0",
        VARIABLE + """
if rank == 0:
    raise KeyError("no such fruit")
session.run(v)
""",
        prints=("[rank 0 of 3, ...] uncaught KeyError, ending the job: | Traceback (most recent call last): | ...'no such fruit'",),
        never=("is gone", "uncaught UnavailableError"),
        rc=1,
    ),
    Case(
        "a step takes longer than the session allows",
        CLUSTER + """
with tf.device("/job:worker/task:1"):
    slow = tf.py_func(lambda: time.sleep(1.2) or np.float32(1), [], tf.float32, name="slow")  # slow
    quick = tf.py_func(lambda: np.float32(2), [], tf.float32, name="quick")
session = tf.Session(config=tf.ConfigProto(operation_timeout_in_ms=300))
session.run(quick)
began = time.perf_counter()
attempt(lambda: session.run(slow))
if rank != 1:
    assert 0.25 < time.perf_counter() - began < 1.0, "not on time"
attempt(lambda: session.run(quick, options=tf.RunOptions(timeout_in_ms=5000)))
""",
        tells=(
            "[0]" + TIMEOUT.replace("RANK", "{rank0}"),
            "[2]" + TIMEOUT.replace("RANK", "{rank2}"),
            "[1]...",
            "got np.float32(2.0)",
        ),
    ),
    Case(
        "an unknown job in a with line",
        CLUSTER + """
def build():
    with tf.device("/job:boss/task:0"):  # with
        return tf.constant(1.0)
attempt(build)
def build_far():
    with tf.device("/job:worker/task:7"):
        return tf.constant(1.0)
attempt(build_far)
def build_odd():
    with tf.device("/job:worker/tusk:1"):
        return tf.constant(1.0)
attempt(build_odd)
attempt(lambda: tf.Session().run(tf.constant(3)))
""",
        tells=(
            "InvalidArgumentError: ...'boss'...",
            "InvalidArgumentError: ...7...worker...",
            "ValueError: ...tusk...",
            "got np.int32(3)",
        ),
    ),
    Case(
        "different clusters",
        """
attempt(lambda: tf.cluster({"worker": 3} if rank != 2 else {"ps": 1, "worker": 2}))
""",
        tells=("InvalidArgumentError: ranks asked for different clusters: rank 0 for ...worker:2..., {rank2} for ...ps:0..."
               " | Mend: give every rank the same ClusterSpec.",),
        rc=None,
    ),
    Case(
        "a missing rank table",
        "attempt(tf.cluster)",
        tells=("...no/such/table.toml...",),
        env={"MPIRT_RANK_TABLE": "no/such/table.toml"},
        rc=None,
    ),
    Case(
        "a setting that does not parse",
        "attempt(tf.cluster)",
        tells=(
            "InvalidArgumentError: environment variable MPIRT_EMULATED_GPUS='two' can't be read: expected 0, 1, 2, ....... | Mend: ...",
        ),
        env={"MPIRT_EMULATED_GPUS": "two"},
        rc=None,
    ),
    Case(
        "a log level that is none",
        "attempt(tf.cluster)",
        tells=("InvalidArgumentError: environment variable MPIRT_LOG='LOUD' is no log level. | Mend: use DEBUG, INFO, WARNING or ERROR.",),
        env={"MPIRT_LOG": "loud"},
        rc=None,
    ),
    Case(
        "a launcher of another MPI",
        """
# What the ranks of another MPI's launcher see: its variables, and an MPI in which each of them is alone.
for name in [n for n in os.environ if n.startswith(("OMPI_", "PMI", "PMIX", "PRTE", "HYDI", "MPI_LOCAL", "MPIR_CVAR"))]:
    if not name.startswith("OMPI_ALLOW"):
        del os.environ[name]
os.environ.update(OMPI_COMM_WORLD_RANK=str(rank), OMPI_COMM_WORLD_SIZE="3", OMPI_COMM_WORLD_LOCAL_RANK=str(rank))
attempt(tf.cluster)
""",
        tells=(ALONE,),
        rc=None,
    ),
    Case(
        "mpi4py beside a session",
        """
from mpi4py import MPI
comm = MPI.COMM_WORLD
comm.Barrier()
""" + VARIABLE + """
got = np.empty(4)
for i in range(20):
    request = comm.Irecv(got, (rank - 1) % size, tag=0)
    comm.Send(np.full(4, 10.0 * rank + i), (rank + 1) % size, tag=0)
    value = session.run(grown)
    request.Wait()
    assert value == 2.0 + i and got.tolist() == [10.0 * ((rank - 1) % size) + i] * 4
session.close()
tell(comm.allreduce(rank))
del cluster
MPI.COMM_WORLD.Barrier()
""",
        tells=("3",),
    ),
    Case(
        "many sessions",
        CLUSTER + """
with tf.device("/job:worker/task:1"):
    v = tf.Variable(1.0, name="v")
    grown = v.assign_add(1.0)
sessions = [tf.Session() for _ in range(20)]
for i, session in enumerate(sessions):
    session.run(v.initializer)
    for _ in range(i):
        session.run(grown)
tell([float(session.run(v)) for session in sessions] == [1.0 + i for i in range(20)])
for session in sessions:
    session.close()
attempt(lambda: sessions[0].run(v))
for i in range(20):
    with tf.Graph().as_default(), tf.Session() as session, tf.device("/job:worker/task:2"):
        assert session.run(tf.constant(i) + 1) == i + 1
""",
        tells=("True", "RuntimeError: Attempted to use a closed Session."),
    ),
)


@pytest.mark.one_mpi
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_what_goes_wrong_is_told(mpirun: Mpirun, case: Case) -> None:
    judge(case, mpirun(case.ranks, START + case.script, env=case.env, expect_rc=case.rc, timeout=20))


# ---- ranks that die, sleep, or are interrupted --------------------------------------------------------------------------

LOOP = VARIABLE + """
def pause(x):
    time.sleep(0.01)
    return x

with tf.device("/job:worker/task:2"):
    w = tf.py_func(pause, [v], tf.float32, name="w")
"""


@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("where", ["in a step", "in user code"])
def test_a_killed_rank_ends_the_job_and_is_named(mpirun: Mpirun, victim: int, where: str) -> None:
    """The launchers kill the survivors, too, often before these can say what they see: then the launcher names the process."""
    script = LOOP + f"""
tell("begins")
while True:
    session.run(w)
    if rank == {victim} and {where == "in user code"}:
        tell("sleeps")
        time.sleep(60)
"""
    with mpirun.start(3, START + script) as job:
        job.wait_for(f"rank {victim}: {'begins' if where == 'in a step' else 'sleeps'}")
        time.sleep(0.1)
        pid = job.pid(victim)
        killed = time.monotonic()
        job.signal(victim, signal.SIGKILL)
        result = job.wait(10)
        took = time.monotonic() - killed
    assert not result.timed_out and not result.leftovers and result.rc != 0, result
    assert took < 5, result
    said = re.search(rf"UnavailableError: rank {victim} \(host \S+, pid {pid}, /job:worker/task:{victim}\) is gone", result.stderr)
    # MPICH's launcher may end the survivors first and then names the process whose end it saw first, not always the killed one.
    told = rf"PID {pid}\b" if mpirun.mpi != "mpich" else r"EXIT CODE: 9"
    assert said or re.search(told, result.stdout + result.stderr), result


def test_a_rank_that_leaves_without_a_word_ends_the_job(mpirun: Mpirun) -> None:
    """os._exit(0) skips every goodbye. MPICH's launcher may give the status 0 of that rank or 9 of those that it killed."""
    script = VARIABLE + """
if rank == 1:
    os._exit(0)
session.run(v)
tell("not reached")
"""
    result = mpirun(3, START + script, expect_rc=None, timeout=15)
    assert not result.timed_out and not result.leftovers, result
    assert "not reached" not in result.stdout
    if mpirun.mpi == "openmpi":
        assert result.rc != 0
        assert re.search(r"UnavailableError: rank 1 \(host \S+, pid \d+, /job:worker/task:1\) is gone", result.stderr), result


def test_the_launcher_of_the_other_mpi_is_refused(mpirun: Mpirun, tmp_path: Path) -> None:
    other = {"openmpi": "mpich", "mpich": "openmpi"}.get(mpirun.mpi, "none")
    path = Path(sys.prefix).with_name(f".venv-{other}") / "bin" / "mpirun"
    if not path.exists():
        pytest.skip(f"there is no environment {path.parent.parent.name} with the other MPI")
    script = tmp_path / "script.py"
    script.write_text((START + "attempt(tf.cluster)\n").lstrip("\n"))
    with Job(find_launcher(str(path)), 3, [str(script)]) as job:
        result = job.wait(15)
    if mpirun.mpi == "mpich" and not result.stdout.strip():  # MPICH itself sees it, and ends the process
        assert result.rc != 0 and not result.timed_out, result
        assert "unsupported PMI version PMIx" in result.stderr, result
    else:
        judge(Case("another launcher", "attempt(tf.cluster)\n", tells=(ALONE,)), result)


def test_ranks_that_wait_for_a_stopped_one_say_for_what_and_go_on_when_it_does(mpirun: Mpirun) -> None:
    script = LOOP + """
for i in range(60):
    session.run(w)
    if i == 10:
        tell("at work")
tell("done")
"""
    with mpirun.start(3, START + script, env={"MPIRT_STALL_S": "1"}) as job:
        job.wait_for("rank 1: at work")
        job.signal(1, signal.SIGSTOP)
        time.sleep(2.6)
        job.signal(1, signal.SIGCONT)
        result = job.wait(20)
    assert result.rc == 0 and not result.timed_out, result
    assert sorted(re.findall(r"^rank \d: done", result.stdout, re.MULTILINE)) == [f"rank {rank}: done" for rank in range(3)]
    waits = re.findall(r"waiting for (.*) since (\d+\.\d) s", result.stderr)
    assert waits, result
    known = (
        "tensor 'v/read:0' from /job:worker/task:1 on rank 1 (for /job:worker/task:2)",
        "tensor 'v:0' from /job:worker/task:1 on rank 1 (for /job:worker/task:2)",
        "tensor 'w:0' from /job:worker/task:2 on rank 2 (for fetch)",
        "rank 1 to receive 'w:0' of the step before",
    )
    assert all(what in known for what, _ in waits), waits
    assert any("on rank 1" in what or "rank 1 to" in what for what, _ in waits), waits
    assert all(1.0 <= float(seconds) < 4 for _, seconds in waits), waits


def test_a_step_with_a_timeout_ends_on_time_though_a_rank_is_stopped(mpirun: Mpirun) -> None:
    """Rank 0 hears from rank 2, whose time is up first, that the step has failed, but not from rank 1 how it ended there."""
    script = LOOP + """
quick = tf.Session()
quick.run(v.initializer)
quick.run(w)
own_time = tf.RunOptions(timeout_in_ms=400 if rank == 2 else 800)
tell("ready")
if rank == 1:
    os.kill(os.getpid(), signal.SIGSTOP)
began = time.perf_counter()
try:
    quick.run(w, options=own_time)
except tf.errors.DeadlineExceededError as error:
    tell(f"{time.perf_counter() - began:.2f} {error}")
quick.close()
tell("done")
"""
    with mpirun.start(3, START + script) as job:
        job.wait_for("rank 0: ready")
        job.wait_for("rank 0: 0.", timeout=5)
        job.wait_for("rank 2: 0.", timeout=5)
        job.signal(1, signal.SIGCONT)
        result = job.wait(20)
    assert result.rc == 0, result
    for rank, own_time in ((0, 0.8), (2, 0.4)):
        pattern = rf"^rank {rank}: (\d\.\d\d) the step did not end within its timeout of {own_time} s; it was waiting for "
        found = re.search(pattern, result.stdout, re.MULTILINE)
        assert found and own_time <= float(found[1]) + 0.01 < own_time + 1, result
        assert f"rank {rank}: done" in result.stdout


def test_an_interrupt_of_mpirun_ends_everything(mpirun: Mpirun) -> None:
    script = LOOP + """
tell("begins")
while True:
    session.run(w)
"""
    with mpirun.start(3, START + script) as job:
        for rank in range(3):
            job.wait_for(f"rank {rank}: begins")
        job.launcher.send_signal(signal.SIGINT)
        result = job.wait(10)
    assert not result.timed_out and not result.leftovers and result.rc != 0, result


@pytest.mark.one_mpi
@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("version = 1\n[[job]]\nname = 'worker'\ncuont = 3\n", "cuont"),
        ("version = 1\n[[job]\n", "..."),
        ("rank 0 = * /job:worker/task:0\nrank 1 = * /job:worker/task:0\nrank 2 = * /job:worker/task:2\n", "/job:worker/task:0"),
        ("rank 0 = * /job:worker/task:0\nrank 1 = * /job:worker/task:1\n", "2...3"),
        ("rank 0 = nosuchhost /job:worker/task:0\nrank 1 = * /job:worker/task:1\nrank 2 = * spare\n", "nosuchhost"),
    ],
    ids=["unknown key", "no TOML", "a task twice", "another number of ranks", "another host"],
)
def test_a_rank_table_that_is_wrong_or_does_not_fit_is_refused_on_every_rank(
    mpirun: Mpirun, tmp_path: Path, table: str, reason: str
) -> None:
    path = tmp_path / "table.toml"
    path.write_text(table)
    result = mpirun(3, START + "attempt(tf.cluster)\n", env={"MPIRT_RANK_TABLE": str(path)}, expect_rc=None, timeout=15)
    told = re.findall(r"^rank (\d): (\w+): (.*)$", result.stdout, re.MULTILINE)
    assert sorted(rank for rank, _, _ in told) == ["0", "1", "2"], result
    assert len({(kind, text) for _, kind, text in told}) == 1, "not the same error on every rank"
    kind, text = told[0][1:]
    assert kind == "InvalidArgumentError" and str(path) in text and re.search(expected(reason, "", 3), text), text
    assert not result.timed_out and result.seconds < 10
