"""What a distribution must be to serve as a reference, and where its density ends or has kinks."""

from __future__ import annotations

import warnings
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jax.typing import ArrayLike
from jaxtyping import Array

from numpyro_kaem._densities.reference_tails import TRUNCATED
from numpyro_kaem._densities.tails import LAPLACE, SYMMETRIC
from numpyro_kaem.checks import check_precision


def check_reference(reference: dist.Distribution) -> bool:
    """Raise unless `reference` is a univariate continuous distribution with a cdf; say whether its icdf serves."""
    cure = "give a univariate continuous NumPyro distribution such as Normal(0.0, 1.0) or Uniform(0.0, 1.0)"
    name = type(reference).__name__
    if reference.event_shape != ():
        raise ValueError(f"reference must be univariate, got {name} of event shape {reference.event_shape}; {cure}")
    # As it will be once JAX has taken it apart and put it together again: Levy of NumPyro 0.22 forgets its support.
    support = jax.tree.map(lambda leaf: leaf, reference).support
    if support is None or support.is_discrete:
        raise ValueError(
            f"reference must be continuous, of a support that stays when JAX takes it apart, got {name}; {cure}"
        )
    for parameter, value in vars(reference).items():
        check_precision(f"{parameter.lstrip('_')} of the reference {name}", value)
    half = jax.ShapeDtypeStruct((), jnp.result_type(float))  # traced: to compute it would take longer than all else
    try:
        jax.eval_shape(reference.icdf, half)
        while isinstance(reference, dist.TransformedDistribution):
            reference = reference.base_dist
        return not isinstance(reference, TRUNCATED)
    except (NotImplementedError, ImportError, AttributeError):
        pass
    try:
        jax.eval_shape(reference.cdf, half)
        return False
    except (NotImplementedError, ImportError, AttributeError) as error:
        raise ValueError(f"reference must have an icdf or a cdf that works, but {name} has neither; {cure}") from error


def with_numbers_as_arrays(reference: dist.Distribution, dtype) -> dist.Distribution:
    """The reference with its Python numbers, which would be computed with in the widest dtype, as NumPy arrays."""

    def as_array(leaf):
        if type(leaf) in (int, float):
            return np.asarray(leaf, dtype)
        if getattr(leaf, "weak_type", False) and leaf.dtype not in (dtype, bool):
            return leaf.astype(dtype) if isinstance(leaf, core.Tracer) else np.asarray(leaf, dtype)
        return leaf

    return jax.tree.map(as_array, reference)


def support_ends(reference: dist.Distribution) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the support of every batch element, infinite where it is unbounded, NaN where an end is traced."""

    def known(bound, default):
        if bound is None:
            return default
        return np.nan if isinstance(bound, core.Tracer) else bound

    support = reference.support
    low = known(getattr(support, "lower_bound", None), -np.inf)
    high = known(getattr(support, "upper_bound", None), np.inf)
    return np.asarray(low, np.float64), np.asarray(high, np.float64)


def support_bounds_of_body(
    reference: dist.Distribution, domain: tuple[ArrayLike, ArrayLike], dtype
) -> tuple[float, float]:
    """The ends of the support, of a batch the narrowest, or of the domain where a dtype does not tell them apart."""
    lowest, highest = support_ends(reference)
    bounds = float(np.max(lowest)), float(np.min(highest))
    if not all(isinstance(end, float) for end in domain):
        return bounds
    with np.errstate(over="ignore"):
        equal = np.asarray(domain, dtype) == np.asarray(bounds, dtype)
    low, high = np.where(equal, domain, bounds)
    return float(low), float(high)


def reaches_outside(reference: dist.Distribution, domain: tuple[ArrayLike, ArrayLike], dtype) -> Array:
    """Whether a domain, rounded to a dtype, has points outside of the support; any end may be traced."""
    support = reference.support
    bounds = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    low, high, lower_bound, upper_bound = (jnp.asarray(end, dtype) for end in (*domain, *bounds))
    return (low < lower_bound) | (high > upper_bound)


def warn_of_narrow_panels(reference: dist.Distribution, breakpoints: ArrayLike, panels_per_interval: int) -> None:
    """Warn where the bulk of a reference of known location and scale is narrower than the quadrature panels there."""
    if not isinstance(reference, (*SYMMETRIC, dist.Gumbel)):
        return
    if any(isinstance(part, core.Tracer) for part in (reference.loc, reference.scale, breakpoints)):
        return
    loc, scale, points = (np.asarray(part, np.float64) for part in (reference.loc, reference.scale, breakpoints))
    loc, scale = loc[..., None], scale[..., None]
    widths = np.diff(points) / panels_per_interval
    with np.errstate(invalid="ignore"):
        narrow = (points[..., 1:] > loc - 2.0 * scale) & (points[..., :-1] < loc + 2.0 * scale) & (widths > 1.5 * scale)
    if np.any(narrow):
        narrow, widths, scale = (part[narrow] for part in np.broadcast_arrays(narrow, widths, scale))
        worst = np.argmax(widths / scale)
        warnings.warn(
            f"the reference {type(reference).__name__} has a scale of {scale[worst]:.3g}, less than the width of the "
            f"quadrature panels where it lies, {widths[worst]:.3g}: quantiles will not be exact; choose a basis of "
            "more cells or on a narrower domain, or a quadrature of more panels_per_interval",
            stacklevel=5,
        )


@singledispatch
def kinks(reference: dist.Distribution) -> Array | None:
    """Where in the support the density has kinks, shape (*batch, num_kinks), or None; they may be traced."""
    return None


@kinks.register(LAPLACE)
def _(reference):
    return jnp.asarray(reference.loc)[..., None]


@kinks.register(TRUNCATED)
def _(reference):
    return kinks(reference.base_dist)


@kinks.register
def _(reference: dist.TransformedDistribution):
    points = kinks(reference.base_dist)
    if points is None:
        return None
    points = jnp.moveaxis(points, -1, 0)
    for transform in reference.transforms:
        points = transform(points)
    return jnp.moveaxis(points, 0, -1)


@kinks.register
def _(reference: dist.MixtureSameFamily):
    return merge_components(kinks(reference.component_distribution))


def merge_components(points: Array | None) -> Array | None:
    """Kinks of components, shape (*batch, num_components, num_kinks), as those of their mixture."""
    return points if points is None or points.ndim == 1 else points.reshape(*points.shape[:-2], -1)
