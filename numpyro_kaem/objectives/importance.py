"""Maximum likelihood by importance sampling from the prior."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem._compilation.fingerprint import ByValue
from numpyro_kaem.checks import check_count
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.posterior.weights import log_evidence


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceMLE(ByValue, Objective):
    """Maximum likelihood of a latent-variable model, by importance sampling from its prior.

    With S draws z_s from the prior that all data of the batch share (one forward and one backward pass of the
    decoder, no encoder, no chain), the loss is

        -( scale sum_b log 1/S sum_s p(x_b | z_s) r(z_s)  +  log-densities outside of the data plate ),

    with r(z) = p(z) / stop_gradient(p(z)) = 1. By r the parameters of the prior receive the score
    sum_s w_bs grad log p(z_s), the gradient of Fisher's identity; the draws themselves carry no gradient,
    which is several times less noisy than pathwise gradients. `scale` is the data plate's size / subsample
    size. Of a prior that is not normalised (`DeepKAPrior`) the mean score of the draws, which are its negative
    samples, is subtracted; its gradient is as good as these are.

    The expected loss is above -log p(x_b) by about Var(w) / (2 S E[w]^2), so the gradient is biased by
    O(1/S). Scores of different priors are compared at equal, large S.

    It is a loss of `numpyro.infer.SVI`, whose guide must have no sites: `guide=lambda *args, **kwargs: None`.
    In NumPyro 0.22 `guide=None` works as well for models called with exactly one positional and no keyword
    argument; for any others `SVI.init` ends in an AssertionError. `fit` passes an empty guide itself.

    How far the draws go is told by the effective sample size of the weights, ESS = (sum_s w_bs)^2 / sum_s w_bs^2, whose
    mean over the batch `fit` records as `history["ess"]`; it warns where one or two draws carry everything.

    Mutable sites of the model are read and returned unchanged.

    Args:
        num_samples: number of prior draws S, at least 1.
        chunk_size: draws whose likelihoods are computed at once; None for all. Smaller chunks bound the
            memory of the backward pass, whatever S is, at the cost of a second forward pass. The loss stays
            the same.
        plate: name of the data plate, where the model has several.

    Raises:
        ValueError: for num_samples or chunk_size below 1; when called, for a model with latent sites outside
            of the data plate (the site is named), or a guide with sites.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro.infer import SVI
        from numpyro_kaem import ImportanceMLE


        def model(x):
            scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal())
                numpyro.sample("x", dist.Normal(scale * z, 0.5), obs=x)


        x = 2.0 * jax.random.normal(jax.random.key(0), (200,))
        svi = SVI(model, lambda *args: None, optax.adam(0.05), loss=ImportanceMLE(200))
        params = svi.run(jax.random.key(1), 200, x, progress_bar=False).params
        assert abs(params["scale"] - jnp.sqrt(jnp.mean(x**2) - 0.25)) < 0.2
        ```
    """

    num_samples: int
    chunk_size: int | None = None
    plate: str | None = None

    def __post_init__(self):
        self._set(num_samples=check_count("num_samples", self.num_samples, 1))
        if self.chunk_size is not None:
            self._set(chunk_size=check_count("chunk_size", self.chunk_size, 1))

    def metric_shapes(self) -> dict[str, tuple[int, ...]]:
        """The effective sample size, mean over the data of the batch."""
        return {"ess": ()}

    def evaluate(
        self, key: PRNGKeyArray, latent_model: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """Minus the log-likelihood of the batch, by shared draws."""
        proposal = latent_model.at(params=jax.lax.stop_gradient(latent_model.params))
        values, ess = log_evidence(latent_model, key, self.num_samples, self.chunk_size, proposal)
        loss = -(latent_model.scale * jnp.sum(values) + latent_model.global_log_density())
        return loss, None if state is None else state | {"metrics": {"ess": ess.mean()}}
