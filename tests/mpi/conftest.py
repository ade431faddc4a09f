"""Tests written for pytest-mpi run only where pytest-mpi is asked for, inside ranks: test_harness.py does that."""

from pathlib import Path

import pytest


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    for_pytest_mpi = collection_path.name == "test_pytest_mpi.py"
    return True if for_pytest_mpi and not config.getoption("--with-mpi", default=False) else None
