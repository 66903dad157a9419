"""Named families of densities: in float64, in NumPyro and in SymPy, and fitted to a density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpyro.distributions as dist
from scipy.special import betaln, expit, gammaln, ndtr

from numpyro_kaem.reading.printed_numbers import shown, significant, to_place_of

Kind = Literal["line", "half-line", "interval"]
# A shape or a scale is looked for within a factor of e^8 of where the search begins.
_REACH = 8.0
# Digits of the ends of supports, which are numbers of float32.
_END = 7


@dataclasses.dataclass(frozen=True)
class Support:
    """The line, a half-line or an interval, and the coordinate x in which families are written there.

    On the half-line x > 0 is the distance from its end, on an interval x is the place between its ends, in (0, 1).
    """

    low: float = -np.inf
    high: float = np.inf

    @property
    def kind(self) -> Kind:
        """Which of the three."""
        finite = np.isfinite([self.low, self.high])
        return "interval" if finite.all() else "half-line" if finite.any() else "line"

    @property
    def affine(self) -> tuple[float, float]:
        """(c, s) of z = c + s x."""
        if self.kind == "interval":
            return self.low, self.high - self.low
        return (self.low, 1.0) if np.isfinite(self.low) else (self.high, -1.0) if np.isfinite(self.high) else (0.0, 1.0)

    def standard(self, z: Any) -> Any:
        """The coordinate x of z; of arrays and of symbols."""
        shift, scale = self.affine
        return z if (shift, scale) == (0.0, 1.0) else (z - shift) / scale

    @property
    def argument(self) -> str:
        """What is to be said after a distribution of x: " of (z - 1) / 2"; nothing where x is z."""
        shift, scale = self.affine
        if (shift, scale) == (0.0, 1.0):
            return ""
        end = shown(shift, _END)
        inner = f"{end} - z" if scale < 0 else f"z - {end}".replace("- -", "+ ")
        return f" of {inner}" if abs(scale) == 1.0 else f" of ({inner}) / {shown(scale, _END)}"

    def moved(self, distribution: dist.Distribution) -> dist.Distribution:
        """The distribution of z, from that of x."""
        if self.affine == (0.0, 1.0):
            return distribution
        domain = dist.constraints.unit_interval if self.kind == "interval" else dist.constraints.positive
        return dist.TransformedDistribution(distribution, dist.transforms.AffineTransform(*self.affine, domain=domain))


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of densities of x.

    Attributes:
        name: of NumPyro's class.
        parameters: their names, in NumPyro's order. "loc" is any number, the others are positive.
        kind: of the support.
        log_density: of x and the parameters, in float64.
        start: parameters from the median, the scale (half of the middle 68 per cent), the mean and the variance.
        symbolic: of SymPy, x and the parameters.
        cdf: of x and the parameters, where it is known in closed form: the family may then be truncated.
        bounds: it is truncated to, if it is.
    """

    name: str
    parameters: tuple[str, ...]
    kind: Kind
    log_density: Callable[..., np.ndarray]
    start: Callable[[float, float, float, float], tuple[float, ...]]
    symbolic: Callable[..., Any]
    cdf: Callable[..., Any] | None = None
    bounds: tuple[float, float] | None = None

    def log_prob(self, x: np.ndarray, values: tuple[float, ...]) -> np.ndarray:
        """Normalised log-density of x."""
        log_density = self.log_density(x, *values)
        return log_density if self.bounds is None else log_density - np.log(self._mass(values))

    def _mass(self, values: tuple[float, ...]) -> float:
        low, high = (self.cdf(end, *values) for end in self.bounds)
        return high - low if high > low else np.nan

    def density(self, sympy: Any, x: Any, values: tuple[float, ...]) -> Any:
        """The density as a SymPy expression of x."""
        density = self.symbolic(sympy, x, *map(sympy.Float, values))
        return density if self.bounds is None else density / sympy.Float(self._mass(values))

    def distribution(self, values: tuple[Any, ...]) -> dist.Distribution:
        """The NumPyro distribution of x."""
        if self.bounds is not None:
            base = getattr(dist, self.name.removeprefix("Truncated"))(*values)
            return dist.TruncatedDistribution(base, low=self.bounds[0], high=self.bounds[1])
        return getattr(dist, self.name)(*((0.0, 1.0) if self.name == "Uniform" else values))

    def rounded(self, values: tuple[float, ...], digits: int) -> tuple[float, ...]:
        """The parameters as they are printed."""
        named = dict(zip(self.parameters, values, strict=True))
        return tuple(
            to_place_of(value, named["scale"], digits) if name == "loc" else significant(value, digits)
            for name, value in named.items()
        )

    def fitted(self, x: np.ndarray, mass: np.ndarray) -> tuple[float, ...] | None:
        """The member that is nearest to a density on nodes in KL(density || family); None where the search fails."""
        if not self.parameters:
            return ()
        order = np.argsort(x)
        below = np.cumsum(mass[order])
        low, median, high = (x[order][np.searchsorted(below, u)] for u in (0.16, 0.5, 0.84))
        mean = mass @ x
        scale = max(0.5 * (high - low), 1e-30)
        start = np.array(self.start(median, scale, mean, mass @ (x - mean) ** 2))
        is_loc = np.array([name == "loc" for name in self.parameters])
        if self.name == "LogNormal":
            scale = start[1]

        def values(free: np.ndarray) -> tuple[float, ...]:
            return tuple(np.where(is_loc, start + scale * free, start * np.exp(np.where(is_loc, 0.0, free))).tolist())

        def loss(free: np.ndarray) -> float:
            with np.errstate(all="ignore"):
                lost = -float(mass @ self.log_prob(x, values(free)))
            return lost if np.isfinite(lost) else 1e10

        from scipy.optimize import minimize  # which takes long to import

        found = minimize(loss, np.zeros(len(start)), method="L-BFGS-B", bounds=[(-_REACH, _REACH)] * len(start))
        return values(found.x) if found.fun < 1e9 else None


