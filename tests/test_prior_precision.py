"""Dtypes of priors in JAX's float64 mode, and domains that rounding moves."""

import importlib.util
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from prior_cases import quick_jit, random_energy
from speed import slow_unless

from numpyro_kaem import BSpline, KAMixture, KAPrior

path = Path(__file__).parent.parent / "benchmarks" / "references.py"
spec = importlib.util.spec_from_file_location("references", path)
references = importlib.util.module_from_spec(spec)
spec.loader.exec_module(references)
# Those without an icdf or a cdf are refused, and the mixture is made of arrays.
NAMES = [
    name
    for name in references.REFERENCES
    if name not in ("FoldedDistribution", "Kumaraswamy", "Levy", "VonMises", "MixtureSameFamily")
]


def make(name):
    reference, domain = references.REFERENCES[name]
    return KAPrior(random_energy(BSpline(4, 3, domain), (), 1.0), reference())


def results(prior):
    moments = prior.mean, prior.variance, prior.entropy(), prior.log_normalizer
    return prior.log_prob(1.5), prior.cdf(1.5), prior.icdf(0.3), prior.sample(jax.random.key(0), (2,)), *moments


@pytest.mark.parametrize("name", slow_unless(["LogUniform"], sorted({*NAMES[::2], "LogUniform"})))
def test_python_numbers_take_the_dtype_of_the_energy(x64, name):
    prior = make(name)
    leaves = [leaf for leaf in jax.tree.leaves(prior) if not isinstance(leaf, jax.Array)]
    assert leaves and all(isinstance(leaf, np.ndarray | np.generic) for leaf in leaves)
    within = jax.eval_shape(lambda energy: results(KAPrior(energy, prior.reference)), prior.energy)
    assert {result.dtype for result in (*jax.eval_shape(results, prior), *within)} == {np.dtype(np.float32)}


def test_integers_are_numbers_to_derivatives_and_logits_may_be_numbers(x64):
    prior = KAPrior(random_energy(BSpline(4, 3, (-1.0, 2.0)), (2,), 1.0), dist.StudentT(3, 0, 1))
    log_prob, slopes = jax.eval_shape(jax.value_and_grad(lambda d: d.log_prob(0.3).sum()), prior)
    assert log_prob.dtype == slopes.reference.df.dtype == np.float32
    assert KAMixture(prior, jnp.asarray([0.0, 1.0], np.float32)).logits.dtype == np.float32


def bounds(low, high):
    """A uniform reference's, of the same numbers as the domain."""
    return {
        "numbers": (low, high),
        "float32": (np.float32(low), np.float32(high)),
        "mixed": (low, jnp.asarray(high)),
        "float64": (np.float64(low), np.float64(high)),
    }


@pytest.mark.slow
@pytest.mark.parametrize("wide", [True, False])
def test_a_domain_may_be_the_whole_support_of_a_reference_whose_ends_are_rounded(wide, request):
    """Densities are finite at the ends in either dtype, nothing is lost and nothing is NaN, at any scale."""
    if wide:
        request.getfixturevalue("x64")
    rng = np.random.default_rng(0)
    energy = random_energy(BSpline(4, 3, (0.0, 1.0)), (), 0.0 if wide else 1.0)
    for width in 10.0 ** rng.uniform(-6.0, 6.0, size=6):
        low = float(rng.choice([0.0, width, -width]) * rng.uniform(0.1, 10.0))
        high = float(low + width)
        for of, ends in bounds(low, high).items():
            prior = KAPrior(eqx.tree_at(lambda f: f.basis, energy, BSpline(4, 3, (low, high))), dist.Uniform(*ends))
            for z in (np.array([low, high]), np.array([low, high], np.float32)):
                log_prob = np.asarray(prior.log_prob(z))
                assert np.all(np.isfinite(log_prob)), (low, high, of, z.dtype)
                np.testing.assert_allclose(prior.cdf(z), [0.0, 1.0], atol=1e-5)
            draws = np.asarray(prior.sample(jax.random.key(0), (20,)), np.float32)
            assert np.all((draws >= np.float32(low)) & (draws <= np.float32(high)))
            if wide:
                np.testing.assert_allclose(prior.log_normalizer, 0.0, atol=1e-5)
                np.testing.assert_allclose(log_prob, -np.log(width), rtol=1e-4, atol=1e-4)


def test_a_rounded_end_of_the_support_leaves_no_tail_in_a_trace():
    """Within a trace the ends are known, and so is that there is nothing beyond them."""
    energy = random_energy(BSpline(4, 3, (0.0, 0.7)), (), 1.0)

    @quick_jit
    def of(energy):
        prior = KAPrior(energy, dist.Uniform(0.0, 0.7)).tabulate()
        return prior._kept_inverse.lower_end, prior._kept_inverse.upper_end, prior.log_prob(0.7), prior.icdf(1.0)

    lower, upper, log_prob, end = of(energy)
    assert lower == upper == 0.0 and np.isfinite(log_prob) and end == np.float32(0.7)
    assert not KAPrior(energy, dist.Uniform(0.0, 0.7))._density.has_tails
    with pytest.raises(ValueError, match="reaches outside"):
        KAPrior(energy, dist.Uniform(0.0, 0.6999))
