"""The KAEM object: what it composes, trains, samples and scores, against closed forms and the same by hand."""

import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import optax
import pytest
from scipy.stats import multivariate_normal

from numpyro_kaem import (
    KAEM,
    MLP,
    BSpline,
    ClusterPrior,
    ConvDecoder,
    ConvEncoder,
    GridAdaptation,
    ImportanceMLE,
    ImportanceSampling,
    IndexedBatch,
    KAPrior,
    Langevin,
    LangevinMLE,
    SequenceDecoder,
    SequenceEncoder,
    TemperedSMC,
    UnivariateEnergy,
    fit,
)
from numpyro_kaem.kaem.defaults import default_objective, training_options
from numpyro_kaem.kaem.evaluation import bits_per_number
from numpyro_kaem.kaem.networks import located
from numpyro_kaem.kaem.priors import KINDS, from_uniforms, num_uniforms

KEY = jax.random.key(0)
NOISE = 0.5
# Rows are orthogonal, so that posteriors are independent normal distributions.
WEIGHTS = np.array([[1.0, 1.0, 0.5, 0.0, 0.0], [0.5, -0.5, 0.0, 1.0, -1.0]], np.float32)
COVARIANCE = WEIGHTS.T @ WEIGHTS + NOISE**2 * np.eye(5)
PRECISIONS = 1.0 + (WEIGHTS**2).sum(1) / NOISE**2
BASIS = BSpline(num_intervals=6, degree=3, domain=(-3.0, 3.0))
SMALL = {"latent_size": 2, "hidden_sizes": (8,), "basis": BASIS}
SMC = TemperedSMC(num_particles=64, num_mcmc_steps=4, num_runs=2, progress=False)


def generator(z):
    return z @ WEIGHTS


def exact_encoder(x):
    mean = x @ WEIGHTS.T / NOISE**2 / PRECISIONS
    return jnp.concatenate([mean, jnp.broadcast_to(-0.5 * jnp.log(PRECISIONS), mean.shape)], axis=-1)


def standard_normal(size=2):
    return dist.Normal(jnp.zeros(size), 1.0).to_event(1)


@pytest.fixture(scope="module")
def linear():
    """A model whose likelihood, posterior and draws are known, and data from it."""
    x = np.random.default_rng(1).multivariate_normal(np.zeros(5), COVARIANCE, size=20)
    return KAEM(standard_normal(), generator, "normal", noise=NOISE), x


@pytest.fixture(scope="module")
def two_groups():
    """Bits of one of two patterns, with a tenth of them flipped."""
    rng = np.random.default_rng(2)
    patterns = np.repeat([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], 40, axis=0)
    x = np.where(rng.random(patterns.shape) < 0.1, 1 - patterns, patterns)
    return rng.permutation(x)


def test_decode_is_the_mean_at_a_latent_and_runs_inside_of_compiled_functions(linear):
    kaem, _ = linear
    z = jnp.linspace(-1.0, 1.0, 6).reshape(3, -1)
    assert z.shape[1:] == kaem.prior.event_shape
    expected = generator(z)
    np.testing.assert_allclose(kaem.decode(z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda z: kaem.decode(z))(z), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(kaem.decode)(z), expected, rtol=1e-5, atol=1e-6)
    of_both = eqx.filter_jit(lambda kaem, z: kaem.decode(z))
    np.testing.assert_allclose(of_both(kaem, z), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda z: kaem.decode(z).sum())(z)
    np.testing.assert_allclose(gradient, jax.grad(lambda z: generator(z).sum())(z), rtol=1e-5, atol=1e-6)


