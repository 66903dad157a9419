"""What must be true on eight devices: run as a program it makes every check and prints the outcomes as JSON."""

import importlib
import json
import os
import sys
import tempfile
import traceback
from functools import cache

if __name__ == "__main__":
    # Both must precede the first use of JAX. Unoptimised programs compile in half of the time.
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from speed import hurry

from numpyro_kaem import (
    MALA,
    BSpline,
    HeldOut,
    ImportanceMLE,
    ImportanceSampling,
    KAPrior,
    Ladder,
    Langevin,
    LangevinMLE,
    ParallelTempering,
    TemperedSMC,
    ThermodynamicMLE,
    UnivariateEnergy,
    fit,
)

# 53 rows leave 3 places of 8 x 7 empty, 13 held-out ones leave 3 of 8 x 2.
DATA = (1.5 + np.random.default_rng(0).standard_normal((53, 8))).astype(np.float32)
HELD_OUT = DATA[:13] + 0.1
BATCH = 16
OBJECTIVES = {
    "importance": ImportanceMLE(64),
    "langevin": LangevinMLE(num_steps=3, persistent=True, num_chains=8),
    "thermodynamic": ThermodynamicMLE(Ladder.power(2), num_steps=2, persistent=True, adapt=True, num_chains=8),
}
SAMPLERS = {
    "importance": ImportanceSampling(64),
    "langevin": Langevin(MALA(), num_steps=8, num_chains=2, warmup=4, progress=False),
    "tempering": ParallelTempering(Ladder.power(2), MALA(), num_steps=8, warmup=4, progress=False),
    "smc": TemperedSMC(num_particles=16, num_mcmc_steps=2, progress=False),
}


def model(x):
    weight = numpyro.param("weight", 0.1 * jnp.arange(16.0).reshape(2, 8))
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z @ weight, noise).to_event(1), obs=x)


def train(objective, mesh=None, data=DATA, **options):
    options = {"batch_size": BATCH, "held_out": HeldOut(HELD_OUT, num_samples=32), "num_epochs": 2} | options
    options |= {"objective": objective, "optimizer": optax.adam(0.05), "progress": False}
    return fit(jax.random.key(0), model, data, mesh=mesh, **options)


def eight():
    """The mesh that JAX's documentation makes."""
    return jax.make_mesh((8,), ("data",))


fit_module = importlib.import_module("numpyro_kaem.training.fit")  # the package has a function of that name
FEEDS = []


@cache
def on_one_and_on_eight(name):
    """The same run on one device and on eight, each with its compiled epoch."""
    FEEDS.clear()
    results = [train(OBJECTIVES[name], mesh) for mesh in (None, eight())]
    return *results, *FEEDS


class KeptFeed(fit_module.ArrayFeed):
    """A feed that can be looked into after the run."""

    def __init__(self, *args):
        super().__init__(*args)
        FEEDS.append(self)


fit_module.ArrayFeed = KeptFeed


