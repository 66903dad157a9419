"""Kernels for a standard normal prior, in the coordinates eps with z = F^-1(Phi(eps))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_kaem.posterior.kernel import Kernel, Move, ProposalKernel, accept, choose, with_gradient
from numpyro_kaem.posterior.target import Point, tempered


@dataclass(frozen=True, kw_only=True)
class PCNL(ProposalKernel):
    r"""Preconditioned Crank-Nicolson Langevin, on a whitened prior.

    With $\Phi = -t \log p(x \mid \epsilon)$ and $\delta$ the step size, the proposal is

    $$\epsilon' = \frac{(2 - \delta)\, \epsilon - 2 \delta \nabla \Phi(\epsilon) + \sqrt{8 \delta}\, \xi}{2 + \delta},$$

    accepted with probability $\min(1, \exp(\rho(\epsilon, \epsilon') - \rho(\epsilon', \epsilon)))$,
    $\rho(u, v) = \Phi(u) + \tfrac12 \langle v - u, \nabla \Phi(u) \rangle + \tfrac{\delta}{4} \langle u + v,
    \nabla \Phi(u) \rangle + \tfrac{\delta}{4} \lVert \nabla \Phi(u) \rVert^2$. Without a likelihood every proposal is
    accepted, in any dimension. BlackJAX has no such kernel.

    Args:
        step_size: delta, in (0, 2]; None to adapt it. At 2 the proposal forgets where it was.
        whiten: must be True.
        precondition: must be False.

    References:
        S. L. Cotter et al., MCMC methods for functions: modifying old algorithms to make them faster, Statistical
        Science 28(3), 2013; for latent-variable generators, arXiv 2408.14325.

    Example:
        ```python
        from numpyro_kaem import PCNL, Langevin

        sampler = Langevin(PCNL(), num_steps=200, num_chains=4)
        ```
    """

    whiten: bool = True
    precondition: bool = False
    step_limit: ClassVar[float | None] = 2.0
    needs_whitening: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.step_size is not None and self.step_size > self.step_limit:
            raise ValueError(f"step_size of PCNL must be at most 2, got {self.step_size}")

    def _guess(self, dim: int) -> float:
        return min(1.0, super()._guess(dim))

    def _propose(self, key, point, tuning) -> Array:
        delta = tuning.step_size
        noise = jax.random.normal(jax.random.split(key)[0], point.position.shape, point.position.dtype)
        mean = (2 - delta) * point.position + 2 * delta * _tempered_gradient(point, tuning.temperature)
        return (mean + jnp.sqrt(8 * delta) * noise) / (2 + delta)

    def _decide(self, key, point, proposal, tuning) -> Move:
        temperature, delta, _ = tuning

        def rho(start: Point, end: Point) -> Array:
            u, v, g = start.position, end.position, -_tempered_gradient(start, temperature)
            potential = -tempered(start.log_likelihood, temperature)
            return potential + 0.5 * jnp.dot(v - u, g) + delta / 4 * (jnp.dot(u + v, g) + jnp.dot(g, g))

        return accept(jax.random.split(key)[1], rho(point, proposal) - rho(proposal, point), point, proposal)


@dataclass(frozen=True, kw_only=True)
class EllipticalSlice(Kernel):
    """Elliptical slice sampling on a whitened prior, by BlackJAX: no gradients, no step size, no rejections.

    A step tries points on an ellipse through the current one until the likelihood is large enough; in a population all
    chains wait for the one that tries longest.

    Args:
        step_size: must be None.
        whiten: must be True.
        precondition: must be False.

    References:
        I. Murray, R. P. Adams and D. J. C. MacKay, Elliptical slice sampling, AISTATS 2010.

    Example:
        ```python
        from numpyro_kaem import EllipticalSlice, Langevin

        sampler = Langevin(EllipticalSlice(), num_steps=200, num_chains=4)
        ```
    """

    whiten: bool = True
    precondition: bool = False
    target_acceptance: ClassVar[float | None] = None
    needs_gradients: ClassVar[bool] = False
    needs_whitening: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.step_size is not None:
            raise ValueError(f"EllipticalSlice has no step size: step_size must be None, got {self.step_size}")

    def _guess(self, dim: int) -> float:
        return 1.0

    def _step(self, key, point, tuning, evaluate) -> Move:
        from blackjax.mcmc import elliptical_slice

        temperature = tuning.temperature

        # A chain that starts where the likelihood is zero takes the first point that is tried; one that does not never
        # goes there. Infinities would leave BlackJAX's loop without an end.
        def log_likelihood(position):
            return jnp.maximum(tempered(evaluate(position).log_likelihood, temperature), -1e30)

        kernel = elliptical_slice.build_kernel(jnp.ones_like(point.position), jnp.zeros_like(point.position))
        current = jnp.maximum(tempered(point.log_likelihood, temperature), -2e30)
        state = elliptical_slice.EllipSliceState(point.position, current)
        new, _ = kernel(key, state, log_likelihood)
        return Move(evaluate(new.position), jnp.ones(()), jnp.zeros((), bool))


@dataclass(frozen=True, kw_only=True)
class LatentGaussian(Kernel):
    """Marginal auxiliary gradient kernel for latent Gaussian models, on a whitened prior, by BlackJAX.

    Its best acceptance rate is about 0.5.

    Args:
        step_size: delta of the kernel; None to adapt it.
        whiten: must be True.
        precondition: must be False.

    References:
        M. K. Titsias and O. Papaspiliopoulos, Auxiliary gradient-based sampling algorithms, Journal of the Royal
        Statistical Society B 80(4), 2018.

    Example:
        ```python
        from numpyro_kaem import LatentGaussian, Langevin

        sampler = Langevin(LatentGaussian(), num_steps=200, num_chains=4)
        ```
    """

    whiten: bool = True
    precondition: bool = False
    target_acceptance: ClassVar[float | None] = 0.5
    needs_whitening: ClassVar[bool] = True

    def _step(self, key, point, tuning, evaluate) -> Move:
        from blackjax.mcmc import marginal_latent_gaussian as latent_gaussian

        def split(point: Point) -> tuple[Array, Array]:
            at = tuning.temperature
            return tempered(point.log_likelihood, at), _tempered_gradient(point, at)

        ones = jnp.ones_like(point.position)
        kernel = latent_gaussian.build_kernel(latent_gaussian.CovarianceSVD(_Identity(), ones, _Identity()))
        value, gradient = split(point)
        state = latent_gaussian.MarginalState(point.position, value, gradient, point.position, gradient)
        _, info = kernel(key, state, with_gradient(lambda v: split(evaluate(v))), tuning.step_size)
        proposal = evaluate(info.proposal.position)
        acceptance = jnp.where(jnp.isnan(info.acceptance_rate), 0.0, info.acceptance_rate)
        divergent = ~jnp.isfinite(proposal.log_likelihood)
        return Move(choose(info.is_accepted, proposal, point), acceptance, divergent)


def _tempered_gradient(point: Point, temperature: Array) -> Array:
    """Gradient of t log p(x | eps), zero where it is not finite."""
    gradient = tempered(point.likelihood_gradient, temperature)
    return jnp.where(jnp.isfinite(gradient), gradient, 0.0)


class _Identity:
    """A rotation that does nothing, where BlackJAX's kernel multiplies by one."""

    def __matmul__(self, other: Array) -> Array:
        return other
