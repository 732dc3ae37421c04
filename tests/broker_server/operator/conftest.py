import socket

import pytest


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def make_stage(tmp_path, free_port):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from page_stage import Stage

    stages = []

    def make(**options):
        stages.append(Stage(tmp_path, free_port, **options))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(make_stage):
    return make_stage()
