"""Descriptions of a density: a named family, a mixture, or the distribution itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy.special import logsumexp, polygamma, psi

from numpyro_kaem.reading.families import BY_NAME, Family, Support, families_on
from numpyro_kaem.reading.learned_density import LearnedDensity
from numpyro_kaem.reading.printed_numbers import proportions, shown

_MOST_COMPONENTS = 4
_GROUP = 6  # nodes
_MOST_ITERATIONS, _LAST_ITERATIONS, _FEW = 200, 20, 400  # on groups, on nodes, and what is fewer than nodes
_GAIN = 1e-7  # nats of an iteration, below which the search for a mixture ends
_MIXED = {"line": "Normal", "half-line": "LogNormal", "interval": "Beta"}


@dataclasses.dataclass(frozen=True)
class Named:
    """A member of a family."""

    family: Family
    values: tuple[float, ...]
    support: Support

    @property
    def name(self) -> str:
        """The family's."""
        return self.family.name

    @property
    def complexity(self) -> int:
        """Printed numbers, and one for the family."""
        return len(self.values) + 1

    @property
    def parameters(self) -> dict[str, Any]:
        """Values by name."""
        return dict(zip(self.family.parameters, self.values, strict=True))

    @property
    def expression(self) -> str:
        """As it is printed."""
        if self.name == "Uniform":
            return f"Uniform({shown(self.support.low, 7)}, {shown(self.support.high, 7)})"
        return f"{self.name}({', '.join(map(shown, self.values))}){self._at.argument}"

    def rounded(self, digits: int) -> Named:
        """With the parameters that are printed."""
        return dataclasses.replace(self, values=self.family.rounded(self.values, digits))

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Normalised log-density of z, in float64."""
        at = self._at
        return self.family.log_prob(at.standard(z), self.values) - np.log(abs(at.affine[1]))

    def distribution(self) -> dist.Distribution:
        """The NumPyro distribution of z."""
        if self.name == "Uniform":
            return dist.Uniform(self.support.low, self.support.high)
        return self._at.moved(self.family.distribution(self.values))

    def density(self, sympy: Any, z: Any) -> Any:
        """The density as a SymPy expression of z, zero outside of its support."""
        at = self._at
        density = self.family.density(sympy, at.standard(z), self.values) / sympy.Float(abs(at.affine[1]))
        return on_support(sympy, z, density, self.support)

    @property
    def is_plain(self) -> bool:
        """Whether it is neither moved nor cut off, so that arrays of its parameters are a distribution, too."""
        return bool(self.values) and self.family.bounds is None and self.support.affine == (0.0, 1.0)

    @property
    def _at(self) -> Support:
        """Where the family's x is not z."""
        return Support() if self.family.bounds is not None else self.support


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A mixture of members of one family."""

    weights: tuple[float, ...]
    components: tuple[Named, ...]

    @property
    def name(self) -> str:
        """Number and family."""
        return f"{len(self.weights)} {self.components[0].name}s"

    @property
    def complexity(self) -> int:
        """That of the components, and all weights but one."""
        return sum(component.complexity for component in self.components) + len(self.weights) - 1

    @property
    def parameters(self) -> dict[str, Any]:
        """Tuples by name."""
        names = self.components[0].family.parameters
        values = zip(*(component.values for component in self.components), strict=True)
        return {"weights": self.weights, **dict(zip(names, values, strict=True))}

    @property
    def expression(self) -> str:
        """As it is printed."""
        parts = [
            f"{shown(weight)} {dataclasses.replace(component, support=Support()).expression}"
            for weight, component in zip(self.weights, self.components, strict=True)
        ]
        argument = self.components[0].support.argument
        return f"({' + '.join(parts)}){argument}" if argument else " + ".join(parts)

    def rounded(self, digits: int) -> Mixture:
        """With the parameters that are printed, and weights that sum to one."""
        return Mixture(proportions(self.weights, digits), tuple(part.rounded(digits) for part in self.components))

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Normalised log-density of z, in float64."""
        logs = np.stack([component.log_density(z) for component in self.components])
        return logsumexp(logs + np.log(np.array(self.weights))[:, None], axis=0)

    def distribution(self) -> dist.Distribution:
        """The NumPyro distribution of z."""
        parts = [jnp.asarray(values) for values in zip(*(part.values for part in self.components), strict=True)]
        component = self.components[0]
        mixture = dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.asarray(self.weights)), component.family.distribution(tuple(parts))
        )
        return component.support.moved(mixture)

    def density(self, sympy: Any, z: Any) -> Any:
        """The density as a SymPy expression of z."""
        support = self.components[0].support
        terms = [
            sympy.Float(weight) * component.family.density(sympy, support.standard(z), component.values)
            for weight, component in zip(self.weights, self.components, strict=True)
        ]
        return on_support(sympy, z, sum(terms) / sympy.Float(abs(support.affine[1])), support)