def assert_same_run(one, many):
    for name in ("loss", "held_out_log_likelihood", "held_out_std_error"):
        np.testing.assert_allclose(many.history[name], one.history[name], rtol=2e-5, err_msg=name)
    for name, value in one.params.items():
        np.testing.assert_allclose(many.params[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


def same_run(name):
    one, many, *_ = on_one_and_on_eight(name)
    assert_same_run(one, many)


def sampler_scores_held_out_data():
    options = {"held_out": HELD_OUT, "held_out_sampler": SAMPLERS["smc"]}
    assert_same_run(*(train(OBJECTIVES["importance"], mesh, **options) for mesh in (None, eight())))


def data_and_chains_are_divided():
    _, many, _, feed = on_one_and_on_eight("langevin")
    chains = many.state.mutable_state["objective$state"]["per_datum"]
    assert chains["started"].sum() > 45
    for array in (feed.data[0], chains["positions"], chains["started"]):
        assert [shard.data.shape[0] for shard in array.addressable_shards] == 8 * [7], array.sharding
    for array in many.params.values():
        assert array.sharding.is_fully_replicated, array.sharding


def work_is_divided():
    """To each device an eighth of what a step does with data, chains and draws is left, beside what all of them do."""
    for name in OBJECTIVES:
        *_, one, many = on_one_and_on_eight(name)
        flops = [feed._take_steps.executable.cost_analysis()["flops"] for feed in (one, many)]
        assert flops[1] < 0.3 * flops[0], (name, flops)


def resumed_run_is_the_same():
    whole = on_one_and_on_eight("langevin")[1]
    with tempfile.TemporaryDirectory() as folder:
        part = train(OBJECTIVES["langevin"], eight(), num_epochs=1, checkpoints=folder)
        assert len(part.history["loss"]) == 3
        resumed = train(OBJECTIVES["langevin"], eight(), checkpoints=folder)
    np.testing.assert_array_equal(resumed.history["loss"], whole.history["loss"])
    for a, b in zip(jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True):
        assert a.sharding == b.sharding
        if not jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            np.testing.assert_array_equal(a, b)


def parameters_are_divided_as_told():
    def specs(site, array):
        return PartitionSpec(None, "data") if site == "weight" else PartitionSpec()

    many = train(OBJECTIVES["importance"], eight(), param_specs=specs)
    assert_same_run(on_one_and_on_eight("importance")[0], many)
    divided = [leaf for leaf in jax.tree.leaves(many.state.optim_state) if leaf.shape == (2, 8)]
    assert len(divided) == 3  # the parameter and Adam's two moments
    assert all(leaf.addressable_shards[0].data.shape == (2, 1) for leaf in divided)


def batches_of_an_iterable_are_divided():
    class Batches:
        def __iter__(self):
            return iter([DATA[:16], DATA[16:32]])

    one, many = (train(OBJECTIVES["importance"], mesh, Batches(), batch_size=None) for mesh in (None, eight()))
    assert_same_run(one, many)


NO_LAYOUT = {
    "specs alone": ({"param_specs": lambda *_: PartitionSpec()}, ValueError, "param_specs need a mesh"),
}


def assert_is_named(options, kind, message):
    try:
        train(OBJECTIVES["importance"], **options)
    except kind as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"no {kind.__name__} for {options}")


def bad_input_is_named():
    class Batches:
        def __iter__(self):
            return iter([DATA[:12]])

    cases = [
        ({"mesh": eight(), "batch_size": 12}, ValueError, "batch_size must be a multiple of the 8 devices"),
        ({"mesh": eight(), "data": Batches(), "batch_size": None}, ValueError, "a multiple of the 8 devices"),
        ({"mesh": eight(), "param_specs": {"weight": PartitionSpec()}}, TypeError, "'dict' object is not callable"),
    ]
    for case in cases:
        assert_is_named(*case)


def sampler_takes_divided_data(name):
    sampler, params = SAMPLERS[name], {"weight": 0.1 * jnp.arange(16.0).reshape(2, 8), "noise": jnp.array(1.0)}
    explicit = eight()
    compiler_s = Mesh(explicit.devices, ("data",))
    one = sampler.run(jax.random.key(1), model, params, jnp.asarray(DATA[:16]))
    # The axes of one mesh are the compiler's, those of the other are part of the arrays' types.
    for mesh in (compiler_s, explicit) if name == "importance" else (explicit,):
        x = jax.device_put(DATA[:16], NamedSharding(mesh, PartitionSpec("data")))
        many = sampler.run(jax.random.key(1), model, params, x)
        np.testing.assert_allclose(many.latents["z"], one.latents["z"], rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(many.log_likelihood, one.log_likelihood, rtol=2e-4)
        if one.log_evidence is not None:
            np.testing.assert_allclose(many.log_evidence, one.log_evidence, rtol=2e-5)


def chains_of_samplers_are_divided():
    from numpyro_kaem.posterior import chains, particles

    seen = {}

    def spy(module, positions):
        def advance(*given, original=module.advance):
            seen[module.__name__] = positions(given[-1]).sharding
            return original(*given)

        module.advance = advance

    spy(chains, lambda state: state.positions)
    spy(particles, lambda state: state.points.position)
    params = {"weight": jnp.ones((2, 8)), "noise": jnp.array(1.0)}
    x = jax.device_put(DATA[:16], NamedSharding(eight(), PartitionSpec("data")))
    for name in ("langevin", "smc"):
        SAMPLERS[name].run(jax.random.key(1), model, params, x)
    assert len(seen) == 2
    for sharding in seen.values():
        assert sharding.spec[0] == "data", sharding


def prior_draws_are_the_same():
    energy = UnivariateEnergy.init(jax.random.key(0), (81,), basis=BSpline(20, 3, (-3.0, 3.0)))
    prior, key = KAPrior(energy, dist.Normal(0.0, 1.0)), jax.random.key(1)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    by_draw = NamedSharding(mesh, PartitionSpec("data"))

    draws = prior.sample(key, (16,))
    divided = jax.jit(lambda prior, key: prior.sample(key, (16,)), out_shardings=by_draw)(prior, key)
    np.testing.assert_allclose(divided, draws, rtol=1e-5, atol=1e-6)

    keys = jax.random.split(key, 16)
    by_key = jax.jit(jax.vmap(prior.sample))
    divided = by_key(jax.device_put(keys, by_draw))
    np.testing.assert_allclose(divided, by_key(keys), rtol=1e-5, atol=1e-6)
    assert divided.sharding.spec[0] == "data"

    three = NamedSharding(Mesh(np.array(jax.devices()[:3]), ("data",)), PartitionSpec("data"))
    by_energy = jax.tree.map(lambda leaf: jax.device_put(leaf, three) if jnp.shape(leaf)[:1] == (81,) else leaf, energy)
    assert by_energy.coefficients.addressable_shards[0].data.shape[0] == 27
    divided = jax.jit(lambda f, key: KAPrior(f, dist.Normal(0.0, 1.0)).sample(key, (16,)))(by_energy, key)
    np.testing.assert_allclose(divided, draws, rtol=1e-5, atol=1e-6)


CHECKS = {
    **{f"the same run by {name}": lambda name=name: same_run(name) for name in OBJECTIVES},
    "a sampler scores held-out data": sampler_scores_held_out_data,
    "data and chains are divided": data_and_chains_are_divided,
    "work is divided": work_is_divided,
    "a resumed run is the same": resumed_run_is_the_same,
    "parameters are divided as told": parameters_are_divided_as_told,
    "batches of an iterable are divided": batches_of_an_iterable_are_divided,
    "bad input is named": bad_input_is_named,
    **{f"the same draws by {name}": lambda name=name: sampler_takes_divided_data(name) for name in SAMPLERS},
    "chains of samplers are divided": chains_of_samplers_are_divided,
    "prior draws are the same": prior_draws_are_the_same,
}


def main():
    assert jax.device_count() == 8
    hurry()
    outcomes = {}
    for name, check in CHECKS.items():
        try:
            check()
            outcomes[name] = "passed"
        except Exception:
            outcomes[name] = traceback.format_exc()
        print(name, outcomes[name], file=sys.stderr, flush=True)
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
