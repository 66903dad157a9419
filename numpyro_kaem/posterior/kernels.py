"""Markov kernels on points whose log-prior, log-likelihood and gradients are kept apart.

A kernel moves in coordinates rescaled by a diagonal preconditioner, v = position / scale, and leaves invariant
p_t(z) ~ p(z) p(x | z)^t at the temperature t that it is given (`ULA` up to its discretisation error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from numpyro_kaem.checks import check_count, check_positive
from numpyro_kaem.posterior.target import Point, tempered

# BlackJAX makes arrays when it is imported, and so would fix JAX's platform before its user can: the methods below
# import it when they are traced.

Evaluate = Callable[[Array], Point]


class Move(NamedTuple):
    """Where one step of a kernel led.

    Attributes:
        point: the new point.
        acceptance: probability with which the proposal was accepted.
        divergent: whether the proposal's energy was far off or not finite.
    """

    point: Point
    acceptance: Float[Array, ""]
    divergent: Bool[Array, ""]


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """What all kernels have in common.

    Args:
        step_size: step size in preconditioned coordinates, kept as it is; None to adapt it, during warm-up, to the
            kernel's best acceptance rate (per rung and datum).
        whiten: move in the coordinates eps with z = F^-1(Phi(eps)), in which the prior is standard normal, instead of
            unconstrained coordinates. Every latent needs a distribution with an icdf.
        precondition: rescale each coordinate by its standard deviation during warm-up.

    Attributes:
        target_acceptance: acceptance rate to which step sizes adapt; None for kernels without a step size.
        needs_gradients: whether points must carry gradients.
        needs_whitening: whether the kernel works on a standard normal prior only.

    Raises:
        ValueError: for a step size that is not positive, or `whiten=False` where the kernel needs it.
    """

    step_size: float | None = None
    whiten: bool = False
    precondition: bool = True

    target_acceptance: ClassVar[float | None] = 0.574
    needs_gradients: ClassVar[bool] = True
    needs_whitening: ClassVar[bool] = False

    def __post_init__(self):
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if self.needs_whitening and not self.whiten:
            raise ValueError(f"{type(self).__name__} needs a standard normal prior: whiten must be True")
        if self.needs_whitening and self.precondition:
            raise ValueError(
                f"{type(self).__name__} is preconditioned by the prior's own covariance: precondition must be False"
            )

    @property
    def adapts_step_size(self) -> bool:
        """Whether the step size is found during warm-up."""
        return self.step_size is None and self.target_acceptance is not None

    def initial_step_size(self, dim: int) -> float:
        """Step size at which adaptation begins: that which suits a standard normal target."""
        return self.step_size or self._guess(dim)

    def largest_step_size(self, dim: int) -> float:
        """Where adaptation ends that would let the step size grow for ever, as on a flat likelihood."""
        return 1e3 * self._guess(dim)

    def _guess(self, dim: int) -> float:
        return 0.5 * 1.65**2 * dim ** (-1 / 3)

    def step(
        self, key: PRNGKeyArray, point: Point, temperature: Array, step_size: Array, scale: Array, evaluate: Evaluate
    ) -> Move:
        """One step from a point.

        Args:
            key: random key.
            point: where the chain is.
            temperature: t, between 0 and 1.
            step_size: a positive number.
            scale: preconditioner, as long as a position.
            evaluate: gives the point at a position.
        """
        raise NotImplementedError


class _Langevin(Kernel):
    """What `ULA` and `MALA` share: an Euler step of the Langevin diffusion, by BlackJAX's integrator."""

    def _propose(self, key, point, temperature, step_size, scale, evaluate) -> Point:
        from blackjax.mcmc.diffusions import DiffusionState, overdamped_langevin

        def evaluate_scaled(v):
            proposal = evaluate(v * scale)
            return proposal, proposal.gradient(temperature) * scale

        state = DiffusionState(point.position / scale, point, point.gradient(temperature) * scale)
        # The integrator hands the log-density on as it gets it: here it is the whole point.
        return overdamped_langevin(evaluate_scaled)(key, state, step_size).logdensity


