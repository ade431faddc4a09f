"""Every test sees the fixtures and the ``ranks`` marker of tests/mpirun_plugin.py."""

pytest_plugins = ["tests.mpirun_plugin"]
