"""Functions of one variable as a f(b x + c) + d, inner and outer numbers fitted together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from numpyro_kaem.reading.printed_numbers import shown, significant

# Rounds of the search for b and c, in each of which the grid around the best pair gets narrower.
_ROUNDS = 20
_MOST_VALUES = 4_000_000  # of functions on grids, held at a time
_HIGHEST_POWER = 5
# Log of the share of the width of x, which a pole or the end of a domain keeps away from x.
_NEAREST = -1.4


@dataclasses.dataclass(frozen=True)
class Shape:
    """A function f of t = b x + c.

    Attributes:
        name: as it is printed.
        function: f, of a NumPy array.
        symbolic: f, of SymPy and t.
        scales: b times the width of x where the search begins; (1.0,) and no search where `fixed_scale`.
        fixed_scale: b is 1, or -1 as well for `one_sided`, because another one is the same as other a and c.
        fixed_shift: c is 0 for the same reason.
        one_sided: f needs t > 0.
        is_wave: f has a period of 2 pi.
        is_odd_or_even: the sign of t goes into a.
    """

    name: str
    function: Callable[[np.ndarray], np.ndarray]
    symbolic: Callable[[Any, Any], Any]
    scales: tuple[float, ...] = (1.0,)
    fixed_scale: bool = False
    fixed_shift: bool = False
    one_sided: bool = False
    is_wave: bool = False
    is_odd_or_even: bool = False

    @property
    def complexity(self) -> int:
        """The numbers a, b and c as far as they are printed, and one for the function."""
        return 2 + (not self.fixed_scale) + (not self.fixed_shift)


_WAVES = (1.5, 3.0, 5.0, 8.0, 12.0, 18.0, 26.0)
_BENDS = (1.0, 2.0, 4.0, 8.0, 16.0)
SHAPES = (
    Shape("exp", np.exp, lambda sp, t: sp.exp(t), (-6.0, -2.0, 2.0, 6.0), fixed_shift=True),
    Shape("log", np.log, lambda sp, t: sp.log(t), fixed_scale=True, one_sided=True),
    Shape("sqrt", np.sqrt, lambda sp, t: sp.sqrt(t), fixed_scale=True, one_sided=True),
    Shape("1/", lambda t: 1.0 / t, lambda sp, t: 1 / t, fixed_scale=True, one_sided=True),
    Shape("abs", np.abs, lambda sp, t: sp.Abs(t), fixed_scale=True),
    Shape("sin", np.sin, lambda sp, t: sp.sin(t), _WAVES, is_wave=True, is_odd_or_even=True),
    Shape("tanh", np.tanh, lambda sp, t: sp.tanh(t), _BENDS, is_odd_or_even=True),
    Shape("gauss", lambda t: np.exp(-(t**2)), lambda sp, t: sp.exp(-(t**2)), _BENDS, is_odd_or_even=True),
    Shape("silu", lambda t: t / (1.0 + np.exp(-t)), lambda sp, t: t / (1 + sp.exp(-t)), (-8.0, -3.0, 3.0, 8.0, 16.0)),
)


@dataclasses.dataclass(frozen=True)
class Piece:
    """A term of a formula: coefficient * f(b x + c), or coefficient * x^power without a shape."""

    shape: Shape | None
    coefficient: float
    scale: float = 1.0
    shift: float = 0.0
    power: int = 1

    def value(self, x: np.ndarray) -> np.ndarray:
        """Of x, without the coefficient; NaN where it is not defined."""
        if self.shape is None:
            return x**self.power
        with np.errstate(all="ignore"):
            t = self.scale * x + self.shift
            value = self.shape.function(t)
            return np.where(t > 0.0, value, np.nan) if self.shape.one_sided else value

    def symbolic(self, sympy: Any, x: Any) -> Any:
        """The term as a SymPy expression of x."""
        a = sympy.Float(self.coefficient)
        if self.shape is None:
            return a * x**self.power
        return a * self.shape.symbolic(sympy, sympy.Float(self.scale) * x + sympy.Float(self.shift))

    def text(self, x: str) -> str:
        """The term as it is printed."""
        a = shown(self.coefficient)
        if self.shape is None:
            return f"{a} {x}" if self.power == 1 else f"{a} {x}^{self.power}"
        b = {1.0: x, -1.0: f"-{x}"}.get(self.scale, f"{shown(self.scale)} {x}")
        inner = b if self.shift == 0.0 else f"{b} + {shown(self.shift)}".replace("+ -", "- ")
        name = self.shape.name
        return (
            f"{a} exp(-({inner})^2)"
            if name == "gauss"
            else f"{a}/({inner})"
            if name == "1/"
            else f"{a} {name}({inner})"
        )


@dataclasses.dataclass(frozen=True)
class FittedFunction:
    """A candidate for a function of one variable, up to a constant.

    Attributes:
        pieces: its terms, with the numbers that are printed.
        complexity: printed numbers, and one for each function or power above the first.
        r_squared: share of the function's variance that it explains, of the printed numbers.
    """

    pieces: tuple[Piece, ...]
    complexity: int
    r_squared: float


def fitted_functions(x: np.ndarray, values: np.ndarray, digits: int, enough: np.ndarray) -> list[list[FittedFunction]]:
    """Candidates for functions of x, each fitted before any is chosen.

    Args:
        x: equally probable points, (n,).
        values: of the functions there, (n, num_functions).
        digits: to which numbers are rounded.
        enough: for each function the R^2 above which a short candidate leaves nothing to look for.

    Returns:
        For each function its candidates, from simple to complex.
    """
    centered = values - values.mean(axis=0)
    found = [[FittedFunction((), 0, 0.0)] for _ in range(values.shape[1])]
    for power in range(1, _HIGHEST_POWER + 1):
        for k in range(values.shape[1]):
            found[k].append(_polynomial(x, centered[:, k], power, digits))
    if not np.ptp(x) > 0.0:
        return found
    left = [
        k
        for k, candidates in enumerate(found)
        if all(c.r_squared < enough[k] for c in candidates if c.complexity <= 2) and enough[k] > 0.0
    ]
    for shape in SHAPES if left else ():
        for k, (scale, shift) in zip(left, _search(shape, x, centered[:, left]), strict=True):
            found[k].append(_with_outer(shape, scale, shift, x, centered[:, k], digits))
    return [sorted(candidates, key=lambda c: (c.complexity, -c.r_squared)) for candidates in found]


def explained(values: np.ndarray, predicted: np.ndarray) -> float:
    """R^2, up to a constant for predictions without one; minus infinity where a prediction is not finite."""
    if not np.all(np.isfinite(predicted)):
        return -np.inf
    variance = np.var(values)
    return 1.0 - float(np.var(values - predicted) / variance) if variance > 0.0 else 1.0


def _polynomial(x: np.ndarray, values: np.ndarray, degree: int, digits: int) -> FittedFunction:
    """A polynomial whose terms matter in the digits that are printed."""
    powers = list(range(1, degree + 1))
    spread = max(float(np.std(values)), 1e-300)
    while powers:
        design = np.stack([x**power - np.mean(x**power) for power in powers], axis=1)
        size = np.maximum(np.std(design, axis=0), 1e-300)
        coefficients = np.linalg.lstsq(design / size, values, rcond=None)[0]
        matters = np.abs(coefficients) > 10.0**-digits * spread
        if matters.all():
            break
        powers = [power for power, kept in zip(powers, matters, strict=True) if kept]
    pieces = tuple(
        Piece(None, significant(float(coefficient / of), digits), power=power)
        for power, coefficient, of in zip(powers, coefficients if powers else (), size if powers else (), strict=True)
    )
    return _judged(pieces, sum(1 + (power > 1) for power in powers), x, values)


def _with_outer(shape: Shape, scale: float, shift: float, x, values, digits: int) -> FittedFunction:
    """The outer coefficient fitted to the inner numbers as they are printed."""
    middle = 0.5 * (x.min() + x.max())
    if shape.is_odd_or_even and scale < 0.0:
        scale, shift = -scale, -shift
    rounded = significant(scale, digits)
    # The place of what happens on the way is kept, whatever the rounding of b does to it.
    shift = shift + (scale - rounded) * middle
    if shape.is_wave:
        shift = math.remainder(shift, 2.0 * math.pi)
    shift = 0.0 if shape.fixed_shift else round(shift, digits)
    piece = Piece(shape, 1.0, rounded, shift + 0.0)
    f = piece.value(x)
    f = f - f.mean()
    coefficient = float(f @ values / (f @ f)) if np.isfinite(f).all() and f @ f > 0.0 else 0.0
    piece = dataclasses.replace(piece, coefficient=significant(coefficient, digits))
    return _judged((piece,), shape.complexity, x, values)


def _judged(pieces: tuple[Piece, ...], complexity: int, x: np.ndarray, values: np.ndarray) -> FittedFunction:
    predicted = sum((piece.coefficient * piece.value(x) for piece in pieces), np.zeros_like(x))
    return FittedFunction(pieces, complexity, explained(values, predicted))


def _search(shape: Shape, x: np.ndarray, values: np.ndarray) -> list[tuple[float, float]]:
    """For each function the b and c with the largest R^2 after the best a and d, on grids that get finer."""
    width, middle = float(np.ptp(x)), 0.5 * float(x.min() + x.max())
    unit = (x - middle) / width  # in [-1/2, 1/2]
    # Pairs (b, p) in units of the width, and the steps between those that are tried next.
    if shape.one_sided:  # p is the log of the distance of t = 0 from the range, on the side that b says
        first = np.array([(side, place) for side in (1.0, -1.0) for place in np.linspace(_NEAREST, 3.4, 12)])
        relative, step = 0.0, 0.4
    elif shape.is_wave:  # p is the phase in the middle of the range
        first = np.array([(scale, phase) for scale in shape.scales for phase in np.linspace(0.0, 3.0, 6)])
        relative, step = 0.2, 0.6
    else:  # p is the place of t = 0
        places = [0.0] if shape.fixed_shift else np.linspace(-0.6, 0.6, 13)
        first = np.array([(scale, place) for scale in shape.scales for place in places])
        relative, step = 0.0 if shape.fixed_scale else 0.25, 0.0 if shape.fixed_shift else 0.06

    def t_of(pairs: np.ndarray) -> np.ndarray:
        """At all x, for pairs (..., 2)."""
        b, p = pairs[..., :1], pairs[..., 1:]
        if shape.one_sided:
            return 0.5 + b * unit + np.exp(p)
        return b * unit + p if shape.is_wave else b * (unit - p)

    normed = values / np.maximum(np.linalg.norm(values, axis=0), 1e-300)

    def scores(f: np.ndarray) -> np.ndarray:
        f = f - f.mean(axis=-1, keepdims=True)
        norm = np.linalg.norm(f, axis=-1, keepdims=True)
        return f / np.where(norm > 1e-12, norm, np.inf)

    with np.errstate(all="ignore"):
        of_first = (scores(shape.function(t_of(first))) @ normed) ** 2
    best = first[np.argmax(of_first, axis=0)]
    offsets = [(i, j) for i in (range(-2, 3) if relative else [0]) for j in (range(-2, 3) if step else [0])]
    offsets = np.array(offsets, np.float64)
    at_a_time = max(1, _MOST_VALUES // (len(offsets) * len(x)))
    for start in range(0, len(best), at_a_time):
        part = slice(start, start + at_a_time)
        here = best[part].copy()
        steps = np.stack([relative * np.abs(here[:, 0]), np.full(len(here), step)], axis=-1)
        for _ in range(_ROUNDS):
            pairs = here[:, None] + steps[:, None] * offsets
            if shape.one_sided:
                pairs[..., 1] = np.maximum(pairs[..., 1], _NEAREST)
            with np.errstate(all="ignore"):
                f = scores(shape.function(t_of(pairs)))
                fit = np.nan_to_num(np.einsum("kpn,nk->kp", f, normed[:, part]) ** 2, nan=-1.0)
            here = pairs[np.arange(len(here)), np.argmax(fit, axis=1)]
            steps = 0.65 * steps
        best[part] = here
    # From the place in the range to x itself; what only scales t goes into a, or into d for a logarithm.
    b, p = best.T
    if shape.one_sided:
        scale, shift = b, width * (0.5 + np.exp(p)) - b * middle
    elif shape.is_wave:
        scale, shift = b / width, p - b * middle / width
    else:
        scale = b if shape.fixed_scale else b / width
        shift = -scale * (middle + width * p)
    return list(zip(scale.tolist(), shift.tolist(), strict=True))
