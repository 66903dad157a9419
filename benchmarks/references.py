"""Which NumPyro distributions serve as references, and how exact the quantiles of a tilted one are.

Run with `python -m benchmarks.references`; it takes about ten minutes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array

from numpyro_kaem import BSpline, GaussLegendre, KAPrior, UnivariateEnergy
from numpyro_kaem._densities.reference_tails import survival

# Every univariate distribution with a density: an example, and a domain inside its support.
REFERENCES = {
    "AsymmetricLaplace": (lambda: dist.AsymmetricLaplace(0.0, 1.0, 1.5), (-3.0, 3.0)),
    "AsymmetricLaplaceQuantile": (lambda: dist.AsymmetricLaplaceQuantile(0.0, 1.0, 0.4), (-3.0, 3.0)),
    "Beta": (lambda: dist.Beta(2.0, 3.0), (0.0, 1.0)),
    "BetaProportion": (lambda: dist.BetaProportion(0.4, 5.0), (0.0, 1.0)),
    "Cauchy": (lambda: dist.Cauchy(0.0, 1.0), (-3.0, 3.0)),
    "Chi2": (lambda: dist.Chi2(3.0), (0.0, 6.0)),
    "Dagum": (lambda: dist.Dagum(1.0, 2.0, 3.0), (0.1, 6.0)),
    "DoublyTruncatedPowerLaw": (lambda: dist.DoublyTruncatedPowerLaw(-1.5, 1.0, 4.0), (1.0, 4.0)),
    "Exponential": (lambda: dist.Exponential(1.0), (0.0, 4.0)),
    "FoldedDistribution": (lambda: dist.FoldedDistribution(dist.Normal(0.5, 1.0)), (0.1, 3.0)),
    "Gamma": (lambda: dist.Gamma(2.0, 1.0), (0.0, 6.0)),
    "Gompertz": (lambda: dist.Gompertz(1.0, 1.0), (0.0, 1.5)),
    "Gumbel": (lambda: dist.Gumbel(0.0, 1.0), (-2.0, 4.0)),
    "HalfCauchy": (lambda: dist.HalfCauchy(1.0), (0.0, 4.0)),
    "HalfNormal": (lambda: dist.HalfNormal(1.0), (0.0, 3.0)),
    "InverseGamma": (lambda: dist.InverseGamma(2.0, 1.0), (0.1, 4.0)),
    "Kumaraswamy": (lambda: dist.Kumaraswamy(2.0, 3.0), (0.05, 0.95)),
    "Laplace": (lambda: dist.Laplace(0.0, 1.0), (-3.0, 3.0)),
    "LeftTruncatedDistribution": (lambda: dist.LeftTruncatedDistribution(dist.Normal(0.0, 1.0), -1.0), (-1.0, 3.0)),
    "LeftTruncatedGamma": (lambda: dist.LeftTruncatedGamma(dist.Gamma(2.0, 1.0), 1.0), (1.5, 6.0)),
    "Levy": (lambda: dist.Levy(0.0, 1.0), (0.2, 6.0)),
    "LogNormal": (lambda: dist.LogNormal(0.0, 1.0), (0.05, 6.0)),
    "LogUniform": (lambda: dist.LogUniform(1.0, 3.0), (1.0, 3.0)),
    "Logistic": (lambda: dist.Logistic(0.0, 1.0), (-3.0, 3.0)),
    "LowerTruncatedPowerLaw": (lambda: dist.LowerTruncatedPowerLaw(-2.5, 1.0), (1.0, 5.0)),
    "MixtureSameFamily": (
        lambda: dist.MixtureSameFamily(
            dist.Categorical(probs=jnp.array([0.5, 0.5])), dist.Normal(jnp.array([-1.0, 1.0]), 0.5)
        ),
        (-3.0, 3.0),
    ),
    "Normal": (lambda: dist.Normal(0.0, 1.0), (-3.0, 3.0)),
    "Pareto": (lambda: dist.Pareto(1.0, 3.0), (1.1, 4.0)),
    "RelaxedBernoulliLogits": (lambda: dist.RelaxedBernoulliLogits(1.0, 0.5), (0.05, 0.95)),
    "RightTruncatedDistribution": (lambda: dist.RightTruncatedDistribution(dist.Normal(0.0, 1.0), 1.0), (-3.0, 1.0)),
    "RightTruncatedGamma": (lambda: dist.RightTruncatedGamma(dist.Gamma(2.0, 1.0), 4.0), (0.2, 3.5)),
    "SoftLaplace": (lambda: dist.SoftLaplace(0.0, 1.0), (-3.0, 3.0)),
    "StudentT": (lambda: dist.StudentT(3.0, 0.0, 1.0), (-3.0, 3.0)),
    "TwoSidedTruncatedDistribution": (
        lambda: dist.TwoSidedTruncatedDistribution(dist.Normal(0.0, 1.0), -1.0, 2.0),
        (-1.0, 2.0),
    ),
    "TwoSidedTruncatedGamma": (lambda: dist.TwoSidedTruncatedGamma(dist.Gamma(2.0, 1.0), 0.5, 4.0), (0.7, 3.5)),
    "Uniform": (lambda: dist.Uniform(0.0, 1.0), (0.0, 1.0)),
    "VonMises": (lambda: dist.VonMises(0.0, 1.0), (-3.0, 3.0)),
    "Weibull": (lambda: dist.Weibull(1.0, 2.0), (0.1, 2.5)),
}
# What else numpyro.distributions has: no density on the line, or other distributions in another form.
NOT_REFERENCES = {
    "Delta", "Distribution", "EulerMaruyama", "ExpandedDistribution", "HurdleGamma", "HurdleLogNormal", "HurdleLogits",
    "HurdleProbs", "ImproperUniform", "Independent", "LeftCensoredDistribution", "MaskedDistribution", "MixtureGeneral",
    "RightCensoredDistribution", "TransformedDistribution", "TruncatedPolyaGamma", "Unit", "ZeroSumNormal",
}  # fmt: skip


def make_prior(name: str) -> KAPrior:
    """The reference tilted by a moderate energy."""
    reference, domain = REFERENCES[name]
    energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(8, 3, domain), scale=0.5)
    return KAPrior(energy, reference())


def how(name: str) -> str:
    """How the tails of a prior with this reference are inverted."""
    try:
        prior = make_prior(name)
    except ValueError:
        return "no"
    if jax.tree.map(lambda leaf: leaf, prior.reference).support is None:
        return "no"  # it forgets its support when it is compiled
    return "closed form" if prior._reference_has_icdf else "bisection"


PROBABILITIES = np.linspace(0.0, 1.0, 2001, dtype=np.float32)[1:-1]


def there_and_back(prior: KAPrior, u: Array) -> tuple[Array, Array]:
    """Quantiles z = icdf(u), and cdf(z)."""
    z = prior.icdf(u)
    return z, prior.cdf(z)


def round_trip(prior: KAPrior, compiled: Callable | None = None, u: np.ndarray = PROBABILITIES) -> float:
    """The largest |cdf(icdf(u)) - u|."""
    compiled = compiled or jax.jit(there_and_back)
    return float(np.max(np.abs(compiled(prior, u)[1] - u)))


@jax.jit
def quantiles(prior: KAPrior, u: Array) -> Array:
    return prior.icdf(u)


@jax.jit
def both_sides(prior: KAPrior, z: Array) -> tuple[Array, Array, Array]:
    return prior.cdf(z), survival(prior, z), jnp.exp(prior.log_prob(z))


def u_error(name: str, middle: bool) -> float:
    """The largest |F(icdf(u)) - u| in float32 over p(z) ulp(z), with F by the same code in float64.

    Where `middle`, on a domain with the middle fifth of the reference, so that most of it lies in the tails.
    """
    make, domain = REFERENCES[name]
    reference = make()
    if middle:
        points = np.linspace(*domain, 10_001, dtype=np.float32)
        domain = tuple(float(end) for end in np.interp([0.4, 0.6], reference.cdf(points), points).astype(np.float32))
    energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(20, 3, domain), scale=1.0)
    tails = np.geomspace(1e-6, 0.1, 60).astype(np.float32)
    u = np.concatenate([PROBABILITIES, tails, 1 - tails])
    z = np.asarray(quantiles(KAPrior(energy, reference), u))
    with jax.enable_x64(True):

        def double(leaf):
            return jnp.asarray(leaf, np.float64) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

        truth = KAPrior(*jax.tree.map(double, (energy, make())), quadrature=GaussLegendre(10, 20))
        at = z.astype(np.float64)
        below, above, density = map(np.asarray, both_sides(truth, jnp.asarray(at)))
        spacing = np.spacing(np.abs(z)).astype(float)
        # The density of z or of a neighbour: that of a singular reference changes fast.
        for neighbour in (at - spacing, at + spacing):
            density = np.fmax(density, np.where(truth.support(neighbour), both_sides(truth, neighbour)[2], 0.0))
    u = u.astype(float)
    error = np.where(u < 0.5, np.abs(below - u), np.abs(above - (1.0 - u)))
    return float(np.max(error - density * spacing))


def main() -> None:
    print(f"NumPyro {numpyro.__version__}, float32: |F(icdf(u)) - u| beyond p(z) ulp(z), F in float64\n")
    print("| reference | tails | u-error | most of it in the tails |\n| --- | --- | --- | --- |")
    for name in REFERENCES:
        tails = how(name)
        errors = ["", ""] if tails == "no" else [f"{max(u_error(name, middle), 0.0):.0e}" for middle in (False, True)]
        print(f"| {name} | {tails} | {errors[0]} | {errors[1]} |", flush=True)


if __name__ == "__main__":
    np.seterr(all="ignore")
    main()
