"""What empirical Bayes learns: a prior, and what it makes of every measurement."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array
from scipy.special import ndtri

from numpyro_kaem.checks import check_count, check_key
from numpyro_kaem.distributions import KAPrior
from numpyro_kaem.measurements.covariates import Covariates
from numpyro_kaem.measurements.likelihood import Measurements
from numpyro_kaem.measurements.posteriors import LearnedPrior, Pieces, posterior_pieces
from numpyro_kaem.measurements.rows import Intervals

if TYPE_CHECKING:
    import pandas
    from matplotlib.axes import Axes


class DensityBand(NamedTuple):
    """A density at points, its standard error, and the ends of a pointwise interval."""

    density: np.ndarray
    standard_error: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class EmpiricalBayes:
    """A learned prior, and the posteriors of the effects that were measured. Returned by `empirical_bayes`.

    Everything is by quadrature, without Monte Carlo; arrays are NumPy's, float64, with one entry per datum, in the
    order of the data. With covariates the effect is theta_i = x_i . beta + exp(s_i . gamma) e_i, and the prior is that
    of e; posteriors are of theta.

    Attributes:
        prior: the learned density, a NumPyro distribution; with a point mass, that of the other effects.
        log_evidence: log p(data_i), the effect integrated out.
        mean: posterior mean of the effect.
        std: posterior standard deviation.
        point_mass: where effects have a probability of their own, None without.
        point_mass_weight: what share of the effects is there, 0 without.
        smoothness: weight of the roughness penalty, as given or chosen.
        location_coefficients: beta, empty without covariates.
        location_errors: their standard errors.
        scale_coefficients: gamma, empty without covariates of the scale.
        scale_errors: their standard errors.
        log_likelihood: sum of the log-evidence, weighted if the data were.

    Example:
        ```python
        import numpy as np
        import numpyro.distributions as dist
        from numpyro_kaem import empirical_bayes

        rng = np.random.default_rng(0)
        effects = np.where(rng.random(500) < 0.3, 3.0, 0.0) + rng.normal(0.0, 0.3, 500)
        y = rng.normal(effects, 1.0)
        result = empirical_bayes(lambda effect: dist.Normal(effect, 1.0), y)
        assert np.mean((result.mean - effects) ** 2) < 0.6 * np.mean((y - effects) ** 2)
        low, high = result.quantile([0.05, 0.95]).T
        assert 0.8 < np.mean((effects > low) & (effects < high)) < 0.97
        ```
    """

    prior: KAPrior
    log_evidence: np.ndarray
    mean: np.ndarray
    std: np.ndarray
    point_mass: float | None
    point_mass_weight: float
    smoothness: float
    location_coefficients: np.ndarray
    location_errors: np.ndarray
    scale_coefficients: np.ndarray
    scale_errors: np.ndarray
    log_likelihood: float
    _learned: LearnedPrior = dataclasses.field(repr=False)
    _measurements: Measurements = dataclasses.field(repr=False)
    _intervals: Intervals = dataclasses.field(repr=False)
    _covariates: Covariates = dataclasses.field(repr=False)
    _point: np.ndarray = dataclasses.field(repr=False)  # posterior probability of the point mass

    def __len__(self) -> int:
        return len(self.mean)

    # Of every datum --------------------------------------------------------------------------------------------------

    def quantile(self, q: ArrayLike | Sequence) -> np.ndarray:
        """Quantiles of the posterior of every effect.

        Args:
            q: probabilities between 0 and 1, a number or an array of shape (num_q,).

        Returns:
            Shape (n,) or (n, num_q).

        Raises:
            ValueError: for a q outside of [0, 1] or of more dimensions.
        """
        q = np.asarray(q, np.float64)
        if q.ndim > 1 or not np.all((q >= 0) & (q <= 1)):
            raise ValueError(f"q must be one or several probabilities between 0 and 1, got {q!r}")
        values = self._inverted(np.broadcast_to(np.atleast_1d(q), (len(self), np.size(q))))
        return values[:, 0] if q.ndim == 0 else values

    def sample(self, key: Array, num_samples: int = 1) -> np.ndarray:
        """Draw from the posterior of every effect, by inverse transform.

        Args:
            key: a random key of JAX.
            num_samples: draws of each effect.

        Returns:
            Shape (num_samples, n).

        Raises:
            TypeError: if key is no random key.
            ValueError: if num_samples is not a positive number.
        """
        check_key(key)
        num_samples = check_count("num_samples", num_samples, 1)
        return self._inverted(np.asarray(jax.random.uniform(key, (len(self), num_samples)), np.float64)).T

    def probability(self, low: ArrayLike | Sequence = -np.inf, high: ArrayLike | Sequence = np.inf) -> np.ndarray:
        """Posterior probability that the effect is in [low, high], both ends included.

        Args:
            low: lower end, a number or one for each datum.
            high: upper end.

        Returns:
            Shape (n,).

        Raises:
            ValueError: where low is above high, an end is NaN, or shapes do not fit.
        """
        ends = []
        for name, end in (("low", low), ("high", high)):
            end = np.asarray(end, np.float64)
            if end.shape not in {(), (len(self),)} or np.any(np.isnan(end)):
                raise ValueError(f"{name} must be a number, or one for each of {len(self)} data, got {end!r}")
            ends.append(np.broadcast_to(end, (len(self),)))
        if np.any(ends[0] > ends[1]):
            raise ValueError(f"low must not be above high, got {low!r} and {high!r}")
        value = self._below(ends[1]) - self._below(ends[0])
        if self.point_mass is not None:
            at = self._covariates.effects(np.full(len(self), self.point_mass))
            value = value + self._point * ((at >= ends[0]) & (at <= ends[1]))
        return np.clip(value, 0.0, 1.0)

    @property
    def probability_positive(self) -> np.ndarray:
        """Posterior probability that the effect is above zero, shape (n,)."""
        return np.clip(1.0 - self.probability(high=0.0), 0.0, 1.0)

    @property
    def local_false_sign_rate(self) -> np.ndarray:
        """min(P(theta <= 0), P(theta >= 0)): how likely the sign is wrong that is more likely (Stephens 2017)."""
        return np.minimum(self.probability(high=0.0), self.probability(low=0.0))

    @property
    def inclusion_probability(self) -> np.ndarray:
        """Posterior probability that the effect is not at the point mass, shape (n,); 1 without one."""
        return 1.0 - self._point

    def posterior(
        self,
        *data: Any,
        covariates: ArrayLike | Sequence | None = None,
        scale_covariates: ArrayLike | Sequence | None = None,
    ) -> EmpiricalBayes:
        """The posteriors of the effects of other data, under the prior that was learned.

        Args:
            *data: arrays as `empirical_bayes` was given them.
            covariates: rows of the covariates, if it was given any.
            scale_covariates: rows of those of the scale.

        Returns:
            An `EmpiricalBayes` of these data, with the same prior.

        Raises:
            ValueError: as `empirical_bayes` does, and where covariates are missing.
        """
        rows = self._covariates.of_other_data(covariates, scale_covariates, len(np.atleast_1d(data[0])) if data else 0)
        old = self._measurements
        num_data = len(old.data) - 2 * self._covariates.is_used
        if len(data) != num_data:
            raise ValueError(f"data must be {num_data} arrays, as those the prior was learned from, got {len(data)}")
        given = Measurements(old.given, data, old.chunk_size)
        intervals = Intervals.of(given, (-np.inf, np.inf) if rows.is_used else self._learned.support)
        return posteriors_of(self, rows.applied(given), intervals, rows)

    def to_pandas(self) -> pandas.DataFrame:
        """A table with one row per datum: log-evidence, mean, standard deviation, quantiles, and what concerns signs.

        Raises:
            ImportError: without pandas.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("to_pandas needs pandas: pip install pandas") from error
        columns = {
            "log_evidence": self.log_evidence,
            "mean": self.mean,
            "std": self.std,
            **{f"q{100 * q:g}": values for q, values in zip(_QUANTILES, self.quantile(_QUANTILES).T, strict=True)},
            "probability_positive": self.probability_positive,
            "local_false_sign_rate": self.local_false_sign_rate,
        }
        if self.point_mass is not None:
            columns["inclusion_probability"] = self.inclusion_probability
        return pandas.DataFrame(columns)

    # Of the prior ----------------------------------------------------------------------------------------------------

    def density_band(self, points: ArrayLike | Sequence, level: float = 0.95) -> DensityBand:
        """The density of the prior with pointwise standard errors and intervals.

        By the delta method: the coefficients are normal about the maximum, with the inverse of minus the Hessian of the
        penalised marginal log-likelihood as covariance (Wahba 1983). The interval is of the log-density, so that it
        stays positive. What the choice of the smoothness and of the reference leaves open is not in it.

        Args:
            points: where, shape (num_points,), inside of the support.
            level: of the interval, between 0 and 1.

        Returns:
            A `DensityBand` of four arrays of shape (num_points,): density, standard_error, low and high. With a point
            mass, of the density of the other effects.

        Raises:
            ValueError: for a level outside of (0, 1), and points that are not finite.
        """
        points = np.asarray(points, np.float64)
        if points.ndim != 1 or not np.all(np.isfinite(points)):
            raise ValueError(f"points must be finite and of shape (num_points,), got {points!r}")
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be between 0 and 1, got {level!r}")
        density = np.exp(self._learned.log_density(points)) / self._learned.slab_weight
        error = self._learned.log_density_error(points)
        factor = np.exp(ndtri(0.5 * (1.0 + level)) * np.minimum(error, 300.0))
        return DensityBand(density, density * error, density / factor, density * factor)

    def plot(self, ax: Axes | None = None, level: float = 0.95) -> Axes:
        """Draw the density of the prior with its band, and a bar for the point mass.

        Args:
            ax: Matplotlib's axes; None for new ones.
            level: of the band.

        Returns:
            The axes.

        Raises:
            ImportError: without Matplotlib.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError as error:
            raise ImportError("plot needs Matplotlib: pip install matplotlib") from error
        if ax is None:
            ax = plt.subplots(layout="constrained")[1]
        masses = np.exp(self._learned.log_masses[: len(self._learned.nodes.widths)])
        shares = np.cumsum(masses) / masses.sum()
        nodes = self._learned.nodes.nodes[: len(masses)]
        low, high = np.interp([0.002, 0.998], shares, nodes)
        margin = 0.1 * (high - low)
        points = np.linspace(max(low - margin, nodes[0]), min(high + margin, nodes[-1]), 400)
        band = self.density_band(points, level)
        share = self._learned.slab_weight
        ax.fill_between(points, share * band.low, share * band.high, alpha=0.25, linewidth=0, label=f"{level:.0%} band")
        ax.plot(points, share * band.density, label="learned prior")
        if self.point_mass is not None:
            ax.vlines(self.point_mass, 0.0, self.point_mass_weight, "C3", linewidth=3, label="point mass (probability)")
        ax.set(xlabel="effect" if not self._covariates.is_used else "effect less its covariates", ylabel="density")
        # The band of what the data say nothing about is no reason to shrink the density.
        highest = max(float(np.max(share * band.density)), self.point_mass_weight)
        ax.set_ylim(0.0, min(1.05 * max(float(np.max(share * band.high)), highest), 2.0 * highest))
        ax.legend()
        return ax

    # ------------------------------------------------------------------------------------------------------------------

    def _for_pieces(self, function: Callable[[Pieces], np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
        values = np.empty(shape)
        for pieces in posterior_pieces(self._measurements, self._intervals, self._learned):
            values[pieces.rows] = function(pieces)
        return values

    def _below(self, effects: np.ndarray) -> np.ndarray:
        """Posterior mass of the continuous part below effects."""
        at = self._covariates.residuals(effects)
        return self._for_pieces(lambda pieces: pieces.cdf(at[pieces.rows]), (len(self),))

    def _inverted(self, q: np.ndarray) -> np.ndarray:
        """Quantiles of shape (n, num_values)."""

        def of(q: np.ndarray, pieces: Pieces) -> np.ndarray:
            mass = q[pieces.rows]
            if self.point_mass is None:
                return pieces.quantile(mass)
            before = pieces.cdf(np.full(len(mass), self.point_mass))[:, None]
            after = before + pieces.point[:, None]
            values = pieces.quantile(np.where(mass < before, mass, np.maximum(mass - pieces.point[:, None], before)))
            return np.where((mass >= before) & (mass <= after), self.point_mass, values)

        values = [
            self._for_pieces(
                partial(of, q[:, start : start + _COLUMNS]), (len(self), min(_COLUMNS, q.shape[1] - start))
            )
            for start in range(0, q.shape[1], _COLUMNS)
        ]
        return self._covariates.effects(np.concatenate(values, axis=1))


_COLUMNS = 64  # quantiles that are computed at a time, to bound the memory
_QUANTILES = (0.025, 0.25, 0.5, 0.75, 0.975)


def posteriors_of(
    result: EmpiricalBayes,
    measurements: Measurements,
    intervals: Intervals,
    covariates: Covariates,
    weights: np.ndarray | None = None,
) -> EmpiricalBayes:
    """The same prior with the posteriors of some data, from measurements of e and intervals of the effects."""
    learned = result._learned
    intervals = intervals.moved(covariates, learned.support)
    count = len(measurements)
    log_evidence, mean, std, point = np.empty((4, count))
    for pieces in posterior_pieces(measurements, intervals, learned):
        log_evidence[pieces.rows] = pieces.log_evidence
        mean[pieces.rows], std[pieces.rows] = pieces.moments(learned.point_mass or 0.0)
        point[pieces.rows] = pieces.point
    return dataclasses.replace(
        result,
        log_evidence=log_evidence,
        mean=covariates.effects(mean),
        std=std * covariates.scale,
        log_likelihood=float(log_evidence.sum() if weights is None else weights @ log_evidence),
        _measurements=measurements,
        _intervals=intervals,
        _covariates=covariates,
        _point=point,
    )
