"""A distance between two sets of samples, as it is shown."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class Distance:
    """A distance between two sets of samples; `float(distance)` is its value.

    Attributes:
        value: estimate of the distance between the distributions, as from infinitely many samples of both. It may be
            negative where the distance is less than its error.
        std_error: standard error of the value, over real and generated samples.
        plain: the textbook value of these samples.
        num_real: number of real samples.
        num_generated: number of generated samples.
        features: name of the function that made the features; "values" where there was none.
    """

    value: float
    std_error: float
    plain: float
    num_real: int
    num_generated: int
    features: str

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        # Two digits of the error, and the value to the same place.
        places = "#.4g"
        if math.isfinite(self.std_error) and self.std_error > 0:
            places = f".{max(1 - math.floor(math.log10(self.std_error)), 0)}f"
        n = f"{self.num_real}" + (f" and {self.num_generated}" if self.num_generated != self.num_real else "")
        return f"{self.value:{places}} +- {self.std_error:{places}} (n = {n}, features: {self.features})"

    def __repr__(self) -> str:
        return f"Distance({self})"
