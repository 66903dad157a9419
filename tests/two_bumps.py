"""A density with two separate modes, for tests of what has to cross between them."""

import jax.numpy as jnp
import numpy as np

from numpyro_kaem import BSpline, UnivariateEnergy


def bimodal_energy(modes=(-2.0, 2.0), weights=(0.4, 0.6), deviation=0.3, domain=(-3.5, 3.5), num_intervals=28):
    """The energy that turns a standard normal into two bumps, as well as its cubic spline can."""
    basis = BSpline(num_intervals, 3, domain)
    z = np.linspace(*domain, 2001)
    log_density = np.logaddexp(
        *(np.log(w) - 0.5 * ((z - mode) / deviation) ** 2 for w, mode in zip(weights, modes, strict=True))
    )
    coefficients, *_ = np.linalg.lstsq(np.asarray(basis(jnp.asarray(z))), log_density + 0.5 * z**2, rcond=None)
    return UnivariateEnergy(jnp.zeros(()), jnp.ones(()), jnp.asarray(coefficients, jnp.float32), basis)
