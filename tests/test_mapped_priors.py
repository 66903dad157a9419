"""Priors under JAX's transformations along their own axes: what NumPyro's Normal does, a prior does."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from prior_cases import quick_jit

from numpyro_kaem import BSpline, KAMixture, KAPrior, UnivariateEnergy

BASIS = BSpline(6, 3, (-3.0, 3.0))
KEY = jax.random.key(0)
LOC, SCALE = jnp.linspace(-0.5, 0.5, 5), jnp.linspace(0.8, 1.2, 5)
STACKED = jnp.stack([LOC, LOC + 0.1, LOC - 0.2, LOC + 0.3])


def zero_energy(shape, domains=False):
    basis = BSpline(6, 3, (jnp.full(shape, -3.0), jnp.full(shape, 3.0))) if domains else BASIS
    return UnivariateEnergy.init(KEY, shape, basis=basis, scale=0.0)


def prior(loc, scale):
    return KAPrior(zero_energy(jnp.shape(loc)), dist.Normal(loc, scale))


def tabulated(loc, scale):
    return prior(loc, scale).tabulate()


def with_domains(loc, scale):
    return KAPrior(zero_energy(jnp.shape(loc), domains=True), dist.Normal(loc, scale))


def mixture(loc, scale):
    components = prior(jnp.stack([loc, loc], -1), jnp.stack([scale, scale], -1))
    return KAMixture(components, jnp.broadcast_to(jnp.array([0.3, -0.4]), (*jnp.shape(loc), 2)))


def tabulated_mixture(loc, scale):
    return mixture(loc, scale).tabulate()


METHODS = {
    "log_prob": lambda d: d.log_prob(0.3),
    "log_prob of draws": lambda d: d.log_prob(jnp.full((3, 1, 1, 5), 0.3)),
    "cdf": lambda d: d.cdf(0.3),
    "icdf": lambda d: d.icdf(0.3),
    "sample": lambda d: d.sample(KEY),
    "sample many": lambda d: d.sample(KEY, (7,)),
    "mean": lambda d: d.mean,
    "variance": lambda d: d.variance,
    "entropy": lambda d: d.entropy(),
}


def first(tree):
    return jax.tree.map(lambda leaf: leaf[0], tree)


# What happens to a distribution of batch shape (5,); and then a method is called.
CHANGES = {
    "nothing": lambda make, method: method(make(LOC, SCALE)),
    "vmap": lambda make, method: jax.vmap(method)(make(LOC, SCALE)),
    "vmap of a part": lambda make, method: jax.vmap(lambda d: method(jax.tree.map(jnp.copy, d)))(make(LOC, SCALE)),
    "lax.map": lambda make, method: jax.lax.map(method, make(LOC, SCALE)),
    "scanned over": lambda make, method: jax.lax.scan(lambda c, d: (c, method(d)), 0, make(LOC, SCALE))[1],
    "vmap in and out": lambda make, method: method(jax.vmap(lambda d: d)(make(LOC, SCALE))),
    "expanded, vmap": lambda make, method: jax.vmap(method)(make(LOC, SCALE).expand((2, 5))),
    "an element": lambda make, method: method(first(make(LOC, SCALE))),
    "a slice": lambda make, method: method(jax.tree.map(lambda leaf: leaf[1:3], make(LOC, SCALE))),
    "a new axis": lambda make, method: method(jax.tree.map(lambda leaf: leaf[None], make(LOC, SCALE))),
    "stacked": lambda make, method: method(
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *(make(loc, SCALE) for loc in STACKED))
    ),
    "returned by vmap": lambda make, method: method(jax.vmap(make)(LOC, SCALE)),
    "batches returned by vmap": lambda make, method: method(jax.vmap(lambda loc: make(loc, SCALE))(STACKED)),
    "returned by vmap, second axis": lambda make, method: method(
        jax.vmap(lambda loc: make(loc, SCALE), out_axes=1)(STACKED)
    ),
    "returned by scan": lambda make, method: method(jax.lax.scan(lambda c, loc: (c, make(loc, SCALE)), 0, STACKED)[1]),
    "mapped along the second axis": lambda make, method: jax.vmap(method, in_axes=1)(
        make(STACKED, SCALE + 0 * STACKED)
    ),
    "returned and mapped": lambda make, method: jax.vmap(method)(jax.vmap(lambda loc: make(loc, SCALE))(STACKED)),
    "returned and an element": lambda make, method: method(first(jax.vmap(lambda loc: make(loc, SCALE))(STACKED))),
}


def results(make, change):
    """Results by method; None where there is an error."""
    found = {}
    for name, method in METHODS.items():
        try:
            found[name] = CHANGES[change](make, method)
        except (ValueError, TypeError, NotImplementedError):
            found[name] = None
    return found


QUICK = {
    tabulated: ("expanded, vmap", "an element", "stacked"),
    prior: ("vmap", "returned by vmap, second axis"),
    tabulated_mixture: ("batches returned by vmap",),
}


@pytest.mark.parametrize(
    ("make", "change"),
    [
        pytest.param(make, change, marks=() if change in quick else pytest.mark.slow, id=f"{make.__name__}, {change}")
        for make, quick in QUICK.items()
        for change in (CHANGES if make is prior else quick)
    ],
)
def test_shapes_are_those_of_numpyro_s_normal(make, change):
    expected = jax.eval_shape(lambda: results(dist.Normal, change))
    ours = jax.eval_shape(lambda: results(make, change))
    for name, result in expected.items():
        if result is not None:
            assert ours[name] is not None, name
            assert ours[name].shape == result.shape, name
        # Of NumPyro's methods only some work on a distribution that was expanded, or whose leaves were stacked.
        assert ours[name] is not None or name in ("log_prob of draws",), name


@pytest.mark.parametrize(
    "make", [pytest.param(make, marks=pytest.mark.slow) for make in (tabulated, mixture, prior, with_domains)]
)
def test_values_are_those_of_numpyro_s_normal_without_an_energy(make):
    changes = ("vmap", "batches returned by vmap")

    @quick_jit
    def values():
        return {
            (change, name): [CHANGES[change](of, METHODS[name]) for of in (make, dist.Normal)]
            for change in changes
            for name in ("log_prob", "cdf", "icdf")
        }

    for case, (ours, expected) in values().items():
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-5, err_msg=str(case))


def test_a_shared_reference_has_its_new_axis_in_front_of_the_energy_s_batch():
    """A scalar reference for a batch of energies, of which there are four: the parts have leaves of unlike ranks."""
    energies = UnivariateEnergy.init(KEY, (4, 5), basis=BASIS, scale=1.0)
    locs = jnp.arange(4.0) * 0.1
    many = jax.vmap(lambda energy, loc: KAPrior(energy, dist.Uniform(loc - 5.0, 5.0)))(energies, locs)
    one_by_one = [
        KAPrior(energy, dist.Uniform(loc - 5.0, 5.0))
        for energy, loc in ((first(energies), locs[0]), (jax.tree.map(lambda leaf: leaf[3], energies), locs[3]))
    ]

    @quick_jit
    def of(d):
        return d.log_prob(0.3), d.icdf(0.9), d.mean, d.log_normalizer

    for index, single in zip((0, 3), one_by_one, strict=True):
        for ours, expected in zip(of(many), of(single), strict=True):
            np.testing.assert_allclose(ours[index], expected, rtol=1e-5, atol=1e-5)


def test_what_was_found_out_about_priors_is_not_taken_for_true_of_their_stack():
    energies = UnivariateEnergy.init(KEY, (4, 5), basis=BASIS, scale=1.0)
    priors = [KAPrior(jax.tree.map(lambda leaf, i=i: leaf[i], energies), dist.Uniform(-4.0 - i, 5.0)) for i in range(4)]
    alone = np.stack([prior.log_prob(0.3) for prior in priors])
    stack = jax.tree.map(lambda *leaves: jnp.stack(leaves), *priors)
    np.testing.assert_allclose(stack.log_prob(0.3), alone, rtol=1e-5)
