"""Latent sites with learned densities, sampled in the coordinates of a standard normal."""

from __future__ import annotations

import math
import statistics

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.infer.reparam import Reparam

from numpyro_kaem._densities.reference_tails import mass_below, survival, tail_quantile, tails_of
from numpyro_kaem._densities.tails import Tails


class ICDFReparam(Reparam):
    """Reparameterise univariate latent variables by their quantile function:

        eps ~ Normal(0, 1),   z = F^{-1}(Phi(eps)).

    The latent space becomes exactly standard normal, whatever the prior: gaps between modes vanish, bounds move to
    infinity, and kernels that ask for a Gaussian prior apply (elliptical slice, preconditioned Crank-Nicolson). The
    site `<name>_base` holds eps; the site itself becomes deterministic. Use it through
    `numpyro.handlers.reparam`.

    It works for `KAPrior`, `KAMixture` and every other univariate distribution whose `icdf` does, in plates, expanded
    and as joint distribution of independent coordinates (`.to_event`). Derivatives pass through.

    Both tails are reached from their own side, with Phi(-|eps|), because in float32 Phi(eps) has lost its digits beyond
    eps = 4 and is 1 beyond 5.4. For the library's own distributions, and those that are symmetric, uniform, exponential
    or transforms of these, z is exact up to |eps| = 10.2 in float32 (29.1 in float64). For others, the numbers just
    below one are all that NumPyro's `icdf` sees of the upper tail: z is exact up to |eps| = 5.1 (8.1), but for the
    rounding of 1 - Phi(-eps). Beyond these limits z stays where it is at them, with a derivative of zero: nothing is
    infinite or NaN. The prior puts 2e-24 there (4e-7 for the others).

    Raises:
        ValueError: at an observed site, and for a distribution that is not univariate and continuous or whose `icdf`
            does not work.

    Example:
        ```python
        import jax
        import numpyro
        import numpyro.distributions as dist
        from numpyro.infer import MCMC, NUTS

        from numpyro_kaem import BSpline, ICDFReparam, KAPrior, UnivariateEnergy

        basis = BSpline(num_intervals=8, degree=3, domain=(-3.0, 3.0))
        energy = UnivariateEnergy.init(jax.random.key(0), (2,), basis=basis, scale=1.0)


        def model(x):
            z = numpyro.sample("z", KAPrior(energy, dist.Normal(0.0, 1.0)).to_event(1))
            numpyro.sample("x", dist.Normal(z.sum(), 0.5), obs=x)


        gaussian = numpyro.handlers.reparam(model, config={"z": ICDFReparam()})
        mcmc = MCMC(NUTS(gaussian), num_warmup=10, num_samples=10, progress_bar=False)
        mcmc.run(jax.random.key(1), 1.3)
        assert mcmc.get_samples()["z"].shape == mcmc.get_samples()["z_base"].shape == (10, 2)
        ```
    """

    def __call__(self, name: str, fn: dist.Distribution, obs) -> tuple[None, Array]:
        """Replace a sample site, as `numpyro.handlers.reparam` asks for it."""
        if obs is not None:
            raise ValueError(f"ICDFReparam reparameterises latent variables, but site {name!r} is observed")
        univariate, shape, event_dim = self._unwrap(fn)
        _check_quantiles(name, univariate)
        eps = numpyro.sample(f"{name}_base", self._wrap(dist.Normal(0.0, 1.0), shape, event_dim))
        return None, quantile_of_normal(univariate, eps)


def quantile_of_normal(distribution: dist.Distribution, eps: Array) -> Array:
    """F^{-1}(Phi(eps)), each tail from its own side."""
    limit = _limit(distribution, eps.dtype)
    eps = jnp.clip(eps, -limit, limit)
    from_below = eps < 0
    # Not -|eps|: its derivative at zero, where initialisation strategies like to begin, is a matter of convention.
    probability = jax.scipy.special.ndtr(jnp.where(from_below, eps, -eps))
    return tail_quantile(distribution, probability, from_below)


def normal_of_quantile(distribution: dist.Distribution, z: Array) -> Array:
    """Phi^{-1}(F(z)), each tail from its own side: the inverse of `quantile_of_normal`, up to the same limits."""
    below, above = mass_below(distribution, z), survival(distribution, z)
    eps = jnp.where(below < above, jax.scipy.special.ndtri(below), -jax.scipy.special.ndtri(above))
    limit = _limit(distribution, eps.dtype)
    return jnp.clip(eps, -limit, limit)


def _limit(distribution: dist.Distribution, dtype) -> float:
    """The largest |eps| at which z is exact."""
    info = jnp.finfo(dtype)
    if _has_exact_tails(distribution):
        # Derivatives of icdf grow like 1 / Phi'(eps), and need room for what they are multiplied by.
        return math.sqrt(-1.2 * math.log(info.tiny))
    return -statistics.NormalDist().inv_cdf(float(info.eps))


def _has_exact_tails(distribution: dist.Distribution) -> bool:
    while isinstance(distribution, dist.TransformedDistribution):
        distribution = distribution.base_dist
    return type(tails_of(distribution)).quantile is not Tails.quantile


def _check_quantiles(name: str, distribution: dist.Distribution) -> None:
    kind = type(distribution).__name__
    cure = "ICDFReparam needs a univariate continuous distribution with an icdf, such as a KAPrior or a Normal"
    if distribution.event_shape != () or distribution.support is None or distribution.support.is_discrete:
        raise ValueError(f"site {name!r} has a {kind} of event shape {distribution.event_shape}; {cure}")
    try:
        jax.eval_shape(lambda: distribution.icdf(jnp.full((), 0.5)))
    except (NotImplementedError, ImportError, AttributeError) as error:
        raise ValueError(f"site {name!r} has a {kind}, whose icdf does not work in this NumPyro; {cure}") from error
