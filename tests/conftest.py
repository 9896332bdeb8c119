from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Before torch and Ray are imported. One thread makes training repeatable to the bit, however pytest was started; on a
# shared machine whose memory others fill, Ray must not end our workers for it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")

# A shared, loaded machine is no reason for a property to fail, and a landing no place for a new example: the same
# ones each time, other ones with HYPOTHESIS_PROFILE=fuzz.
settings.register_profile("prunefront", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", settings.get_profile("prunefront"), derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "prunefront"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start Ray come first: each stays in one process, and the longest should not be the last to end."""
    with_ray = {item.path for item in items if "ray" in item.keywords}
    items.sort(key=lambda item: item.path not in with_ray)
