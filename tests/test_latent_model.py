"""The seam gives NumPyro's own log-density, datum by datum, and refuses models whose rows do not stand alone."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats
from flax import linen, nnx
from numpyro.contrib.module import eqx_module, flax_module, nnx_module
from numpyro.handlers import mask, scale, seed, substitute, trace
from numpyro.infer.util import log_density, potential_energy
from prior_cases import quick_jit

from numpyro_kaem.models.latent_model import LatentModel

N = 6
X = np.random.default_rng(0).normal(size=(N, 3))
C = np.random.default_rng(1).normal(size=N)
Y = (X[:, 0] > 0).astype(float)
KEEP = X > -0.5
normal = dist.Normal


def on_device(data):
    """Arrays that a traced index may choose rows of."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf) if np.ndim(leaf) else leaf, data)


def initial_values(model, *data, **kwargs):
    """Values of the parameter and mutable sites of a model, compiled as one."""

    def values():
        sites = trace(seed(model, 0)).get_trace(*on_device(data), **kwargs)
        return {name: site["value"] for name, site in sites.items() if site["type"] in ("param", "mutable")}

    return quick_jit(values)() if jax.eval_shape(values) else {}


unchecked = partial(LatentModel, check=False)  # where the test is of something else


def full_latents(latent_model, key=7):
    """Latents of the whole data set in the shapes of the model, and by datum."""
    plates = latent_model.plate_indices
    model = substitute(seed(latent_model.model, key), data={**latent_model.params, **plates})
    sites = trace(model).get_trace(*latent_model.data, **latent_model.model_kwargs)
    full, by_datum = {}, {}
    for name in latent_model.latent_shapes:
        value = full[name] = sites[name]["value"]
        dims = {frame.name: frame.dim for frame in sites[name]["cond_indep_stack"]}
        by_datum[name] = (
            value[None]
            if latent_model.plate is None
            else jnp.moveaxis(value, dims[latent_model.plate] - sites[name]["fn"].event_dim, 0)
        )
    return {**full, **plates}, by_datum


# Models: each with its data, keyword arguments and what is expected of num_data and plate.


def one_latent(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("x", normal(z.sum(-1, keepdims=True), 0.7).to_event(1), obs=x)


def two_latents_two_observed(x, y):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        w = numpyro.sample("w", dist.Gamma(2.0, jnp.exp(z)))
        numpyro.sample("x", normal(z[:, None], w[:, None]).to_event(1), obs=x)
        numpyro.sample("y", dist.Bernoulli(logits=z), obs=y)


def hard_coded(x):
    with numpyro.plate("data", N):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=x)


def indexed(x):
    with numpyro.plate("data", N, subsample_size=4) as index:
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=x[index])


def subsampled(x):
    with numpyro.plate("data", N, subsample_size=4):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=numpyro.subsample(x, event_dim=1))


def minibatch(x):
    with numpyro.plate("data", 50, subsample_size=x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=x)


def subsample_of_everything(x):
    with numpyro.plate("data", N):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=numpyro.subsample(x, event_dim=1))


def masked(x, keep):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).mask(keep).to_event(1), obs=x)
        with mask(mask=keep[:, 0]):
            numpyro.sample("first", normal(z, 2.0), obs=x[:, 0])


def factors(x):
    numpyro.factor("outside", jnp.array([0.3, -1.1]))
    with numpyro.plate("data", 3 * N, subsample_size=x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.factor("inside", -(z**4))
        numpyro.factor("constant", 0.25)
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=x)
    numpyro.factor("data_outside", jnp.tanh(x).sum())


def inner_plates(x):
    with numpyro.plate("data", x.shape[0], dim=-2):
        z = numpyro.sample("z", normal(0.0, 1.0))
        with numpyro.plate("pixel", 3):
            w = numpyro.sample("w", dist.LogNormal(z, 1.0))
            with numpyro.plate("repeat", 2, dim=-3):
                numpyro.sample("x", normal(w, 1.0), obs=x)


def outer_plate(x):
    with numpyro.plate("data", x.shape[0], dim=-1):
        z = numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))
        with numpyro.plate("pixel", 3, dim=-2):
            w = numpyro.sample("w", normal(z[..., 0], 1.0))
            numpyro.sample("x", normal(w, 1.0), obs=jnp.swapaxes(x, 0, 1))


def inner_subsampled(x):
    with numpyro.plate("data", x.shape[0], dim=-2):
        z = numpyro.sample("z", normal(0.0, 1.0))
        with numpyro.plate("pixel", 3, subsample_size=2) as index:
            numpyro.sample("x", normal(z, 1.0), obs=x[:, index])