@dataclass(frozen=True, kw_only=True)
class ULA(_Langevin):
    r"""Unadjusted Langevin algorithm, the kernel of the KAEM paper.

    $$v' = v + h \nabla \log p_t(v) + \sqrt{2 h}\, \xi, \qquad \xi \sim N(0, I)$$

    There is no Metropolis test, so that draws come from a distribution that is off by a bias of the order of h. On a
    normal target of standard deviation s the variance is $s^2 / (1 - h / (2 s^2))$. A proposal of likelihood zero is
    refused. Left to adaptation, the step size is the one at which `MALA` would accept 0.9 of its proposals.

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

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        proposal = self._propose(key, point, temperature, step_size, scale, evaluate)
        log_ratio = _langevin_log_ratio(point, proposal, temperature, step_size, scale)
        acceptance = jnp.exp(jnp.minimum(log_ratio, 0.0))
        density = proposal.log_density(temperature)
        possible = jnp.isfinite(density)
        return Move(_choose(possible, proposal, point), jnp.where(possible, acceptance, 0.0), ~possible)


@dataclass(frozen=True, kw_only=True)
class MALA(_Langevin):
    r"""Metropolis-adjusted Langevin algorithm, of BlackJAX's integrator and acceptance rule.

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

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        key_move, key_accept = jax.random.split(key)
        proposal = self._propose(key_move, point, temperature, step_size, scale, evaluate)
        log_ratio = _langevin_log_ratio(point, proposal, temperature, step_size, scale)
        return _accept(key_accept, log_ratio, point, proposal)


def _langevin_log_ratio(point, proposal, temperature, step_size, scale) -> Array:
    """Log of the Metropolis-Hastings ratio of a Langevin step."""
    from blackjax.mcmc.proposal import compute_asymmetric_acceptance_ratio

    def transition_energy(start: Point, end: Point, step_size: Array) -> Array:
        residual = (start.position - end.position) / scale - step_size * end.gradient(temperature) * scale
        return -end.log_density(temperature) + jnp.sum(residual**2) / (4.0 * step_size)

    return compute_asymmetric_acceptance_ratio(transition_energy)(point, proposal, step_size=step_size)


def _accept(key, log_ratio, point, proposal) -> Move:
    """Metropolis's choice between two points, by BlackJAX."""
    from blackjax.mcmc.proposal import static_binomial_sampling

    divergent = ~jnp.isfinite(proposal.log_likelihood + proposal.log_prior)
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accepted, (_, acceptance, _) = static_binomial_sampling(key, log_ratio, point, proposal)
    return Move(accepted, acceptance, divergent)


def _choose(condition, yes, no):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


