"""Maximum likelihood by Markov chains on the posterior of every datum."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.checks import check_count, check_flag
from numpyro_kaem.fingerprint import ByValue
from numpyro_kaem.latent_model import LatentModel
from numpyro_kaem.objectives import population
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.objectives.population import Walk
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.langevin_kernels import MALA
from numpyro_kaem.posterior.target import Target
from numpyro_kaem.posterior.weights import negative_phase, sample_prior

STARTS = ("prior", "importance")


class ChainObjective(ByValue, Objective):
    """What `LangevinMLE` and `ThermodynamicMLE` share: chains of every datum, their starts and their step sizes."""

    kernel: Kernel | None
    num_steps: int
    persistent: bool
    num_chains: int
    start: str
    num_draws: int

    def __post_init__(self):
        if self.kernel is None:
            self._set(kernel=MALA())
        if not isinstance(self.kernel, Kernel):
            raise TypeError(f"kernel must be a kernel such as MALA(), got {self.kernel!r}")
        for name in ("num_steps", "num_chains", "num_draws"):
            self._set(**{name: check_count(name, getattr(self, name), 1)})
        if self.start not in STARTS:
            raise ValueError(f"start must be one of {STARTS}, got {self.start!r}")
        check_flag("persistent", self.persistent)

    @property
    def num_rungs(self) -> int:
        """Number of rungs K of the ladder."""
        raise NotImplementedError

    def initial_state(self, latent_model: LatentModel, num_data: int) -> dict[str, Any]:
        """The state before the first step; chains that have not started yet are marked as such."""
        target = population.frozen_target(latent_model, self.kernel)
        state = super().initial_state(latent_model, num_data)
        step_size = jnp.full(self.num_rungs, self.kernel.initial_step_size(target.dim))
        state["shared"] = {"step": jnp.zeros((), int), "log_step_size": jnp.log(step_size)}
        if self.persistent:
            positions = jnp.zeros((num_data, self.num_chains, self.num_rungs, target.dim), target.dtype)
            state["per_datum"] = {"positions": positions, "started": jnp.zeros(num_data, bool)}
        return state

    def advance(
        self,
        key: PRNGKeyArray,
        latent_model: LatentModel,
        target: Target,
        state: dict[str, Any] | None,
        temperatures: Float[Array, " K"],
        exact: bool,
    ) -> tuple[Walk, dict[str, Any] | None]:
        """Run the chains of the batch, and note in the state where they are and what step sizes suit them."""
        if state is None and (self.persistent or self.kernel.adapts_step_size):
            what = "persistent chains need" if self.persistent else "a step size that adapts needs"
            raise ValueError(
                f"{what} a place between steps: train with fit, pass SVI guide=objective.guide(model), or use a kernel "
                f"with a step_size, such as {type(self.kernel).__name__}(step_size=0.01), and persistent=False"
            )
        key_draw, key_start, key_walk = jax.random.split(key, 3)
        draws = population.draw_prior(
            key_draw, target, self.kernel, self.num_chains, self.num_rungs, self.num_steps, exact
        )
        chains, rows_at = {}, None
        if self.persistent:
            chains = state["per_datum"]
            rows_at = _rows_of(latent_model, len(chains["started"]))
        positions = self._starts(key_start, target, temperatures, draws.starts, chains, rows_at)
        step_size = jnp.full(self.num_rungs, self.kernel.initial_step_size(target.dim))
        if self.kernel.adapts_step_size:
            step_size = jnp.exp(state["shared"]["log_step_size"])
        # The chains' moves are no function of the parameters that gradients should know of.
        walk = jax.lax.stop_gradient(
            population.walk(key_walk, target, self.kernel, positions, temperatures, step_size, draws, self.num_steps)
        )
        if state is None:
            return walk, None
        shared = state["shared"] | {"step": state["shared"]["step"] + 1}
        if self.kernel.adapts_step_size:
            # One step of stochastic approximation; its gain does not fade, because the posteriors move while the
            # model learns.
            largest = jnp.log(self.kernel.largest_step_size(target.dim))
            log_step_size = shared["log_step_size"] + walk.acceptance - self.kernel.target_acceptance
            if exact:
                log_step_size = log_step_size.at[0].set(shared["log_step_size"][0])
            shared["log_step_size"] = jnp.minimum(log_step_size, largest)
        per_datum = state["per_datum"]
        if self.persistent:
            per_datum = {
                "positions": chains["positions"].at[rows_at].set(walk.points.position),
                "started": chains["started"].at[rows_at].set(True),
            }
        return walk, {"metrics": state["metrics"], "shared": shared, "per_datum": per_datum}

    def negative_phases(self, key: PRNGKeyArray, latent_model: LatentModel, target: Target) -> Float[Array, " B"]:
        """What maximum likelihood subtracts from log p(z) of each datum: zero, with the gradient of log Z."""
        if not latent_model.unnormalized_sites:
            return jnp.zeros(latent_model.num_data)
        draws = sample_prior(target.model, key, self.num_draws)
        return jnp.broadcast_to(negative_phase(latent_model, draws), latent_model.num_data)

    def _starts(
        self, key: PRNGKeyArray, target: Target, temperatures: Array, draws: Array, chains: dict[str, Array], rows_at
    ) -> Float[Array, "B C K dim"]:
        def fresh(key):
            if self.start == "importance":
                return population.importance_starts(key, target, temperatures, self.num_chains, self.num_draws)
            return draws

        if not chains:
            return fresh(key)
        started, positions = chains["started"][rows_at], chains["positions"][rows_at].astype(target.dtype)
        by_datum = started[:, None, None, None]
        return jax.lax.cond(
            jnp.all(started), lambda key: positions, lambda key: jnp.where(by_datum, positions, fresh(key)), key
        )


def _rows_of(latent_model: LatentModel, num_kept: int) -> Array | slice:
    """Where the rows of a batch are among the data whose chains are kept."""
    if num_kept == latent_model.num_data:
        return slice(None)
    structure = latent_model.program.structure
    size, _ = structure.plates[latent_model.plate]
    lengths = {len(leaf) for leaf in jax.tree.leaves(latent_model.program.uncut_rows)}
    if num_kept != size or lengths - {size}:
        raise ValueError(
            f"chains are kept for {num_kept} data, but plate {latent_model.plate!r} has size {size} and the data at "
            f"hand {latent_model.num_data} rows, of which nothing tells which data they are: train with fit, or pass "
            f"all {num_kept} rows to a model whose plate subsamples them, numpyro.plate(..., {num_kept}, "
            "subsample_size=...)"
        )
    return structure.plate_indices[latent_model.plate]


@dataclass(frozen=True, eq=False, repr=False)
class LangevinMLE(ChainObjective):
    r"""Maximum likelihood of a latent-variable model, by Markov chains on the posterior of every datum.

    By Fisher's identity the gradient of the log-likelihood is an expectation under the posterior,

    $$\nabla \log p(x) = \mathbb E_{p(z \mid x)} \bigl[ \nabla \log p(x \mid z) + \nabla \log p(z) \bigr],$$

    here over the last states of `num_chains` chains per datum after `num_steps` steps of the kernel. A `KAPrior` is
    normalised by quadrature, so that its gradient needs no negative samples and has no noise of its own; from that of
    a prior which is not normalised (`DeepKAPrior`) its mean over `num_draws` fresh draws is subtracted. The loss is
    $-\text{scale} \sum_b [\log p(x_b \mid z_b) + \log p(z_b)]$ at those states, whose gradient it is; its value is no
    estimate of the likelihood: score held-out data for that.

    Chains that have not converged bias the gradient towards where they start. Started from the prior they need as many
    steps as it takes to forget it; persistent chains go on where they were when their datum was last seen, and the
    model has to change slowly against them.

    Args:
        kernel: how chains move, by default `MALA()`. A kernel with a step size, such as `ULA(step_size=0.01)`, keeps
            it; one without finds that of its best acceptance rate while training, the same for all data.
        num_steps: steps per training step, at least 1.
        persistent: whether the chains of every datum are kept from one epoch to the next.
        num_chains: chains per datum, at least 1.
        start: "prior" for exact draws from the prior, or "importance" for draws that are resampled by the likelihood
            of each datum. Persistent chains start so when their datum is first seen.
        num_draws: draws that "importance" resamples, and negative samples of a prior that is not normalised; shared
            by the data.
        plate: name of the data plate, where the model has several.

    Raises:
        ValueError: for numbers out of range or an unknown start; when called, for a model with latent sites outside of
            the data plate, a guide with sites, or where state is needed and there is none (see `guide`).

    References:
        B. Pang et al., Learning latent space energy-based prior model, NeurIPS 2020, arXiv 2006.08205.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        import optax
        from numpyro_kaem import LangevinMLE, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        x = 2.0 + 1.1 * jax.random.normal(jax.random.key(0), (200,))
        objective = LangevinMLE(num_steps=10, persistent=True)
        result = fit(
            jax.random.key(1),
            model,
            x,
            objective=objective,
            optimizer=optax.adam(0.1),
            num_epochs=15,
            batch_size=50,
            progress=False,
        )
        assert abs(result.params["location"] - x.mean()) < 0.3
        ```
    """

    kernel: Kernel | None = None
    num_steps: int = 20
    persistent: bool = False
    _: KW_ONLY
    num_chains: int = 1
    start: str = "prior"
    num_draws: int = 100
    plate: str | None = None

    @property
    def num_rungs(self) -> int:
        """One: the posterior."""
        return 1

    def metric_shapes(self) -> dict[str, tuple[int, ...]]:
        """Mean acceptance, the kernel's step size, and the mean of log p(x | z) over chains and data."""
        return {"acceptance": (), "step_size": (), "log_likelihood": ()}

    def evaluate(
        self, key: PRNGKeyArray, latent_model: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """The loss at the chains' last states, and the state with them."""
        target = population.frozen_target(latent_model, self.kernel)
        key_walk, key_negative = jax.random.split(key)
        walk, new_state = self.advance(key_walk, latent_model, target, state, jnp.ones(1), exact=False)
        latents = population.latents_of(target, walk.points.position[:, :, 0])
        prior, likelihood = population.log_joint(latent_model, latents)
        total = jnp.sum(jnp.mean(likelihood + prior, 1) - self.negative_phases(key_negative, latent_model, target))
        loss = -(latent_model.scale * total + latent_model.global_log_density())
        if new_state is not None:
            new_state["metrics"] = {
                "acceptance": walk.acceptance[0],
                "step_size": jnp.exp(state["shared"]["log_step_size"][0]),
                "log_likelihood": jax.lax.stop_gradient(likelihood.mean()),
            }
        return loss, new_state