def truncated(family: Family, low: float, high: float) -> Family:
    """A family of the line, cut off at the ends of an interval; its x is z."""
    return dataclasses.replace(family, name=f"Truncated{family.name}", kind="interval", bounds=(low, high))


_HALF_LOG_2_PI = 0.5 * np.log(2.0 * np.pi)


def _normal(x, loc, scale):
    return -0.5 * ((x - loc) / scale) ** 2 - np.log(scale) - _HALF_LOG_2_PI


def _laplace_cdf(x, loc, scale):
    tail = 0.5 * np.exp(-abs(x - loc) / scale)
    return tail if x < loc else 1.0 - tail


def _logistic(x, loc, scale):
    t = np.abs(x - loc) / scale
    return -t - 2.0 * np.log1p(np.exp(-t)) - np.log(scale)


def _gumbel(x, loc, scale):
    t = (x - loc) / scale
    return -t - np.exp(-t) - np.log(scale)


def _student(x, df, loc, scale):
    constant = gammaln(0.5 * (df + 1.0)) - gammaln(0.5 * df) - 0.5 * np.log(df * np.pi) - np.log(scale)
    return constant - 0.5 * (df + 1.0) * np.log1p(((x - loc) / scale) ** 2 / df)


def _cauchy(x, loc, scale):
    return -np.log(np.pi * scale) - np.log1p(((x - loc) / scale) ** 2)


def _gamma(x, concentration, rate):
    log_x = np.log(x)
    return concentration * np.log(rate) + (concentration - 1.0) * log_x - rate * x - gammaln(concentration)


def _weibull(x, scale, concentration):
    log_t = np.log(x / scale)
    return np.log(concentration / scale) + (concentration - 1.0) * log_t - np.exp(concentration * log_t)


def _beta(x, a, b):
    return (a - 1.0) * np.log(x) + (b - 1.0) * np.log1p(-x) - betaln(a, b)


def _log_normal_start(median, scale, mean, variance):
    spread = max(np.log1p(scale / max(median, 1e-30)), 1e-3)
    return np.log(max(median, 1e-30)), spread


def _beta_start(median, scale, mean, variance):
    size = max(mean * (1.0 - mean) / variance - 1.0, 1e-2)
    return mean * size, (1.0 - mean) * size


def _around(factor: float) -> Callable:
    return lambda median, scale, mean, variance: (median, factor * scale)


def _exp_of_normal(sp, x, loc, scale):
    return sp.exp(-(((x - loc) / scale) ** 2) / 2) / (scale * sp.sqrt(2 * sp.pi))


