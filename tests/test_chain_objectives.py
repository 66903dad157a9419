"""Training by chains with the defaults: right whatever the posteriors' sizes, and told where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import SVI

from numpyro_kaem import (
    MALA,
    ULA,
    Barker,
    ImportanceSampling,
    Ladder,
    LangevinMLE,
    ThermodynamicMLE,
    fit,
)
from numpyro_kaem.objectives.objective import STATE

SLOW = pytest.mark.slow


def narrow(x, noise):
    """Rows whose posteriors are as narrow as their noise."""
    location = numpyro.param("location", 0.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, noise), obs=x)


NOISE = jnp.repeat(jnp.array([0.01, 0.1, 1.0]), 20)
X = 1.2 * jax.random.normal(jax.random.key(0), (60,))


def states(objective, num_steps, *data):
    """The objective's states after every step of SVI that does not learn."""
    svi = SVI(narrow, objective.guide(narrow), optax.sgd(0.0), objective)

    @jax.jit
    def run(key):
        def step(state, _):
            state, _ = svi.update(state, *data)
            return state, state.mutable_state[STATE]

        return jax.lax.scan(step, svi.init(key, *data), length=num_steps)[1]

    return jax.tree.map(np.asarray, run(jax.random.key(1)))


@pytest.mark.parametrize(
    "kernel", [MALA(), pytest.param(ULA(), marks=SLOW), pytest.param(Barker(), marks=SLOW)], ids=str
)
def test_every_datum_has_a_step_size_of_its_own(kernel):
    state = states(LangevinMLE(kernel, num_steps=10), 30, X, NOISE)
    kept = jax.tree.map(lambda leaf: leaf[-1], state["per_datum"])
    # Relative to the posterior's own size step sizes are the same: variances of a normal posterior are s^2 / (1 + s^2).
    power = 0.5 if isinstance(kernel, Barker) else 1.0
    size = (NOISE**2 / (1 + NOISE**2)) ** power
    relative = (kept["log_step_size"][:, 0] - np.log(size)).reshape(3, 20).mean(1)
    assert np.ptp(relative) < 0.7 and np.ptp(np.log(size)) > 4.0
    assert state["metrics"]["stuck"][5:].mean() < 0.02
    # The chains are where the posteriors are: mean x / (1 + s^2), five standard deviations.
    error = np.abs(kept["positions"][:, 0, 0, 0] - X / (1 + NOISE**2)) / np.sqrt(NOISE**2 / (1 + NOISE**2))
    assert error.max() < 5.0


def test_fresh_chains_find_their_step_size_on_the_way():
    objective = LangevinMLE(num_steps=20, persistent=False, start="prior")
    metrics = states(objective, 20, X, NOISE)["metrics"]
    # At the posteriors log p(x | z) is this on average, and minus thousands at draws of the prior.
    mean, variance = X / (1 + NOISE**2), NOISE**2 / (1 + NOISE**2)
    expected = dist.Normal(mean, NOISE).log_prob(X) - variance / (2 * NOISE**2)
    assert abs(metrics["log_likelihood"][5:].mean() - expected.mean()) < 0.3


def test_preconditioners_have_the_shape_of_each_posterior():
    def model(x):
        numpyro.param("location", 0.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, jnp.array([0.02, 1.0])).to_event(1), obs=x)

    x = jax.random.normal(jax.random.key(0), (30, 2))
    objective = LangevinMLE(num_steps=20)
    svi = SVI(model, objective.guide(model), optax.sgd(0.0), objective)

    @jax.jit
    def run(key):
        return jax.lax.scan(lambda s, _: (svi.update(s, x)[0], None), svi.init(key, x), length=40)[0]

    kept = run(jax.random.key(1)).mutable_state[STATE]["per_datum"]
    variance = np.asarray(kept["variance"])[:, 0].mean(0)
    np.testing.assert_allclose(variance, [0.02**2 / (1 + 0.02**2), 0.5], rtol=0.4)


def wide(x):
    location = numpyro.param("location", 0.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_what_chains_say_is_compared_with_importance_sampling():
    still = MALA(step_size=1e-9, precondition=False)

    def gap(x, **options):
        objective = LangevinMLE(still, 1, persistent=False, **options)
        svi = SVI(wide, objective.guide(wide), optax.sgd(0.0), objective)
        state = svi.init(jax.random.key(0), x)
        update = jax.jit(svi.update)
        gaps = []
        for _ in range(20):
            state, _ = update(state, x)
            gaps.append(state.mutable_state[STATE]["metrics"]["importance_gap"])
        return np.array(gaps)

    x = jnp.linspace(-1.0, 1.0, 60)
    # Draws that the weights have chosen: of 60 data and 20 steps, with a standard deviation of 0.5 each.
    assert abs(gap(x, num_draws=500).mean()) < 5 * 0.5 / np.sqrt(1_200)
    # Draws from the prior: E[log p(x | z)] is 0.25 + 0.375 x^2 below that of the posterior, each with a standard
    # deviation of about one.
    below = gap(x, start="prior", num_draws=500)
    assert abs(below.mean() + 0.25 + 0.375 * float(jnp.mean(x**2))) < 5 * 1.0 / np.sqrt(1_200)
    # Where no draw explains the data: chains that are below even the best of them are told, others left in peace.
    assert (gap(50.0 + x, start="prior", num_draws=500) < -50.0).all()
    assert (np.nan_to_num(gap(50.0 + x, num_draws=500)) > -1.0).all()


OPTIONS = {"optimizer": optax.adam(0.1), "num_epochs": 20, "batch_size": 50, "progress": False}


def located(x):
    location = numpyro.param("location", 0.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.1), obs=x)


