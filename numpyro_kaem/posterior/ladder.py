"""Temperature ladders between the prior (t = 0) and the posterior (t = 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from numpyro_kaem.checks import check_count, check_positive
from numpyro_kaem.posterior.result import Posterior


class Ladder:
    r"""Temperatures $t_0 < t_1 < \dots < t_K = 1$ of the power posteriors $p_t(z) \propto p(z)\, p(x \mid z)^t$.

    Args:
        temperatures: strictly increasing, in [0, 1], ending at 1. Estimates of the evidence need the rung t = 0.

    Attributes:
        temperatures: float64 array of the K + 1 temperatures.

    Raises:
        ValueError: for temperatures that do not increase, leave [0, 1] or do not end at 1.

    Example:
        ```python
        import numpy as np
        from numpyro_kaem import Ladder

        assert np.allclose(Ladder.power(4, exponent=2.0).temperatures, [0, 1 / 16, 1 / 4, 9 / 16, 1])
        assert np.allclose(Ladder.geometric(3, smallest=0.01).temperatures, [0, 0.01, 0.1, 1])
        Ladder([0.0, 0.2, 1.0])
        ```
    """

    def __init__(self, temperatures: Sequence[float] | np.ndarray):
        t = np.array(temperatures, float)
        # NaN is not larger.
        increases = np.diff(t) > 0
        if not increases.all():
            k = int(np.argmin(increases))
            raise ValueError(f"temperatures must increase, but {t[k]:g} is followed by {t[k + 1]:g} at index {k + 1}")
        if t[0] < 0 or t[-1] != 1:
            raise ValueError(f"temperatures must lie in [0, 1] and end at 1 exactly, got {t[0]!s} to {t[-1]!s}")
        t.flags.writeable = False
        self.temperatures = t

    @classmethod
    def power(cls, num_intervals: int, exponent: float = 5.0) -> Ladder:
        """The power law t_k = (k / K)^r of the KAEM paper.

        Args:
            num_intervals: K, at least 1; the ladder has K + 1 rungs.
            exponent: r > 0; above 1 the rungs crowd towards the prior, where the power posterior changes fastest.

        Raises:
            ValueError: for numbers out of range, and for an exponent so large that temperatures round to zero.
        """
        num_intervals, exponent = check_count("num_intervals", num_intervals, 1), check_positive("exponent", exponent)
        return cls((np.arange(num_intervals + 1) / num_intervals) ** exponent)

    @classmethod
    def geometric(cls, num_intervals: int, smallest: float) -> Ladder:
        """Zero, and K temperatures in geometric progression from the smallest to one.

        Args:
            num_intervals: K, at least 2; the ladder has K + 1 rungs.
            smallest: smallest positive temperature, in (0, 1).

        Raises:
            ValueError: for numbers out of range.
        """
        num_intervals, smallest = check_count("num_intervals", num_intervals, 2), check_positive("smallest", smallest)
        return cls(np.concatenate([[0.0], np.geomspace(smallest, 1.0, num_intervals)]))

    def adapt(self, posterior: Posterior, num_intervals: int | None = None) -> Ladder:
        r"""The ladder whose rungs are equally far apart in thermodynamic length.

        The length of an interval is $\int \sqrt{\operatorname{Var}_t \log p(x \mid z)}\, dt$, its integrand measured at
        the rungs of a run on this ladder and averaged over the data.

        Args:
            posterior: result of a run on this ladder.
            num_intervals: K of the new ladder; by default that of this one.

        Returns:
            A Ladder with the same ends.

        Raises:
            ValueError: for a posterior without rungs, or with those of another ladder.

        References:
            B. Calderhead and M. Girolami, Estimating Bayes factors via thermodynamic integration and population MCMC,
            Computational Statistics & Data Analysis 53(12), 2009.
        """
        num_intervals = len(self) - 1 if num_intervals is None else check_count("num_intervals", num_intervals, 1)
        rungs = posterior.rungs
        if rungs is None:
            raise ValueError("posterior must come of a run on this ladder, but its sampler has no rungs")
        temperatures, std = rungs.temperatures, rungs.log_likelihood_std
        if temperatures.shape[1] == len(self) + 1 and self.temperatures[0] > 0:
            temperatures, std = temperatures[:, 1:], std[:, 1:]  # SMC adds the rung t = 0
        if temperatures.shape[1] != len(self) or not np.allclose(temperatures, self.temperatures):
            raise ValueError(
                f"posterior must come of a run on this ladder, {self}, but the rungs of its first datum are "
                f"{temperatures[0]}"
            )
        speed = np.nanmean(np.where(np.isfinite(std), std, np.nan), axis=0)
        known = np.isfinite(speed)
        if not known.any():
            return self
        speed = np.interp(self.temperatures, self.temperatures[known], speed[known])
        largest = np.max(speed)
        speed = np.maximum(speed, 1e-3 * largest if largest > 0 else 1.0)
        # The standard deviation falls like a power of t: its mean over an interval is the logarithmic one.
        left, right = speed[:-1], speed[1:]
        close = np.abs(left - right) < 1e-6 * left
        mean = np.where(close, left, (left - right) / np.where(close, 1.0, np.log(left / right)))
        length = np.concatenate([[0.0], np.cumsum(mean * np.diff(self.temperatures))])
        t = np.interp(np.linspace(0.0, length[-1], num_intervals + 1), length, self.temperatures)
        t[0], t[-1] = self.temperatures[0], 1.0
        return Ladder(t)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Ladder) and np.array_equal(self.temperatures, other.temperatures)

    def __hash__(self) -> int:
        return hash(self.temperatures.tobytes())

    def __len__(self) -> int:
        return len(self.temperatures)

    def __repr__(self) -> str:
        return f"Ladder([{', '.join(f'{t:.4g}' for t in self.temperatures)}])"


def as_ladder(ladder: Ladder | Sequence[float]) -> Ladder:
    """A ladder, of one or of its temperatures."""
    return ladder if isinstance(ladder, Ladder) else Ladder(ladder)
