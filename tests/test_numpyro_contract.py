"""What NumPyro asks of a continuous distribution, of KAPrior and KAMixture, over a table of parameterisations.

A row of the table is a form (one density, or a mixture), a reference, a batch shape and a basis: every combination of
the first three once, with the bases of `prior_cases` in turn.
"""

import copy
import itertools
import pickle
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.distributions import biject_to, kl_divergence
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over
from numpyro.infer.util import log_density
from prior_cases import BASES, CASES, quick_jit, random_energy
from speed import slow_unless

from numpyro_kaem import KAMixture, KAPrior

REFERENCES = ("normal", "log-normal", "uniform")
BATCH_SHAPES = ((), (3,), (2, 1))


ROWS = [
    (form, basis, *rest)
    for (form, *rest), basis in zip(
        itertools.product(("prior", "mixture"), REFERENCES, BATCH_SHAPES), itertools.cycle(BASES), strict=False
    )
]


def rows(*quick, step):
    """The rows of these numbers, and among the slow tests one in `step` of the others.

    Steps of three would meet one batch shape alone.
    """
    return pytest.mark.parametrize(
        "row",
        [
            pytest.param(row, marks=() if number in quick else pytest.mark.slow, id=", ".join(map(str, row)))
            for number, row in enumerate(ROWS)
            if number in quick or number % step == 0
        ],
    )


def make(row, dtype=np.float32, seed=0, std=1.5):
    form, basis, case, batch_shape = row
    (reference, _), domain = CASES[case]
    components = (2,) if form == "mixture" else ()
    prior = KAPrior(random_energy(BASES[basis](domain), batch_shape + components, std, seed, dtype), reference)
    return KAMixture(prior, jnp.asarray([0.4, -0.2], dtype)) if form == "mixture" else prior


# Where a check does not depend on what the functions are.
one_of_each_form = pytest.mark.parametrize(
    "row", [("prior", "b-spline", "normal", (3,)), ("mixture", "b-spline", "uniform", (3,))], ids=["prior", "mixture"]
)


@rows(17, step=4)
def test_shapes_with_sample_and_batch_dimensions_in_front(row):
    d, batch_shape = make(row), row[-1]
    assert d.batch_shape == batch_shape and d.event_shape == ()
    combinations = list(itertools.product([(), (5, 4)], [(), (7,), (6, 1)]))

    def check():
        # Tables have the batch shape alone: they are built anew with the fewest and with the most dimensions in front.
        kept = d.tabulate()
        for sample_shape, in_front in combinations:
            shape = sample_shape + in_front + batch_shape
            anew = (sample_shape, in_front) in (combinations[0], combinations[-1])
            for expanded in (tables.expand(in_front + batch_shape) for tables in ((kept, d) if anew else (kept,))):
                assert expanded.shape(sample_shape) == shape
                assert expanded.sample(jax.random.key(0), sample_shape).shape == shape
                for method in ("log_prob", "cdf", "icdf"):
                    assert getattr(expanded, method)(jnp.full(shape, 0.5)).shape == shape
                # a value without the batch dimensions broadcasts, as does one with more of them
                assert expanded.log_prob(jnp.float32(0.5)).shape == in_front + batch_shape
        for value in (d.mean, d.variance, d.entropy()):
            assert value.shape == batch_shape

    jax.eval_shape(check)  # traced, not computed


@rows(8, 12, step=4)
def test_functions_are_consistent_with_each_other(x64, row):
    """log_prob is the derivative of cdf, icdf inverts it, derivatives of log_prob are those of finite differences."""
    d = make(row, np.float64)
    u = np.linspace(0.02, 0.98, 13).reshape(-1, *[1] * len(d.batch_shape)) + np.zeros(d.batch_shape)
    step = 1e-6

    @quick_jit
    def functions(d, u, direction, step):
        kept = d.tabulate()  # once for all but derivatives in the parameters
        z = kept.icdf(u)
        moved = jax.tree.map(lambda leaf, change: leaf + step * change, d, direction)
        log_prob, pull_back = jax.vjp(kept.log_prob, z + step)
        (slopes,) = pull_back(jnp.ones_like(log_prob))
        log_prob_of_moved, change = jax.jvp(lambda d: d.log_prob(z), (moved,), (direction,))
        return z, log_prob, kept.cdf(z + step), log_prob_of_moved, slopes, change

    leaves, structure = jax.tree.flatten(d)
    rng = np.random.default_rng(1)
    # A uniform reference's ends stay: the domain would reach outside of the support.
    scale = 0.0 if row[2] == "uniform" else 1.0
    parameters = {id(leaf) for leaf in jax.tree.leaves((d.components if row[0] == "mixture" else d).reference)}
    direction = [
        (scale if id(leaf) in parameters else 1.0) * jnp.asarray(rng.normal(size=np.shape(leaf))) for leaf in leaves
    ]
    d = jax.tree.unflatten(structure, [jnp.asarray(leaf, jnp.float64) for leaf in leaves])
    direction = jax.tree.unflatten(structure, direction)
    here, plus, minus = (
        [np.asarray(part) for part in functions(d, u, direction, shift)] for shift in (0.0, step, -step)
    )
    z, log_prob, cdf, _, slopes, change = here
    assert np.all(d.support(z)) and np.all(np.isfinite(log_prob))
    np.testing.assert_allclose(cdf, u, atol=1e-9)
    # A spline of low degree bends in a knot, and so may a difference quotient across it.
    for one_sided, expected in ((1, slopes), (2, np.exp(log_prob)), (3, change)):
        quotient = (plus[one_sided] - minus[one_sided]) / (2 * step)
        np.testing.assert_allclose(quotient, expected, rtol=1e-5, atol=2e-6)