def test_scores_of_a_linear_model_are_those_of_the_normal_distribution(linear):
    kaem, x = linear
    exact = multivariate_normal(np.zeros(5), COVARIANCE).logpdf(x)
    scores = kaem.evaluate(KEY, x, SMC, num_scored=20)
    # The sampler's own error is about 0.03 nats on the mean of 20 data: six times that.
    assert abs(scores.log_likelihood.value - exact.mean()) < 0.2
    np.testing.assert_allclose(scores.log_likelihood.std_error, exact.std(ddof=1) / 20**0.5, rtol=0.3)
    np.testing.assert_allclose(scores.bits_per_dimension.value, -scores.log_likelihood.value / 5 / np.log(2), rtol=1e-6)
    means = x @ WEIGHTS.T / NOISE**2 / PRECISIONS @ WEIGHTS
    np.testing.assert_allclose(scores.reconstruction_error.value, np.mean((x - means) ** 2), rtol=0.3)
    assert abs(scores.importance_gap.value) < 6 * scores.importance_gap.std_error + 1e-3
    assert scores.num_parameters.value == 0 and scores.num_data == 20
    lines = str(scores).splitlines()
    assert len(lines) == len(scores.to_pandas()) == len(scores.to_markdown().splitlines()) - 2 == 9
    assert "TemperedSMC" in lines[0] and "values" in scores.frechet_distance.what


def test_sample_is_prior_generator_and_likelihood(linear):
    kaem, _ = linear
    z_key, x_key = jax.random.split(KEY)
    z = standard_normal().sample(z_key, (7,))
    expected = dist.Normal(generator(z), NOISE).sample(x_key)
    np.testing.assert_allclose(kaem.sample(KEY, 7), expected, rtol=1e-5)
    np.testing.assert_allclose(kaem.sample(KEY, 7, mean=True), generator(z), rtol=1e-5)


def test_what_is_kept_for_the_next_draw_is_of_these_parameters():
    # One program draws from all, and copies of a model that has drawn already draw by their own parameters.
    kaem = KAEM.create(KEY, (4,), likelihood="normal", **SMALL)
    kaem = kaem.at(kaem.params)
    first = kaem.sample(KEY, 5)
    changed = kaem.at(jax.tree.map(lambda value: 2.0 * value, kaem.params))
    assert not np.allclose(changed.sample(KEY, 5), first)
    for copy in (kaem.at(kaem.params), pickle.loads(pickle.dumps(kaem)), jax.tree.map(lambda leaf: leaf, kaem)):
        assert np.array_equal(copy.sample(KEY, 5), first)
    assert kaem.sample(KEY, 6).shape == (6, 4)


def test_an_exact_encoder_is_a_proposal_without_error(linear):
    _, x = linear
    kaem = KAEM(standard_normal(), generator, "normal", noise=NOISE, encoder=exact_encoder)
    sampler, reason = kaem.choose_sampler(KEY, x)
    assert isinstance(sampler, ImportanceSampling) and "encoder is 2000.0 or more" in reason
    exact = multivariate_normal(np.zeros(5), COVARIANCE).logpdf(x)
    given = ImportanceSampling(10, progress=False)
    scores = kaem.evaluate(KEY, x, given)
    np.testing.assert_allclose(scores.log_likelihood.value, exact.mean(), rtol=1e-4)
    np.testing.assert_allclose(kaem.log_likelihood(KEY, x, given), exact, rtol=1e-4)
    # Chains start there, too: with next to no steps they are still draws from the posterior.
    chains = Langevin(num_steps=1, warmup=1, num_chains=200, progress=False)
    mean = kaem.posterior(KEY, x, chains).expectation(lambda latents: latents["z"])
    np.testing.assert_allclose(mean, exact_encoder(x)[:, :2], atol=6 * (PRECISIONS.min() * 200) ** -0.5)


def test_where_prior_draws_are_few_tempered_smc_is_chosen():
    kaem = KAEM(standard_normal(), generator, "normal", noise=0.01)
    sampler, reason = kaem.choose_sampler(KEY, kaem.at({}).sample(KEY, 8))
    assert isinstance(sampler, TemperedSMC) and reason.startswith("tempered SMC: the effective sample size of 2,000")


