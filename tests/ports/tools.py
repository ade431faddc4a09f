"""How the scripts here are run, and compared with what TensorFlow says of them.

tensorflow.json holds what the same scripts print with ``import tensorflow.compat.v1 as tf`` (2.21, v2 behaviour off);
tensorflow_answers.py writes it.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
TENSORFLOW: dict[str, Any] = json.loads((HERE / "tensorflow.json").read_text())


def results(mpirun: Any, n: int | None, command: str, rank_args: Sequence[Sequence[str]] = ()) -> list[str]:
    """What each rank printed as its result."""
    return results_in(run(mpirun, n, command, rank_args).stdout)


def run(mpirun: Any, n: int | None, command: str, rank_args: Sequence[Sequence[str]] = ()) -> Any:
    """Run a command, the name of a script and its arguments; every rank may get arguments of its own after them."""
    script, *args = command.split()
    return mpirun(n, HERE / f"{script}.py", args, rank_args=rank_args, timeout=120)


def results_in(printed: str) -> list[str]:
    return re.findall(r"RESULT (\{.*\})", printed)


def assert_agree(mine: Any, theirs: Any, where: str = "") -> None:
    if isinstance(theirs, dict):
        assert mine.keys() == theirs.keys(), where
        for key in theirs:
            assert_agree(mine[key], theirs[key], f"{where}.{key}")
    elif isinstance(theirs, str) or (isinstance(theirs, list) and isinstance(theirs[0], str)):
        assert mine == theirs, where
    else:
        np.testing.assert_allclose(mine, theirs, rtol=2e-5, atol=2e-6, err_msg=where)
