"""Draws from learned priors against `jax.random.normal`, their tables, and log-densities against their parts."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from benchmarks.timing import alternate, print_rows
from numpyro_kaem import RBF, RSWAF, BSpline, Chebyshev, Fourier, KAMixture, KAPrior, UnivariateEnergy, Wavelet

DRAWS, REFERENCE, DOMAIN = 10_000, dist.Normal(0.0, 1.0), (-3.0, 3.0)
SPLINES = BSpline(20, 3, DOMAIN)
KEY = jax.random.key(0)


def energy(shape, basis=SPLINES):
    """A random energy."""
    return UnivariateEnergy.init(KEY, shape, basis=basis, scale=1.0)


def mixture(f):
    """The mixture over the last batch axis of an energy."""
    return KAMixture(KAPrior(f, REFERENCE), jnp.zeros(f.batch_shape[-1]))


@eqx.filter_jit
def rebuilt(key, f):
    """Draws from a prior that is made of its parameters in the same call."""
    return KAPrior(f, REFERENCE).sample(key, (DRAWS,))


@eqx.filter_jit
def rebuilt_mixture(key, f):
    """Draws from a mixture that is made of its parameters in the same call."""
    return mixture(f).sample(key, (DRAWS,))


@eqx.filter_jit
def draw(key, prior):
    """Draws from a prior with its tables kept."""
    return prior.sample(key, (DRAWS,))


def normal(shape):
    """A compiled function that draws normal numbers."""
    compiled = jax.jit(lambda key: jax.random.normal(key, (DRAWS, *shape)))
    return lambda: compiled(KEY)


def draws() -> None:
    """Print the rates of draws, with tables rebuilt in every call and with tables kept."""
    f, radial, components = energy((81,)), energy((81,), RBF(20, DOMAIN)), energy((81, 10))
    served = KAPrior(f, REFERENCE).tabulate()
    served_mixture = mixture(energy((81, 40))).tabulate()
    seconds = alternate(
        {
            "jax.random.normal": normal((81,)),
            "rebuilt: BSpline": lambda: rebuilt(KEY, f),
            "rebuilt: RBF": lambda: rebuilt(KEY, radial),
            "rebuilt: mixture of 10": lambda: rebuilt_mixture(KEY, components),
            "served: one density": lambda: draw(KEY, served),
            "served: mixture of 40": lambda: draw(KEY, served_mixture),
        }
    )
    report(f"Prior draws, shape ({DRAWS}, 81)", seconds, 81, "jax.random.normal")
    large = KAPrior(energy((81, 40)), REFERENCE).tabulate()
    seconds = alternate({"jax.random.normal": normal((81, 40)), "served": lambda: draw(KEY, large)}, runs=5)
    report(f"Prior draws, shape ({DRAWS}, 81, 40)", seconds, 81 * 40, "jax.random.normal")


def tables() -> None:
    """Print the time of building tables."""
    build = eqx.filter_jit(lambda f: KAPrior(f, REFERENCE)._density.prepared().table)
    small, large = energy((81,)), energy((81, 40))
    seconds = alternate({"(81,)": lambda: build(small), "(81, 40)": lambda: build(large)})
    rows = [(name, f"{1e3 * times.min():.1f}", f"{1e3 * jnp.median(times):.1f}") for name, times in seconds.items()]
    print_rows("Building tables, B-splines of 20 intervals", ("batch shape", "ms: min", "median"), rows)


def log_densities() -> None:
    """Print the rates of log-densities and their gradients in z, against mixtures of normals and bare bases."""
    z = jax.random.normal(KEY, (DRAWS, 81))
    normals = dist.MixtureSameFamily(
        dist.Categorical(probs=jnp.full(10, 0.1)), dist.Normal(jnp.linspace(-2, 2, 10), 0.3)
    )

    def add(name, prior, function):
        value = eqx.filter_jit(lambda z, p: function(p, z))  # nothing is known when it is compiled
        gradient = eqx.filter_jit(jax.grad(lambda z, p: function(p, z).sum()))
        functions[f"{name}: log_prob"] = lambda: value(z, prior)
        functions[f"{name}: gradient"] = lambda: gradient(z, prior)

    functions = {}
    add("MixtureSameFamily of 10 Normals", normals, lambda p, z: p.log_prob(z))
    for intervals in (20, 80):
        prior = KAPrior(energy((81,), BSpline(intervals, 3, DOMAIN)), REFERENCE).tabulate()
        add(f"BSpline of {intervals} intervals", prior, lambda p, z: p.log_prob(z))
    report("Log-densities of splines", alternate(functions), 81, "MixtureSameFamily of 10 Normals: log_prob")

    functions = {}
    bases = {
        "RBF": RBF(20, DOMAIN),
        "RSWAF": RSWAF(20, DOMAIN),
        "Fourier": Fourier(10, DOMAIN),
        "Chebyshev": Chebyshev(19, DOMAIN),
        "Wavelet": Wavelet("mexican_hat", 20, DOMAIN),
    }
    for name, basis in bases.items():
        f = energy((81,), basis)
        add(f"{name}, sum over the basis", f, lambda f, z: jnp.sum(f.basis(z) * f.coefficients, axis=-1))
        add(name, KAPrior(f, REFERENCE).tabulate(), lambda p, z: p.log_prob(z))
    seconds = alternate(functions, runs=7)
    rows = [
        (
            name,
            *(
                f"{seconds[f'{name}: {k}'].min() / seconds[f'{name}, sum over the basis: {k}'].min():.2f}"
                for k in kinds
            ),
        )
        for name in bases
        for kinds in [("log_prob", "gradient")]
    ]
    print_rows("Time over that of the bare sum over the basis", ("basis", "log_prob", "gradient in z"), rows)


def report(title: str, seconds: dict, size: int, baseline: str) -> None:
    """Print rates and their ratio to the baseline's."""
    rows = [
        (
            name,
            f"{DRAWS * size / times.min() / 1e6:.1f}",
            f"{seconds[baseline].min() / times.min():.3f}",
            f"{1e3 * times.min():.1f} / {1e3 * jnp.median(times):.1f} / {1e3 * times.max():.1f}",
        )
        for name, times in seconds.items()
    ]
    header = ("what", "million values a second", f"rate over {baseline}", "ms: min / median / max")
    print_rows(title, header, rows)


def main() -> None:
    """Print all of it."""
    draws()
    tables()
    log_densities()


if __name__ == "__main__":
    main()
