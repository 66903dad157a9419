"""fit: what a step sees, what it records, and how it answers bad input."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from numpyro.infer import Trace_ELBO
from numpyro.infer.elbo import ELBO
from training_cases import Squares, model

from numpyro_kaem import DeepKAPrior
from numpyro_kaem.objectives import ImportanceMLE
from numpyro_kaem.training import HeldOut, TrainingFailed, fit
from numpyro_kaem.training.run import _is_true

DATA = 1.5 + 1.2 * np.random.default_rng(0).standard_normal(210).astype(np.float32)


def run(data=DATA, model=model, key=0, **options):
    options = {
        "objective": ImportanceMLE(50),
        "optimizer": optax.adam(0.05),
        "num_epochs": 2,
        "batch_size": 50,
        "progress": False,
    } | options
    return fit(jax.random.key(key) if isinstance(key, int) else key, model, data, **options)


def exact_log_likelihood(params, x):
    location, noise = (float(params[name]) for name in ("location", "noise"))
    return scipy.stats.norm(location, np.sqrt(1.0 + noise**2)).logpdf(x)


def test_it_finds_the_maximum_of_the_likelihood_and_scores_held_out_data():
    held_out = 1.5 + 1.2 * np.random.default_rng(1).standard_normal(100).astype(np.float32)
    result = run(num_epochs=60, objective=ImportanceMLE(300), held_out=HeldOut(held_out, every=25))
    best = {"location": DATA.mean(), "noise": np.sqrt(DATA.var() - 1.0)}
    # The likelihood is flat around its maximum: minibatch gradients move it by less than 0.02 nats per datum.
    assert exact_log_likelihood(result.params, DATA).mean() > exact_log_likelihood(best, DATA).mean() - 0.02

    history = result.history
    np.testing.assert_array_equal(history["held_out_epoch"], [25, 50, 60])
    exact = exact_log_likelihood(result.params, held_out)
    # 1,000 shared draws: the score's own standard error is about 0.01, so 0.06 is beyond five of them.
    np.testing.assert_allclose(history["held_out_log_likelihood"][-1], exact.mean(), atol=0.06)
    np.testing.assert_allclose(history["held_out_std_error"][-1], exact.std() / 10, rtol=0.2)
    assert history["loss"].shape == (60 * 4,)
    np.testing.assert_allclose(history["epoch_loss"], history["loss"].reshape(60, 4).mean(1), rtol=1e-6)
    best_loss = -exact_log_likelihood(best, DATA).mean()
    np.testing.assert_allclose(history["epoch_loss"][-10:].mean(), best_loss, atol=0.1)
    np.testing.assert_array_equal(history["steps"], 4 * np.arange(1, 61))
    assert history["seconds"].shape == (60,)
    assert history["compile_seconds"] > history["seconds"].min()
    assert not history["non_finite_steps"].any()


class BatchCode(ELBO):
    """The sum of the batch as loss: with powers of two as data it tells which rows a step has seen."""

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args, **kwargs):
        return {"loss": jnp.sum(args[0]) + 0.0 * param_map["location"], "mutable_state": None}


def test_an_epoch_takes_disjoint_batches_of_a_fresh_permutation():
    result = run(2.0 ** np.arange(11), objective=BatchCode(), batch_size=3, num_epochs=50)
    epochs = (result.history["loss"] * 3).round().astype(int).reshape(50, 3)
    seen = np.array([[[code >> row & 1 for row in range(11)] for code in epoch] for epoch in epochs])
    assert np.all(seen.sum(-1) == 3)
    assert np.all(seen.sum(1) <= 1)
    # Every row is seen in 9 of 11 epochs on average; never in 50 epochs has probability (2/11)^50.
    assert np.all(seen.sum((0, 1)) > 0)
    assert len({tuple(epoch.ravel()) for epoch in seen}) > 40


def test_rows_of_several_arguments_stay_together():
    def paired(x, pair):
        return model(x)

    class Pairs(ELBO):
        """The largest distance between the members of a pair in the batch."""

        def loss_with_mutable_state(self, rng_key, param_map, model, guide, x, pair):
            distance = jnp.abs(pair["value"] - 2.0 * x[..., None]).max()
            return {"loss": distance + 0.0 * param_map["location"], "mutable_state": None}

    x = np.arange(20, dtype=np.float32)
    pair = {"value": np.stack([2 * x, 2 * x], axis=1)}
    assert np.all(run((x, pair), model=paired, objective=Pairs(), batch_size=6).history["loss"] == 0.0)


def test_the_same_key_gives_the_same_result_and_another_key_another():
    a, b, c = run(), run(), run(key=1)
    np.testing.assert_array_equal(a.history["loss"], b.history["loss"])
    assert a.params == b.params
    assert a.params != c.params


def test_loss_is_per_datum_whatever_the_plate_scale():
    def scaled(x):
        location = numpyro.param("location", 0.0)
        noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", 1000, subsample_size=x.shape[0]):
            z = numpyro.sample("z", dist.Normal(location, 1.0))
            numpyro.sample("x", dist.Normal(z, noise), obs=x)

    # The steps of Adam do not depend on the scale of the loss either.
    losses = [run(model=m).history["loss"] for m in (model, scaled)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.1)


def test_an_elbo_with_a_guide_trains_and_keeps_the_guide_s_parameters_apart():
    def guide(x):
        slope = numpyro.param("slope", 0.1)
        offset = numpyro.param("offset", 0.0)
        spread = numpyro.param("spread", 1.0, constraint=dist.constraints.positive)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(slope * x + offset, spread))

    result = run(objective=Trace_ELBO(), guide=guide, num_epochs=100, held_out=HeldOut(DATA, every=100))
    assert set(result.params) == {"location", "noise"}
    assert set(result.guide_params) == {"slope", "offset", "spread"}
    assert abs(result.params["location"] - DATA.mean()) < 0.3
    score = result.history["held_out_log_likelihood"]
    np.testing.assert_allclose(score, [exact_log_likelihood(result.params, DATA).mean()], atol=0.06)


def test_model_kwargs_init_params_and_numpyro_optimisers_are_used():
    def with_options(x, offset, twice=False):
        location = numpyro.param("location", 0.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(location, 1.0))
            numpyro.sample("x", dist.Normal((2 if twice else 1) * z + offset, 1.0), obs=x)

    result = run(
        model=with_options,
        model_kwargs={"offset": jnp.array(-0.5), "twice": True},
        init_params={"location": jnp.array(1.0)},
        optimizer=numpyro.optim.SGD(0.0),
        held_out=DATA,
    )
    assert result.params == {"location": 1.0}
    exact = scipy.stats.norm(2 * 1.0 - 0.5, 5**0.5).logpdf(DATA).mean()
    np.testing.assert_allclose(result.history["held_out_log_likelihood"][-1], exact, atol=0.1)


def test_constraints_made_of_arrays_and_mutable_sites_survive_compilation():
    def constrained(x):
        count = numpyro.primitives.mutable("count", {"value": jnp.array(3.0)})
        bounds = dist.constraints.interval(jnp.zeros(()), jnp.array(4.0))
        location = numpyro.param("location", 1.0, constraint=bounds)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(location, 1.0))
            numpyro.sample("x", dist.Normal(z, count["value"]), obs=x)

    class Distances(ELBO):
        """Half the squared distances of a batch from the location."""

        def loss_with_mutable_state(self, rng_key, param_map, model, guide, x):
            loss = 0.5 * jnp.sum((x - param_map["location"]) ** 2)
            return {"loss": loss, "mutable_state": {"count": param_map["count"]}}

    result = run(model=constrained, objective=Distances())
    assert result.params["count"] == {"value": 3.0}
    assert 1.0 < result.params["location"] < 4.0


def test_steps_that_are_not_finite_are_skipped_and_counted():
    class Trapped(Squares):
        """Whatever batch holds the largest value has an infinite loss."""

        def loss_with_mutable_state(self, rng_key, param_map, model, guide, x):
            loss = super().loss_with_mutable_state(rng_key, param_map, model, guide, x)["loss"]
            return {"loss": loss + jnp.where(jnp.any(x == DATA.max()), jnp.inf, 0.0), "mutable_state": None}

    with pytest.warns(RuntimeWarning, match=r"the loss is inf at step \d of epoch 1, which is skipped") as warned:
        result = run(objective=Trapped(), optimizer=optax.sgd(0.005), num_epochs=20, batch_size=70)
    assert len(warned) == 1
    np.testing.assert_array_equal(result.history["non_finite_steps"], np.ones(20))
    assert np.isinf(result.history["loss"]).sum() == 20
    assert np.isfinite(result.history["epoch_loss"]).all()
    assert abs(result.params["location"] - DATA.mean()) < 0.4


def test_a_run_of_bad_steps_ends_with_an_error_that_has_the_last_good_parameters():
    with (
        pytest.warns(RuntimeWarning),
        pytest.raises(TrainingFailed, match=r"the last 5 steps.*smaller learning") as raised,
    ):
        run(objective=Squares(), optimizer=optax.sgd(1e30), num_epochs=30, max_bad_steps=5)
    result = raised.value.result
    assert result.stop_reason == "non-finite steps"
    assert all(np.isfinite(value) for value in result.params.values())
    assert len(result.history["loss"]) < 20


def test_a_run_without_a_single_good_step_ends_with_an_error_however_short_it_is():
    class Infinite(ELBO):
        def loss_with_mutable_state(self, rng_key, param_map, model, guide, x):
            return {"loss": jnp.inf + param_map["location"], "mutable_state": None}

    with pytest.warns(RuntimeWarning), pytest.raises(TrainingFailed, match="the last 4 steps, up to step 4") as raised:
        run(objective=Infinite(), num_epochs=1)
    assert raised.value.result.params == {"location": 0.0, "noise": 1.0}
    assert raised.value.result.stop_reason == "non-finite steps"


@pytest.mark.parametrize("num_epochs", [1, 4])
def test_a_collapsed_effective_sample_size_is_told_once(num_epochs):
    """After the first epoch, in which nothing has been learned yet, unless that is the last."""
    epoch = min(2, num_epochs)
    with pytest.warns(RuntimeWarning, match=rf"effective sample size .* is 1 in epoch {epoch}") as warned:
        run(init_params={"noise": 1e-4}, num_epochs=num_epochs)
    assert len(warned) == 1


@pytest.mark.parametrize("true", [True, np.True_, jnp.array(True)], ids=["Python", "NumPy", "JAX"])
def test_a_callback_that_returns_true_ends_the_run(true):
    assert _is_true(true)
    assert not any(_is_true(answer) for answer in (None, 1, "yes", [True], np.False_, jnp.ones(())))


def test_a_single_callback_needs_no_list_and_what_can_become_an_array_is_one():
    class Table:
        def __array__(self, dtype=None, copy=None):
            return DATA

        def __iter__(self):
            raise AssertionError("taken for an iterable of batches")

    result = run(Table(), num_epochs=5, callbacks=lambda epoch, metrics, params: np.bool_(epoch == 2))
    assert result.stop_reason == "callback" and len(result.history["steps"]) == 2


def test_the_progress_bar_shows_loss_and_held_out_score(capsys):
    result = run(progress=True, held_out=DATA)
    shown = capsys.readouterr().err
    assert f"loss {result.history['epoch_loss'][-1]:.5g}" in shown
    assert f"held-out {result.history['held_out_log_likelihood'][-1]:.5g} ±" in shown


def with_nan():
    x = np.zeros((20, 3), np.float32)
    x[4, 1] = np.nan
    return x


MESH = jax.make_mesh((1,), ("data",))

BAD_INPUT = {
    "nan": ({"data": with_nan()}, ValueError, r"data\[0\] must be finite, got nan at index \(4, 1\)"),
    "inf in the second argument": (
        {"data": (DATA, np.append(DATA[:-1], np.inf))},
        ValueError,
        r"data\[1\] must be finite, got inf at index \(209,\)",
    ),
    "nan in held-out data": (
        {"held_out": DATA * np.nan},
        ValueError,
        r"held_out\[0\] must be finite, got nan at index \(0,\)",
    ),
    "lengths": (
        {"data": (DATA, DATA[:7])},
        ValueError,
        r"data must hold arrays of the same number of rows.*210.*7",
    ),
    "empty": ({"data": DATA[:0]}, ValueError, "at least 1"),
    "scalar": ({"data": (DATA, 3.0)}, ValueError, r"data\[1\] must lead with the data axis"),
    "text": ({"data": np.array(["a", "b"])}, TypeError, r"data\[0\] must hold numbers"),
    "held-out shape": (
        {"held_out": np.zeros((5, 2), np.float32)},
        ValueError,
        "held_out must have rows of the same shapes as data",
    ),
    "batch_size 0": ({"batch_size": 0}, ValueError, "batch_size must be a whole number of at least 1, got 0"),
    "batch_size above": ({"batch_size": 211}, ValueError, r"batch_size must be at most .* 210, got 211"),
    "num_epochs": ({"num_epochs": 0}, ValueError, "num_epochs must be a whole number of at least 1"),
    "init_params": ({"init_params": {"lokation": 1.0}}, ValueError, r"init_params.*'lokation'"),
    "objective": ({"objective": "mle"}, TypeError, "objective"),
    "optimizer": ({"optimizer": "adam"}, TypeError, "or optax.GradientTransformation. Got <class .str.>"),
    "beyond float32": (
        {"data": np.append(DATA[:-1].astype(float), 1e300)},
        ValueError,
        r"data\[0\] must be finite, got 1e\+300 at index \(209,\), which is beyond float32",
    ),
    "list of numbers": (
        {"data": DATA.tolist()},
        ValueError,
        r"data\[0\] must lead with .*, got a scalar.*a list",
    ),
    "no guide": ({"objective": Trace_ELBO()}, ValueError, "guide must be given with Trace_ELBO"),
    "no key": ({"key": None}, TypeError, "PRNG key"),
    "several keys": ({"key": jax.random.split(jax.random.key(0))}, ValueError, "accepts a single key"),
    "specs": (
        {"mesh": MESH, "batch_size": 10, "param_specs": lambda site, array: None},
        TypeError,
        r"param_specs must return a jax.sharding.PartitionSpec, got None for 'location': PartitionSpec\(\) means",
    ),
}


def test_an_elbo_of_numpyro_is_refused_where_the_prior_is_not_normalised():
    def with_energy(x):
        theta = numpyro.param("theta", jnp.ones(1))
        prior = DeepKAPrior(lambda z: z @ theta, dist.Normal(jnp.zeros(1), 1.0).to_event(1), num_steps=2)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", prior)
            numpyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(x[:, None], 1.0).to_event(1))

    with pytest.raises(ValueError, match=r"objective must be .* density of \['z'\] is known .*, got Trace_ELBO"):
        run(model=with_energy, objective=Trace_ELBO(), guide=guide)


def test_held_out_data_that_do_not_fit_the_plate_are_told_before_the_first_epoch():
    def of_fixed_size(x):
        location = numpyro.param("location", 0.0)
        with numpyro.plate("data", 50):
            z = numpyro.sample("z", dist.Normal(location, 1.0))
            numpyro.sample("x", dist.Normal(z, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"held_out does not fit the model.*plate 'data' has 50 rows"):
        run(model=of_fixed_size, held_out=DATA[:7], callbacks=lambda *_: pytest.fail("an epoch was trained"))


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_named(case, monkeypatch):
    options, error, message = BAD_INPUT[case]
    # Without the type checks of the tests, which would be first to see some of it.
    monkeypatch.setitem(globals(), "fit", inspect.unwrap(fit))
    with pytest.raises(error, match=message):
        run(**options)


def test_latents_outside_of_the_data_plate_are_named():
    def with_global(x):
        mean = numpyro.sample("mean", dist.Normal())
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    with pytest.raises(ValueError, match=r"fit needs .* 'mean'"):
        run(model=with_global)
