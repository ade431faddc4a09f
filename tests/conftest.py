"""Every test sees the fixtures and the ``ranks`` marker of tests/mpirun_plugin.py, and ``--gpu`` of tests/gpu_plugin.py.

Property tests look for new examples each time, except in CI: a submission is judged by the same ones whenever it runs.
"""

import os

from hypothesis import settings

pytest_plugins = ["tests.mpirun_plugin", "tests.gpu_plugin"]

settings.register_profile("ci", derandomize=True)
settings.register_profile("gpu", deadline=None, derandomize=True)  # a kernel is compiled when it is used first
if os.environ.get("CI"):
    settings.load_profile("ci")
