"""Markov chains at one temperature and over a ladder of them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.posterior import chains, diagnostics
from numpyro_kaem.posterior.chains import ChainState, Settings
from numpyro_kaem.posterior.convergence import MIN_DRAWS, has_two_lumps
from numpyro_kaem.posterior.evidence import chain_ess, finite_std, steppingstone, thermodynamic
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.ladder import Ladder, as_ladder
from numpyro_kaem.posterior.proposal import check_guide, read_guide
from numpyro_kaem.posterior.result import Posterior, Rungs
from numpyro_kaem.posterior.sampler import Chunk, ChunkedSampler
from numpyro_kaem.posterior.target import Target

# The progress bar moves this often in a run, and shows the lowest ESS of so many data.
_UPDATES, _SHOWN = 50, 64
# Independent draws of a rung's log-likelihoods that are few, where these gather in two lumps.
_FEW = 400


class Recorded(NamedTuple):
    """What chains of B data have told, on the host: latents at the highest rung, and else as in `ChainState`."""

    latents: dict[str, np.ndarray]  # (B, C S, ...)
    log_likelihood: Float[np.ndarray, "B C S K"]
    step_size: np.ndarray
    acceptance: np.ndarray
    swaps: np.ndarray
    round_trips: np.ndarray
    divergences: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class ParallelTempering(ChunkedSampler):
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

    The draws are those at t = 1, chain by chain, with equal weights (zero where the likelihood is). With the rung t = 0
    in the ladder, `log_evidence` is the steppingstone estimate, and `evidence` has that of thermodynamic integration
    too; otherwise `log_evidence` is None.

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
        super().__post_init__()
        self._set(ladder=as_ladder(self.ladder))
        self._set_counts(num_steps=1, swap_every=1, num_chains=1, warmup=0, thin=1)
        self._set(warmup=self.num_steps if self.warmup is None else self.warmup)
        if self.warmup == 0 and self.kernel.adapts_step_size:
            raise ValueError(
                "warmup must be at least 1 for a kernel whose step size is to be found: give some steps of warm-up, or "
                f"{type(self.kernel).__name__} a step_size"
            )
        if self.num_steps % self.thin:
            raise ValueError(f"thin must divide num_steps, got thin {self.thin} and num_steps {self.num_steps}")
        check_guide(self.guide, self.guide_params)

    @property
    def has_evidence(self) -> bool:
        """Whether the ladder begins at t = 0, where the evidence is known, and goes on from there."""
        t = as_ladder(self.ladder).temperatures
        return len(t) > 1 and bool(t[0] == 0)

    @property
    def _states_at_once(self) -> int:
        return self.num_chains * len(self.ladder)

    def _settings(self, target: Target, batch_size: int) -> tuple[Settings, LatentModel | None]:
        num_draws = self.num_steps // self.thin
        temperatures = jnp.asarray(as_ladder(self.ladder).temperatures, jnp.result_type(float))
        settings = Settings(
            self.kernel, temperatures, self.has_evidence, self.num_chains, num_draws, self.swap_every, self.thin
        )
        return settings, read_guide(self.guide, self.guide_params, target.model)

    def _bar(self, num_chunks: int) -> tqdm:
        return tqdm(total=num_chunks * (self.warmup + self.num_steps), unit="step", disable=not self.progress)

    def _run_chunk(self, chunk: Chunk) -> tuple[Recorded | None, bool]:
        settings, encoder = chunk.settings
        given = chunk.problem, settings, chunk.rows, chunk.keys
        state, flaws = chains.start(*given, encoder)
        diagnostics.check_draws_are_inside(flaws, chunk.target)
        source = "prior" if encoder is None else "guide"
        diagnostics.check_log_likelihood(np.asarray(flaws.invalid), chunk.indices, self._states_at_once, source)
        state, done, _ = chunk.at(state)
        steps = 0
        for number, (first, last, end) in enumerate(self._stretches()):
            if number >= done and not chunk.interrupted:
                span = jnp.asarray(first), jnp.asarray(last), jnp.asarray(first < 0)
                state = chains.advance(*given, span, state)
                if end is not None:
                    state = end(self.kernel, state)
                done = number + 1
                chunk.keep(state, done)
                if self.progress:
                    chunk.bar.set_postfix_str(self._progress(state, max(last, 0) // self.thin), refresh=False)
            if number < done:
                chunk.bar.update(last - first)
                steps = max(last, 0)
        chunk.keep(state, done, whole=True)
        num_draws = steps // self.thin
        is_whole = steps == self.num_steps
        if num_draws < MIN_DRAWS and not is_whole:
            return None, False
        latents = chains.latents_along(chunk.problem, self.kernel, chunk.rows, state.positions[:, :, :num_draws])
        statistics = (getattr(state, name) for name in Recorded._fields[2:])
        recorded = Recorded(latents, state.log_likelihood[:, :, :num_draws], *statistics)
        return jax.device_get(recorded), is_whole

    def _stretches(self) -> Iterator[tuple[int, int, Callable | None]]:
        """From which step to which the chains go at once, and what is done then; steps of warm-up are negative."""
        whole = self.warmup + self.num_steps
        size = -(-whole // _UPDATES)
        # The preconditioner is renewed where the first windows of warm-up end; the last is for the step size alone.
        ends = [0, *(round(self.warmup * share) for share in (0.1, 0.3, 0.7)), self.warmup, whole]
        for first, last in pairwise(ends):
            for begin in range(first, last, size):
                end = min(begin + size, last)
                then = None
                if end == last <= self.warmup:
                    then = chains.end_window if last < self.warmup else chains.end_warmup
                yield begin - self.warmup, end - self.warmup, then

    def _progress(self, state: ChainState, num_draws: int) -> str:
        text = f"{len(self.ladder)} rungs, acceptance {float(state.acceptance[:, -1].mean()):.2f}"
        if len(self.ladder) > 1:
            text += f", swaps {float(state.swaps.mean()):.2f}"
        if num_draws == 0:
            return f"warm-up, {text}"
        at_one = np.asarray(state.log_likelihood)[:_SHOWN, :, :num_draws, -1]
        return f"{text}, ESS {chain_ess(at_one).min():.0f}"

    def _num_steps(self, recorded: Recorded) -> int:
        """Steps after warm-up that the chains have made."""
        return recorded.log_likelihood.shape[2] * self.thin

    def _unfinished(self, results: Recorded, indices: np.ndarray, num_data: int) -> str:
        done = f"{self._num_steps(results)} of {self.num_steps} steps after warm-up"
        return f"{done}, {len(indices)} of {num_data} data"

    def _posterior(self, latent_model: LatentModel, results: Recorded, **common: Any) -> Posterior:
        latents, log_likelihood = results.latents, results.log_likelihood
        num_data = len(log_likelihood)
        t = as_ladder(self.ladder).temperatures
        evidence = {}
        if self.has_evidence:
            evidence = {
                "steppingstone": steppingstone(t, log_likelihood),
                "thermodynamic": thermodynamic(t, log_likelihood),
            }
        at_one = log_likelihood[..., -1].reshape(num_data, -1)
        impossible = np.all(at_one == -np.inf, axis=1)
        diagnostics.warn_if_impossible(impossible, "at every draw", latent_model)
        elements = [z.reshape(num_data, self.num_chains, -1, math.prod(z.shape[2:])) for z in latents.values()]
        rung_ess = np.stack([chain_ess(log_likelihood[..., k]) for k in range(len(t))], 1)
        ess = np.min([rung_ess[:, -1], *(chain_ess(x[..., j]) for x in elements for j in range(x.shape[-1]))], axis=0)
        # One chain that never moved is one draw.
        stuck = np.all([np.ptp(x, axis=(1, 2)).max(-1) == 0 for x in elements if x.shape[-1]], axis=0)
        ess = np.where(impossible, 0.0, np.where(stuck, 1.0, ess))
        # Where the likelihood is zero is the way of a chain to the posterior, and no part of it.
        possible = at_one > -np.inf
        counts = possible | impossible[:, None]
        diagnostics.warn_if_outside(~counts)
        best, log_weight = evidence.get("steppingstone"), np.zeros(num_data)
        with np.errstate(divide="ignore", invalid="ignore"):
            if best is not None:
                log_weight = np.where(impossible, -np.inf, best.log_evidence - np.log(possible.mean(1)))
            mean = log_likelihood.mean((1, 2))
        by_rung = np.moveaxis(log_likelihood, -1, 1)
        # What is rare and likelier far from the prior should not be rare there, if chains find their way.
        lumps = has_two_lumps(by_rung.reshape(num_data, len(t), -1), rare_upper=True) & (t >= 0.5)
        # Of single chains, because slow ones lie apart without any lump.
        slow = rung_ess < _FEW
        lumps[slow] |= has_two_lumps(by_rung[slow]).any(-1)
        diagnostics.warn_if_in_lumps(lumps, np.broadcast_to(t, lumps.shape))
        posterior = Posterior(
            latents=latents,
            log_weights=np.where(counts, log_weight[:, None], -np.inf),
            log_likelihood=at_one,
            log_evidence=None if best is None else best.log_evidence,
            log_evidence_std_error=None if best is None else best.std_error,
            ess=ess,
            num_chains=self.num_chains,
            evidence=evidence,
            divergences=results.divergences,
            rungs=Rungs(
                temperatures=np.broadcast_to(t, (num_data, len(t))),
                acceptance=results.acceptance,
                step_size=results.step_size,
                ess=rung_ess,
                log_likelihood_mean=mean,
                log_likelihood_std=finite_std(log_likelihood, (1, 2)),
                swap_acceptance=results.swaps,
                round_trip_rate=results.round_trips / (self._num_steps(results) * self.num_chains),
            ),
            latent_model=latent_model,
            **common,
        )
        diagnostics.warn_if_chains_disagree(posterior, "chains")
        return posterior


@dataclass(frozen=True, eq=False, repr=False)
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

    ladder: Ladder | Sequence[float] = field(default=Ladder([1.0]), init=False, repr=False)
    swap_every: int = field(default=1, init=False, repr=False)
    num_chains: int = 4
    warmup: int | None = None