def global_latent(x):
    mean = numpyro.sample("mean", normal(0.0, 1.0))
    with numpyro.plate("data", N, subsample_size=3) as index:
        z = numpyro.sample("z", normal(mean, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=x[index])


def no_plate(x, y):
    weights = numpyro.sample("weights", normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Bernoulli(logits=x @ weights).to_event(1), obs=y)


def conditional_prior(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(c, 1.0))
        numpyro.sample("x", normal(z[:, None], 0.7).to_event(1), obs=x)


def constrained_parameters(x):
    rate = numpyro.param("rate", 0.5, constraint=dist.constraints.positive)
    weights = numpyro.param("weights", jnp.array([0.2, 0.3, 0.5]), constraint=dist.constraints.simplex)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Exponential(rate))
        numpyro.sample("x", normal(z[:, None] * weights, 0.7).to_event(1), obs=x)


def handler_scales(x):
    with numpyro.plate("data", 2 * N, subsample_size=x.shape[0]), scale(scale=0.3):
        z = numpyro.sample("z", normal(0.0, 1.0))
        with scale(scale=jnp.linspace(0.1, 1.0, 3)[:, None]), numpyro.plate("pixel", 3, dim=-2):
            numpyro.sample("x", normal(z, 0.7), obs=x.T)


def structured_arguments(batch, extra, count, name, temperature, width=None):
    with numpyro.plate("data", batch["x"].shape[0]):
        z = numpyro.sample("z", normal(0.0, width))
        location = z[:, None] * count + batch["c"][:, None] + temperature
        numpyro.sample(name, normal(location, 0.7).to_event(1), obs=batch["x"])
    assert extra is None


