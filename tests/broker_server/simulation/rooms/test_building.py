import pytest

pytest.importorskip("PIL")

from broker_server.simulation.rooms.building import DOMAINS, RoomsInvalid, Settings, draw_buildings
from edge_runtime.datasets.taskonomy import find_views

pytestmark = pytest.mark.workstation

SMALL = Settings(buildings=2, images=9, size=8)


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.png")}


def test_draw_buildings_gives_the_same_bytes_with_two_processes(tmp_path):
    told = []
    draw_buildings(tmp_path / "one", SMALL, processes=1, report=lambda *said: told.append(said))
    draw_buildings(tmp_path / "two", SMALL, processes=2)
    assert told == [(8, 18), (16, 18), (18, 18)]
    one = contents(tmp_path / "one")
    assert len(one) == 18 * len(DOMAINS)
    assert one == contents(tmp_path / "two")


def test_draw_buildings_in_taskonomys_form(tmp_path):
    drawn = draw_buildings(tmp_path, SMALL, processes=1)
    assert drawn.new == 18
    found = find_views(tmp_path)
    assert list(found) == ["building_00", "building_01"]
    assert [(view.point, view.view) for view in found["building_00"][:3]] == [(0, 0), (0, 1), (1, 0)]
    assert set(found["building_01"][8].files) == set(DOMAINS)


@pytest.mark.slow
def test_draw_buildings_goes_on_where_it_was_broken_off(tmp_path):
    draw_buildings(tmp_path, SMALL, processes=1)
    before = contents(tmp_path)
    lost = tmp_path / "building_01" / "point_2_view_1_domain_normal.png"
    lost.unlink()
    assert draw_buildings(tmp_path, SMALL, processes=1).new == 1
    assert contents(tmp_path) == before
    assert draw_buildings(tmp_path, SMALL, processes=1).new == 0


@pytest.mark.slow
def test_draw_buildings_over_others(tmp_path):
    draw_buildings(tmp_path, SMALL, processes=1)
    with pytest.raises(RoomsInvalid, match="holds rooms drawn otherwise"):
        draw_buildings(tmp_path, Settings(buildings=2, images=9, size=8, seed=1), processes=1)


def test_draw_buildings_over_something_else(tmp_path):
    (tmp_path / "building_01").mkdir()
    with pytest.raises(RoomsInvalid, match="building_01 is there already"):
        draw_buildings(tmp_path, SMALL, processes=1)
    assert not (tmp_path / "rooms.json").exists()


def test_draw_buildings_with_a_damaged_record(tmp_path):
    (tmp_path / "rooms.json").write_text("{")
    with pytest.raises(RoomsInvalid, match=r"rooms\.json is not understood"):
        draw_buildings(tmp_path, SMALL, processes=1)


@pytest.mark.parametrize("wrong", [{"buildings": 0}, {"images": -1}, {"size": 4}, {"size": 5000}, {"seed": -1}])
def test_draw_buildings_of_impossible_sizes(tmp_path, wrong):
    with pytest.raises(RoomsInvalid, match=f"cannot be drawn so: .*{next(iter(wrong))}"):
        draw_buildings(tmp_path, Settings(**wrong), processes=1)
