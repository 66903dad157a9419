"""Compiled programs are reused where a call computes the same as an earlier one, and only there."""

import gc
import weakref
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.infer import Trace_ELBO
from speed import slow_unless

from numpyro_kaem import (
    ULA,
    BSpline,
    GridAdaptation,
    HeldOut,
    ImportanceMLE,
    ImportanceSampling,
    KAPrior,
    Ladder,
    Langevin,
    LangevinMLE,
    LatentModel,
    ParallelTempering,
    TemperedSMC,
    ThermodynamicMLE,
    UnivariateEnergy,
    clear_caches,
    energy_module,
    fit,
)
from numpyro_kaem._compilation import programs
from numpyro_kaem._compilation.fingerprint import SameProgram, fingerprint
from numpyro_kaem._compilation.programs import jit_by_program, jit_by_value
from numpyro_kaem._densities.reference_tails import survival
from numpyro_kaem._fitting.exponential_family import in_float64

KERNEL = ULA(step_size=0.1)
SAMPLERS = {
    "importance": lambda: ImportanceSampling(50),
    "langevin": lambda: Langevin(KERNEL, num_steps=4, num_chains=1, progress=False),
    "tempering": lambda: ParallelTempering(Ladder([0.0, 1.0]), KERNEL, num_steps=4, progress=False),
    "smc": lambda: TemperedSMC([0.5, 1.0], kernel=KERNEL, num_particles=20, num_mcmc_steps=1, progress=False),
}
OBJECTIVES = {
    "importance": lambda: ImportanceMLE(10),
    "langevin": lambda: LangevinMLE(KERNEL, num_steps=2),
    "guided": lambda: LangevinMLE(KERNEL, num_steps=2, start="guide", num_draws=2),
    "thermodynamic": lambda: ThermodynamicMLE(Ladder([0.0, 1.0]), KERNEL, num_steps=2),
    "elbo": Trace_ELBO,
}
DATA = np.array([0.5, -1.0, 2.0, 0.3], np.float32)
ENERGY = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(4, 3, (-2.0, 2.0)), scale=1.0)
WEIGHTS = eqx.nn.Linear("scalar", "scalar", key=jax.random.key(1))


def shifted(shift):
    """A function of the user's, of another value at every call."""
    return lambda z: z + shift


def tilted(energy):
    return KAPrior(energy, dist.Normal(0.0, 1.0))


# What a model may close over: what is bound to its name at first, and what is later.
BOUND = {
    "scalar": (1.0, 0.5),
    "array": (np.array(0.3, np.float32), np.array(0.9, np.float32)),
    "jax_array": (jnp.zeros(5_000), jnp.ones(5_000)),
    "prior": (dist.Normal(0.0, 1.0), dist.Normal(0.7, 1.0)),
    "module": (WEIGHTS, jax.tree.map(lambda leaf: leaf + 1.0, WEIGHTS)),
    "function": (shifted(0.0), shifted(0.7)),
}
LEARNED_PRIORS = tilted(ENERGY), tilted(eqx.tree_at(lambda f: f.coefficients, ENERGY, replace_fn=jnp.negative))
EVERY_KIND = list(BOUND)


def closure():
    """A model, and what it closes over."""
    parts = SimpleNamespace(**{name: first for name, (first, _) in BOUND.items()})

    def model(x):
        scale = numpyro.param("scale", 1.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", parts.prior)
            mean = parts.function(parts.module.weight[0, 0] * z) + parts.array + parts.jax_array.mean()
            numpyro.sample("x", dist.Normal(scale * mean, parts.scalar), obs=x)

    return model, parts


def guide(x):
    location = numpyro.param("location", 0.1)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(location * x, 1.0))


def lowered(call):
    """How many programs a call brings to XLA, and what it returns."""
    count = 0

    def listen(event, _, **__):
        nonlocal count
        count += event == "/jax/core/compile/jaxpr_to_mlir_module_duration"

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        result = call()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return count, result


def sample(sampler, model, key=0, scale=1.0, x=DATA):
    posterior = SAMPLERS[sampler]().run(jax.random.key(key), model, {"scale": scale}, jnp.asarray(x))
    return np.concatenate([posterior.log_likelihood.ravel(), *(z.ravel() for z in posterior.latents.values())])


