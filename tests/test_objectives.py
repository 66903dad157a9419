"""LangevinMLE and ThermodynamicMLE: gradients against closed forms, chains that are kept, ladders that move."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from numpyro.contrib.module import eqx_module
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal
from prior_cases import quick_jit

from numpyro_kaem import (
    MALA,
    PCNL,
    ULA,
    BSpline,
    DeepKAPrior,
    ImportanceMLE,
    KAPrior,
    Ladder,
    LangevinMLE,
    LatentModel,
    ThermodynamicMLE,
    UnivariateEnergy,
    cyclic_schedule,
)
from numpyro_kaem.objectives.objective import STATE

# Deviations of a mean in its standard errors: a false alarm has probability 2e-9 for each number.
ERRORS = 6.0
WEIGHT = np.array([[1.0, 0.6, -0.4], [0.3, -0.8, 0.7]], np.float32)
X = np.array([[1.4, -0.4, 1.0], [-0.8, 0.9, 0.1]], np.float32)


def parameters(dim):
    """Of a model with `dim` latents."""
    values = {"location": [0.5, -0.3][:dim], "scale": [0.9, 1.2][:dim], "weight": WEIGHT[:dim], "noise": 0.7}
    return {name: jnp.asarray(value, jnp.float32) for name, value in values.items()}


def linear_gaussian(x, dim):
    """z ~ Normal(location, scale), x = z W + noise."""
    p = {name: numpyro.param(name, value) for name, value in parameters(dim).items()}
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(p["location"], p["scale"]).to_event(1))
        numpyro.sample("x", dist.Normal(z @ p["weight"], p["noise"]).to_event(1), obs=x)


def exact_log_evidence(p, x=X):
    """Log p(x) of each datum."""
    covariance = (p["weight"].T * p["scale"] ** 2) @ p["weight"] + p["noise"] ** 2 * jnp.eye(3)
    return dist.MultivariateNormal(p["location"] @ p["weight"], covariance).log_prob(x)


def power_posterior(p, t, x=X):
    """Means (B, dim) and covariance of p(z) p(x | z)^t."""
    precision = jnp.diag(p["scale"] ** -2) + t * p["weight"] @ p["weight"].T / p["noise"] ** 2
    covariance = jnp.linalg.inv(precision)
    return (p["location"] / p["scale"] ** 2 + t * x @ p["weight"].T / p["noise"] ** 2) @ covariance, covariance


def expected_log_joint(p, mean, covariance, x=X):
    """Expectations of log p(x | z) and of log p(z), summed over the data, for z ~ Normal(mean_b, covariance)."""
    spread = jnp.trace(p["weight"].T @ covariance @ p["weight"])
    likelihood = dist.Normal(mean @ p["weight"], p["noise"]).log_prob(x).sum() - len(x) * spread / (2 * p["noise"] ** 2)
    prior = dist.Normal(p["location"], p["scale"]).log_prob(mean).sum()
    return likelihood, prior - len(x) * jnp.sum(jnp.diag(covariance) / (2 * p["scale"] ** 2))


@quick_jit
def gradient_of_log_evidence(p):
    return jax.grad(lambda p: exact_log_evidence(p).sum())(p)


@partial(quick_jit, static_argnums=1)
def path_gradient(p, temperatures):
    """What the "path" gradient is in expectation: a trapezoid over power posteriors that are held fixed."""
    fixed = [power_posterior(p, t) for t in temperatures]
    steps = np.diff(temperatures)
    weights = 0.5 * (np.append(steps, 0.0) + np.insert(steps, 0, 0.0))

    def surrogate(p):
        parts = [expected_log_joint(p, *moments) for moments in fixed]
        return sum(w * likelihood for w, (likelihood, _) in zip(weights, parts, strict=True)) + parts[-1][1]

    return jax.grad(surrogate)(p)


@quick_jit
def ula_gradient(p, step_size):
    """What unadjusted Langevin steps make of a normal posterior of one latent: one that is too wide."""
    mean, variance = power_posterior(p, 1.0)
    variance = variance / (1 - step_size / (2 * variance))
    return jax.grad(lambda p: sum(expected_log_joint(p, mean, variance)))(p)


def gradients(objective, model, params, *data, num_keys):
    """Gradients of minus the loss, one for every key, in one compiled function."""

    # Run once: optimised code would take longer to compile than it saves.
    @quick_jit
    def run(key, params):
        gradient = jax.vmap(lambda key: jax.grad(lambda p: -objective.loss(key, p, model, None, *data))(params))
        return gradient(jax.random.split(key, num_keys))

    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), run(jax.random.key(1), params))


def assert_mean_is(samples, expected, slack=0.0, known_to=0.03):
    """Every entry of the mean is within its error of what is expected, and known to a few percent of the whole."""
    expected = jax.tree.map(np.asarray, expected)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(expected)))
    for name, leaf in samples.items():
        error = leaf.std(0) / np.sqrt(len(leaf))
        assert np.all(error < known_to * norm), (name, error, norm)
        difference = np.abs(leaf.mean(0) - expected[name])
        assert np.all(difference < ERRORS * error + slack * norm), (name, difference / error)


LADDER = (0.0, 0.2, 1.0)
MALA_STEP = MALA(step_size=0.4, precondition=False)
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("dim", "objective"),
    [
        pytest.param(2, LangevinMLE(MALA_STEP, 40), id="langevin"),
        pytest.param(1, LangevinMLE(MALA(step_size=0.3, whiten=True), 30, num_chains=2), id="whitened", marks=SLOW),
        pytest.param(2, LangevinMLE(MALA(step_size=0.5), 40, start="importance"), id="importance", marks=SLOW),
        pytest.param(2, LangevinMLE(PCNL(step_size=0.2), 100), id="pcnl", marks=SLOW),
        pytest.param(1, ThermodynamicMLE(LADDER, MALA_STEP, 30), id="tempering", marks=SLOW),
        pytest.param(
            2,
            ThermodynamicMLE([0.0, 0.1, 0.4, 1.0], MALA_STEP, 40, start="importance", num_chains=2),
            id="tempering, importance",
            marks=SLOW,
        ),
        pytest.param(
            2, ThermodynamicMLE(LADDER, MALA_STEP, 20, sampler="smc", num_particles=8), id="smc, 2-D", marks=SLOW
        ),
        pytest.param(1, ThermodynamicMLE(LADDER, MALA_STEP, 20, sampler="smc", num_particles=8), id="smc"),
        pytest.param(
            1,
            ThermodynamicMLE(kernel=MALA_STEP, num_steps=20, sampler="smc", target_ess=0.5, num_particles=8),
            id="adaptive smc",
            marks=SLOW,
        ),
    ],
)
def test_gradient_is_that_of_the_log_likelihood(dim, objective):
    params = parameters(dim)
    samples = gradients(objective, partial(linear_gaussian, dim=dim), params, X, num_keys=4_000)
    assert_mean_is(samples, gradient_of_log_evidence(params))


def test_unadjusted_steps_have_the_bias_of_their_wider_posterior():
    params, step_size = parameters(1), 0.15
    objective = LangevinMLE(ULA(step_size=step_size, precondition=False), 40)
    samples = gradients(objective, partial(linear_gaussian, dim=1), params, X, num_keys=10_000)
    assert_mean_is(samples, ula_gradient(params, step_size))
    with pytest.raises(AssertionError):
        assert_mean_is(samples, gradient_of_log_evidence(params))


@pytest.mark.parametrize("sampler", ["tempering", pytest.param("smc", marks=SLOW)])
def test_path_gradient_has_the_bias_that_theory_predicts(sampler):
    params = parameters(1)
    objective = ThermodynamicMLE(LADDER, MALA_STEP, 25, gradient="path", sampler=sampler, num_particles=8)
    samples = gradients(objective, partial(linear_gaussian, dim=1), params, X, num_keys=4_000)
    assert_mean_is(samples, path_gradient(params, LADDER))
    exact = gradient_of_log_evidence(params)
    with pytest.raises(AssertionError):
        assert_mean_is(samples, exact)
    # The prior's parameters have Fisher's gradient all the same.
    assert_mean_is({name: samples[name] for name in ("location", "scale")}, exact)


PAIRS = np.array([[0.9, 1.0], [1.8, 4.0], [0.2, 2.0], [1.3, 0.0]], np.float32)
BOUNDED = {"length": 3.0, "shape": 2.5, "rate": 0.6}


def stretched_beta(p):
    """On an interval whose length is learned; its density vanishes at the bounds, as Fisher's identity wants."""
    stretch = dist.transforms.AffineTransform(0.0, p["length"], dist.constraints.unit_interval)
    return dist.TransformedDistribution(dist.Beta(p["shape"], 4.0), stretch)


