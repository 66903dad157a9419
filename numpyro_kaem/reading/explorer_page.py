"""The page of the explorer, made with Panel: handles, the picture, buttons. Imported when one is asked for."""

from __future__ import annotations

import asyncio
import html
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import panel as pn
import param
from panel.custom import JSComponent

from numpyro_kaem.reading.display import Shown
from numpyro_kaem.reading.explorer import NUM_STEPS, Encoded, Explorer, Position

# Cards on a page of coordinates.
NUM_CARDS = 12
_HERE = Path(__file__).parent
_STYLE = (_HERE / "explorer.css").read_text()
# Shared by all sessions: the page must not ask another server for a font.
_TEXT = {"font-family": "system-ui, sans-serif", "color": "#1f2933", "font-size": "14px", "line-height": "1.45"}
_WHOLE: dict[str, Any] = {"sizing_mode": "stretch_width", "margin": (4, 0)}


class Handles(JSComponent):
    """Cards of coordinates. A handle that was moved, or a button, calls `on_move` and `on_resample`."""

    cards = param.List(doc="What each card shows, with the place of its handle.")
    _esm = (_HERE / "explorer.js").read_text()
    _stylesheets = [_STYLE]

    def __init__(self, on_move: Callable, on_resample: Callable, **params: Any):
        self._on_move, self._on_resample = on_move, on_resample
        super().__init__(**params)

    def place(self, places: list[tuple[float, float]]) -> None:
        """Put the handles at values and their probabilities."""
        self._send_msg({"kind": "places", "places": places})

    def _handle_msg(self, data: dict[str, Any]) -> None:
        if data["kind"] == "resample":
            self._on_resample(data["coordinate"])
            return
        try:
            self._on_move(data["moves"])
        finally:
            # Also where it failed: the browser waits for it before it sends the next one.
            self._send_msg({"kind": "done", "number": data["number"]})


class Picture(JSComponent):
    """What the generator makes, or a datum."""

    shown = param.Dict(doc="Kind and content, as `Shown` has them.")
    says = param.String(doc="What it is, for readers of the screen.")
    _esm = (_HERE / "explorer_picture.js").read_text()
    _stylesheets = [_STYLE]


class Number(JSComponent):
    """A whole number from 0, in the browser's own box or slider."""

    kind = param.Selector(default="range", objects=["range", "number"], doc="Slider or box.")
    value = param.Integer(default=0, doc="What it is.")
    end = param.Integer(default=1, doc="The last number.")
    is_off = param.Boolean(default=False, doc="Whether it cannot be changed.")
    says = param.String(doc="Its name.")
    _esm = (_HERE / "explorer_number.js").read_text()
    _stylesheets = [_STYLE]


