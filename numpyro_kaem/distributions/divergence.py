"""Kullback-Leibler divergences of learned densities, registered with NumPyro's `kl_divergence`."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions.kl import kl_divergence

from numpyro_kaem.distributions.deep_prior import DeepKAPrior
from numpyro_kaem.distributions.moments import expectation
from numpyro_kaem.distributions.tabulated import TabulatedDistribution
from numpyro_kaem.entry_points import compiled


# Both signatures, because neither of (KAPrior, Distribution) and NumPyro's own (Distribution, ExpandedDistribution)
# would be the more specific one for a pair of a KAPrior and an ExpandedDistribution. The latter comes first: registered
# the other way round, the pair would be ambiguous in between.
@kl_divergence.register(TabulatedDistribution, dist.ExpandedDistribution)
def _(p: TabulatedDistribution, q: dist.ExpandedDistribution) -> Float[Array, "*batch"]:
    shape = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
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
    try:
        shape = jnp.broadcast_shapes(p.batch_shape, q.batch_shape)
    except ValueError as error:
        raise ValueError(f"batch shapes {p.batch_shape} of p and {q.batch_shape} of q must broadcast") from error
    return jnp.broadcast_to(_divergence(p, q), shape)


# NumPyro's divergence of a point mass is -log q at the point, whatever q is.
@kl_divergence.register(dist.Delta, DeepKAPrior)
def _(p: dist.Delta, q: DeepKAPrior) -> Float[Array, "*batch"]:
    raise NotImplementedError("the divergence from a DeepKAPrior is not known, for its density is not normalised")


@compiled
def _divergence(p: TabulatedDistribution, q: dist.Distribution) -> Float[Array, "..."]:
    p = p._prepared()
    rank = len(p._table_shape)
    extra = q.batch_shape[: max(0, len(q.batch_shape) - rank)]

    def log_ratio(z):
        """Of shape (nodes, size of extra, *table)."""
        log_p = p._log_density(z)[:, None]
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


def _reaches_beyond(support, other):
    """Whether an interval, the support of one distribution, has points outside of another."""
    low, high = (getattr(support, end, default) for end, default in _ENDS)
    other_low, other_high = (getattr(other, end, default) for end, default in _ENDS)
    return (low < other_low) | (high > other_high)


_ENDS = (("lower_bound", -jnp.inf), ("upper_bound", jnp.inf))
