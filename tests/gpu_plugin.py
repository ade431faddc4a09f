"""``pytest --gpu``: tests on a real GPU.

Without it no test sees a GPU, wherever it runs, and those marked ``gpu`` are left out. With it these run, and the reference
evaluation (tests/reference.py) uses the kernels for GPUs. scripts/gpu-check runs what is worth it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

from tests.mpirun_plugin import IN_RANK


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--gpu", action="store_true", help="on a real GPU: run tests marked gpu, and kernels of references there")
    parser.addoption("--gpu-kernels", metavar="DIR", help="with --gpu: note in DIR the operation types whose kernels ran there")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if IN_RANK:
        return
    if not config.getoption("--gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # also of the ranks that tests start
        return
    from mpirt.runtime.device import visible_gpus
    from tests import reference

    if not visible_gpus():
        raise pytest.UsageError("--gpu: cupy is not installed here or sees no GPU (see 'On a GPU' in README.md).")
    reference.DEVICE = "GPU:0"
    settings.load_profile("ci")


def pytest_report_header(config: pytest.Config) -> str:
    return "gpu: tests run on it (--gpu)" if config.getoption("--gpu") else "gpu: hidden; tests marked gpu need --gpu"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not IN_RANK and not config.getoption("--gpu"):
        left_out = [item for item in items if item.get_closest_marker("gpu")]
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
        config.hook.pytest_deselected(items=left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    folder = session.config.getoption("--gpu-kernels")
    if folder and not IN_RANK:
        from tests import reference

        Path(folder, f"{os.getpid()}.txt").write_text("\n".join(sorted(reference.RAN)))