@dataclasses.dataclass(frozen=True)
class Itself:
    """The learned distribution of a coordinate, for which there is no formula."""

    learned: dist.Distribution

    @property
    def name(self) -> str:
        """That of the distribution."""
        return type(self.learned).__name__

    @property
    def complexity(self) -> int:
        """Its numbers, shared evenly by the coordinates."""
        numbers = sum(np.size(leaf) for leaf in jax.tree.leaves(self.learned))
        return max(1, round(numbers / max(1, int(np.prod(self.learned.batch_shape)))))


def on_support(sympy: Any, z: Any, density: Any, support: Support) -> Any:
    """A density that is zero outside of a support."""
    inside = []
    if np.isfinite(support.low):
        inside.append(z > sympy.Float(support.low))
    if np.isfinite(support.high):
        inside.append(z < sympy.Float(support.high))
    return sympy.Piecewise((density, sympy.And(*inside)), (sympy.Integer(0), True)) if inside else density


def as_named(distribution: dist.Distribution, values: dict[str, float], support: Support) -> Named | None:
    """A distribution of a named family by its parameters; None for another."""
    family = BY_NAME.get(type(distribution).__name__)
    if family is None or type(distribution) is not getattr(dist, family.name):
        return None
    if family.kind == "half-line" and support.affine != (0.0, 1.0):
        return None
    if family.name == "Beta" and support.affine != (0.0, 1.0):
        return None
    return Named(family, tuple(values[name] for name in family.parameters), support)


def named_descriptions(density: LearnedDensity, digits: int) -> list[Named]:
    """The nearest member of every family on the support, as it is printed."""
    found = []
    for family in families_on(density.support):
        at = Support() if family.bounds is not None else density.support
        values = family.fitted(at.standard(density.z), density.mass)
        if values is not None:
            found.append(Named(family, values, density.support).rounded(digits))
    return found


def mixtures(density: LearnedDensity, digits: int) -> Iterator[Mixture]:
    """Mixtures of two to four components, as they are printed, each by expectation maximisation from two starts.

    It begins on groups of nodes, of which it needs fewer, and ends on the nodes.
    """
    family = BY_NAME[_MIXED[density.support.kind]]
    order = np.argsort(density.z)
    x, mass = density.support.standard(density.z[order]), density.mass[order]
    y = np.log(x) if family.name == "LogNormal" else x
    groups = np.arange(len(y)) // _GROUP
    grouped = np.bincount(groups, mass)
    places = np.bincount(groups, mass * y) / np.maximum(grouped, 1e-300)
    places, grouped = places[grouped > 1e-12], grouped[grouped > 1e-12]
    mixed = _Mixed.of_shares(family, places, grouped[None])
    for size in range(2, _MOST_COMPONENTS + 1):
        by_quantiles = np.minimum((np.cumsum(grouped) * size).astype(int), size - 1) == np.arange(size)[:, None]
        # Or one component more where the mixture before has too little.
        shares, log_q = mixed.shares(places, grouped)
        missing = np.log(grouped) - np.log(np.gradient(places)) - log_q
        added = 0.3 * grouped * np.clip(missing, 1e-6, 1.0)
        starts = by_quantiles * grouped, np.concatenate([0.7 * shares, added[None]])
        found = [_Mixed.of_shares(family, places, start).improved(places, grouped) for start in starts]
        mixed = max(found, key=lambda found: grouped @ found.shares(places, grouped)[1]).improved(y, mass)
        means = mixed.values[0] / mixed.values.sum(axis=0) if family.name == "Beta" else mixed.values[0]
        by_mean = np.argsort(means)
        parts = [Named(family, tuple(mixed.values[:, k].tolist()), density.support) for k in by_mean]
        yield Mixture(tuple(mixed.weights[by_mean].tolist()), tuple(parts)).rounded(digits)


