"""What every test shares: which tests need a workstation, and how long a property may take."""

import importlib.util

import pytest
from hypothesis import settings

# Property tests judge behaviour, never time: the machine may be a busy one.
settings.register_profile("project", deadline=None)
settings.load_profile("project")

ON_A_BOARD = importlib.util.find_spec("torch") is None
# A board runs the runtime alone.
collect_ignore = ["broker_server", "export", "federation"] if ON_A_BOARD else []


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip, where torch is absent, what is marked for a workstation."""
    if not ON_A_BOARD:
        return
    skip = pytest.mark.skip(reason="needs a workstation: torch is not installed here")
    for item in items:
        if item.get_closest_marker("workstation"):
            item.add_marker(skip)
