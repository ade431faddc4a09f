"""The transport over MPI: what every transport promises, what a failing rank does to the job, how it starts and ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from mpirt.errors import FailedPreconditionError, InternalError
from mpirt.transport import base
from mpirt.transport.base import Transport, wait_until
from mpirt.transport.mpi import MpiTransport
from tests.mpirun_plugin import Mpirun
from tests.transport_conformance import CHECKS, complete, everyone, meet, next_control

START = """
    import os, signal, sys, threading, time
    import numpy as np
    from mpirt.transport.abort_hook import install_abort_hook
    from mpirt.transport.base import wait_until
    from mpirt.transport.mpi import MpiTransport

    transport = MpiTransport()
    rank, size = transport.rank, transport.size
    install_abort_hook(transport, lambda: f"/job:worker/task:{rank}")

    def wait_for_ever():
        receive = transport.irecv(np.empty(1), (rank + 1) % size, 1)
        wait_until(receive.test, lambda: "a message that never comes", timeout_s=20)
"""


@pytest.fixture
def transport() -> Iterator[MpiTransport]:
    """This rank's transport; it is finalized only if the test succeeds, as the harness ends the ranks of a failed one."""
    transport = MpiTransport()
    yield transport
    transport.finalize()


@pytest.mark.ranks([1, 3], timeout=120)
def test_it_is_a_transport(transport: Transport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "CHUNK_NBYTES", 1024)
    for check in CHECKS:
        try:
            check(transport)
        except BaseException as error:
            error.add_note(f"in {check.__name__}, rank {transport.rank}")
            raise


@pytest.mark.ranks(2)
def test_threads_of_a_rank_send_and_receive_at_the_same_time(transport: Transport) -> None:
    peer = 1 - transport.rank
    wrong: list[str] = []

    def exchange(tag: int) -> None:
        for i in range(200):
            got = np.empty(3, int)
            receive = transport.irecv(got, peer, tag)
            complete(transport.isend(np.array([peer, tag, i]), peer, tag), receive)
            if got.tolist() != [transport.rank, tag, i]:
                wrong.append(f"{got} for tag {tag}, message {i}")

    threads = [threading.Thread(target=exchange, args=(tag,)) for tag in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.ranks(2)
def test_control_messages_reach_each_polling_thread_once(transport: Transport) -> None:
    if transport.rank == 0:
        for i in range(200):
            transport.send_control(1, str(i).encode())
        meet(transport)
        return
    got: list[int] = []

    def poll() -> None:
        wait_until(lambda: len(got) == 200, lambda: "200 messages", timeout_s=20, on_idle=take)

    def take() -> None:
        while (message := transport.poll_control()) is not None:
            got.append(int(message.payload))

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(200))
    meet(transport)


@pytest.mark.ranks(2)
def test_a_communicator_of_the_users_is_used_and_left_alone() -> None:
    from mpi4py import MPI

    users = MPI.COMM_WORLD.Split(0, key=-MPI.COMM_WORLD.rank)
    assert isinstance(users, MPI.Intracomm)
    transport = MpiTransport(users)
    assert (transport.rank, transport.size) == (1 - MPI.COMM_WORLD.rank, 2)
    message = np.array([5.0])
    request = users.Irecv([message, MPI.BYTE], 1 - users.rank, 3)
    complete(transport.isend(np.array([6.0]), 1 - users.rank, 3))
    got = np.empty(1)
    complete(transport.irecv(got, 1 - users.rank, 3))
    users.Send([np.array([7.0]), MPI.BYTE], 1 - users.rank, 3)
    request.Wait()
    assert (got[0], message[0]) == (6.0, 7.0)
    transport.finalize()
    transport.finalize()
    assert not MPI.Is_finalized(), "the user started MPI"
    users.Barrier()


@pytest.mark.ranks(2)
def test_the_runtime_ends_the_mpi_that_it_started(transport: MpiTransport) -> None:
    assert transport.hosts[0] == transport.hosts[1]
    assert transport.pids[transport.rank] == os.getpid()
    assert transport.max_tag >= 2**29 - 2
    assert transport.name.startswith(("Open MPI ", "MPICH ", "Intel MPI "))
    transport.finalize()
    assert transport.mpi.Is_finalized()
    with pytest.raises(FailedPreconditionError, match="MPI has ended in this process"):
        MpiTransport()


