"""A tilted reference, fitted to samples, to a log-density or to densities that are tabulated on a grid."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.reference import check_reference, support_ends
from numpyro_kaem._fitting.default_shape import NUM_INTERVALS, Shape, default_basis, default_reference
from numpyro_kaem._fitting.exponential_family import (
    COARSE,
    RIDGE,
    Families,
    maximise,
    nearest_energy,
    normalised,
)
from numpyro_kaem._fitting.sample_checks import (
    check_domain_holds,
    check_fit,
    check_inside_support,
    check_levels,
    check_not_negative,
    check_reference_mass,
    check_samples,
    check_smoothness,
    check_spread,
    check_weights,
    of_coordinate,
    real_array,
)
from numpyro_kaem._fitting.smoothing import fit_penalised, penalty_axes
from numpyro_kaem._fitting.ties import untie
from numpyro_kaem._numerics.quadrature import QuadratureRule
from numpyro_kaem.energies import Basis, BSpline
from numpyro_kaem.energies.energy import UnivariateEnergy

TOTAL_VARIATION_BOUND = 0.01  # beyond which a log-density counts as not represented by the basis
_FLOOR = 30.0  # nats below the largest log-density, at which points of no density are held


class SampleFit(NamedTuple):
    """A density fitted to samples, with arrays of the batch shape."""

    energy: UnivariateEnergy
    reference: dist.Distribution
    smoothness: np.ndarray
    held_out_gain: np.ndarray  # mean log-likelihood per sample minus the reference's; NaN for a given smoothness


class LogDensityFit(NamedTuple):
    """A density fitted to a log-density."""

    energy: UnivariateEnergy
    reference: dist.Distribution
    total_variation: np.ndarray  # from the given density, both normalised on the domain; of the batch shape


def fit_samples(
    z: ArrayLike | Sequence,
    *,
    weights: ArrayLike | Sequence | None = None,
    basis: Basis | None = None,
    reference: dist.Distribution | None = None,
    smoothness: ArrayLike | Sequence | None = None,
    num_folds: int = 10,
    shuffle: bool = True,
) -> SampleFit:
    """Fit to samples by penalised maximum likelihood: `KAPrior.from_samples` with what it found on the way."""
    z = check_samples(z)
    num_samples, batch_shape = len(z), z.shape[1:]
    flat = z.reshape(num_samples, -1)
    weights = check_weights(weights, z.shape)
    effective = np.asarray(1.0 / np.sum(weights**2, axis=0))
    weights = np.broadcast_to(weights if weights.ndim > 1 else weights[:, None], flat.shape)
    check_spread(flat, weights, batch_shape, NUM_INTERVALS)
    if reference is not None:
        reference = unexpanded(reference)
        check_inside_support(z, weights, reference)
    if basis is not None:
        check_domain_holds(flat, weights, basis, batch_shape)
    num_basis = NUM_INTERVALS + 3 if basis is None else basis.num_basis
    smoothness = check_smoothness(smoothness, num_folds, effective, num_basis, batch_shape)
    chosen = smoothness is None
    num_folds = num_folds if chosen else 1

    index = np.arange(num_samples)
    folds = np.random.default_rng(0).permutation(index) % num_folds if shuffle else index * num_folds // num_samples
    ends = (-np.inf, np.inf) if reference is None else support_ends(reference)
    supports = np.stack([np.broadcast_to(end, batch_shape).ravel() for end in ends], axis=-1)
    columns = zip(flat.T, weights.T, supports, strict=True)
    samples = [untie(column, weight, folds, chosen, support) for column, weight, support in columns]
    check_levels(samples, batch_shape)
    shapes = [Shape.of(sample) for sample in samples]
    density = untilted_density(
        default_basis(shapes, supports, batch_shape) if basis is None else basis,
        default_reference(shapes, samples, batch_shape) if reference is None else reference,
        batch_shape,
    )
    coarse, fine = Families(density), Families(density, density.rule)
    check_reference_mass(fine.reference_mass, density)
    penalised, breakpoints, placed = basis, fine.breakpoints, samples
    if basis is None:  # in the coordinate in which its knots are even
        penalised, places = BSpline(NUM_INTERVALS, 3, (0.0, 1.0)), np.linspace(0.0, 1.0, NUM_INTERVALS + 1)
        placed = [
            sample._replace(points=np.interp(sample.points, knots, places))
            for sample, knots in zip(samples, breakpoints, strict=True)
        ]
        breakpoints = np.tile(places, (len(samples), 1))
    axes = penalty_axes(penalised, breakpoints, np.array([sample.moments()[1] for sample in placed]))
    fit = fit_penalised(coarse, fine, samples, num_folds, smoothness, axes)
    check_fit(fit, density, effective, chosen, basis is None)
    smoothness, gain = (values.reshape(batch_shape) for values in (fit.smoothness, fit.held_out_gain))
    return SampleFit(*tilted(density, fit.coefficients), smoothness, gain)


def fit_log_density(
    fn: Callable[[np.ndarray], ArrayLike],
    domain: tuple[ArrayLike | Sequence, ArrayLike | Sequence],
    *,
    reference: dist.Distribution | None = None,
    basis: Basis | None = None,
    batch_shape: tuple[int, ...] = (),
) -> LogDensityFit:
    """Fit to a log-density: `KAPrior.from_log_density` with the error of the fit."""
    dtype = jnp.result_type(float)
    # Rounded at once, so that basis and reference end at the same numbers.
    low, high = (np.asarray(end, dtype) for end in BSpline(NUM_INTERVALS, 3, domain).domain)
    if reference is not None:
        reference = unexpanded(reference)
    batch_shape = np.broadcast_shapes(low.shape, batch_shape, () if reference is None else reference.batch_shape)
    if basis is None:
        basis = BSpline(NUM_INTERVALS, 3, (low, high))
    elif not all(np.allclose(np.asarray(ours), end) for ours, end in zip(basis.domain, (low, high), strict=True)):
        raise ValueError(f"basis must have the domain {domain}, got a basis on {basis.domain}")
    if reference is None:
        reference = dist.Uniform(*(jnp.asarray(end, dtype) for end in basis.domain))
    density = untilted_density(basis, reference, batch_shape)
    coefficients, total_variation = _nearest(fn, density, density.rule)
    if np.max(total_variation) > TOTAL_VARIATION_BOUND:
        worst = np.unravel_index(np.argmax(total_variation), batch_shape)
        warnings.warn(
            f"the fitted density differs from fn by {np.max(total_variation):.3g} in total variation"
            f"{of_coordinate(worst)}; {_enough_cells(fn, (low, high), reference, batch_shape)}",
            stacklevel=3,
        )
    return LogDensityFit(*tilted(density, coefficients), total_variation)


def _nearest(fn, untilted: Density, rule: QuadratureRule, most_steps: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Coefficients of the member of a family that is nearest to a density, and its total variation from it."""
    families = Families(untilted, rule, tails=False)
    family, widths = families[:], families.widths
    log_density = _log_density(fn, families.nodes, untilted.shape)
    target = np.exp(log_density - log_density.max(axis=-1, keepdims=True)) * widths
    target /= target.sum(axis=-1, keepdims=True)

    # Least squares, which also settles f where there is next to no density; then the member of the family that is
    # nearest in Kullback-Leibler divergence: the one with the density's own mean of the basis functions.
    start = nearest_energy(family, log_density, widths)[:, None]
    statistics = target[:, None] @ family.design[:, :-2]
    fitted, _ = maximise(family, statistics, np.full(start[:, 0].shape, RIDGE), start, start, most_steps=most_steps)
    density = normalised(family, fitted)[1][:, 0, :-2]
    density /= density.sum(axis=-1, keepdims=True)
    total_variation = (0.5 * np.abs(density - target).sum(axis=-1)).reshape(untilted.shape)
    return fitted[:, 0], total_variation