class NNXDecoder(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(2, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, rngs=rngs)
        self.last = nnx.Linear(5, 3, rngs=rngs)

    def __call__(self, z):
        return self.last(self.norm(jnp.tanh(self.first(z))))


class LinenDecoder(linen.Module):
    train: bool = False

    @linen.compact
    def __call__(self, z):
        h = linen.BatchNorm(use_running_average=not self.train)(linen.Dense(5)(z))
        return linen.Dense(3)(h)


class NNXDropout(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(2, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, z):
        return self.linear(self.dropout(z))


def decoder_model(register):
    def model(x):
        decoder = register()
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", normal(0.0, 1.0).expand([2]).to_event(1))
            numpyro.sample("x", normal(decoder(z), 0.7).to_event(1), obs=x)

    return model


def nnx_decoder(train):
    decoder = NNXDecoder(nnx.Rngs(0))
    decoder.train() if train else decoder.eval()
    return decoder_model(lambda: nnx_module("decoder", decoder))


def linen_decoder(train):
    return decoder_model(
        lambda: flax_module("decoder", LinenDecoder(train), input_shape=(1, 2), mutable=["batch_stats"])
    )


LINEAR = eqx.nn.Linear(2, 3, key=jax.random.key(0))
eqx_decoder = decoder_model(lambda: jax.vmap(eqx_module("decoder", LINEAR)))

SIX_ROWS = {
    "one latent": (one_latent, (X,), {}),
    "two latents, two observed": (two_latents_two_observed, (X, Y), {}),
    "hard-coded size": (hard_coded, (X,), {}),
    "numpyro.subsample of all rows": (subsample_of_everything, (X,), {}),
    "minibatch": (minibatch, (X,), {}),
    "mask": (masked, (X, KEEP), {}),
    "factors": (factors, (X,), {}),
    "inner plates": (inner_plates, (X,), {}),
    "plate in front": (outer_plate, (X,), {}),
    "inner plate sub-sampled": (inner_subsampled, (X,), {}),
    "conditional prior": (conditional_prior, (X, C), {}),
    "constrained parameters": (constrained_parameters, (X,), {}),
    "handlers.scale": (handler_scales, (X,), {}),
    "structured arguments": (
        structured_arguments,
        ({"x": X, "c": C}, None, 3, "x", np.array(0.5)),
        {"width": 1.3},
    ),
    "eqx_module": (eqx_decoder, (X,), {}),
    "nnx_module": (nnx_decoder(train=False), (X,), {}),
    "flax_module": (linen_decoder(train=False), (X,), {}),
}
FOUR_ROWS = {"data[index]": (indexed, (X,), {}), "numpyro.subsample": (subsampled, (X,), {})}
GLOBAL = {"global latent": (global_latent, (X,), {}), "no plate": (no_plate, (X, Y), {})}


# What others have too, beside more.
SLOW = {
    *("one latent", "hard-coded size", "numpyro.subsample of all rows", "conditional prior", "constrained parameters"),
    *("eqx_module", "flax_module"),
}
CASES = [
    pytest.param(num_rows, plate, *case, id=name, marks=pytest.mark.slow if name in SLOW else ())
    for group, num_rows, plate in ((SIX_ROWS, N, "data"), (FOUR_ROWS, 4, "data"), (GLOBAL, 1, None))
    for name, case in group.items()
]


@pytest.mark.parametrize(("num_rows", "plate", "model", "data", "kwargs"), CASES)
def test_scaled_local_plus_global_is_the_log_density_of_numpyro(x64, num_rows, plate, model, data, kwargs):
    params, data = initial_values(model, *data, **kwargs), on_device(data)
    latent_model = LatentModel(model, params, *data, **kwargs)
    assert (latent_model.num_data, latent_model.plate) == (num_rows, plate)
    assert bool(latent_model.outside_sites) == (plate is None)

    def joint(z, row):
        return latent_model.log_prior(z, *row) + latent_model.log_likelihood(z, *row)

    @quick_jit
    def densities():
        full, by_datum = full_latents(latent_model)
        if plate is None:
            local = joint(jax.tree.map(lambda leaf: leaf[0], by_datum), latent_model.rows)
        else:
            local = jnp.sum(jax.vmap(joint)(by_datum, latent_model.rows))
        total = latent_model.scale * local + latent_model.global_log_density()
        expected, _ = log_density(seed(model, 0), data, kwargs, {**params, **full})
        return expected, latent_model.log_density(by_datum), total

    expected, density, total = densities()
    tolerance = {"rel": 1e-6 if "decoder$params" in params else 1e-12}  # modules compute in float32
    assert float(density) == pytest.approx(float(expected), **tolerance)
    assert float(total) == pytest.approx(float(expected), **tolerance)


def test_latent_shapes_are_those_of_one_datum():
    assert unchecked(one_latent, {}, X).latent_shapes == {"z": (2,)}
    assert unchecked(inner_plates, {}, X).latent_shapes == {"z": (1,), "w": (3,)}
    assert unchecked(outer_plate, {}, X).latent_shapes == {"z": (2,), "w": (3,)}
    assert unchecked(global_latent, {}, X).latent_shapes == {"mean": (), "z": (3,)}


def test_one_datum_has_the_densities_of_its_sites():
    latent_model = unchecked(two_latents_two_observed, {}, X, Y)
    z, w = 0.3, 1.7
    prior = scipy.stats.norm.logpdf(z) + scipy.stats.gamma.logpdf(w, 2.0, scale=np.exp(-z))
    likelihood = scipy.stats.norm.logpdf(X[2], z, w).sum() + scipy.stats.bernoulli.logpmf(Y[2], scipy.special.expit(z))
    assert latent_model.observed_names == ("x", "y")
    values = quick_jit(lambda datum: (latent_model.log_prior(datum), latent_model.log_likelihood(datum, X[2], Y[2])))(
        {"z": z, "w": w}
    )
    np.testing.assert_allclose(values, (prior, likelihood), rtol=1e-6)


@pytest.mark.parametrize("model", [indexed, subsampled])
def test_subsample_indices_are_drawn_once_by_the_key(model):
    rows = [unchecked(model, {}, X, rng_key=jax.random.key(k)).rows[0] for k in (0, 0, 1)]
    assert rows[0].shape == (4, 3)
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])
    assert {tuple(row) for row in np.asarray(rows[2])} <= {tuple(row) for row in X.astype(np.float32)}
    assert unchecked(model, {}, X).scale == N / 4
    assert unchecked(minibatch, {}, X).scale == 50 / N


def test_indices_that_the_user_substitutes_are_kept():
    model = substitute(indexed, data={"data": jnp.array([5, 0, 2, 3])})
    assert np.array_equal(unchecked(model, {}, X).rows[0], X.astype(np.float32)[[5, 0, 2, 3]])


def test_what_is_no_array_is_left_out_of_the_rows_and_reaches_the_model():
    model, data, kwargs = SIX_ROWS["structured arguments"]
    latent_model = unchecked(model, {}, *data, **kwargs)
    assert jax.tree.map(jnp.shape, latent_model.rows) == ({"x": (N, 3), "c": (N,)}, None, None, None, None)
    likelihood = jax.vmap(lambda row: latent_model.log_likelihood({"z": jnp.array(0.1)}, *row))
    mapped = quick_jit(lambda: likelihood(latent_model.rows))()
    expected = scipy.stats.norm.logpdf(X, 0.3 + C[:, None] + 0.5, 0.7).sum(-1)
    np.testing.assert_allclose(mapped, expected, rtol=1e-5)


@pytest.mark.filterwarnings("error")
def test_cut_plates_raise_no_warnings():
    quick_jit(lambda z: unchecked(indexed, {}, X).log_density({"z": z}))(np.zeros(4, np.float32))


# Coordinates


