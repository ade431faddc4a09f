"""``tf.logging``, as a script uses it that sets up no logging of its own."""

from pathlib import Path
from typing import Any

import pytest

HEAD = "import mpirt as tf\n"
STARTED = "INFO:mpirt:[r0] /job:worker/task:0 on loopback, 1 ranks"


@pytest.mark.parametrize(
    ("script", "env", "printed"),
    [
        ("tf.logging.set_verbosity(tf.logging.INFO); tf.logging.info('loss %.1f', 0.25)", {}, ["INFO:mpirt:loss 0.2"]),
        ("tf.logging.info('quiet'); tf.logging.warn('loud')", {}, ["WARNING:mpirt:loud"]),
        # What the script chose stays when the cluster starts; MPIRT_LOG holds for scripts that choose nothing.
        ("tf.logging.set_verbosity(tf.logging.INFO); tf.Session(); tf.logging.info('here')", {}, [STARTED, "INFO:mpirt:here"]),
        ("tf.Session(); tf.logging.info('here')", {"MPIRT_LOG": "ERROR"}, []),
        ("tf.Session(); tf.logging.error('here')", {"MPIRT_LOG": "ERROR"}, ["ERROR:mpirt:here"]),
        # Once, where the script has its own handlers.
        ("import logging; logging.basicConfig(format='mine %(message)s'); tf.logging.warning('once')", {}, ["mine once"]),
        (
            "for i in range(5):\n    tf.logging.log_every_n(tf.logging.ERROR, '%d of five', 2, i)\n"
            "    tf.logging.log_first_n(tf.logging.ERROR, 'first %d', 1, i)\n    tf.logging.log_if(tf.logging.ERROR, 'if %d', i == 4, i)",
            {},
            ["ERROR:mpirt:0 of five", "ERROR:mpirt:first 0", "ERROR:mpirt:2 of five", "ERROR:mpirt:4 of five", "ERROR:mpirt:if 4"],
        ),
    ],
)  # fmt: skip
def test_what_a_script_logs_is_printed_to_stderr(mpirun: Any, tmp_path: Path, script: str, env: dict[str, str], printed: list[str]) -> None:
    path = tmp_path / "script.py"
    path.write_text(HEAD + script)
    assert mpirun(None, path, env=env).stderr.splitlines() == printed
