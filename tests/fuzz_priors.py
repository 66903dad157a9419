"""Random priors, samples and weights: numbers right to the stated bounds, or an error that names the argument.

`make fuzz` runs it, for `FUZZ_SECONDS` (600 by default), a half each on priors and on samples; 480 seconds are
enough for 4,000 priors and 2,000 data sets. An example of priors is a batch of 160 cases, drawn by Hypothesis as a
structure and a seed. It is no part of `make test`: what it finds becomes a test there.
"""

from __future__ import annotations

import atexit
import functools
import os
import time
import warnings
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numpyro_kaem import RBF, RSWAF, BSpline, Chebyshev, Fourier, KAPrior, UnivariateEnergy, Wavelet
from numpyro_kaem._fitting.sample_checks import CDF_ERROR, CDF_ERROR_OF_CHANCE

SECONDS = float(os.environ.get("FUZZ_SECONDS", "600"))
START = time.monotonic()
CASES = 160
SETTINGS = settings(
    max_examples=10_000, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, database=None
)

# Ends of cells of all widths, from a thousandth of the domain to half of it.
WIDTHS = np.array([0.0, 0.001, 0.004, 0.05, 0.3, 0.5, 0.503, 0.6, 1.0])
BASES = {
    "cubic": lambda domain: BSpline(8, 3, domain),
    "linear": lambda domain: BSpline(6, 1, domain),
    "steps": lambda domain: BSpline(5, 0, domain),
    "rbf": lambda domain: RBF(7, domain),
    "rswaf": lambda domain: RSWAF(7, domain),
    "fourier": lambda domain: Fourier(4, domain),
    "chebyshev": lambda domain: Chebyshev(6, domain),
    "knots": lambda domain: BSpline.from_knots(domain[0][:, None] + WIDTHS * (domain[1] - domain[0])[:, None], 3),
    "wavelet": lambda domain: Wavelet("mexican_hat", 7, domain),
}
# By location, scale and a shape in (0.3, 8), with the ends of the support in these units.
REFERENCES = {
    "normal": (lambda m, s, a: dist.Normal(m, s), (-np.inf, np.inf)),
    "laplace": (lambda m, s, a: dist.Laplace(m, s), (-np.inf, np.inf)),
    "logistic": (lambda m, s, a: dist.Logistic(m, s), (-np.inf, np.inf)),
    "cauchy": (lambda m, s, a: dist.Cauchy(m, s), (-np.inf, np.inf)),
    "student": (lambda m, s, a: dist.StudentT(1.0 + a, m, s), (-np.inf, np.inf)),
    "gumbel": (lambda m, s, a: dist.Gumbel(m, s), (-np.inf, np.inf)),
    "uniform": (lambda m, s, a: dist.Uniform(m - 3 * s, m + 3 * s), (-3.0, 3.0)),
    "half-normal": (lambda m, s, a: dist.HalfNormal(s), (0.0, np.inf)),
    "exponential": (lambda m, s, a: dist.Exponential(1 / s), (0.0, np.inf)),
    "log-normal": (lambda m, s, a: dist.LogNormal(jnp.log(s), 0.1 * a), (0.0, np.inf)),
    "weibull": (lambda m, s, a: dist.Weibull(s, a), (0.0, np.inf)),
}
Q = np.concatenate([[1e-6, 1e-3], np.linspace(0.01, 0.99, 23), [1 - 1e-3, 1 - 1e-6]]).astype(np.float32)


FAILED: list[bool] = []
EXAMPLES: dict[str, int] = {}


def until(share):
    """Skip what comes after this share of the time, but for what Hypothesis repeats of a failure."""

    def bounded(test):
        @functools.wraps(test)
        def run(*args, **kwargs):
            if time.monotonic() - START > share * SECONDS and not FAILED:
                return
            EXAMPLES[test.__name__] = EXAMPLES.get(test.__name__, 0) + 1
            try:
                test(*args, **kwargs)
            except Exception:
                FAILED.append(True)
                raise

        return run

    return bounded