@pytest.mark.ranks(1)
def test_a_rank_that_is_alone_though_the_launcher_started_four_is_refused() -> None:
    with pytest.raises(FailedPreconditionError) as caught:
        MpiTransport(expected_size=4)
    message = caught.value.message
    assert message.startswith("the launcher started 4 processes, but for MPI this one is alone (rank 0 of 1)")
    assert "started by /" in message and ("MPICH" in message or "Open MPI" in message)
    assert "--mpi=pmix" in caught.value.hint


@pytest.mark.ranks(1)
def test_a_tag_out_of_range_is_an_error_that_names_it(transport: MpiTransport) -> None:
    with pytest.raises(InternalError, match="send of 8 bytes to rank 0 .*, tag -5. failed on rank 0 of 1"):
        transport.isend(np.empty(1), 0, -5)


@pytest.mark.ranks(2)
def test_a_stopped_rank_is_alive(transport: Transport) -> None:
    if transport.rank == 0:
        os.kill(transport.pids[1], signal.SIGSTOP)
        time.sleep(0.05)
        alive = transport.peer_alive(1)
        os.kill(transport.pids[1], signal.SIGCONT)
        assert alive
    meet(transport)


# ---- whole programs ----------------------------------------------------------------------------------------------------


def test_a_child_of_multiprocessing_may_not_start_mpi(mpirun: Mpirun) -> None:
    result = mpirun(
        None,
        """
        import multiprocessing
        from mpirt.transport.mpi import MpiTransport

        def child():
            try:
                MpiTransport()
            except Exception as error:
                print(type(error).__name__, error)

        if __name__ == "__main__":
            process = multiprocessing.get_context("spawn").Process(target=child)
            process.start()
            process.join()
        """,
    )
    assert "FailedPreconditionError mpirt can't start MPI in process" in result.stdout
    assert "Mend: use sessions and servers in the process that mpirun started" in result.stdout


def test_an_uncaught_exception_ends_the_job_with_status_1_and_names_the_rank(mpirun: Mpirun) -> None:
    result = mpirun(3, START + """
    if rank == 1:
        raise KeyError("no such fruit")
    wait_for_ever()
    """, expect_rc=1)
    assert "[rank 1 of 3, " in result.stderr
    assert "/job:worker/task:1] uncaught KeyError, ending the job:\nTraceback (most recent call last):" in result.stderr
    assert "KeyError: 'no such fruit'" in result.stderr


def test_an_uncaught_exception_ends_the_job_also_when_another_excepthook_has_replaced_ours(mpirun: Mpirun) -> None:
    result = mpirun(2, START + """
    if rank == 1:
        sys.excepthook = lambda kind, error, trace: print("mine:", error, file=sys.stderr)
        raise KeyError("no such fruit")
    wait_for_ever()
    """, expect_rc=1)
    assert "mine: 'no such fruit'" in result.stderr
    assert "left the script at " in result.stderr


@pytest.mark.parametrize(
    ("leave", "status"), [("sys.exit(3)", 3), ("sys.exit('no data')", 1), ("exit(4)", 4), ("deep()", 5), ("in_thread()", 6)]
)
def test_a_nonzero_exit_of_one_rank_ends_the_job_with_that_status(mpirun: Mpirun, leave: str, status: int) -> None:
    result = mpirun(2, START + f"""
    def deep():
        try:
            sys.exit(5)
        finally:
            print("cleaned up", flush=True)

    def in_thread():
        threading.Thread(target=wait_for_ever).start()  # not a daemon: Python waits for it at exit
        sys.exit(6)

    if rank == 1:
        {leave}
    wait_for_ever()
    """, expect_rc=status)
    assert f"exit status {status}, ending the job" in result.stderr


def test_a_status_that_all_ranks_end_with_lets_each_end_by_itself(mpirun: Mpirun) -> None:
    result = mpirun(2, START + """
    import atexit
    atexit.register(transport.finalize)
    atexit.register(lambda: print("rank", rank, "ends", flush=True))
    time.sleep(0.3 * rank)
    sys.exit(75)
    """, expect_rc=75)
    assert "rank 0 ends" in result.stdout and "rank 1 ends" in result.stdout
    assert "ending the job" not in result.stderr


@pytest.mark.parametrize("leave", ["pass", "sys.exit()", "sys.exit(0)", "raise SystemExit(0)", "caught()"])
def test_a_script_that_ends_well_ends_nobody_else(mpirun: Mpirun, leave: str) -> None:
    mpirun(2, START + f"""
    import atexit
    atexit.register(transport.finalize)

    def caught():
        try:
            sys.exit(3)
        except SystemExit:
            pass

    if rank == 0:
        time.sleep(0.5)
    {leave}
    """)