def train(objective, model, key=0, x=DATA, **options):
    given = {"optimizer": optax.sgd(0.01), "num_epochs": 1, "batch_size": 2, "held_out": x} | options
    if given["held_out"] is not None and "held_out_sampler" not in given:
        given["held_out"] = HeldOut(given["held_out"], num_samples=20)
    guided = {"guide": guide} if objective in ("elbo", "guided") else {}
    result = fit(
        jax.random.key(key),
        model,
        x,
        objective=OBJECTIVES[objective](),
        progress=False,
        **given,
        **guided,
    )
    return np.hstack([result.history["held_out_log_likelihood"], result.history["loss"], result.params["scale"]])


def check_rebinding(run, kinds):
    """Names are bound to other values, one after the other: no result is an old one, the last that of a new program."""
    model, parts = closure()
    at_first = dict(vars(parts))
    results = [run(model)]
    for kind in kinds:
        name, values = ("prior", LEARNED_PRIORS) if kind == "learned prior" else (kind, BOUND[kind][1:])
        for value in values:
            setattr(parts, name, value)
            results.append(run(model))
            assert not np.allclose(results[-1], results[-2], rtol=1e-3), kind
    at_last = dict(vars(parts))
    vars(parts).update(at_first)
    np.testing.assert_array_equal(run(model), results[0])
    vars(parts).update(at_last)
    clear_caches()
    np.testing.assert_allclose(run(model), results[-1], rtol=1e-5)


def rebindings(quick, others):
    """Cases that run by default, and the slow ones.

    What a model may close over is told apart in one place for all: one sampler has everything by default, the others
    share it among them.
    """
    slow = (pytest.param(name, kinds, marks=pytest.mark.slow) for name, kinds in others.items())

    def label(value):
        return value if isinstance(value, str) else "all" if len(value) >= len(EVERY_KIND) else ", ".join(value)

    return pytest.mark.parametrize(("name", "kinds"), [*quick.items(), *slow], ids=label)


@rebindings(
    {"importance": EVERY_KIND},
    # A learned prior takes longer to compile than all others together: one sampler has it.
    {
        "importance": ["learned prior"],
        "langevin": ["scalar", "jax_array", "module"],
        "tempering": ["scalar", "prior"],
        "smc": ["array", "function"],
    },
)
def test_a_sampler_sees_what_a_name_in_the_model_is_bound_to_now(name, kinds):
    check_rebinding(lambda model: sample(name, model), kinds)


@rebindings(
    {"importance": ["function"]},
    {"elbo": EVERY_KIND, "importance": ["scalar", "module"], "langevin": ["array", "prior"]}
    | {"thermodynamic": ["jax_array", "function"]},
)
def test_fit_sees_what_a_name_in_the_model_is_bound_to_now(name, kinds):
    check_rebinding(lambda model: train(name, model), kinds)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_sampler_that_does_the_same_again_compiles_nothing(sampler):
    model, _ = closure()
    first = sample(sampler, model)
    count, second = lowered(lambda: sample(sampler, model, key=1, scale=0.7, x=DATA + 1.0))
    assert count == 0
    assert second.shape == first.shape and not np.allclose(first, second)


def test_another_function_that_computes_the_same_compiles_nothing():
    sample("importance", closure()[0])
    assert lowered(lambda: sample("importance", closure()[0]))[0] == 0


def test_floats_are_arguments_of_compiled_programs():
    """A new value compiles nothing; a model that needs it as a number is given it as one."""

    def model(y, noise=1.0, shift=None):
        if shift is not None and shift > 0:
            y = y - shift
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(z, noise), obs=y)

    def evidence(y, **kwargs):
        return ImportanceSampling(50).run(jax.random.key(0), model, {}, y, **kwargs).log_evidence

    first = evidence(0.3, noise=0.5)
    count, second = lowered(lambda: evidence(0.7, noise=0.6))
    assert count == 0 and first != second
    np.testing.assert_allclose(evidence(1.0, noise=0.6, shift=0.3), second, rtol=1e-5)

    def with_domain(y, low=-1.0):
        """What is static in a basis cannot be an array."""
        energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(4, 3, (low, 1.0)))
        z = numpyro.sample("z", KAPrior(energy, dist.Normal(0.0, 1.0)))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    runs = [ImportanceSampling(50).run(jax.random.key(0), with_domain, {}, 0.3, low=low) for low in (-1.1, -2.1)]
    assert np.isfinite([run.log_evidence for run in runs]).all() and runs[0].log_evidence != runs[1].log_evidence