@rows(4, step=5)
def test_draws_have_the_moments_and_the_entropy(row):
    d = make(row)
    num_draws = 20_000

    @quick_jit
    def results(d, key):
        d = d.tabulate()  # once for all
        z = d.sample(key, (num_draws,))
        return z, d.log_prob(z), d.mean, d.variance, d.entropy()

    z, log_prob, mean, variance, entropy = (np.asarray(part, np.float64) for part in results(d, jax.random.key(3)))
    assert np.all(np.isfinite(log_prob)) and np.all(d.support(z))
    # Six standard errors: a false alarm has probability 2e-9 for each of at most nine comparisons a row.
    for values, expected in ((z, mean), ((z - mean) ** 2, variance), (-log_prob, entropy)):
        error = values.std(0) / np.sqrt(num_draws)
        assert np.all(np.abs(values.mean(0) - expected) < 6 * error + 1e-5)


@pytest.mark.parametrize("case", ["uniform", *(pytest.param(case, marks=pytest.mark.slow) for case in REFERENCES[:2])])
def test_the_entropy_and_the_divergence_from_the_reference_make_up_the_cross_entropy(case):
    """KL(p || pi0) = -H(p) - E_p[log pi0], the last term from draws or, for a uniform reference, known."""
    d = make(("prior", "b-spline", case, (3,)))

    @quick_jit
    def results(d):
        kept = d.tabulate()
        z = kept.sample(jax.random.key(0), (20_000,))
        return kl_divergence(d, d.reference), kept.entropy(), d.reference.log_prob(z)

    divergence, entropy, log_reference = results(d)
    error = np.asarray(log_reference).std(0) / np.sqrt(20_000)
    # Six standard errors: false alarms with probability 2e-9 each.
    assert np.all(np.abs(divergence + entropy + log_reference.mean(0)) <= 6 * error + 1e-5)


@one_of_each_form
def test_compiled_and_not_compiled_log_densities_agree(row):
    d = make(row)
    z = jnp.linspace(-0.9, 1.9, 5)[:, None] + jnp.zeros(3)
    expected = d.log_prob(z)
    for compiled in quick_jit(lambda argument, z: (d.log_prob(z), argument.log_prob(z)))(d, z):
        np.testing.assert_allclose(compiled, expected, rtol=1e-5, atol=1e-5)


@one_of_each_form
def test_draws_are_differentiable_and_say_so(row):
    d = make(row)
    assert d.has_rsample and not d.is_discrete
    key = jax.random.key(0)
    rsample, sample, pair = jax.eval_shape(lambda: (d.rsample(key, (2,)), d.sample(key, (2,)), None))
    assert rsample == sample and pair is None
    value, intermediates = jax.eval_shape(lambda: d.sample_with_intermediates(key, (2,)))
    assert value.shape == (2, 3) and intermediates == []


def test_shapes_are_inferred_from_shapes():
    """Of an energy and a reference the batch shapes; of logits the shape, component axis included."""
    assert KAPrior.infer_shapes(energy=(3,), reference=(2, 1)) == ((2, 3), ())
    assert KAPrior.infer_shapes((), ()) == ((), ())
    assert KAMixture.infer_shapes((5, 4), (4,)) == ((5,), ())
    assert KAMixture.infer_shapes(components=(4,), logits=(2, 5, 4)) == ((2, 5), ())