def simplex_latents(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])))
        s = numpyro.sample("s", dist.LogNormal(0.0, 1.0))
        t = numpyro.sample("t", dist.Uniform(-1.0, s))
        numpyro.sample("x", normal(z * t[:, None], s[:, None]).to_event(1), obs=x)


UNCONSTRAINED = {"z": np.array([0.3, -0.8]), "s": np.array(0.4), "t": np.array(-1.2)}


def test_unconstrained_density_is_that_of_numpyro_potential_energy(x64):
    latent_model = unchecked(simplex_latents, {}, X[:1])

    @quick_jit
    def both(u):
        joint = latent_model.log_prior(u, unconstrained=True)
        joint += latent_model.log_likelihood(u, X[0], unconstrained=True)
        batched = {name: value[None] for name, value in u.items()}
        return joint, -potential_energy(simplex_latents, (X[:1],), {}, batched)

    np.testing.assert_allclose(*both(UNCONSTRAINED), rtol=1e-12)


def test_unconstrain_inverts_constrain():
    latent_model = unchecked(simplex_latents, {}, X)

    @quick_jit
    def there_and_back(u):
        z = latent_model.constrain(u)
        return z, latent_model.unconstrain(z)

    z, back = jax.tree.map(np.asarray, there_and_back(UNCONSTRAINED))
    assert z["z"].shape == (3,) and float(z["z"].sum()) == pytest.approx(1.0, abs=1e-6)
    assert -1.0 < z["t"] < z["s"]
    assert set(back) == set(UNCONSTRAINED)
    for name, value in back.items():
        np.testing.assert_allclose(value, UNCONSTRAINED[name], atol=1e-5)


def test_the_unconstrained_prior_integrates_to_one(x64):
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Beta(2.0, 3.0))
            numpyro.sample("x", normal(z, 1.0), obs=x)

    latent_model = unchecked(model, {}, C)
    u = np.linspace(-30.0, 30.0, 4001)
    log_density = quick_jit(jax.vmap(lambda u: latent_model.log_prior({"z": u}, unconstrained=True)))(u)
    assert np.sum(np.exp(log_density)) * (u[1] - u[0]) == pytest.approx(1.0, abs=1e-10)


# Draws


def test_prior_draws_have_the_moments_of_the_prior():
    latent_model = unchecked(conditional_prior, {}, X, C)
    z = np.asarray(quick_jit(lambda: latent_model.sample_prior(jax.random.key(3), 40_000, X[1], C[1])["z"])(), float)
    # 5 standard errors each: false alarm 6e-7.
    assert float(z.mean()) == pytest.approx(C[1], abs=5 / 200)
    assert float(z.var()) == pytest.approx(1.0, abs=5 * np.sqrt(2) / 200)


def test_prior_draws_do_not_run_the_decoder():
    latent_model = unchecked(eqx_decoder, initial_values(eqx_decoder, X), X)
    program = str(jax.make_jaxpr(lambda key: latent_model.sample_prior(key, 9))(jax.random.key(0)))
    assert "dot_general" not in program
    assert "dot_general" in str(jax.make_jaxpr(lambda z: latent_model.log_likelihood(z, X[0]))({"z": jnp.ones(2)}))


def test_a_prior_that_depends_on_the_data_asks_for_the_datum():
    latent_model = unchecked(conditional_prior, {}, X, C)
    assert latent_model.prior_depends_on_data and not latent_model.likelihood_depends_on_data
    for call in (
        lambda: latent_model.log_prior({"z": jnp.array(0.0)}),
        lambda: latent_model.sample_prior(jax.random.key(0), 2),
    ):
        with pytest.raises(ValueError, match="needs the datum"):
            call()
    value = quick_jit(lambda z: latent_model.log_prior({"z": z}, X[3], C[3]))(0.0)
    assert float(value) == pytest.approx(scipy.stats.norm.logpdf(0.0, C[3]), rel=1e-6)


def test_dependence_is_read_from_the_program():
    assert not unchecked(one_latent, {}, X).likelihood_depends_on_data
    assert unchecked(masked, {}, X, KEEP).likelihood_depends_on_data
    assert unchecked(no_plate, {}, X, Y).likelihood_depends_on_data


# Random decoders


