"""What a session tells about the steps it has compiled: programs as files, places of operations on standard error."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mpirt import config
from mpirt.compiler.buffers import assign_buffers
from mpirt.compiler.placer import DeviceName
from mpirt.compiler.program import Program
from mpirt.graph.graph import Operation
from mpirt.runtime.device import is_emulated


def dump_program(program: Program, session: int | str, step: int, memory: Sequence[int]) -> None:
    """Write the program into the folder of ``MPIRT_DUMP_PROGRAM``, if that is set; ``memory`` is the transport's."""
    folder = config.get("MPIRT_DUMP_PROGRAM")
    if folder:
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        text = program.text(memory) + assign_buffers(program).text()
        (path / f"session-{session}-step-{step}-rank-{program.rank}.txt").write_text(text)


def print_placement(placement: Mapping[Operation, DeviceName], known: Collection[Operation]) -> None:
    """Print where operations are, by name; not those ``known`` from earlier steps (``log_device_placement``)."""
    for op in sorted((op for op in placement if op not in known), key=lambda o: o.name):
        device = placement[op]
        print(f"{op.name}: ({op.type}): {device}{' (emulated)' if is_emulated(device.local) else ''}", file=sys.stderr)
    sys.stderr.flush()