def test_an_interrupt_from_the_keyboard_is_status_130(mpirun: Mpirun) -> None:
    mpirun(2, START + """
    if rank == 1:
        os.kill(os.getpid(), signal.SIGINT)
    wait_for_ever()
    """, expect_rc=130)


def test_abort_prints_what_was_printed_before_and_ends_the_job_with_its_status(mpirun: Mpirun) -> None:
    result = mpirun(2, START + """
    if rank == 1:
        sys.stdout.reconfigure(line_buffering=False, write_through=False)
        print("last words")
        transport.abort(9)
    wait_for_ever()
    """, expect_rc=9, env={"PYTHONUNBUFFERED": None})
    assert "last words" in result.stdout


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(0)", "os._exit(3)"])
def test_survivors_see_a_rank_that_ends_without_a_word_if_the_launcher_lets_them_live(mpirun: Mpirun, end: str) -> None:
    """MPICH's launcher may kill the survivors before they look; its status after os._exit(0) is then 0 at times."""
    result = mpirun(3, START + f"""
    shared = os.environ["MPIRT_TEST_FOLDER"]
    if rank == 1:
        time.sleep(0.2)
        open(f"{{shared}}/gone", "w").write(str(time.time()))
        {end}
    while (gone := transport.check_peers([1])) is None:
        time.sleep(0.001)
    print(f"rank {{gone}} is gone since {{1e3 * (time.time() - float(open(f'{{shared}}/gone').read())):.1f}} ms", flush=True)
    transport.abort(7)
    """, expect_rc=None)
    assert not result.timed_out
    milliseconds = [float(line.split()[-2]) for line in result.stdout.splitlines() if "rank 1 is gone since" in line]
    if milliseconds:
        assert min(milliseconds) < 200
    elif mpirun.mpi == "openmpi" or "SIGKILL" in end:
        assert result.rc != 0


def test_finalize_ends_the_job_when_a_rank_is_gone(mpirun: Mpirun) -> None:
    result = mpirun(3, START + """
    if rank == 1:
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGKILL)
    began = time.perf_counter()
    transport.finalize()
    """, expect_rc="nonzero", timeout=20)
    assert result.seconds < 15


def test_finalize_does_not_wait_without_end_for_a_rank_that_never_leaves(mpirun: Mpirun) -> None:
    result = mpirun(2, START + """
    if rank == 1:
        time.sleep(60)
    transport.finalize()
    """, expect_rc=1, env={"MPIRT_EXIT_TIMEOUT_S": "0.5"}, timeout=20)
    assert "can't leave the job: waited 0.5 s for the other 1 ranks to end too" in result.stderr


def test_a_start_without_a_transport_on_every_rank_is_given_up(mpirun: Mpirun) -> None:
    result = mpirun(2, """
    import os, sys, time
    from mpi4py import MPI
    from mpirt.transport.mpi import MpiTransport
    if MPI.COMM_WORLD.rank == 1:
        time.sleep(60)
    try:
        MpiTransport()
    except Exception as error:
        print(type(error).__name__, error, flush=True)
        os._exit(3)
    """, expect_rc=3, env={"MPIRT_START_TIMEOUT_S": "0.5"}, timeout=20)
    assert "DeadlineExceededError waited 0.5 s for all 2 ranks to start their transport (this is rank 0)" in result.stdout


def test_a_start_for_which_a_rank_is_missing_ends_by_itself(mpirun: Mpirun) -> None:
    result = mpirun(2, """
    import os, time
    from mpirt.transport.mpi import MpiTransport
    if (os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK")) == "1":
        time.sleep(60)
    MpiTransport()
    """, expect_rc="nonzero", env={"MPIRT_START_TIMEOUT_S": "1"}, timeout=30)
    assert "Timeout" in result.stderr and "_start_mpi" in result.stderr


@pytest.mark.ranks(2)
def test_large_control_messages_do_not_hold_up_the_end(transport: Transport) -> None:
    transport.send_control(1 - transport.rank, b"never read" * 500_000)


@pytest.mark.ranks(2)
def test_a_waiting_rank_uses_little_of_a_core(transport: Transport) -> None:
    if transport.rank == 0:
        time.sleep(1.0)
        transport.send_control(1, b"go")
    else:
        began = time.process_time()
        assert next_control(transport).payload == b"go"
        assert time.process_time() - began < 0.3
    assert transport.check_peers(everyone(transport)) is None
    meet(transport)
