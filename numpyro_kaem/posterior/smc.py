"""Tempered sequential Monte Carlo for any NumPyro model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm.auto import tqdm

from numpyro_kaem._numerics.sharding import take_rows
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior import chains, diagnostics, particles
from numpyro_kaem.posterior.chains import Problem
from numpyro_kaem.posterior.convergence import has_two_lumps
from numpyro_kaem.posterior.evidence import Evidence
from numpyro_kaem.posterior.kernel import Kernel, Tuning
from numpyro_kaem.posterior.ladder import Ladder, as_ladder
from numpyro_kaem.posterior.particles import Rung, Settings, effective_size
from numpyro_kaem.posterior.result import RESAMPLERS, Posterior
from numpyro_kaem.posterior.sampler import Chunk, ChunkedSampler
from numpyro_kaem.posterior.smc_evidence import mean_rungs, smc_std_error, thermodynamic_along_smc
from numpyro_kaem.posterior.target import Target


class Arrived(NamedTuple):
    """Where the particles of R runs of B data have come, on the host; their temperature is below 1 after Ctrl-C."""

    latents: dict[str, np.ndarray]  # (B, R N, ...)
    log_likelihood: Float[np.ndarray, "B R N"]
    log_evidence: Float[np.ndarray, "B R"]
    ess: Float[np.ndarray, "B R"]
    temperature: Float[np.ndarray, "B R"]
    rungs: Rung  # of arrays (B, R, K, ...), NaN beyond the last rung of a run


@dataclass(frozen=True, eq=False, repr=False)
class TemperedSMC(ChunkedSampler):
    r"""Posterior and evidence by sequential Monte Carlo over a temperature ladder.

    A population of particles is drawn from the prior and taken to the posterior through $p_t(z) \propto p(z)\,
    p(x \mid z)^t$: at each rung particles are weighted by $p(x \mid z)^{t' - t}$, resampled, and moved by a kernel that
    leaves $p_{t'}$ invariant. The product of the mean weights estimates p(x), without bias for a fixed ladder and a
    kernel that does not adapt (a `step_size`, and `precondition=False`). The last step resamples and moves too, so
    that the draws have equal weights within each run and stand as they are; runs are weighted by their evidence. (After
    Ctrl-C particles on their way have the weights that they lack.)

    With `target_ess`, each datum and run finds its own ladder: the next temperature is that at which the weights have
    an effective sample size of `target_ess` times the number of particles. Data that arrive early wait for the others
    of their chunk; chunks are formed of data that need about as many rungs.

    At every rung a few particles find the step size of the kernel's best acceptance rate before all move; coordinates
    are rescaled by the particles' standard deviations.

    Args:
        ladder: temperatures, a `Ladder` or the numbers; a rung t = 0 is implied. None with `target_ess`.
        target_ess: in (0, 1); 0.5 where neither is given.
        kernel: how particles move.
        num_particles: N, of each run, at least 2.
        num_mcmc_steps: moves of each particle at each rung.
        num_runs: independent runs per datum; two or more give an R-hat, and become ArviZ's chains.
        waste_free: resample only N / (num_mcmc_steps + 1) particles and keep every state on their way; N must be
            a multiple of that divisor.
        persistent: weigh and resample the particles of all rungs so far. They are kept in memory, N times `max_rungs`;
            the standard error of the evidence needs two runs (that of one waste-free run is too small where moves mix
            slowly; of several, it is that between them, with Student's t for their number).
        resampling: BlackJAX's "systematic", "stratified", "multinomial" or "residual".
        max_rungs: where an adaptive ladder that has not arrived is given up.
        chunk_size: particles (data x runs x N) that move at once; None for all. It bounds the memory and does not
            change the result.
        plate: name of the data plate, where the model has several.
        progress: whether to show a progress bar.
        checkpoint_dir: directory for checkpoints, one per run, written twice a minute at most: after Ctrl-C, or the end
            of the process, the same call goes on with the run, and at its end gives the same draws.

    Raises:
        ValueError: for both ladder and target_ess, numbers out of range, N that waste-free resampling cannot divide, an
            unknown resampling.

    References:
        P. Del Moral, A. Doucet and A. Jasra, Sequential Monte Carlo samplers, Journal of the Royal Statistical Society
        B 68(3), 2006; H.-D. Dau and N. Chopin, Waste-free sequential Monte Carlo, ibid. 84(1), 2022; M. Karamanis and
        U. Seljak, Persistent sampling, Statistics and Computing 35, 2025.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import TemperedSMC


        def model(y):
            mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
            tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
            with numpyro.plate("schools", 8):
                theta = numpyro.sample("theta", dist.Normal(mu, tau))
                numpyro.sample("y", dist.Normal(theta, 10.0), obs=y)


        y = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
        posterior = TemperedSMC(num_particles=500, progress=False).run(jax.random.key(0), model, {}, y)
        assert posterior.latents["theta"].shape == (1, 500, 8)
        assert abs(posterior.log_evidence[0] + 31.4) < 0.5

        unbiased = TemperedSMC(num_particles=500, num_runs=8, progress=False).frozen(posterior)
        posterior = unbiased.run(jax.random.key(1), model, {}, y)
        assert abs(posterior.log_evidence[0] + 31.4) < 0.2
        ```
    """

    ladder: Ladder | Sequence[float] | None = None
    target_ess: float | None = None
    kernel: Kernel | None = None
    num_particles: int = 1000
    num_mcmc_steps: int = 10
    _: KW_ONLY
    num_runs: int = 1
    waste_free: bool = False
    persistent: bool = False
    resampling: str = "systematic"
    max_rungs: int = 200
    chunk_size: int | None = None
    plate: str | None = None
    progress: bool = True
    checkpoint_dir: str | os.PathLike | None = None
    # What `frozen` keeps; then there is neither a ladder nor a target_ess.
    tuning: Tuning | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.ladder is not None and self.target_ess is not None:
            raise ValueError(f"give ladder or target_ess, not both, got {self.ladder} and {self.target_ess}")
        if self.ladder is None and self.target_ess is None:
            self._set(target_ess=0.5)
        if self.target_ess is not None and not 0 < self.target_ess < 1:
            raise ValueError(f"target_ess must lie in (0, 1), got {self.target_ess}")
        super().__post_init__()
        self._set_counts(num_particles=2, num_mcmc_steps=1, num_runs=1, max_rungs=1)
        num_particles, per_chain = self.num_particles, self.num_mcmc_steps + 1
        if self.target_ess is not None and self.target_ess * num_particles <= 1:
            raise ValueError(
                f"num_particles must be more than 1 / target_ess, because weights have an effective sample size of at "
                f"least 1, got {num_particles} and target_ess {self.target_ess:g}"
            )
        if self.waste_free and self.persistent:
            raise ValueError("waste_free and persistent do not go together: persistent sampling wastes no particles")
        if self.waste_free and (num_particles % per_chain or num_particles == per_chain):
            raise ValueError(
                f"with waste_free, num_particles must be a multiple, at least two times, of num_mcmc_steps + 1 = "
                f"{per_chain}, got {num_particles}"
            )
        if self.resampling not in RESAMPLERS:
            raise ValueError(f"resampling must be one of {RESAMPLERS}, got {self.resampling!r}")
        if self.ladder is not None:
            self._set(ladder=as_ladder(self.ladder))
            self._set(max_rungs=len(self._temperatures))

    @property
    def _temperatures(self) -> np.ndarray:
        """Of the rungs above the prior, where they are given."""
        temperatures = as_ladder(self.ladder).temperatures
        return temperatures[temperatures > 0]

    def frozen(self, posterior: Posterior) -> TemperedSMC:
        """The same sampler with all that an earlier run has found kept: ladders, step sizes, preconditioners.

        These are by datum (of several runs, their means). A run that adapts has particles that depend on one another
        through what they have found; one that is frozen does not, so that its estimates exp(log_evidence) have no bias.

        Args:
            posterior: result of a run of `TemperedSMC` with this kernel on the same data.

        Returns:
            A sampler for the same model and number of data; other settings are those of this one.

        Raises:
            ValueError: for the result of another sampler.
        """
        rungs = posterior.rungs
        if rungs is None or rungs.scale is None:
            raise ValueError("posterior must come of a run of TemperedSMC, whose rungs have temperature and scale")
        found = rungs.temperatures, rungs.step_size, rungs.scale
        # Data that arrived early stay at t = 1 while others climb.
        tuning = Tuning(*(np.where(np.isnan(x), 1.0, x)[:, 1:] for x in found))
        return self.having(ladder=None, target_ess=None, max_rungs=tuning.temperature.shape[1], tuning=tuning)

    @property
    def _keys_shape(self) -> tuple[int, ...]:
        return (self.num_runs,)

    @property
    def _states_at_once(self) -> int:
        # Where one datum's particles are too many, its runs take turns; where those of a run are, they move in batches.
        return self.num_particles

    def _settings(self, target: Target, batch_size: int) -> Settings:
        num_data = target.latent_model.num_data
        if self.tuning is not None and self.tuning.scale.shape[::2] != (num_data, target.dim):
            raise ValueError(
                f"the model has {num_data} data of {target.dim} coordinates, but the sampler is frozen for "
                f"{len(self.tuning.scale)} of {self.tuning.scale.shape[2]}"
            )
        own = {name: getattr(self, name) for name in Settings._fields if hasattr(self, name)}
        runs_at_once = 0 if self.chunk_size is None else max(1, self.chunk_size // self.num_particles)
        return Settings(**own, batch_size=batch_size, runs_at_once=runs_at_once)

    def _bar(self, num_chunks: int) -> tqdm:
        return tqdm(total=num_chunks, unit="chunk", disable=not self.progress)

    def _order(self, problem: Problem, settings: Settings, rows: tuple, keys: Array, size: int) -> np.ndarray:
        """Data whose ladders need about as many rungs, by their first temperature of a few draws, are together."""
        if self.target_ess is None or size == len(keys):
            return super()._order(problem, settings, rows, keys, size)
        few = settings._replace(persistent=False)
        temperatures = []
        for first in range(0, len(keys), size):
            indices = np.minimum(np.arange(first, first + size), len(keys) - 1)
            rows_at, keys_at = take_rows(rows, keys[:, :1], indices)
            state, _ = particles.start(problem, few, rows_at, keys_at, min(64, self.num_particles))
            temperatures.append(particles.first_temperature(state, self.target_ess))
        return np.argsort(-np.concatenate(temperatures)[: len(keys)], kind="stable")

    def _run_chunk(self, chunk: Chunk) -> tuple[Arrived, bool]:
        problem, indices, rows = chunk.problem, chunk.indices, chunk.rows
        given = problem, chunk.settings, rows, chunk.keys
        state, flaws = particles.start(*given, self.num_particles)
        diagnostics.check_draws_are_inside(flaws, chunk.target)
        diagnostics.check_log_likelihood(np.asarray(flaws.invalid).sum(1), indices, self.num_particles * self.num_runs)
        dtype = state.temperature.dtype
        state, _, records = chunk.at(state)
        rungs = [Rung(*of_rung) for of_rung in zip(*(records[name] for name in Rung._fields if records), strict=True)]
        while not rungs or (np.min(rungs[-1].temperature) < 1.0 and not chunk.interrupted):
            if len(rungs) == self.max_rungs:
                chunk.keep(state, len(rungs), rungs, whole=True)
                slow = np.argmin(rungs[-1].temperature.min(1))
                raise RuntimeError(
                    f"datum {indices[slow]} is at temperature {rungs[-1].temperature[slow].min():.3g} after "
                    f"{self.max_rungs} rungs: raise max_rungs, lower target_ess, or use more num_mcmc_steps"
                )
            number = len(rungs)
            tuning = jax.tree.map(lambda x: jnp.asarray(x, dtype), self._tuning_at(number, indices))
            state, rung = particles.advance(*given, jnp.asarray(number), tuning, state)
            rungs.append(jax.device_get(rung))
            chunk.keep(state, len(rungs), rungs)
            chunk.bar.set_postfix_str(
                f"rung {number + 1}, t {rungs[-1].temperature.min():.3g}, acceptance "
                f"{rungs[-1].acceptance.mean():.2f}, ESS {rungs[-1].ess.mean():.0f}"
            )
        chunk.keep(state, len(rungs), rungs, whole=True)
        if not chunk.interrupted:
            chunk.bar.update()
        latents = chains.latents_along(problem, self.kernel, rows, state.points.position)
        log_likelihood = state.points.log_likelihood
        # The log-likelihood tells of modes that the means of latents do not.
        values = {**latents, "log p(x | z)": log_likelihood}
        ess = effective_size(state.ancestor, values, chunk.settings.chain_length)
        # The rung comes third, after data and runs.
        told = jax.tree.map(lambda *steps: np.stack(steps, 2).astype(float), *rungs)
        arrived = Arrived(latents, log_likelihood, state.log_evidence, ess, state.temperature, told)
        return jax.device_get(arrived), bool(np.min(state.temperature) == 1.0)

    def _tuning_at(self, number: int, indices: np.ndarray) -> Tuning:
        """What is known of a rung, for some of the data."""
        if self.tuning is not None:
            return jax.tree.map(lambda x: x[indices, number], self.tuning)
        return Tuning(None if self.ladder is None else np.full(len(indices), self._temperatures[number]))

    def _join(self, results: list[Arrived]) -> Arrived:
        """The chunks' results one after the other; ladders that ended early are filled up with NaN."""
        longest = max(result.rungs.temperature.shape[2] for result in results)

        def fill_up(x):
            widths = [(0, 0), (0, 0), (0, longest - x.shape[2]), *[(0, 0)] * (x.ndim - 3)]
            return np.pad(x, widths, constant_values=np.nan)

        joined = super()._join([result._replace(rungs=jax.tree.map(fill_up, result.rungs)) for result in results])
        # After its last rung a run stays at t = 1, in company of those that are not there yet.
        at_end = joined.rungs.temperature >= 1.0
        arrived = np.cumsum(at_end, -1) - at_end > 0
        rungs = jax.tree.map(
            lambda x: np.where(arrived.reshape(arrived.shape + (1,) * (x.ndim - 3)), np.nan, x), joined.rungs
        )
        return joined._replace(rungs=rungs)

    def _unfinished(self, results: Arrived, indices: np.ndarray, num_data: int) -> str:
        text = f"{len(indices)} of {num_data} data"
        if len(indices) < num_data:
            text += f", those of indices {indices.tolist()}"
        if (lowest := results.temperature.min()) < 1.0:
            text += f", particles at temperature {lowest:.3g} and weighted for what is left of the way"
        return text

    def _posterior(self, latent_model: LatentModel, results: Arrived, **common: Any) -> Posterior:
        _, log_likelihood, at_temperature, ess, temperature, rungs = results
        num_data = len(log_likelihood)
        # Of particles that have not arrived: what is left of the way is the matter of their weights.
        rest = 1.0 - temperature[..., None].astype(float)
        with np.errstate(invalid="ignore"):
            left = np.where(rest > 0, rest * log_likelihood, 0.0)
        largest = np.maximum(left.max(-1, keepdims=True), np.finfo(float).min)
        weights = np.exp(left - largest)
        with np.errstate(divide="ignore", invalid="ignore"):
            log_evidence = at_temperature + np.log(weights.mean(-1)) + largest[..., 0]
            ess = np.nan_to_num(ess * weights.sum(-1) ** 2 / np.sum(weights**2, -1) / self.num_particles)
        total = np.logaddexp.reduce(log_evidence.astype(float), axis=1) - np.log(self.num_runs)
        impossible = total == -np.inf
        diagnostics.warn_if_impossible(impossible, "at every particle", latent_model)
        # A run counts in proportion to its evidence, with which the runs estimate theirs together.
        with np.errstate(invalid="ignore"):
            share = np.where(impossible[:, None], 1.0, np.exp(log_evidence - log_evidence.max(1, keepdims=True)))
        diagnostics.warn_if_runs_disagree(share)
        std_error = smc_std_error(
            rungs, share, self.num_particles, waste_free=self.waste_free, persistent=self.persistent
        )
        # Where particles have weights, as many as are effective count.
        with np.errstate(divide="ignore"):
            of_weights = np.where(np.any(temperature < 1.0, 1), 1.0 / ess.sum(1) ** 0.5, 0.0)
            std_error = np.where(impossible, np.inf, np.hypot(std_error, of_weights))
            ess = share.sum(1) ** 2 / np.sum(share**2 / ess, 1)
        flat = log_likelihood.reshape(num_data, -1)
        log_weights = (at_temperature.astype(float)[..., None] + left).reshape(num_data, -1)
        # Particles that no move took out of where the likelihood is zero.
        log_weights = np.where(flat == -np.inf, -np.inf, log_weights)
        evidence = {"smc": Evidence(total, std_error, np.zeros(num_data))}
        if np.all(temperature >= 1.0):
            evidence["thermodynamic"] = thermodynamic_along_smc(
                rungs, log_likelihood, in_families=not (self.persistent or self.waste_free)
            )
        posterior = Posterior(
            latents=results.latents,
            log_weights=log_weights,
            log_likelihood=flat,
            log_evidence=total,
            log_evidence_std_error=std_error,
            ess=np.where(impossible, 0.0, ess),
            num_chains=self.num_runs,
            evidence=evidence,
            run_log_evidence=log_evidence,
            divergences=np.nansum(rungs.divergences, (1, 2)).astype(int),
            rungs=mean_rungs(rungs, flat, self.num_particles),
            latent_model=latent_model,
            **common,
        )
        diagnostics.warn_if_chains_disagree(posterior, "runs")
        diagnostics.warn_if_in_lumps(has_two_lumps(flat, rare_upper=True)[:, None], np.ones((num_data, 1)))
        return posterior