def test_arviz_groups_of_another_run_compile_nothing():
    model, _ = closure()
    runs = [
        ImportanceSampling(50).run(jax.random.key(i), model, {"scale": jnp.asarray(1.0 + i)}, jnp.asarray(DATA + i))
        for i in range(2)
    ]
    runs[0].to_arviz()
    count, groups = lowered(runs[1].to_arviz)
    assert count == 0
    np.testing.assert_array_equal(groups.observed_data["x"], DATA + 1)


@pytest.mark.parametrize("objective", slow_unless(["importance", "langevin", "elbo"], OBJECTIVES))
def test_fit_that_does_the_same_again_compiles_nothing(objective):
    model, _ = closure()
    first = train(objective, model)
    count, second = lowered(lambda: train(objective, model, key=1, x=DATA + 1.0, optimizer=optax.sgd(0.01)))
    assert count == 0
    assert not np.allclose(first, second)


def test_another_learning_rate_is_another_program():
    model, _ = closure()
    slow, fast = (train("importance", model, optimizer=optax.sgd(rate)) for rate in (0.01, 0.1))
    assert not np.allclose(slow[-1], fast[-1])


def learned(x):
    """A model whose energy has a grid that adapts."""
    prior = KAPrior(energy_module("energy", ENERGY), dist.Normal(0.0, 1.0))
    numpyro.param("scale", 1.0)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", prior)
        numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("closure", {"mesh": True, "held_out": DATA[:3]}),
        ("closure", {"stream": True}),
        pytest.param(
            "learned",
            {"grid_adaptation": GridAdaptation(name="energy", energy=ENERGY, site="z", every=1)},
            marks=pytest.mark.slow,
        ),
    ],
    ids=["a mesh and padded rows", "a stream", "a grid that adapts"],
)
def test_all_that_fit_can_do_is_compiled_once(model, options):
    model = closure()[0] if model == "closure" else learned
    options = dict(options)
    if options.pop("mesh", False):
        options["mesh"] = jax.make_mesh((1,), ("data",))
    streams = options.pop("stream", False)

    def run(key):
        x = DATA + key
        if streams:
            return train("importance", model, key, iter([x[:2], x[2:]]), held_out=x, batch_size=None)
        return train("importance", model, key, x, **options)

    first = run(0)
    count, second = lowered(lambda: run(1))
    assert count == 0
    assert not np.allclose(first, second)


def test_a_rebound_guide_is_another_proposal():
    width = 1.0

    def wide(x):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(0.5 * x, width))

    model, _ = closure()
    draws = []
    for value in (1.0, 3.0):
        width = value
        run = ImportanceSampling(500, guide=wide).run(jax.random.key(0), model, {"scale": jnp.asarray(1.0)}, DATA)
        draws.append(run.latents["z"].std())
    # Standard deviations of 500 draws for each of four data, known to 3 per cent.
    assert draws[1] > 2 * draws[0]


def test_a_rebound_model_is_checked_again():
    coupling = 0.0

    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(z + coupling * x.mean(), 1.0), obs=x)

    LatentModel(model, {}, jnp.asarray(DATA))
    coupling = 1.0
    with pytest.raises(ValueError, match="site 'x'"):
        LatentModel(model, {}, jnp.asarray(DATA))