def _enough_cells(fn, domain, reference, batch_shape) -> str:
    """A number of cells that is enough for a log-density, in words."""
    for num_cells in (60, 80, 120, 160, 240, 320):
        untilted = untilted_density(BSpline(num_cells, 3, domain), reference, batch_shape)
        error = np.max(_nearest(fn, untilted, COARSE, most_steps=20)[1])
        if error < 0.1 * TOTAL_VARIATION_BOUND:
            return f"basis=BSpline({num_cells}, 3, domain) leaves {error:.1g}"
    return (
        f"basis=BSpline({num_cells}, 3, domain) leaves {error:.1g}: it has a jump or a peak that no spline of even "
        "knots follows, so end the domain at the jump, or give BSpline.from_knots with knots that are dense there"
    )


def tabulated_log_density(
    points: ArrayLike | Sequence, density: ArrayLike | Sequence, floor: float
) -> tuple[Callable[[np.ndarray], np.ndarray], BSpline, tuple[int, ...]]:
    """The logarithm of a tabulated density, by monotone cubics through it, a basis for it, and its batch shape."""
    points, density = real_array("points", points), real_array("density", density)
    check_not_negative("density", density, "point")
    if not 0.0 < floor < 1.0:
        raise ValueError(f"floor must be a share of the largest density, between 0 and 1, got {floor!r}")
    # Points that do not increase, and a table of other rows than they, are told by SciPy.
    from scipy.interpolate import PchipInterpolator  # which takes long to import

    log_density = PchipInterpolator(points, np.log(np.maximum(density / density.max(axis=0), floor)), axis=0)
    basis = BSpline(int(np.clip((len(points) - 1) // 2, 40, 160)), 3, (points[0], points[-1]))
    # The points of all coordinates are the same, for they share the domain.
    return lambda z: log_density(z.reshape(len(z), -1)[:, 0]), basis, density.shape[1:]


# The numbers behind a density ----------------------------------------------------------------------------------------


def unexpanded(reference: dist.Distribution) -> dist.Distribution:
    """The reference without an ExpandedDistribution, which hides cdf and icdf, and checked."""
    reference = reference.base_dist if isinstance(reference, dist.ExpandedDistribution) else reference
    check_reference(reference)
    return reference


def untilted_density(basis: Basis, reference: dist.Distribution, batch_shape: tuple[int, ...]) -> Density:
    """The reference with a zero energy."""
    energy = UnivariateEnergy(
        base_weight=jnp.zeros(batch_shape),
        spline_weight=jnp.ones(batch_shape),
        coefficients=jnp.zeros((*batch_shape, basis.num_basis)),
        basis=basis,
    )
    return Density.of(energy, reference)


def tilted(density: Density, coefficients: np.ndarray) -> tuple[UnivariateEnergy, dist.Distribution]:
    """The energy with the given coefficients, in the dtype that it has, and the reference."""
    old = density.energy.coefficients
    new = jnp.asarray(coefficients.reshape(old.shape), old.dtype)
    return eqx.tree_at(lambda energy: energy.coefficients, density.energy, new), density.reference


def _log_density(fn, nodes: np.ndarray, batch_shape: tuple[int, ...]) -> np.ndarray:
    """The log-density at the nodes, checked, with points of no density raised to a floor."""
    points = nodes.T.reshape(-1, *batch_shape)
    try:
        values = np.broadcast_to(real_array("what fn returns", fn(points)), points.shape)
    except (TypeError, ValueError) as error:
        error.add_note(
            f"fn must take an array of points, here of shape {points.shape}, and return an array of that shape: one "
            "that takes single numbers only is to be written with NumPy (np.log for math.log, np.where for if), or "
            "given as np.vectorize(fn); for a batch of densities give batch_shape, or a domain of arrays"
        )
        raise
    largest = values.max(axis=0)
    wrong = np.isnan(values) | np.isposinf(values) | np.isneginf(largest)
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise ValueError(
            f"fn must be a log-density on the domain, but is {values[tuple(first)]} at {int(wrong.sum())} of "
            f"{values.size} points, the first z = {points[tuple(first)]:.6g}{of_coordinate(first[1:])}; choose a "
            "domain inside which it is finite or -inf, and not -inf everywhere"
        )
    values = np.where(np.isneginf(values), largest - _FLOOR, values)
    return values.reshape(len(points), -1).T