@pytest.mark.parametrize("kind", KINDS)
def test_uniform_numbers_make_latents_of_the_prior(kind):
    kaem = KAEM.create(KEY, (6,), likelihood="bernoulli", prior=kind, num_components=3, **SMALL)
    prior = kaem.parts.prior_distribution
    assert prior.event_shape == ((3, 2) if kind == "univariate" else (2,))
    u = jax.random.uniform(KEY, (4000, num_uniforms(prior)))
    z, drawn = from_uniforms(prior, u), prior.sample(jax.random.key(1), (4000,))
    if kind == "cluster":  # the last number is that of the cluster, whose proportions are equal
        each = prior.component_distribution.base_dist.icdf(u[:, None, :-1])
        np.testing.assert_array_equal(z, np.take_along_axis(each, (3 * u[:, -1:, None]).astype(int), axis=1)[:, 0])
    # Two samples of 4,000, by Kolmogorov and Smirnov: 0.06 is exceeded with probability 5e-7.
    for a, b in zip(z.reshape(4000, -1).T, drawn.reshape(4000, -1).T, strict=True):
        grid = jnp.sort(jnp.concatenate([a, b]))
        gap = jnp.searchsorted(jnp.sort(a), grid) - jnp.searchsorted(jnp.sort(b), grid)
        assert abs(gap).max() / 4000 < 0.06


def test_a_matrix_of_latents_is_summed():
    energy = UnivariateEnergy.init(KEY, (3, 2), basis=BASIS)
    kaem = KAEM(KAPrior(energy, dist.Normal(0.0, 1.0)), lambda sums: 2.0 * sums, "normal", noise=0.1)
    z = kaem.parts.prior_distribution.sample(jax.random.split(KEY)[0], (4,))
    assert z.shape == (4, 3, 2)
    np.testing.assert_allclose(kaem.sample(KEY, 4, mean=True), 2.0 * z.sum(-1), rtol=1e-5)


def test_tables_that_were_kept_are_not_those_of_another_energy():
    prior = KAPrior(UnivariateEnergy.init(KEY, (2,), basis=BASIS), dist.Normal(0.0, 1.0)).tabulate()
    kaem = KAEM(prior.to_event(1), lambda z: z, "normal", noise=0.1)
    moved = eqx.tree_at(
        lambda e: e.coefficients, kaem.params["prior$params"], replace_fn=lambda c: c + jnp.arange(c.shape[-1])
    )
    moved = kaem.at({"prior$params": moved})
    assert float(moved.sample(KEY, 200).mean()) > 0.5 + float(kaem.at({}).sample(KEY, 200).mean())


def test_probabilities_of_clusters_are_those_of_a_mixture_of_normals(linear):
    _, x = linear
    clusters, zeros = ClusterPrior(KEY, 3, 2, basis=BASIS), jnp.zeros((3, 2))
    clusters = eqx.tree_at(
        lambda prior: (prior.energy.base_weight, prior.energy.spline_weight), clusters, (zeros, zeros)
    )
    kaem = KAEM(clusters, generator, "normal", noise=NOISE)
    scale = np.exp(clusters.log_scale)
    log_p = np.stack(
        [
            multivariate_normal(loc @ WEIGHTS, WEIGHTS.T * s**2 @ WEIGHTS + NOISE**2 * np.eye(5)).logpdf(x)
            for loc, s in zip(np.asarray(clusters.loc), scale, strict=True)
        ],
        axis=-1,
    )
    # Effective draws are a thousand or more, of standard deviation one half at most: six times that.
    sampler = ImportanceSampling(40_000, progress=False)
    np.testing.assert_allclose(kaem.cluster_probabilities(KEY, x, sampler), jax.nn.softmax(log_p, axis=-1), atol=0.1)


def test_fit_is_fit_by_hand(two_groups):
    kaem = KAEM.create(KEY, (6,), likelihood="bernoulli", **SMALL)
    options = {"objective": ImportanceMLE(50), "optimizer": optax.adam(1e-2), "num_epochs": 3, "batch_size": 20}
    trained = kaem.fit(KEY, two_groups, progress=False, **options)
    result = fit(KEY, kaem.model, jnp.asarray(two_groups, float), progress=False, **options)
    jax.tree.map(np.testing.assert_array_equal, trained.params, {name: result.params[name] for name in trained.params})
    jax.tree.map(np.testing.assert_array_equal, kaem.at(result.params).params, trained.params)
    assert list(trained.to_pandas()["epoch_loss"]) == list(result.history["epoch_loss"])
    assert kaem.history is None and not kaem.is_trained and trained.is_trained

    # The optimiser begins anew, or goes on.
    for goes_on, steps in ((False, 12), (True, 24)):
        again = trained.fit(KEY, two_groups, progress=False, continue_optimizer=goes_on, **options)
        assert max(int(leaf) for leaf in again.optimizer_state if leaf.ndim == 0) == steps
    with pytest.raises(ValueError, match=r"init_optimizer_state must be that of the same optimizer"):
        trained.fit(KEY, two_groups, progress=False, continue_optimizer=True, **options | {"optimizer": optax.sgd(0.1)})


