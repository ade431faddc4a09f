"""Every test sees the fixtures and the ``ranks`` marker of tests/mpirun_plugin.py, and ``--gpu`` of tests/gpu_plugin.py.

Property tests look for new examples each time, except in CI: a submission is judged by the same ones whenever it runs. None has
a deadline: how long an example takes says more of the machine than of us.
"""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ["tests.mpirun_plugin", "tests.gpu_plugin"]

settings.register_profile("mpirt", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("mpirt"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "mpirt")