def test_a_rebound_derivative_rule_is_another_program():
    factor = 1.0

    @jax.custom_vjp
    def identity(x):
        return x

    identity.defvjp(lambda x: (x, None), lambda _, g: (factor * g,))

    def model(x):
        scale = numpyro.param("scale", 1.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.sample("x", dist.Normal(identity(scale) * z, 1.0), obs=x)

    steps = []
    for value in (1.0, 2.0):
        factor = value
        steps.append(train("importance", model, batch_size=4, held_out=None)[-1] - 1.0)
    np.testing.assert_allclose(steps[1], 2 * steps[0], rtol=1e-3)


def test_an_objective_of_the_user_s_own_is_traced_at_every_call():
    weight = 1.0

    class Weighted(ImportanceMLE):
        def evaluate(self, key, latent_model, state):
            loss, state = super().evaluate(key, latent_model, state)
            return weight * loss, state

    model, _ = closure()
    losses = []
    for value in (1.0, 3.0):
        weight = value
        result = fit(
            jax.random.key(0),
            model,
            DATA,
            objective=Weighted(10),
            optimizer=optax.sgd(0.0),
            num_epochs=1,
            batch_size=4,
            progress=False,
        )
        losses.append(result.history["loss"][0])
    np.testing.assert_allclose(losses[1], 3 * losses[0], rtol=1e-5)


def test_data_are_not_kept_alive_and_no_more_programs_than_there_is_room_for(monkeypatch):
    monkeypatch.setattr(programs, "_MOST", 2)
    clear_caches()
    model, _ = closure()
    x = jnp.asarray(DATA)
    alive = weakref.ref(x)
    for num_samples in (10, 20, 30):
        ImportanceSampling(num_samples).run(jax.random.key(0), model, {"scale": jnp.asarray(1.0)}, x)
        assert len(programs._PROGRAMS) <= 2
    del x
    gc.collect()
    assert alive() is None
    clear_caches()
    assert len(programs._PROGRAMS) == 0


def test_fingerprints_tell_programs_apart():
    x = jnp.zeros(3)

    def computes(function, *args):
        return fingerprint(jax.make_jaxpr(function)(*args))

    assert computes(lambda x: jnp.sin(x) * 2.0, x) == computes(lambda y: jnp.sin(y) * 2.0, x)
    assert computes(lambda x: x * jnp.nan, x) == computes(lambda x: x * jnp.nan, x)
    others = [
        computes(lambda x: jnp.sin(x) * 2.0, x),
        computes(lambda x: jnp.sin(x) * 3.0, x),
        computes(lambda x: jnp.cos(x) * 2.0, x),
        computes(lambda x: jnp.sin(x) * 2.0, jnp.zeros(4)),
        computes(lambda x: jnp.sin(x) * 2.0, x.astype(jnp.bfloat16)),
        computes(lambda x: jnp.sin(x) * np.array([1.0, 2.0, 3.0], np.float32), x),
        computes(lambda x: jnp.sin(x) * np.array([1.0, 2.0, 4.0], np.float32), x),
        computes(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * 2.0, x), x),
        computes(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x * 3.0, x), x),
        computes(lambda x: x[0] - x[1], x),
        computes(lambda x: x[1] - x[0], x),
        computes(lambda x: x * 0.0, x),
        computes(lambda x: x * -0.0, x),
    ]
    assert len(set(others)) == len(others)


def test_what_a_function_closes_over_is_part_of_the_program():
    factor = 2.0
    twice = jit_by_program(lambda x: factor * x)
    assert twice(jnp.ones(())) == 2.0
    factor = 3.0
    assert twice(jnp.ones(())) == 3.0


def test_static_arguments_are_compared_by_value_and_functions_by_what_they_compute():
    apply = jit_by_value(lambda function, number, x: function(x) + number)
    factor = 2.0

    def scale(x):
        return factor * x

    assert apply(scale, 1, jnp.ones(())) == 3.0
    factor = 5.0
    assert apply(scale, 1, jnp.ones(())) == 6.0
    assert apply(scale, 2, jnp.ones(())) == 7.0
    known = SameProgram(scale, "five times")
    assert apply(known, 1, jnp.ones(())) == 6.0
    assert apply(known, 2, jnp.ones(())) == 7.0
    assert lowered(lambda: apply(SameProgram(lambda x: x, "five times"), 1, jnp.zeros(())))[0] == 0
    of_scale = apply.of(scale)
    assert of_scale(1, jnp.ones(())) == 6.0
    factor = 7.0
    assert of_scale(2, jnp.ones(())) == 9.0
    assert apply.of(known)(1, jnp.ones(())) == 6.0


