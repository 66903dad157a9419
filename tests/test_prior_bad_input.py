"""Wrong arguments of the prior's parts: each is an error that names the argument, what was given, and the cure.

The cases run in one process of their own, without the type checks of the other tests: as users meet them.
"""

import json
import subprocess
import sys

import pytest

SETUP = """
import json, sys
import jax, jax.numpy as jnp, numpy as np, numpyro.distributions as dist
from numpyro_kaem import *

basis = BSpline(6, 3, (-2.0, 2.0))
def energy(shape=(), basis=basis):
    weights = jnp.ones(shape)
    return UnivariateEnergy(weights, weights, jnp.ones((*shape, basis.num_basis)), basis)
normal = dist.Normal(0.0, 1.0)
prior = KAPrior(energy((3,)), normal)
z = np.random.default_rng(0).normal(size=60)
fit, of_density = KAPrior.from_samples, KAPrior.from_log_density
draws = {"a": z.reshape(2, 30)}

def outcome(expression):
    try:
        eval(expression)
    except Exception as error:
        return type(error).__name__, str(error)
    return "no error", ""

print(json.dumps([outcome(expression) for expression in json.load(sys.stdin)]))
"""
DOMAIN = "domain must be (low, high), two finite numbers (or arrays of the energy's batch shape) with low < high, got "
KNOTS = "knots must be at least two, finite, and increase along the last axis, got "
WAVELETS = "kind must be one of ['dog', 'mexican_hat', 'morlet'], got "
CURE = "give a univariate continuous NumPyro distribution such as Normal(0.0, 1.0) or Uniform(0.0, 1.0)"
HALF = "must be float32 or float64, got "
CASES = {
    **{
        f"{basis}{domain})": ("ValueError", DOMAIN + shown)
        for basis in ("BSpline(5, 3, ", "RBF(5, ", "Fourier(3, ", "Wavelet('dog', 5, ")
        for domain, shown in [
            ("(1.0, -1.0)", "(1.0, -1.0)"),
            ("(1.0, 1.0)", "(1.0, 1.0)"),
            ("(0.0, float('inf'))", "(0.0, inf)"),
            ("(float('nan'), 1.0)", "(nan, 1.0)"),
            ("(1.0,)", "(1.0,)"),
            ("(0.0, 1.0, 2.0)", "(0.0, 1.0, 2.0)"),
            ("'ab'", "'ab'"),
            ("3.0", "3.0"),
            ("None", "None"),
            ("{0.0}", "{0.0}"),
            ("('0', '1')", "('0', '1')"),
            ("(False, True)", "(False, True)"),
            ("(0.0, 1e-40)", "(0.0, 1e-40), which float32 cannot tell apart or hold; give points further apart"),
            ("(0.0, 1e39)", "(0.0, 1e+39), which float32 cannot tell apart or hold"),
        ]
    },
    "BSpline(0, 3, (0.0, 1.0))": ("ValueError", "num_intervals must be a whole number of at least 1, got 0"),
    "BSpline(2.5, 3, (0.0, 1.0))": ("ValueError", "num_intervals must be a whole number of at least 1, got 2.5"),
    "BSpline(True, 3, (0.0, 1.0))": ("ValueError", "num_intervals must be a whole number of at least 1, got True"),
    "BSpline('five', 3, (0.0, 1.0))": ("ValueError", "num_intervals must be a whole number of at least 1, got 'five'"),
    "BSpline(5, -1, (0.0, 1.0))": ("ValueError", "degree must be a whole number of at least 0, got -1"),
    "BSpline(5, 6, (0.0, 1.0))": ("ValueError", "degree must be at most 5, got 6"),
    "RBF(1, (0.0, 1.0))": ("ValueError", "num_centers must be a whole number of at least 2, got 1"),
    "RBF(None, (0.0, 1.0))": ("ValueError", "num_centers must be a whole number of at least 2, got None"),
    "RSWAF(1, (0.0, 1.0))": ("ValueError", "num_centers must be a whole number of at least 2, got 1"),
    "Wavelet('dog', 1, (0.0, 1.0))": ("ValueError", "num_centers must be a whole number of at least 2, got 1"),
    "Fourier(0, (0.0, 1.0))": ("ValueError", "num_frequencies must be a whole number of at least 1, got 0"),
    "Fourier(2.0, (0.0, 1.0))": ("ValueError", "num_frequencies must be a whole number of at least 1, got 2.0"),
    "Chebyshev(0, (0.0, 1.0))": ("ValueError", "degree must be a whole number of at least 1, got 0"),
    "Chebyshev(5, (1.0, 1.0))": ("ValueError", DOMAIN + "(1.0, 1.0)"),
    "Wavelet('haar', 5, (0.0, 1.0))": ("ValueError", WAVELETS + "'haar'"),
    "Wavelet(None, 5, (0.0, 1.0))": ("ValueError", WAVELETS + "None"),
    **{
        f"{basis}(0.0, 1.0), scale={scale})": ("ValueError", f"scale must be at least 0.01 of the distance {shown}")
        for basis in ("RBF(5, ", "RSWAF(5, ", "Wavelet('morlet', 5, ")
        for scale, shown in [
            ("0.0", "between centres, got 0.0"),
            ("-1.0", "between centres, got -1.0"),
            ("float('nan')", "between centres, got nan"),
        ]
    },
    "RBF(5, (0.0, 1.0), scale=-1.0, learn_scale=True)": ("ValueError", "scale must be at least 0.01 of the distance"),
    # of a domain for each element of a batch, one that is wrong
    "BSpline(5, 3, (jnp.zeros(3), jnp.array([1.0, 0.0, 1.0])))": ("ValueError", DOMAIN),
    "RBF(5, (np.array([0.0, 2.0]), np.array([1.0, 1.0])))": ("ValueError", DOMAIN),
    "Fourier(5, (0.0, jnp.array([1.0, jnp.inf])))": ("ValueError", DOMAIN),
    "Chebyshev(5, (jnp.zeros(3), jnp.ones(2)))": ("ValueError", DOMAIN),
    "BSpline.from_knots([0.0, 1.0, 1.0], 3)": ("ValueError", KNOTS + "[0.0, 1.0, 1.0]"),
    "BSpline.from_knots([0.0, 2.0, 1.0], 3)": ("ValueError", KNOTS + "[0.0, 2.0, 1.0]"),
    "BSpline.from_knots([0.0, 1.0, float('nan')], 3)": ("ValueError", KNOTS + "[0.0, 1.0, nan]"),
    "BSpline.from_knots([0.0, float('inf')], 3)": ("ValueError", KNOTS + "[0.0, inf]"),
    "BSpline.from_knots(np.array([[1.0, 1.0 + 1e-9, 2.0]]), 3)": ("ValueError", "which float32 cannot tell apart"),
    "RBF(5, (0.0, 1.0), scale=1e-6)": (
        "ValueError",
        "scale must be at least 0.01 of the distance between centres, got 1e-06; for narrower bumps take more centres",
    ),
    "BSpline.from_knots(jnp.array([[0.0, 1.0], [1.0, 0.0]]), 3)": ("ValueError", KNOTS),
    "BSpline.from_knots(['a', 'b'], 3)": ("ValueError", KNOTS + "['a', 'b']"),
    "BSpline.from_knots(None, 3)": ("ValueError", KNOTS + "None"),
    "BSpline.from_knots(1.0, 3)": ("ValueError", KNOTS + "1.0"),
    "BSpline.from_knots([1.0], 3)": ("ValueError", KNOTS + "[1.0]"),
    "BSpline.from_knots(jnp.zeros((3, 1)), 3)": ("ValueError", KNOTS),
    "BSpline.from_knots([0.0, 1.0], 6)": ("ValueError", "degree must be at most 5, got 6"),
    "BSpline.from_knots([0.0, 1.0], -1)": ("ValueError", "degree must be a whole number of at least 0, got -1"),
    "energy((3,), BSpline(5, 3, (jnp.zeros(2), jnp.ones(2))))": (
        "ValueError",
        "basis must have a grid of a batch shape that broadcasts to the energy's, (3,), got (2,)",
    ),
    "energy((), BSpline(5, 3, (jnp.zeros(2), jnp.ones(2))))": (
        "ValueError",
        "basis must have a grid of a batch shape that broadcasts to the energy's, (), got (2,)",
    ),
    "KAPrior(energy((2,), BSpline(5, 3, (jnp.array([0.1, -0.1]), jnp.ones(2)))), dist.LogNormal(0.0, 1.0))": (
        "ValueError",
        "of the energy's basis reaches outside the support (0.0, inf) of the reference LogNormal; choose",
    ),
    "Trapezoid(0)": ("ValueError", "panels_per_interval must be a whole number of at least 1, got 0"),
    "Trapezoid(1.5)": ("ValueError", "panels_per_interval must be a whole number of at least 1, got 1.5"),
    "GaussLegendre(1)": ("ValueError", "nodes_per_panel must be a whole number of at least 2, got 1"),
    "GaussLegendre(4.5)": ("ValueError", "nodes_per_panel must be a whole number of at least 2, got 4.5"),
    "GaussLegendre(8, 0)": ("ValueError", "panels_per_interval must be a whole number of at least 1, got 0"),
    "UnivariateEnergy.init(jax.random.key(0), basis=basis, scale=-1.0)": (
        "ValueError",
        "scale must be a finite number of at least 0, got -1.0",
    ),
    "UnivariateEnergy.init(jax.random.key(0), basis=basis, scale=float('nan'))": (
        "ValueError",
        "scale must be a finite number of at least 0, got nan",
    ),
    **{
        f"UnivariateEnergy.init(jax.random.key(0), basis=basis, scale={scale})": (
            "ValueError",
            f"scale must be a finite number of at least 0, got {shown}",
        )
        for scale, shown in [("float('inf')", "inf")]
    },
    **{
        f"UnivariateEnergy(jnp.ones(()), jnp.ones(()), jnp.ones({size}), basis)": (
            "ValueError",
            "coefficients must have shape (*batch, 9), one for each function of the basis BSpline, got shape "
            f"({size},)",
        )
        for size in (5, 12)
    },
    "UnivariateEnergy(jnp.ones(4), jnp.ones(()), jnp.ones(9), basis)": (
        "ValueError",
        "base_weight must have a shape that broadcasts to the energy's, (), got (4,)",
    ),
    "UnivariateEnergy(1.0, jnp.ones(()), jnp.ones(9), basis)": (
        "TypeError",
        "base_weight must be an array of floating-point numbers, got 1.0",
    ),
    "UnivariateEnergy(jnp.ones(()), jnp.ones(()), jnp.ones(9, int), basis)": (
        "TypeError",
        "coefficients must be an array of floating-point numbers, got Array([1,",
    ),
    "KAPrior(UnivariateEnergy(jnp.ones(()), jnp.ones(()), jnp.ones(9).at[3].set(jnp.nan), basis), normal, "
    "validate_args=True)": ("ValueError", "energy must be finite, but coefficients is nan at (3,), one of 1 such"),
    "UnivariateEnergy.init(jax.random.key(0), basis=basis, base_activation='relu')": (
        "ValueError",
        "base_activation must be one of ['identity', 'silu', 'tanh'], got 'relu'",
    ),
    "KAPrior(basis, normal)": ("TypeError", "energy must be a UnivariateEnergy and reference a NumPyro distribution"),
    "UnivariateEnergy(jnp.ones(()), jnp.ones(()), jnp.ones(9, jnp.bfloat16), basis)": (
        "TypeError",
        f"coefficients of an energy {HALF}bfloat16, which has too few digits for a normalised density: cast it by "
        ".astype(jnp.float32), and all parameters of an energy or a model by jax.tree.map(lambda a: "
        "a.astype(jnp.float32) if a.dtype == jnp.bfloat16 else a, parameters); points and data may be bfloat16",
    ),
    "UnivariateEnergy(jnp.ones(()), jnp.ones((), jnp.float16), jnp.ones(9), basis)": (
        "TypeError",
        f"spline_weight of an energy {HALF}float16",
    ),
    "KAPrior(jax.tree.map(lambda a: a.astype(jnp.float16), energy()), normal)": (
        "TypeError",
        f"base_weight of an energy {HALF}float16",
    ),
    "KAPrior(jax.tree_util.tree_map_with_path(lambda path, a: a.astype(jnp.bfloat16) if 'log_scale' in str(path) else "
    "a, energy(basis=RBF(5, (-1.0, 1.0), learn_scale=True))), normal)": (
        "TypeError",
        f"basis of an energy {HALF}bfloat16",
    ),
    "KAPrior(energy(), dist.Normal(0.0, jnp.ones((), jnp.bfloat16)))": (
        "TypeError",
        f"scale of the reference Normal {HALF}bfloat16",
    ),
    "KAPrior(energy(), dist.TransformedDistribution(dist.Normal(np.zeros(3, np.float16), 1.0), "
    "dist.transforms.AffineTransform(0.0, 2.0)))": (
        "TypeError",
        f"base_dist of the reference TransformedDistribution {HALF}float16",
    ),
    "fit(z, reference=dist.Normal(jnp.zeros((), jnp.bfloat16), 1.0))": (
        "TypeError",
        f"loc of the reference Normal {HALF}bfloat16",
    ),
    "KAMixture(prior, jnp.zeros(3, jnp.bfloat16))": ("TypeError", f"logits {HALF}bfloat16"),
    "KAPrior(energy(), dist.Normal)": ("TypeError", "reference a NumPyro distribution, got UnivariateEnergy"),
    "KAPrior(energy(), dist.Poisson(2.0))": (
        "ValueError",
        f"reference must be continuous, of a support that stays when JAX takes it apart, got Poisson; {CURE}",
    ),
    "KAPrior(energy(), dist.Bernoulli(0.5))": (
        "ValueError",
        "reference must be continuous, of a support that stays when JAX takes it apart, got Bernoulli",
    ),
    "KAPrior(energy((3,)), dist.Levy(0.0, 1.0))": (
        "ValueError",
        f"reference must be continuous, of a support that stays when JAX takes it apart, got Levy; {CURE}",
    ),
    "KAPrior(energy(), normal.expand((2,)).to_event(1))": (
        "ValueError",
        f"reference must be univariate, got Independent of event shape (2,); {CURE}",
    ),
    "KAPrior(energy(), dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))": (
        "ValueError",
        "reference must be univariate, got MultivariateNormal of event shape (2,)",
    ),
    "KAPrior(energy(basis=RBF(5, (-1.0, 1.0))), dist.VonMises(0.0, 1.0))": (
        "ValueError",
        f"reference must have an icdf or a cdf that works, but VonMises has neither; {CURE}",
    ),
    "KAPrior(energy(), dist.Uniform(-1.0, 2.0))": (
        "ValueError",
        "domain (-2.0, 2.0) of the energy's basis reaches outside the support (-1.0, 2.0) of the reference Uniform; "
        "choose a domain inside the support",
    ),
    "KAPrior(energy(), dist.LogNormal(0.0, 1.0))": (
        "ValueError",
        "domain (-2.0, 2.0) of the energy's basis reaches outside the support (0.0, inf) of the reference LogNormal",
    ),
    "KAPrior(energy((2,)), dist.Uniform(jnp.array([-2.0, -1.0]), jnp.array([2.0, 3.0])))": (
        "ValueError",
        "domain (-2.0, 2.0) of the energy's basis reaches outside the support (-1.0, 3.0)",
    ),
    "KAPrior(energy((3,)), dist.Normal(jnp.zeros(2), 1.0))": (
        "ValueError",
        "Incompatible shapes for broadcasting",
    ),
    **{
        f"prior.{method}(jnp.zeros((4, 2)))": (
            "ValueError",
            f"{name} must have a shape that broadcasts with the batch shape (3,) of this KAPrior, got (4, 2)",
        )
        for method, name in [("log_prob", "value"), ("cdf", "value"), ("icdf", "q")]
    },
    "KAMixture(normal, jnp.zeros(3))": ("ValueError", "components must have a batch axis, the last one being the"),
    "KAMixture(KAPrior(energy(), normal), jnp.zeros(3))": (
        "ValueError",
        "components must have a batch axis, the last one being the component axis, got batch shape ()",
    ),
    **{
        f"KAMixture(prior, jnp.zeros({shape}))": (
            "ValueError",
            "logits must have 3 components last and broadcast with the components' batch shape (3,), "
            f"got shape {shape}",
        )
        for shape in ("(2,)", "()", "(3, 1)")
    },
    "KAMixture(KAPrior(energy((3,), BSpline(5, 3, (jnp.zeros(3), jnp.ones(3)))), normal), jnp.zeros(3))": (
        "ValueError",
        "components must share one grid along the component axis, got grids of batch shape (3,) for 3 components; "
        "give the domain or the knots a last batch axis of size 1",
    ),
    "fit(z[:20], num_folds=np.int64(5))": ("no error", ""),
    "fit(z, num_folds=1)": ("ValueError", "num_folds must be a whole number of at least 2, got 1"),
    "fit(z, basis=BSpline(5, 3, (10.0, 20.0)), smoothness=1.0)": (
        "ValueError",
        "basis must have a domain that holds samples, but (10, 20) holds none, which lie between -2.",
    ),
    "fit(np.ma.masked_greater(z, 1.0))": ("ValueError", "z has masked values, got "),
    "fit(z, weights=z + 1j)": ("TypeError", "weights must be an array of real numbers, got dtype complex128"),
    "fit(z, weights=['a'] * 60)": ("TypeError", "weights must be an array of real numbers, got dtype <U1"),
    "fit(z, smoothness='a')": ("TypeError", "smoothness must be an array of real numbers, got dtype <U1"),
    **{
        f"jax.jit(lambda x: {call}.log_prob(0.0))(1.0)": (
            "TracerArrayConversionError",
            "numpy.ndarray conversion method __array__() was called on",
        )
        for call in (
            "fit(z, weights=x * z**2)",
            "fit(z, smoothness=x)",
            "fit(z, reference=dist.Normal(x, 1.0))",
            "of_density(np.abs, (-1.0, x))",
        )
    },
    **{
        f"fit({factor} * z)": (
            "ValueError",
            "z must have a range that float32 holds and tells apart, but the samples lie between",
        )
        for factor in ("1e25", "1e-30")
    },
    "of_density(lambda z: 1j * z, (-1.0, 1.0))": ("TypeError", "what fn returns must be an array of real numbers"),
    "of_density(lambda z: None, (-1.0, 1.0))": ("TypeError", "what fn returns must be an array of real numbers"),
    "KAPrior.from_posterior(draws, 3)": ("TypeError", "'int' object is not iterable"),
    "KAPrior.from_posterior(draws, 'a', foo=1)": ("TypeError", "got an unexpected keyword argument 'foo'"),
}


@pytest.fixture(scope="module")
def outcomes():
    process = subprocess.run(
        [sys.executable, "-c", SETUP], input=json.dumps(list(CASES)), capture_output=True, text=True, timeout=120
    )
    assert process.returncode == 0, process.stderr
    return dict(zip(CASES, json.loads(process.stdout), strict=True))


@pytest.mark.parametrize("expression", CASES)
def test_the_error_names_argument_value_and_cure(outcomes, expression):
    error, message = CASES[expression]
    assert outcomes[expression][0] == error, outcomes[expression]
    assert message in outcomes[expression][1]
