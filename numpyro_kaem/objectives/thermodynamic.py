"""Maximum likelihood over a ladder of temperatures, and schedules of its exponent over training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, PRNGKeyArray

from numpyro_kaem.checks import check_count, check_positive
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.objectives import population
from numpyro_kaem.objectives.langevin import ChainObjective
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.ladder import Ladder, as_ladder
from numpyro_kaem.posterior.particles import Settings
from numpyro_kaem.posterior.target import Target

GRADIENTS = ("fisher", "path")
SAMPLERS = ("tempering", "smc")
# Share of the present step in the running mean of the log-likelihood.
_NEW = 0.1


@dataclass(frozen=True, eq=False, repr=False)
class ThermodynamicMLE(ChainObjective):
    r"""Maximum likelihood of a latent-variable model, by a population over a ladder of temperatures.

    Particles of every datum are spread over the power posteriors $p_t(z) \propto p(z)\, p(x \mid z)^t$ of a ladder, so
    that those at t = 1 reach every mode that the prior knows. With `sampler="tempering"` they are Markov chains that
    exchange their states (see `ParallelTempering`), with "smc" particles that are taken from prior to posterior by
    tempered SMC (see `TemperedSMC`).

    With `gradient="fisher"` the particles at t = 1 give the gradient of the log-likelihood by Fisher's identity, as in
    `LangevinMLE`; their bias vanishes as chains get longer or particles more. With "path" the generator's gradient is
    that of the thermodynamic integral over the whole ladder with the particles held fixed, as in the KAEM paper,

    $$\sum_k \tfrac12 (t_{k+1} - t_{k-1})\, \nabla\, \mathbb E_{p_{t_k}} \log p(x \mid z),$$

    which drops the derivative of the power posteriors: a biased surrogate, also of converged chains. (The exact
    derivative adds $t \operatorname{Cov}_t(\log p(x \mid z), \nabla \log p(x \mid z))$.) The prior's gradient is
    Fisher's either way.

    The value of the loss is minus an estimate of the log-evidence: the steppingstone estimate of the chains, which is
    too low where they are short, or that of SMC.

    Args:
        ladder: a `Ladder` from 0 to 1 or its temperatures; None with `target_ess`.
        kernel: how particles move, by default `MALA()`; step sizes as in `LangevinMLE`, by rung.
        num_steps: steps of each chain per training step, or moves of each particle per rung of SMC.
        schedule: exponent r of the ladder $t_k = (k / K)^r$ as a function of the number of the training step, for
            instance `cyclic_schedule` or a schedule of Optax, or a positive number that is r at every step; the ladder
            then gives only K. None for the ladder as it is.
        gradient: "fisher" or "path".
        sampler: "tempering" or "smc".
        adapt: of tempering, whether rungs move while training until they are equally far apart in thermodynamic length.
        target_ess: of SMC, in (0, 1): each datum finds its own ladder, see `TemperedSMC`.
        num_chains: populations of chains per datum.
        persistent: whether the chains of every datum, at all rungs, are kept from one epoch to the next.
        start: of tempering, see `LangevinMLE`.
        num_draws: see `LangevinMLE`.
        num_particles: of SMC, per datum.
        max_rungs: of SMC with `target_ess`: where a ladder that has not arrived ends; its step is not finite, and so
            is skipped by `fit`.
        plate: name of the data plate, where the model has several.

    Raises:
        ValueError: for a ladder that does not begin at 0, numbers out of range, unknown names, options that do not go
            together; when called, as `LangevinMLE`.

    References:
        A. Gelman and X.-L. Meng, Simulating normalizing constants: from importance sampling to bridge sampling to path
        sampling, Statistical Science 13(2), 1998; KAEM, arXiv 2506.14167.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist, optax
        from numpyro_kaem import Ladder, ThermodynamicMLE, fit


        def model(x):
            location = numpyro.param("location", 0.0)
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(location, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        x = 2.0 + 1.1 * jax.random.normal(jax.random.key(0), (200,))
        objective = ThermodynamicMLE(Ladder.power(4, 2.0), num_steps=10)
        options = {"optimizer": optax.adam(0.1), "num_epochs": 15, "batch_size": 50, "progress": False}
        result = fit(jax.random.key(1), model, x, objective=objective, **options)
        assert abs(result.params["location"] - x.mean()) < 0.3
        assert result.history["log_evidence_steppingstone"][-1] > result.history["log_evidence_steppingstone"][0]
        ```
    """

    ladder: Ladder | Sequence[float] | None = None
    kernel: Kernel | None = None
    num_steps: int = 20
    schedule: Callable[[ArrayLike], ArrayLike] | float | None = None
    gradient: str = "fisher"
    _: KW_ONLY
    sampler: str = "tempering"
    adapt: bool = False
    target_ess: float | None = None
    num_chains: int = 1
    persistent: bool = False
    start: str | None = None
    num_draws: int = 100
    num_particles: int = 16
    max_rungs: int = 50
    plate: str | None = None

    def __post_init__(self):
        if self.start == "guide":
            raise ValueError(
                "start must be 'importance' or 'prior' with ThermodynamicMLE, whose ladder begins at the prior, got "
                "'guide': take LangevinMLE(start='guide')"
            )
        super().__post_init__()
        for name, known in (("gradient", GRADIENTS), ("sampler", SAMPLERS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        self._set(num_particles=check_count("num_particles", self.num_particles, 2))
        is_smc, schedule, target_ess = self.sampler == "smc", self.schedule, self.target_ess
        if is_smc and (self.persistent or self.adapt or self.start == "importance"):
            raise ValueError("sampler='smc' starts at the prior: persistent, adapt and start are for 'tempering'")
        if self.adapt and schedule is not None:
            raise ValueError("give adapt or schedule, not both: each of them moves the rungs")
        if schedule is not None and not callable(schedule):
            self._set(schedule=check_positive("schedule, where it is no function of the training step,", schedule))
        if target_ess is not None:
            if not is_smc or self.ladder is not None or schedule is not None:
                raise ValueError("target_ess finds the ladder of sampler='smc': give no ladder and no schedule with it")
            if not 0 < target_ess < 1:
                raise ValueError(f"target_ess must lie in (0, 1), got {target_ess}")
            self._set(max_rungs=check_count("max_rungs", self.max_rungs, 1), target_ess=float(target_ess))
            return
        ladder = as_ladder(self.ladder)
        if ladder.temperatures[0] != 0 or len(ladder) < 2:
            raise ValueError(f"ladder must begin at 0, the prior, and end at 1, got {ladder}")
        self._set(ladder=ladder, max_rungs=len(ladder) - 1)

    @property
    def num_rungs(self) -> int:
        """Number of rungs of the ladder, the prior among them; of SMC with `target_ess` the most there can be."""
        return self.max_rungs + 1

    def metric_shapes(self) -> dict[str, tuple[int, ...]]:
        """Estimates of the log-evidence per datum, the acceptance by rung or its mean, and the ladder."""
        if self.sampler == "smc":
            names = ("log_evidence_smc", "log_evidence_thermodynamic", "acceptance", "num_rungs")
            return dict.fromkeys(names, ())
        evidence = ("log_evidence_steppingstone", "log_evidence_thermodynamic")
        names = (*evidence, "swap_acceptance", "stuck", "importance_gap")
        by_rung = ("acceptance", "step_size", "temperatures")
        return dict.fromkeys(names, ()) | dict.fromkeys(by_rung, (self.num_rungs,))

    def initial_state(self, latent_model: LatentModel, num_data: int) -> dict[str, Any]:
        """The state before the first step."""
        state = super().initial_state(latent_model, num_data)
        if self.adapt:
            temperatures = jnp.asarray(as_ladder(self.ladder).temperatures, jnp.result_type(float))
            state["shared"] |= {"temperatures": temperatures, "mean_log_likelihood": jnp.zeros_like(temperatures)}
        return state

    def evaluate(
        self, key: PRNGKeyArray, latent_model: LatentModel, state: dict[str, Any] | None
    ) -> tuple[Float[Array, ""], dict[str, Any] | None]:
        """Minus the estimated log-evidence, with the chosen gradient, and the state after it."""
        if state is None and (self.schedule is not None or self.adapt):
            raise ValueError(
                "a ladder that moves needs a place between steps: train with fit, or pass SVI "
                "guide=objective.guide(model)"
            )
        by_sampler = self._by_particles if self.sampler == "smc" else self._by_chains
        target = population.frozen_target(latent_model, self.kernel)
        key_sample, key_negative = jax.random.split(key)
        log_evidence, objective, new_state = by_sampler(key_sample, latent_model, target, state)
        surrogate = jnp.sum(objective - self.negative_phases(key_negative, latent_model, target))
        # The value of the evidence and the gradient of the surrogate.
        total = jax.lax.stop_gradient(jnp.sum(log_evidence)) + surrogate - jax.lax.stop_gradient(surrogate)
        return -(latent_model.scale * total + latent_model.global_log_density()), new_state

    def _temperatures(self, state: dict[str, Any] | None) -> Float[Array, " K"]:
        if self.adapt:
            return state["shared"]["temperatures"]
        if self.schedule is None:
            return jnp.asarray(as_ladder(self.ladder).temperatures, jnp.result_type(float))
        exponent = self.schedule(state["shared"]["step"]) if callable(self.schedule) else self.schedule
        # An exponent that has fallen to zero leaves the prior at t = 0.
        return ((jnp.arange(self.num_rungs) / self.max_rungs) ** exponent).at[0].set(0.0)

    def _by_chains(self, key, latent_model: LatentModel, target: Target, state):
        temperatures = self._temperatures(state)
        run, new_state = self.advance(key, latent_model, target, state, temperatures, exact=True)
        by_rung = jnp.moveaxis(run.log_likelihood, 1, 0)  # (B, T, C, K)
        steps = jnp.diff(temperatures)
        # The stepping stone from a rung to the next is the mean of p(x | z)^(t' - t) at the lower one.
        weights = logsumexp(steps * by_rung[..., :-1], axis=(1, 2)) - jnp.log(by_rung.shape[1] * by_rung.shape[2])
        steppingstone = weights.sum(-1)
        thermodynamic = jnp.trapezoid(by_rung.mean((1, 2)), temperatures)
        positions = run.points.position if self.gradient == "path" else run.points.position[:, :, -1:]
        objective = self._objective(latent_model, target, positions, temperatures)
        if new_state is not None:
            new_state["metrics"] |= {
                "log_evidence_steppingstone": steppingstone.mean(),
                "log_evidence_thermodynamic": thermodynamic.mean(),
                "swap_acceptance": run.swap_acceptance,
                "acceptance": run.acceptance,
                "temperatures": temperatures,
            }
            if self.adapt:
                new_state["shared"] |= self._moved(state["shared"], temperatures, by_rung)
        return steppingstone, objective, new_state

    def _moved(self, shared: dict[str, Array], temperatures: Array, by_rung: Array) -> dict[str, Array]:
        """Rungs equally far apart, by a running mean of the log-likelihood at every rung.

        Its derivative by t is the variance whose root is the speed of thermodynamic length, also where chains are slow.
        """
        means = jnp.mean(by_rung, axis=(0, 1, 2), where=jnp.isfinite(by_rung))
        means = jnp.where(jnp.isfinite(means), means, shared["mean_log_likelihood"])
        share = jnp.where(shared["step"] == 0, 1.0, _NEW)
        means = (1 - share) * shared["mean_log_likelihood"] + share * means
        steps = jnp.diff(temperatures)
        variances = jnp.diff(means) / steps
        largest = variances.max()
        speeds = jnp.sqrt(jnp.maximum(variances, jnp.where(largest > 0, 1e-6 * largest, 1.0)))
        length = jnp.concatenate([jnp.zeros(1), jnp.cumsum(speeds * steps)])
        new = jnp.interp(jnp.linspace(0.0, length[-1], self.num_rungs), length, temperatures).at[0].set(0.0)
        # A rung goes a part of its way: chains and step sizes have to follow.
        new = ((1 - _NEW) * temperatures + _NEW * new).at[-1].set(1.0)
        return {"temperatures": new, "mean_log_likelihood": jnp.interp(new, temperatures, means)}

    def _by_particles(self, key, latent_model: LatentModel, target: Target, state):
        settings = Settings(self.kernel, self.target_ess, self.num_steps, self.max_rungs)
        temperatures = None if self.ladder is None else self._temperatures(state)
        is_path = self.gradient == "path"
        run = population.run_particles(key, target, settings, temperatures, self.num_particles, keep_rungs=is_path)
        run = jax.lax.stop_gradient(run)
        thermodynamic = jnp.trapezoid(run.log_likelihood_mean, run.temperatures)
        positions = run.positions[:, :, None]
        if is_path:
            # The particles at t = 1 fill what is left of the ladder, so that the last rung is the posterior.
            beyond = jnp.arange(self.num_rungs) > run.num_rungs[:, None]
            positions = jnp.where(beyond[:, None, :, None], positions, jnp.swapaxes(run.at_rung, 1, 2))
        objective = self._objective(latent_model, target, positions, run.temperatures)
        log_evidence = jnp.where(run.arrived, run.log_evidence, jnp.nan)
        if state is None:
            return log_evidence, objective, None
        metrics = {
            "log_evidence_smc": log_evidence.mean(),
            "log_evidence_thermodynamic": thermodynamic.mean(),
            "acceptance": run.acceptance.mean(),
            "num_rungs": run.num_rungs.mean(),
        }
        shared = state["shared"] | {"step": state["shared"]["step"] + 1}
        return log_evidence, objective, {"metrics": metrics, "shared": shared, "per_datum": {}}

    def _objective(
        self, latent_model: LatentModel, target: Target, positions: Float[Array, "B N K dim"], temperatures: Array
    ) -> Float[Array, " B"]:
        """What has the chosen gradient, by datum; of the last rung alone where K is 1."""
        num_data, num_particles, num_rungs, dim = positions.shape
        latents = population.latents_of(target, positions.reshape(num_data, -1, dim))
        prior, likelihood = population.log_joint(latent_model, latents)
        likelihood, prior = (x.reshape(num_data, num_particles, num_rungs).mean(1) for x in (likelihood, prior))
        if num_rungs == 1:
            return likelihood[:, 0] + prior[:, 0]
        return jnp.trapezoid(likelihood, temperatures) + prior[:, -1]


def cyclic_schedule(low: float, high: float, period: int) -> Callable[[ArrayLike], Float[Array, ""]]:
    r"""An exponent that goes to and fro between two values,

    $$r(i) = \text{low} + (\text{high} - \text{low}) \tfrac12 (1 - \cos(2 \pi i / \text{period})).$$

    It is a schedule for `ThermodynamicMLE`, as are those of Optax: `optax.constant_schedule`, and
    `optax.cosine_decay_schedule`, which falls once.

    Args:
        low: exponent at the start of a cycle, positive.
        high: exponent in its middle, positive.
        period: training steps of a cycle, at least 1.

    Returns:
        A function of the number of the training step.

    Example:
        ```python
        from numpyro_kaem import Ladder, ThermodynamicMLE, cyclic_schedule

        objective = ThermodynamicMLE(Ladder.power(5), schedule=cyclic_schedule(1.0, 8.0, period=500))
        ```
    """
    low, high, period = check_positive("low", low), check_positive("high", high), check_count("period", period, 1)
    return lambda step: low + (high - low) * 0.5 * (1.0 - jnp.cos(2.0 * jnp.pi * step / period))
