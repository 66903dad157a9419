"""Random energies of a given size, and references with their counterparts in SciPy, for the tests of the prior."""

import functools
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import scipy.stats
from reference_density import ReferenceDensity, energy_values

from numpyro_kaem import (
    RBF,
    RSWAF,
    BSpline,
    Chebyshev,
    Fourier,
    KAMixture,
    KAPrior,
    UnivariateEnergy,
    Wavelet,
)
from numpyro_kaem._compilation.options import RUN_ONCE, known_options


class ExactUniform(NamedTuple):
    """Uniform on [low, high]; `scipy.stats.uniform.sf` is 1 - cdf and has no digits left near `high`."""

    low: float
    high: float

    def logpdf(self, z):
        with np.errstate(divide="ignore"):
            return np.log(((z >= self.low) & (z <= self.high)) / (self.high - self.low))

    def cdf(self, z):
        return np.clip((z - self.low) / (self.high - self.low), 0.0, 1.0)

    def sf(self, z):
        return np.clip((self.high - z) / (self.high - self.low), 0.0, 1.0)

    def ppf(self, u):
        return self.low + (self.high - self.low) * u

    def isf(self, u):
        return self.high - (self.high - self.low) * u


NORMAL = (dist.Normal(0.0, 1.0), scipy.stats.norm())
LOG_NORMAL = (dist.LogNormal(0.0, 1.0), scipy.stats.lognorm(1.0))
UNIFORM = (dist.Uniform(-1.0, 2.0), ExactUniform(-1.0, 2.0))
SHIFTED = (dist.Normal(100.0, 1.0), scipy.stats.norm(100.0, 1.0))

# (reference, its SciPy counterpart), domain
CASES = {
    "normal": (NORMAL, (-3.0, 3.0)),
    "log-normal": (LOG_NORMAL, (0.05, 6.0)),
    "uniform": (UNIFORM, (-1.0, 2.0)),
    "shifted normal": (SHIFTED, (97.0, 103.0)),
    # an upper tail of 2e-6, of which 1 - cdf is off by one per cent in float32
    "normal, small tails": (NORMAL, (-4.6, 4.6)),
    # domains narrower than the bulk of the reference: most of the mass may lie in the tails
    "normal, big tails": (NORMAL, (-0.5, 0.7)),
    "log-normal, big tails": (LOG_NORMAL, (0.7, 1.6)),
    "uniform, big tails": (UNIFORM, (0.0, 0.5)),
}


def random_knots(domain, batch_shape=(), num_intervals=20):
    """Knots from end to end of the domain, with intervals whose widths differ by factors of up to six."""
    widths = np.random.default_rng(7).uniform(0.3, 1.7, size=(*batch_shape, num_intervals))
    places = np.concatenate([np.zeros((*batch_shape, 1)), np.cumsum(widths, axis=-1)], axis=-1)
    return domain[0] + (domain[1] - domain[0]) * (places / places[..., -1:])


def random_domains(domain, batch_shape):
    """Domains inside the given one; the first of them is all of it."""
    margins = np.random.default_rng(8).uniform(0.0, 0.1, size=(2, *batch_shape)) * (domain[1] - domain[0])
    margins[(slice(None), *[0] * len(batch_shape))] = 0.0
    return jnp.asarray(domain[0] + margins[0]), jnp.asarray(domain[1] - margins[1])


BASES = {
    "b-spline": lambda domain: BSpline(num_intervals=20, degree=3, domain=domain),
    "rbf": lambda domain: RBF(num_centers=20, domain=domain),
    "degree 0": lambda domain: BSpline(num_intervals=20, degree=0, domain=domain),
    "degree 1": lambda domain: BSpline(num_intervals=20, degree=1, domain=domain),
    "degree 2": lambda domain: BSpline(num_intervals=20, degree=2, domain=domain),
    "degree 4": lambda domain: BSpline(num_intervals=20, degree=4, domain=domain),
    "degree 5": lambda domain: BSpline(num_intervals=20, degree=5, domain=domain),
    "knots": lambda domain: BSpline.from_knots(random_knots(domain), degree=3),
    "learned scale": lambda domain: RBF(num_centers=20, domain=domain, scale=1.3, learn_scale=True),
    "sharp": lambda domain: RBF(num_centers=20, domain=domain, scale=0.5),
    "rswaf": lambda domain: RSWAF(num_centers=20, domain=domain),
    "fourier": lambda domain: Fourier(num_frequencies=10, domain=domain),
    "chebyshev": lambda domain: Chebyshev(degree=15, domain=domain),
    "mexican hat": lambda domain: Wavelet("mexican_hat", num_centers=20, domain=domain),
    "morlet": lambda domain: Wavelet("morlet", num_centers=20, domain=domain),
    "dog": lambda domain: Wavelet("dog", num_centers=20, domain=domain),
}
# A grid for every element of a batch.
BATCHED_BASES = {
    "knots each": lambda domain, batch_shape: BSpline.from_knots(jnp.asarray(random_knots(domain, batch_shape)), 3),
    "spline domains": lambda domain, batch_shape: BSpline(20, 3, random_domains(domain, batch_shape)),
    "rbf domains": lambda domain, batch_shape: RBF(20, random_domains(domain, batch_shape)),
    "fourier domains": lambda domain, batch_shape: Fourier(10, random_domains(domain, batch_shape)),
    "chebyshev domains": lambda domain, batch_shape: Chebyshev(15, random_domains(domain, batch_shape)),
}


