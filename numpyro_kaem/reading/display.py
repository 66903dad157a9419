"""How a datum is shown in a page: as a picture, a line or a text, which ask nothing of anywhere else."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Num, UInt8

# Of a line: its box, in units of the drawing, and how many of its points are drawn.
WIDTH, HEIGHT, MARGIN, _MAX_POINTS = 100, 60, 2, 200
# From little to much, in a single hue whose lightness falls evenly, so that greys and the colour-blind see it, too.
_RAMP = np.array([[247, 251, 255], [198, 219, 239], [107, 174, 214], [33, 113, 181], [8, 48, 107]], float)


@dataclass(frozen=True, eq=False)
class Shown:
    """Data side by side, drawn.

    Attributes:
        kind: "image", "line" or "text".
        content: the address of one picture with all of them, for "image"; else a path or a text of each.
        count: how many there are.
        width: of one picture, in pixels.
        height: of one picture, in pixels.
    """

    kind: str
    content: str | tuple[str, ...]
    count: int
    width: int = 0
    height: int = 0


class Display:
    """How the data of a model are shown, with one scale for all of them.

    Data of two axes, and of three with channels, are pictures, of grey or of red, green and blue; categories in a row
    are a text, and all others a line of their numbers.

    Args:
        examples: data, by whose range the scale is set.
        show: from a datum to what is shown instead of it: an array, or a text. None for the datum.
        is_text: whether numbers in a row are categories.
    """

    def __init__(self, examples: Num[np.ndarray, "n ..."], show: Callable | None = None, is_text: bool = False):
        self.show = show
        first = self._of(examples[0])
        if isinstance(first, str) or (is_text and np.ndim(first) <= 1):
            self.kind = "text"
            return
        self.kind = "image" if np.ndim(first) in (2, 3) else "line"
        values = np.concatenate([np.ravel(self._of(datum)) for datum in examples]).astype(float)
        # What is 0 or 1 is ink on paper.
        self.is_ink = np.ndim(first) == 2 and bool(np.all((values == 0) | (values == 1)))
        if np.issubdtype(np.asarray(examples).dtype, np.integer) and values.min() >= 0 and values.max() > 127:
            self.low, self.high = 0.0, 255.0
        elif values.min() >= 0 and 0.5 < values.max() <= 1:
            self.low, self.high = 0.0, 1.0
        else:
            self.low, self.high = np.quantile(values, (0.002, 0.998)) if len(values) > 1_000 else _range(values)
        self.high = max(self.high, self.low + 1e-6 * max(1.0, abs(self.low)))

    def __call__(self, data: Num[np.ndarray, "n ..."]) -> Shown:
        """Draw data side by side."""
        shown = [self._of(datum) for datum in data]
        if self.kind == "text":
            return Shown("text", tuple(map(_text, shown)), len(shown))
        scaled = [(np.asarray(datum, float) - self.low) / (self.high - self.low) for datum in shown]
        if self.kind == "line":
            return Shown("line", tuple(line(datum.ravel()) for datum in scaled), len(scaled))
        pixels = [_grey_or_colour(1.0 - datum if self.is_ink else datum) for datum in scaled]
        return _pictures(pixels)

    def heat(self, values: Float[np.ndarray, "..."], high: float) -> Shown:
        """Draw numbers from 0 to `high`, one for each of a datum, from pale to dark; as a line for data that are lines.

        Where data are texts these are numbers by place, and where they have channels the mean over these.
        """
        values = np.asarray(values, float) / max(high, 1e-30)
        if self.show is not None and self.kind != "text":
            values = np.asarray(self.show(values), float)
        if self.kind != "image":
            return Shown("line", (line(values.ravel()),), 1)
        values = values.mean(axis=-1) if values.ndim == 3 else values
        places = np.clip(values, 0.0, 1.0) * (len(_RAMP) - 1)
        levels = np.arange(len(_RAMP))
        return _pictures([np.stack([np.interp(places, levels, channel) for channel in _RAMP.T], -1).astype(np.uint8)])

    def _of(self, datum: np.ndarray) -> Any:
        value = np.asarray(datum) if self.show is None else self.show(np.asarray(datum))
        return value if isinstance(value, str) else np.asarray(value)


def line(values: Sequence[float] | np.ndarray, places: Sequence[float] | np.ndarray | None = None) -> str:
    """The path of an SVG through numbers from 0 to 1, from left to right in a box of `WIDTH` by `HEIGHT`."""
    values = np.atleast_1d(np.asarray(values, float))
    places = np.linspace(0.0, 1.0, len(values)) if places is None else np.asarray(places, float)
    if len(values) > _MAX_POINTS:
        at = np.linspace(places[0], places[-1], _MAX_POINTS)
        values, places = np.interp(at, places, values), at
    if len(values) == 1:
        values, places = np.repeat(values, 2), np.array([0.0, 1.0])
    x = MARGIN + (WIDTH - 2 * MARGIN) * places
    y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * np.clip(values, -0.02, 1.02)
    return "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y, strict=True))


def png(pixels: UInt8[np.ndarray, "height width"] | UInt8[np.ndarray, "height width 3"]) -> bytes:
    """A picture of eight bits, grey or red, green and blue, as a PNG file."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    # Each row begins with how it is written: 0, as it is, or 2, as the difference from the row above.
    above = np.concatenate([np.zeros_like(rows[:1]), rows[:-1]])
    ways = [
        zlib.compress(np.concatenate([np.full((height, 1), way, np.uint8), values], axis=1).tobytes(), 9)
        for way, values in ((0, rows), (2, rows - above))
    ]
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", min(ways, key=len)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _pictures(pixels: list[np.ndarray]) -> Shown:
    """Pictures of one size side by side in one."""
    height, width = pixels[0].shape[:2]
    address = "data:image/png;base64," + base64.b64encode(png(np.concatenate(pixels, axis=1))).decode()
    return Shown("image", address, len(pixels), width, height)


def _grey_or_colour(values: Float[np.ndarray, "..."]) -> np.ndarray:
    """Pixels of numbers from 0 to 1; channels other than one or three lie side by side."""
    pixels = np.round(255 * np.clip(values, 0.0, 1.0)).astype(np.uint8)
    if pixels.ndim == 2 or pixels.shape[-1] == 3:
        return pixels
    return np.concatenate(np.moveaxis(pixels, -1, 0), axis=1)


def _range(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else " ".join(map(str, np.ravel(value).tolist()))
