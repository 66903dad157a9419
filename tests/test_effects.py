"""Effects are Sobol's indices: against closed forms, with honest errors, of every kind of prior."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats

from numpyro_kaem import KAN, BSpline, KAPrior, UnivariateEnergy, effects
from numpyro_kaem.kaem import ClusterPrior
from numpyro_kaem.reading.pick_freeze import design
from numpyro_kaem.reading.product import as_product

KEY = jax.random.key(0)
NORMAL = dist.Normal(jnp.zeros(3), 1.0)
G = np.array([0.0, 1.0, 4.5, 9.0])


def ishigami(z):
    return jnp.sin(z[:, 0]) + 7.0 * jnp.sin(z[:, 1]) ** 2 + 0.1 * z[:, 2] ** 4 * jnp.sin(z[:, 0])


def g_function(z):
    return jnp.prod((jnp.abs(4.0 * z - 2.0) + G) / (1.0 + G), axis=1)


def ishigami_indices():
    a, b = 7.0, 0.1
    alone = np.array([0.5 * (1.0 + b * np.pi**4 / 5.0) ** 2, a**2 / 8.0, 0.0])
    pair = b**2 * np.pi**8 * (1.0 / 18.0 - 1.0 / 50.0)
    variance = alone.sum() + pair
    return alone / variance, (alone + np.array([pair, 0.0, pair])) / variance, pair / variance, variance


def g_indices():
    alone = 1.0 / (3.0 * (1.0 + G) ** 2)
    variance = np.prod(1.0 + alone) - 1.0
    return alone / variance, alone * np.prod(1.0 + alone) / (1.0 + alone) / variance, variance


@pytest.fixture(scope="module")
def ka_prior():
    energy = UnivariateEnergy.init(jax.random.key(1), (4,), basis=BSpline(8, 3, (-3.0, 3.0)), scale=1.0)
    return KAPrior(energy, dist.Normal(jnp.array([0.0, 1.0, 0.0, 2.0]), jnp.array([1.0, 0.5, 2.0, 1.0])))


@pytest.mark.parametrize(
    ("function", "unit_prior"),
    [
        (ishigami, dist.Uniform(jnp.full(3, -jnp.pi), jnp.pi)),
        (g_function, dist.Uniform(jnp.zeros(4), 1.0)),
    ],
    ids=["ishigami", "g"],
)
def test_indices_are_those_of_scipy(function, unit_prior):
    first_order, total = ishigami_indices()[:2] if function is ishigami else g_indices()[:2]
    result = effects(KEY, unit_prior, function)
    size = len(first_order)
    low, high = (np.broadcast_to(end, (size,)) for end in (unit_prior.low, unit_prior.high))
    marginals = [scipy.stats.uniform(*ends) for ends in zip(low, high - low, strict=True)]
    evaluate = jax.jit(function)
    # As many evaluations: 2 (D + 1) a row here, D + 2 there.
    theirs = scipy.stats.sobol_indices(
        func=lambda z: np.array(evaluate(z.T))[None], n=8_192, dists=marginals, rng=np.random.default_rng(0)
    )
    for found, peer, exact in (
        (result.first_order, theirs.first_order, first_order),
        (result.total, theirs.total_order, total),
    ):
        np.testing.assert_allclose(found, peer, atol=0.01)
        assert np.abs(found - exact).max() < np.abs(peer - exact).max() + 0.005


def test_ishigami_s_function_has_the_indices_of_the_closed_form():
    first_order, total, pair, variance = ishigami_indices()
    result = effects(KEY, dist.Uniform(jnp.full(3, -jnp.pi), jnp.pi), ishigami)
    for found, error, exact in (
        (result.first_order, result.first_order_se, first_order),
        (result.total, result.total_se, total),
    ):
        assert np.all(np.abs(found - exact) < 5.0 * error)
        assert np.all(np.abs(found - exact) < 0.02)
    assert abs(result.mean - 3.5) < 0.05 and abs(result.variance / variance - 1.0) < 0.02
    assert result.ranking == (0, 1, 2)
    assert [pair.coordinates for pair in result.pairs] == [(0, 2)]
    assert result.pairs[0].names == ("z[0]", "z[2]")
    assert abs(result.pairs[0].value - pair) < min(5.0 * result.pairs[0].standard_error, 0.02)


def test_the_g_function_has_the_indices_of_the_closed_form_and_all_its_pairs():
    first_order, total, variance = g_indices()
    result = effects(KEY, dist.Uniform(jnp.zeros(4), 1.0), g_function)
    assert np.all(np.abs(result.first_order - first_order) < np.minimum(5.0 * result.first_order_se, 0.01))
    assert np.all(np.abs(result.total - total) < np.minimum(5.0 * result.total_se, 0.01))
    alone = first_order * variance
    exact = {(i, j): alone[i] * alone[j] / variance for i in range(4) for j in range(i + 1, 4)}
    assert {pair.coordinates for pair in result.pairs} == set(exact)
    for pair in result.pairs:
        assert abs(pair.value - exact[pair.coordinates]) < 5.0 * pair.standard_error
    assert list(result.pairs) == sorted(result.pairs, key=lambda pair: -pair.value)


def test_a_linear_function_of_a_learned_prior_has_shares_of_variances(ka_prior):
    weights = np.array([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 0.0, 0.0]])
    result = effects(KEY, ka_prior.to_event(1), lambda z: z @ weights.T, num_samples=2048)
    exact = (weights**2 * np.asarray(ka_prior.variance)).T
    shares = exact / exact.sum(axis=0)
    assert result.first_order.shape == (4, 2)
    assert np.allclose(result.first_order, shares, atol=4e-3)
    assert np.allclose(result.total, result.first_order, atol=1e-5)
    assert np.allclose(result.first_order[:, 1], [0.0, 1.0, 0.0, 0.0], atol=1e-5)
    assert np.allclose(result.whole_first_order, exact.sum(axis=1) / exact.sum(), atol=4e-3)
    assert np.allclose(result.variance, exact.sum(axis=0), rtol=1e-2)
    assert np.allclose(result.mean, weights @ np.asarray(ka_prior.mean), atol=1e-2)
    assert result.pairs == ()


def test_effects_of_an_additive_network_are_those_of_first_order_alone(ka_prior):
    network = KAN(jax.random.key(2), 4, 5, basis=BSpline(5, 3, (-3.0, 3.0)))
    result = effects(KEY, ka_prior, network, num_samples=1024)
    assert np.allclose(result.total, result.first_order, atol=1e-4)
    assert np.all(np.abs(result.first_order.sum(axis=0) - 1.0) < 5.0 * result.first_order_se.sum(axis=0))
    assert result.pairs == ()


def test_standard_errors_of_a_rough_function_are_those_of_repetitions():
    """Of a function that even points do not help with: its values are as good as random."""

    def rough(z):
        return jnp.sin(300.0 * z[:, 0]) + jnp.sin(300.0 * (z[:, 1] + z[:, 2] ** 2))

    runs = [effects(jax.random.key(seed), NORMAL, rough, 256, num_pairs=1) for seed in range(40)]
    exact = np.array([0.5, 0.0, 0.0]), np.array([0.5, 0.5, 0.5])
    for name, truth in zip(("first_order", "total"), exact, strict=True):
        scores = np.stack([(getattr(run, name) - truth) / getattr(run, f"{name}_se") for run in runs])
        # The standard deviation of 120 scores is known to about 8 per cent.
        assert 0.6 < np.sqrt(np.mean(scores**2)) < 1.5


def test_standard_errors_of_a_smooth_function_are_not_too_small():
    first_order, total, *_ = ishigami_indices()
    prior = dist.Uniform(jnp.full(3, -jnp.pi), jnp.pi)
    runs = [effects(jax.random.key(seed), prior, ishigami, 256, num_pairs=0) for seed in range(20)]
    for name, truth in (("first_order", first_order), ("total", total)):
        scores = np.stack([(getattr(run, name) - truth) / getattr(run, f"{name}_se") for run in runs])
        assert 0.1 < np.sqrt(np.mean(scores**2)) < 1.1


def test_outputs_may_be_images_of_any_scale_and_latents_matrices():
    scales = jnp.array([[1e6, 1e-8], [1.0, 1.0]])

    def function(z):
        image = jnp.stack([z[:, 0, 0], z[:, 1, 1], z[:, 0, 1] * z[:, 1, 0], jnp.full(len(z), 5.0)], axis=-1)
        return image.reshape(-1, 2, 2) * scales

    result = effects(KEY, dist.Normal(jnp.zeros((2, 2)), 1.0), function, num_samples=1024)
    assert result.total.shape == result.first_order_se.shape == (4, 2, 2)
    assert result.names == ("z[0, 0]", "z[0, 1]", "z[1, 0]", "z[1, 1]")
    assert np.allclose(result.first_order[:, 0, 0], [1.0, 0.0, 0.0, 0.0], atol=1e-4)
    assert np.allclose(result.first_order[:, 0, 1], [0.0, 0.0, 0.0, 1.0], atol=1e-4)
    assert np.allclose(result.total[:, 1, 0], [0.0, 1.0, 1.0, 0.0], atol=0.1)
    assert np.allclose(result.variance[0], [1e12, 1e-16], rtol=0.05)
    # An output that does not move has no effects, and is not NaN.
    assert np.all(result.total[:, 1, 1] == 0.0) and np.all(result.first_order_se[:, 1, 1] == 0.0)
    assert result.variance[1, 1] == 0.0 and abs(result.mean[1, 1] - 5.0) < 1e-5


def test_a_constant_has_no_effects():
    result = effects(KEY, NORMAL, lambda z: jnp.full(len(z), 0.1), num_samples=64)
    assert np.all(result.whole_total == 0.0) and np.all(result.whole_total_se == 0.0) and result.pairs == ()


def test_chunks_change_nothing_but_roundings():
    whole, parts = (effects(KEY, NORMAL, lambda z: jnp.prod(1 + z, -1), 64, chunk_size=size) for size in (1024, 16))
    assert np.allclose(whole.total, parts.total, rtol=1e-4)
    assert np.allclose(whole.total_se, parts.total_se, rtol=1e-3)


def test_counts_and_flags_are_numbers():
    flags = effects(KEY, NORMAL, lambda z: z > 0.0, num_samples=256)
    counts = effects(KEY, NORMAL, lambda z: jnp.where(z > 0.0, 3, 1).astype(jnp.uint8), num_samples=256)
    assert np.allclose(flags.first_order, np.eye(3), atol=1e-5)
    assert np.allclose(counts.first_order, np.eye(3), atol=1e-5) and np.allclose(counts.variance, 1.0, atol=0.02)


def test_tails_of_the_prior_give_finite_points():
    result = effects(KEY, dist.Cauchy(jnp.zeros(2), 1.0), jnp.arctan, num_samples=1 << 14, num_pairs=0)
    assert np.allclose(result.first_order, np.eye(2), atol=1e-3)
    assert np.allclose(result.variance, np.pi**2 / 12.0, rtol=1e-3)


@pytest.mark.slow
def test_a_component_of_clusters_is_read_by_its_number():
    clusters = ClusterPrior(jax.random.key(3), 2, 2, basis=BSpline(5, 3, (-3.0, 3.0)))
    with pytest.raises(ValueError, match="component=0 to 1"):
        effects(KEY, clusters, lambda z: z)
    result = effects(KEY, clusters, lambda z: z.sum(axis=1), 512, component=1)
    assert np.allclose(result.mean, clusters().component_distribution.mean[1].sum(), atol=0.02)
    assert abs(result.first_order.sum() - 1.0) < 0.02


def test_the_table_has_the_coordinates_in_order_and_the_pairs():
    result = effects(KEY, NORMAL, lambda z: z[:, 0] + 2.0 * z[:, 1] * z[:, 2], num_samples=1024)
    lines = str(result).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["coordinate", *(result.names[d] for d in result.ranking)]
    assert lines[4].startswith("z[1] with z[2]: 0.")
    table = result.to_pandas()
    assert list(table.index) == [result.names[d] for d in result.ranking]
    assert np.array_equal(table["total"], result.whole_total[list(result.ranking)])
    assert np.all(np.diff(table["total"]) <= 0.0)
    many = effects(KEY, dist.Normal(jnp.zeros(25), 1.0), lambda z: z.sum(axis=1), num_samples=64, num_pairs=0)
    assert str(many).splitlines()[-1].startswith("and 5 more, together 0.")


def test_a_number_of_samples_that_is_no_power_of_two_is_rounded_up_and_told():
    with pytest.warns(UserWarning, match="128 are taken in place of 100"):
        assert effects(KEY, NORMAL, lambda z: z, 100, num_pairs=0).num_samples == 128
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        effects(KEY, NORMAL, lambda z: z, 128, num_pairs=0)


@pytest.mark.parametrize("kind", ["point", "swapped point"])
def test_the_first_latent_whose_output_is_not_finite_is_named(kind):
    plain = np.concatenate(next(design(as_product(NORMAL), int(jax.random.bits(KEY)), 64, 64)))
    swapped = np.repeat(plain[None], 3, axis=0)
    for d in range(3):
        swapped[d, :, d] = np.roll(plain[:, d], 64)
    # A half-space with no point of the other kind in it, and in which way it lies.
    ways = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    ahead = (plain @ ways.T).max(axis=0) - (swapped.reshape(-1, 3) @ ways.T).max(axis=0)
    way = ways[np.argmax(ahead if kind == "point" else -ahead)]
    inside, outside = (plain, swapped.reshape(-1, 3)) if kind == "point" else (swapped.reshape(-1, 3), plain)
    limit = 0.5 * ((inside @ way).max() + (outside @ way).max())
    with pytest.raises(ValueError, match="makes NaN or infinity of the latent z = ") as error:
        effects(KEY, NORMAL, lambda z: jnp.where(z @ way > limit, jnp.nan, z[:, 0]), 64)
    z = np.array([float(number) for number in str(error.value).split("[")[1].rstrip("]").split(",")])
    assert z @ way > limit and np.abs(inside - z).max(axis=1).min() < 1e-6


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda z: z.sum(), r"first axis is n, too; of n = 2 it made the shape \(\)"),
        (lambda z: jnp.zeros((7, 2)), r"it made the shape \(7, 2\): use jax.vmap"),
        (lambda z: z @ z.T, r"of 2 and 3 it made those of shape \(2,\) and \(3,\)"),
        (lambda z: (z, z), "must return one array"),
        (lambda z: z.astype(complex), "must return real numbers"),
        (lambda z: z[:, :0], "at least one number"),
        (lambda z: np.sin(np.asarray(z)), "made of JAX operations"),
    ],
)
def test_a_function_whose_output_does_not_fit_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        effects(KEY, NORMAL, function)


def test_arguments_that_are_wrong_are_named():
    with pytest.raises(TypeError, match="key"):
        effects(0, NORMAL, lambda z: z)
    with pytest.raises(TypeError, match="function"):
        effects(KEY, NORMAL, 3.0)
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 32, got 16"):
        effects(KEY, NORMAL, lambda z: z, 16)
    with pytest.raises(ValueError, match="num_pairs"):
        effects(KEY, NORMAL, lambda z: z, num_pairs=-1)
    with pytest.raises(ValueError, match="chunk_size"):
        effects(KEY, NORMAL, lambda z: z, chunk_size=1)
    with pytest.raises(ValueError, match="at most 10600 coordinates, got 20000"):
        effects(KEY, dist.Normal(jnp.zeros(20_000), 1.0), lambda z: z)
    with pytest.raises(ValueError, match="product of univariate distributions"):
        effects(KEY, dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)), lambda z: z)
