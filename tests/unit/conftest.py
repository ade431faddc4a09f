"""Unit tests build graphs for clusters that don't exist: no device is checked against a cluster that another test started."""

import pytest

from mpirt.graph import device_scope


@pytest.fixture(autouse=True)
def no_cluster_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_scope, "_device_check", None)
