"""What can be wrong with samples, their weights, and what is asked of a fit to them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike

from numpyro_kaem._densities.density import Density
from numpyro_kaem._fitting.smoothing import PenalisedFit
from numpyro_kaem._fitting.ties import Sample
from numpyro_kaem.checks import broadcasts, check_count
from numpyro_kaem.energies import Basis

# How far the CDF of a fit may be from that of the samples: CDF_ERROR + CDF_ERROR_OF_CHANCE / sqrt(n).
CDF_ERROR, CDF_ERROR_OF_CHANCE = 0.02, 1.8


def of_coordinate(index: Any) -> str:
    """Where it is, in words; nothing where there is but one coordinate."""
    index = tuple(int(i) for i in index)
    return f" of coordinate {index[0] if len(index) == 1 else index}" if index else ""


def coordinates(wrong: ArrayLike, batch_shape: tuple[int, ...]) -> Iterator[tuple[int, str]]:
    """The number of each coordinate that is wrong, and where it is, in words."""
    for at in np.flatnonzero(wrong):
        yield int(at), of_coordinate(np.unravel_index(at, batch_shape))


def real_array(name: str, value: ArrayLike | Sequence) -> np.ndarray:
    """An array of real numbers as float64, or what is wrong with it."""
    if np.ma.is_masked(value):
        raise ValueError(f"{name} has masked values, got {np.ma.count_masked(value)} of them; drop them first")
    values = np.asarray(value)
    if values.dtype.kind not in "iufb" and not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name} must be an array of real numbers, got dtype {values.dtype}")
    return values.astype(np.float64)


def check_samples(z: ArrayLike | Sequence) -> np.ndarray:
    """Samples as float64, or what is wrong with them."""
    values = real_array("z", z)
    if values.ndim == 0 or len(values) < 2 or values.size == 0:
        raise ValueError(f"z must have shape (num_samples, *batch) with at least 2 samples, got shape {values.shape}")
    wrong = ~np.isfinite(values)
    if wrong.any():
        first, kind = np.argwhere(wrong)[0], "NaN" if np.isnan(values).any() else "infinite"
        raise ValueError(
            f"z must be finite, but {int(wrong.sum())} of {values.size} values are {kind}, the first in sample "
            f"{first[0]}{of_coordinate(first[1:])}; remove these samples, or give finite values"
        )
    return values


def check_weights(weights: ArrayLike | Sequence | None, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that sum to one, of shape (num_samples,) or (num_samples, num_coordinates)."""
    num_samples = shape[0]
    if weights is None:
        return np.full(num_samples, 1.0 / num_samples)
    values = real_array("weights", weights)
    if values.shape not in {(num_samples,), shape}:
        raise ValueError(f"weights must have shape ({num_samples},) or that of z, {shape}, got {values.shape}")
    check_not_negative("weights", values, "sample")
    values = values / values.max(axis=0)
    return (values / values.sum(axis=0)).reshape(num_samples, *([-1] if values.ndim > 1 else []))


def check_not_negative(name: str, values: np.ndarray, row: str) -> None:
    """Raise where weights or densities, a row for each sample or point, are wrong or all of them zero."""
    wrong = ~(np.isfinite(values) & (values >= 0)) | (values.sum(axis=0) == 0)
    if wrong.any():
        first = np.argwhere(wrong)[0]
        raise ValueError(
            f"{name} must be finite, not negative and not all zero, got {values[tuple(first)]} for {row} {first[0]}"
            f"{of_coordinate(first[1:])}; exponentiate logarithms, after subtracting their maximum"
        )


def check_spread(flat: np.ndarray, weights: np.ndarray, batch_shape: tuple[int, ...], num_intervals: int) -> None:
    """Raise where samples of positive weight do not vary, or not by more than rounding."""
    present = weights > 0
    low, high = np.where(present, flat, np.inf).min(axis=0), np.where(present, flat, -np.inf).max(axis=0)
    for at, where in coordinates(low == high, batch_shape):
        raise ValueError(
            f"z must vary, but all samples{where} with positive weight are {low[at]:.6g}; leave that coordinate out, "
            "or give it a distribution of its own"
        )
    info = jnp.finfo(jnp.result_type(float))
    size, resolution = np.maximum(np.abs(low), np.abs(high)), 16.0 * num_intervals * float(info.eps)
    # The variance has to be a number of the dtype, with room for sums of it.
    extreme = (high - low < 10.0 * np.sqrt(float(info.tiny))) | (size > 0.01 * np.sqrt(float(info.max)))
    for at, where in coordinates(extreme | (high - low < resolution * size), batch_shape):
        raise ValueError(
            f"z must have a range that {info.dtype} holds and tells apart, but the samples{where} lie between "
            f"{low[at]:.9g} and {high[at]:.9g}; change their unit, subtract their mean, or enable JAX's 64-bit mode"
        )


def check_inside_support(z: np.ndarray, weights: np.ndarray, reference: dist.Distribution) -> None:
    """Raise where the reference has no density at a sample."""
    if not broadcasts(reference.batch_shape, z.shape[1:]):
        raise ValueError(
            f"reference must have a batch shape that broadcasts to that of z, {z.shape[1:]}, "
            f"got {reference.batch_shape}"
        )
    # In the dtype of the prior: a sample at the end of a support is to be inside however the end was rounded.
    outside = ~np.asarray(reference.support(jnp.asarray(z, jnp.result_type(float))))
    outside = np.broadcast_to(outside, z.shape) & (weights.reshape(z.shape) > 0)
    if outside.any():
        first = np.argwhere(outside)[0]
        raise ValueError(
            f"z must lie in the support of the reference {type(reference).__name__}, but {int(outside.sum())} of "
            f"{z.size} values do not, the first {z[tuple(first)]:.6g} in sample {first[0]}"
            f"{of_coordinate(first[1:])}; choose a reference whose support holds the samples"
        )


