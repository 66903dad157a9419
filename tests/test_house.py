"""The picture of the house shows the package as it is, and no arrow in it leads up."""

import importlib.util
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "numpyro_kaem"
SVG = "{http://www.w3.org/2000/svg}"
spec = importlib.util.spec_from_file_location("house", ROOT / "docs" / "house.py")
house = importlib.util.module_from_spec(spec)
spec.loader.exec_module(house)


@pytest.fixture(scope="module")
def ours():
    return house.read_house()


def make(tmp_path, sources):
    """A package of these sources, by path below its root."""
    package = tmp_path / "home"
    for name, source in sources.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text(source)
    return house.read_house(package)


def test_all_folders_and_files_of_the_package_are_rooms_with_all_their_files(ours):
    there = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    there |= {path.name for path in PACKAGE.glob("*.py")} - {"__init__.py", "__main__.py"}
    assert set(ours.rooms) == there
    for name, room in ours.rooms.items():
        files = {path.stem for path in (PACKAGE / name).glob("*.py")} - {"__init__"}
        assert set(room.files) == files
        assert len(room.files) == len(files)
        assert room.says
        sources = [PACKAGE / name] if name.endswith(".py") else (PACKAGE / name).glob("*.py")
        assert room.lines == sum(path.read_text().count("\n") for path in sources)


def test_arrows_lead_down_and_each_room_stands_on_what_it_imports(ours):
    assert len(ours.arrows) > 20
    floor = {name: room.floor for name, room in ours.rooms.items()}
    assert [arrow for arrow in ours.arrows if floor[arrow[0]] <= floor[arrow[1]]] == []
    for name in ours.rooms:
        below = [floor[end] for start, end in ours.arrows if start == name]
        assert floor[name] == (1 + max(below) if below else 0)


def test_known_imports_are_arrows(ours):
    assert {("posterior", "models"), ("training", "objectives"), ("energies", "_numerics")} <= set(ours.arrows)
    # The root imports all rooms, and is none.
    assert all(not name.startswith("__") for arrow in ours.arrows for name in arrow)


def test_what_is_left_out_follows_from_what_is_drawn(ours):
    drawn = set(ours.direct)
    assert drawn < set(ours.arrows)
    reached = set(drawn)
    while more := {(a, d) for a, b in reached for c, d in drawn if b == c} - reached:
        reached |= more
    assert set(ours.arrows) <= reached
    for arrow in drawn:
        others = drawn - {arrow}
        reached = set(others)
        while more := {(a, d) for a, b in reached for c, d in others if b == c} - reached:
            reached |= more
        assert arrow not in reached


def test_imports_of_every_kind_are_counted_and_those_for_type_checkers_are_not(tmp_path):
    built = make(
        tmp_path,
        {
            "low/a.py": "",
            "middle/b.py": "import home.low.a\n",
            "top/c.py": "from ..low import a\nfrom home import middle\ndef f():\n    from home.low.a import x\n",
            "aside/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from home.top import c\n",
        },
    )
    assert built.arrows == {("middle", "low"): 1, ("top", "low"): 2, ("top", "middle"): 1}
    assert {name: room.floor for name, room in built.rooms.items()} == {"low": 0, "middle": 1, "top": 2, "aside": 0}
    assert set(built.direct) == {("middle", "low"), ("top", "middle")}


def test_rooms_that_import_in_a_circle_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"circle: \['one', 'two'\]"):
        make(tmp_path, {"one/a.py": "import home.two.b", "two/b.py": "import home.one.a", "three/c.py": ""})


def test_the_picture_has_every_room_once_and_no_boxes_that_overlap(ours):
    picture = ElementTree.fromstring(house.draw(ours))
    groups = [group for group in picture.iter(f"{SVG}g") if group.get("class") != "roof"]
    names = [group.find(f"{SVG}text[@class='name']").text for group in groups]
    assert sorted(names) == sorted(ours.rooms)
    sizes = [[float(group.find(f"{SVG}rect").get(key)) for key in ("x", "y", "width", "height")] for group in groups]
    width, height = (float(picture.get(key)) for key in ("width", "height"))
    for i, (x, y, wide, high) in enumerate(sizes):
        assert x >= 0 and y >= 0 and x + wide <= width and y + high <= height
        for other_x, other_y, other_wide, other_high in sizes[:i]:
            assert x + wide < other_x or other_x + other_wide < x or y + high < other_y or other_y + other_high < y


def test_arrows_of_the_picture_lead_down_and_pass_through_no_box(ours):
    picture = ElementTree.fromstring(house.draw(ours))
    boxes = [[float(rect.get(key)) for key in ("x", "y", "width", "height")] for rect in picture.iter(f"{SVG}rect")]
    ways = [path.get("d") for path in picture.iter(f"{SVG}path") if path.get("marker-end")]
    assert len(ways) == len(ours.direct)
    for way in ways:
        points = [tuple(map(float, point.split(","))) for point in re.findall(r"[-\d.]+,[-\d.]+", way)]
        assert [y for _, y in points] == sorted(y for _, y in points)
        # What is straight down a floor: between the end of a curve and the point of an L.
        for (x, y), (_, end) in [
            (tuple(map(float, a.split(","))), tuple(map(float, b.split(","))))
            for a, b in re.findall(r"([-\d.]+,[-\d.]+) L([-\d.]+,[-\d.]+)", way)
        ]:
            inside = [box for box in boxes if box[0] < x < box[0] + box[2] and y < box[1] + box[3] and box[1] < end]
            assert inside == []


def test_colours_follow_the_page_and_private_rooms_do_not_differ_by_colour_alone(ours):
    text = house.draw(ours)
    colours = set(re.findall(r"(?:fill|stroke): ([^;]+);", text)) - {"none"}
    assert all(colour.startswith("var(--md-") or colour in {"#2f86c1", "#8a94a0"} for colour in colours)
    assert "stroke-dasharray" in text.split(".house .private rect")[1].split("}")[0]


def test_the_hook_puts_the_picture_where_the_page_asks_for_it():
    hooks = (ROOT / "docs" / "hooks.py").read_text()
    placeholder = re.search(r'^HOUSE = "(.*)"$', hooks, re.MULTILINE)[1]
    assert placeholder in (ROOT / "docs" / "design.md").read_text()