LOCATED = 2.0 + 1.005 * jax.random.normal(jax.random.key(0), (200,))


@pytest.mark.parametrize(
    "objective",
    [
        LangevinMLE(ULA()),
        pytest.param(LangevinMLE(ULA(), persistent=False, start="prior"), marks=SLOW),
        pytest.param(LangevinMLE(ULA(), num_steps=5), marks=SLOW),
        pytest.param(ThermodynamicMLE(Ladder.power(4), ULA()), marks=SLOW),
        pytest.param(ThermodynamicMLE(target_ess=0.5, sampler="smc", kernel=ULA()), marks=SLOW),
    ],
    ids=str,
)
def test_unadjusted_langevin_learns_narrow_posteriors(objective):
    result = fit(jax.random.key(1), located, LOCATED, objective=objective, **OPTIONS)
    # The optimiser's own noise at this learning rate is about 0.02.
    assert abs(result.params["location"] - LOCATED.mean()) < 0.1


@pytest.mark.parametrize("prior", [dist.Gamma(0.001, 0.001), dist.InverseGamma(0.001, 0.001), dist.Beta(1.0, 0.05)])
def test_priors_at_the_end_of_their_support_are_refused(prior):
    """Below the smallest numbers, above the largest, and nearer to one than numbers are."""

    def vague(x):
        numpyro.param("location", 0.0)
        with numpyro.plate("data", x.shape[0]):
            rate = numpyro.sample("rate", prior)
            numpyro.sample("x", dist.Poisson(rate), obs=x)

    counts = jnp.arange(1, 101)
    with pytest.raises(ValueError, match=r"latent site 'rate': .* of 500 draws from its prior lie at an end of its"):
        fit(jax.random.key(1), vague, counts, objective=LangevinMLE(), **OPTIONS)


def test_chains_that_stand_still_are_told():
    with pytest.warns(RuntimeWarning, match=r"\d+% of the chains did not move in a training step: their step"):
        fit(jax.random.key(1), located, LOCATED, objective=LangevinMLE(ULA(step_size=2.0)), **OPTIONS)


RNG = np.random.default_rng(0)


def poisson(c):
    weight = numpyro.param("weight", 0.1 * jax.random.normal(jax.random.key(7), (2, 30)))
    bias = numpyro.param("bias", jnp.zeros(30))
    with numpyro.plate("cells", len(c)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("c", dist.Poisson(jnp.exp(jnp.clip(z @ weight + bias, -10, 8))).to_event(1), obs=c)


def probit(x):
    weight = numpyro.param("weight", 0.1 * jax.random.normal(jax.random.key(7), (3, 20)))
    with numpyro.plate("rows", len(x)):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))
        p = jnp.clip(jax.scipy.special.ndtr(z @ weight), 1e-6, 1 - 1e-6)
        numpyro.sample("x", dist.Bernoulli(probs=p).to_event(1), obs=x)


WEIGHT = {"poisson": RNG.normal(0, 0.7, (2, 30)), "probit": RNG.normal(0, 1.5, (3, 20))}
BIAS = RNG.normal(0, 0.3, 30)
FACTOR_MODELS = {
    "poisson": (
        poisson,
        RNG.poisson(np.exp(RNG.normal(size=(2_500, 2)) @ WEIGHT["poisson"] + BIAS)).astype(np.int32),
        {"weight": jnp.float32(WEIGHT["poisson"]), "bias": jnp.float32(BIAS)},
        40,
    ),
    "probit": (
        probit,
        (RNG.normal(size=(2_000, 3)) @ WEIGHT["probit"] + RNG.normal(size=(2_000, 20)) > 0).astype(np.float32),
        {"weight": jnp.float32(WEIGHT["probit"])},
        20,
    ),
}


@pytest.mark.zoo
@pytest.mark.parametrize(
    ("name", "objective"),
    [
        ("poisson", LangevinMLE()),
        ("poisson", ThermodynamicMLE(Ladder.power(4), num_steps=10)),
        ("probit", LangevinMLE()),
    ],
    ids=str,
)
def test_factor_models_are_learned_to_the_maximum(name, objective, optimised):
    model, data, truth, num_epochs = FACTOR_MODELS[name]

    def score(params):
        sampler = ImportanceSampling(20_000, chunk_size=2_000)
        return sampler.run(jax.random.key(5), model, params, data[:100]).log_evidence.mean()

    options = OPTIONS | {"optimizer": optax.adam(2e-2), "num_epochs": num_epochs, "batch_size": 125}
    result = fit(jax.random.key(0), model, data, objective=objective, **options)
    # What has generated the data scores within a few hundredths of the maximum.
    assert score(result.params) > score(truth) - 0.3
    assert result.history["stuck"][-20:].mean() < 0.01