def random_decoder(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        noise = jax.random.normal(numpyro.prng_key(), z.shape)
        numpyro.sample("x", normal(z + noise, 0.7), obs=x)


def test_random_decoders_are_seeded_by_the_key():
    def value(key):
        latent_model = LatentModel(random_decoder, {}, C, rng_key=jax.random.key(key))
        return float(quick_jit(lambda z: latent_model.log_likelihood({"z": z}, C[0]))(0.2))

    assert value(1) == value(1) != value(2)


def test_dropout_of_an_nnx_module_works():
    decoder = NNXDropout(nnx.Rngs(0))
    decoder.train()
    model = decoder_model(lambda: nnx_module("decoder", decoder))
    latent_model = LatentModel(model, initial_values(model, X), X)
    values = quick_jit(jax.vmap(lambda z: latent_model.log_likelihood({"z": z}, X[0])))(np.ones((4, 2), np.float32))
    assert np.all(np.isfinite(values))


def test_a_random_decoder_that_mixes_rows_is_found():
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", normal(0.0, 1.0))
            noise = jax.random.normal(numpyro.prng_key(), z.shape)
            numpyro.sample("x", normal(z - z.mean() + noise, 0.7), obs=x)

    with pytest.raises(ValueError, match=r"site 'x'.*together.*alone"):
        LatentModel(model, {}, C)


# Traced parameters and data


def test_gradients_and_transformations_hold_inside_jit():
    params = initial_values(constrained_parameters, X)

    def through_the_seam(params, x):
        return unchecked(constrained_parameters, params, x).log_density({"z": jnp.ones(N)})

    def by_numpyro(params, x):
        return log_density(constrained_parameters, (x,), {}, {**params, "z": jnp.ones(N)})[0]

    x = X.astype(np.float32)
    ours, theirs = quick_jit(lambda *inputs: [jax.grad(f, (0, 1))(*inputs) for f in (through_the_seam, by_numpyro)])(
        params, x
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", [nnx_decoder(train=False), linen_decoder(train=False), eqx_decoder])
def test_modules_train_under_jit_with_concrete_data(model):
    params = initial_values(model, X)
    trained = {name: value for name, value in params.items() if not name.endswith("$state")}

    @quick_jit
    def gradient(trained):
        def log_density(trained):
            return LatentModel(model, {**params, **trained}, X).log_density({"z": jnp.ones((N, 2))})

        return jax.grad(log_density)(trained)

    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(gradient(trained)))


def test_the_check_runs_inside_jit_where_the_data_are_concrete():
    model = linen_decoder(train=True)
    params = initial_values(model, X)
    with pytest.raises(ValueError, match="BatchNorm"):
        jax.jit(lambda params: LatentModel(model, params, X).log_prior({"z": jnp.ones(2)}))(params)


def test_traced_data_and_closures_are_not_checked():
    def density(x, shift):
        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", normal(shift, 1.0))
                numpyro.sample("x", normal(z - z.mean(), 1.0), obs=x)

        return LatentModel(model, {}, x).log_prior({"z": jnp.array(0.0)})

    assert np.isfinite(quick_jit(density)(C, 0.5))


def test_no_traced_value_outlives_its_trace():
    def density(rate, key):
        params = {"rate": rate, "weights": np.ones(3, np.float32) / 3}
        latent_model = unchecked(constrained_parameters, params, X, rng_key=key)
        z = latent_model.sample_prior(key, N)
        return latent_model.log_density(z) + latent_model.prior_depends_on_data

    with jax.checking_leaks():
        assert np.isfinite(quick_jit(jax.grad(density))(0.5, jax.random.key(0)))


# The same model at other values


def line(x, c, noise=0.7):
    slope = numpyro.param("slope", 1.0)
    with numpyro.plate("data", 3 * x.shape[0], subsample_size=x.shape[0]):
        z = numpyro.sample("z", normal(c, jnp.exp(slope)))
        numpyro.sample("x", normal(slope * z[:, None], noise).to_event(1), obs=x)


def counted(model):
    """A model, and a list that grows by one whenever its function is called."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        return model(*args, **kwargs)

    return counting, calls


def of_all(latent_model):
    """All that depends on parameters, data and key."""
    z = latent_model.sample_prior(jax.random.key(3), 2, *latent_model.first_row)
    by_datum = jax.vmap(lambda row: jax.tree.map(lambda leaf: leaf[0], z))(jnp.arange(latent_model.num_data))
    return z, latent_model.log_density(by_datum), latent_model.rows


@pytest.mark.parametrize(
    ("model", "data", "params", "others"),
    [
        (line, (X, C), {"slope": 0.5}, {"params": {"slope": jnp.asarray(-0.3)}}),
        (line, (X, C), {"slope": 0.5}, {"params": {"slope": -0.3}}),
        (line, (X, C), {"slope": 0.5}, {"data": (2 * X, C + 1)}),
        (line, (X, C), {"slope": 0.5}, {"data": (X[:4], C[:4])}),
        (indexed, (X,), {}, {"key": jax.random.key(1)}),
        (indexed, (X,), {}, {"key": jax.random.key(1), "data": (2 * X,)}),
        (random_decoder, (C,), {}, {"key": jax.random.key(1)}),
    ],
    ids=["an array", "a number", "data", "fewer data", "a sub-sample", "a sub-sample of others", "noise"],
)
def test_at_other_values_a_model_is_as_if_it_were_read_with_these(model, data, params, others):
    rng_key, given = others.get("key"), others.get("params", params)
    fresh = unchecked(model, given, *others.get("data", data), rng_key=rng_key)
    at = unchecked(model, params, *data).at(**others)
    for ours, theirs in zip(*(jax.tree.leaves(quick_jit(of_all)(m)) for m in (at, fresh)), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (at.num_data, at.scale, at.prior_depends_on_data) == (
        fresh.num_data,
        fresh.scale,
        fresh.prior_depends_on_data,
    )


def test_at_other_values_of_the_same_shapes_the_model_is_not_called():
    model, calls = counted(line)
    latent_model = LatentModel(model, {"slope": jnp.asarray(0.5)}, X, C)
    assert latent_model.prior_depends_on_data
    before = len(calls)
    at = latent_model.at(params={"slope": jnp.asarray(0.6)}, data=(X + 1, C), key=jax.random.key(5))
    assert at.prior_depends_on_data and not at.likelihood_depends_on_data
    assert len(calls) == before
    latent_model.at(data=(X[:2], C[:2]))
    assert len(calls) == before + 1


def test_models_that_compute_the_same_are_one_program_for_jit():
    traces = []

    @jax.jit
    def density(latent_model, z):
        traces.append(1)
        return latent_model.log_likelihood({"z": z}, *latent_model.first_row)

    first, (model, calls) = unchecked(line, {"slope": 0.5}, X, C, noise=0.7), counted(line)
    values = [
        density(latent_model, 0.3)
        for latent_model in (
            first,
            first.at(params={"slope": 0.6}),
            unchecked(model, {"slope": 0.6}, X, C, noise=0.7),
            unchecked(line, {"slope": 0.6}, X, C, noise=0.8),
        )
    ]
    assert len(traces) == 2 and calls
    assert values[1] == values[2] and len(set(map(float, values))) == 3
    np.testing.assert_allclose(values[0], scipy.stats.norm.logpdf(X[0], 0.15, 0.7).sum(), rtol=1e-5)


def test_a_model_passes_through_transformations():
    latent_model = unchecked(line, {"slope": 0.5}, X, C)

    def density(latent_model, params, z):
        at = latent_model.at(params=params)
        return at.log_prior({"z": z}, *at.first_row) + at.log_likelihood({"z": z}, *at.first_row)

    def by_hand(slope, z):
        likelihood = normal(slope * z, 0.7).log_prob(X[0].astype(np.float32)).sum()
        return normal(C[0].astype(np.float32), jnp.exp(slope)).log_prob(z) + likelihood

    slopes, z = jnp.array([0.5, -1.0]), 0.3
    with jax.checking_leaks():
        gradient = jax.jit(jax.vmap(jax.grad(density, 1), (None, {"slope": 0}, None)))(
            latent_model, {"slope": slopes}, z
        )
    np.testing.assert_allclose(gradient["slope"], jax.vmap(jax.grad(by_hand), (0, None))(slopes, z), rtol=1e-4)
    models = jax.vmap(lambda slope: latent_model.at(params={"slope": slope}))(slopes)
    assert models.params["slope"].shape == (2,) and models.latent_shapes == {"z": ()}
    of_model = jax.grad(lambda slope: density(latent_model, {"slope": slope}, z))(0.5)
    np.testing.assert_allclose(of_model, gradient["slope"][0], rtol=1e-6)
    assert jax.jit(latent_model.log_prior)({"z": z}, *latent_model.first_row).shape == ()


def test_at_other_values_names_are_checked_and_shapes_are_those_of_the_new_values():
    latent_model = unchecked(constrained_parameters, initial_values(constrained_parameters, X), X)
    with pytest.raises(ValueError, match=r"missing \['rate'\], unknown \['rates'\]"):
        latent_model.at(params={"rates": 0.5, "weights": np.ones(3, np.float32) / 3})
    with pytest.raises(ValueError, match="no rows"):
        latent_model.at(data=(X[:0],))
    with pytest.raises(ValueError, match="plate 'data' has 6 rows"):
        unchecked(hard_coded, {}, X).at(data=(X[:4],))
    with pytest.raises(TypeError, match="positional argument"):
        latent_model.at(data=(X, X))


# Whole data sets


def test_calls_per_datum_name_the_site_outside():
    with pytest.raises(ValueError, match=r"fit needs .* 'mean' is outside"):
        unchecked(global_latent, {}, X).require_per_datum("fit")
    with pytest.raises(ValueError, match="'weights' is outside"):
        unchecked(no_plate, {}, X, Y).require_per_datum("fit")
    unchecked(one_latent, {}, X).require_per_datum("fit")


def test_eight_schools_is_one_datum():
    effects = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], np.float32)

    def eight_schools(y):
        mean = numpyro.sample("mean", normal(0.0, 5.0))
        spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            effect = numpyro.sample("effect", normal(mean, spread))
            numpyro.sample("y", normal(effect, 10.0), obs=y)

    latent_model = unchecked(eight_schools, {}, effects)
    assert (latent_model.plate, latent_model.num_data, latent_model.scale) == (None, 1, 1.0)
    assert latent_model.latent_shapes == {"mean": (), "spread": (), "effect": (8,)}

    @quick_jit
    def values(key):
        z = jax.tree.map(lambda value: value[0], latent_model.sample_prior(key, 3))
        likelihoods = latent_model.log_likelihood(z), latent_model.log_likelihood(z, 2 * effects)
        return latent_model.log_prior(z), *likelihoods, log_density(eight_schools, (effects,), {}, z)[0]

    prior, likelihood, of_twice, expected = values(jax.random.key(0))
    assert float(prior) + float(likelihood) == pytest.approx(float(expected), rel=1e-5)
    assert float(of_twice) != float(likelihood)


# Which plate


def two_plates(x):
    with numpyro.plate("pixel", 3, dim=-1), numpyro.plate("data", x.shape[0], dim=-2):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z, 1.0), obs=x)


def test_the_data_single_out_the_plate():
    assert unchecked(two_plates, {}, X).plate == "data"


def test_plates_that_fit_alike_have_to_be_chosen_from():
    with pytest.raises(ValueError, match="plate="):
        unchecked(two_plates, {}, X[:3])
    assert unchecked(two_plates, {}, X[:3], plate="data").latent_shapes == {"z": (3,)}
    with pytest.raises(ValueError, match="plate='nothing' is no plate"):
        unchecked(two_plates, {}, X, plate="nothing")


# Errors

PER_ROW = jnp.asarray(np.zeros(N, np.float32))


def closed_over_covariate(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z + C, 1.0), obs=x)


def closed_over_and_indexed(x):
    with numpyro.plate("data", N, subsample_size=4) as index:
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z + jnp.asarray(C)[index], 1.0), obs=x[index])


def closed_over_and_subsampled(x):
    with numpyro.plate("data", N, subsample_size=4):
        z = numpyro.sample("z", normal(0.0, 1.0))
        location = z + numpyro.subsample(jnp.asarray(C), event_dim=0)
        numpyro.sample("x", normal(location, 1.0), obs=numpyro.subsample(x, event_dim=0))


def keyword_covariate(x, c):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z + c, 1.0), obs=x)


def coupling_factor(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.factor("spread", -((z - z.mean()) ** 2))
        numpyro.sample("x", normal(z, 1.0), obs=x)


def summed_factor(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z, 1.0), obs=x)
    numpyro.factor("spread", -jnp.var(z))


def data_last(x):
    with numpyro.plate("data", x.shape[1]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        with numpyro.plate("pixel", x.shape[0], dim=-2):
            numpyro.sample("x", normal(z, 1.0), obs=x)


def standardised(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        z = (z - z.mean()) / jnp.sqrt(z.var() + 1e-3)
        numpyro.sample("x", normal(z, 1.0), obs=x)


def plate_parameter(x):
    with numpyro.plate("data", x.shape[0]):
        shift = numpyro.param("shift", PER_ROW, event_dim=0)
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z + shift, 1.0), obs=x)


def parameter_by_row(x):
    shift = numpyro.param("shift", PER_ROW)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z + shift, 1.0), obs=x)


def indexed_parameter(x):
    spread = numpyro.param("spread", 1.0 + PER_ROW, constraint=dist.constraints.positive)
    with numpyro.plate("data", N) as index:
        z = numpyro.sample("z", normal(0.0, 1.0))
        numpyro.sample("x", normal(z, spread[index]), obs=x)


def parameter_in_prior(x):
    shift = numpyro.param("shift", PER_ROW)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", normal(shift, 1.0))
        numpyro.sample("x", normal(z, 1.0), obs=x)


def two_plates_for_one_axis(x):
    with numpyro.plate("latent", x.shape[0]):
        z = numpyro.sample("z", normal(0.0, 1.0))
    with numpyro.plate("observed", x.shape[0]):
        numpyro.sample("x", normal(z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "x", "site", "cure"),
    [
        (nnx_decoder(train=True), X, "x", "BatchNorm to evaluation mode"),
        (linen_decoder(train=True), X, "x", "BatchNorm to evaluation mode"),
        (standardised, C, "x", "BatchNorm to evaluation mode"),
        (standardised, C[:1], "x", "BatchNorm to evaluation mode"),
        (closed_over_covariate, C, "x", "covariates and labels as positional arguments"),
        (closed_over_and_indexed, C, "x", "covariates and labels as positional arguments"),
        (closed_over_and_subsampled, C, "x", "covariates and labels as positional arguments"),
        (coupling_factor, C, "spread", "no factor mix rows"),
        (summed_factor, C, "spread", "no factor mix rows"),
        (data_last, X[:3], "x", "data axis first"),
        (plate_parameter, C, "shift", "no plate dimension"),
        (parameter_by_row, C, "x", "no plate dimension.*shift"),
        (indexed_parameter, C, "x", "no plate dimension.*spread"),
        (parameter_in_prior, C, "z", "no plate dimension.*shift"),
        (two_plates_for_one_axis, C, "x", "must stand alone"),
    ],
)
def test_rows_that_do_not_stand_alone_are_an_error_that_names_site_and_cure(model, x, site, cure):
    params = {name: value for name, value in initial_values(model, X if x.ndim > 1 else C).items()}
    with pytest.raises(ValueError, match=rf"'{site}'(.|\n)*{cure}"):
        LatentModel(model, params, x)


def test_a_covariate_is_an_error_as_a_keyword_and_right_as_a_positional_argument():
    with pytest.raises(ValueError, match=r"site 'x'.*not as keywords"):
        LatentModel(keyword_covariate, {}, C, c=C)
    assert LatentModel(keyword_covariate, {}, C, C).num_data == N


def test_a_data_axis_that_does_not_lead_and_a_plate_too_long_are_errors():
    with pytest.raises(ValueError, match=r"plate 'data' has 6 rows.*leading axes.*3.*the data axis leads"):
        LatentModel(data_last, {}, X.T)
    with pytest.raises(ValueError, match=r"plate 'data' has 6 rows.*subsample_size=len\(x\)"):
        LatentModel(hard_coded, {}, X[:4])


def test_missing_and_unknown_parameters_are_listed():
    with pytest.raises(ValueError, match=r"missing \['rate'\], unknown \['rates'\]"):
        LatentModel(constrained_parameters, {"rates": 0.5, "weights": np.ones(3, np.float32) / 3}, X)


def test_discrete_latents_are_an_error():
    def model(x):
        with numpyro.plate("data", x.shape[0]):
            k = numpyro.sample("k", dist.Bernoulli(0.5))
            numpyro.sample("x", normal(k, 1.0), obs=x)

    with pytest.raises(ValueError, match="'k' is discrete"):
        LatentModel(model, {}, C)


def test_a_model_without_latents_is_an_error():
    with pytest.raises(ValueError, match="no latent site"):
        LatentModel(lambda x: numpyro.sample("x", normal(0.0, 1.0), obs=x), {}, C)


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        LatentModel(one_latent, {}, X[:0])


def test_without_observations_what_would_be_observed_is_latent():
    def model(x):
        with numpyro.plate("data", N):
            z = numpyro.sample("z", normal(0.0, 1.0))
            numpyro.sample("x", normal(z, 1.0), obs=x)

    latent_model = LatentModel(model, {}, None)
    assert latent_model.latent_shapes == {"z": (), "x": ()} and latent_model.observed_names == ()
    assert latent_model.num_data == N
    datum = {"z": 1.0, "x": 2.0}
    likelihood, prior = quick_jit(lambda z: (latent_model.log_likelihood(z), latent_model.log_prior(z)))(datum)
    assert float(likelihood) == 0.0
    assert float(prior) == pytest.approx(-1.0 - np.log(2 * np.pi), rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.log_likelihood({"z": np.zeros(2)}, X[0], X[0]), "takes 1 positional"),
        (lambda m: m.log_prior({"z": np.zeros(1)}), r"'z' has shape \(2,\) for one datum, got \(1,\)"),
        (lambda m: m.log_prior({"z": np.zeros(1)}, unconstrained=True), r"shape \(2,\) for one datum"),
        (lambda m: m.log_prior({"w": np.zeros(2)}), r"latent sites are \['z'\], got \['w'\]"),
        (lambda m: m.log_likelihood({"z": np.zeros(2)}), "needs the datum"),
        (lambda m: m.log_likelihood({"z": np.zeros(2)}, X[0, :2]), r"datum has shape \(3,\), got \(2,\)"),
        (lambda m: m.log_likelihood({"z": np.zeros(2)}, X), r"datum has shape \(3,\), got \(6, 3\)"),
    ],
)
def test_wrong_shapes_are_errors(call, message):
    latent_model = unchecked(one_latent, {}, X)
    with pytest.raises(ValueError, match=message):
        call(latent_model)