def bounded(x):
    """Two bounded latents of every datum, and a plate that takes half of the data."""
    p = {name: numpyro.param(name, value) for name, value in BOUNDED.items()}
    with numpyro.plate("data", len(x), subsample_size=len(x) // 2) as rows:
        a = numpyro.sample("a", stretched_beta(p))
        b = numpyro.sample("b", dist.Exponential(p["rate"]))
        numpyro.sample("x", dist.Normal(a, 0.5), obs=x[rows, 0])
        numpyro.sample("count", dist.Poisson(b), obs=x[rows, 1])


@pytest.mark.slow
def test_bounded_latents_of_two_sites_in_a_plate_that_subsamples(optimised):
    """The log-determinant, which knows `length`, stays out; the plate's scale makes up for the data left out."""

    def exact(p):
        a, count = p["length"] * (jnp.arange(4_000) + 0.5) / 4_000, PAIRS[:, 1]
        density = jnp.exp(stretched_beta(p).log_prob(a) + dist.Normal(a, 0.5).log_prob(PAIRS[:, :1]))
        of_counts = jnp.log(p["rate"]) - (count + 1) * jnp.log1p(p["rate"])
        return jnp.sum(jnp.log(density.mean(1) * p["length"]) + of_counts)

    samples = gradients(
        LangevinMLE(MALA(step_size=0.3, precondition=False), 40), bounded, BOUNDED, PAIRS, num_keys=16_000
    )
    assert_mean_is(samples, quick_jit(jax.grad(exact))(BOUNDED), known_to=0.06)


def deep_linear_gaussian(x):
    """The energy theta z makes a standard normal reference Normal(theta, 1); log p(x) is known."""
    theta = numpyro.param("theta", jnp.array([0.9]))
    noise = numpyro.param("noise", 0.8)
    prior = DeepKAPrior(lambda z: z @ theta, dist.Normal(jnp.zeros(1), 1.0).to_event(1), num_steps=80)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Normal(z[..., 0], noise), obs=x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "num_keys"),
    # The evidence's gradient by the ladder's chains varies more than that by single ones.
    [
        (LangevinMLE(MALA_STEP, 30, num_draws=20), 2_000),
        (ThermodynamicMLE(LADDER, MALA_STEP, 20, num_draws=20), 6_000),
    ],
    ids=["langevin", "tempering"],
)
def test_prior_that_is_not_normalised_is_learned_by_negative_samples(optimised, objective, num_keys):
    params, x = {"theta": jnp.array([0.9]), "noise": 0.8}, jnp.array([1.5, -0.2, 0.4])

    def exact(p):
        return dist.Normal(p["theta"], jnp.sqrt(1 + p["noise"] ** 2)).log_prob(x).sum()

    samples = gradients(objective, deep_linear_gaussian, params, x, num_keys=num_keys)
    # After 80 steps of 0.1 the draws' mean lacks 2e-4 of theta.
    assert_mean_is(samples, quick_jit(jax.grad(exact))(params), slack=1e-3, known_to=0.06)


