"""Grids that adapt while a model is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray
from numpyro.infer import SVI
from numpyro.infer.svi import SVIState

from numpyro_kaem._compilation.fingerprint import ByValue
from numpyro_kaem.checks import check_count
from numpyro_kaem.energies.energy import UnivariateEnergy
from numpyro_kaem.energies.module import adapt_svi_grid, on_adapted_grid
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.weights import draws_differ_by_datum, log_likelihood, sample_prior


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class GridAdaptation(ByValue):
    """When and how `fit` moves the grid of an energy to where the posteriors of the data are.

    The samples are draws from the prior, weighted by the mean over the minibatch of their normalised importance
    weights: the aggregate posterior as far as importance sampling sees it. See `adapt_svi_grid` for what happens to
    the optimiser.

    Args:
        name: under which the model declares the energy by `energy_module`.
        energy: the energy that was passed there.
        site: the latent site whose coordinates the energy belongs to.
        every: training steps before the first adaptation, at least 1.
        growth: factor by which the number of steps to the next adaptation grows each time, at least 1.
        num_samples: draws from the prior.
        uniform_fraction: share of evenly spaced knots, see `UnivariateEnergy.adapt_grid`.

    Raises:
        ValueError: for numbers out of range.

    Example:
        ```python
        import jax
        from numpyro_kaem import BSpline, GridAdaptation, UnivariateEnergy

        energy = UnivariateEnergy.init(jax.random.key(0), (8,), basis=BSpline(20, 3, (-3.0, 3.0)))
        adaptation = GridAdaptation(name="energy", energy=energy, site="z", every=200)
        # fit(..., grid_adaptation=adaptation)
        ```
    """

    name: str
    energy: UnivariateEnergy
    site: str
    every: int = 500
    growth: float = 1.5
    num_samples: int = 1000
    uniform_fraction: float = 0.05

    def __post_init__(self):
        for name, minimum in {"every": 1, "num_samples": 2}.items():
            check_count(name, getattr(self, name), minimum)
        if not self.growth >= 1:
            raise ValueError(f"growth must be at least 1, got {self.growth}")

    def is_due(self, step: Int[Array, ""]) -> Bool[Array, ""]:
        """Whether the grid adapts after a training step, the first of which is number 1."""

        def adaptations(step):
            if self.growth == 1:
                return step // self.every
            # The n-th comes after every (growth^n - 1) / (growth - 1) steps.
            return jnp.floor(jnp.log1p(step * (self.growth - 1) / self.every) / math.log(self.growth) + 1e-5)

        return adaptations(step) > adaptations(step - 1)

    def check(self, latent_model: LatentModel) -> None:
        """Raise a ValueError unless the site is a latent of the model whose shape fits the energy's."""
        shapes, needed = latent_model.latent_shapes, self.energy.batch_shape
        if shapes.get(self.site) not in (needed, needed[:-1]):
            raise ValueError(
                f"grid_adaptation: site must be a latent site with the energy's batch shape {needed} for one datum, "
                f"got {self.site!r}; the latents have {shapes}"
            )

    def apply(
        self, key: PRNGKeyArray, svi: SVI, state: SVIState, average: dict[str, Any] | None, latent_model: LatentModel
    ) -> tuple[SVIState, dict[str, Any] | None]:
        """Adapt the grid to the posteriors of the data at hand, that of a moving average of the parameters as well."""
        draws = sample_prior(latent_model, key, self.num_samples)
        weights = jax.nn.softmax(log_likelihood(latent_model, draws), axis=0) / latent_model.num_data
        weights = weights.ravel() if draws_differ_by_datum(latent_model) else weights.sum(1)
        shape = latent_model.latent_shapes[self.site]
        z = draws[self.site].reshape(-1, *shape)
        if len(shape) < len(self.energy.batch_shape):
            z = z[..., None]  # one grid for the components of a mixture
        weights = jnp.where(jnp.isfinite(weights), weights, 0.0)
        adapted, _ = adapt_svi_grid(svi, state, self.name, self.energy, z, weights, self.uniform_fraction)
        if average is not None:
            average = on_adapted_grid(self.name, self.energy, average, state, adapted)
        return adapted, average