@jax.jit
def _quantities(prior, q):
    z = prior.icdf(q)
    beside = jnp.nextafter(z, jnp.inf)
    return {
        "z": z,
        "cdf": prior.cdf(z),
        "cdf beside": prior.cdf(beside),
        "log_prob": prior.log_prob(z),
        "far": prior.log_prob(z + 1e4 * (z[-1] - z[0])),
        "cdf far": prior.cdf(jnp.stack([z[0] - 1e4 * (z[-1] - z[0]), z[-1] + 1e4 * (z[-1] - z[0])])),
        "mean": prior.mean,
    }


@SETTINGS
@given(
    reference=st.sampled_from(sorted(REFERENCES)),
    basis=st.sampled_from(sorted(BASES)),
    seed=st.integers(0, 2**31 - 1),
    place=st.sampled_from([0.0, 1.0, 30.0]),
    energy=st.sampled_from([0.1, 1.0, 4.0]),
    is_double=st.booleans(),
)
@until(0.5)
def test_random_priors(reference, basis, seed, place, energy, is_double):
    # jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(is_double):
        check_priors(reference, basis, seed, place, energy, jnp.float64 if is_double else jnp.float32)


def check_priors(reference, basis, seed, place, energy, dtype):
    rng = np.random.default_rng(seed)
    make, (low_end, high_end) = REFERENCES[reference]
    size = 10.0 ** rng.uniform(-3, 3, CASES)
    is_located = reference in ("normal", "laplace", "logistic", "cauchy", "student", "gumbel", "uniform")
    middle = place * size * rng.normal(size=CASES) if is_located else np.zeros(CASES)
    below, above = rng.uniform(0.5, 5.0, (2, CASES))
    low, high = np.maximum(-below, low_end + 0.02), np.minimum(above, high_end - 0.02)
    low, high = middle + size * low, middle + size * high
    arrays = [jnp.asarray(x, dtype) for x in (middle, size, rng.uniform(0.3, 8.0, CASES), low, high)]
    middle, size, shape, low, high = arrays
    built = BASES[basis]((low, high))
    function = UnivariateEnergy.init(jax.random.key(seed), (CASES,), basis=built, scale=energy)
    # The base activation grows with the unit of the data, in which an energy is to have some nats.
    function = replace(function, base_weight=function.base_weight / jnp.maximum(size, 1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prior = KAPrior(function, make(middle, size, shape))
        found = {name: np.asarray(x, float) for name, x in _quantities(prior, jnp.asarray(Q, dtype)[:, None]).items()}
    z, cdf = found["z"], found["cdf"]
    if reference == "cauchy":
        del found["mean"]  # there is none
    for name, value in found.items():
        assert not np.isnan(value).any(), name
    assert np.isfinite(z).all() and np.isfinite(found["log_prob"]).all()
    assert np.all(np.diff(z, axis=0) >= 0), "quantiles decrease"
    assert np.all((cdf >= 0) & (cdf <= 1)) and np.all((found["cdf far"] >= 0) & (found["cdf far"] <= 1))
    # The stated bound, and what the next number beside z is away.
    slack = np.abs(found["cdf beside"] - cdf)
    assert np.all(np.abs(cdf - Q[:, None]) < 1e-4 + 2 * slack), "quantiles and CDF are not inverse to each other"


FAMILIES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "student": lambda rng, n: rng.standard_t(rng.uniform(1.0, 6.0), n),
    "cauchy": lambda rng, n: rng.standard_cauchy(n),
    "log-normal": lambda rng, n: np.exp(rng.uniform(0.3, 2.5) * rng.normal(size=n)),
    "gamma": lambda rng, n: rng.gamma(rng.uniform(0.3, 5.0), size=n),
    "beta": lambda rng, n: rng.beta(*rng.uniform(0.3, 4.0, 2), n),
    "uniform": lambda rng, n: rng.uniform(-1.0, 1.0, n),
    "laplace": lambda rng, n: rng.laplace(size=n),
    "two bumps": lambda rng, n: np.where(
        rng.random(n) < rng.uniform(0.1, 0.9), rng.normal(size=n), rng.normal(10.0 ** rng.uniform(0.0, 2.0), 0.5, n)
    ),
    "counts": lambda rng, n: rng.poisson(10.0 ** rng.uniform(-0.5, 2.0), n).astype(float),
    "binomial": lambda rng, n: rng.binomial(rng.integers(1, 30), rng.uniform(0.1, 0.9), n).astype(float),
    "rounded": lambda rng, n: np.round(rng.normal(size=n), rng.integers(0, 3)),
    "zeros": lambda rng, n: np.where(rng.random(n) < rng.uniform(0.05, 0.6), 0.0, rng.gamma(2.0, size=n)),
    "drawn again": lambda rng, n: rng.choice(rng.normal(size=max(n // 3, 2)), n),
    "constant": lambda rng, n: np.full(n, rng.normal()),
    "not finite": lambda rng, n: np.where(rng.uniform(size=n) < 0.1, np.nan, rng.normal(size=n)),
}


@SETTINGS
@given(
    family=st.sampled_from(sorted(FAMILIES)),
    size=st.floats(np.log10(5.0), 5.0),
    unit=st.integers(-15, 15),
    outlier=st.sampled_from([0.0, 0.0, 0.0, 1e2, -1e4, 1e6]),
    bounded=st.booleans(),
    weighted=st.sampled_from(["no", "no", "yes", "zeros", "negative"]),
    seed=st.integers(0, 2**31 - 1),
)
@until(1.0)
def test_random_samples(family, size, unit, outlier, bounded, weighted, seed):
    rng, size = np.random.default_rng(seed), int(10.0**size)
    samples = FAMILIES[family](rng, size)
    if outlier:
        samples[rng.integers(size)] = outlier
    samples = 10.0**unit * samples
    weights = {
        "no": lambda: None,
        "yes": lambda: rng.exponential(size=size),
        "zeros": lambda: np.where(rng.random(size) < 0.3, 0.0, 1.0),
        "negative": lambda: rng.normal(size=size),
    }[weighted]()
    reference = None
    if bounded and np.all(samples >= 0):
        reference = dist.Exponential(jnp.asarray([1.0 / max(samples.mean(), 1e-30)]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Of batch shape (1,), so that what is compiled is compiled once.
            prior = KAPrior.from_samples(
                samples[:, None], weights=None if weights is None else weights[:, None], reference=reference
            )
    except (ValueError, TypeError) as error:
        cause = next((word for word in CAUSES if word in str(error)), None)
        assert cause, str(error)
        EXAMPLES[cause] = EXAMPLES.get(cause, 0) + 1
        return
    weights = np.ones(size) if weights is None else weights
    weights = weights / weights.sum()
    order = np.argsort(samples)
    share = np.append(0.0, np.cumsum(weights[order]))
    points = samples[order][np.searchsorted(share[1:-1], np.linspace(0.01, 0.99, 25))]
    cdf, z, log_prob, _ = (np.asarray(x, float)[..., 0] for x in _of_fit(prior, points[:, None], Q[:, None]))
    allowed = CDF_ERROR + CDF_ERROR_OF_CHANCE * np.sqrt(np.sum(weights**2)) + 1e-3
    below, above = (share[np.searchsorted(samples[order], points, side)] for side in ("left", "right"))
    error = np.maximum(below - cdf, cdf - above).max()
    assert error < allowed, f"the CDF is {error:.3g} from that of the samples, more than {allowed:.3g}"
    assert np.isfinite(z).all() and np.all(np.diff(z) >= 0)
    assert np.isfinite(log_prob).all()


CAUSES = (
    "z must be finite",
    "z must vary",
    "z must have at least",
    "z must have a range",
    "z must be continuous",
    "z must lie in the support",
    "weights must",
    "the fitted CDF",
    "the fitted density",
)


@jax.jit
def _of_fit(prior, points, q):
    z = prior.icdf(q)
    return prior.cdf(points), z, prior.log_prob(z), prior.mean[None]


@atexit.register
def report():
    """What has been tried."""
    batches, samples = (EXAMPLES.get(name, 0) for name in ("test_random_priors", "test_random_samples"))
    if batches:
        print(f"{CASES * batches} priors of {batches} structures, {samples} samples, {time.monotonic() - START:.0f} s")
        print("samples refused:", {cause: EXAMPLES[cause] for cause in CAUSES if cause in EXAMPLES})


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__, "-q", "-p", "no:cacheprovider", "-o", "faulthandler_timeout=0"]))
