"""The house: the rooms of the package and what they import from one another, as data and as a picture.

A room is a folder of the package, or a file beside the folders. Rooms stand on floors: each is one floor above the
highest room that it imports from, so that every arrow leads down. The hook puts the picture into the page on the
design, drawn from the sources that are there when the page is built.
"""

from __future__ import annotations

import ast
import html
import itertools
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parent.parent / "numpyro_kaem"


class Room(NamedTuple):
    """A folder of the package, or a file beside the folders.

    Attributes:
        name: of the folder or file.
        says: the first line of its docstring.
        files: names of its files, in the order in which they may import; empty for a file.
        lines: number of lines of code, comments and docstrings.
        floor: counted from 0 at the bottom.
    """

    name: str
    says: str
    files: tuple[str, ...]
    lines: int
    floor: int

    @property
    def is_private(self) -> bool:
        """Whether users have no business in it."""
        return self.name.startswith("_") or self.name == "checks.py"


class House(NamedTuple):
    """Rooms by name, and arrows (from, to): how many imports lead from one room to another."""

    rooms: dict[str, Room]
    arrows: dict[tuple[str, str], int]

    @property
    def direct(self) -> list[tuple[str, str]]:
        """Arrows that no chain of other arrows implies."""
        below = {name: {end for start, end in self.arrows if start == name} for name in self.rooms}

        def all_below(name):
            return set().union(*({end} | all_below(end) for end in below[name]))

        return [(a, b) for a, b in self.arrows if not any(b in all_below(c) for c in below[a] - {b})]


