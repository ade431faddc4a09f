"""Imported by Python at start-up in every rank that the tests launch (its folder is first in their PYTHONPATH).

So that a test can signal rank k and ask it for its stacks, while the rank's program stays exactly what a user would run:
writes ``rank<k>.pid`` into the job's folder, has lines printed as soon as they end, and dumps all Python stacks to
``rank<k>.stack`` on a crash or on DUMP_SIGNAL.
Python processes that a rank itself starts find the file taken and are left alone.
"""

import faulthandler
import io
import os
import signal
import sys

DUMP_SIGNAL = signal.SIGRTMIN + 9  # as in tests/launch.py; a real-time signal, as programs under test use USR1 and USR2


def _announce(folder: str) -> None:
    rank = os.environ.get("OMPI_COMM_WORLD_RANK") or os.environ.get("PMI_RANK") or "0"
    try:
        descriptor = os.open(f"{folder}/rank{rank}.pid", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    except OSError:
        return
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a rank printed before it was killed is part of the evidence; whole lines, as mpirun mixes those of all ranks.
            stream.reconfigure(line_buffering=True, write_through=False)
    stack = open(f"{folder}/rank{rank}.stack", "w")  # noqa: SIM115  (stays open as long as the process)
    faulthandler.enable(file=stack)
    faulthandler.register(DUMP_SIGNAL, file=stack, all_threads=True)
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)


if "MPIRT_TEST_FOLDER" in os.environ:
    _announce(os.environ["MPIRT_TEST_FOLDER"])
