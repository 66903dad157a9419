"""Maximum likelihood by Markov chains on the posterior of every datum."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem._compilation.fingerprint import ByValue
from numpyro_kaem.checks import check_count
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives import population
from numpyro_kaem.objectives.objective import Objective
from numpyro_kaem.objectives.population import Adaptation, ChainRun, LogWeights
from numpyro_kaem.posterior.diagnostics import check_draws_are_inside
from numpyro_kaem.posterior.kernel import Kernel, check_kernel, choose
from numpyro_kaem.posterior.langevin_kernels import MALA
from numpyro_kaem.posterior.predictive import run_with
from numpyro_kaem.posterior.target import Flaws, Target
from numpyro_kaem.posterior.weights import negative_phase, sample_prior

STARTS = ("prior", "importance", "guide")
# Draws that are weighed where nothing is said: from the prior, for all data, and from a guide, for each of them.
_PRIOR_DRAWS, _GUIDE_DRAWS = 100, 5
# Positions of earlier visits that a preconditioner remembers: the posteriors move while the model learns.
_MEMORY = 100.0
# Draws from the prior that are looked at before training.
_DRAWS_TO_CHECK = 500
# Steps that the step size of a chain that goes on stands for.
_AGE = 20.0


class ChainObjective(ByValue, Objective):
    """What `LangevinMLE` and `ThermodynamicMLE` share: chains of every datum, their starts and their step sizes."""

    kernel: Kernel | None
    num_steps: int
    persistent: bool | None
    num_chains: int
    start: str | None
    num_draws: int | None

    def __post_init__(self):
        if self.kernel is None:
            self._set(kernel=MALA())
        check_kernel(self.kernel)
        for name in ("num_steps", "num_chains", "num_draws"):
            if name != "num_draws" or self.num_draws is not None:
                self._set(**{name: check_count(name, getattr(self, name), 1)})
        if self.start not in (None, *STARTS):
            raise ValueError(f"start must be one of {STARTS}, got {self.start!r}")

    @property
    def takes_guide(self) -> bool:
        """Whether chains start at draws from a guide, which learns from where they end."""
        return self.start == "guide"

    @property
    def num_rungs(self) -> int:
        """Number of rungs K of the ladder."""
        raise NotImplementedError

    @property
    def num_negative(self) -> int:
        """Number of negative samples of a prior that is not normalised; draws from a guide are another matter."""
        return _PRIOR_DRAWS if self.takes_guide else self.num_draws or _PRIOR_DRAWS

    def initial_state(self, latent_model: LatentModel, num_data: int) -> dict[str, Any]:
        """The state before the first step; chains that have not started yet are marked as such."""
        target = population.frozen_target(latent_model, self.kernel)
        state = super().initial_state(latent_model, num_data)
        log_step_size = jnp.full(self.num_rungs, jnp.log(self.kernel.initial_step_size(target.dim)))
        state["shared"] = {"step": jnp.zeros((), int), "log_step_size": log_step_size}
        if self.persistent is not False:
            by_rung = (num_data, self.num_rungs)
            state["per_datum"] = {
                "positions": jnp.zeros((num_data, self.num_chains, self.num_rungs, target.dim), target.dtype),
                "started": jnp.zeros(num_data, bool),
                "log_step_size": jnp.zeros(by_rung),
                "num_positions": jnp.zeros(num_data),
                "mean": jnp.zeros((*by_rung, target.dim), target.dtype),
                "variance": jnp.zeros((*by_rung, target.dim), target.dtype),
            }
        return state

    def check(self, latent_model: LatentModel) -> None:
        """Refuse priors whose mass lies at an end of their support, or warn of them, as samplers do."""
        first = population.frozen_target(latent_model, self.kernel)

        def tell(at: LatentModel, keys: Array) -> Array:
            target, row = population.frozen_target(at, self.kernel), at.first_row
            return jnp.sum(jax.vmap(lambda k: target.draw_and_tell(k, row)[1])(keys), 0)

        at_end = run_with(latent_model, tell, jax.random.split(jax.random.key(0), _DRAWS_TO_CHECK))
        check_draws_are_inside(Flaws(np.zeros(1), at_end[None], np.array([_DRAWS_TO_CHECK])), first)

    def advance(
        self,
        key: PRNGKeyArray,
        latent_model: LatentModel,
        target: Target,
        state: dict[str, Any] | None,
        temperatures: Float[Array, " K"],
        exact: bool,
        encoder: LatentModel | None = None,
    ) -> tuple[ChainRun, dict[str, Any] | None]:
        """Run the chains of the batch, and note in the state where they are and what step sizes suit them."""
        if state is None and (self.persistent or self.kernel.adapts_step_size):
            what = "persistent chains need" if self.persistent else "a step size that adapts needs"
            raise ValueError(
                f"{what} a place between steps: train with fit, pass SVI guide=objective.guide(model), or use a kernel "
                f"with a step_size, such as {type(self.kernel).__name__}(step_size=0.01), and persistent=False"
            )
        encoder = jax.lax.stop_gradient(encoder)
        key_draw, key_start, key_run, key_weigh = jax.random.split(key, 4)
        draws = population.draw_first(
            key_draw, target, encoder, self.kernel, self.num_chains, self.num_rungs, self.num_steps, exact
        )
        starts = draws.starts
        shared, per_datum = ({}, {}) if state is None else (state["shared"], state["per_datum"])
        rows_at = self._rows_of(latent_model, per_datum)
        kept = {} if rows_at is None else jax.tree.map(lambda leaf: leaf[rows_at], per_datum)
        adaptation = self._adaptation(target, shared, kept, draws.scale)
        if kept:
            goes_on = kept["started"] & jnp.all(jnp.isfinite(kept["positions"]), (1, 2, 3))
            starts = jnp.where(goes_on[:, None, None, None], kept["positions"].astype(target.dtype), starts)
        at_kept = None
        if encoder is None:
            weighed = population.importance_draws(key_weigh, target, self._num_weighed(target.model))
        else:
            num_draws, current = self.num_draws or _GUIDE_DRAWS, starts if kept else None
            weighed, at_kept = population.guide_draws(key_weigh, target, encoder, num_draws, current)
        before = starts
        if self.start != "prior":
            # Likelihood zero: a chain that has not started is not where it goes on.
            likelihood = jnp.full(starts.shape[:-1], -jnp.inf, starts.dtype)
            at_starts = LogWeights(likelihood, jnp.zeros_like(likelihood))
            if kept:
                if at_kept is None:
                    at_kept = at_starts._replace(log_likelihood=population.log_likelihood_at(target, starts))
                at_kept = jax.tree.map(lambda x: x.astype(starts.dtype), at_kept)
                at_starts = choose(goes_on[:, None, None], at_kept, at_starts)
            starts = weighed.choose(key_start, temperatures, starts, at_starts)
        # The chains' moves are no function of the parameters that gradients should know of.
        run = jax.lax.stop_gradient(
            population.run_chains(
                key_run, target, self.kernel, starts, temperatures, adaptation, draws.lowest, self.num_steps
            )
        )
        stuck = run.stuck
        if encoder is not None:
            # A few steps may all be refused: one that a draw from the guide has moved is not stuck.
            stuck = jnp.mean(jnp.all(run.points.position == before, -1))
        gap = weighed.gap(run.points.log_likelihood[:, :, -1])
        metrics = {
            "stuck": stuck,
            "importance_gap": jax.lax.stop_gradient(gap),
            "step_size": jnp.exp(adaptation.log_step_size.mean(0)),
        }
        if state is None:
            return run, None
        shared = shared | {"step": shared["step"] + 1}
        if self.kernel.adapts_step_size:
            shared["log_step_size"] = run.log_step_size.mean(0)
        if rows_at is not None:
            new = self._kept(run, kept)
            per_datum = {name: old.at[rows_at].set(new[name].astype(old.dtype)) for name, old in per_datum.items()}
        return run, {"metrics": metrics, "shared": shared, "per_datum": per_datum}

    def _rows_of(self, latent_model: LatentModel, per_datum: dict[str, Array]) -> Array | slice | None:
        """Where the rows of the batch are among the data whose chains are kept; None if none are, or nothing tells."""
        if not per_datum:
            return None
        num_kept = len(per_datum["started"])
        if num_kept == latent_model.num_data:
            return slice(None)
        size, _ = latent_model.structure.plates[latent_model.plate]
        lengths = {len(leaf) for leaf in jax.tree.leaves(latent_model.uncut_rows)}
        if num_kept == size and not lengths - {size}:
            return latent_model.plate_indices[latent_model.plate]
        if not self.persistent:
            return None
        raise ValueError(
            f"chains are kept for {num_kept} data, but plate {latent_model.plate!r} has size {size} and the data at "
            f"hand {latent_model.num_data} rows, of which nothing tells which data they are: train with fit, or pass "
            f"all {num_kept} rows to a model whose plate subsamples them, numpyro.plate(..., {num_kept}, "
            "subsample_size=...)"
        )

    def _num_weighed(self, model: LatentModel) -> int:
        """Draws that are weighed: where the model has to run for each of them and each datum, no more than steps."""
        is_shared = not (model.prior_depends_on_data or model.likelihood_depends_on_data)
        num_draws = self.num_draws or _PRIOR_DRAWS
        return num_draws if is_shared else min(num_draws, self.num_steps)

    def _adaptation(self, target: Target, shared: dict, kept: dict, first_scale: Float[Array, " dim"]) -> Adaptation:
        """Step sizes and preconditioners of the batch: those of its chains, or else what suits all data."""
        num_data, adapts = target.latent_model.num_data, self.kernel.adapts_step_size
        first = jnp.full(self.num_rungs, jnp.log(self.kernel.initial_step_size(target.dim)))
        log_step_size = jnp.broadcast_to(shared["log_step_size"] if adapts else first, (num_data, self.num_rungs))
        scale = jnp.broadcast_to(first_scale, (num_data, self.num_rungs, target.dim))
        age = jnp.zeros(num_data)
        if kept:
            started = kept["started"][:, None]
            age = jnp.where(kept["started"], _AGE, 0.0)
            if adapts:
                log_step_size = jnp.where(started, kept["log_step_size"], log_step_size)
            if self.kernel.precondition and not self.kernel.whiten:
                # Shrunk towards the shape of the first draws, of the chains' size, as five more positions of that
                # spread would; the size itself is the step size's matter.
                relative = kept["variance"] / scale**2
                size = jnp.exp(jnp.mean(jnp.log(relative + 1e-12), -1, keepdims=True))
                count = kept["num_positions"][:, None, None]
                relative = (count * relative / size + 5.0) / (count + 5.0)
                scale = scale * jnp.where(started[..., None], jnp.sqrt(relative), 1.0)
        return Adaptation(log_step_size, scale, age)

    def _kept(self, run: ChainRun, kept: dict) -> dict[str, Array]:
        """What is kept of the chains of the batch; those that have got lost start anew when their data come again."""
        sound = jnp.all(jnp.isfinite(run.points.position), (1, 2, 3))
        sound &= jnp.all(jnp.isfinite(run.points.log_density(1.0)[:, :, -1]), 1)
        new = float(self.num_steps * self.num_chains)
        total = jnp.minimum(kept["num_positions"], _MEMORY) + new
        share = (new / total)[:, None, None]
        delta = run.mean - kept["mean"]
        variance = (1 - share) * (kept["variance"] + share * delta**2) + share * run.variance
        kept = {
            "positions": run.points.position,
            "started": sound,
            "log_step_size": run.log_step_size,
            "num_positions": total,
            "mean": kept["mean"] + share * delta,
            "variance": variance,
        }
        return {
            name: jnp.where(sound.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.zeros_like(x)) for name, x in kept.items()
        }

    def negative_phases(self, key: PRNGKeyArray, latent_model: LatentModel, target: Target) -> Float[Array, " B"]:
        """What maximum likelihood subtracts from log p(z) of each datum: zero, with the gradient of log Z."""
        if not latent_model.unnormalized_sites:
            return jnp.zeros(latent_model.num_data)
        draws = sample_prior(target.model, key, self.num_negative)
        return jnp.broadcast_to(negative_phase(latent_model, draws), latent_model.num_data)


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

    Chains that have not converged bias the gradient towards where they start. By default they start at draws from the
    prior that the likelihood has chosen. Persistent chains go on where they were when their datum was last seen, or at
    one of these draws where it is likelier, which leaves the posterior invariant; the model has to change slowly
    against them. Step sizes adapt by datum and on the way, because posteriors differ in size.

    With `start="guide"` an encoder q(z | x) proposes where chains start: of `num_draws` draws of each datum's own, and
    of where its chain was, one is chosen by the weights p(x, z) / q(z | x), which leaves the posterior invariant as
    well. Its draws also give the coordinates their scales. The guide learns from where the chains end: the loss is

    $$-\text{scale} \sum_b [\log p(x_b, z_b) + \log q(z_b \mid x_b)],$$

    in which the z_b have no gradient. The model has the gradient of Fisher's identity, as far as chains have converged,
    and the guide that of the divergence KL(p(z | x) || q(z | x)), whose minimum covers the posterior. No bound on the
    evidence is maximised. Where q has no density, as outside of its support, the loss is infinite.

    `fit` records, of every step, `stuck`, the share of chains that are where they started, and `importance_gap`: how
    far log p(x | z) at the chains' ends is from what weighted draws say of it, the mean over data for which these have
    an effective sample size of ten, if they are a tenth of the batch; or over all data, where chains are below even
    what too few draws have found (NaN where neither can be told). With a guide, chains are stuck that neither a
    draw nor a step has moved, and draws are weighted by p / q and trusted where half of them count. It warns where
    chains stand still, or are a nat below.

    Args:
        kernel: how chains move, by default `MALA()`. A kernel with a step size, such as `ULA(step_size=0.01)`, keeps
            it; one without finds that of its best acceptance rate, for each datum.
        num_steps: steps per training step, at least 1.
        persistent: whether the chains of every datum are kept from one epoch to the next, with step sizes and
            preconditioners of their own; None for wherever it is known which datum is which, as `fit` knows it of
            arrays.
        num_chains: chains per datum, at least 1.
        start: "importance" (None) for draws from the prior that are resampled by the likelihood of each datum, "prior"
            for exact draws, or "guide" for draws from a guide: `fit(..., guide=guide)`, in NumPyro's `SVI` the guide
            itself or `objective.guide(model, guide)`.
        num_draws: draws that "importance" resamples and `importance_gap` weighs (at most `num_steps` where the model
            must run for each of them and each datum, as with covariates), and negative samples of a prior that is not
            normalised; shared by the data, 100 of them (None). With "guide", draws of each datum from the guide, 5
            (None); negative samples are 100 then.
        plate: name of the data plate, where the model has several.

    Raises:
        ValueError: for numbers out of range or an unknown start; when called, for a model with latent sites outside of
            the data plate, where state is needed and there is none (see `guide`), a guide with sites, or with
            `start="guide"` none, or one whose latent sites are not those of the model.

    References:
        B. Pang et al., Learning latent space energy-based prior model, NeurIPS 2020, arXiv 2006.08205; with a guide:
        C. Naesseth, F. Lindsten and D. Blei, Markovian score climbing: variational inference with KL(p||q), NeurIPS
        2020, arXiv 2003.10374.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import LangevinMLE, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        x = 2.0 + 1.1 * jax.random.normal(jax.random.key(0), (200,))
        objective = LangevinMLE(num_steps=10, persistent=True)
        options = {"optimizer": optax.adam(0.1), "num_epochs": 15, "batch_size": 50, "progress": False}
        result = fit(jax.random.key(1), model, x, objective=objective, **options)
        assert abs(result.params["location"] - x.mean()) < 0.3
        ```
    """

    kernel: Kernel | None = None
    num_steps: int = 20
    persistent: bool | None = None
    _: KW_ONLY
    num_chains: int = 1
    start: str | None = None
    num_draws: int | None = None
    plate: str | None = None

    @property
    def num_rungs(self) -> int:
        """One: the posterior."""
        return 1

    def metric_shapes(self) -> dict[str, tuple[int, ...]]:
        """Mean acceptance, geometric mean of step sizes, mean of log p(x | z) over chains and data, and the checks."""
        return dict.fromkeys(("acceptance", "step_size", "log_likelihood", "stuck", "importance_gap"), ())

    def evaluate(
        self, key: PRNGKeyArray, latent_model: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """The loss at the chains' last states, and the state with them."""
        return self._evaluate(key, latent_model, None, state)

    def evaluate_guided(
        self, key: PRNGKeyArray, latent_model: LatentModel, encoder: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """As `evaluate`, of chains that start at draws from a guide, whose likelihood of their ends is added."""
        return self._evaluate(key, latent_model, encoder, state)

    def _evaluate(
        self, key: PRNGKeyArray, latent_model: LatentModel, encoder: LatentModel | None, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        target = population.frozen_target(latent_model, self.kernel)
        key_run, key_negative = jax.random.split(key)
        run, new_state = self.advance(key_run, latent_model, target, state, jnp.ones(1), False, encoder)
        latents = population.latents_of(target, run.points.position[:, :, 0])
        prior, likelihood = population.log_joint(latent_model, latents)
        total = jnp.sum(jnp.mean(likelihood + prior, 1) - self.negative_phases(key_negative, latent_model, target))
        if encoder is not None:
            total = total + jnp.sum(jnp.mean(population.log_guide(encoder, latents), 1))
        loss = -(latent_model.scale * total + latent_model.global_log_density())
        if new_state is not None:
            new_state["metrics"] |= {
                "acceptance": run.acceptance[0],
                "step_size": new_state["metrics"]["step_size"][0],
                "log_likelihood": jax.lax.stop_gradient(likelihood.mean()),
            }
        return loss, new_state
