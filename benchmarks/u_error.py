"""How exact quantiles are: the u-error |F(icdf(u)) - u| of every basis and reference, and of the quadrature rules.

F is the CDF of the same parameters in float64 on four times as many panels; the tests hold it to SciPy. In float32 a
quantile z is itself a rounded number, which costs p(z) ulp(z) whatever the method: printed is what comes on top of it.

Run with `python -m benchmarks.u_error`; it takes some ten minutes.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from benchmarks.timing import print_device, print_rows
from numpyro_kaem import (
    RBF,
    RSWAF,
    BSpline,
    Chebyshev,
    Fourier,
    GaussLegendre,
    KAPrior,
    Trapezoid,
    UnivariateEnergy,
    Wavelet,
)
from numpyro_kaem._numerics.quadrature import QuadratureRule

COORDINATES, STANDARD_DEVIATION = 20, 5.0
ROUGH = (10.0, 20.0, 30.0)
REFERENCES = {
    "Normal(0, 1)": (dist.Normal, (0.0, 1.0), (-3.0, 3.0)),
    "LogNormal(0, 1)": (dist.LogNormal, (0.0, 1.0), (0.05, 6.0)),
    "Uniform(-1, 2)": (dist.Uniform, (-1.0, 2.0), (-1.0, 2.0)),
    "Normal(100, 1)": (dist.Normal, (100.0, 1.0), (97.0, 103.0)),
}


def random_knots(domain, shape=()):
    """Knots whose distances differ by factors of up to six."""
    widths = np.random.default_rng(0).uniform(0.3, 1.7, size=(*shape, 20))
    places = np.concatenate([np.zeros((*shape, 1)), np.cumsum(widths, axis=-1)], axis=-1)
    return (domain[0] + (domain[1] - domain[0]) * (places / places[..., -1:])).astype(np.float32)


def random_domains(domain):
    """A domain inside the given one for each coordinate."""
    margins = np.random.default_rng(1).uniform(0.0, 0.1, size=(2, COORDINATES)) * (domain[1] - domain[0])
    return (domain[0] + margins[0]).astype(np.float32), (domain[1] - margins[1]).astype(np.float32)


BASES = {
    **{f"BSpline, degree {degree}": lambda domain, degree=degree: BSpline(20, degree, domain) for degree in range(6)},
    "BSpline, uneven knots": lambda domain: BSpline.from_knots(random_knots(domain).astype(float), 3),
    "BSpline, knots per coordinate": lambda domain: BSpline.from_knots(random_knots(domain, (COORDINATES,)), 3),
    "BSpline, domain per coordinate": lambda domain: BSpline(20, 3, random_domains(domain)),
    "RBF": lambda domain: RBF(20, domain),
    "RBF, learned scale": lambda domain: RBF(20, domain, learn_scale=True),
    "RSWAF": lambda domain: RSWAF(20, domain),
    "Fourier, 10 frequencies": lambda domain: Fourier(10, domain),
    "Chebyshev, degree 15": lambda domain: Chebyshev(15, domain),
    "Wavelet, mexican_hat": lambda domain: Wavelet("mexican_hat", 20, domain),
    "Wavelet, morlet": lambda domain: Wavelet("morlet", 20, domain),
    "Wavelet, dog": lambda domain: Wavelet("dog", 20, domain),
}


def cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype) if eqx.is_inexact_array(leaf) else leaf, tree)


def random_energy(basis, domain, dtype=np.float32, standard_deviation=STANDARD_DEVIATION) -> UnivariateEnergy:
    """Energies of the given standard deviation over the domain, whose numbers are float32."""
    energy = UnivariateEnergy.init(jax.random.key(0), (COORDINATES,), basis=basis, scale=1.0)
    values = energy.centered(jnp.linspace(*domain, 400)[:, None])
    scale = standard_deviation / jnp.std(values, axis=0)
    weights = energy.base_weight * scale, energy.coefficients * scale[:, None]
    return cast(cast(eqx.tree_at(lambda e: (e.base_weight, e.coefficients), energy, weights), np.float32), dtype)


@eqx.filter_jit
def quantiles(prior, u):
    return prior.icdf(jnp.broadcast_to(u[:, None], (u.size, *prior.batch_shape)))


@eqx.filter_jit
def cdf_and_density(prior, z):
    return prior.cdf(z), jnp.exp(prior.log_prob(z))


def u_error(prior, truth, u):
    """The largest u-error of all coordinates over what the rounding of z costs, and the largest u-error itself."""
    z = quantiles(prior, jnp.asarray(u, prior.energy.coefficients.dtype))
    spacing = np.spacing(np.abs(np.asarray(z)))
    with jax.enable_x64(True):
        below, density = (np.asarray(x) for x in cdf_and_density(truth, jnp.asarray(z, np.float64)))
        # The density of a spline of degree 0 jumps at the knots.
        nearby = [cdf_and_density(truth, jnp.asarray(z, np.float64) + sign * spacing)[1] for sign in (-1, 1)]
    error = np.abs(below - np.asarray(u, np.float64)[:, None])
    return (error - np.maximum(density, np.maximum(*nearby)) * spacing).max(), error.max()


def prior_and_truth(basis, name, dtype, rule: QuadratureRule | None = None, panels: int = 40, **kwargs):
    """The same density in the given dtype, by a rule or the default one, and in float64 on finer panels."""
    family, parameters, domain = REFERENCES[name]
    energy = random_energy(BASES[basis](domain), domain, **kwargs)
    with jax.enable_x64(True):
        # A grid for each coordinate is made anew from its float32 points, in either dtype.
        grid = lambda: BASES[basis](domain).grid  # noqa: E731
        energy_64 = eqx.tree_at(lambda e: e.basis.grid, cast(energy, np.float64), grid())
        reference = family(*(np.float64(number) for number in parameters))
        truth = KAPrior(energy_64, reference, quadrature=GaussLegendre(10, panels))
        if dtype == np.float64:
            return KAPrior(energy_64, reference, quadrature=rule), truth
    return KAPrior(energy, family(*parameters), quadrature=rule), truth


def print_bases() -> None:
    """Every basis and reference, in float32 and float64."""
    rows = []
    for basis in BASES:
        row = [basis]
        for name in REFERENCES:
            u = np.linspace(0.0, 1.0, 1001)[1:-1].astype(np.float32)
            prior, truth = prior_and_truth(basis, name, np.float32)
            single, _ = u_error(prior, truth, u)
            with jax.enable_x64(True):
                prior, truth = prior_and_truth(basis, name, np.float64)
                _, double = u_error(prior, truth, u.astype(np.float64))
            row.append(f"{max(single, 0.0):.0e} / {double:.0e}")
        rows.append(tuple(row))
    title = f"u-error: float32 beyond p(z) ulp(z) / float64; {COORDINATES} energies of standard deviation 5"
    print_rows(title, ("basis", *REFERENCES), rows)


def print_rough() -> None:
    """Every basis in float32, by the default rule, where energies are rougher than the bounds are stated for."""
    rows, u = [], np.linspace(0.0, 1.0, 1001)[1:-1].astype(np.float32)
    for basis in BASES:
        row = [basis]
        for standard_deviation in ROUGH:
            prior, truth = prior_and_truth(basis, "Normal(0, 1)", np.float32, standard_deviation=standard_deviation)
            row.append(f"{max(u_error(prior, truth, u)[0], 0.0):.0e}")
        rows.append(tuple(row))
    title = "u-error in float32 beyond p(z) ulp(z), reference Normal(0, 1), by the energies' standard deviation"
    print_rows(title, ("basis", *map(str, ROUGH)), rows)


def print_rules() -> None:
    """Gauss-Legendre and trapezoid rules of growing size, in float64."""
    rules = [GaussLegendre(n, panels) for n in (4, 6, 8, 10) for panels in (1, 4, 10)]
    rows = []
    with jax.enable_x64(True):
        u = np.linspace(0.0, 1.0, 1001)[1:-1]
        for rule in [*rules, *(Trapezoid(panels) for panels in (4, 16, 64, 256))]:
            row = [f"{type(rule).__name__}({', '.join(map(str, vars(rule).values()))})"]
            for basis in ("BSpline, degree 3", "Fourier, 10 frequencies"):
                prior, truth = prior_and_truth(basis, "Normal(0, 1)", np.float64, rule)
                error = jnp.max(jnp.abs(prior.log_normalizer - truth.log_normalizer))
                row += [f"{error:.0e}", f"{u_error(prior, truth, u)[1]:.0e}"]
            rows.append(tuple(row))
    header = ("rule (nodes, panels)", "BSpline: log Z", "u-error", "Fourier: log Z", "u-error")
    print_rows("Quadrature rules: errors in float64, reference Normal(0, 1), standard deviation 5", header, rows)


def main() -> None:
    """Print the tables."""
    print_bases()
    print_rough()
    print_rules()


if __name__ == "__main__":
    print_device()
    main()
