"""Markov kernels on points whose log-prior, log-likelihood and gradients are kept apart.

A kernel moves in coordinates rescaled by a diagonal preconditioner, v = position / scale, and leaves invariant
p_t(z) ~ p(z) p(x | z)^t at the temperature t that it is given (`ULA` up to its discretisation error).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray
from numpyro.infer.mcmc import MCMCKernel

from numpyro_kaem.checks import check_positive
from numpyro_kaem.posterior.target import Point

# BlackJAX makes arrays when it is imported, and so would fix JAX's platform before its user can: methods of kernels
# import it when they are traced.

Evaluate = Callable[[Array], Point]


class Tuning(NamedTuple):
    """What a step of a kernel is given besides a point; None in place of what a run has to find out."""

    temperature: Float[Array, "*batch"] | None
    step_size: Float[Array, "*batch"] | None = None
    scale: Float[Array, "*batch dim"] | None = None

    def astype(self, dtype: Any) -> Tuning:
        """All of them in a dtype."""
        return Tuning(*(jnp.asarray(x, dtype) for x in self))


class Move(NamedTuple):
    """Where one step of a kernel led; it is `divergent` if the proposal's energy was far off or not finite."""

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
        step_limit: the largest step size that makes sense; None where there is none.
        needs_gradients: whether points must carry gradients.
        needs_whitening: whether the kernel works on a standard normal prior only.

    Raises:
        ValueError: for a step size that is not positive, and for `whiten=False` or `precondition=True` where the kernel
            needs a standard normal prior.
    """

    step_size: float | None = None
    whiten: bool = False
    precondition: bool = True

    target_acceptance: ClassVar[float | None] = 0.574
    step_limit: ClassVar[float | None] = None
    needs_gradients: ClassVar[bool] = True
    needs_whitening: ClassVar[bool] = False

    def __post_init__(self):
        if self.step_size is not None:
            object.__setattr__(self, "step_size", check_positive("step_size", self.step_size))
        if self.needs_whitening and (self.precondition or not self.whiten):
            name = type(self).__name__
            raise ValueError(f"{name} needs a standard normal prior: whiten must be True, precondition must be False")

    @property
    def adapts_step_size(self) -> bool:
        """Whether the step size is found during warm-up."""
        return self.step_size is None and self.target_acceptance is not None

    def initial_step_size(self, dim: int) -> float:
        """Step size at which adaptation begins: that which suits a standard normal target."""
        return self.step_size or self._guess(dim)

    def largest_step_size(self, dim: int) -> float:
        """Where adaptation ends that would let the step size grow for ever, as on a flat likelihood."""
        return self.step_limit or 1e3 * self._guess(dim)

    def _guess(self, dim: int) -> float:
        return 0.5 * 1.65**2 * dim ** (-1 / 3)

    def step(
        self, key: PRNGKeyArray, point: Point, temperature: Array, step_size: Array, scale: Array, evaluate: Evaluate
    ) -> Move:
        """One step from a point; the numbers are those of a `Tuning`, and `evaluate` gives the point at a position."""
        # A chain keeps its dtype, also where float64 is enabled, in which BlackJAX draws, and the model in float32.
        dtype = point.position.dtype
        tuning = Tuning(temperature, step_size, scale).astype(dtype)
        return self._step(key, point, tuning, lambda u: evaluate(u.astype(dtype)))

    def _step(self, key: PRNGKeyArray, point: Point, tuning: Tuning, evaluate: Evaluate) -> Move:
        raise NotImplementedError


class ProposalKernel(Kernel):
    """A kernel that evaluates the model at one proposal, and decides whether to go there. Abstract."""

    def _propose(self, key: PRNGKeyArray, point: Point, tuning: Tuning) -> Float[Array, " dim"]:
        """Where a chain might go."""
        raise NotImplementedError

    def _decide(self, key: PRNGKeyArray, point: Point, proposal: Point, tuning: Tuning) -> Move:
        """Whether it goes there, by the same key."""
        raise NotImplementedError

    def _step(self, key, point, tuning, evaluate) -> Move:
        return self._decide(key, point, evaluate(self._propose(key, point, tuning)), tuning)

    def step_or_place(
        self,
        key: PRNGKeyArray,
        point: Point,
        tuning: Tuning,
        evaluate: Evaluate,
        place: Float[Array, " dim"],
        is_placed: Bool[Array, ""],
    ) -> Move:
        """One step or, where `is_placed`, the way to a place: both by one evaluation, so that it is compiled once."""
        dtype = point.position.dtype
        tuning = tuning.astype(dtype)
        there = evaluate(jnp.where(is_placed, place, self._propose(key, point, tuning)).astype(dtype))
        moved, acceptance, divergent = self._decide(key, point, there, tuning)
        return Move(choose(is_placed, there, moved), jnp.where(is_placed, 1.0, acceptance), ~is_placed & divergent)


def check_kernel(kernel: Any) -> None:
    """Raise unless `kernel` is a kernel of this package, as an instance."""
    if isinstance(kernel, Kernel):
        return
    message = f"kernel must be one of numpyro_kaem.kernels, such as kernels.MALA(), got {kernel!r}"
    kind = kernel if isinstance(kernel, type) else type(kernel)
    if issubclass(kind, Kernel):
        message += f": that is the class, and an instance is {kind.__name__}()"
    elif issubclass(kind, MCMCKernel):
        message += f": that is NumPyro's {kind.__name__}, which runs in numpyro.infer.MCMC"
    raise TypeError(message)


def accept(key: PRNGKeyArray, log_ratio: Array, point: Point, proposal: Point) -> Move:
    """Metropolis's choice between two points, by BlackJAX."""
    from blackjax.mcmc.proposal import static_binomial_sampling

    divergent = ~jnp.isfinite(proposal.log_likelihood + proposal.log_prior)
    log_ratio = jnp.where(jnp.isnan(log_ratio), -jnp.inf, log_ratio)
    accepted, (_, acceptance, _) = static_binomial_sampling(key, log_ratio, point, proposal)
    return Move(accepted, acceptance, divergent)


def choose(condition: Array, yes: Any, no: Any) -> Any:
    """One of two points, or of two trees alike."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), yes, no)


def with_gradient(value_and_gradient: Callable[[Array], tuple[Array, Array]]) -> Callable[[Array], Array]:
    """A function of coordinates whose derivative comes of the same call as its value."""

    @jax.custom_jvp
    def function(v):
        return value_and_gradient(v)[0]

    @function.defjvp
    def _(primals, tangents):
        value, gradient = value_and_gradient(primals[0])
        return value, jnp.dot(gradient, tangents[0])

    return function


def preconditioned(
    point: Point, tuning: Tuning, evaluate: Evaluate
) -> tuple[tuple[Array, Array, Array], Callable[[Array], Array]]:
    """A point's coordinates, log p_t and its gradient, as BlackJAX's states have them, and the function log p_t."""
    temperature, _, scale = tuning

    def parts(point: Point) -> tuple[Array, Array]:
        return point.log_density(temperature), point.gradient(temperature) * scale

    return (point.position / scale, *parts(point)), with_gradient(lambda v: parts(evaluate(v * scale)))
