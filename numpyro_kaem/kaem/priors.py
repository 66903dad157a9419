"""Priors of a KAEM: those of `KAEM.create`, clusters of latent vectors, and what of a distribution is learned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.contrib.module import eqx_module

from numpyro_kaem.checks import check_count
from numpyro_kaem.distributions import KAMixture, KAPrior
from numpyro_kaem.distributions.factors import univariate_factors
from numpyro_kaem.distributions.leaf_shapes import leaf_shapes
from numpyro_kaem.energies import Basis, BSpline, UnivariateEnergy, energy_module

DEFAULT_BASIS = BSpline(num_intervals=20, degree=3, domain=(-3.0, 3.0))
KINDS = ("independent", "univariate", "mixture", "cluster")


class ClusterPrior(eqx.Module):
    r"""A mixture over K whole latent vectors, each a product of learned densities:

    $$p(z) = \sum_k \pi_k \prod_d p_{kd}(z_d),$$

    with $p_{kd}$ a `KAPrior` over a normal reference of its own location and scale. Called, it is NumPyro's
    `MixtureSameFamily`: drawn exactly, its density exact. Energies, locations, scales and proportions are learned where
    a module is: by `KAEM(ClusterPrior(...), ...)`, or by `eqx_module` in a model.

    Unlike a product of densities or of mixtures (`KAMixture`) it can be learned that coordinates belong together.

    Args:
        key: JAX random key.
        num_clusters: K, at least 1.
        latent_size: length of the latent vector, at least 1.
        basis: of the energies.

    Raises:
        ValueError: for sizes below 1.

    Example:
        ```python
        import jax
        from numpyro_kaem import ClusterPrior

        clusters = ClusterPrior(jax.random.key(0), num_clusters=10, latent_size=5)
        z = clusters().sample(jax.random.key(1), (100,))
        assert z.shape == (100, 5) and clusters().log_prob(z).shape == (100,)
        assert clusters.probabilities(z).shape == (100, 10)
        ```
    """

    energy: UnivariateEnergy
    loc: Float[Array, "num_clusters latent_size"]
    log_scale: Float[Array, "num_clusters latent_size"]
    logits: Float[Array, " num_clusters"]

    def __init__(self, key: PRNGKeyArray, num_clusters: int, latent_size: int, *, basis: Basis = DEFAULT_BASIS):
        shape = check_count("num_clusters", num_clusters, 1), check_count("latent_size", latent_size, 1)
        energy_key, loc_key = jax.random.split(key)
        self.energy = UnivariateEnergy.init(energy_key, shape, basis=basis)
        # Together the clusters have mean zero and variance one.
        self.loc = 0.8 * jax.random.normal(loc_key, shape)
        self.log_scale = jnp.full(shape, math.log(0.6))
        self.logits = jnp.zeros(num_clusters)

    def __call__(self) -> dist.MixtureSameFamily:
        """The distribution of latent vectors."""
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), self._components)

    @property
    def _components(self) -> dist.Distribution:
        return KAPrior(self.energy, dist.Normal(self.loc, jnp.exp(self.log_scale))).to_event(1)

    def probabilities(self, z: Float[Array, "*sample latent_size"]) -> Float[Array, "*sample num_clusters"]:
        r"""Of each cluster at a latent vector, $p(k \mid z) \propto \pi_k p_k(z)$."""
        return jax.nn.softmax(self.logits + self._components.log_prob(z[..., None, :]), axis=-1)


def make_prior(
    key: PRNGKeyArray, kind: str, latent_size: int, num_components: int | None, basis: Basis
) -> dist.Distribution | ClusterPrior:
    """A prior of one of the `KINDS`, near a standard normal one (of the sums, for "univariate")."""
    check_count("latent_size", latent_size, 1)
    if kind not in KINDS:
        raise ValueError(f"prior must be one of {KINDS}, a distribution, a module or a function, got {kind!r}")
    if kind == "independent":
        return KAPrior(UnivariateEnergy.init(key, (latent_size,), basis=basis), dist.Normal(0.0, 1.0)).to_event(1)
    if kind == "univariate":
        num_sums = 2 * latent_size + 1 if num_components is None else num_components
        energy = UnivariateEnergy.init(key, (num_sums, latent_size), basis=basis)
        return KAPrior(energy, dist.Normal(0.0, 1.0)).to_event(2)
    num_components = check_count("num_components", 10 if num_components is None else num_components, 1)
    if kind == "cluster":
        return ClusterPrior(key, num_components, latent_size, basis=basis)
    energy_key, logits_key = jax.random.split(key)
    energy = UnivariateEnergy.init(energy_key, (latent_size, num_components), basis=basis, scale=0.5)
    logits = 0.1 * jax.random.normal(logits_key, (latent_size, num_components))
    return KAMixture(KAPrior(energy, dist.Normal(0.0, 1.0)), logits).to_event(1)


def declare_distribution(name: str, prior: dist.Distribution, adapts: bool) -> dist.Distribution:
    """A distribution inside a model, its energies and the proportions of its mixtures learned, all else as it is."""
    prior = _without_tables(prior)
    found = list(_parts(prior))
    if not found:
        return prior
    learned: list[Any] = []
    number = {True: 0, False: 0}
    for part in found:
        is_energy = isinstance(part, UnivariateEnergy)
        site = f"{name}{number[is_energy] or ''}"
        number[is_energy] += 1
        if is_energy:
            learned.append((energy_module if adapts else eqx_module)(site, part))
        else:
            learned.append(numpyro.param(f"{site}_logits", part))
    declared = eqx.tree_at(lambda prior: list(_parts(prior)), prior, learned, is_leaf=lambda x: x is None)
    if adapts:  # an energy with a grid for each element of the batch
        for inside in _nested(declared):
            if isinstance(inside, KAMixture) and inside.components.energy.basis.grid.batch_shape[-1] != 1:
                raise ValueError(
                    "grid_adaptation needs one grid for all components of a KAMixture: give the basis of its energies "
                    "a domain or knots whose last batch axis has size 1"
                )
            if isinstance(inside, KAPrior):
                inside._leaf_shapes = leaf_shapes((inside.energy, inside.reference))
    return declared


def _parts(prior: dist.Distribution) -> Iterator[UnivariateEnergy | Array]:
    """The energies and logits of mixtures inside of a distribution."""
    for inside in _nested(prior):
        if isinstance(inside, KAPrior):
            yield inside.energy
        elif isinstance(inside, KAMixture):
            yield inside.logits
        elif isinstance(inside, dist.MixtureSameFamily) and hasattr(inside.mixing_distribution, "logits"):
            yield inside.mixing_distribution.logits


def _nested(prior: dist.Distribution) -> Iterator[dist.Distribution]:
    """A distribution and those that it is made of."""
    yield prior
    for name in ("components", "component_distribution", "base_dist", "base_distribution"):
        inside = getattr(prior, name, None)
        if isinstance(inside, dist.Distribution):
            yield from _nested(inside)


def _without_tables(prior: dist.Distribution) -> dist.Distribution:
    """A distribution without the tables that `tabulate` keeps, which are of the energy as it was."""

    def tables(prior: dist.Distribution) -> list[Any]:
        kept = [inside for inside in _nested(prior) if getattr(inside, "_kept_table", None) is not None]
        return [
            table for inside in kept for table in (inside._kept_table, inside._kept_inverse, inside._kept_constants)
        ]

    return eqx.tree_at(tables, prior, replace_fn=lambda _: None) if tables(prior) else prior


def as_joint(prior: dist.Distribution) -> dist.Distribution:
    """A distribution of whole latents: batch axes become part of the event."""
    return prior.to_event(len(prior.batch_shape)) if prior.batch_shape else prior


def generator_input(prior: dist.Distribution, z: Float[Array, "..."]) -> Float[Array, "... width"]:
    """What the generator is given of latents: vectors as they are, matrices of (Q, P) summed over P."""
    rank = len(prior.event_shape)
    return z[..., None] if rank == 0 else jnp.sum(z, axis=-1) if rank == 2 else z


def num_uniforms(prior: dist.Distribution) -> int:
    """How many uniform numbers make a latent: one for each coordinate, and one to choose a component."""
    return math.prod(prior.event_shape) + isinstance(prior, dist.MixtureSameFamily)


def from_uniforms(prior: dist.Distribution, u: Float[Array, "n num_uniforms"]) -> Float[Array, "n ..."]:
    """Latents by inverse transform of uniform numbers in (0, 1); the last one chooses the component of a mixture."""
    if isinstance(prior, dist.MixtureSameFamily):
        cuts = jnp.cumsum(prior.mixing_distribution.probs, axis=-1)
        chosen = jnp.minimum(jnp.sum(u[:, -1:] >= cuts, axis=-1), cuts.shape[-1] - 1)
        components = prior.component_distribution
        marginal = univariate_factors(components)
        z = marginal.icdf(u[:, None, :-1].reshape(-1, 1, *components.event_shape))
        index = chosen.reshape(-1, *[1] * (z.ndim - 1))
        return jnp.take_along_axis(z, index, axis=1)[:, 0]
    return univariate_factors(prior).icdf(u.reshape(-1, *prior.event_shape))
