"""Entry point and command line flags of TensorFlow-1 scripts: ``tf.app.run()`` (absl's) and ``tf.app.flags``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app as _absl_app

from mpirt import flags

__all__ = ["flags", "run"]


def run(main: Callable[..., Any] | None = None, argv: Sequence[str] | None = None) -> None:
    """Parse the flags, run ``main(argv)`` (by default the script's ``main``) and exit with its result."""
    function = main or sys.modules["__main__"].main
    _absl_app.run(main=function, argv=None if argv is None else list(argv), flags_parser=lambda args: flags.FLAGS(args, known_only=True))