def test_numpy_arrays_that_were_looked_at_once_are_wide_where_jax_is_by_then():
    add = jit_by_value(lambda a, b: a + b).of(np.ones(3))
    assert add(jnp.ones(3)).dtype == jnp.float32
    with in_float64():
        assert add(jnp.ones(3)).dtype == jnp.float64


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: ImportanceSampling(10), ImportanceSampling(20)),
        (lambda: ImportanceSampling(10, guide=guide, guide_params={"location": np.ones(2)}), ImportanceSampling(10)),
        (lambda: Langevin(num_steps=3), Langevin(num_steps=3, warmup=1)),
        (lambda: ParallelTempering([0.0, 1.0]), ParallelTempering([0.0, 0.5, 1.0])),
        (lambda: TemperedSMC(num_runs=2), TemperedSMC()),
        (lambda: ImportanceMLE(10), ImportanceMLE(10, chunk_size=5)),
        (lambda: LangevinMLE(ULA(step_size=0.1)), LangevinMLE(ULA(step_size=0.2))),
        (lambda: ThermodynamicMLE([0.0, 1.0], schedule=2.0), ThermodynamicMLE([0.0, 1.0])),
        (
            lambda: GridAdaptation(name="f", energy=ENERGY, site="z"),
            GridAdaptation(name="f", energy=jax.tree.map(lambda leaf: leaf + 1, ENERGY), site="z"),
        ),
    ],
)
def test_samplers_and_objectives_are_values(make, other):
    assert make() == make() and hash(make()) == hash(make())
    assert make() != other
    assert len(repr(make())) < 100 and repr(make()).startswith(type(other).__name__)
    with pytest.raises(AttributeError):
        make().plate = "data"


def test_reprs_show_what_differs_from_the_defaults():
    assert repr(TemperedSMC(num_particles=10)) == "TemperedSMC(target_ess=0.5, kernel=MALA(), num_particles=10)"


METHODS_OF_PRIORS = {
    "sample": lambda p: p.sample(jax.random.key(0), (3,)),
    "log_prob": lambda p: p.log_prob(0.3),
    "cdf": lambda p: p.cdf(0.3),
    "icdf": lambda p: p.icdf(0.3),
    "mean": lambda p: p.mean,
    "variance": lambda p: p.variance,
    "entropy": lambda p: p.entropy(),
    "log_normalizer": lambda p: p.log_normalizer,
    "survival": lambda p: survival(p, jnp.float32(0.3)),
    "tabulate": lambda p: p.tabulate().sample(jax.random.key(0)),
    "adapt_grid": lambda p: p.energy.adapt_grid(np.linspace(-1.0, 1.0, 9, dtype=np.float32))[0].coefficients,
}


def on_domain(low, high, reference):
    energy = UnivariateEnergy.init(jax.random.key(0), basis=BSpline(2, 1, (low, high)), scale=1.0)
    return KAPrior(energy, reference)


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (dist.Normal, ("sample", "cdf")),
        pytest.param(dist.Normal, METHODS_OF_PRIORS, marks=pytest.mark.slow),
    ],
    ids=["two methods", "every method"],
)
def test_another_scalar_prior_compiles_nothing(make, names):
    """Domains and numbers are arguments of the programs that a prior's methods are when they are called with values."""
    first, second = on_domain(-3.0, 3.0, make(0.0, 1.0)), on_domain(-2.1, 2.9, make(0.3, 0.8))
    results = {name: METHODS_OF_PRIORS[name](first) for name in names}
    for name in names:
        count, result = lowered(lambda method=METHODS_OF_PRIORS[name]: method(second))
        assert count == 0, name
        assert not np.allclose(result, results[name]), name
    # As part of a larger program, for which domain and numbers are constants.
    for name in {"log_prob", "cdf", "icdf"} & set(names):
        within = jax.jit(lambda z, name=name: getattr(second, name)(z))(0.3)
        np.testing.assert_allclose(within, METHODS_OF_PRIORS[name](second), rtol=2e-5, atol=1e-6)


def test_within_a_trace_domains_and_numbers_are_known():
    """A uniform reference on its whole support is known to have no tails; and a prior has no leaf for its grid."""
    prior = on_domain(-1.0, 2.0, dist.Uniform(-1.0, 2.0))
    num_panels = prior._density.rule.panels_per_interval * 2

    def panels(energy):
        return KAPrior(energy, prior.reference).tabulate()._kept_inverse.keys

    assert jax.eval_shape(panels, prior.energy).shape == (num_panels,)
    assert prior.tabulate()._kept_inverse.keys.shape[0] > num_panels
    assert all(np.issubdtype(leaf.dtype, np.floating) for leaf in jax.tree.leaves(prior))
    assert len(jax.tree.leaves(prior.energy)) == 3
    slopes = jax.grad(lambda p: p.log_prob(0.3))(prior)
    assert np.all(np.isfinite(slopes.energy.coefficients)) and np.any(slopes.energy.coefficients)
