"""What a posterior sampler returns."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped

from numpyro_kaem.checks import check_count
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior.convergence import MIN_DRAWS, rank_rhat
from numpyro_kaem.posterior.evidence import Evidence
from numpyro_kaem.posterior.pareto import pareto_smooth
from numpyro_kaem.posterior.predictive import deterministic_values

RESAMPLERS = ("systematic", "stratified", "multinomial", "residual")

# jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
_ENABLE_X64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64  # type: ignore[attr-defined]


@partial(jax.jit, static_argnames=("num_samples", "method"))
def _draw_indices(keys, weights, num_samples, method):
    """Indices of the particles drawn for each datum, (num_data, num_samples)."""
    # BlackJAX makes arrays when it is imported, and so would fix JAX's platform before its user can.
    from blackjax.smc import resampling

    resampler = getattr(resampling, method)
    return jax.vmap(lambda key, row: resampler(key, row, num_samples))(keys, weights)


def _in_short(value: Any) -> str:
    """An array on one line: its type, shape and, over what is finite, its mean and range."""
    value = np.asarray(value)
    text = f"{value.dtype}{list(value.shape)}"
    if value.size and value.dtype.kind in "biuf":
        numbers = value[np.isfinite(value)].astype(float)
        if len(numbers) == 0:
            return f"{text}, nothing finite"
        text += f", mean {numbers.mean():.4g}, from {numbers.min():.4g} to {numbers.max():.4g}"
        if missing := value.size - len(numbers):
            text += f", {missing} not finite"
    return text


class Rungs(NamedTuple):
    """Statistics of a temperature ladder, by datum and rung.

    Attributes:
        temperatures: t, increasing; NaN beyond the last rung of a datum that needed fewer than others.
        acceptance: mean acceptance rate of the kernel.
        step_size: of the kernel, in preconditioned coordinates.
        ess: effective sample size: of the log-likelihoods (chains), or of the weights with which particles left the
            rung (SMC).
        log_likelihood_mean: mean of log p(x | z) under p_t.
        log_likelihood_std: its standard deviation, over draws of positive likelihood.
        swap_acceptance: mean acceptance rate of swaps between a rung and the next; None without swaps.
        round_trip_rate: ways of a state from the lowest rung to the highest and back, per step and chain; None without
            swaps.
        scale: preconditioner of the kernel, in unconstrained (or whitened) coordinates; None for chains.
    """

    temperatures: Float[np.ndarray, "num_data num_rungs"]
    acceptance: Float[np.ndarray, "num_data num_rungs"]
    step_size: Float[np.ndarray, "num_data num_rungs"]
    ess: Float[np.ndarray, "num_data num_rungs"]
    log_likelihood_mean: Float[np.ndarray, "num_data num_rungs"]
    log_likelihood_std: Float[np.ndarray, "num_data num_rungs"]
    swap_acceptance: Float[np.ndarray, "num_data num_pairs"] | None = None
    round_trip_rate: Float[np.ndarray, " num_data"] | None = None
    scale: Float[np.ndarray, "num_data num_rungs dim"] | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Posterior:
    """Weighted draws from the posterior of every datum, with its evidence and how far to trust both.

    The first axis of every array is the datum (of length 1 for a model with global latents, where the whole
    data set is one datum), the second, where there is one, the particle. Posterior expectations are weighted
    means,

        E[h(z_b) | x_b] = sum_s w_bs h(z_bs) / sum_s w_bs,   w = exp(log_weights).

    A datum whose likelihood is zero at every particle has `log_evidence` -inf, `ess` 0 and `pareto_k` inf;
    its draws are the prior's.

    Attributes:
        latents: draws of each latent site, `(num_data, num_particles, *event)`, chain by chain. Where particles are
            shared between data these are read-only views, which hold each particle once.
        log_weights: unnormalised, `log mean_s exp(log_weights) = log_evidence` (0 without an evidence). Runs of SMC
            have their own evidence for weight, draws of likelihood zero -inf.
        log_likelihood: log p(x_b | z_bs), summed over the observed sites of a datum.
        log_evidence: estimate of log p(x_b); None where the sampler has none.
        log_evidence_std_error: its standard error.
        ess: effective sample size of the sampler that made the draws, at most its number of particles. Of chains and of
            SMC, the smallest over the latents' elements and log p(x | z); runs of SMC count by their evidence.
        observed: values of the observed sites, with the data axis first; without those that depend on latents.
        plate: name of the data plate; None for a model with global latents.
        proposal_log_weights: log-weights of the importance sampler that made the draws, from which `pareto_k`
            is computed; None for other samplers. Resampling keeps them.
        shares_draws: whether all data share the draws that were weighted, so that their errors are correlated.
        reached_target: whether the ESS of each datum reached the `target_ess` of `ImportanceSampling`; None without.
        num_chains: independent chains or runs that the particles are divided into, in equal shares.
        evidence: every estimate of the evidence that the sampler has, by name.
        run_log_evidence: the estimates of independent runs of SMC, of whose exponentials `log_evidence` is the log of
            the mean; None for other samplers.
        divergences: steps of the chains of each datum that diverged; None for samplers without chains.
        rungs: statistics by temperature; None for samplers without temperatures.
        unfinished: what Ctrl-C has left undone, in words; None for a whole run.
        latent_model: the model that was sampled. A copy by `copy.deepcopy` shares it; pickled with the rest it is found
            again by the model's name in its module, and None where there is no such name.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import ImportanceSampling


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([[0.5, -1.0], [1.0, 2.0], [0.0, 0.0]])
        posterior = ImportanceSampling(num_samples=20_000).run(jax.random.key(0), model, {}, x)
        mean, square = posterior.expectation(lambda z: (z["z"], z["z"] ** 2))
        assert jnp.allclose(mean, 0.8 * x, atol=0.05) and jnp.allclose(square - mean**2, 0.2, atol=0.05)
        draws = posterior.resample(jax.random.key(1), 500).latents["z"]
        assert draws.shape == (3, 500, 2)
        ```
    """

    latents: dict[str, Shaped[np.ndarray, "num_data num_particles ..."]]
    log_weights: Float[np.ndarray, "num_data num_particles"]
    log_likelihood: Float[np.ndarray, "num_data num_particles"]
    log_evidence: Float[np.ndarray, " num_data"] | None
    log_evidence_std_error: Float[np.ndarray, " num_data"] | None
    ess: Float[np.ndarray, " num_data"]
    observed: dict[str, np.ndarray]
    plate: str | None
    proposal_log_weights: Float[np.ndarray, "num_data num_proposals"] | None = None
    shares_draws: bool = False
    reached_target: Bool[np.ndarray, " num_data"] | None = None
    num_chains: int = 1
    evidence: dict[str, Evidence] = field(default_factory=dict)
    run_log_evidence: Float[np.ndarray, "num_data num_chains"] | None = None
    divergences: Shaped[np.ndarray, " num_data"] | None = None
    rungs: Rungs | None = None
    unfinished: str | None = None
    latent_model: LatentModel | None = None

    # A method whose file is above this one: see `arviz.to_arviz`.
    to_arviz: ClassVar[Callable[..., Any]]

    def __repr__(self) -> str:
        chains = f", {self.num_chains} chains or runs" if self.num_chains > 1 else ""
        where = "of one data set" if self.plate is None else f"of {self.num_data} data in plate {self.plate!r}"
        fields = {f"latents[{name!r}]": value for name, value in self.latents.items()}
        fields |= {f"observed[{name!r}]": value for name, value in self.observed.items()}
        names = ("log_evidence", "log_evidence_std_error", "ess", "reached_target", "divergences")
        fields |= {name: getattr(self, name) for name in (*names, "log_likelihood", "log_weights")}
        fields |= {f"rungs.{name}": value for name, value in (self.rungs or Rungs(*[None] * 6))._asdict().items()}
        lines = [f"  {name}: {_in_short(value)}" for name, value in fields.items() if value is not None]
        if self.unfinished is not None:
            lines.insert(0, f"  unfinished: {self.unfinished}")
        return "\n".join([f"Posterior {where}, {self.num_particles} particles{chains}", *lines])

    def __deepcopy__(self, memo: dict) -> Posterior:
        # What is compiled for a model belongs to all that use it.
        memo[id(self.latent_model)] = self.latent_model
        other = object.__new__(type(self))
        vars(other).update(deepcopy(vars(self), memo))
        return other

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        try:
            state["latent_model"] = pickle.dumps(self.latent_model)
        except (pickle.PicklingError, AttributeError, TypeError):
            # A model that is defined inside of a function cannot be found by its name.
            state["latent_model"] = pickle.dumps(None)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        try:
            latent_model = pickle.loads(state["latent_model"])
        except (ImportError, AttributeError):
            latent_model = None
        vars(self).update(state, latent_model=latent_model)

    @property
    def num_data(self) -> int:
        """Number of data B."""
        return self.log_weights.shape[0]

    @property
    def num_particles(self) -> int:
        """Number of particles per datum S."""
        return self.log_weights.shape[1]

    @cached_property
    def rhat(self) -> Float[np.ndarray, " num_data"] | None:
        """Rank-normalised split R-hat across chains or runs, the largest over the latents' elements and log p(x | z).

        As ArviZ computes it, of the draws and of their distances from the median. Elements that never move, such as the
        zeros of a Cholesky factor, do not count. Above 1.01 the chains do not agree yet. None where there is one chain,
        or fewer than four draws in each.
        """
        num_draws = self.num_particles // self.num_chains
        if self.num_chains < 2 or num_draws < MIN_DRAWS:
            return None
        # Draws of likelihood zero are at one place below all others.
        lowest = np.finfo(self.log_likelihood.dtype).min
        series = [np.maximum(self.log_likelihood, lowest), *self.latents.values()]
        shape = self.num_data, self.num_chains, num_draws, -1
        return np.max([rank_rhat(value.reshape(shape)) for value in series if value[0, 0].size], axis=0)

    @cached_property
    def deterministic(self) -> dict[str, Shaped[np.ndarray, "num_data num_particles ..."]]:
        """Values of the model's `numpyro.deterministic` sites, such as reparameterised latents, at the draws.

        `(num_data, num_particles, *shape)` without the axis of the data plate; computed when first asked for.
        """
        return {} if self.latent_model is None else deterministic_values(self.latent_model, self.latents)

    @cached_property
    def pareto_k(self) -> Float[np.ndarray, " num_data"] | None:
        """Pareto k-hat of the importance weights of each datum, computed when first asked for.

        Above 0.7 neither the draws nor the evidence of that datum can be trusted, however large the ESS. None for
        samplers that are not importance samplers.
        """
        return None if self.proposal_log_weights is None else pareto_smooth(self.proposal_log_weights)[1]

    def expectation(self, function: Callable[[dict[str, Array]], Any]) -> Any:
        """Posterior mean of a function of the latents, for each datum: the weighted mean over its particles.

        Args:
            function: from the latents of one particle of one datum to an array, or a pytree of arrays. It is mapped by
                `jax.vmap`, and so written in JAX.

        Returns:
            The means, with a leading axis of data; NaN for a datum whose likelihood is zero.
        """
        values = jax.device_get(jax.vmap(jax.vmap(function))(self.latents))
        with np.errstate(invalid="ignore", divide="ignore"):
            weights = np.exp(self.log_weights - self.log_weights.max(1, keepdims=True))
            weights = np.where(self.ess[:, None] > 0, weights / weights.sum(1, keepdims=True), np.nan)

        def mean(value: np.ndarray) -> np.ndarray:
            return np.sum(weights.reshape(weights.shape + (1,) * (value.ndim - 2)) * value, axis=1)

        return jax.tree.map(mean, values)

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
        """
        check_count("num_samples", num_samples, 1)
        if method not in RESAMPLERS:
            raise ValueError(f"method must be one of {RESAMPLERS}, got {method!r}")
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
            log_weights=np.broadcast_to(
                np.zeros((self.num_data, 1)) if self.log_evidence is None else self.log_evidence[:, None], indices.shape
            ),
            log_likelihood=self.log_likelihood[rows, indices],
            num_chains=1,
        )