def make_basis(name, domain, batch_shape=()):
    """A basis by its name in `BASES` or `BATCHED_BASES`."""
    return BASES[name](domain) if name in BASES else BATCHED_BASES[name](domain, batch_shape)


def random_energy(basis, batch_shape, std, seed=0, dtype=np.float32, base_activation="silu"):
    """Energies whose values on the domain have the given standard deviation (broadcast against the batch shape)."""
    rng = np.random.default_rng(seed)
    base_weight, coefficients = rng.normal(size=batch_shape), rng.normal(size=(*batch_shape, basis.num_basis))
    spline_weight = rng.uniform(0.5, 2.0, size=batch_shape)
    parts = {"base_weight": base_weight, "spline_weight": spline_weight, "coefficients": coefficients}
    unscaled = SimpleNamespace(**parts, basis=basis, base_activation=base_activation)
    points = np.linspace(np.max(basis.domain[0]), np.min(basis.domain[1]), 400)
    scale = std / energy_values(unscaled, points).std(axis=0)
    parts = (scale * base_weight, spline_weight, scale[..., None] * coefficients)
    return UnivariateEnergy(*(jnp.asarray(part, dtype) for part in parts), basis, base_activation)


def element(energy, *index):
    """One element of a batch of energies, of its leading axes; what the batch shares (a scale) stays."""
    return jax.tree.map(lambda leaf: leaf[index] if leaf.ndim else leaf, energy)


def make_case(case, basis, dtype, num_components=None, stds=(0.1, 1.0, 5.0), repeats=4, seed=0):
    """A prior (a mixture, if num_components is given) of batch shape (len(stds), repeats), and its reference densities.

    The references' parameters are Python floats: a prior of either dtype can be made from them.
    """
    (reference, scipy_reference), domain = CASES[case]
    batch_shape = (len(stds), repeats)
    std = np.array(stds)[:, None]
    if num_components is None:
        energy = random_energy(make_basis(basis, domain, batch_shape), batch_shape, std, seed, dtype)
        logits = np.zeros((*batch_shape, 1), dtype)
        components = jax.tree.map(lambda leaf: leaf[:, :, None] if leaf.ndim else leaf, energy)
        prior = KAPrior(energy, reference)
    else:
        # Components have one grid.
        functions = make_basis(basis, domain, (*batch_shape, 1))
        energy = components = random_energy(functions, (*batch_shape, num_components), std[..., None], seed, dtype)
        logits = np.random.default_rng(seed + 1).normal(size=(*batch_shape, num_components)).astype(dtype)
        prior = KAMixture(KAPrior(energy, reference), jnp.asarray(logits))
    components = jax.tree.map(np.asarray, components)  # indexed without compiling anything
    densities = [
        [ReferenceDensity(element(components, i, j), scipy_reference, logits[i, j]) for j in range(repeats)]
        for i in range(len(stds))
    ]
    return prior, densities


def each(densities, method, *arguments):
    """Apply a method of each density to the columns [..., i, j] of the arrays among arguments; the same layout out."""

    def column(argument, i, j):
        return argument[..., i, j] if isinstance(argument, np.ndarray) else argument

    rows = []
    for i, row in enumerate(densities):
        rows.append([getattr(density, method)(*(column(a, i, j) for a in arguments)) for j, density in enumerate(row)])
    if isinstance(rows[0][0], tuple):
        return tuple(
            np.stack([np.stack([cell[k] for cell in row], -1) for row in rows], -2) for k in range(len(rows[0][0]))
        )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def call(distribution, method, *arguments):
    return getattr(distribution, method)(*arguments)


# For tests whose bounds are wide: optimised code would only take longer to compile, as do kernels that are made by way
# of MLIR, one for each fusion.
quick_jit = functools.partial(jax.jit, compiler_options=known_options(RUN_ONCE))
evaluate_quickly = quick_jit(call, static_argnums=1)