def test_held_out_data_are_scored_by_the_encoder_as_it_is_by_then(two_groups):
    kaem = KAEM.create(KEY, (6,), likelihood="bernoulli", encoder=True, **SMALL)
    options = {"num_epochs": 2, "batch_size": 40, "progress": False, "held_out": two_groups[:10]}
    samplers = {"default": None, "given": ImportanceSampling(100, guide=kaem.guide)}
    scores = {name: kaem.fit(KEY, two_groups, held_out_sampler=s, **options).history for name, s in samplers.items()}
    expected = scores["default"]["held_out_log_likelihood"]
    assert expected.shape == (2,)
    for history in scores.values():
        np.testing.assert_array_equal(history["held_out_log_likelihood"], expected)


def test_grids_adapt_and_are_saved(two_groups, tmp_path):
    kaem = KAEM.create(KEY, (6,), likelihood="bernoulli", **SMALL)
    energy = kaem.parts.prior.base_dist.energy
    options = {"num_epochs": 2, "batch_size": 40, "objective": ImportanceMLE(50), "progress": False}
    adaptation = GridAdaptation(name="prior", energy=energy, site="z", every=2)
    trained = kaem.fit(KEY, two_groups, grid_adaptation=adaptation, **options)
    points = trained.params["prior$grid"]["points"]
    assert points.shape[0] == 2 and not np.allclose(points[0], points[1])
    trained.save(tmp_path / "adapted.kaem")
    loaded = KAEM.load(tmp_path / "adapted.kaem")
    np.testing.assert_array_equal(loaded.params["prior$grid"]["points"], points)
    np.testing.assert_array_equal(loaded.sample(KEY, 50), trained.sample(KEY, 50))
    mixture = KAEM.create(KEY, (6,), likelihood="bernoulli", prior="mixture", num_components=2, **SMALL)
    energy = mixture.parts.prior.base_dist.components.energy
    with pytest.raises(ValueError, match="grid_adaptation needs one grid for all components"):
        mixture.fit(KEY, two_groups, grid_adaptation=GridAdaptation(name="prior", energy=energy, site="z"), **options)


@pytest.mark.slow
@pytest.mark.parametrize("encoder", [False, True])
def test_defaults_learn_that_there_are_two_groups(two_groups, encoder):
    kaem = KAEM.create(KEY, (6,), likelihood="bernoulli", encoder=encoder, **SMALL)
    trained = kaem.fit(KEY, two_groups, held_out=two_groups[:10], progress=False)
    before, after = (np.mean(model.log_likelihood(KEY, two_groups, SMC)) for model in (kaem, trained))
    # Fair coins have 6 log 2 = 4.16 nats; the truth log 2 and six flips of a tenth, 2.64.
    assert before < -3.9 and -3.2 < after < -2.3
    assert trained.history["held_out_epoch"].tolist() == list(range(30, 601, 30))
    assert (trained.guide_params is None) == (not encoder)


def test_parts_that_suit_data():
    def parts_of(shape, likelihood, **options):
        return KAEM.create(KEY, shape, latent_size=3, likelihood=likelihood, encoder=True, basis=BASIS, **options).parts

    image = parts_of((9, 11, 3), "8-bit")
    assert isinstance(image.generator, ConvDecoder) and isinstance(image.encoder, ConvEncoder)
    flat = parts_of((9, 11), "bernoulli", hidden_sizes=(8,))
    assert isinstance(flat.generator, MLP)
    decoder = SequenceDecoder(KEY, 3, 5, 4, width=8, num_heads=2, num_layers=1, end_token=0)
    sequence = parts_of((4,), "categorical", generator=decoder)
    assert isinstance(sequence.encoder, SequenceEncoder) and sequence.encoder.end_token == 0
    few, many = (KAEM.create(KEY, (4,), latent_size=n, likelihood="normal", hidden_sizes=(4,)).parts for n in (16, 17))
    assert isinstance(default_objective(few), ImportanceMLE) and isinstance(default_objective(many), LangevinMLE)
    assert (
        training_options(few, 1_000, {})["num_epochs"] == 300 and training_options(few, 100_000, {})["num_epochs"] == 6
    )


