"""Pairwise log-likelihoods are those of the pairs, and the decoder runs on the draws alone."""

import logging
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from numpyro.handlers import mask, scale
from prior_cases import quick_jit

from numpyro_kaem.models import pairwise
from numpyro_kaem.models.latent_model import LatentModel
from numpyro_kaem.models.pairwise import pairwise_log_likelihood

B, D = 6, 5
RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.normal(size=(B, D)), jnp.float32)
BINARY = (X > 0).astype(jnp.float32)
WORDS = jnp.asarray(RNG.integers(0, 4, size=(B, D)))
C = jnp.asarray(RNG.normal(size=(B, D)), jnp.float32)
W = jnp.asarray(RNG.normal(size=(2, D)), jnp.float32)
PROJECT = jnp.asarray(RNG.normal(size=(2, D, 4)), jnp.float32)
KEEP = jnp.array([True, False, True, True, False])
normal = dist.Normal


def missing(x):
    """Data of which one number is missing."""
    x = np.array(x)
    x[2, 1] = np.nan
    return x


def standard_latent():
    return numpyro.sample("z", normal(0.0, 1.0).expand([2]).to_event(1))


def model_of(likelihood):
    """A model whose observed site is a function of the latents only."""

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = standard_latent()
            numpyro.sample("x", likelihood(z), obs=x)

    return model


def products_taken(monkeypatch, latent_model, z):
    """Whether the matrix product is taken, call by call; z as in `matrix_and_pairs`."""
    cond = jax.lax.cond

    @quick_jit
    def run():
        taken = []

        def recording(predicate, *branches):
            taken.append(predicate)
            return cond(predicate, *branches)

        latents = draws(latent_model, z) if isinstance(z, int) else jax.tree.map(jnp.asarray, z)
        with monkeypatch.context() as patched:
            patched.setattr(jax.lax, "cond", recording)
            pairwise_log_likelihood(latent_model, latents)
        return taken

    return [bool(predicate) for predicate in run()]


def draws(latent_model, num_draws):
    return latent_model.sample_prior(jax.random.key(1), num_draws, *latent_model.first_row)


def by_pair(latent_model, z, *rows):
    """The definition: one run of the model for each pair."""
    rows = rows or latent_model.rows
    return jax.vmap(lambda z: jax.vmap(lambda row: latent_model.log_likelihood(z, *row))(rows))(z)


def matrix_and_pairs(latent_model, z, *rows):
    """Pairwise log-likelihoods, and what they are by definition; compiled as one.

    Args:
        latent_model: the model.
        z: the draws, or how many to take from the prior.
        rows: as in `pairwise_log_likelihood`.
    """

    @quick_jit
    def both():
        latents = draws(latent_model, z) if isinstance(z, int) else jax.tree.map(jnp.asarray, z)
        return pairwise_log_likelihood(latent_model, latents, *rows), by_pair(latent_model, latents, *rows)

    return map(np.asarray, both())


