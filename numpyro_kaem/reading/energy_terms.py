"""Sparse energies: a reference times the exponential of a few functions of the basis, chosen one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem._numerics.grid import Grid
from numpyro_kaem.distributions import KAMixture, KAPrior
from numpyro_kaem.energies import Basis, UnivariateEnergy
from numpyro_kaem.reading.basis_expressions import activation_expression, combination_expression
from numpyro_kaem.reading.descriptions import Named, as_named
from numpyro_kaem.reading.learned_density import LearnedDensity
from numpyro_kaem.reading.printed_numbers import shown, signed
from numpyro_kaem.reading.product import Product

# Numbers of functions that are kept, from few to many.
_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12)
_RIDGE = 1e-9  # decides what a constant function, or several that sum to one, leave open

_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "silu": lambda t: t / (1.0 + np.exp(-t)),
    "tanh": np.tanh,
    "identity": lambda t: t,
}


@dataclasses.dataclass(frozen=True)
class Tilted:
    """A reference times exp(sum of some functions of a basis) over a normaliser.

    Attributes:
        reference: the density that is tilted.
        basis: of one coordinate, its grid fixed.
        activation: the base activation, which counts as function number -1.
        terms: coefficients by the number of their function.
        log_normalizer: by quadrature; it follows from the other numbers.
        is_exact: whether it has all functions.
    """

    reference: Named
    basis: Basis
    activation: str
    terms: dict[int, float]
    log_normalizer: float
    is_exact: bool = False

    @property
    def name(self) -> str:
        """How many functions it has."""
        if self.is_exact:
            return f"exact energy ({len(self.terms)} terms)"
        return f"energy of {len(self.terms)} {'term' if len(self.terms) == 1 else 'terms'}"

    @property
    def complexity(self) -> int:
        """That of the reference, the ends of the domain, and for every term its coefficient and which one it is.

        Of all terms it need not be said which ones they are.
        """
        ends = 2 if self.basis.stretched else self.basis.grid.num_points
        return self.reference.complexity + ends + (1 if self.is_exact else 2) * len(self.terms)

    @property
    def parameters(self) -> dict[str, Any]:
        """Those of the reference, and the coefficients by the name of their function."""
        return {**self.reference.parameters, "coefficients": {self._symbol(n): c for n, c in self.terms.items()}}

    @property
    def expression(self) -> str:
        """As it is printed."""
        low, high = map(float, self.basis.domain)
        terms = signed([f"{shown(value)} {self._symbol(number)}" for number, value in self.terms.items()])
        if self.is_exact:
            terms = f"all {len(self.terms)} terms"
        where = (
            f"B: {type(self.basis).__name__}({self.basis.num_basis} functions) on [{shown(low, 7)}, {shown(high, 7)}]"
        )
        return f"{self.reference.expression} exp({terms}) / Z, {where}"

    def log_density(self, z: np.ndarray) -> np.ndarray:
        """Normalised log-density of z, in float64."""
        values = design(self.basis, self.activation, z)[:, [number + 1 for number in self.terms]]
        energy = values @ np.array(list(self.terms.values()))
        return self.reference.log_density(z) + energy - self.log_normalizer

    def distribution(self) -> dist.Distribution:
        """The `KAPrior` of z."""
        coefficients = np.zeros(self.basis.num_basis)
        for number, value in self.terms.items():
            if number >= 0:
                coefficients[number] = value
        energy = UnivariateEnergy(
            base_weight=jnp.asarray(self.terms.get(-1, 0.0)),
            spline_weight=jnp.ones(()),
            coefficients=jnp.asarray(coefficients),
            basis=self.basis,
            base_activation=self.activation,
        )
        return KAPrior(energy, self.reference.distribution())

    def density(self, sympy: Any, z: Any) -> Any:
        """The density as a SymPy expression of z, its normaliser a number."""
        clipped = sympy.Max(sympy.Min(z, sympy.Float(self.basis.domain[1])), sympy.Float(self.basis.domain[0]))
        splines = {number: value for number, value in self.terms.items() if number >= 0}
        energy = combination_expression(sympy, self.basis, splines, clipped) if splines else sympy.Integer(0)
        if -1 in self.terms:
            energy += sympy.Float(self.terms[-1]) * activation_expression(sympy, self.activation, clipped)
        return self.reference.density(sympy, z) * sympy.exp(energy - sympy.Float(self.log_normalizer))

    def _symbol(self, number: int) -> str:
        return self.activation if number < 0 else f"B{number}"


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """What the energies of one coordinate are made of."""

    reference: Named
    basis: Basis
    activation: str
    exact: dict[int, float] | None


def ingredients(product: Product, coordinate: int, density: LearnedDensity) -> Ingredients | None:
    """Reference, basis and coefficients of a coordinate; None for a distribution that has no energy or no name.

    A mixture of tilted references is one again, though not of the same basis: it has no coefficients.
    """
    factors = product.factors
    is_mixture = isinstance(factors, KAMixture)
    prior = factors.components if is_mixture else factors
    if not isinstance(prior, KAPrior):
        return None
    place: tuple[Any, ...] = np.unravel_index(coordinate, product.shape) if product.shape else ()
    place = place if product.component is None else (int(product.component), *place)
    shape = prior.batch_shape

    def of_coordinate(leaf: Any, extra: int = 0) -> Any:
        array = np.asarray(leaf, np.float64)
        own = array.shape[array.ndim - extra :]
        return np.broadcast_to(array, (*shape, *own))[place]

    names = getattr(prior.reference, "arg_constraints", {})
    values = {}
    for name in names:
        value = of_coordinate(getattr(prior.reference, name))
        if np.ndim(value) and not np.all(value == value[0]):
            return None
        values[name] = float(np.ravel(value)[0])
    reference = as_named(prior.reference, values, density.support)
    if reference is None:
        return None
    energy = prior.energy
    points = of_coordinate(energy.basis.grid.points, 1)
    basis = jax.tree.map(lambda leaf: leaf if leaf.dtype.kind == "i" else np.asarray(leaf), energy.basis)
    basis = eqx.tree_at(lambda b: b.grid, basis, Grid.of(points.reshape(-1, points.shape[-1])[0]))
    if is_mixture:
        return Ingredients(reference, basis, energy.base_activation, None)
    coefficients = of_coordinate(energy.spline_weight) * of_coordinate(energy.coefficients, 1)
    exact = dict(enumerate(coefficients.tolist()))
    if base := float(of_coordinate(energy.base_weight)):
        exact = {-1: base, **exact}
    return Ingredients(reference, basis, energy.base_activation, exact)


def design(basis: Basis, activation: str, z: np.ndarray) -> np.ndarray:
    """The base activation and all functions of the basis at z, (num_points, 1 + num_basis), in float64."""
    clipped = np.clip(z, *basis.domain)
    with np.errstate(over="ignore"):
        base = _ACTIVATIONS[activation](clipped)
    return np.concatenate([base[:, None], np.asarray(basis.design_matrix(z), np.float64)], axis=1)


def exact_energy(of: Ingredients, density: LearnedDensity, digits: int) -> Tilted:
    """All coefficients, as they are printed."""
    reference = of.reference.rounded(digits)
    values, log_measure = _on_nodes(of, reference, density)
    return _tilted(of, reference, of.exact, values, log_measure, digits, is_exact=True)


def sparse_energies(of: Ingredients, density: LearnedDensity, digits: int) -> Iterator[Tilted]:
    """Energies of ever more terms, as they are printed.

    The function that is added is the one whose coefficient promises most nats, by the score test; then all
    coefficients are fitted anew, by Newton's method, so that the kept functions have the learned density's means.
    """
    reference = of.reference.rounded(digits)
    values, log_measure = _on_nodes(of, reference, density)
    means = density.mass @ values
    kept: list[int] = []
    coefficients = np.zeros(0)
    # The activation of an energy that has none is not offered.
    offered = np.arange(0 if of.exact and -1 in of.exact else 1, values.shape[1])
    # Half of all terms, each with its number, are as long as all of them.
    for size in range(1, min(_SIZES[-1], (of.basis.num_basis - 1) // 2) + 1):
        kept.append(_best_addition(values, means, log_measure, kept, coefficients, offered))
        coefficients = _fitted(values[:, kept], means[kept], log_measure, np.append(coefficients, 0.0))
        if size in _SIZES:
            terms = {kept[i] - 1: float(coefficients[i]) for i in np.argsort(kept)}
            yield _tilted(of, reference, terms, values, log_measure, digits)


def _on_nodes(of: Ingredients, reference: Named, density: LearnedDensity) -> tuple[np.ndarray, np.ndarray]:
    """The functions at the nodes, and the logs of the masses of the reference there."""
    values = design(of.basis, of.activation, density.z)
    return values, reference.log_density(density.z) + np.log(density.widths)


def _tilted(of: Ingredients, reference: Named, terms, values, log_measure, digits: int, is_exact=False) -> Tilted:
    """With rounded coefficients, and the normaliser of these."""
    # What counts is by how many nats an energy is off.
    rounded = {number: round(value, digits - 1) + 0.0 for number, value in terms.items()}
    columns = [number + 1 for number in rounded]
    log_normalizer, _ = _probabilities(values[:, columns], log_measure, np.array(list(rounded.values())))
    return Tilted(reference, of.basis, of.activation, rounded, log_normalizer, is_exact)


def _probabilities(values: np.ndarray, log_measure: np.ndarray, coefficients: np.ndarray) -> tuple[float, np.ndarray]:
    """Log Z and the probabilities of the nodes."""
    logs = log_measure + values @ coefficients
    largest = logs.max()
    q = np.exp(logs - largest)
    return float(largest + np.log(q.sum())), q / q.sum()


def _best_addition(values, means, log_measure, kept: list[int], coefficients, offered: np.ndarray) -> int:
    """The function that gains most: its missing mean squared, over the variance that the kept ones do not explain."""
    _, q = _probabilities(values[:, kept], log_measure, coefficients)
    now = q @ values
    centered = values - now
    weighted = centered * q[:, None]
    variance = np.sum(weighted * centered, axis=0)
    if kept:
        between = weighted[:, kept].T @ centered
        inside = between[:, kept] + _RIDGE * np.eye(len(kept))
        variance = variance - np.sum(between * np.linalg.solve(inside, between), axis=0)
    gain = np.full(values.shape[1], -1.0)
    usable = np.setdiff1d(offered[variance[offered] > 1e-8], kept)
    gain[usable] = (means - now)[usable] ** 2 / variance[usable]
    if gain.max() < 0.0:
        return int(np.setdiff1d(offered, kept)[0])
    return int(np.argmax(gain))


def _fitted(values: np.ndarray, means: np.ndarray, log_measure: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Coefficients with which the functions have given means, by Newton's method with step halving."""
    c = start
    log_z, q = _probabilities(values, log_measure, c)
    for _ in range(60):
        now = q @ values
        centered = values - now
        hessian = (centered * q[:, None]).T @ centered + _RIDGE * np.eye(len(c))
        gradient = means - now - _RIDGE * c
        direction = np.linalg.solve(hessian, gradient)
        decrement, step = gradient @ direction, 1.0
        if decrement < 1e-14:
            break
        value = c @ means - log_z - 0.5 * _RIDGE * c @ c
        for _ in range(30):
            moved = c + step * direction
            log_z, trial = _probabilities(values, log_measure, moved)
            if moved @ means - log_z - 0.5 * _RIDGE * moved @ moved >= value + 1e-4 * step * decrement - 1e-13:
                break
            step *= 0.5
        c, q = moved, trial
    return c