# Persistent chains, in NumPyro's own SVI.

MANY = jnp.asarray(np.random.default_rng(0).normal(1.0, 1.3, 2_000), jnp.float32)
STILL = ULA(step_size=1e-10, precondition=False)


def kept(x, batch_size):
    """z ~ Normal(location, 1), x = z + noise, in a plate that takes a part of the data."""
    location = numpyro.param("location", 3.0)
    with numpyro.plate("data", len(x), subsample_size=batch_size) as rows:
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.8), obs=x[rows])


def make_svi(model, objective, *data, learning_rate=0.0):
    """An SVI that keeps the objective's state, its update, and the state before it."""
    svi = SVI(model, objective.guide(model), optax.sgd(learning_rate), objective)
    return quick_jit(svi.update), quick_jit(svi.init)(jax.random.key(0), *data)


def own(state):
    return state.mutable_state[STATE]


def arrays(tree):
    """On the host, where what is asserted is computed without compiling anything."""
    return jax.tree.map(np.asarray, tree)


@partial(quick_jit, static_argnums=1)
def rows_of_next_step(rng_key, model, x):
    """The rows that the model's plate takes in the update of a state with this key."""
    model_key, _ = jax.random.split(jax.random.split(rng_key)[1])
    latent_model = LatentModel(model, {"location": 3.0}, x, rng_key=model_key, check=False)
    return latent_model.plate_indices["data"]


