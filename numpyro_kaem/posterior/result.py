"""What a posterior sampler returns."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray, Shaped

from numpyro_kaem.checks import check_count

_RESAMPLERS = ("systematic", "stratified", "multinomial", "residual")

# jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
_ENABLE_X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64


@partial(jax.jit, static_argnames=("num_samples", "method"))
def _draw_indices(keys, weights, num_samples, method):
    """Indices of the particles drawn for each datum, (num_data, num_samples)."""
    # BlackJAX makes arrays when it is imported, and so would fix JAX's platform before its user can.
    from blackjax.smc import resampling

    resampler = getattr(resampling, method)
    return jax.vmap(lambda key, row: resampler(key, row, num_samples))(keys, weights)


@dataclass(frozen=True, eq=False)
class Posterior:
    """Weighted draws from the posterior of every datum, with its evidence and how far to trust both.

    The first axis of every array is the datum (of length 1 for a model with global latents, where the whole
    data set is one datum), the second, where there is one, the particle. Posterior expectations are weighted
    means,

        E[h(z_b) | x_b] = sum_s w_bs h(z_bs) / sum_s w_bs,   w = exp(log_weights).

    A datum whose likelihood is zero at every particle has `log_evidence` -inf, `ess` 0 and `pareto_k` inf;
    its draws are the prior's, and every weight is zero.

    Attributes:
        latents: draws of each latent site, `(num_data, num_particles, *event)`. Where particles are shared
            between data these are read-only views, which hold each particle once.
        log_weights: unnormalised, `log mean_s exp(log_weights) = log_evidence`.
        log_likelihood: log p(x_b | z_bs), summed over the observed sites of a datum.
        log_evidence: estimate of log p(x_b).
        log_evidence_std_error: its standard error.
        ess: effective sample size of the sampler that made the draws, between 1 and its number of particles.
        observed: values of the observed sites, with the data axis first.
        plate: name of the data plate; None for a model with global latents.
        proposal_log_weights: log-weights of the importance sampler that made the draws, from which `pareto_k`
            is computed. Resampling keeps them.
    """

    latents: dict[str, Shaped[np.ndarray, "num_data num_particles ..."]]
    log_weights: Float[np.ndarray, "num_data num_particles"]
    log_likelihood: Float[np.ndarray, "num_data num_particles"]
    log_evidence: Float[np.ndarray, " num_data"]
    log_evidence_std_error: Float[np.ndarray, " num_data"]
    ess: Float[np.ndarray, " num_data"]
    observed: dict[str, np.ndarray]
    plate: str | None
    proposal_log_weights: Float[np.ndarray, "num_data num_proposals"]

    @property
    def num_data(self) -> int:
        """Number of data B."""
        return self.log_weights.shape[0]

    @property
    def num_particles(self) -> int:
        """Number of particles per datum S."""
        return self.log_weights.shape[1]

    @cached_property
    def pareto_k(self) -> Float[np.ndarray, " num_data"]:
        """Pareto k-hat of the importance weights of each datum, computed by ArviZ when first asked for.

        Above 0.7 neither the draws nor the evidence of that datum can be trusted, however large the ESS.
        """
        from numpyro_kaem.arviz import pareto_k

        return pareto_k(self.proposal_log_weights)

    def resample(self, key: PRNGKeyArray, num_samples: int, method: str = "systematic") -> Posterior:
        """Draw particles with probability proportional to their weights, for each datum on its own.

        Evidence, ESS and Pareto k-hat stay those of the weighted particles: resampling does not improve them.

        Args:
            key: JAX random key.
            num_samples: number of draws per datum, at least 1.
            method: BlackJAX's "systematic", "stratified", "multinomial" or "residual". Systematic and
                stratified draws come in the order of the particles, so that copies of a particle are
                neighbours.

        Returns:
            A Posterior of `num_samples` particles with equal weights.

        Raises:
            ValueError: for num_samples below 1 or an unknown method.

        Example:
            ```python
            import jax
            import jax.numpy as jnp
            import numpyro
            import numpyro.distributions as dist
            from numpyro_kaem import ImportanceSampling


            def model(x):
                with numpyro.plate("data", x.shape[0]):
                    z = numpyro.sample("z", dist.Normal())
                    numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


            x = jnp.array([-1.0, 0.0, 2.0])
            posterior = ImportanceSampling(2000).run(jax.random.key(0), model, {}, x)
            draws = posterior.resample(jax.random.key(1), 500).latents["z"]
            assert draws.shape == (3, 500)
            assert abs(draws[2].mean() - 1.0) < 0.2
            ```
        """
        check_count("num_samples", num_samples, 1)
        if method not in _RESAMPLERS:
            raise ValueError(f"method must be one of {_RESAMPLERS}, got {method!r}")
        log_weights = self.log_weights.astype(np.float64)
        # Where every weight is zero all particles are drawn alike.
        log_weights = np.where(self.ess[:, None] > 0, log_weights, 0.0)
        weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        # In float32 BlackJAX's resamplers draw particles of weight zero: parallel cumulative sums are not
        # monotone, and one uniform that is exactly 0, about 1 in 100 calls for 100,000 draws, spoils all
        # multinomial draws.
        with _ENABLE_X64(True):
            keys = jax.random.split(key, self.num_data)
            indices = np.asarray(_draw_indices(keys, jnp.asarray(weights), num_samples, method))
        rows = np.arange(self.num_data)[:, None]
        return replace(
            self,
            latents={name: value[rows, indices] for name, value in self.latents.items()},
            log_weights=np.broadcast_to(self.log_evidence[:, None], indices.shape),
            log_likelihood=self.log_likelihood[rows, indices],
        )

    def to_arviz(self, *args: Any, **kwargs: Any) -> Any:
        """Convert to ArviZ; the arguments are those of `numpyro_kaem.arviz.to_arviz` after the first."""
        from numpyro_kaem.arviz import to_arviz

        return to_arviz(self, *args, **kwargs)