FAMILIES = (
    Family(
        "Normal",
        ("loc", "scale"),
        "line",
        _normal,
        lambda median, scale, mean, variance: (mean, np.sqrt(variance)),
        _exp_of_normal,
        lambda x, loc, scale: ndtr((x - loc) / scale),
    ),
    Family(
        "Laplace",
        ("loc", "scale"),
        "line",
        lambda x, loc, scale: -np.abs(x - loc) / scale - np.log(2.0 * scale),
        _around(0.9),
        lambda sp, x, loc, scale: sp.exp(-sp.Abs(x - loc) / scale) / (2 * scale),
        _laplace_cdf,
    ),
    Family(
        "Logistic",
        ("loc", "scale"),
        "line",
        _logistic,
        _around(0.6),
        lambda sp, x, loc, scale: 1 / (4 * scale * sp.cosh((x - loc) / (2 * scale)) ** 2),
        lambda x, loc, scale: expit((x - loc) / scale),
    ),
    Family(
        "Gumbel",
        ("loc", "scale"),
        "line",
        _gumbel,
        lambda median, scale, mean, variance: (median - 0.3 * scale, 0.8 * scale),
        lambda sp, x, loc, scale: sp.exp(-(x - loc) / scale - sp.exp(-(x - loc) / scale)) / scale,
    ),
    Family(
        "Cauchy",
        ("loc", "scale"),
        "line",
        _cauchy,
        _around(0.55),
        lambda sp, x, loc, scale: 1 / (sp.pi * scale * (1 + ((x - loc) / scale) ** 2)),
    ),
    Family(
        "StudentT",
        ("df", "loc", "scale"),
        "line",
        _student,
        lambda median, scale, mean, variance: (4.0, median, 0.9 * scale),
        lambda sp, x, df, loc, scale: (
            sp.gamma((df + 1) / 2)
            / (sp.gamma(df / 2) * sp.sqrt(df * sp.pi) * scale)
            * (1 + ((x - loc) / scale) ** 2 / df) ** (-(df + 1) / 2)
        ),
    ),
    Family(
        "Exponential",
        ("rate",),
        "half-line",
        lambda x, rate: np.log(rate) - rate * x,
        lambda median, scale, mean, variance: (1.0 / mean,),
        lambda sp, x, rate: rate * sp.exp(-rate * x),
    ),
    Family(
        "HalfNormal",
        ("scale",),
        "half-line",
        lambda x, scale: _normal(x, 0.0, scale) + np.log(2.0),
        lambda median, scale, mean, variance: (1.2 * mean,),
        lambda sp, x, scale: 2 * _exp_of_normal(sp, x, 0, scale),
    ),
    Family(
        "LogNormal",
        ("loc", "scale"),
        "half-line",
        lambda x, loc, scale: _normal(np.log(x), loc, scale) - np.log(x),
        _log_normal_start,
        lambda sp, x, loc, scale: _exp_of_normal(sp, sp.log(x), loc, scale) / x,
    ),
    Family(
        "Gamma",
        ("concentration", "rate"),
        "half-line",
        _gamma,
        lambda median, scale, mean, variance: (mean**2 / variance, mean / variance),
        lambda sp, x, concentration, rate: (
            rate**concentration * x ** (concentration - 1) * sp.exp(-rate * x) / sp.gamma(concentration)
        ),
    ),
    Family(
        "Weibull",
        ("scale", "concentration"),
        "half-line",
        _weibull,
        lambda median, scale, mean, variance: (1.1 * mean, max(mean / np.sqrt(variance), 0.2)),
        lambda sp, x, scale, concentration: (
            concentration / scale * (x / scale) ** (concentration - 1) * sp.exp(-((x / scale) ** concentration))
        ),
    ),
    Family(
        "Uniform",
        (),
        "interval",
        np.zeros_like,
        lambda median, scale, mean, variance: (),
        lambda sp, x: sp.Integer(1),
    ),
    Family(
        "Beta",
        ("concentration1", "concentration0"),
        "interval",
        _beta,
        _beta_start,
        lambda sp, x, a, b: x ** (a - 1) * (1 - x) ** (b - 1) * sp.gamma(a + b) / (sp.gamma(a) * sp.gamma(b)),
    ),
)
BY_NAME = {family.name: family for family in FAMILIES}


def families_on(support: Support) -> list[Family]:
    """Those that can describe a density of a support; on an interval, those of the line cut off at its ends, too."""
    own = [family for family in FAMILIES if family.kind == support.kind]
    if support.kind == "interval":
        own += [truncated(BY_NAME[name], support.low, support.high) for name in ("Normal", "Laplace", "Logistic")]
    return own
