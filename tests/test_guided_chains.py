"""LangevinMLE(start="guide"): gradients, weights and what the guide learns, against closed forms and quadrature."""

import functools
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from numpyro.infer import SVI
from prior_cases import quick_jit

from numpyro_kaem import (
    KAEM,
    MALA,
    BSpline,
    HeldOut,
    ImportanceSampling,
    IndexedBatch,
    KAPrior,
    Ladder,
    LangevinMLE,
    ThermodynamicMLE,
    UnivariateEnergy,
    fit,
)
from numpyro_kaem.generators import MLP
from numpyro_kaem.models import LatentModel
from numpyro_kaem.objectives import population
from numpyro_kaem.objectives.objective import STATE

STEP = MALA(step_size=0.4, precondition=False)
PARAMS = {
    "location": jnp.array([0.5, -0.3]),
    "weight": jnp.array([[1.0, 0.6, 0.4], [0.8, -0.2, 0.7]]),
    "noise": jnp.array(0.7),
}
X = jnp.array([[1.4, -0.4, 1.0], [-0.8, 0.9, 0.1]])


def factors(x):
    """z ~ Normal(location, 1), x = z W + noise."""
    p = {name: numpyro.param(name, value) for name, value in PARAMS.items()}
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(p["location"], 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ p["weight"], p["noise"]).to_event(1), obs=x)


def log_evidence(p, x):
    covariance = p["weight"].T @ p["weight"] + p["noise"] ** 2 * jnp.eye(3)
    return dist.MultivariateNormal(p["location"] @ p["weight"], covariance).log_prob(x)


WEIGHT, NOISE = np.asarray(PARAMS["weight"], float), float(PARAMS["noise"])
COVARIANCE = np.linalg.inv(np.eye(2) + WEIGHT @ WEIGHT.T / NOISE**2)
# The posterior's mean is x @ GAIN + BIAS.
GAIN, BIAS = WEIGHT.T @ COVARIANCE / NOISE**2, np.asarray(PARAMS["location"], float) @ COVARIANCE


def shifted(by):
    """The exact posterior, moved, as a guide."""

    def guide(x):
        moved = numpyro.param("moved", by * jnp.ones(2))
        mean = x @ jnp.asarray(GAIN, jnp.float32) + jnp.asarray(BIAS, jnp.float32) + moved
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.MultivariateNormal(mean, jnp.asarray(COVARIANCE, jnp.float32)))

    return guide


def standard_errors_off(objective, by, num_keys=4_000):
    """By how many standard errors each entry of the mean gradient is off, and how large the standard errors are."""
    guide, params = shifted(by), PARAMS | {"moved": by * jnp.ones(2)}

    @quick_jit
    def run(keys):
        loss = jax.vmap(lambda key: jax.grad(lambda p: -objective.loss(key, p, factors, guide, X))(params))
        return loss(keys), jax.grad(lambda p: log_evidence(p, X).sum())(PARAMS)

    samples, exact = jax.tree.map(
        lambda leaf: np.asarray(leaf, float), run(jax.random.split(jax.random.key(1), num_keys))
    )
    # The guide's gradient is that of log q at draws from the posterior: it points from where it is to where they are.
    exact["moved"] = -by * len(X) * np.linalg.inv(COVARIANCE) @ np.ones(2)
    errors = {name: leaf.std(0) / num_keys**0.5 for name, leaf in samples.items()}
    off = np.concatenate([((samples[name].mean(0) - exact[name]) / errors[name]).ravel() for name in exact])
    norm = np.sqrt(sum(np.sum(exact[name] ** 2) for name in PARAMS))
    return np.abs(off), max(errors[name].max() for name in PARAMS) / norm


@pytest.mark.parametrize(
    ("by", "options"),
    [(0.0, {"num_steps": 1}), pytest.param(1.0, {"num_steps": 40, "num_draws": 20}, marks=pytest.mark.slow)],
    ids=["exact guide, one step", "shifted guide, many steps"],
)
def test_the_gradient_is_that_of_the_log_likelihood(by, options):
    """Twelve numbers, six standard errors: a false alarm in 4e7."""
    off, error = standard_errors_off(LangevinMLE(STEP, persistent=False, start="guide", **options), by)
    assert off.max() < 6.0 and error < 0.03


@pytest.mark.slow
def test_a_shifted_guide_biases_chains_that_are_short():
    off, _ = standard_errors_off(LangevinMLE(STEP, 1, persistent=False, start="guide", num_draws=1), 1.0)
    assert off.max() > 12.0


def linear(x):
    """Normal with independent coordinates."""
    gain, bias = numpyro.param("gain", jnp.zeros((3, 2))), numpyro.param("bias", jnp.zeros(2))
    scale = numpyro.param("scale", jnp.ones(2), constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(x @ gain + bias, scale).to_event(1))