def test_chains_are_kept_by_the_indices_of_the_plate():
    model, objective = (
        partial(kept, batch_size=500),
        LangevinMLE(STILL, 1, persistent=True, num_chains=2, start="prior"),
    )
    update, state = make_svi(model, objective, MANY)
    assert not arrays(own(state))["per_datum"]["started"].any()
    seen = np.zeros(len(MANY), bool)
    for _ in range(3):
        rows = np.asarray(rows_of_next_step(state.rng_key, model, MANY))
        before = arrays(own(state))["per_datum"]["positions"]
        state, _ = update(state, MANY)
        after = arrays(own(state))["per_datum"]["positions"]
        changed = np.flatnonzero(np.any(before != after, (1, 2, 3)))
        assert set(changed) <= set(rows)
        # Chains of seen data go on where they were; those of new data start at the prior. False alarm: 3e-7 each.
        np.testing.assert_allclose(after[rows][seen[rows]], before[rows][seen[rows]], atol=1e-3)
        fresh = after[rows][~seen[rows]].ravel()
        assert scipy.stats.kstest(fresh, scipy.stats.norm(3.0, 1.0).cdf).pvalue > 3e-7
        seen[rows] = True
        np.testing.assert_array_equal(own(state)["per_datum"]["started"], seen)
    assert 500 < seen.sum() < 1_500
    assert int(own(state)["shared"]["step"]) == 3


def test_chains_may_start_at_draws_that_the_likelihood_has_chosen():
    """Every rung starts at its power posterior, which a swap leaves as it is."""
    x, temperatures = np.full(1_000, 2.0, np.float32), [0.0, 0.5, 1.0]
    objective = ThermodynamicMLE(temperatures, STILL, 1, persistent=True, start="importance", num_draws=2_000)
    update, state = make_svi(partial(kept, batch_size=1_000), objective, x)
    z = np.asarray(own(update(state, x)[0])["per_datum"]["positions"])[:, 0, :, 0]
    for rung, t in enumerate(temperatures):
        precision = 1.0 + t / 0.8**2
        # The draws are shared, and their weights leave a fifth of them effective.
        error = ERRORS * np.sqrt(1 / precision) * np.sqrt(1 / 1_000 + 5 / 2_000)
        assert abs(z[:, rung].mean() - (3.0 + t * 2.0 / 0.8**2) / precision) < error
        assert abs(z[:, rung].std() - precision**-0.5) < error


def test_rows_that_nothing_names_have_no_chains():
    """The indices of the plate say nothing about rows that the caller has chosen."""

    def model(x):
        with numpyro.plate("data", 10, subsample_size=len(x)):
            z = numpyro.sample("z", dist.Normal())
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    objective = LangevinMLE(STILL, 1, persistent=True)
    with pytest.raises(ValueError, match=r"chains are kept for 10 data, but plate 'data' has size 10 .* 4 rows"):
        trace_update(model, objective, jnp.zeros(4))
    # Without persistent chains it is a minibatch like any other.
    trace_update(model, LangevinMLE(STILL, 1), jnp.zeros(4))
    svi = SVI(simple, objective.guide(simple), optax.sgd(0.1), objective)
    with pytest.raises(ValueError, match="chains are kept for 4 data, but plate 'data' has size 3"):
        jax.eval_shape(lambda: svi.update(svi.init(jax.random.key(0), jnp.zeros(4)), jnp.zeros(3)))


# What follows is traced and not compiled.


def trace_update(model, objective, *data, guide=None, steps=2):
    """Trace steps of SVI in a loop, which asks for a state of constant shapes and dtypes."""
    svi = SVI(model, objective.guide(model) if guide is None else guide, optax.adam(0.1), objective)

    def run(*data):
        state = svi.init(jax.random.key(0), *data)
        return jax.lax.scan(lambda state, _: svi.update(state, *data), state, length=steps)

    return jax.eval_shape(run, *data)


