import pytest
from ports import free_port


@pytest.fixture
def make_stage(tmp_path):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    from page_stage import Stage

    stages = []

    def make(**options):
        stages.append(Stage(tmp_path, free_port(), **options))
        return stages[-1]

    yield make
    for stage in stages:
        stage.close()


@pytest.fixture
def stage(make_stage):
    return make_stage()