def test_an_encoder_whose_scales_underflow_has_gradients_that_bring_it_back():
    def divergence(output):
        loc, log_scale = located(output)
        return dist.kl_divergence(dist.Normal(loc, jnp.exp(log_scale)), dist.Normal(0.0, 1.0)).sum(), log_scale

    output = jnp.array([0.5, -0.7, 0.2, -60.0, 0.3, 60.0])
    (_, log_scale), gradient = jax.value_and_grad(divergence, has_aux=True)(output)
    np.testing.assert_array_equal(log_scale, np.float32([-20.0, 0.3, 20.0]))
    ends = np.array([-20.0, 0.3, 20.0])
    np.testing.assert_allclose(gradient, [0.5, -0.7, 0.2, *np.expm1(2 * ends)], rtol=1e-5)


def test_sequences(two_groups):
    decoder = SequenceDecoder(KEY, 2, 3, 6, width=8, num_heads=2, num_layers=1, end_token=2)
    x = two_groups.copy()
    x[:, 4], x[:, 5] = 2, -7  # behind the end, anything
    kaem = KAEM(standard_normal(), decoder, "categorical")
    trained = kaem.fit(KEY, x, num_epochs=2, batch_size=40, progress=False, objective=ImportanceMLE(10))
    sampler = ImportanceSampling(20, progress=False)
    shown = trained.reconstruct(KEY, x[:5], sampler)
    assert kaem.shape == (6,) and shown.shape == (5, 6) and set(shown.ravel()) <= {0, 1, 2}
    scores = trained.evaluate(KEY, x, sampler, num_scored=5)
    assert scores.reconstruction_error.what == "share of elements" and 0 <= scores.reconstruction_error.value <= 1
    assert "category counts" in scores.frechet_distance.what
    # Five tokens of six are no padding, so that bits are by five.
    assert "5 numbers a datum" in scores.bits_per_dimension.what
    bits = -scores.log_likelihood.value / 5 / np.log(2)
    np.testing.assert_allclose(scores.bits_per_dimension.value, bits, rtol=1e-5)
    with pytest.raises(ValueError, match=r"got 3 at index \(1, 0\)"):
        trained.fit(KEY, np.array([[0, 1, 2, 2, 2, 2], [3, 1, 2, 2, 2, 2]]))


def test_bits_by_numbers_are_a_ratio_with_its_error():
    # Of data whose bits are as their numbers there is no error; else that of repeated samples.
    counts = np.array([1, 2, 3, 4])
    exact = bits_per_number(-np.log(2) * 3.0 * counts, counts)
    assert exact.value == 3.0 and exact.std_error < 1e-12 and "2.5 numbers" in exact.what
    rng = np.random.default_rng(0)
    counts = rng.integers(1, 9, size=(2_000, 50))
    bits = 3.0 * counts + rng.normal(size=counts.shape) * counts
    scores = [bits_per_number(-np.log(2) * row, count) for row, count in zip(bits, counts, strict=True)]
    errors = [score.std_error for score in scores]
    np.testing.assert_allclose(np.mean(errors), np.std([score.value for score in scores]), rtol=0.1)


def test_each_channel_has_its_noise():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4, 4, 2)) * np.array([0.1, 1.0])
    kaem = KAEM(standard_normal(), lambda z: jnp.zeros((*z.shape[:-1], 32)), "normal", shape=(4, 4, 2))
    kaem = kaem.fit(KEY, x, num_epochs=100, batch_size=300, progress=False, optimizer=optax.adam(0.05))
    np.testing.assert_allclose(np.exp(kaem.parts.likelihood.log_noise), [0.1, 1.0], rtol=0.1)