LIKELIHOODS = {
    "Normal": (lambda z: normal(z @ W, 0.3).to_event(1), X),
    "Normal, a scale for each pixel": (lambda z: normal(z @ W, jnp.arange(1.0, D + 1)).to_event(1), X),
    "Normal, scale broadcast to the draws": (lambda z: normal(z @ W, jnp.full_like(z @ W, 0.3)).to_event(1), X),
    "Normal, scale a function of z": (lambda z: normal(z @ W, jnp.exp(z[:, :1])).to_event(1), X),
    "Normal, masked by a constant": (lambda z: normal(z @ W, 0.3).mask(KEEP).to_event(1), X),
    "Normal, masked by z": (lambda z: normal(z @ W, 0.3).mask(z @ W > 0).to_event(1), X),
    "Normal, masked whole": (lambda z: normal(z @ W, 0.3).to_event(1).mask(False), X),
    "Normal, expanded": (lambda z: normal(z[:, :1], 0.3).expand([z.shape[0], D]).to_event(1), X),
    "Bernoulli logits": (lambda z: dist.Bernoulli(logits=z @ W).to_event(1), BINARY),
    "Bernoulli logits, integer data": (lambda z: dist.Bernoulli(logits=z @ W).to_event(1), BINARY.astype(int)),
    "Bernoulli logits, masked": (lambda z: dist.Bernoulli(logits=z @ W).mask(KEEP).to_event(1), BINARY),
    "Bernoulli probabilities": (lambda z: dist.Bernoulli(probs=jax.nn.sigmoid(z @ W)).to_event(1), BINARY),
    "Categorical logits": (
        lambda z: dist.Categorical(logits=jnp.einsum("ni,idk->ndk", z, PROJECT)).to_event(1),
        WORDS,
    ),
    "Categorical logits, masked": (
        lambda z: dist.Categorical(logits=jnp.einsum("ni,idk->ndk", z, PROJECT)).mask(KEEP).to_event(1),
        WORDS,
    ),
    "Laplace": (lambda z: dist.Laplace(z @ W, 0.5).to_event(1), X),
    "multivariate normal": (lambda z: dist.MultivariateNormal(z @ W, jnp.eye(D)), X),
    "mixture": (
        lambda z: dist.MixtureSameFamily(
            dist.Categorical(jnp.ones(4) / 4), normal(jnp.einsum("ni,idk->ndk", z, PROJECT), 1.0)
        ).to_event(1),
        X,
    ),
}


def assert_entries_are_those_of_pairs(latent_model, atol):
    """For as many draws as rows, and for fewer; returns how many matrices there were."""

    @quick_jit
    def both():
        z = draws(latent_model, B)
        fewer = jax.tree.map(lambda leaf: leaf[:4], z)
        return [pairwise_log_likelihood(latent_model, some) for some in (z, fewer)], by_pair(latent_model, z)

    matrices, pairs = jax.tree.map(np.asarray, both())
    for matrix, num_draws in zip(matrices, (B, 4), strict=True):
        assert matrix.shape == (num_draws, latent_model.num_data)
        np.testing.assert_allclose(matrix, pairs[:num_draws], rtol=1e-5, atol=atol)
        assert np.all(np.isfinite(matrix))
    return len(matrices)


