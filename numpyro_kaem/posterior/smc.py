"""Tempered sequential Monte Carlo for any NumPyro model, on BlackJAX's kernels."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from numbers import Real
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray
from tqdm.auto import tqdm

from numpyro_kaem._compilation.fingerprint import ByValue
from numpyro_kaem._compilation.interrupts import interrupts
from numpyro_kaem._numerics.sharding import take_rows
from numpyro_kaem.checks import check_count
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior import chains, swarm
from numpyro_kaem.posterior.chains import Problem
from numpyro_kaem.posterior.convergence import has_two_lumps
from numpyro_kaem.posterior.diagnostics import (
    check_call,
    check_draws_are_inside,
    check_log_likelihood,
    warn_if_chains_disagree,
    warn_if_impossible,
    warn_if_in_lumps,
    warn_if_runs_disagree,
)
from numpyro_kaem.posterior.evidence import Evidence, finite_std
from numpyro_kaem.posterior.kernel import Kernel, check_kernel
from numpyro_kaem.posterior.ladder import Ladder, as_ladder
from numpyro_kaem.posterior.langevin_kernels import MALA
from numpyro_kaem.posterior.reading import first_data, warn_unfinished
from numpyro_kaem.posterior.result import RESAMPLERS, Posterior, Rungs
from numpyro_kaem.posterior.run_checkpoints import RunCheckpoints
from numpyro_kaem.posterior.smc_evidence import smc_std_error, thermodynamic_along_smc
from numpyro_kaem.posterior.swarm import Course, Plan, Rung, Tuning
from numpyro_kaem.posterior.weights import observed_values


@dataclass(frozen=True, eq=False, repr=False)
class TemperedSMC(ByValue):
    r"""Posterior and evidence by sequential Monte Carlo over a temperature ladder.

    A population of particles is drawn from the prior and taken to the posterior through $p_t(z) \propto p(z)\,
    p(x \mid z)^t$: at each rung particles are weighted by $p(x \mid z)^{t' - t}$, resampled, and moved by a kernel that
    leaves $p_{t'}$ invariant. The product of the mean weights estimates p(x), without bias for a fixed ladder and a
    kernel that does not adapt (a `step_size`, and `precondition=False`). The last step resamples and moves too, so
    that the draws have equal weights and stand as they are.

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
        if self.target_ess is not None and not (isinstance(self.target_ess, Real) and 0 < self.target_ess < 1):
            raise ValueError(f"target_ess must lie in (0, 1), got {self.target_ess}")
        self._set(kernel=MALA() if self.kernel is None else self.kernel)
        check_kernel(self.kernel)
        for name, minimum in {"num_particles": 2, "num_mcmc_steps": 1, "num_runs": 1, "max_rungs": 1}.items():
            self._set(**{name: check_count(name, getattr(self, name), minimum)})
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
        if self.chunk_size is not None:
            self._set(chunk_size=check_count("chunk_size", self.chunk_size, 1))

    @property
    def _temperatures(self) -> np.ndarray:
        """Of the rungs above the prior, where they are given."""
        return self.ladder.temperatures[self.ladder.temperatures > 0]

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
            first = TemperedSMC(num_particles=500, progress=False)
            found = first.run(jax.random.key(0), model, {}, y)
            unbiased = TemperedSMC(num_particles=500, num_runs=8, progress=False).frozen(found)
            posterior = unbiased.run(jax.random.key(1), model, {}, y)
            assert abs(posterior.log_evidence[0] + 31.4) < 0.2
            ```
        """
        rungs = posterior.rungs
        if rungs is None or rungs.scale is None:
            raise ValueError("posterior must come of a run of TemperedSMC, whose rungs have temperature and scale")
        sampler = copy(self)
        # Data that arrived early stay at t = 1 while others climb.
        temperatures = np.where(np.isnan(rungs.temperatures), 1.0, rungs.temperatures)[:, 1:]
        step_size, scale = (np.where(np.isnan(x), 1.0, x)[:, 1:] for x in (rungs.step_size, rungs.scale))
        found = Tuning(temperatures, step_size, scale)
        sampler._set(ladder=None, target_ess=None, max_rungs=temperatures.shape[1], tuning=found)
        return sampler

    def run(
        self, key: PRNGKeyArray, model: Callable, params: dict[str, Any], *data: Any, **model_kwargs: Any
    ) -> Posterior:
        """Sample the posterior of every datum.

        Args:
            key: JAX random key.
            model: NumPyro model.
            params: constrained values of its parameter sites, `{}` where it has none.
            *data: positional arguments of the model.
            **model_kwargs: keyword arguments of the model.

        Returns:
            Draws with equal weights within each run, run by run; runs are weighted by their evidence. The evidence and
            statistics by rung (of several runs, their means). After Ctrl-C the data so far, or particles on their way
            with the weights that they lack, `unfinished` saying which.

        Warns:
            RuntimeWarning: if a datum has likelihood zero at every particle; its `log_evidence` is -inf. If
                the evidences of its runs are so different that fewer than half of the runs count.

        Raises:
            KeyboardInterrupt: by Ctrl-C before the first rung.
            ValueError: where `LatentModel` cannot read the model; for a latent without icdf where the kernel whitens;
                for a log-likelihood that is NaN or +inf at draws from the prior; where checkpoint_dir holds the
                checkpoint of another run, or another run writes to it.
            RuntimeError: if an adaptive ladder has not arrived at t = 1 after `max_rungs` rungs.
        """
        params = check_call(key, params)
        # Where one datum's particles are too many, its runs take turns; where those of a run are, they move in batches.
        few = self.chunk_size is not None and self.chunk_size < self.num_particles
        batch_size = self.chunk_size if few else 0
        problem, target = chains.read_problem(self.kernel, batch_size, model, params, data, model_kwargs, self.plate)
        num_data = target.latent_model.num_data
        if self.tuning is not None and self.tuning.scale.shape[::2] != (num_data, target.dim):
            raise ValueError(
                f"the model has {num_data} data of {target.dim} coordinates, but the sampler is frozen for "
                f"{len(self.tuning.scale)} of {self.tuning.scale.shape[2]}"
            )
        rows, keys = problem.rows(target), jax.random.split(key, (num_data, self.num_runs))
        per_datum = self.num_particles * self.num_runs
        chunk = num_data if self.chunk_size is None else min(num_data, max(1, self.chunk_size // per_datum))
        runs_at_once = 0 if self.chunk_size is None else max(1, self.chunk_size // self.num_particles)
        plan = Plan(
            self.target_ess,
            self.num_mcmc_steps,
            self.resampling,
            self.waste_free,
            self.persistent,
            self.max_rungs,
            batch_size,
            runs_at_once,
        )
        order = np.arange(num_data)
        if self.target_ess is not None and chunk < num_data:
            order = np.argsort(self._difficulty(problem, plan, rows, keys, chunk), kind="stable")
        results = []
        kept = RunCheckpoints(self.checkpoint_dir)
        kept.describe(self, target, rows, key=key, tuning=self.tuning, order=order)
        with (
            kept.held(),
            interrupts() as interrupted,
            tqdm(total=-(-num_data // chunk), unit="chunk", disable=not self.progress) as bar,
        ):
            for number, first in enumerate(range(0, num_data, chunk)):
                at = partial(kept.at, number), partial(kept.keep, number)
                # The last chunk is filled up with its last datum, so that it has the shape of the others.
                indices = order[np.minimum(np.arange(first, first + chunk), num_data - 1)]
                rows_at, keys_at = take_rows(rows, keys, indices)
                result, temperature = self._run_chunk(problem, plan, rows_at, keys_at, indices, bar, interrupted, *at)
                if temperature == 1.0 or (not results and temperature > 0.0):
                    results.append(result)
                    lowest = temperature
                if interrupted:
                    break
                bar.update()
        if not results:
            raise KeyboardInterrupt(f"no particles to return yet: all were at the prior ({kept.way_on})")
        done = order[: chunk * len(results)]
        unfinished, model = None, target.model
        if len(done) < num_data or lowest < 1.0:
            unfinished = f"{len(done)} of {num_data} data"
            if len(done) < num_data:
                unfinished += f", those of indices {np.sort(done).tolist()}"
                model = first_data(target.model, np.sort(done))
            if lowest < 1.0:
                unfinished += f", particles at temperature {lowest:.3g} and weighted for what is left of the way"
            warn_unfinished(unfinished, kept.way_on)
        joined = self._join(results, len(done))
        back = np.argsort(done)
        return self._posterior(model, unfinished, plan, *jax.tree.map(lambda x: x[back], joined))

    def _difficulty(self, problem: Problem, plan: Plan, rows: tuple, keys: Array, chunk: int) -> np.ndarray:
        """How far each datum's ladder is: minus its first temperature, of a few draws."""
        few = plan._replace(persistent=False)
        temperatures = []
        for first in range(0, len(keys), chunk):
            indices = np.minimum(np.arange(first, first + chunk), len(keys) - 1)
            rows_at, keys_at = take_rows(rows, keys[:, :1], indices)
            particles, _ = swarm.start(problem, self.kernel, few, rows_at, keys_at, min(64, self.num_particles))
            temperatures.append(swarm.first_temperature(particles, plan.target_ess))
        return -np.concatenate(temperatures)[: len(keys)]

    def _run_chunk(
        self,
        problem: Problem,
        plan: Plan,
        rows: tuple,
        keys: Array,
        indices: np.ndarray,
        bar: tqdm,
        interrupted: list[bool],
        at: Callable,
        keep: Callable,
    ) -> tuple[tuple, float]:
        """Latents, log-likelihoods, evidence, temperatures and rungs of some of the data, and how far all have come."""
        particles, flaws = swarm.start(problem, self.kernel, plan, rows, keys, self.num_particles)
        check_draws_are_inside(flaws, problem.target(self.kernel))
        check_log_likelihood(np.asarray(flaws.invalid).sum(1), indices, self.num_particles * self.num_runs)
        course = Course(problem, self.kernel, plan, rows, keys)
        dtype = particles.temperature.dtype
        particles, _, records = at(particles)
        rungs = [Rung(*of_rung) for of_rung in zip(*(records[name] for name in Rung._fields if records), strict=True)]
        while not rungs or (np.min(rungs[-1].temperature) < 1.0 and not interrupted):
            if len(rungs) == self.max_rungs:
                keep(particles, len(rungs), rungs, whole=True)
                slow = np.argmin(rungs[-1].temperature.min(1))
                raise RuntimeError(
                    f"datum {indices[slow]} is at temperature {rungs[-1].temperature[slow].min():.3g} after "
                    f"{self.max_rungs} rungs: raise max_rungs, lower target_ess, or use more num_mcmc_steps"
                )
            number = len(rungs)
            tuning = jax.tree.map(lambda x: jnp.asarray(x, dtype), self._tuning_at(number, indices))
            particles, rung = swarm.advance((course, jnp.asarray(number), tuning), particles)
            rungs.append(jax.device_get(rung))
            keep(particles, len(rungs), rungs)
            bar.set_postfix_str(
                f"rung {number + 1}, t {rungs[-1].temperature.min():.3g}, acceptance "
                f"{rungs[-1].acceptance.mean():.2f}, ESS {rungs[-1].ess.mean():.0f}"
            )
        keep(particles, len(rungs), rungs, whole=True)
        latents = chains.latents_along(problem, self.kernel, rows, particles.particles.position)
        log_likelihood = particles.particles.log_likelihood
        length = self.num_mcmc_steps + 1 if self.waste_free else 1
        # The log-likelihood tells of modes that the means of latents do not.
        ess = swarm.effective_size(particles, {**latents, "log p(x | z)": log_likelihood}, length)
        result = jax.device_get((latents, log_likelihood, particles.log_evidence, ess, particles.temperature))
        return (result, rungs), float(np.min(result[-1]))

    def _tuning_at(self, number: int, indices: np.ndarray) -> Tuning:
        """What is known of a rung, for some of the data."""
        if self.tuning is not None:
            return jax.tree.map(lambda x: x[indices, number], self.tuning)
        return Tuning(None if self.ladder is None else np.full(len(indices), self._temperatures[number]))

    def _join(self, results: list, num_data: int) -> tuple:
        """The chunks' results one after the other; ladders that ended early are filled up with NaN."""
        parts, rungs = zip(*results, strict=True)
        parts = jax.tree.map(lambda *x: np.concatenate(x)[:num_data], *parts)
        longest = max(map(len, rungs))

        def stack(*steps):
            # The rung comes third, after data and runs.
            stacked = np.stack(steps, 2).astype(float)
            widths = [(0, 0), (0, 0), (0, longest - len(steps)), *[(0, 0)] * (stacked.ndim - 3)]
            return np.pad(stacked, widths, constant_values=np.nan)

        by_chunk = [jax.tree.map(stack, *steps) for steps in rungs]
        joined = jax.tree.map(lambda *x: np.concatenate(x)[:num_data], *by_chunk)
        # After its last rung a run stays at t = 1, in company of those that are not there yet.
        arrived = np.cumsum(joined.temperature >= 1.0, -1) - (joined.temperature >= 1.0) > 0
        joined = jax.tree.map(
            lambda x: np.where(arrived.reshape(arrived.shape + (1,) * (x.ndim - 3)), np.nan, x), joined
        )
        return *parts, joined

    def _posterior(
        self,
        model: LatentModel,
        unfinished: str | None,
        plan: Plan,
        latents,
        log_likelihood,
        log_evidence,
        ess,
        temperature,
        rungs: Rung,
    ) -> Posterior:
        num_data = len(log_evidence)
        # Of particles that have not arrived: what is left of the way is the matter of their weights.
        rest = 1.0 - temperature[..., None].astype(float)
        with np.errstate(invalid="ignore"):
            left = np.where(rest > 0, rest * log_likelihood, 0.0)
        largest = np.maximum(left.max(-1, keepdims=True), np.finfo(float).min)
        weights = np.exp(left - largest)
        with np.errstate(divide="ignore", invalid="ignore"):
            at_temperature = log_evidence
            log_evidence = log_evidence + np.log(weights.mean(-1)) + largest[..., 0]
            ess = np.nan_to_num(ess * weights.sum(-1) ** 2 / np.sum(weights**2, -1) / self.num_particles)
        total = np.logaddexp.reduce(log_evidence.astype(float), axis=1) - np.log(self.num_runs)
        impossible = total == -np.inf
        warn_if_impossible(impossible, "at every particle", model)
        # A run counts in proportion to its evidence, with which the runs estimate theirs together.
        with np.errstate(invalid="ignore"):
            share = np.where(impossible[:, None], 1.0, np.exp(log_evidence - log_evidence.max(1, keepdims=True)))
        warn_if_runs_disagree(share)
        std_error = smc_std_error(rungs, share, self.num_particles, plan)
        # Where particles have weights, as many as are effective count.
        with np.errstate(divide="ignore"):
            of_weights = np.where(np.any(temperature < 1.0, 1), 1.0 / ess.sum(1) ** 0.5, 0.0)
        std_error = np.where(impossible, np.inf, np.hypot(std_error, of_weights))
        with np.errstate(divide="ignore"):
            ess = share.sum(1) ** 2 / np.sum(share**2 / ess, 1)
        flat = log_likelihood.reshape(num_data, -1)
        log_weights = (at_temperature.astype(float)[..., None] + left).reshape(num_data, -1)
        # Particles that no move took out of where the likelihood is zero.
        log_weights = np.where(flat == -np.inf, -np.inf, log_weights)
        last = [flat.mean(1), finite_std(flat, 1)]
        mean = _mean_over_runs
        by_run = rungs
        # A run that has arrived stays at t = 1 while others are on their way.
        someone = np.isfinite(rungs.temperature).any(1, keepdims=True)
        rungs = rungs._replace(temperature=np.where(someone & np.isnan(rungs.temperature), 1.0, rungs.temperature))
        start, nan = np.zeros((num_data, 1)), np.full((num_data, 1), np.nan)

        def with_final(series, value):
            series = np.concatenate([mean(series), nan], 1)
            series[np.arange(num_data), np.sum(np.isfinite(mean(rungs.temperature)), 1)] = value
            return series

        evidence = {"smc": Evidence(total, std_error, np.zeros(num_data))}
        if np.all(temperature >= 1.0):
            evidence["thermodynamic"] = thermodynamic_along_smc(by_run, log_likelihood, plan)
        posterior = Posterior(
            latents=latents,
            log_weights=log_weights,
            log_likelihood=flat,
            log_evidence=total,
            log_evidence_std_error=std_error,
            ess=np.where(impossible, 0.0, ess),
            observed=jax.device_get(observed_values(model)),
            plate=model.plate,
            num_chains=self.num_runs,
            evidence=evidence,
            run_log_evidence=log_evidence,
            divergences=np.nansum(rungs.divergences, (1, 2)).astype(int),
            unfinished=unfinished,
            latent_model=model,
            rungs=Rungs(
                temperatures=np.concatenate([start, mean(rungs.temperature)], 1),
                acceptance=np.concatenate([nan, mean(rungs.acceptance)], 1),
                step_size=np.concatenate([nan, mean(rungs.step_size)], 1),
                ess=with_final(rungs.ess, self.num_particles),
                log_likelihood_mean=with_final(rungs.log_likelihood_mean, last[0]),
                log_likelihood_std=with_final(rungs.log_likelihood_std, last[1]),
                scale=np.concatenate([np.full_like(rungs.scale[:, 0, :1], np.nan), mean(rungs.scale)], 1),
            ),
        )
        warn_if_chains_disagree(posterior, "runs")
        warn_if_in_lumps(has_two_lumps(flat, rare_upper=True)[:, None], np.ones((num_data, 1)))
        return posterior


def _mean_over_runs(series: np.ndarray) -> np.ndarray:
    """The mean of `(B, R, K, ...)` over runs, of those that have come so far."""
    there = np.isfinite(series)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(there, series, 0.0).sum(1) / there.sum(1)