def simple(x):
    location = numpyro.param("location", jnp.zeros((), jnp.float32))
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=x)


ENERGY = UnivariateEnergy.init(jax.random.key(0), (2,), basis=BSpline(4, 2, (-3.0, 3.0)))


def with_learned_prior(x):
    """Of the dtype of its energy, which is float32, in float64 mode too."""
    energy = eqx_module("energy", ENERGY)
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z", KAPrior(energy, dist.Normal(0.0, 1.0)).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(-1), jnp.ones((), x.dtype)), obs=x)


EVERY_STATE = {
    "langevin": LangevinMLE(num_steps=2, persistent=True, start="importance", num_draws=3),
    "adapt": ThermodynamicMLE(LADDER, PCNL(), 2, persistent=True, adapt=True, num_chains=2),
    "schedule": ThermodynamicMLE(LADDER, ULA(), 2, optax.cosine_decay_schedule(4.0, 10), "path"),
    "smc": ThermodynamicMLE(None, MALA(), 2, None, "path", sampler="smc", target_ess=0.5, num_particles=4),
    "importance": ImportanceMLE(3),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(name, dtype, marks=[] if name == "langevin" and dtype is np.float32 else SLOW)
        for name in EVERY_STATE
        for dtype in (np.float32, np.float64)
        if dtype is np.float64 or name in ("langevin", "adapt")
    ],
)
def test_steps_can_be_looped_over_in_float64_mode(x64, name, dtype):
    for model in (simple, with_learned_prior):
        state, losses = trace_update(model, EVERY_STATE[name], jnp.zeros(3, dtype))
        assert jnp.issubdtype(losses.dtype, jnp.floating)
        if name == "langevin":
            # Positions have the precision of the model's latents.
            expected = jnp.float64 if model is simple else jnp.float32
            assert own(state)["per_datum"]["positions"].dtype == expected


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        (LangevinMLE(ULA(step_size=0.1), persistent=True), "persistent chains need a place between steps"),
        (LangevinMLE(), r"a step size that adapts needs a place .* MALA\(step_size=0.01\), and persistent=False"),
        (ThermodynamicMLE(LADDER, STILL, schedule=lambda i: 2.0), "a ladder that moves needs a place between steps"),
        (ThermodynamicMLE(LADDER, STILL, adapt=True), "a ladder that moves needs a place between steps"),
    ],
    ids=["persistent", "step size", "schedule", "adapt"],
)
def test_state_without_a_place_for_it_is_an_error(objective, message):
    with pytest.raises(ValueError, match=message):
        trace_update(simple, objective, jnp.zeros(3), guide=lambda *args: None)