@pytest.mark.parametrize(("likelihood", "x"), LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_each_entry_is_the_log_likelihood_of_its_pair(caplog, likelihood, x):
    assert_entries_are_those_of_pairs(LatentModel(model_of(likelihood), {}, x, check=False), atol=1e-4)
    assert not caplog.records


# Structures


def two_observed_sites_and_a_factor(x, y):
    with numpyro.plate("data", 50, subsample_size=x.shape[0]), scale(scale=0.5):
        z = standard_latent()
        numpyro.sample("x", normal(z @ W, 0.3).to_event(1), obs=x)
        numpyro.sample("y", dist.Bernoulli(logits=z[:, 0]), obs=y[:, 0])
        numpyro.factor("penalty", -jnp.sum(z**4, -1))
    numpyro.factor("outside", 3.0)


def inner_plates(x, y):
    with numpyro.plate("data", x.shape[0], dim=-2):
        z = numpyro.sample("z", normal(0.0, 1.0))
        with numpyro.plate("pixel", D), scale(scale=jnp.arange(1.0, D + 1)):
            w = numpyro.sample("w", normal(z, 1.0))
            numpyro.sample("x", normal(w, 0.5), obs=x)
            with numpyro.plate("repeat", 2, dim=-3):
                numpyro.sample("y", dist.Bernoulli(logits=w), obs=y)


def plate_not_in_front(x, y):
    with numpyro.plate("data", x.shape[0], dim=-1):
        z = numpyro.sample("z", normal(0.0, 1.0).expand([2]).to_event(1))
        with numpyro.plate("pixel", D, dim=-2):
            numpyro.sample("x", normal((z @ W).T, 0.5), obs=x.T)
            numpyro.sample("y", dist.Bernoulli(logits=(z @ W).T), obs=jnp.swapaxes(y, 0, 1))


def shape_by_the_data(x, y):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        logits = (z @ W).reshape(x.shape[0], D)
        numpyro.sample("y", dist.Bernoulli(logits=logits).to_event(1), obs=y)


def indexed(x, y):
    with numpyro.plate("data", B, subsample_size=4) as index:
        z = standard_latent()
        numpyro.sample("x", normal(z @ W, 0.5).to_event(1), obs=x[index])


def subsampled(x, y):
    with numpyro.plate("data", B, subsample_size=4):
        z = standard_latent()
        numpyro.sample("x", normal(z @ W, 0.5).to_event(1), obs=numpyro.subsample(x, event_dim=1))


def transformed_observation(x, y):
    shift = numpyro.param("shift", 0.3)
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        numpyro.sample("x", normal(z @ W, 0.5).to_event(1), obs=jnp.tanh(x - shift))


STRUCTURES = [
    two_observed_sites_and_a_factor,
    inner_plates,
    plate_not_in_front,
    shape_by_the_data,
    indexed,
    subsampled,
    transformed_observation,
]


@pytest.mark.parametrize("model", STRUCTURES)
def test_every_structure_takes_the_shared_path_to_the_same_numbers(caplog, model):
    params = {"shift": jnp.array(0.7)} if model is transformed_observation else {}
    assert_entries_are_those_of_pairs(LatentModel(model, params, X, BINARY, check=False), atol=1e-4)
    assert not caplog.records


def test_rows_other_than_those_of_construction():
    latent_model = LatentModel(model_of(LIKELIHOODS["Normal"][0]), {}, X, check=False)
    matrix, pairs = matrix_and_pairs(latent_model, 4, 2.0 * np.asarray(C)[:3])
    assert matrix.shape == (4, 3)
    np.testing.assert_allclose(matrix, pairs, rtol=1e-5, atol=1e-4)


def test_rows_are_cast_to_the_dtypes_of_construction():
    latent_model = LatentModel(transformed_observation, {"shift": 0.5}, X, BINARY, check=False)
    words, binary = np.asarray(WORDS)[:3], np.asarray(BINARY)[:3]

    @quick_jit
    def matrices():
        z = draws(latent_model, 4)
        return [pairwise_log_likelihood(latent_model, z, x, binary) for x in (words, words.astype(np.float32))]

    np.testing.assert_array_equal(*matrices())


def test_without_observations_every_log_likelihood_is_zero():
    def model(x):
        with numpyro.plate("data", B):
            standard_latent()

    latent_model = LatentModel(model, {}, None)
    matrix = quick_jit(lambda z: pairwise_log_likelihood(latent_model, {"z": z}))(np.ones((3, 2)))
    np.testing.assert_array_equal(matrix, np.zeros((3, B)))


# Models that cannot share the decoder


def covariate(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        numpyro.sample("x", normal(z @ W + c, 0.3).to_event(1), obs=x)


def teacher_forcing(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        before = jnp.pad(x, ((0, 0), (1, 0)))[:, :-1]
        numpyro.sample("x", normal(z @ W + before, 0.3).to_event(1), obs=x)


def concatenated(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        features = jnp.concatenate([z, c], -1)
        numpyro.sample("x", normal(features @ jnp.ones((2 + D, D)), 0.3).to_event(1), obs=x)


def mask_from_the_data(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        numpyro.sample("x", normal(z @ W, 0.3).mask(~jnp.isnan(x)).to_event(1), obs=x)


def handler_mask_from_the_data(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        with mask(mask=c[:, 0] > 0):
            numpyro.sample("x", normal(z @ W, 0.3).to_event(1), obs=x)


def scale_from_the_data(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        with scale(scale=jnp.exp(c[:, 0])):
            numpyro.sample("x", normal(z @ W, 0.3).to_event(1), obs=x)


def conditional_prior(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(c[:, :2], 1.0).to_event(1))
        numpyro.sample("x", normal(z @ W, 0.3).to_event(1), obs=x)


def residual(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        numpyro.sample("x", normal(0.0, 0.3).expand([D]).to_event(1), obs=x - z @ W)


def factor_of_the_data(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = standard_latent()
        numpyro.factor("x", -jnp.sum((x - z @ W) ** 2, -1))


GENERIC = {
    covariate: "distribution of 'x'",
    teacher_forcing: "distribution of 'x'",
    concatenated: "distribution of 'x'",
    mask_from_the_data: "distribution of 'x'",
    handler_mask_from_the_data: "distribution of 'x'",
    scale_from_the_data: "distribution of 'x'",
    conditional_prior: "prior of 'z'",
    residual: "observed value of 'x'",
    factor_of_the_data: "distribution of 'x'",
}


@pytest.mark.parametrize(("model", "reason"), GENERIC.items())
def test_what_depends_on_the_data_takes_the_generic_path_and_says_so(caplog, model, reason):
    x = missing(X) if model is mask_from_the_data else X
    latent_model = LatentModel(model, {}, x, C, check=False)
    with caplog.at_level(logging.WARNING, logger="numpyro_kaem"):
        num_matrices = assert_entries_are_those_of_pairs(latent_model, atol=1e-5)
    assert len(caplog.records) == num_matrices and all(reason in record.getMessage() for record in caplog.records)


# Cost


def shapes_of(jaxpr, primitive):
    """Output shapes of a primitive anywhere in a program."""
    shapes = []
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            shapes.append(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                shapes += shapes_of(inner, primitive)
    return shapes


@pytest.mark.parametrize("kind", ["Normal", "Bernoulli logits", "Laplace"])
def test_the_decoder_runs_on_the_draws_alone(kind):
    likelihood, x = LIKELIHOODS[kind]
    latent_model = LatentModel(model_of(lambda z: likelihood(jnp.sinh(z))), {}, x, check=False)

    def program(z):
        return pairwise_log_likelihood(latent_model, z)

    z = jax.eval_shape(lambda: draws(latent_model, 17))
    compiled = jax.jit(program).trace(z).jaxpr
    assert shapes_of(compiled.jaxpr, "sinh") == [(17, 2)]
    if kind != "Laplace":
        assert (17, B) in shapes_of(compiled.jaxpr, "dot_general")


def assert_chunks_make_no_difference(latent_model):
    @quick_jit
    def matrices():
        z = draws(latent_model, 4)
        return [pairwise_log_likelihood(latent_model, z, chunk_size=size) for size in (None, 1, 4, 100)]

    whole, *chunked = matrices()
    for matrix in chunked:
        np.testing.assert_allclose(matrix, whole, rtol=1e-6)


def test_the_generic_path_is_the_same_in_chunks_of_any_size(caplog):
    latent_model = LatentModel(covariate, {}, X, C, check=False)
    assert_chunks_make_no_difference(latent_model)


def test_element_wise_forms_are_the_same_in_chunks_of_any_size():
    latent_model = LatentModel(model_of(LIKELIHOODS["Laplace"][0]), {}, X, check=False)
    assert_chunks_make_no_difference(latent_model)


# Gradients


@pytest.mark.parametrize("kind", ["Normal", "Bernoulli logits", "Categorical logits", "Laplace"])
def test_gradients_are_those_of_the_pairs(x64, kind):
    likelihood, x = LIKELIHOODS[kind]

    def model(x):
        gain = numpyro.param("gain", 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", likelihood(gain * standard_latent()), obs=x)

    def score(method, gain, z):
        latent_model = LatentModel(model, {"gain": gain}, x, check=False)
        return jnp.sum(jax.nn.logsumexp(method(latent_model, {"z": z}), 0))

    arguments, methods = (np.array(0.8), RNG.normal(size=(4, 2))), (pairwise_log_likelihood, by_pair)
    ours, theirs = quick_jit(lambda *a: [jax.grad(partial(score, method), (0, 1))(*a) for method in methods])(
        *arguments
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


# Rounding


def noisy_latents(distribution, x):
    """A model whose latents are the parameters of the data's distribution."""

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", normal(0.0, 1.0).expand([x.shape[1]]).to_event(1))
            numpyro.sample("x", distribution(z).to_event(1), obs=x)

    return LatentModel(model, {}, x, check=False)


@partial(jax.jit, static_argnums=0)
def matching_error(distribution, x, z, *parameters):
    """Distance on matching pairs from the element-wise form of the same precision."""
    of_latents = lambda z: distribution(z, *parameters)  # noqa: E731
    matching = jnp.diag(pairwise_log_likelihood(noisy_latents(of_latents, x), {"z": z}))
    return jnp.max(jnp.abs(matching - of_latents(z).log_prob(x).sum(-1)))


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("standard_deviation", [3.0, 0.3, 0.1, 1e-2, 1e-4])
@pytest.mark.parametrize("dimension", [10, 784, 3072])
def test_normal_products_are_within_a_hundredth_of_a_nat(dimension, standard_deviation, offset, optimised):
    rng = np.random.default_rng(dimension)
    x = np.float32(rng.normal(size=(8, dimension)) + offset)
    z = np.float32(x + standard_deviation * rng.normal(size=x.shape))
    assert matching_error(normal, x, z, standard_deviation) <= 1e-2


@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 1e4])
@pytest.mark.parametrize("dimension", [784, 3072])
def test_bernoulli_products_are_within_a_hundredth_of_a_nat(dimension, size, optimised):
    rng = np.random.default_rng(dimension)
    x = np.float32(rng.random((8, dimension)) < 0.3)
    logits = np.float32((2 * x - 1) * np.abs(rng.normal(size=x.shape)) * size)
    assert matching_error(dist.BernoulliLogits, x, logits) <= 1e-2


@jax.jit
def matrix_and_bound(z, x, scale):
    """The matrix of a Normal or, without a scale, a Bernoulli likelihood, and the bound of its rounding error."""
    base = dist.BernoulliLogits(z) if scale is None else dist.Normal(z, scale)
    form = pairwise._MATRIX_FORMS[type(base)]
    return form(base, lambda parameter: parameter, jnp.ones(x.shape[1]), x)


@pytest.mark.parametrize("standard_deviation", [None, 1.0, 0.01])
@pytest.mark.parametrize("dimension", [10, 784, 1025, 12_288])
def test_the_rounding_error_of_a_product_is_within_its_bound(dimension, standard_deviation, optimised):
    rng = np.random.default_rng(dimension)
    if standard_deviation is None:
        x = np.float32(rng.random((40, dimension)) < 0.3)
        z = np.float32((2 * x - 1) * np.abs(10.0 * rng.normal(size=x.shape)))
        scale, exact = None, x * np.float64(z) - np.logaddexp(0.0, np.float64(z))
    else:
        x = np.float32(rng.normal(size=(40, dimension)))
        z = np.float32(x + standard_deviation * rng.normal(size=x.shape))
        scale = np.full_like(x, standard_deviation)
        exact = scipy.stats.norm(np.float64(z), np.float64(scale)).logpdf(x)
    matrix, bound = matrix_and_bound(z, x, scale)
    assert np.max(np.abs(np.diag(matrix) - exact.sum(-1))) < bound


@pytest.mark.parametrize("kind", [kind for kind in LIKELIHOODS if "logits" in kind or "by a constant" in kind])
def test_ordinary_data_take_the_matrix_product(monkeypatch, kind):
    likelihood, x = LIKELIHOODS[kind]
    x = missing(x) if "Normal" in kind else x  # hidden by the mask
    latent_model = LatentModel(model_of(likelihood), {}, x, check=False)
    assert products_taken(monkeypatch, latent_model, 4) == [True]


@pytest.mark.parametrize(("offset", "standard_deviation", "product"), [(1000.0, 0.1, True), (0.0, 1e-3, False)])
def test_only_the_spread_of_the_data_in_standard_deviations_ends_the_product(
    monkeypatch, offset, standard_deviation, product
):
    x = np.asarray(X) + np.float32(offset)
    latent_model = noisy_latents(lambda z: normal(z, standard_deviation), x)
    assert products_taken(monkeypatch, latent_model, {"z": x}) == [product]


def test_draws_far_from_every_datum_do_not_end_the_matrix_product(monkeypatch):
    """Their log-likelihoods agree relative to their own size."""
    x = np.asarray(X)
    z, latent_model = np.concatenate([x, np.float32(300.0) + x]), noisy_latents(lambda z: normal(z, 0.05), x)
    np.testing.assert_allclose(*matrix_and_pairs(latent_model, {"z": z}), rtol=1e-4, atol=1e-2)
    assert products_taken(monkeypatch, latent_model, {"z": z}) == [True]


@pytest.mark.parametrize("kind", ["Normal", "Bernoulli logits"])
def test_gradients_are_finite_and_right_outside_the_safe_range(kind):
    x = BINARY if kind == "Bernoulli logits" else X
    likelihood = (
        (lambda z: dist.Bernoulli(logits=1e5 * (z @ W)).to_event(1))
        if kind == "Bernoulli logits"
        else (lambda z: normal(z @ W, 1e-4).to_event(1))
    )
    latent_model = LatentModel(model_of(likelihood), {}, x, check=False)

    @quick_jit
    def gradients():
        z = draws(latent_model, 4)
        methods = pairwise_log_likelihood, by_pair
        return [jax.grad(lambda z, m=method: m(latent_model, z).sum())(z)["z"] for method in methods]

    ours, theirs = gradients()
    assert np.all(np.isfinite(ours))
    np.testing.assert_allclose(ours, theirs, rtol=1e-4)


def test_infinite_logits_are_summed_element_by_element():
    forbidden = jnp.array([0.0, 0.0, 0.0, -jnp.inf])

    def likelihood(z):
        logits = jnp.einsum("ni,idk->ndk", z, PROJECT) + forbidden
        return dist.Categorical(logits=logits, validate_args=False).to_event(1)

    words = np.array(WORDS)
    words[1:] %= 3
    words[0, 0] = 3
    matrix, pairs = matrix_and_pairs(LatentModel(model_of(likelihood), {}, words, check=False), 4)
    np.testing.assert_allclose(matrix, pairs, rtol=1e-5)
    assert np.all(matrix[:, 0] == -np.inf) and np.all(np.isfinite(matrix[:, 1:]))


def test_what_a_constant_mask_hides_may_be_missing():
    likelihood, _ = LIKELIHOODS["Normal, masked by a constant"]
    matrix, pairs = matrix_and_pairs(LatentModel(model_of(likelihood), {}, missing(X), check=False), 4)
    assert np.all(np.isfinite(matrix))
    np.testing.assert_allclose(matrix, pairs, rtol=1e-5)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: pairwise_log_likelihood(m, {"z": jnp.ones((4, 3))}), "'z' has shape"),
        (lambda m: pairwise_log_likelihood(m, {"z": jnp.ones((4, 2))}, np.asarray(X)[:, :2]), "datum has shape"),
        (lambda m: pairwise_log_likelihood(m, {"y": jnp.ones((4, 2))}), "latent sites are"),
    ],
)
def test_wrong_shapes_are_errors(call, message):
    latent_model = LatentModel(model_of(LIKELIHOODS["Normal"][0]), {}, X, check=False)
    with pytest.raises(ValueError, match=message):
        call(latent_model)


def test_a_latent_outside_the_plate_is_an_error_that_names_it():
    def model(x):
        mean = numpyro.sample("mean", normal(0.0, 1.0))
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", normal(mean, 1.0).expand([D]).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"pairwise_log_likelihood needs .*'mean' is outside"):
        pairwise_log_likelihood(LatentModel(model, {}, X), {"mean": np.ones(3)})