@pytest.mark.parametrize(("form", "case"), [("prior", "log-normal"), ("mixture", "uniform")])
def test_values_outside_the_support_are_reported_where_arguments_are_validated(form, case):
    d = quick_jit(lambda d: d.tabulate())(make((form, "b-spline", case, ())))
    outside, inside = np.array([-5.0, 0.5], np.float32), np.array([0.25, 0.5], np.float32)
    strict, relaxed = copy.copy(d), copy.copy(d)
    strict._validate_args, relaxed._validate_args = True, False
    with pytest.warns(UserWarning, match="Out-of-support"):
        log_prob = strict.log_prob(outside)
    assert log_prob[0] == -np.inf and np.isfinite(log_prob[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert relaxed.log_prob(outside)[0] == -np.inf
        strict.log_prob(inside)


def test_arguments_are_validated_where_that_is_asked_for():
    components = make(("prior", "b-spline", "normal", (3,)))
    bad = jnp.array([0.0, jnp.nan, 1.0])
    with pytest.raises(ValueError, match="KAMixture distribution got invalid logits parameter"):
        KAMixture(components, bad, validate_args=True)
    KAMixture(components, bad, validate_args=False)
    KAPrior(components.energy, components.reference, validate_args=True).validate_args()


def test_wrappers_of_numpyro():
    """expand, to_event and mask: log-densities are broadcast, summed, and zero where masked."""
    d = make(("mixture", "b-spline", "uniform", (3,)))
    mask = np.array([True, False, True])

    @quick_jit
    def results(d, key):
        z = d.expand((4, 3)).to_event(1).sample(key, (2,))
        kept = d.tabulate()  # once for all wrappers of NumPyro
        expanded = dist.ExpandedDistribution(kept, (4, 3))
        return (
            d.log_prob(z),
            d.expand((4, 3)).log_prob(z),
            kept.to_event(1).log_prob(z),
            kept.expand((4, 3)).to_event(2).log_prob(z),
            kept.mask(mask).log_prob(z),
            kept.mask(mask).expand((4, 3)).log_prob(z),
            expanded.log_prob(z),
            expanded.to_event(1).log_prob(expanded.to_event(1).sample(key)),
        )

    single, expanded, joint, all_joint, masked, also_masked, wrapped, last = (
        np.asarray(part) for part in results(d, jax.random.key(0))
    )
    assert single.shape == (2, 4, 3) and last.shape == (4,)
    for ours, expected in (
        (expanded, single),
        (wrapped, single),
        (joint, single.sum(-1)),
        (all_joint, single.sum((-1, -2))),
        (masked, np.where(mask, single, 0.0)),
        (also_masked, np.where(mask, single, 0.0)),
    ):
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)
    assert jax.eval_shape(d.to_event(1).entropy).shape == ()
    assert d.to_event(0) is d


@one_of_each_form
def test_unconstrained_values_lead_into_the_support(row):
    d = make(row)
    z = biject_to(d.support)(jnp.array([-30.0, -3.0, 0.0, 3.0, 30.0]))
    assert np.all(d.support(z))
    feasible = biject_to(d.support).inv(d.support.feasible_like(jnp.zeros(3)))
    assert np.all(np.isfinite(feasible))


@rows(0, 16, step=4)
def test_pytrees_copies_and_pickles_are_the_same_distribution(row):
    d = make(row).expand((2, *make(row).batch_shape[1:]) if row[-1] == (2, 1) else row[-1])
    leaves, structure = jax.tree.flatten(d)
    expected = [np.asarray(leaf) for leaf in leaves]
    copies = {
        "flattened": jax.tree.unflatten(structure, leaves),
        "mapped": jax.tree.map(lambda leaf: leaf, d),
        "shallow": copy.copy(d),
        "deep": copy.deepcopy(d),
        "pickled": pickle.loads(pickle.dumps(d)),
        "through a compiled function": jax.jit(lambda d: d)(d),
    }
    for name, again in copies.items():
        assert type(again) is type(d), name
        assert (again.batch_shape, again.event_shape) == (d.batch_shape, d.event_shape), name
        assert again.support is d.support or str(again.support) == str(d.support), name
        for one, other in zip(jax.tree.leaves(again), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        if name != "through a compiled function":  # where Python numbers become arrays
            assert jax.tree.structure(again) == structure, name
    shapes = jax.eval_shape(lambda d: d, d)  # abstract leaves
    assert shapes.batch_shape == d.batch_shape


@one_of_each_form
def test_a_pickled_distribution_computes_the_same(row):
    d = make(row)
    again = pickle.loads(pickle.dumps(d))
    z = jnp.linspace(-0.9, 1.9, 5)[:, None] + jnp.zeros(3)
    np.testing.assert_array_equal(d.log_prob(z), again.log_prob(z))


@rows(0, 16, step=4)
def test_repr_names_the_distribution_and_its_shapes(row):
    d = make(row)
    text = repr(d)
    assert type(d).__name__ in text and f"batch shape {d.batch_shape}" in text and "event shape ()" in text
    assert "Traced" not in repr(jax.eval_shape(lambda d: d, d))


def stack(leaf, axis):
    """Two distributions' parameters along a new axis, the second one's smaller."""
    return jnp.stack([jnp.asarray(leaf), 0.8 * jnp.asarray(leaf)], axis)


ARGUMENTS = {"prior": ("energy", "reference"), "mixture": ("components", "logits")}


MAPPED = [
    (form, argument, axis) for form, names in ARGUMENTS.items() for argument in (*names, "all") for axis in (0, 1)
]


@pytest.mark.parametrize(
    ("form", "argument", "axis"),
    slow_unless([("prior", "energy", 0)], MAPPED[::3]),
)
def test_distributions_are_mapped_along_the_axes_that_vmap_over_names(form, argument, axis):
    d = make((form, "b-spline", "normal", (3,)))
    if argument in ("reference", "all"):  # parameters with an axis to put another one behind
        loc, scale = 0.1 * jnp.arange(3.0), jnp.array([1.0, 1.1, 0.9])
        if form == "prior":
            d = KAPrior(d.energy, dist.Normal(loc, scale))
        else:
            d = KAMixture(KAPrior(d.components.energy, dist.Normal(loc[:, None], scale[:, None])), d.logits)
    names = ARGUMENTS[form] if argument == "all" else (argument,)
    if form == "mixture" and argument == "components":
        d = KAMixture(KAPrior(d.components.energy, dist.Normal(jnp.zeros((3, 1)), jnp.ones((3, 1)))), d.logits)
    axes = vmap_over(d, **{name: axis for name in names})
    parts = {name: getattr(d, name) for name in ARGUMENTS[form]}
    stacked = {
        name: jax.tree.map(lambda leaf: stack(leaf, axis), part) if name in names else part
        for name, part in parts.items()
    }
    one = jax.tree.map(lambda leaf: 0.8 * jnp.asarray(leaf), {name: parts[name] for name in names})
    second = type(d)(**{**parts, **one})
    in_axes = tuple(axis if name in names else None for name in ARGUMENTS[form])

    @quick_jit
    def results(z):
        made = jax.vmap(type(d), in_axes=in_axes, out_axes=axes)(*stacked.values())

        def function(d, z):
            return d.log_prob(z), d.icdf(jax.nn.sigmoid(z))

        return jax.vmap(function, in_axes=(axes, None))(made, z), function(d, z), function(second, z)

    many, *singles = results(jnp.linspace(-1.0, 1.0, 5)[:, None] + jnp.zeros(3))
    for index, single in enumerate(singles):
        for ours, expected in zip(many, single, strict=True):
            np.testing.assert_allclose(ours[index], expected, rtol=1e-5, atol=1e-5)


def at_time(form, energy, t):
    """A distribution whose every parameter changes with time."""
    prior = KAPrior(jax.tree.map(lambda leaf: leaf * t, energy), dist.Normal(0.1 * t, 1.0))
    mixture = KAMixture(prior, jnp.arange(3.0) * t)
    return {
        "prior": prior,
        "expanded": prior.expand((4, 2, 3)),
        "joint": prior.to_event(1),
        "batch of references": KAPrior(prior.energy, dist.Normal(0.1 * t * jnp.ones((2, 1)), jnp.ones(3))),
        "mixture": mixture,
        "expanded mixture": mixture.expand((2, 5)),
    }[form]


@pytest.mark.parametrize("form", ["batch of references", "expanded mixture", "joint"])
@pytest.mark.slow
def test_scan_stacks_distributions_along_time(form):
    """NumPyro's `scan` gives one site with a time axis in front of its batch shape, and every step's density."""
    energy = random_energy(BASES["b-spline"]((-3.0, 3.0)), (3,), 1.0)
    times = jnp.arange(1.0, 4.0)

    def model(key):
        def step(carry, t):
            return carry, numpyro.sample("z", at_time(form, energy, t))

        with numpyro.handlers.seed(rng_seed=key):
            return scan(step, 0, times)

    @quick_jit
    def results(key):
        with numpyro.handlers.trace() as trace:
            model(key)
        fn, z = trace["z"]["fn"], trace["z"]["value"]
        single = at_time(form, energy, 1.0)
        assert fn.batch_shape == (3, *single.batch_shape) and fn.event_shape == single.event_shape
        assert promote_batch_shape(fn).batch_shape == fn.batch_shape
        each = jnp.stack(
            [at_time(form, energy, t).log_prob(value) for t, value in zip((1.0, 2.0, 3.0), z, strict=True)]
        )
        density, _ = log_density(model, (key,), {}, {"z": z})
        return fn.log_prob(z), each, density

    stacked, each, density = results(jax.random.key(0))
    assert stacked.shape == each.shape
    np.testing.assert_allclose(stacked, each, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(density, each.sum(), rtol=1e-4)