def known(x):
    """`factors`, with nothing to learn but its guide."""
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(PARAMS["location"], 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ PARAMS["weight"], PARAMS["noise"]).to_event(1), obs=x)


def drawn(num_data):
    rng = np.random.default_rng(0)
    z = np.asarray(PARAMS["location"]) + rng.normal(size=(num_data, 2))
    return (z @ WEIGHT + NOISE * rng.normal(size=(num_data, 3))).astype(np.float32)


FITTED = {"optimizer": optax.adam(optax.cosine_decay_schedule(0.05, 400, 0.02)), "progress": False}


@pytest.mark.parametrize("persistent", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_guide_learns_the_posterior(persistent):
    """Of each coordinate by itself: the bound that ELBOs maximise would make it too narrow, by a seventh here."""
    objective = LangevinMLE(num_steps=2, persistent=persistent, start="guide")
    x = drawn(800)
    result = fit(
        jax.random.key(1), known, x, objective=objective, guide=linear, num_epochs=50, batch_size=100, **FITTED
    )
    learned = result.guide_params
    # Regression of draws of standard deviation 0.6 on 800 data, averaged over the last steps, is known to 0.02.
    np.testing.assert_allclose(learned["gain"], GAIN, atol=0.06)
    np.testing.assert_allclose(learned["bias"], BIAS, atol=0.06)
    np.testing.assert_allclose(learned["scale"], np.sqrt(np.diag(COVARIANCE)), atol=0.03)
    assert np.all(np.diag(np.linalg.inv(COVARIANCE)) ** -0.5 < np.asarray(learned["scale"]) - 0.03)
    assert result.params == {} and set(result.history) >= {"acceptance", "stuck", "importance_gap", "log_likelihood"}
    # Half of five draws count nearly always once the guide is right, and chains agree with them.
    late = result.history["importance_gap"][-100:]
    assert np.isfinite(late).mean() > 0.9 and abs(np.nanmean(late)) < 0.1


PRIOR = KAPrior(
    UnivariateEnergy.init(jax.random.key(3), basis=BSpline(6, 3, (0.0, 2.0)), scale=1.0), dist.Uniform(0.0, 2.0)
)


def gamma(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Gamma(2.0, 1.0))
        numpyro.sample("x", dist.Poisson(z), obs=x)


def learned(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", PRIOR)
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def transformed(support):
    """A guide that is normal in unconstrained coordinates, and not near the posterior."""

    def guide(x):
        with numpyro.plate("data", x.shape[0]):
            normal = dist.Normal(0.7 * jnp.ones(x.shape[0]), 1.1)
            numpyro.sample("z", dist.TransformedDistribution(normal, dist.transforms.biject_to(support)))

    return guide


GRID = np.linspace(0.0, 2.0, 20_001)


@functools.cache
def cdf_by_quadrature(x):
    density = np.exp(np.asarray(PRIOR.log_prob(GRID[1:-1]), float)) * scipy.stats.norm(GRID[1:-1], 0.5).pdf(x)
    return np.interp(GRID, GRID[1:-1], np.cumsum(density) / density.sum())


NUM_CHAINS = 10_000
BOUNDED = {
    "gamma": (gamma, dist.constraints.positive, 3, scipy.stats.gamma(5.0, scale=0.5).cdf, False),
    "learned": (learned, PRIOR.support, 0.9, lambda z: np.interp(z, GRID, cdf_by_quadrature(0.9)), False),
    "whitened": (learned, PRIOR.support, 0.9, lambda z: np.interp(z, GRID, cdf_by_quadrature(0.9)), True),
}


@pytest.mark.parametrize(
    "name", ["gamma", *(pytest.param(name, marks=pytest.mark.slow) for name in ("learned", "whitened"))]
)
def test_chains_of_the_posterior_stay_there(name):
    """They are resampled with draws from a wrong guide, on a bounded support. False alarm: 1e-7 each."""
    model, support, datum, cdf, whiten = BOUNDED[name]
    x, rng = jnp.full(NUM_CHAINS, datum), np.random.default_rng(0)
    levels = np.linspace(*((0.0, 30.0) if name == "gamma" else (0.0, 2.0)), 20_001)
    exact = np.interp(rng.uniform(size=NUM_CHAINS), cdf(levels), levels)
    kernel = MALA(step_size=1e-9, precondition=False, whiten=whiten)
    objective = LangevinMLE(kernel, 1, persistent=True, start="guide", num_draws=3)
    latent_model = LatentModel(model, {}, x)
    state = objective.initial_state(latent_model, NUM_CHAINS)
    if whiten:
        positions = scipy.stats.norm.ppf(np.asarray(PRIOR.cdf(exact)))
    else:
        positions = np.asarray(dist.transforms.biject_to(support).inv(exact))
    positions = jnp.asarray(positions, jnp.float32)[:, None, None, None]
    state["per_datum"] |= {"positions": positions, "started": jnp.ones(NUM_CHAINS, bool)}
    update = quick_jit(
        lambda state: objective.loss_with_mutable_state(
            jax.random.key(1), {STATE: state}, model, transformed(support), x
        )["mutable_state"]
    )
    kept = np.asarray(update(state)[STATE]["per_datum"]["positions"])[:, 0, 0, 0]
    if whiten:
        z = np.asarray(PRIOR.icdf(scipy.stats.norm.cdf(kept)))
    else:
        z = np.asarray(dist.transforms.biject_to(support)(kept))
    assert 0.3 < np.mean(np.abs(z - exact) > 1e-3) < 0.95
    assert scipy.stats.kstest(z, cdf).pvalue > 1e-7


def scaled(x):
    scale = numpyro.param("scale", 1.0)
    with numpyro.plate("data", x.shape[0], subsample_size=20) as rows:
        z = numpyro.sample("z", dist.Normal())
        numpyro.sample("x", dist.Normal(scale * z, 0.5), obs=x[rows])


def encoder(x):
    gain = numpyro.param("gain", 0.1)
    with numpyro.plate("data", x.shape[0], subsample_size=20) as rows:
        numpyro.sample("z", dist.Normal(gain * x[rows], 0.5))


ROWS = 2.0 * jax.random.normal(jax.random.key(0), (40,))


@pytest.mark.parametrize(
    "objective",
    [LangevinMLE(num_steps=2, start="guide"), LangevinMLE(STEP, 2, persistent=False, start="guide", plate="data")],
    ids=["state", "no state"],
)
def test_both_learn_in_the_loop_of_numpyro(objective):
    guide = objective.guide(scaled, encoder) if objective.persistent is None else encoder
    svi = SVI(scaled, guide, optax.adam(0.05), objective)

    @quick_jit
    def run(key):
        state = svi.init(key, ROWS)
        state, losses = jax.lax.scan(lambda state, _: svi.update(state, ROWS), state, length=200)
        return svi.get_params(state), losses

    params, losses = run(jax.random.key(1))
    # The maximum, and its posterior's gain; the optimiser's noise is about 0.1.
    variance = float(jnp.mean(ROWS**2))
    scale = (variance - 0.25) ** 0.5
    assert abs(params["scale"] - scale) < 0.3 and abs(params["gain"] - scale / variance) < 0.15
    assert np.isfinite(losses).all()


def test_a_site_of_both_is_learned_by_both():
    def shared(x, name="scale"):
        scale = numpyro.param(name, 1.0)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(scale * x / (scale**2 + 0.25), 0.5))

    def model(x):
        scale = numpyro.param("scale", 1.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(scale * z, 0.5), obs=x)

    objective = LangevinMLE(STEP, 1, persistent=False, start="guide")

    @quick_jit
    def gradients(scale, own):
        def of(guide):
            return lambda params: objective.loss(jax.random.key(0), params, model, guide, ROWS)

        apart = jax.grad(of(partial(shared, name="own")))({"scale": scale, "own": own})
        return jax.grad(of(shared))({"scale": scale}), apart

    together, apart = gradients(jnp.array(0.8), jnp.array(0.8))
    assert min(map(abs, apart.values())) > 0.1
    np.testing.assert_allclose(together["scale"], apart["scale"] + apart["own"], rtol=1e-5)


def test_chains_of_a_stream_are_kept_by_its_indices():
    class Batches:
        def __iter__(self):
            return iter([IndexedBatch(ROWS[i : i + 20], np.arange(i, i + 20)) for i in (0, 20)])

    objective = LangevinMLE(STEP, 1, persistent=True, start="guide")
    options = {"objective": objective, "guide": plain, "num_epochs": 2, "optimizer": optax.adam(0.01)}
    result = fit(jax.random.key(0), simple, Batches(), progress=False, **options)
    assert result.guide_params["gain"] > 0.1 and np.isfinite(result.history["loss"]).all()


def test_chains_start_at_draws_from_the_guide_and_have_their_spread():
    """Of 400 draws the spread by quantiles has an error of 5 %, the standard deviation one of 3.5 %: six times that."""
    params = {"gain": jnp.asarray(GAIN, jnp.float32), "bias": jnp.asarray(BIAS, jnp.float32)}
    params["scale"] = jnp.array([0.05, 3.0])
    model = LatentModel(known, {}, jnp.asarray(drawn(400)))
    encoder = LangevinMLE(STEP, start="guide").read_guide(linear, params, model)
    target = population.frozen_target(model, MALA())

    @quick_jit
    def draw(key, encoder):
        return population.draw_first(key, target, encoder, MALA(), 1, 1, 1, False)

    of_guide, of_prior = draw(jax.random.key(0), encoder), draw(jax.random.key(0), None)
    np.testing.assert_allclose(of_guide.scale, params["scale"], rtol=0.3)
    np.testing.assert_allclose(of_prior.scale, 1.0, rtol=0.3)
    off = (of_guide.starts[:, 0, 0] - model.rows[0] @ params["gain"] - params["bias"]) / params["scale"]
    np.testing.assert_allclose(off.std(0), 1.0, rtol=0.22)

    def broken_at_some(x):
        return linear(jnp.where(x[:, :1] > 2.0, jnp.nan, x))

    at_some = draw(jax.random.key(0), LangevinMLE(STEP, start="guide").read_guide(broken_at_some, params, model))
    assert 10 < np.isnan(at_some.starts[:, 0, 0, 0]).sum() < 100
    np.testing.assert_allclose(at_some.scale, params["scale"], rtol=0.5)


def test_negative_samples_are_shared_prior_draws():
    assert LangevinMLE(STEP, 1, start="guide", num_draws=7).num_negative == 100
    assert LangevinMLE(STEP, 1, num_draws=7).num_negative == 7


def simple(x):
    location = numpyro.param("location", 0.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


def plain(x):
    gain = numpyro.param("gain", 0.1)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(gain * x, 0.5))


def other(x):
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("w", dist.Normal(x, 1.0))


GUIDED = LangevinMLE(STEP, 1, start="guide")
OPTIONS = {"optimizer": optax.adam(0.01), "num_epochs": 1, "batch_size": 20, "progress": False}
MISSING = re.escape("guide must be given with LangevinMLE(") + r".*start='guide'.*KAEM\.create\(encoder=True\)"


@pytest.mark.parametrize(
    ("message", "call"),
    [
        (MISSING, lambda: fit(jax.random.key(0), simple, ROWS, objective=GUIDED, **OPTIONS)),
        (MISSING, lambda: GUIDED.guide(simple)),
        (MISSING, lambda: GUIDED.loss(jax.random.key(0), {"location": 0.0}, simple, lambda x: None, ROWS)),
        (
            r"guide must have the latent sites of the model, \['z'\]: missing \['z'\], extra \['w'\]",
            lambda: fit(jax.random.key(0), simple, ROWS, objective=GUIDED, guide=other, **OPTIONS),
        ),
        (
            r"guide must have no sites with LangevinMLE",
            lambda: fit(jax.random.key(0), simple, ROWS, objective=LangevinMLE(STEP, 1), guide=encoder, **OPTIONS),
        ),
        (
            r"start must be 'importance' or 'prior' with ThermodynamicMLE.*take LangevinMLE\(start='guide'\)",
            lambda: ThermodynamicMLE(Ladder.power(3), start="guide"),
        ),
        (r"num_draws must be a whole number of at least 1, got 0", lambda: LangevinMLE(start="guide", num_draws=0)),
        (r"start must be one of \('prior', 'importance', 'guide'\)", lambda: LangevinMLE(start="encoder")),
    ],
)
def test_what_does_not_fit_is_named(message, call):
    with pytest.raises(ValueError, match=message):
        call()


def test_a_kaem_trains_its_encoder():
    keys = jax.random.split(jax.random.key(0))
    networks = {"generator": MLP(keys[0], 2, 6, (8,)), "encoder": MLP(keys[1], 6, 4, (8,))}
    prior = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
    kaem = KAEM.create(jax.random.key(0), (6,), latent_size=2, likelihood="bernoulli", prior=prior, **networks)
    x = jax.random.bernoulli(jax.random.key(1), jnp.where(jnp.arange(80)[:, None] < 40, 0.9, 0.1), (80, 6)).astype(
        float
    )
    objective = LangevinMLE(num_steps=2, start="guide")
    options = {"objective": objective, "num_epochs": 60, "batch_size": 40, "progress": False}
    held_out = HeldOut(x[:20], every=30, sampler=ImportanceSampling(100, progress=False))
    trained = kaem.fit(jax.random.key(2), x, held_out=held_out, optimizer=optax.adam(1e-2), **options)
    for sites in ("params", "guide_params"):
        before, after = jax.tree.leaves(getattr(kaem, sites)), jax.tree.leaves(getattr(trained, sites))
        assert len(before) == len(after) and not any(map(np.array_equal, before, after))
    # Scores are by the encoder as it is by then. Fair coins have 4.16 nats; two groups of six flips of a tenth 2.64.
    scores = trained.history["held_out_log_likelihood"]
    assert scores[0] < scores[-1] and scores[-1] > -3.3
