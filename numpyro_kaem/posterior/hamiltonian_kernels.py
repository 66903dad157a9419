"""Kernels that follow Hamiltonian dynamics, by BlackJAX."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpyro

from numpyro_kaem.checks import check_count
from numpyro_kaem.posterior.kernel import Kernel, Move, choose, preconditioned


class _Hamiltonian(Kernel):
    """What `HMC` and `NUTS` share. Abstract."""

    def _guess(self, dim: int) -> float:
        return 0.7 * dim**-0.25

    def _follow(self, kernel: Callable, length: int, key, point, tuning, evaluate) -> Move:
        """A step of one of BlackJAX's kernels along a path of a length, as the kernel counts it."""
        from blackjax.mcmc.hmc import HMCState

        start, log_density = preconditioned(point, tuning, evaluate)
        state, mass = HMCState(*start), jnp.ones_like(point.position)
        new, info = kernel(key, state, log_density, tuning.step_size, mass, length)
        moved = jnp.any(new.position != state.position)
        return Move(
            choose(moved, evaluate(new.position * tuning.scale), point),
            jnp.where(jnp.isnan(info.acceptance_rate), 0.0, info.acceptance_rate),
            info.is_divergent,
        )


def _told_from_numpyros(cls: type[Kernel]) -> type[Kernel]:
    """Let a kernel's constructor say, where it is called as NumPyro's kernel of the same name, which is which."""
    name, init = cls.__name__, cls.__init__
    ours, theirs = (inspect.signature(f).parameters.keys() for f in (init, getattr(numpyro.infer, name)))

    @functools.wraps(init)
    def __init__(self, *args, **settings):
        foreign = [*map(repr, args), *(f"{key}={settings[key]!r}" for key in settings if key in theirs - ours)]
        if foreign:
            raise TypeError(
                f"this {name} is the kernel of numpyro_kaem for its samplers, and takes no {', '.join(foreign)}: for "
                f"MCMC use numpyro.infer.{name}; in Langevin(kernels.{name}()) and other samplers give it its own "
                f"keywords, see help(numpyro_kaem.kernels.{name})"
            )
        init(self, **settings)

    cls.__init__ = __init__  # type: ignore[method-assign]  # of a class, as dataclasses themselves do
    return cls


@_told_from_numpyros
@dataclass(frozen=True, kw_only=True)
class HMC(_Hamiltonian):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, by BlackJAX.

    Its best acceptance rate is 0.651. A path of fixed length leads coordinates whose period it hits back to where they
    were: each step of the kernel draws its step size uniformly within a fifth of the one it is given.

    Args:
        step_size: of the leapfrog integrator; None to adapt it.
        num_integration_steps: leapfrog steps per step of the kernel, each a gradient.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    Raises:
        TypeError: for a model and other arguments of NumPyro's kernel of this name, which is another one.

    References:
        A. Beskos et al., Optimal tuning of the hybrid Monte Carlo algorithm, Bernoulli 19(5A), 2013;
        R. M. Neal, MCMC using Hamiltonian dynamics, Handbook of Markov Chain Monte Carlo, 2011.

    Example:
        ```python
        from numpyro_kaem import Langevin, kernels

        sampler = Langevin(kernels.HMC(num_integration_steps=10), num_steps=100, num_chains=4)
        ```
    """

    num_integration_steps: int = 8
    target_acceptance: ClassVar[float | None] = 0.651

    def __post_init__(self):
        super().__post_init__()
        check_count("num_integration_steps", self.num_integration_steps, 1)

    def _step(self, key, point, tuning, evaluate) -> Move:
        from blackjax.mcmc import hmc

        key, key_size = jax.random.split(key)
        jitter = jax.random.uniform(key_size, dtype=tuning.scale.dtype, minval=0.8, maxval=1.2)
        tuning = tuning._replace(step_size=tuning.step_size * jitter)
        return self._follow(hmc.build_kernel(), self.num_integration_steps, key, point, tuning, evaluate)


@_told_from_numpyros
@dataclass(frozen=True, kw_only=True)
class NUTS(_Hamiltonian):
    """No-U-turn sampler, by BlackJAX: Hamiltonian Monte Carlo that chooses its own path lengths.

    In a population all chains wait for the one with the longest path. The target acceptance rate is 0.8.

    Args:
        step_size: of the leapfrog integrator; None to adapt it.
        max_num_doublings: a path has at most 2 to this power leapfrog steps.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    Raises:
        TypeError: for a model and other arguments of NumPyro's kernel of this name, which is another one.

    References:
        M. D. Hoffman and A. Gelman, The No-U-Turn Sampler, Journal of Machine Learning Research 15(47), 2014.

    Example:
        ```python
        from numpyro_kaem import Langevin, kernels

        sampler = Langevin(kernels.NUTS(max_num_doublings=6), num_steps=100, num_chains=4)
        ```
    """

    max_num_doublings: int = 8
    target_acceptance: ClassVar[float | None] = 0.8

    def __post_init__(self):
        super().__post_init__()
        check_count("max_num_doublings", self.max_num_doublings, 1)

    def _step(self, key, point, tuning, evaluate) -> Move:
        from blackjax.mcmc import nuts

        return self._follow(nuts.build_kernel(), self.max_num_doublings, key, point, tuning, evaluate)