@dataclass(frozen=True, kw_only=True)
class PCNL(Kernel):
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
        Science 28(3), 2013.

    Example:
        ```python
        from numpyro_kaem import PCNL, Langevin

        sampler = Langevin(PCNL(), num_steps=200, num_chains=4)
        ```
    """

    whiten: bool = True
    precondition: bool = False
    needs_whitening: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        if self.step_size is not None and self.step_size > 2:
            raise ValueError(f"step_size of PCNL must be at most 2, got {self.step_size}")

    def _guess(self, dim: int) -> float:
        return min(1.0, super()._guess(dim))

    def largest_step_size(self, dim: int) -> float:
        return 2.0

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        key_move, key_accept = jax.random.split(key)
        delta = step_size

        def slope(point: Point) -> Array:
            gradient = tempered(point.likelihood_gradient, temperature)
            return -jnp.where(jnp.isfinite(gradient), gradient, 0.0)

        def rho(start: Point, end: Point) -> Array:
            u, v, g = start.position, end.position, slope(start)
            potential = -tempered(start.log_likelihood, temperature)
            return potential + 0.5 * jnp.dot(v - u, g) + delta / 4 * (jnp.dot(u + v, g) + jnp.dot(g, g))

        noise = jax.random.normal(key_move, point.position.shape, point.position.dtype)
        mean = (2 - delta) * point.position - 2 * delta * slope(point)
        proposal = evaluate((mean + jnp.sqrt(8 * delta) * noise) / (2 + delta))
        return _accept(key_accept, rho(point, proposal) - rho(proposal, point), point, proposal)


def _scaled_log_density(temperature, scale, evaluate) -> Callable:
    """Log p_t in preconditioned coordinates, whose derivative comes of the point that `evaluate` gives."""

    @jax.custom_jvp
    def log_density(v):
        return evaluate(v * scale).log_density(temperature)

    @log_density.defjvp
    def _(primals, tangents):
        point = evaluate(primals[0] * scale)
        return point.log_density(temperature), jnp.dot(point.gradient(temperature) * scale, tangents[0])

    return log_density


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

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        from blackjax.mcmc import barker

        log_density = _scaled_log_density(temperature, scale, evaluate)
        state = barker.BarkerState(
            point.position / scale, point.log_density(temperature), point.gradient(temperature) * scale
        )
        _, info = barker.build_kernel()(key, state, log_density, step_size)
        # The same expression as inside of BlackJAX's kernel, so that XLA evaluates the model once.
        proposal = evaluate(info.proposal.position * scale)
        divergent = ~jnp.isfinite(proposal.log_density(temperature))
        acceptance = jnp.where(jnp.isnan(info.acceptance_rate), 0.0, info.acceptance_rate)
        return Move(_choose(info.is_accepted, proposal, point), acceptance, divergent)


@dataclass(frozen=True, kw_only=True)
class HMC(Kernel):
    """Hamiltonian Monte Carlo with a fixed number of leapfrog steps, by BlackJAX.

    Its best acceptance rate is 0.651.

    Args:
        step_size: of the leapfrog integrator; None to adapt it.
        num_integration_steps: leapfrog steps per step of the kernel, each a gradient.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    References:
        A. Beskos et al., Optimal tuning of the hybrid Monte Carlo algorithm, Bernoulli 19(5A), 2013.

    Example:
        ```python
        from numpyro_kaem import HMC, Langevin

        sampler = Langevin(HMC(num_integration_steps=10), num_steps=100, num_chains=4)
        ```
    """

    num_integration_steps: int = 8
    target_acceptance: ClassVar[float | None] = 0.651

    def __post_init__(self):
        super().__post_init__()
        check_count("num_integration_steps", self.num_integration_steps, 1)

    def _guess(self, dim: int) -> float:
        return 0.7 * dim**-0.25

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        from blackjax.mcmc import hmc

        return self._blackjax_step(hmc, self.num_integration_steps, key, point, temperature, step_size, scale, evaluate)

    def _blackjax_step(self, module, length, key, point, temperature, step_size, scale, evaluate) -> Move:
        from blackjax.mcmc.hmc import HMCState

        log_density = _scaled_log_density(temperature, scale, evaluate)
        state = HMCState(point.position / scale, point.log_density(temperature), point.gradient(temperature) * scale)
        mass = jnp.ones_like(point.position)
        new, info = module.build_kernel()(key, state, log_density, step_size, mass, length)
        moved = jnp.any(new.position != state.position)
        return Move(
            _choose(moved, evaluate(new.position * scale), point),
            jnp.where(jnp.isnan(info.acceptance_rate), 0.0, info.acceptance_rate),
            info.is_divergent,
        )


@dataclass(frozen=True, kw_only=True)
class NUTS(HMC):
    """No-U-turn sampler, by BlackJAX: Hamiltonian Monte Carlo that chooses its own path lengths.

    In a population all chains wait for the one with the longest path. The target acceptance rate is 0.8.

    Args:
        step_size: of the leapfrog integrator; None to adapt it.
        max_num_doublings: a path has at most 2 to this power leapfrog steps.
        whiten: see `Kernel`.
        precondition: see `Kernel`.

    References:
        M. D. Hoffman and A. Gelman, The No-U-Turn Sampler, Journal of Machine Learning Research 15(47), 2014.

    Example:
        ```python
        from numpyro_kaem import NUTS, Langevin

        sampler = Langevin(NUTS(max_num_doublings=6), num_steps=100, num_chains=4)
        ```
    """

    max_num_doublings: int = 8
    target_acceptance: ClassVar[float | None] = 0.8

    def __post_init__(self):
        super().__post_init__()
        check_count("max_num_doublings", self.max_num_doublings, 1)

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        from blackjax.mcmc import nuts

        return self._blackjax_step(nuts, self.max_num_doublings, key, point, temperature, step_size, scale, evaluate)


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

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        from blackjax.mcmc import elliptical_slice

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

    def step(self, key, point, temperature, step_size, scale, evaluate) -> Move:
        from blackjax.mcmc import marginal_latent_gaussian as latent_gaussian

        def split(point: Point) -> tuple[Array, Array]:
            gradient = tempered(point.likelihood_gradient, temperature)
            gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
            return tempered(point.log_likelihood, temperature), gradient

        @jax.custom_jvp
        def log_likelihood(position):
            return split(evaluate(position))[0]

        @log_likelihood.defjvp
        def _(primals, tangents):
            value, gradient = split(evaluate(primals[0]))
            return value, jnp.dot(gradient, tangents[0])

        ones = jnp.ones_like(point.position)
        kernel = latent_gaussian.build_kernel(_IdentityCovariance(_Identity(), ones, _Identity()))
        value, gradient = split(point)
        state = latent_gaussian.MarginalState(point.position, value, gradient, point.position, gradient)
        _, info = kernel(key, state, log_likelihood, step_size)
        proposal = evaluate(info.proposal.position)
        acceptance = jnp.where(jnp.isnan(info.acceptance_rate), 0.0, info.acceptance_rate)
        divergent = ~jnp.isfinite(proposal.log_likelihood)
        return Move(_choose(info.is_accepted, proposal, point), acceptance, divergent)


class _Identity:
    """A rotation that does nothing, where BlackJAX's kernel multiplies by one."""

    def __matmul__(self, other: Array) -> Array:
        return other


class _IdentityCovariance(NamedTuple):
    U: _Identity
    Gamma: Array
    U_t: _Identity