class Page:
    """One person's page.

    Args:
        explorer: what it shows.
        title: above all, what the model is.
    """

    def __init__(self, explorer: Explorer, title: str):
        self.explorer, self.title = explorer, title
        self.position = Position(explorer)
        self.ends: dict[str, Encoded | None] = {"a": None, "b": None}
        self.attempts = 0
        self.path: np.ndarray | None = None
        self._follows = True
        self.handles = Handles(self._moved, self._resampled, sizing_mode="stretch_width")
        self.picture = Picture(shown=_json(self.position.picture()), says="What the generator makes", width=300)
        self.status = pn.pane.HTML("", styles=_TEXT, min_height=44, **_WHOLE)
        self.tell("Drag an orange handle, or focus a slider and press the arrow keys.")
        self._make_widgets()
        self._deal()

    # What is on the page ----------------------------------------------------------------------------------------------

    def _make_widgets(self) -> None:
        explorer = self.explorer
        weights = [f"Cluster {k}, weight {weight:.3f}" for k, weight in enumerate(explorer.weights)]
        self.component = pn.widgets.Select(
            name="Cluster of the prior",
            options={name: k for k, name in enumerate(weights)},
            value=self.position.component,
            visible=explorer.is_mixture,
            **_WHOLE,
        )
        self.component.param.watch(self._chosen, "value")
        size = len(explorer.names)
        starts = {
            f"{start + 1} to {min(start + NUM_CARDS, size)} of {size}": start for start in range(0, size, NUM_CARDS)
        }
        self.cards_from = pn.widgets.Select(name="Coordinates", options=starts, visible=size > NUM_CARDS, **_WHOLE)
        self.cards_from.param.watch(lambda _: self._deal(), "value")
        self.resample = pn.widgets.Button(name="Resample all", button_type="primary", **_WHOLE)
        self.resample.on_click(lambda _: self._resampled(None))
        self.measure = pn.widgets.Button(name="Compute effects", **_WHOLE)
        self.measure.on_click(self._measured)
        self.save_json = pn.widgets.FileDownload(
            callback=self._json_file, filename="latent.json", label="Save latent, JSON", button_type="default", **_WHOLE
        )
        self.save_npy = pn.widgets.FileDownload(
            callback=self._npy_file, filename="latent.npy", label="Save latent, .npy", button_type="default", **_WHOLE
        )
        self.slow = [self.measure]
        if explorer.x is None:
            return
        last = len(explorer.x) - 1
        self.index = {
            end: Number(kind="number", says=f"Datum {end}", end=last, value=min(number, last), **_WHOLE)
            for number, end in enumerate(self.ends)
        }
        self.encode = {end: pn.widgets.Button(name=f"Encode {end}", **_WHOLE) for end in self.ends}
        self.slow += self.encode.values()
        self.datum = {end: Picture(says=f"Datum {end}", width=140) for end in self.ends}
        self.morph = Number(end=NUM_STEPS - 1, says="Morph from a to b", is_off=True, **_WHOLE)
        self.morph.param.watch(self._morphed, "value")
        for end in self.ends:
            self._show_datum(end)
            self.index[end].param.watch(lambda _, end=end: self._show_datum(end), "value")
            self.encode[end].on_click(partial(self._encoded, end))

    def view(self) -> pn.Column:
        """All of it, as Panel shows it."""
        what = f"<h1 style='font-size: 22px; margin: 0'>{html.escape(self.title)}</h1>"
        has_reference = self.explorer.tables.reference is not None
        what += "<p style='margin: 4px 0 0; color: #52606d'>Blue: the learned density of a coordinate. " + (
            "Grey: the reference that it tilts. " if has_reference else ""
        )
        what += "Orange: where the latent is. The picture is what the generator makes of it.</p>"
        head = pn.pane.HTML(what, styles=_TEXT, sizing_mode="stretch_width", margin=(0, 8, 8, 8))
        latent = [self.picture, self.resample, self.component, self.cards_from, self.measure]
        parts = [_box("Output", *latent, self.status)]
        if self.explorer.x is not None:
            ends = [
                pn.Column(self.datum[end], self.index[end], self.encode[end], width=140, margin=0) for end in self.ends
            ]
            parts.append(_box("Data", pn.Row(ends[0], pn.Spacer(width=20), ends[1], margin=0), self.morph))
        parts.append(_box("Save", self.save_json, self.save_npy))
        # The picture stays in sight while one goes through the coordinates.
        stays = {"align-self": "flex-start", "position": "sticky", "top": "8px"}
        side = pn.Column(*parts, width=336, margin=(0, 8), styles=stays)
        both = pn.Row(side, self.handles, sizing_mode="stretch_width")
        return pn.Column(head, both, sizing_mode="stretch_width", styles={"background": "#f3f5f8", "padding": "16px"})

    def tell(self, text: str, is_error: bool = False) -> None:
        """Say something to the one who looks."""
        role = "alert" if is_error else "status"
        colour = "#b42318" if is_error else "#52606d"
        style = f"color: {colour}; overflow-wrap: anywhere"
        self.status.object = f"<div role='{role}' style='{style}'>{html.escape(text)}</div>"

    def _deal(self) -> None:
        """Make the cards of the coordinates that are on this page."""
        self.shown = self.position.order()[self.cards_from.value : self.cards_from.value + NUM_CARDS].tolist()
        tables, component = self.explorer.tables, self.position.component
        known = self.explorer.known_effects(component)
        places = self._places()
        cards = []
        for place, coordinate in zip(places, self.shown, strict=True):
            one = (component, coordinate)
            card = {
                "coordinate": coordinate,
                "name": self.explorer.names[coordinate],
                "place": place,
                "reference": None if tables.reference is None else _short(tables.reference[one]),
                **{name: _short(getattr(tables, name)[one]) for name in ("quantiles", "points", "density")},
            }
            cards.append(card if known is None else card | self._effect(known, coordinate))
        self.handles.cards = cards

    def _effect(self, known: tuple[np.ndarray, np.ndarray | None], coordinate: int) -> dict[str, Any]:
        whole, maps = known
        title = "Share of the variance of the output that goes with this coordinate, alone and with others"
        effect: dict[str, Any] = {"effect": f"effect {whole[coordinate]:.1%}", "effect_title": title}
        if maps is not None and maps.ndim > 1:
            effect["map"] = _json(self.explorer.display.heat(maps[coordinate], float(maps.max())))
        return effect

    def _places(self) -> list[tuple[float, float]]:
        probabilities = self.position.probabilities
        return [(float(self.position.z[i]), round(float(probabilities[i]), 3)) for i in self.shown]

    def _refresh(self) -> None:
        """Show where the position is, after anything but a move of a handle."""
        self.picture.shown = _json(self.position.picture())
        if self.component.value != self.position.component:
            self._follows = False
            self.component.value = self.position.component
            self._follows = True
            self._deal()
        self.handles.place(self._places())

    # What happens -----------------------------------------------------------------------------------------------------

    def _moved(self, moves: list[list]) -> None:
        for coordinate, probability in moves:
            self.position.move(coordinate, probability)
        self.picture.shown = _json(self.position.picture())

    def _resampled(self, coordinate: int | None) -> None:
        self.position.resample(coordinate)
        self._refresh()

    def _chosen(self, event: Any) -> None:
        if self._follows:
            self.position.choose(event.new)
            self._deal()
            self._refresh()

    def _show_datum(self, end: str) -> None:
        index = self.index[end].value
        self.datum[end].shown = _json(self.explorer.display(self.explorer.x[index : index + 1]))
        self.ends[end], self.path, self.morph.is_off = None, None, True

    async def _measured(self, _: Any) -> None:
        component = self.position.component
        if await self._wait("Computing effects", lambda: self.explorer.effects(component)) is not None:
            self._deal()
            which = f" in cluster {component}" if self.explorer.is_mixture else ""
            self.tell(f"Coordinates are in the order of their effects{which}.")

    async def _encoded(self, end: str, _: Any) -> None:
        index = self.index[end].value
        self.attempts += 1
        encoded = await self._wait(f"Encoding datum {index}", lambda: self.explorer.encode(index, self.attempts))
        if encoded is None or self.index[end].value != index:
            return
        self.ends[end] = encoded
        self.position.place(encoded.z, encoded.component)
        self._refresh()
        start, stop = self.ends.values()
        if start is not None and stop is not None:
            self.path = await self._wait("Finding the way from a to b", lambda: self.explorer.path(start, stop))
            self.morph.is_off = self.path is None
            self.morph.value = 0 if end == "a" else NUM_STEPS - 1
        if self.path is not None or None in (start, stop):
            self.tell(encoded.says)

    def _morphed(self, event: Any) -> None:
        if self.path is None:
            return
        start, stop = self.ends.values()
        nearest = start if 2 * event.new < NUM_STEPS - 1 else stop
        self.position.place(self.path[event.new], nearest.component)
        self._refresh()

    async def _wait(self, what: str, work: Callable[[], Any]) -> Any:
        """Do what takes long beside the page, one thing at a time; None where it failed, which the page says."""
        self.tell(f"{what} ...")
        self._set_busy(True)
        try:
            return await asyncio.to_thread(work)
        except Exception as error:
            self.tell(f"{what} failed: {error}"[:400], is_error=True)
            return None
        finally:
            self._set_busy(False)

    def _set_busy(self, busy: bool) -> None:
        for widget in self.slow:
            widget.disabled = busy

    def _json_file(self) -> io.BytesIO:
        return io.BytesIO(json.dumps(self.position.saved(), indent=1).encode())

    def _npy_file(self) -> io.BytesIO:
        file = io.BytesIO()
        np.save(file, self.position.z.reshape(self.explorer.shape))
        file.seek(0)
        return file


def _box(title: str, *parts: Any) -> pn.Column:
    """Parts on a white ground under a heading."""
    head = pn.pane.HTML(f"<h2 style='font-size: 15px; margin: 0'>{title}</h2>", styles=_TEXT, margin=(0, 0, 6, 0))
    styles = {"background": "#fff", "border": "1px solid #d9dee5", "border-radius": "8px", "padding": "12px"}
    return pn.Column(head, *parts, styles=styles, margin=(0, 0, 12, 0), width=326)


def _json(shown: Shown) -> dict[str, str]:
    """One datum that is drawn, as the browser takes it."""
    return {"kind": shown.kind, "content": shown.content if isinstance(shown.content, str) else shown.content[0]}


def _short(values: np.ndarray) -> list[float]:
    """Numbers to the six digits that a screen has use for."""
    return [float(f"{value:.6g}") for value in values]
