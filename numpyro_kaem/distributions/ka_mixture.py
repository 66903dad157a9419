"""Mixtures of tilted references along a component axis, drawn without drawing a component."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from numpyro_kaem._densities.density import Density, unchecked
from numpyro_kaem.checks import check_precision, joint_shape
from numpyro_kaem.distributions.ka_prior import KAPrior
from numpyro_kaem.distributions.leaf_shapes import insert_axes, new_axes, settle, settle_tables, table_rank
from numpyro_kaem.distributions.truncated import LearnedDistribution


class KAMixture(LearnedDistribution):
    """A mixture of tilted references, coordinate by coordinate:

        p(z) = sum_c pi_c p_c(z),   pi = softmax(logits).

    The last batch axis of `components` is the component axis. A mixture of one-dimensional densities is itself a
    one-dimensional density, so it has one CDF table and one exact, increasing, differentiable icdf: no component is
    drawn, and the cost of a draw does not grow with their number.

    Args:
        components: a `KAPrior` of batch shape (*batch, num_components).
        logits: log-proportions up to a constant, of shape (num_components,) or broadcastable with the components'
            batch shape; learnable.
        validate_args: as in every NumPyro distribution.

    Raises:
        TypeError: if the logits are of half precision.
        ValueError: if it has no batch axis, or the shape of the logits does not fit.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import KAMixture, KAPrior, RBF, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), (81, 40), basis=RBF(20, (-1.2, 1.2)), scale=1.0)
        mixture = KAMixture(KAPrior(energy, dist.Normal(0.0, 1.0)), logits=jnp.zeros(40))
        assert mixture.batch_shape == (81,)
        draw = jax.jit(lambda mixture, key: mixture.sample(key, (5,)))
        assert draw(mixture, jax.random.key(1)).shape == (5, 81)
        ```
    """

    arg_constraints = {"logits": constraints.real_vector}
    reparametrized_params = ["logits"]
    pytree_data_fields = ("components", "logits")
    pytree_aux_fields = ("_logits_shape",)

    def __init__(self, components: KAPrior, logits: Float[Array, "..."], *, validate_args: bool | None = None):
        if not components.batch_shape:
            raise ValueError(
                "components must have a batch axis, the last one being the component axis, got batch shape ()"
            )
        check_precision("logits", logits)
        logits = jnp.asarray(logits, None if hasattr(logits, "dtype") else components.energy.coefficients.dtype)
        num_components = components.batch_shape[-1]
        if logits.shape[-1:] != (num_components,):
            raise ValueError(
                f"logits must have {num_components} components last and broadcast with the components' batch shape "
                f"{components.batch_shape}, got shape {logits.shape}"
            )
        grid_shape = components.energy.basis.grid.batch_shape
        if grid_shape and grid_shape[-1] != 1:
            raise ValueError(
                f"components must share one grid along the component axis, got grids of batch shape {grid_shape} for "
                f"{num_components} components; give the domain or the knots a last batch axis of size 1"
            )
        shape = joint_shape(logits=logits.shape, components=components.batch_shape)
        self.components, self.logits = components, logits
        self._logits_shape = logits.shape
        super().__init__(shape[:-1], (), validate_args=validate_args)
        self._expanded_shape = shape[:-1] if shape[:-1] != jax.eval_shape(lambda: self._density).shape else None

    @classmethod
    def infer_shapes(cls, components: tuple[int, ...], logits: tuple[int, ...]) -> tuple[tuple, tuple]:
        """Batch and event shape, from the batch shape of the components and the shape of the logits."""
        return jnp.broadcast_shapes(components, logits)[:-1], ()

    @property
    def probs(self) -> Float[Array, "*batch num_components"]:
        """Proportions of the components."""
        return jax.nn.softmax(self.logits, axis=-1)

    @property
    def quadrature(self):
        """The components' panel rule."""
        return self.components.quadrature

    def _settled(self) -> KAMixture:
        rank = len(self.batch_shape) + 1  # with the component axis
        components = settle(self.components, rank)
        if components is self.components and self.logits.shape == self._logits_shape:
            return self
        rank_of_tables = max(table_rank(self.components), len(self._logits_shape)) - 1
        settled = self._copy()
        settled.components = components
        settled.logits = insert_axes(self.logits, (self._logits_shape,), [rank])
        settled._logits_shape = settled.logits.shape
        return settle_tables(settled, rank_of_tables, rank - 1)

    def _new_axes(self) -> tuple[int, ...]:
        return jnp.broadcast_shapes(self.components._new_axes(), new_axes(self.logits, (self._logits_shape,)))

    @property
    def _tilted(self) -> KAPrior:
        return self._settled().components

    @property
    def _density(self) -> Density:
        self = self._settled()
        components = self.components
        return unchecked(
            Density,
            components.energy,
            components.reference,
            jax.nn.log_softmax(self.logits, axis=-1),
            components.quadrature,
            components._reference_has_icdf,
            self._kept_table,
            self._kept_inverse,
            components._kept_constants if self._kept_constants is None else self._kept_constants,
        )