def read_house(package: Path = PACKAGE) -> House:
    """Read rooms and arrows from the imports of a package.

    Raises:
        ValueError: if rooms import from one another in a circle.
    """
    places = [path for path in package.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    places = sorted(path for path in places if path.name not in ("__init__.py", "__main__.py"))
    arrows: dict[tuple[str, str], int] = {}
    trees = {}
    for place in places:
        sources = [place] if place.is_file() else sorted(place.rglob("*.py"))
        trees[place.name] = {source: ast.parse(source.read_text()) for source in sources}
    names = {name.removesuffix(".py"): name for name in trees}
    for name, sources in trees.items():
        for source, tree in sources.items():
            for module in _imported(tree, source, package):
                other = names.get(module)
                if other is not None and other != name:
                    arrows[name, other] = arrows.get((name, other), 0) + 1
    floors = _floors(list(trees), arrows)
    rooms = {}
    for place in places:
        front = place if place.is_file() else place / "__init__.py"
        docstring = ast.get_docstring(trees[place.name][front]) or ""
        others = {source.stem for source in trees[place.name]} - {"__init__"} if place.is_dir() else set()
        listed = [line.split(":")[0] for line in docstring.splitlines() if line.split(":")[0] in others]
        files = (*listed, *sorted(others - set(listed)))
        lines = sum(len(source.read_text().splitlines()) for source in trees[place.name])
        rooms[place.name] = Room(place.name, docstring.split("\n")[0], files, lines, floors[place.name])
    return House(rooms, arrows)


def _imported(tree: ast.Module, source: Path, package: Path) -> list[str]:
    """First names below the package of all that a source imports, at its top or later; not for type checkers alone."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    inside = (package.name, *source.parent.relative_to(package).parts)
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = inside[: len(inside) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{module}.{alias.name}" for alias in node.names]
    return [name.split(".")[1] for name in names if name.startswith(f"{package.name}.")]


def _floors(names: list[str], arrows: dict[tuple[str, str], int]) -> dict[str, int]:
    floors: dict[str, int] = {}
    while len(floors) < len(names):
        ready = [n for n in names if n not in floors and all(end in floors for start, end in arrows if start == n)]
        if not ready:
            raise ValueError(f"these rooms import from one another in a circle: {sorted(set(names) - set(floors))}")
        for name in ready:
            floors[name] = 1 + max((floors[end] for start, end in arrows if start == name), default=-1)
    return floors


# Sizes in the picture, in pixels.
HEIGHT, GAP, SPACE, MARGIN = 46, 34, 30, 16
NARROWEST, WIDEST = 150, 340
# How many long arrows are tried on both sides of the house, and how many orders of a floor.
_MOST_SIDES, _MOST_ORDERS = 6, 720
STYLE = """
.house { max-width: 100%; height: auto; display: block; margin: 1em auto; }
.house text { font-family: var(--md-text-font-family, system-ui, sans-serif); font-size: 12px; text-anchor: middle;
  fill: var(--md-default-fg-color--light, #55606b); }
.house .name { font-family: var(--md-code-font-family, ui-monospace, monospace); font-size: 14px; font-weight: 600;
  fill: var(--md-default-fg-color, #1c2329); }
.house rect { stroke: #2f86c1; stroke-width: 1.6; fill: #2f86c1; fill-opacity: 0.16; }
.house .private rect { stroke: #8a94a0; stroke-dasharray: 5 3; fill-opacity: 0; }
.house path { fill: none; stroke: var(--md-default-fg-color--light, #55606b); stroke-width: 1.3; }
.house .roof path { stroke: #2f86c1; stroke-width: 1.6; stroke-linejoin: round; }
.house marker path { fill: var(--md-default-fg-color--light, #55606b); stroke: none; }
"""


def draw(house: House) -> str:
    """The house as an SVG element: a box a room, as wide as it has lines, and the arrows that others do not imply.

    Its colours are those of the page around it, in light and in dark.
    """
    place = _Places(house)
    parts = [
        f'<svg class="house" xmlns="http://www.w3.org/2000/svg" role="img" viewBox="0 0 {place.width:.0f} '
        f'{place.height:.0f}" width="{place.width:.0f}" height="{place.height:.0f}">',
        "<title>The rooms of the package and their imports, floor by floor</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="house-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
        'orient="auto"><path d="M0,0.8 L7.5,4 L0,7.2 Z"/></marker></defs>',
    ]
    left, right, eaves = place.roof
    middle = (left + right) / 2
    parts.append(
        f'<g class="roof"><path d="M{left:.1f},{eaves:.1f} L{middle:.1f},{MARGIN} L{right:.1f},{eaves:.1f} Z"/>'
        f'<text class="name" x="{middle:.1f}" y="{eaves - 22:.1f}">__init__.py</text>'
        f'<text x="{middle:.1f}" y="{eaves - 7:.1f}">the public names</text></g>'
    )
    for start, end in house.direct:
        parts.append(
            f'<path d="{place.way(start, end)}" marker-end="url(#house-arrow)">'
            f"<title>{start} imports from {end}: {house.arrows[start, end]} times</title></path>"
        )
    for room in house.rooms.values():
        x, y, wide = place.x[room.name], place.top(room.floor), place.wide(room.name)
        size = f"{room.lines:,} lines"
        if room.files:
            size = f"{len(room.files)} files, {size}"
        tip = html.escape(room.says + (f" Files: {', '.join(room.files)}." if room.files else ""))
        parts.append(
            f'<g class="{"private" if room.is_private else "public"}"><title>{tip}</title>'
            f'<rect x="{x - wide / 2:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{HEIGHT}" rx="4"/>'
            f'<text class="name" x="{x:.1f}" y="{y + 20:.1f}">{room.name}</text>'
            f'<text x="{x:.1f}" y="{y + 37:.1f}">{size}</text></g>'
        )
    return "\n".join([*parts, "</svg>"])


class _Places:
    """Where everything is: boxes, and on the floors between two of them slots through which an arrow goes."""

    def __init__(self, house: House):
        self.house = house
        self.most = max(room.lines for room in house.rooms.values())
        self.num_floors = 1 + max(room.floor for room in house.rooms.values())
        self.floors: list[list] = [[] for _ in range(self.num_floors)]
        for room in house.rooms.values():
            self.floors[room.floor].append(room.name)
        self.links = []
        for arrow in house.direct:
            start, end = (house.rooms[name].floor for name in arrow)
            slots = [(*arrow, floor) for floor in range(start - 1, end, -1)]
            for slot in slots:
                self.floors[slot[2]].append(slot)
            chain = [arrow[0], *slots, arrow[1]]
            self.links += itertools.pairwise(chain)
        self._order()
        self.x = {node: float(number) for floor in self.floors for number, node in enumerate(floor)}
        for sweep in range(300):
            for floor in self.floors if sweep % 2 else reversed(self.floors):
                self._settle(floor)
        self._straighten()
        left = min(x - self.wide(node) / 2 for node, x in self.x.items())
        right = max(x + self.wide(node) / 2 for node, x in self.x.items())
        self.x = {node: x - left + MARGIN for node, x in self.x.items()}
        self.width = right - left + 2 * MARGIN
        self.attic = 62 + GAP
        self.height = self.attic + self.num_floors * (HEIGHT + GAP) - GAP + 2 * MARGIN

    def _order(self) -> None:
        """Order what is on each floor so that few arrows cross: long ones pass on one side or the other."""
        slots = [node for floor in self.floors for node in floor if isinstance(node, tuple)]
        long = sorted({slot[:2] for slot in slots})[:_MOST_SIDES]
        best = None
        for sides in itertools.product((-1, 1), repeat=len(long)):
            side = dict(zip(long, sides, strict=True))
            floors = [sorted(floor, key=lambda node: (side.get(node[:2], 0), str(node))) for floor in self.floors]
            crossings = self._crossings(floors)
            for _ in range(4):
                for number in range(self.num_floors):
                    for order in itertools.islice(itertools.permutations(floors[number]), _MOST_ORDERS):
                        tried = [*floors[:number], list(order), *floors[number + 1 :]]
                        of_tried = self._crossings(tried)
                        if of_tried < crossings:
                            floors, crossings = tried, of_tried
            if best is None or crossings < best[0]:
                best = crossings, floors
        self.floors = best[1]

    def _crossings(self, floors: list[list]) -> int:
        """How many pairs of arrows cross between two floors."""
        index = {node: number for floor in floors for number, node in enumerate(floor)}
        of_floor = {node: number for number, floor in enumerate(floors) for node in floor}
        ends = [(of_floor[upper], index[upper], index[lower]) for upper, lower in self.links]
        return sum(a[0] == b[0] and (a[1] - b[1]) * (a[2] - b[2]) < 0 for a, b in itertools.combinations(ends, 2))

    def wide(self, node) -> float:
        """Width of a room, by its lines, or of a slot."""
        if isinstance(node, tuple):
            return 12.0
        return max(NARROWEST, WIDEST * self.house.rooms[node].lines / self.most)

    def top(self, floor: int) -> float:
        """Height of a floor's ceiling in the picture."""
        return MARGIN + self.attic + (self.num_floors - 1 - floor) * (HEIGHT + GAP)

    @property
    def roof(self) -> tuple[float, float, float]:
        """Left and right end of the roof, and where it ends."""
        middle = sum(map(self.x.get, self.floors[-1])) / len(self.floors[-1])
        return middle - 120, middle + 120, MARGIN + self.attic - GAP / 2

    def way(self, start: str, end: str) -> str:
        """The path of an arrow, vertical where it leaves, arrives and passes a floor."""
        floors = [self.house.rooms[name].floor for name in (start, end)]
        chain = [start, *((start, end, floor) for floor in range(floors[0] - 1, floors[1], -1)), end]
        x, y = self._port(start, chain[1], self._below(start)), self.top(floors[0]) + HEIGHT
        path = f"M{x:.1f},{y:.1f}"
        for node in chain[1:]:
            is_end = node == end
            new_x = self._port(end, chain[-2], self._above(end)) if is_end else self.x[node]
            new_y = self.top(floors[1] if is_end else node[2])
            half = (y + new_y) / 2
            path += f" C{x:.1f},{half:.1f} {new_x:.1f},{half:.1f} {new_x:.1f},{new_y:.1f}"
            x, y = new_x, new_y
            if not is_end:
                y += HEIGHT
                path += f" L{x:.1f},{y:.1f}"
        return path

    def _below(self, node) -> list:
        return [lower for upper, lower in self.links if upper == node]

    def _above(self, node) -> list:
        return [upper for upper, lower in self.links if lower == node]

    def _port(self, room: str, node, others: list) -> float:
        """Where on a room's edge the arrow to or from a node is: one beside the other, in their order."""
        others = sorted(others, key=lambda other: (self.x[other], str(other)))
        step = min(36.0, self.wide(room) / (len(others) + 1))
        return self.x[room] + (others.index(node) - (len(others) - 1) / 2) * step

    def _settle(self, floor: list) -> None:
        """Move what is on a floor towards what it is linked with, in its order and without overlaps."""
        wanted = {}
        for node in floor:
            near = [*self._above(node), *self._below(node)]
            # Long arrows are straight before all else.
            weights = [8 if isinstance(node, tuple) and isinstance(other, tuple) else 1 for other in near]
            total = sum(weight * self.x[other] for weight, other in zip(weights, near, strict=True))
            wanted[node] = total / sum(weights) if near else self.x[node]
        groups: list[tuple[float, list]] = []
        # Those that would overlap move together, so that on average they are where they should be.
        for node in floor:
            centre, members = wanted[node], [node]
            while groups and groups[-1][0] + self._span(groups[-1][1]) / 2 + SPACE > centre - self._span(members) / 2:
                members = groups.pop()[1] + members
                offsets, at = [], 0.0
                for member in members:
                    offsets.append(at + self.wide(member) / 2)
                    at += self.wide(member) + SPACE
                lefts = [wanted[member] - offset for member, offset in zip(members, offsets, strict=True)]
                centre = sum(lefts) / len(lefts) + self._span(members) / 2
            groups.append((centre, members))
        for centre, members in groups:
            at = centre - self._span(members) / 2
            for member in members:
                self.x[member] = at + self.wide(member) / 2
                at += self.wide(member) + SPACE

    def _straighten(self) -> None:
        """Give the slots of an arrow one place on all of their floors, where there is one that is free."""
        for arrow in self.house.direct:
            slots = [node for node in self.x if isinstance(node, tuple) and node[:2] == arrow]
            places = [self.x[slot] for slot in slots]
            for place in sorted(places, key=lambda x: abs(x - sum(places) / len(places))):
                if all(self._is_free(place, slot) for slot in slots):
                    self.x.update(dict.fromkeys(slots, place))
                    break

    def _is_free(self, place: float, slot: tuple) -> bool:
        """Whether a slot at a place keeps its distance, and its order, on its floor."""
        floor = self.floors[slot[2]]
        number = floor.index(slot)
        least = {node: (self.wide(node) + self.wide(slot)) / 2 + SPACE / 2 for node in floor}
        return all(self.x[node] + least[node] <= place for node in floor[:number]) and all(
            place + least[node] <= self.x[node] for node in floor[number + 1 :]
        )

    def _span(self, members: list) -> float:
        return sum(map(self.wide, members)) + SPACE * (len(members) - 1)


if __name__ == "__main__":
    print(draw(read_house()))
