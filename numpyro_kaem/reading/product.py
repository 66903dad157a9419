"""A prior as a product of one-dimensional distributions, addressed by coordinates: what all of this room reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int

from numpyro_kaem.checks import check_count
from numpyro_kaem.distributions.factors import univariate_factors
from numpyro_kaem.distributions.reparam import normal_of_quantile, quantile_of_normal


class Product(eqx.Module):
    """Independent coordinates in a row, whatever the shape of a latent is.

    Attributes:
        factors: their distributions, of batch shape `shape`; with one more axis before, of size K, for a mixture.
        shape: of a latent.
        component: of the mixture, which is read; None where there is none.
    """

    factors: dist.Distribution
    shape: tuple[int, ...] = eqx.field(static=True)
    component: Int[Array, ""] | None = None  # an array, so that one program serves all components

    @property
    def size(self) -> int:
        """Number of coordinates, D."""
        return math.prod(self.shape)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the coordinates: `z[3]`, or `z[1, 3]` for latents that are a matrix."""
        return tuple(f"z[{', '.join(map(str, index))}]" if index else "z" for index in np.ndindex(self.shape))

    def icdf(self, u: Float[Array, "*batch D"]) -> Float[Array, "*batch ..."]:
        """Latents at probabilities of their coordinates."""
        u = jnp.reshape(u, (*u.shape[:-1], *self.shape))
        return self._chosen(self.factors.icdf(self._spread(u)))

    def cdf(self, z: Float[Array, "*batch ..."]) -> Float[Array, "*batch D"]:
        """Probabilities below the coordinates of latents."""
        return self._flat(self._chosen(self.factors.cdf(self._spread(z))))

    def normal_scores(self, z: Float[Array, "*batch ..."]) -> Float[Array, "*batch D"]:
        """The numbers at which a standard normal has the probabilities of the coordinates, Phi^{-1}(F(z))."""
        return self._flat(self._chosen(normal_of_quantile(self.factors, self._spread(z))))

    def from_normal_scores(self, scores: Float[Array, "*batch D"]) -> Float[Array, "*batch ..."]:
        """Latents at normal scores, F^{-1}(Phi(score)), each tail from its own side."""
        scores = jnp.reshape(scores, (*scores.shape[:-1], *self.shape))
        return self._chosen(quantile_of_normal(self.factors, self._spread(scores)))

    def log_prob(self, z: Float[Array, "*batch ..."]) -> Float[Array, "*batch D"]:
        """Log-densities of the coordinates, one by one."""
        return self._flat(self._chosen(self.factors.log_prob(self._spread(z))))

    def grid(self, u: Float[Array, " n"]) -> Float[Array, "n D"]:
        """Quantiles of every coordinate at the same probabilities."""
        u = jnp.asarray(u)
        return self._flat(self.icdf(jnp.broadcast_to(u[:, None], (len(u), self.size))))

    def index(self, coordinate: int | Sequence[int] | str) -> int:
        """The number of a coordinate that is given by its number, its index in a latent, or its name.

        Raises:
            ValueError: for one that there is not.
        """
        if isinstance(coordinate, str) and coordinate in self.names:
            return self.names.index(coordinate)
        if isinstance(coordinate, (int, np.integer)) and not isinstance(coordinate, bool):
            if 0 <= coordinate < self.size:
                return int(coordinate)
        elif isinstance(coordinate, Sequence) and not isinstance(coordinate, str):
            inside = [0 <= place < size for place, size in zip(coordinate, self.shape, strict=False)]
            if len(coordinate) == len(self.shape) and all(inside):
                return int(np.ravel_multi_index(tuple(coordinate), self.shape)) if self.shape else 0
        raise ValueError(
            f"coordinate must be one of the {self.size} of a latent of shape {self.shape}, "
            f"from {self.names[0]} to {self.names[-1]}, given by number, index or name; got {coordinate!r}"
        )

    def _spread(self, z: Array) -> Array:
        """With an axis for the components of a mixture."""
        return z if self.component is None else jnp.expand_dims(z, -1 - len(self.shape))

    def _chosen(self, values: Array) -> Array:
        """Of the component that is read."""
        return values if self.component is None else jnp.take(values, self.component, axis=-1 - len(self.shape))

    def _flat(self, values: Array) -> Array:
        lead = values.shape[: values.ndim - len(self.shape)]
        return jnp.reshape(values, (*lead, self.size))


def as_product(prior: dist.Distribution | Callable, component: int | None = None) -> Product:
    """Read a prior as a product of one-dimensional distributions.

    Args:
        prior: a NumPyro distribution, whose batch axes are coordinates, too; or what returns one when it is called,
            such as a `ClusterPrior`.
        component: of a mixture of whole latent vectors, the one to read.

    Raises:
        ValueError: for a prior whose coordinates depend on each other, and a component that there is not.
    """
    if not isinstance(prior, dist.Distribution):
        prior = prior()
    if isinstance(prior, dist.MixtureSameFamily):
        size = prior.mixture_size
        if component is None:
            raise ValueError(
                f"prior is a mixture of {size} whole latent vectors, whose coordinates depend on each other: read one "
                f"of them, with component=0 to {size - 1}"
            )
        if check_count("component", component, 0) >= size:
            raise ValueError(f"component must be below {size}, the number of components, got {component}")
        return Product(
            univariate_factors(prior.component_distribution), tuple(prior.event_shape), jnp.asarray(component)
        )
    if component is not None:
        raise ValueError(f"component is for a mixture of whole latent vectors; prior is a {type(prior).__name__}")
    try:
        factors = univariate_factors(prior)
    except ValueError as error:
        raise ValueError(
            f"{error}. Coordinates that depend on each other have no effects or formulas of their own: what a copula, "
            "a rotation or a DeepKAPrior is made of can be read instead (its base distribution)"
        ) from None
    shape = tuple(factors.batch_shape)
    # What `expand` wraps has no icdf; inside of it there is one, whose values broadcast to the shape.
    while isinstance(factors, dist.ExpandedDistribution):
        factors = factors.base_dist
    return Product(factors, shape)