def untyped(objective, *arguments, **options):
    """An objective made without the type checks of the tests, which would be first to see wrong arguments."""
    made = object.__new__(objective)
    inspect.unwrap(objective.__init__)(made, *arguments, **options)
    return made


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("num_steps must be a whole number of at least 1", lambda: LangevinMLE(num_steps=0)),
        ("num_chains must be", lambda: LangevinMLE(num_chains=0)),
        ("num_draws must be", lambda: LangevinMLE(num_draws=0)),
        (r"start must be one of \('prior', 'importance', 'guide'\), got 'zero'", lambda: LangevinMLE(start="zero")),
        ("gradient must be one of .* got 'fischer'", lambda: ThermodynamicMLE(LADDER, gradient="fischer")),
        ("sampler must be one of .* got 'gibbs'", lambda: ThermodynamicMLE(LADDER, sampler="gibbs")),
        ("num_particles must be", lambda: ThermodynamicMLE(LADDER, sampler="smc", num_particles=1)),
        ("ladder must begin at 0", lambda: ThermodynamicMLE([0.1, 1.0])),
        ("ladder must begin at 0", lambda: ThermodynamicMLE([1.0])),
        ("temperatures must increase", lambda: ThermodynamicMLE([0.0, 0.5, 0.2, 1.0])),
        ("target_ess finds the ladder of sampler='smc'", lambda: ThermodynamicMLE(target_ess=0.5)),
        (
            "give no ladder and no schedule",
            lambda: ThermodynamicMLE(LADDER, sampler="smc", target_ess=0.5),
        ),
        (
            r"target_ess must lie in \(0, 1\), got 1.5",
            lambda: ThermodynamicMLE(sampler="smc", target_ess=1.5),
        ),
        ("max_rungs must be", lambda: ThermodynamicMLE(sampler="smc", target_ess=0.5, max_rungs=0)),
        *(
            ("sampler='smc' starts at the prior", partial(ThermodynamicMLE, LADDER, sampler="smc", **bad))
            for bad in ({"persistent": True}, {"adapt": True}, {"start": "importance"})
        ),
        (
            "give adapt or schedule, not both",
            lambda: ThermodynamicMLE(LADDER, adapt=True, schedule=lambda i: 1.0),
        ),
        *(
            (
                f"schedule, .* function of the training step, must be a positive number, got {bad}",
                lambda bad=bad: untyped(ThermodynamicMLE, LADDER, schedule=bad),
            )
            for bad in (0.0, -2.0)
        ),
    ],
)
def test_bad_arguments_are_named(message, make):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("objective", [LangevinMLE(STILL), ThermodynamicMLE(LADDER, STILL)], ids=["langevin", "ladder"])
def test_models_and_guides_that_do_not_fit_are_named(objective):
    name = type(objective).__name__

    def outside(x):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(mu, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def discrete(x):
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(0.5))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=f"{name} needs every latent site inside one data plate, but 'mu' is outside"):
        trace_update(outside, objective, jnp.zeros(3), guide=lambda *args: None)
    with pytest.raises(ValueError, match=f"{name} needs every latent site inside one data plate, but 'mu' is outside"):
        trace_update(outside, objective, jnp.zeros(3))
    with pytest.raises(ValueError, match="latent site 'z' is discrete"):
        trace_update(discrete, objective, jnp.zeros(3), guide=lambda *args: None)
    with pytest.raises(ValueError, match=rf"guide must have no sites with {name}.*z_auto_loc"):
        trace_update(simple, objective, jnp.zeros(3), guide=AutoNormal(simple))


def test_cyclic_schedule_goes_to_and_fro():
    schedule = quick_jit(jax.vmap(cyclic_schedule(1.0, 5.0, period=8)))
    np.testing.assert_allclose(schedule(np.array([0, 2, 4, 6, 8, 12])), [1.0, 3.0, 5.0, 3.0, 1.0, 5.0], atol=1e-6)
    for bad in [(0.0, 5.0, 8), (1.0, -1.0, 8), (1.0, 5.0, 0)]:
        with pytest.raises(ValueError, match="must be"):
            cyclic_schedule(*bad)


# What is tuned while training, at parameters that stand still.


def metrics_of(objective, model, num_steps, *data):
    """Metrics of every step, and the state after the last, of SVI whose learning rate is zero."""
    svi = SVI(model, objective.guide(model), optax.sgd(0.0), objective)

    @quick_jit
    def run(key, *data):
        def step(state, _):
            state, _ = svi.update(state, *data)
            return state, own(state)["metrics"]

        state, metrics = jax.lax.scan(step, svi.init(key, *data), length=num_steps)
        return own(state), metrics

    return arrays(run(jax.random.key(0), *data))


BATCH = np.random.default_rng(1).normal(0.5, 1.0, (20, 3)).astype(np.float32)


def test_step_size_finds_its_acceptance():
    _, metrics = metrics_of(LangevinMLE(num_steps=5, persistent=True), partial(linear_gaussian, dim=2), 150, BATCH)
    # 100 steps of 100 moves: a standard error of 0.005 if they were independent, and the wobble of a gain of one.
    assert abs(metrics["acceptance"][50:].mean() - MALA.target_acceptance) < 0.04
    assert metrics["step_size"][0] == pytest.approx(MALA().initial_step_size(2))


quick_power_posterior = quick_jit(power_posterior)