def check_domain_holds(flat: np.ndarray, weights: np.ndarray, basis: Basis, batch_shape: tuple[int, ...]) -> None:
    """Raise where no sample lies in the domain of the basis."""
    low, high = (np.broadcast_to(np.asarray(end), batch_shape).ravel() for end in basis.domain)
    inside = (flat >= low) & (flat <= high) & (weights > 0)
    for at, where in coordinates(~inside.any(axis=0), batch_shape):
        raise ValueError(
            f"basis must have a domain that holds samples, but ({low[at]:.6g}, {high[at]:.6g}) holds none{where}, "
            f"which lie between {flat[:, at].min():.6g} and {flat[:, at].max():.6g}; choose a domain over their bulk, "
            "or no basis for one over all of them"
        )


def check_smoothness(smoothness, num_folds, effective, num_basis, batch_shape) -> np.ndarray | None:
    """The smoothness of every coordinate; None where it has yet to be chosen, which takes samples enough."""
    check_count("num_folds", num_folds, 2)
    fewest = float(np.min(effective))
    if smoothness is None:
        if fewest < 2 * num_folds:
            raise ValueError(
                f"z must have at least {2 * num_folds} samples to choose the smoothness by {num_folds}-fold "
                f"cross-validation, got {fewest:.3g} (effective number, with weights); give the smoothness, such as "
                "smoothness=0.1, or fewer num_folds"
            )
        return None
    values = real_array("smoothness", smoothness)
    if not np.all(np.isfinite(values)) or np.any(values < 0):
        raise ValueError(f"smoothness must be finite and at least 0, or None to choose it, got {smoothness!r}")
    if np.any(values == 0) and fewest < num_basis:
        raise ValueError(
            f"z must have at least {num_basis} samples, one for each basis function, for a fit without smoothing, "
            f"got {fewest:.3g} (effective number, with weights); give a positive smoothness, or a smaller basis"
        )
    return np.broadcast_to(values, batch_shape).ravel()


def check_levels(samples: Sequence[Sample], batch_shape: tuple[int, ...]) -> None:
    """Raise where samples have so few values that no density is like them."""
    added = np.array([sample.added_variance for sample in samples])
    variance = np.array([sample.moments()[1] ** 2 for sample in samples]) - added
    for at, where in coordinates(added > 0.1 * variance, batch_shape):
        raise ValueError(
            f"z must be continuous, but the samples{where} are discrete, of {len(samples[at].levels)} values, and a "
            "density that spreads each of them half way to the next one would have "
            f"{added[at] / variance[at]:.0%} more variance; model them by a discrete distribution, add noise of the "
            "size you mean, or give a smoothness to fit them as they are"
        )


def check_reference_mass(mass: np.ndarray, density: Density) -> None:
    """Raise where a reference is so far from the samples that next to none of its mass is in the domain."""
    for at, where in coordinates(mass < 1e-6, density.shape):
        raise ValueError(
            f"reference must have mass where the samples{where} are, but {type(density.reference).__name__} has "
            f"{mass[at]:.1g} of its mass in the domain of the basis; give one nearer to the samples, or none"
        )


def check_fit(fit: PenalisedFit, density: Density, effective: np.ndarray, is_chosen: bool, is_default: bool) -> None:
    """Raise where the fit is not the maximum, or its density is not that of the samples."""
    batch_shape, reference = density.shape, type(density.reference).__name__
    for _, where in coordinates(~fit.converged, batch_shape):
        raise ValueError(
            f"the fit{where} did not converge; give a reference nearer to the samples than this {reference}, a basis "
            "of fewer functions, or a larger smoothness"
        )
    lost = float(jnp.finfo(density.dtype).eps) * fit.log_reference
    for at, where in coordinates(lost > 1e-2, batch_shape):
        raise ValueError(
            f"reference must be nearer to the samples{where}: where they are, {reference} has log-densities of "
            f"{-fit.log_reference[at]:.3g}, of which {density.dtype} keeps too few digits; give a wider one, or none, "
            "or enable JAX's 64-bit mode"
        )
    for at, where in coordinates(fit.steepness > 25.0, batch_shape):
        raise ValueError(
            f"the fitted density{where} is too rough for its quadrature: its logarithm changes by "
            f"{fit.steepness[at]:.0f} within one of {density.rule.panels_per_interval} panels of a cell; give a larger "
            "smoothness, or a basis of more cells"
        )
    # What smoothing may cost, and chance: an empirical distribution function is further away once in 300 times.
    allowed = np.broadcast_to(CDF_ERROR + CDF_ERROR_OF_CHANCE / np.sqrt(effective), fit.cdf_error.shape)
    for at, where in coordinates(is_chosen & (fit.cdf_error > allowed), batch_shape):
        message = (
            f"the fitted CDF is {fit.cdf_error[at]:.2g} from that of the samples{where}, more than the "
            f"{allowed[at]:.2g} that smoothing and chance may cost; give a basis of more cells where the samples are "
            "dense, or a smaller smoothness"
        )
        if is_default:
            raise ValueError(message)
        warnings.warn(message, stacklevel=4)
