"""Markov chains at one temperature and over a ladder of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from itertools import pairwise
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
from numpyro_kaem.posterior import chains
from numpyro_kaem.posterior.chains import Course, Population, Problem
from numpyro_kaem.posterior.convergence import MIN_DRAWS, has_two_lumps
from numpyro_kaem.posterior.diagnostics import (
    check_call,
    check_draws_are_inside,
    check_log_likelihood,
    warn_if_chains_disagree,
    warn_if_impossible,
    warn_if_in_lumps,
    warn_if_outside,
)
from numpyro_kaem.posterior.evidence import chain_ess, finite_std, steppingstone, thermodynamic
from numpyro_kaem.posterior.kernel import Kernel, check_kernel
from numpyro_kaem.posterior.ladder import Ladder, as_ladder
from numpyro_kaem.posterior.langevin_kernels import MALA
from numpyro_kaem.posterior.proposal import Proposal
from numpyro_kaem.posterior.reading import first_data, warn_unfinished
from numpyro_kaem.posterior.result import Posterior, Rungs
from numpyro_kaem.posterior.run_checkpoints import RunCheckpoints
from numpyro_kaem.posterior.weights import observed_values

# The progress bar moves this often in a run, and shows the lowest ESS of so many data.
_UPDATES, _SHOWN = 50, 64
# Independent draws of a rung's log-likelihoods that are few, where these gather in two lumps.
_FEW = 400


@dataclass(frozen=True, eq=False, repr=False)
class ParallelTempering(ByValue):
    r"""Markov chains over a ladder of temperatures that exchange their states.

    At every rung of the ladder chains move by the kernel under $p_t(z) \propto p(z)\, p(x \mid z)^t$; every
    `swap_every` steps neighbouring rungs exchange states, even pairs and odd pairs in turn, with probability
    $\min(1, \exp((t_{k+1} - t_k)(\log p(x \mid z_k) - \log p(x \mid z_{k+1}))))$, decided for each datum and chain on
    its own. The rung t = 0 is drawn from the prior afresh at every step, so that any mode the prior knows can reach the
    posterior. All data, chains and rungs advance in one compiled computation. A swap costs no evaluation of the model.

    Chains start at draws from the prior or, with a guide, from the guide: an encoder that was trained with the model
    puts them where the posterior is. (The rung t = 0 stays with the prior; draws outside of the prior's support are
    moved inside.) During warm-up step sizes adapt per rung and datum to the kernel's best acceptance rate by dual
    averaging, and each coordinate is rescaled by its standard deviation; then both are frozen.

    Args:
        ladder: temperatures; a `Ladder` or the numbers. The evidence needs the rung t = 0.
        kernel: how chains move.
        num_steps: steps of each chain after warm-up.
        swap_every: steps between exchanges.
        num_chains: independent populations per datum.
        warmup: steps that adapt and are dropped; None for as many as `num_steps`.
        thin: every how many steps a draw is kept; it divides `num_steps`.
        chunk_size: states (data x chains x rungs) that move at once; None for all. It bounds the memory, and does not
            change the result.
        plate: name of the data plate, where the model has several.
        progress: whether to show a progress bar.
        guide: NumPyro guide q(z | x) with the model's arguments and latent sites, where chains start; None for the
            prior.
        guide_params: constrained values of the guide's parameter sites, such as `fit(...).guide_params`.
        checkpoint_dir: directory for checkpoints, one per run, written twice a minute at most: after Ctrl-C, or the end
            of the process, the same call goes on with the run, and at its end gives the same draws.

    Raises:
        ValueError: for numbers out of range, a ladder that does not increase to 1, and guide_params without a guide.

    References:
        C. J. Geyer, Markov chain Monte Carlo maximum likelihood, Computing Science and Statistics 23, 1991;
        S. Syed et al., Non-reversible parallel tempering, Journal of the Royal Statistical Society B 84(2), 2022.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import Ladder, ParallelTempering


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z**2, 0.2), obs=x)  # z and -z explain x


        sampler = ParallelTempering(Ladder.power(4), num_steps=500, num_chains=2, progress=False)
        posterior = sampler.run(jax.random.key(0), model, {}, jnp.array([1.0, 2.0]))
        z = posterior.latents["z"]
        assert z.shape == (2, 1000)
        assert ((z > 0).mean(1) > 0.2).all() and ((z > 0).mean(1) < 0.8).all()
        ```
    """

    ladder: Ladder | Sequence[float]
    kernel: Kernel | None = None
    num_steps: int = 1000
    swap_every: int = 1
    _: KW_ONLY
    num_chains: int = 1
    warmup: int | None = None
    thin: int = 1
    chunk_size: int | None = None
    plate: str | None = None
    progress: bool = True
    guide: Callable | None = None
    guide_params: dict[str, Any] | None = None
    checkpoint_dir: str | os.PathLike | None = None

    def __post_init__(self):
        self._set(ladder=as_ladder(self.ladder), kernel=MALA() if self.kernel is None else self.kernel)
        check_kernel(self.kernel)
        for name in ("num_steps", "swap_every", "num_chains", "thin"):
            self._set(**{name: check_count(name, getattr(self, name), 1)})
        self._set(warmup=self.num_steps if self.warmup is None else check_count("warmup", self.warmup, 0))
        if self.warmup == 0 and self.kernel.adapts_step_size:
            raise ValueError(
                "warmup must be at least 1 for a kernel whose step size is to be found: give some steps of warm-up, or "
                f"{type(self.kernel).__name__} a step_size"
            )
        if self.num_steps % self.thin:
            raise ValueError(f"thin must divide num_steps, got thin {self.thin} and num_steps {self.num_steps}")
        if self.chunk_size is not None:
            self._set(chunk_size=check_count("chunk_size", self.chunk_size, 1))
        Proposal.of(self.guide, self.guide_params)

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
            Draws at t = 1, chain by chain, with equal weights (zero where the likelihood is), and statistics by rung.
            After Ctrl-C the draws so far, of the data so far, `unfinished` saying which. With the rung t = 0 in the
            ladder, `log_evidence` is the steppingstone estimate, and `evidence` has that of
            thermodynamic integration too; otherwise `log_evidence` is None.

        Warns:
            RuntimeWarning: if a datum has likelihood zero at every draw; its `log_evidence` is -inf. If it has
                likelihood zero at some draws, because a chain has not found where it is positive: they have no weight.

        Raises:
            KeyboardInterrupt: by Ctrl-C before there are draws.
            ValueError: where `LatentModel` cannot read the model; for a latent without icdf where the kernel whitens;
                for a guide that has not the model's latent sites; for a log-likelihood that is NaN or +inf where chains
                start; where checkpoint_dir holds the checkpoint of another run, or another run writes to it.
        """
        params = check_call(key, params)
        per_datum = self.num_chains * len(self.ladder)
        # Where one datum's states are too many, they move in batches.
        batch_size = 0 if self.chunk_size is None or self.chunk_size >= per_datum else self.chunk_size
        problem, target = chains.read_problem(self.kernel, batch_size, model, params, data, model_kwargs, self.plate)
        proposal = Proposal.of(self.guide, self.guide_params)
        proposal = None if proposal is None else proposal.as_argument(target.model)
        num_data = target.latent_model.num_data
        rows, keys = problem.rows(target), jax.random.split(key, num_data)
        chunk = num_data if self.chunk_size is None else min(num_data, max(1, self.chunk_size // per_datum))
        # The last chunk is filled up with its last datum, so that it has the shape of the others.
        chunks = [np.minimum(np.arange(first, first + chunk), num_data - 1) for first in range(0, num_data, chunk)]
        results, num_steps = [], self.num_steps
        kept = RunCheckpoints(self.checkpoint_dir)
        kept.describe(self, target, rows, key=key, guide_params=self.guide_params)
        total = len(chunks) * (self.warmup + self.num_steps)
        with kept.held(), interrupts() as interrupted, tqdm(total=total, unit="step", disable=not self.progress) as bar:
            for number, indices in enumerate(chunks):
                at = partial(kept.at, number), partial(kept.keep, number)
                rows_at, keys_at = take_rows(rows, keys, indices)
                result, steps = self._run_chunk(problem, proposal, rows_at, keys_at, indices, bar, interrupted, *at)
                is_whole = steps == self.num_steps
                if is_whole or (steps and not results):
                    results.append(result)
                    num_steps = steps
                if interrupted or not is_whole:
                    break
        if not results:
            raise KeyboardInterrupt(
                f"no draws to return yet: chains were in warm-up, or at their first steps after it ({kept.way_on})"
            )
        done = min(num_data, chunk * len(results))
        unfinished, model = None, target.model
        if done < num_data or num_steps < self.num_steps:
            unfinished = f"{num_steps} of {self.num_steps} steps after warm-up, {done} of {num_data} data"
            warn_unfinished(unfinished, kept.way_on)
            model = target.model if done == num_data else first_data(target.model, np.arange(done))
        joined = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:done], *results)
        return self._posterior(model, num_steps, unfinished, *joined)

    def _run_chunk(
        self,
        problem: Problem,
        proposal: LatentModel | None,
        rows: tuple,
        keys: Array,
        indices: np.ndarray,
        bar: tqdm,
        interrupted: list[bool],
        at: Callable,
        keep: Callable,
    ) -> tuple[tuple | None, int]:
        """Latents, log-likelihoods and statistics of some of the data, on the host, and after how many steps.

        After Ctrl-C in warm-up there are none.
        """
        temperatures = jnp.asarray(self.ladder.temperatures, jnp.result_type(float))
        exact = len(self.ladder) > 1 and bool(self.ladder.temperatures[0] == 0)
        num_draws = self.num_steps // self.thin
        population, flaws = chains.start(
            problem, self.kernel, rows, keys, self.num_chains, len(self.ladder), num_draws, proposal
        )
        check_draws_are_inside(flaws, problem.target(self.kernel))
        source = "prior" if proposal is None else "guide"
        check_log_likelihood(np.asarray(flaws.invalid), indices, self.num_chains * len(self.ladder), source)
        course = Course(problem, self.kernel, rows, keys, temperatures, exact, self.swap_every, self.thin)

        population, done, _ = at(population)
        steps = 0
        for number, (first, last, then) in enumerate(self._stretches()):
            if number >= done and not interrupted:
                span = jnp.asarray(first), jnp.asarray(last), jnp.asarray(first < 0)
                population = then(chains.advance((course, *span), population))
                done = number + 1
                keep(population, done)
                if self.progress:
                    bar.set_postfix_str(self._progress(population, max(last, 0) // self.thin), refresh=False)
            if number < done:
                bar.update(last - first)
                steps = max(last, 0)
        keep(population, done, whole=True)
        num_draws = steps // self.thin
        if num_draws < MIN_DRAWS and steps < self.num_steps:
            return None, 0
        latents = chains.latents_along(problem, self.kernel, rows, population.positions[:, :, :num_draws])
        result = (
            latents,
            population.log_likelihood[:, :, :num_draws],
            population.step_size,
            population.acceptance,
            population.swaps,
            population.round_trips,
            population.divergences,
        )
        return jax.device_get(result), num_draws * self.thin

    def _stretches(self) -> Iterator[tuple[int, int, Callable]]:
        """From which step to which the chains go at once, and what is done then; steps of warm-up are negative."""
        size = -(-(self.warmup + self.num_steps) // _UPDATES)
        for first, last in [*warmup_windows(self.warmup), (self.warmup, self.warmup + self.num_steps)]:
            for begin in range(first, last, size):
                end = min(begin + size, last)
                then = _go_on
                if end == last <= self.warmup:
                    then = partial(chains.end_window if last < self.warmup else chains.end_warmup, self.kernel)
                yield begin - self.warmup, end - self.warmup, then

    def _progress(self, population: Population, num_draws: int) -> str:
        text = f"{len(self.ladder)} rungs, acceptance {float(population.acceptance[:, -1].mean()):.2f}"
        if len(self.ladder) > 1:
            text += f", swaps {float(population.swaps.mean()):.2f}"
        if num_draws == 0:
            return f"warm-up, {text}"
        at_one = np.asarray(population.log_likelihood)[:_SHOWN, :, :num_draws, -1]
        return f"{text}, ESS {chain_ess(at_one).min():.0f}"

    def _posterior(
        self,
        model: LatentModel,
        num_steps: int,
        unfinished: str | None,
        latents,
        log_likelihood,
        step_size,
        acceptance,
        swaps,
        round_trips,
        divergences,
    ) -> Posterior:
        num_data = len(log_likelihood)
        t = self.ladder.temperatures
        evidence = {}
        if t[0] == 0 and len(t) > 1:
            evidence = {
                "steppingstone": steppingstone(t, log_likelihood),
                "thermodynamic": thermodynamic(t, log_likelihood),
            }
        at_one = log_likelihood[..., -1].reshape(num_data, -1)
        impossible = np.all(at_one == -np.inf, axis=1)
        warn_if_impossible(impossible, "at every draw", model)
        elements = [z.reshape(num_data, self.num_chains, -1, math.prod(z.shape[2:])) for z in latents.values()]
        rung_ess = np.stack([chain_ess(log_likelihood[..., k]) for k in range(len(t))], 1)
        ess = np.min([rung_ess[:, -1], *(chain_ess(x[..., j]) for x in elements for j in range(x.shape[-1]))], axis=0)
        # One chain that never moved is one draw.
        stuck = np.all([np.ptp(x, axis=(1, 2)).max(-1) == 0 for x in elements if x.shape[-1]], axis=0)
        ess = np.where(impossible, 0.0, np.where(stuck, 1.0, ess))
        best = evidence.get("steppingstone")
        # Where the likelihood is zero is the way of a chain to the posterior, and no part of it.
        possible = at_one > -np.inf
        warn_if_outside(~possible & ~impossible[:, None])
        log_weights = np.where(possible | impossible[:, None], 0.0, -np.inf)
        if best is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                log_weights = log_weights + (best.log_evidence - np.log(possible.mean(1)))[:, None]
                log_weights = np.where(impossible[:, None], -np.inf, log_weights)
        with np.errstate(invalid="ignore"):
            mean = log_likelihood.mean((1, 2))
        by_rung = np.moveaxis(log_likelihood, -1, 1)
        # What is rare and likelier far from the prior should not be rare there, if chains find their way.
        lumps = has_two_lumps(by_rung.reshape(num_data, len(t), -1), rare_upper=True) & (t >= 0.5)
        # Of single chains, because slow ones lie apart without any lump.
        slow = rung_ess < _FEW
        lumps[slow] |= has_two_lumps(by_rung[slow]).any(-1)
        warn_if_in_lumps(lumps, np.broadcast_to(t, lumps.shape))
        posterior = Posterior(
            latents=latents,
            log_weights=log_weights,
            log_likelihood=at_one,
            log_evidence=None if best is None else best.log_evidence,
            log_evidence_std_error=None if best is None else best.std_error,
            ess=ess,
            observed=jax.device_get(observed_values(model)),
            plate=model.plate,
            num_chains=self.num_chains,
            evidence=evidence,
            divergences=divergences,
            unfinished=unfinished,
            latent_model=model,
            rungs=Rungs(
                temperatures=np.broadcast_to(t, (num_data, len(t))),
                acceptance=acceptance,
                step_size=step_size,
                ess=rung_ess,
                log_likelihood_mean=mean,
                log_likelihood_std=finite_std(log_likelihood, (1, 2)),
                swap_acceptance=swaps,
                round_trip_rate=round_trips / (num_steps * self.num_chains),
            ),
        )
        warn_if_chains_disagree(posterior, "chains")
        return posterior


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Langevin(ParallelTempering):
    """Independent Markov chains on the posterior of every datum: `ParallelTempering` with the one rung t = 1.

    Args:
        kernel: how chains move.
        num_steps: steps of each chain after warm-up.
        num_chains: independent chains per datum. Two or more give an R-hat.
        warmup: steps that adapt and are dropped; None for as many as `num_steps`.
        thin: every how many steps a draw is kept; it divides `num_steps`.
        chunk_size: chains (data x chains) that move at once, as in `ParallelTempering`.
        plate: name of the data plate, where the model has several.
        progress: whether to show a progress bar.
        guide: where chains start, as in `ParallelTempering`.
        guide_params: constrained values of the guide's parameter sites.
        checkpoint_dir: directory for checkpoints, as in `ParallelTempering`.

    Raises:
        ValueError: for numbers out of range, and for guide_params without a guide.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro
        import numpyro.distributions as dist
        from numpyro_kaem import MALA, Langevin


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
                numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


        x = jnp.array([[0.5, -1.0], [1.0, 2.0], [0.0, 0.0]])
        sampler = Langevin(MALA(), num_steps=500, num_chains=4, progress=False)
        posterior = sampler.run(jax.random.key(0), model, {}, x)
        assert jnp.allclose(posterior.latents["z"].mean(1), 0.8 * x, atol=0.1)
        assert posterior.rhat.max() < 1.05
        ```
    """

    ladder: Ladder = field(default=Ladder([1.0]), repr=False)
    num_chains: int = 4

    def __init__(
        self,
        kernel: Kernel | None = None,
        num_steps: int = 1000,
        num_chains: int = 4,
        warmup: int | None = None,
        *,
        thin: int = 1,
        chunk_size: int | None = None,
        plate: str | None = None,
        progress: bool = True,
        guide: Callable | None = None,
        guide_params: dict[str, Any] | None = None,
        checkpoint_dir: str | os.PathLike | None = None,
    ):
        super().__init__(
            Ladder([1.0]),
            kernel,
            num_steps,
            num_chains=num_chains,
            warmup=warmup,
            thin=thin,
            chunk_size=chunk_size,
            plate=plate,
            progress=progress,
            guide=guide,
            guide_params=guide_params,
            checkpoint_dir=checkpoint_dir,
        )


def _go_on(population: Population) -> Population:
    return population


def warmup_windows(warmup: int) -> Iterator[tuple[int, int]]:
    """Warm-up windows: the preconditioner is renewed at their ends, and the last is for the step size alone."""
    ends = [0, *(round(warmup * share) for share in (0.1, 0.3, 0.7)), warmup]
    yield from ((first, last) for first, last in pairwise(ends) if last > first)
