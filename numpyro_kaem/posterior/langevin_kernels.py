"""Kernels that make one step along the gradient: unadjusted and Metropolis-adjusted Langevin, Barker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_kaem.posterior.kernel import Kernel, Move, ProposalKernel, Tuning, accept, choose, preconditioned
from numpyro_kaem.posterior.target import Point

# Minus the logarithm of the acceptance probability of a step that is the beginning of an explosion.
_EXPLODING = 100.0


class _Langevin(ProposalKernel):
    """What `ULA` and `MALA` share: an Euler step of the Langevin diffusion. Abstract."""

    def _propose(self, key, point, tuning) -> Array:
        temperature, step_size, scale = tuning
        noise = jax.random.normal(key, point.position.shape, point.position.dtype)
        drift = point.gradient(temperature) * scale
        return (point.position / scale + step_size * drift + jnp.sqrt(2 * step_size) * noise) * scale


@dataclass(frozen=True, kw_only=True)
class ULA(_Langevin):
    r"""Unadjusted Langevin algorithm, the kernel of the KAEM paper.

    $$v' = v + h \nabla \log p_t(v) + \sqrt{2 h}\, \xi, \qquad \xi \sim N(0, I)$$

    There is no Metropolis test, so that draws come from a distribution that is off by a bias of the order of h. On a
    normal target of standard deviation s the variance is $s^2 / (1 - h / (2 s^2))$. A proposal of likelihood zero is
    refused, and so is one that `MALA` would accept with a probability below $e^{-100}$: from there on chains explode,
    and their step size is too large. Left to adaptation, the step size is the one at which `MALA` would accept 0.9 of
    its proposals.

    Args:
        step_size: h; None to adapt it.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    References:
        G. O. Roberts and R. L. Tweedie, Exponential convergence of Langevin distributions and their discrete
        approximations, Bernoulli 2(4), 1996.

    Example:
        ```python
        from numpyro_kaem import ULA, Langevin

        sampler = Langevin(ULA(step_size=0.01), num_steps=20)
        ```
    """

    target_acceptance: ClassVar[float | None] = 0.9

    def _decide(self, key, point, proposal, tuning) -> Move:
        log_ratio = _langevin_log_ratio(point, proposal, tuning)
        acceptance = jnp.exp(jnp.minimum(log_ratio, 0.0))
        # NaN is not above.
        possible = jnp.isfinite(proposal.log_density(tuning.temperature)) & (log_ratio > -_EXPLODING)
        return Move(choose(possible, proposal, point), jnp.where(possible, acceptance, 0.0), ~possible)


@dataclass(frozen=True, kw_only=True)
class MALA(_Langevin):
    r"""Metropolis-adjusted Langevin algorithm, by BlackJAX's acceptance rule.

    The proposal is the step of `ULA`, accepted with probability
    $\min(1, p_t(v') q(v \mid v') / (p_t(v) q(v' \mid v)))$, so that p_t is invariant. Its best acceptance rate is
    0.574. The log-prior, the log-likelihood and both gradients travel with the chain: a step evaluates the model once,
    at the proposal, and a swap of temperatures not at all.

    Args:
        step_size: h; None to adapt it.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    References:
        G. O. Roberts and J. S. Rosenthal, Optimal scaling of discrete approximations to Langevin diffusions, Journal of
        the Royal Statistical Society B 60(1), 1998.

    Example:
        ```python
        from numpyro_kaem import MALA, Langevin

        sampler = Langevin(MALA(), num_steps=200, num_chains=4)
        ```
    """

    def _propose(self, key, point, tuning) -> Array:
        return super()._propose(jax.random.split(key)[0], point, tuning)

    def _decide(self, key, point, proposal, tuning) -> Move:
        log_ratio = _langevin_log_ratio(point, proposal, tuning)
        return accept(jax.random.split(key)[1], log_ratio, point, proposal)


def _langevin_log_ratio(point: Point, proposal: Point, tuning: Tuning) -> Array:
    """Log of p_t(v') q(v | v') / (p_t(v) q(v' | v)), of a Langevin step from v to v'."""
    temperature, step_size, scale = tuning

    def log_way_back(start: Point, end: Point) -> Array:
        residual = (start.position - end.position) / scale - step_size * end.gradient(temperature) * scale
        return end.log_density(temperature) - jnp.sum(residual**2) / (4.0 * step_size)

    return log_way_back(point, proposal) - log_way_back(proposal, point)


@dataclass(frozen=True, kw_only=True)
class Barker(Kernel):
    """Barker's proposal, by BlackJAX: as fast as `MALA` and less sensitive to its step size.

    Each coordinate's step is drawn from a normal distribution and given the sign that the gradient favours. Its best
    acceptance rate is 0.4.

    Args:
        step_size: standard deviation of the proposal; None to adapt it.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    References:
        S. Livingstone and G. Zanella, The Barker proposal: combining robustness and efficiency in gradient-based MCMC,
        Journal of the Royal Statistical Society B 84(2), 2022.

    Example:
        ```python
        from numpyro_kaem import Barker, Langevin

        sampler = Langevin(Barker(), num_steps=200, num_chains=4)
        ```
    """

    target_acceptance: ClassVar[float | None] = 0.4

    def _guess(self, dim: int) -> float:
        return 1.5 * dim ** (-1 / 6)

    def _step(self, key, point, tuning, evaluate) -> Move:
        from blackjax.mcmc import barker

        start, log_density = preconditioned(point, tuning, evaluate)
        _, info = barker.build_kernel()(key, barker.BarkerState(*start), log_density, tuning.step_size)
        # The same expression as inside of BlackJAX's kernel, so that XLA evaluates the model once.
        proposal = evaluate(info.proposal.position * tuning.scale)
        divergent = ~jnp.isfinite(proposal.log_density(tuning.temperature))
        acceptance = jnp.where(jnp.isnan(info.acceptance_rate), 0.0, info.acceptance_rate)
        return Move(choose(info.is_accepted, proposal, point), acceptance, divergent)
