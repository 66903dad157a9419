"""Numbers as they are printed, to a few significant digits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def significant(value: float, digits: int) -> float:
    """A number to some significant digits: a positive one stays positive."""
    return float(f"{value:.{digits - 1}e}")


def to_place_of(value: float, unit: float, digits: int) -> float:
    """A location to the last place of its scale: 100.0123 +- 0.5 is 100.012 to three digits, not 100."""
    places = digits - 1 - math.floor(math.log10(significant(unit, digits)))
    return float(f"{value:.{places}f}") + 0.0 if places >= 0 else round(value, places) + 0.0


def proportions(weights: Sequence[float] | np.ndarray, digits: int) -> tuple[float, ...]:
    """Weights to some places after the point, none of them zero; the largest is what the others leave of one."""
    rounded = [max(round(float(weight), digits), 10.0**-digits) for weight in weights]
    largest = int(np.argmax(weights))
    rounded[largest] = round(1.0 - (sum(rounded) - rounded[largest]), digits)
    return tuple(rounded)


def shown(value: float, digits: int = 12) -> str:
    """A number without digits that it does not need."""
    return f"{value:.{digits}g}"


def signed(terms: Sequence[str]) -> str:
    """A sum of terms that may begin with a minus."""
    text = " + ".join(terms) if terms else "0"
    return text.replace("+ -", "- ")
