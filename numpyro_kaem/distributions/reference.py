"""Tails of reference distributions, on both sides to full relative precision.

NumPyro's distributions have `cdf` and `icdf` but no survival function, and `1 - cdf` has lost its digits five standard
deviations out. Here the upper tail is taken from a symmetry or a transformation where the distribution has one.
"""

from __future__ import annotations

import math
import warnings
from functools import singledispatch

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import core
from jax.typing import ArrayLike
from jaxtyping import Array

_SYMMETRIC = (dist.Normal, dist.Laplace, dist.Logistic, dist.Cauchy, dist.StudentT, dist.SoftLaplace)


def check_reference(reference: dist.Distribution) -> bool:
    """Raise unless `reference` is a univariate continuous distribution with a cdf; say whether its icdf works."""
    cure = "give a univariate continuous NumPyro distribution such as Normal(0.0, 1.0) or Uniform(0.0, 1.0)"
    if not isinstance(reference, dist.Distribution):
        raise TypeError(f"reference must be a NumPyro distribution, got {reference!r}; {cure}")
    name = type(reference).__name__
    if reference.event_shape != ():
        raise ValueError(f"reference must be univariate, got {name} of event shape {reference.event_shape}; {cure}")
    # As it will be once JAX has taken it apart and put it together again: Levy of NumPyro 0.22 forgets its support.
    support = jax.tree.map(lambda leaf: leaf, reference).support
    if support is None:
        raise ValueError(f"reference {name} has no support, or loses it when JAX takes it apart; {cure}")
    if support.is_discrete:
        raise ValueError(f"reference must be continuous, got the discrete {name}; {cure}")
    half = jnp.full((), 0.5)
    try:
        reference.icdf(half)
        return True
    except (NotImplementedError, ImportError, AttributeError):
        pass
    try:
        reference.cdf(half)
        return False
    except (NotImplementedError, ImportError, AttributeError) as error:
        raise ValueError(f"reference must have an icdf or a cdf that works, but {name} has neither; {cure}") from error


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


def reaches_outside(reference: dist.Distribution, low: ArrayLike, high: ArrayLike, dtype) -> Array:
    """Whether a domain (low, high), rounded to a dtype, has points outside of the support; any end may be traced."""
    support = reference.support
    bounds = getattr(support, "lower_bound", -np.inf), getattr(support, "upper_bound", np.inf)
    low, high, lower_bound, upper_bound = (jnp.asarray(end, dtype) for end in (low, high, *bounds))
    return (low < lower_bound) | (high > upper_bound)


def support_bounds(reference: dist.Distribution) -> tuple[float, float]:
    """Ends of the support, infinite where it is unbounded, NaN where an end is traced; of a batch, the narrowest."""
    low, high = support_ends(reference)
    return float(np.max(low)), float(np.min(high))


def warn_of_narrow_panels(reference: dist.Distribution, breakpoints: ArrayLike, panels_per_interval: int) -> None:
    """Warn where the bulk of a reference of known location and scale is narrower than the quadrature panels there."""
    if not isinstance(reference, (*_SYMMETRIC, dist.Gumbel)):
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
            stacklevel=4,
        )


@singledispatch
def mass_below(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Probability below z."""
    return reference.cdf(z)


@singledispatch
def survival(reference: dist.Distribution, z: ArrayLike) -> Array:
    """Probability above z."""
    if isinstance(reference, _SYMMETRIC):
        return reference.cdf(2.0 * reference.loc - z)
    return 1.0 - reference.cdf(z)


@singledispatch
def tail_quantile(reference: dist.Distribution, probability: Array, from_below: Array) -> Array:
    """The z below which (where `from_below`), else above which, the reference has the given probability."""
    if isinstance(reference, _SYMMETRIC):
        z = reference.icdf(probability)
        return jnp.where(from_below, z, 2.0 * reference.loc - z)
    # Short of one: its quantile would be the end of the support, which may be infinite.
    most = 1.0 - jnp.finfo(probability.dtype).eps
    return reference.icdf(jnp.where(from_below, probability, jnp.minimum(1.0 - probability, most)))


@survival.register
def _(reference: dist.Uniform, z):
    return jnp.clip((reference.high - z) / (reference.high - reference.low), 0.0, 1.0)


@tail_quantile.register
def _(reference: dist.Uniform, probability, from_below):
    distance = probability * (reference.high - reference.low)
    return jnp.where(from_below, reference.low + distance, reference.high - distance)


@survival.register
def _(reference: dist.Exponential, z):
    return jnp.exp(-reference.rate * z)


@tail_quantile.register
def _(reference: dist.Exponential, probability, from_below):
    return -jnp.where(from_below, jnp.log1p(-probability), jnp.log(probability)) / reference.rate


@mass_below.register
def _(reference: dist.Cauchy, z):
    return survival(reference, 2.0 * reference.loc - z)


@survival.register
def _(reference: dist.Cauchy, z):
    return jnp.arctan2(reference.scale, z - reference.loc) / jnp.pi


@tail_quantile.register
def _(reference: dist.Cauchy, probability, from_below):
    distance = reference.scale / jnp.tan(jnp.pi * probability)
    return reference.loc + jnp.where(from_below, -distance, distance)


@survival.register(dist.HalfNormal)
@survival.register(dist.HalfCauchy)
def _(reference, z):
    return 2.0 * survival(_whole(reference), z)


@tail_quantile.register(dist.HalfNormal)
@tail_quantile.register(dist.HalfCauchy)
def _(reference, probability, from_below):
    from_above = tail_quantile(_whole(reference), 0.5 * probability, jnp.zeros_like(from_below))
    return jnp.where(from_below, reference.icdf(probability), from_above)


def _whole(reference):
    """The symmetric distribution of which it is the positive half."""
    whole = dist.Normal if isinstance(reference, dist.HalfNormal) else dist.Cauchy
    return whole(0.0, reference.scale)


@survival.register
def _(reference: dist.Gumbel, z):
    return -jnp.expm1(-jnp.exp(-(z - reference.loc) / reference.scale))


@tail_quantile.register
def _(reference: dist.Gumbel, probability, from_below):
    log_below = jnp.where(from_below, jnp.log(probability), jnp.log1p(-probability))
    return reference.loc - reference.scale * jnp.log(-log_below)


@survival.register
def _(reference: dist.Weibull, z):
    return jnp.exp(-((z / reference.scale) ** reference.concentration))


@tail_quantile.register
def _(reference: dist.Weibull, probability, from_below):
    log_above = jnp.where(from_below, jnp.log1p(-probability), jnp.log(probability))
    return reference.scale * (-log_above) ** (1.0 / reference.concentration)


@survival.register
def _(reference: dist.Gamma, z):
    return jax.scipy.special.gammaincc(reference.concentration, reference.rate * z)


@survival.register
def _(reference: dist.Beta, z):
    return jax.scipy.special.betainc(reference.concentration0, reference.concentration1, 1.0 - z)


@survival.register
def _(reference: dist.TransformedDistribution, z):
    for transform in reversed(reference.transforms):
        z = transform.inv(z)
    base = reference.base_dist
    return jnp.where(_sign(reference) > 0, survival(base, z), mass_below(base, z))


@tail_quantile.register
def _(reference: dist.TransformedDistribution, probability, from_below):
    z = tail_quantile(reference.base_dist, probability, jnp.where(_sign(reference) > 0, from_below, ~from_below))
    for transform in reference.transforms:
        z = transform(z)
    return z


def _sign(reference: dist.TransformedDistribution):
    """+1 for an increasing chain of transforms, -1 for a decreasing one."""
    return math.prod(transform.sign for transform in reference.transforms)
