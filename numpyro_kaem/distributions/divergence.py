"""Kullback-Leibler divergences of learned densities, registered with NumPyro's `kl_divergence`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.kl import kl_divergence

from numpyro_kaem._compilation.entry_points import compiled
from numpyro_kaem._densities.centered_density import CenteredDensity
from numpyro_kaem._densities.density import Density
from numpyro_kaem._densities.moments import expectation
from numpyro_kaem._densities.reference_tails import tail_quantile
from numpyro_kaem._densities.truncated_density import TruncatedDensity
from numpyro_kaem._numerics.quadrature import GaussLegendre
from numpyro_kaem.checks import joint_shape
from numpyro_kaem.distributions.deep_prior import DeepKAPrior
from numpyro_kaem.distributions.tabulated import TabulatedDistribution


# Both signatures, because neither of (KAPrior, Distribution) and NumPyro's own (Distribution, ExpandedDistribution)
# would be the more specific one for a pair of a KAPrior and an ExpandedDistribution. The latter comes first: registered
# the other way round, the pair would be ambiguous in between.
@kl_divergence.register(TabulatedDistribution, dist.ExpandedDistribution)
def _(p: TabulatedDistribution, q: dist.ExpandedDistribution) -> Float[Array, "*batch"]:
    shape = joint_shape(p=p.batch_shape, q=q.batch_shape)
    return jnp.broadcast_to(kl_divergence(p, q.base_dist), shape)


@kl_divergence.register(TabulatedDistribution, dist.Distribution)
def _(p: TabulatedDistribution, q: dist.Distribution) -> Float[Array, "*batch"]:
    """KL(p || q) = E_p[log p(z) - log q(z)], by the quadrature of p.

    It is infinite where p's support reaches beyond q's: p is positive on all of its own. Where q's tails are so much
    lighter than p's that the integral diverges, as for a Cauchy reference against a normal q, the result is a large
    number that means nothing.
    """
    name = type(q).__name__
    if isinstance(q, dist.MaskedDistribution):
        raise NotImplementedError(f"the divergence from a {name} is not defined; mask the divergence itself")
    if q.event_shape != () or q.support is None or q.support.is_discrete:
        raise ValueError(
            f"q must be a univariate continuous distribution, as the {type(p).__name__} p is, got {name} of event "
            f"shape {q.event_shape}; give joint distributions as `.to_event(n)` of both"
        )
    shape = joint_shape(p=p.batch_shape, q=q.batch_shape)
    return jnp.broadcast_to(_divergence(p._density, q), shape)


# For each type, because NumPyro has rules for all pairs of some types: next to them one for all would be ambiguous.
for _kind in (
    dist.Normal,
    dist.LogNormal,
    dist.Laplace,
    dist.Logistic,
    dist.Gumbel,
    dist.Exponential,
    dist.HalfNormal,
    dist.Weibull,
    dist.Uniform,
):

    @kl_divergence.register(_kind, TabulatedDistribution)
    def _(p: dist.Distribution, q: TabulatedDistribution) -> Float[Array, "*batch"]:
        """KL(p || q) = E_p[log p(z) - log q(z)] of a distribution of NumPyro from a learned density, by quadrature.

        Panels end at those of q and at quantiles of p, so that either may be much narrower than the other. It is
        infinite where p's support reaches beyond q's.
        """
        shape = joint_shape(p=p.batch_shape, q=q.batch_shape)
        return jnp.broadcast_to(_divergence_from_learned(p, q._density), shape)


@kl_divergence.register(dist.ExpandedDistribution, TabulatedDistribution)
def _(p: dist.ExpandedDistribution, q: TabulatedDistribution) -> Float[Array, "*batch"]:
    shape = joint_shape(p=p.batch_shape, q=q.batch_shape)
    return jnp.broadcast_to(kl_divergence(p.base_dist, q), shape)


# NumPyro's divergence of a point mass is -log q at the point, whatever q is.
@kl_divergence.register(dist.Delta, DeepKAPrior)
def _(p: dist.Delta, q: DeepKAPrior) -> Float[Array, "*batch"]:
    raise NotImplementedError("the divergence from a DeepKAPrior is not known, for its density is not normalised")


@compiled
def _divergence(p: Density | TruncatedDensity | CenteredDensity, q: dist.Distribution) -> Float[Array, "..."]:
    p = p.prepared()
    rank = len(p.shape)
    extra = q.batch_shape[: max(0, len(q.batch_shape) - rank)]

    def log_ratio(z):
        """Of shape (nodes, size of extra, *table)."""
        log_p = p.log_density(z)[:, None]
        shape = jnp.broadcast_shapes(z.shape[1:], q.batch_shape)
        z = jnp.broadcast_to(z.reshape(z.shape[0], *[1] * len(extra), *z.shape[1:]), (z.shape[0], *shape))
        inside = q.support(z)
        # Points outside of q's support get a harmless value: the divergence is infinite there, but gradients of its
        # neighbours in the batch are not to become NaN.
        safe = jnp.where(inside, z, jax.lax.stop_gradient(q.support.feasible_like(z)))
        log_q = jnp.where(inside, q.log_prob(safe), 0.0)
        return log_p - log_q.reshape(z.shape[0], math.prod(extra), *log_q.shape[1 + len(extra) :])

    # A batch of q's wider than p's: the nodes and both densities do not depend on the index and are computed once.
    result = jax.vmap(lambda index: expectation(p, lambda z: log_ratio(z)[:, index]))(jnp.arange(math.prod(extra)))
    result = result.reshape(*extra, *result.shape[1:])
    return jnp.where(_reaches_beyond(p.support, q.support), jnp.inf, result)


@compiled
def _divergence_from_learned(
    p: dist.Distribution, q: Density | TruncatedDensity | CenteredDensity
) -> Float[Array, "..."]:
    q = q.prepared()
    dtype, shape = q.dtype, jnp.broadcast_shapes(p.batch_shape, q.shape)
    # Quantiles of p at octaves of either tail, and at sixteenths in between.
    octaves = 0.5 ** np.arange(80 if dtype == jnp.float32 else 100, 4, -1)
    share = np.concatenate([octaves, np.arange(1, 8) / 16, octaves, np.arange(1, 9) / 16]).astype(dtype)
    below = np.arange(len(share)) < len(share) // 2
    column = (-1, *[1] * len(shape))
    share, below = (jnp.asarray(part.reshape(column)) for part in (share, below))
    quantiles = jnp.broadcast_to(tail_quantile(p, share, below), (len(share), *shape))
    panels = q.edges_and_sizes[0]
    panels = jnp.moveaxis(jnp.broadcast_to(panels, (*q.shape, panels.shape[-1])), -1, 0).astype(dtype)
    panels = panels.reshape(panels.shape[0], *[1] * (len(shape) - len(q.shape)), *q.shape)
    panels = jnp.broadcast_to(panels, (panels.shape[0], *shape))
    panels = jnp.clip(panels, jnp.min(quantiles, axis=0), jnp.max(quantiles, axis=0))
    # The integral does not depend on where panels end.
    edges = jax.lax.stop_gradient(jnp.sort(jnp.concatenate([quantiles.astype(dtype), panels]), axis=0))

    rule, sizes = GaussLegendre(), jnp.diff(edges, axis=0)[:, None]
    nodes = rule.unit_nodes.astype(dtype).reshape(1, *column)
    weights = rule.weights.astype(dtype).reshape(1, *column)
    z = edges[:-1, None] + sizes * nodes
    inside = q.support(z) & p.support(z)
    safe = jnp.where(inside, z, jax.lax.stop_gradient(jnp.clip(z, *q.body)))
    log_p = p.log_prob(safe)
    terms = sizes * weights * jnp.exp(log_p) * (log_p - q.log_density(safe))
    result = jnp.sum(jnp.where(inside, terms, 0.0), axis=(0, 1))
    return jnp.where(_reaches_beyond(p.support, q.support), jnp.inf, result)


def _reaches_beyond(support, other):
    """Whether an interval, the support of one distribution, has points outside of another."""
    is_below = getattr(support, "lower_bound", -jnp.inf) < getattr(other, "lower_bound", -jnp.inf)
    return is_below | (getattr(support, "upper_bound", jnp.inf) > getattr(other, "upper_bound", jnp.inf))
