"""The deep prior: an energy of the whole latent vector, neither normalised nor invertible."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import logsumexp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num, PRNGKeyArray
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import validate_sample
from numpyro.util import is_prng_key

from numpyro_kaem.checks import check_count, check_positive


class DeepKAPrior(dist.Distribution):
    r"""A reference distribution pi0 of a vector, tilted by an energy f of the whole vector:

        p~(z) = pi0(z) exp(f(z)),   p(z) = p~(z) / Z,   Z = E_pi0[exp(f(z))].

    A `KAN` of one output as the energy gives the deep prior of KAEM, an `MLP` the neural prior of Pang et al.

    **It is not normalised**: Z has no closed form, and `log_prob` returns log p~(z) = log pi0(z) + f(z), which differs
    from the log-density by the unknown log Z. What needs ratios of densities only is not affected: the posterior of z
    under a fixed energy, by MCMC or by the samplers of this package. Anything else is, and nothing reports it:

    - Log-densities of different energies, and evidences made of them, are not comparable unless log Z is estimated:
      `log_normalizer` gives the simple estimate.
    - Maximising `log_prob` does not learn the energy. Maximum likelihood subtracts the negative phase,
      grad log p(z) = grad log p~(z) - E_p[grad log p~(z')]: the objectives of this package do, with draws from the
      prior as the negative samples. NumPyro's ELBOs and MCMC over the energy's own parameters do not.

    **Draws are not exact.** They are the last points of short unadjusted Langevin chains that start at draws from the
    reference, with step size h and the reference's standard deviation sigma by coordinate:

        z' = z + h sigma^2 grad log p~(z) + sqrt(2 h) sigma xi,   xi ~ Normal(0, 1).

    They approach p as the number of steps grows, up to a bias of order h. No gradient passes through them.

    There are no `cdf`, `icdf`, moments, entropy or Kullback-Leibler divergence. It cannot be a site inside of NumPyro's
    `scan`.

    Args:
        energy: f, any callable from (..., dim) to (..., 1) or (...,), acting on each vector alone. The arrays in an
            Equinox module (or another pytree) are parameters; its other leaves are static.
        reference: pi0, a NumPyro distribution over real vectors (event_dim 1); its parameters may be learned.
        num_steps: Langevin steps of a draw, at least 1.
        step_size: h, in units where the reference has standard deviation one (where its variance is finite and
            NumPyro knows it; otherwise sigma is 1).
        validate_args: as in every NumPyro distribution.

    Raises:
        ValueError: for a reference that is not over real vectors, num_steps or step_size out of range, and, when
            called, for an energy whose result has another shape.

    References:
        B. Pang et al., Learning Latent Space Energy-Based Prior Model, arXiv 2006.08205.
        Kolmogorov-Arnold Energy Models: Fast, Interpretable Generative Modeling, arXiv 2506.14167.

    Example:
        ```python
        import jax
        import jax.numpy as jnp
        import numpyro.distributions as dist
        from numpyro_kaem import KAN, DeepKAPrior

        energy = KAN(jax.random.key(0), 5, 1, hidden_sizes=(11,))
        prior = DeepKAPrior(energy, dist.Normal(jnp.zeros(5), 1.0).to_event(1))


        @jax.jit
        def draws_and_densities(prior, key):
            key_draws, key_normalizer = jax.random.split(key)
            z = prior.sample(key_draws, (100,))
            log_z, std_error = prior.log_normalizer(key_normalizer, 1000)
            return z, prior.log_prob(z) - log_z, std_error


        z, log_density, std_error = draws_and_densities(prior, jax.random.key(1))
        assert z.shape == (100, 5) and log_density.shape == (100,)
        ```
    """

    arg_constraints = {}
    reparametrized_params = []
    support = constraints.real_vector
    is_normalized = False
    pytree_data_fields = ("_arrays", "reference")
    pytree_aux_fields = ("_others", "num_steps", "step_size")

    def __init__(
        self,
        energy: Callable[[Array], Array],
        reference: dist.Distribution,
        *,
        num_steps: int = 20,
        step_size: float = 0.1,
        validate_args: bool | None = None,
    ):
        _check_reference(reference)
        self._arrays, others = eqx.partition(energy, eqx.is_array)
        self._others = jax.tree.structure(others), tuple(jax.tree.leaves(others))
        self.reference = reference
        self.num_steps = check_count("num_steps", num_steps, 1)
        self.step_size = check_positive("step_size", step_size)
        super().__init__(reference.batch_shape, reference.event_shape, validate_args=validate_args)

    @property
    def energy(self) -> Callable[[Array], Array]:
        """The energy f."""
        structure, leaves = self._others
        return eqx.combine(self._arrays, jax.tree.unflatten(structure, leaves))

    @property
    def has_rsample(self) -> bool:
        """False: draws carry no gradients."""
        return False  # NumPyro's default takes a distribution without arg_constraints for reparametrised

    def expand(self, batch_shape: tuple[int, ...]) -> DeepKAPrior:
        """The same distribution with its batch shape, the reference's, broadcast to `batch_shape`."""
        return DeepKAPrior(
            self.energy,
            self.reference.expand(tuple(batch_shape)),
            num_steps=self.num_steps,
            step_size=self.step_size,
            validate_args=self._validate_args,
        )

    @validate_sample
    def log_prob(self, value: Num[ArrayLike, "..."]) -> Float[Array, "..."]:
        """The **unnormalised** log-density log pi0(z) + f(z).

        Args:
            value: points of shape sample_shape + batch_shape + (dim,).
        """
        value = jnp.asarray(value)
        if value.shape[-1:] != self.event_shape:
            raise ValueError(f"value must have a last axis of size {self.event_shape[0]}, got shape {value.shape}")
        return self.reference.log_prob(value) + self._energy_of(value)

    def sample(self, key: PRNGKeyArray, sample_shape: tuple[int, ...] = ()) -> Float[Array, "..."]:
        """Draw by short-run unadjusted Langevin dynamics from the reference; approximate, and without gradients.

        Args:
            key: JAX random key.
            sample_shape: shape of the independent chains.

        Returns:
            Their last points, of shape sample_shape + batch_shape + (dim,), in the dtype of the reference's draws.
        """
        assert is_prng_key(key)
        key_start, key_steps = jax.random.split(key)
        # Stopped before the loop, so that no derivative of it is ever traced.
        prior = jax.lax.stop_gradient(self)
        start = jax.lax.stop_gradient(prior.reference.sample(key_start, sample_shape))
        variance = jax.lax.stop_gradient(jnp.asarray(_variance(prior.reference), start.dtype))
        slope = jax.grad(lambda z: jnp.sum(prior.reference.log_prob(z) + prior._energy_of(z)))

        def step(z: Array, key: Array) -> tuple[Array, None]:
            noise = jnp.sqrt(2 * self.step_size * variance) * jax.random.normal(key, z.shape, z.dtype)
            return z + self.step_size * variance * slope(z) + noise, None

        z, _ = jax.lax.scan(step, start, jax.random.split(key_steps, self.num_steps))
        # An energy that closes over parameters has them out of reach of what is stopped above.
        return jax.lax.stop_gradient(z)

    def log_normalizer(
        self, key: PRNGKeyArray, num_samples: int
    ) -> tuple[Float[Array, "*batch"], Float[Array, "*batch"]]:
        """A simple estimate of log Z from S draws of the reference, log 1/S sum_s exp(f(z_s)).

        Its expectation is too low by about half its squared standard error. Where the energy moves the mass away from
        the reference, most of all in many dimensions, few draws carry all of the sum: then both the estimate and its
        standard error are too small, and neither tells.

        Args:
            key: JAX random key.
            num_samples: S, at least 2.

        Returns:
            The estimate and its standard error (delta method), each of the batch shape.
        """
        num_samples = check_count("num_samples", num_samples, 2)
        energies = self._energy_of(self.reference.sample(key, (num_samples,)))
        log_sum = logsumexp(energies, axis=0)
        inverse_ess = jnp.exp(logsumexp(2 * energies, axis=0) - 2 * log_sum)
        std_error = jnp.sqrt(jnp.maximum(inverse_ess - 1 / num_samples, 0.0))
        return log_sum - jnp.log(num_samples), std_error

    def _energy_of(self, z: Array) -> Array:
        energy = jnp.asarray(self.energy(z))
        if energy.shape == (*z.shape[:-1], 1):
            return energy[..., 0]
        if energy.shape != z.shape[:-1]:
            raise ValueError(
                f"energy must map (..., {z.shape[-1]}) to (..., 1) or (...,), one number for each vector, but it maps "
                f"shape {z.shape} to {energy.shape}"
            )
        return energy


@promote_batch_shape.register
def _(prior: DeepKAPrior) -> DeepKAPrior:
    raise NotImplementedError(
        "a DeepKAPrior cannot be a site inside of NumPyro's scan: its energy may be any function, which knows of no "
        "time axis; take a KAPrior, or write the loop in Python"
    )


def _check_reference(reference: dist.Distribution) -> None:
    """Raise unless the reference is a distribution over real vectors."""
    if reference.event_dim != 1 or reference.support != constraints.real_vector:
        raise ValueError(
            f"reference must have all real vectors as its support, for Langevin steps know no bounds, but the "
            f"support of this {type(reference).__name__} is constrained to {reference.support}; give a distribution "
            "over real vectors such as Normal(jnp.zeros(8), 1.0).to_event(1)"
        )


def _variance(reference: dist.Distribution) -> ArrayLike:
    """The reference's variance by coordinate, 1 where it is infinite, undefined or not known to NumPyro."""
    try:
        variance = reference.variance
    except NotImplementedError:
        return 1.0
    return jnp.where(jnp.isfinite(variance), variance, 1.0)
