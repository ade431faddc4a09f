"""The name of a task: one member of a job, ``/job:worker/task:1``.

Plans speak of tasks; only the transport turns a task into an MPI rank (by the rank table).
"""

from __future__ import annotations

from typing import NamedTuple

JOB_NAME = r"[A-Za-z][A-Za-z0-9_.-]*"  # what the run-time parser of TensorFlow takes, and the dot its front end takes


class Task(NamedTuple):
    """Job name and task number; hashable, ordered by (job, index), printed as ``/job:ps/task:0``."""

    job: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of a task

    def __str__(self) -> str:
        return f"/job:{self.job}/task:{self.index}"