def swap_rates(temperatures, x, num_draws=20_000):
    """Mean probability with which each pair of neighbours is exchanged, of independent draws at every rung."""
    p, rng, log_likelihoods = arrays(parameters(2)), np.random.default_rng(2), []
    for t in temperatures:
        mean, covariance = arrays(quick_power_posterior(p, t, x))
        noise = rng.normal(size=(num_draws, 1, 2)) @ np.linalg.cholesky(covariance).T
        residual = (x - (mean + noise) @ p["weight"]) / p["noise"]
        log_likelihoods.append(-0.5 * np.sum(residual**2, -1))
    return [
        np.mean(np.exp(np.minimum(0.0, (high - low) * (a - b))))
        for low, high, a, b in zip(temperatures, temperatures[1:], log_likelihoods, log_likelihoods[1:], strict=False)
    ]


@pytest.mark.parametrize("num_steps", [5, pytest.param(1, marks=SLOW)])
def test_ladder_that_adapts_equalises_swaps_and_metrics_match_closed_forms(num_steps):
    objective = ThermodynamicMLE(
        [0.0, 0.25, 0.5, 0.75, 1.0], num_steps=num_steps, adapt=True, persistent=True, num_chains=3
    )
    state, metrics = metrics_of(objective, partial(linear_gaussian, dim=2), 200, BATCH)
    temperatures, x = state["shared"]["temperatures"], BATCH
    assert temperatures[0] == 0.0 and temperatures[-1] == 1.0 and np.all(np.diff(temperatures) > 0)
    before, after = swap_rates(np.linspace(0.0, 1.0, 5), x), swap_rates(temperatures, x)
    assert np.ptp(before) > 0.25
    assert np.ptp(after) < 0.08
    assert metrics["swap_acceptance"][100:].mean() == pytest.approx(np.mean(after), abs=0.02)
    np.testing.assert_allclose(metrics["acceptance"][100:].mean(0)[1:], MALA.target_acceptance, atol=0.05)

    # By then the ladder hardly moves.
    @quick_jit
    def closed_forms(p, temperatures, x):
        likelihoods = jax.vmap(lambda t: expected_log_joint(p, *power_posterior(p, t, x), x)[0])(temperatures)
        return exact_log_evidence(p, x).mean(), likelihoods / len(x)

    t, (exact, integrand) = temperatures, arrays(closed_forms(parameters(2), temperatures, x))
    trapezoid = np.sum(np.diff(t) * 0.5 * (integrand[1:] + integrand[:-1]))
    assert metrics["log_evidence_thermodynamic"][100:].mean() == pytest.approx(trapezoid, abs=0.05)
    # The logarithm of a mean of few is low by half its variance.
    error = metrics["log_evidence_steppingstone"][100:].mean() - exact
    assert -0.3 < error < 0.02
    if num_steps > 1:
        assert error > -0.1


def test_schedule_moves_the_ladder():
    objective = ThermodynamicMLE(Ladder.power(2), STILL, 1, schedule=optax.cosine_decay_schedule(4.0, 2))
    _, metrics = metrics_of(objective, partial(kept, batch_size=3), 3, np.zeros(3, np.float32))
    # Exponents 4, 2 and 0: then all rungs are at the posterior but the lowest, which is the prior.
    expected = [[0.0, 0.0625, 1.0], [0.0, 0.25, 1.0], [0.0, 1.0, 1.0]]
    np.testing.assert_allclose(metrics["temperatures"], expected, atol=1e-6)


def test_a_number_is_a_schedule_that_stays():
    objective = ThermodynamicMLE(Ladder.power(4), STILL, 1, schedule=2.0)
    temperatures = objective._temperatures({"shared": {"step": jnp.array(3)}})
    np.testing.assert_allclose(temperatures, (np.arange(5) / 4) ** 2.0)


@pytest.mark.slow
def test_evidence_of_smc_matches_the_closed_form():
    objective = ThermodynamicMLE(LADDER, MALA(step_size=0.5), 5, sampler="smc", num_particles=16)
    model = partial(linear_gaussian, dim=1)
    _, metrics = metrics_of(objective, model, 1, np.tile(X[:1], (4_000, 1)))
    exact = float(quick_jit(exact_log_evidence)(parameters(1))[0])
    # Its logarithm is low by half the relative variance of sixteen weights at each of two rungs: a few hundredths,
    # known to within less than 0.01 (the standard deviation of one run is below 0.5).
    assert -0.15 < metrics["log_evidence_smc"][0] - exact < 0.0
    assert metrics["num_rungs"][0] == 2