@dataclasses.dataclass(frozen=True)
class _Mixed:
    """A mixture while it is fitted: weights (K,) and parameters (2, K) of densities of y."""

    family: Family
    weights: np.ndarray
    values: np.ndarray

    @classmethod
    def of_shares(cls, family: Family, y: np.ndarray, shares: np.ndarray) -> _Mixed:
        """The components that are nearest to their shares (K, N) of a mass."""
        weights = np.maximum(shares.sum(axis=1), 1e-12)
        return cls(family, weights / weights.sum(), _weighted_fit(family, y, shares))

    def shares(self, y: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Shares of the components in a mass, (K, N), and the log-density of the mixture."""
        logs = _component_log_densities(self.family, y, *self.values) + np.log(self.weights)[:, None]
        largest = logs.max(axis=0)
        parts = np.exp(logs - largest)
        total = parts.sum(axis=0)
        return parts * (mass / total), largest + np.log(total)

    def improved(self, y: np.ndarray, mass: np.ndarray) -> _Mixed:
        """By expectation maximisation, until an iteration gains next to nothing."""
        mixed, value = self, -np.inf
        for _ in range(_MOST_ITERATIONS if len(y) < _FEW else _LAST_ITERATIONS):
            shares, log_q = mixed.shares(y, mass)
            if not mass @ log_q - value > _GAIN:
                break
            value, mixed = mass @ log_q, _Mixed.of_shares(self.family, y, shares)
        return mixed


def _weighted_fit(family: Family, y: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Parameters (2, K) of the components that are nearest to shares (K, N) of a mass on nodes."""
    shares = shares / np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    mean = shares @ y
    variance = np.sum(shares * (y - mean[:, None]) ** 2, axis=1)
    if family.name != "Beta":
        # A component on a single node is no density.
        return np.stack([mean, np.sqrt(np.maximum(variance, (1e-4 * (y[-1] - y[0]) / len(y)) ** 2))])
    logs = shares @ np.log(y), shares @ np.log1p(-y)
    size = np.maximum(mean * (1.0 - mean) / np.maximum(variance, 1e-12) - 1.0, 0.1)
    a, b = mean * size, (1.0 - mean) * size
    for _ in range(20):  # Newton's method in log a and log b
        both = psi(a + b)
        slope = a * (psi(a) - both - logs[0]), b * (psi(b) - both - logs[1])
        shared = polygamma(1, a + b)
        haa = a * a * (polygamma(1, a) - shared) + np.maximum(slope[0], 0.0)
        hbb = b * b * (polygamma(1, b) - shared) + np.maximum(slope[1], 0.0)
        hab = -a * b * shared
        determinant = np.maximum(haa * hbb - hab**2, 1e-12)
        step = (hbb * slope[0] - hab * slope[1]) / determinant, (haa * slope[1] - hab * slope[0]) / determinant
        a, b = (part * np.exp(-np.clip(move, -1.0, 1.0)) for part, move in zip((a, b), step, strict=True))
        if max(np.abs(step[0]).max(), np.abs(step[1]).max()) < 1e-10:
            break
    return np.stack([a, b])


def _component_log_densities(family: Family, y: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Log-densities of y, (K, N)."""
    of = BY_NAME["Beta"] if family.name == "Beta" else BY_NAME["Normal"]
    return of.log_density(y, first[:, None], second[:, None])
