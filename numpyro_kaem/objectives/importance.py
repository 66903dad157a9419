"""Maximum likelihood by importance sampling from the prior."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from numpyro_kaem.checks import check_count
from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.posterior.importance import log_evidence


class ImportanceMLE(ELBO):
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

    Mutable sites are read and returned unchanged.

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
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        import optax
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

    def __init__(self, num_samples: int, chunk_size: int | None = None, plate: str | None = None):
        super().__init__()
        self.num_samples = check_count("num_samples", num_samples, 1)
        self.chunk_size = None if chunk_size is None else check_count("chunk_size", chunk_size, 1)
        self.plate = plate

    def loss_with_mutable_state(
        self,
        rng_key: PRNGKeyArray,
        param_map: dict[str, Any],
        model: Callable,
        guide: Callable | None,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss and the unchanged mutable state, as `numpyro.infer.SVI` asks for them."""
        if guide is not None:
            sites = handlers.trace(handlers.seed(guide, 0)).get_trace(*args, **kwargs)
            if sites:
                raise ValueError(
                    "guide must have no sites with ImportanceMLE, which draws from the prior, but it has "
                    f"{sorted(sites)}: pass guide=lambda *args, **kwargs: None"
                )
        model_key, draw_key = jax.random.split(rng_key)
        read = partial(LatentModel, model, plate=self.plate, rng_key=model_key, **kwargs)
        latent_model = read(param_map, *args)
        latent_model.require_per_datum("ImportanceMLE")
        proposal = read(jax.lax.stop_gradient(param_map), *args, check=False)
        values = log_evidence(latent_model, draw_key, self.num_samples, self.chunk_size, proposal)
        loss = -(latent_model.scale * jnp.sum(values) + latent_model.global_log_density())
        parameters = latent_model.program.structure.parameters
        mutable_state = {name: value for name, value in param_map.items() if name not in parameters}
        return {"loss": loss, "mutable_state": mutable_state or None}