def test_eight_bits_from_a_stream():
    images = np.random.default_rng(0).integers(0, 256, size=(40, 8, 8, 1), dtype=np.uint8)
    decoder = ConvDecoder(KEY, 2, (8, 8, 1), channels=(4,))
    kaem = KAEM.create(KEY, (8, 8, 1), likelihood="8-bit", generator=decoder, **SMALL)

    class Batches:
        def __iter__(self):
            yield from ((batch,) for batch in images.reshape(4, 10, 8, 8, 1))

    trained = kaem.fit(KEY, Batches(), num_epochs=2, objective=ImportanceMLE(5), progress=False)
    assert trained.history["steps"].tolist() == [4, 8]
    assert trained.params["likelihood$params"].log_scale.shape == (1,)
    draws = np.asarray(trained.sample(KEY, 5))
    assert draws.min() >= 0 and draws.max() <= 255 and np.array_equal(draws, np.round(draws))
    with pytest.raises(ValueError, match="got an IndexedBatch"):
        kaem.fit(KEY, iter([IndexedBatch(images[:5], np.arange(5))]), num_epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"batch of x must have a row for each datum, of shape \(8, 8, 1\)"):
        kaem.fit(KEY, iter([images[:5, :4]]), num_epochs=1, progress=False)


def test_a_module_of_flax_is_learned(two_groups):
    nnx = pytest.importorskip("flax.nnx")
    network = nnx.Linear(2, 6, rngs=nnx.Rngs(0))
    kaem = KAEM(standard_normal(), network, "bernoulli")
    z = jnp.ones((3, 2))
    np.testing.assert_array_equal(kaem.parts.generator(z), network(z))
    trained = kaem.fit(KEY, two_groups, num_epochs=2, batch_size=40, objective=ImportanceMLE(20), progress=False)
    moved = trained.parts.generator.module()
    assert float(jnp.abs(moved.kernel[...] - network.kernel[...]).max()) > 1e-4
    with pytest.raises(ValueError, match="LayerNorm in place of BatchNorm"):
        KAEM(standard_normal(), nnx.BatchNorm(2, rngs=nnx.Rngs(0)), "normal")


def test_own_likelihoods_and_priors_with_parameters(two_groups):
    import numpyro

    def prior():
        return dist.Normal(numpyro.param("location", jnp.zeros(2)), 1.0)

    def likelihood(output):
        return dist.Bernoulli(logits=output)

    kaem = KAEM(prior, MLP(KEY, 2, 6, (8,)), likelihood)
    assert kaem.shape == (6,) and set(kaem.params) == {"location", "generator$params"}
    moved = kaem.at({"location": jnp.array([3.0, -3.0])})
    np.testing.assert_allclose(moved.parts.prior_distribution.mean, [3.0, -3.0])
    trained = kaem.fit(KEY, two_groups, num_epochs=2, batch_size=40, objective=ImportanceMLE(20), progress=False)
    assert float(jnp.abs(trained.params["location"]).max()) > 0


def test_summary_counts_what_is_learned():
    kaem = KAEM.create(KEY, (6,), likelihood="normal", encoder=True, **SMALL)
    sizes = [leaf.size for leaf in jax.tree.leaves(kaem.params | kaem.guide_params) if leaf.dtype == jnp.float32]
    lines = kaem.summary().splitlines()
    assert lines[-1].split() == ["total", f"{sum(sizes):,}"]
    assert [line.split()[0] for line in lines[2:-2]] == ["z", "x", "prior", "generator", "likelihood", "encoder"]
    assert repr(kaem) == "KAEM(Independent, MLP, NormalLikelihood, shape=(6,), not trained)"
    assert len(kaem.to_pandas()) == 0


def test_before_fit_there_is_a_warning(recwarn):
    kaem = KAEM.create(KEY, (6,), likelihood="normal", **SMALL)
    with pytest.warns(UserWarning, match="sample before fit: nothing has been learned") as caught:
        kaem.sample(KEY, 2)
    assert len(caught) == 1
    recwarn.clear()
    kaem.at(kaem.params).sample(KEY, 2)
    assert not recwarn
