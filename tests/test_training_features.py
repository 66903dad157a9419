"""What `fit` does besides steps: labels, accumulation, averages, early ends, bad steps, grids, loggers."""

import itertools
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
import scipy.stats
from numpyro import handlers
from numpyro.infer import SVI
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIState
from prior_cases import quick_jit
from training_cases import DATA, KeptChains, Squares, model, run, saved_arrays

from numpyro_kaem import BSpline, GridAdaptation, TensorBoardLogger, UnivariateEnergy, adapt_svi_grid, energy_module
from numpyro_kaem.training import Checkpointing, HeldOut
from numpyro_kaem.training.feeds import ArrayFeed, StreamFeed
from numpyro_kaem.training.history import History
from numpyro_kaem.training.initial import build_optimizer
from numpyro_kaem.training.result import FitResult

RATE, DECAY = 0.02, 0.8


# One run that is watched: steps of SGD on a quadratic, so that every parameter is known in closed form. The gradient is
# accumulated over the three batches of an epoch, which is therefore one step of gradient descent on all the data.


@pytest.fixture(scope="module")
def watched():
    calls = []
    # The average passes the mean of these on its way to that of the data.
    held_out = np.random.default_rng(1).normal(1.2, 1.4, 40).astype(np.float32)
    result = run(
        optimizer=optax.sgd(RATE),
        num_epochs=50,
        accumulate=3,
        ema_decay=DECAY,
        held_out=HeldOut(held_out, patience=2),
        callbacks=[lambda *arguments: calls.append(arguments)],
    )
    return result, calls, held_out


def by_hand(num_epochs):
    """Location after every epoch, and its moving average over all steps."""
    locations, averages, location, average = [], [], 0.0, 0.0
    for _ in range(num_epochs):
        new = location - RATE * np.mean([np.sum(location - batch) for batch in DATA.reshape(3, 10)])
        for step in (location, location, new):
            average = DECAY * average + (1 - DECAY) * step
        location = new
        locations.append(location)
        averages.append(average)
    return np.array(locations), np.array(averages)


def test_accumulated_minibatches_make_one_step_on_their_mean_gradient(watched):
    result, calls, _ = watched
    locations, _ = by_hand(len(calls))
    np.testing.assert_allclose([params["location"] for _, _, params in calls], locations, rtol=1e-5)
    np.testing.assert_allclose(result.params["location"], locations[-1], rtol=1e-5)


def test_the_moving_average_follows_its_recursion_and_is_what_is_scored(watched):
    result, calls, held_out = watched
    _, averages = by_hand(len(calls))
    np.testing.assert_allclose(result.averaged_params["location"], averages[-1], rtol=1e-5)
    scores = result.history["held_out_log_likelihood"]
    exact = [scipy.stats.norm(average, 2**0.5).logpdf(held_out).mean() for average in averages]
    # 1,000 shared draws leave an error of about 0.01; at the locations themselves scores would be 0.1 off.
    np.testing.assert_allclose(scores, exact, atol=0.06)
    best = int(scores.argmax())
    assert best > 0
    np.testing.assert_allclose(result.best_params["location"], averages[best], rtol=1e-5)


def test_patience_ends_the_run_after_so_many_scores_without_a_new_best(watched):
    result, calls, _ = watched
    scores = result.history["held_out_log_likelihood"]
    assert result.stop_reason == "patience"
    assert len(calls) == len(scores) == scores.argmax() + 1 + 2 < 50


def test_callbacks_get_the_epoch_its_metrics_and_the_parameters(watched):
    result, calls, _ = watched
    history = result.history
    for number, (epoch, metrics, params) in enumerate(calls, start=1):
        assert epoch == metrics["epoch"] == number and metrics["steps"] == 3 * number
        assert metrics["epoch_loss"] == history["epoch_loss"][number - 1]
        assert metrics["held_out_log_likelihood"] == history["held_out_log_likelihood"][number - 1]
        assert set(params) == {"location", "noise"}
    assert calls[-1][1] == result.to_pandas().reset_index().iloc[-1].to_dict()


def test_the_records_of_an_epoch_are_found_without_those_before_it():
    untouched = object()  # has no length
    history = types.SimpleNamespace(by_step={"loss": [untouched, np.arange(3), np.arange(3, 5)]}, step_in_epoch=4)
    assert History.of_epoch(history, "loss").tolist() == [1, 2, 3, 4]


def test_a_run_broken_off_before_the_end_of_an_epoch_has_a_table_too():
    names = ("epoch_loss", "seconds", "non_finite_steps", "held_out_log_likelihood", "held_out_std_error")
    history = {name: np.zeros(0) for name in names} | {"steps": np.zeros(0, int), "held_out_epoch": np.zeros(0, int)}
    state = SVIState(None, None, jax.random.key(0))
    assert len(FitResult({}, history, state, {}, {}).to_pandas()) == 0
    records = {"loss": np.array([1.0, np.inf, 2.0]), "ess": np.array([3.0, 4.0, 5.0])}
    table = FitResult({}, history | records, state, {}, {}).to_pandas()
    assert table.loc[1, ["steps", "epoch_loss", "ess"]].tolist() == [3, 1.5, 4.0]


def test_the_history_becomes_a_table_by_epoch(watched):
    result, _, _ = watched
    table = result.to_pandas()
    np.testing.assert_array_equal(table.index, np.arange(1, len(table) + 1))
    np.testing.assert_array_equal(table["epoch_loss"], result.history["epoch_loss"])
    np.testing.assert_array_equal(table["held_out_std_error"], result.history["held_out_std_error"])


def test_metrics_of_steps_are_means_in_the_table_and_vectors_one_column_an_element():
    history = {
        "loss": np.arange(5.0),
        "ess": np.array([1.0, 3.0, 5.0, 5.0, 8.0]),
        "acceptance": np.array([[0.0, 1.0], [1.0, 1.0], [0.5, 0.0], [0.5, 0.0], [0.5, 0.0]]),
        "epoch_loss": np.array([0.5, 3.0]),
        "seconds": np.ones(2),
        "non_finite_steps": np.array([0, 1]),
        "steps": np.array([2, 5]),
        "held_out_epoch": np.array([2]),
        "held_out_log_likelihood": np.array([-1.0]),
        "held_out_std_error": np.array([0.1]),
        "compile_seconds": np.array(1.0),
    }
    table = FitResult({}, history, SVIState(None, None, jax.random.key(0)), {}, {}).to_pandas()
    assert table["ess"].tolist() == [2.0, 6.0]
    assert table["acceptance[0]"].tolist() == [0.5, 0.5] and table["acceptance[1]"].tolist() == [1.0, 0.0]
    assert table["non_finite_steps"].tolist() == [0, 1]
    assert np.isnan(table["held_out_log_likelihood"][1]) and table["held_out_log_likelihood"][2] == -1.0


# Memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feed", [ArrayFeed, StreamFeed])
def test_steps_take_over_the_memory_of_the_state_and_of_nothing_else(monkeypatch, feed):
    before, seen = [], []
    advance = feed.advance

    def watched(self, state, *arguments):
        before.extend(jax.tree.leaves(state))
        return advance(self, state, *arguments)

    monkeypatch.setattr(feed, "advance", watched)
    of_the_model, given = jnp.array(0.5), jnp.array(1.0)

    def with_count(x):
        numpyro.primitives.mutable("count", {"value": of_the_model})
        model(x)

    class Counted(Squares):
        def loss_with_mutable_state(self, rng_key, param_map, *arguments):
            return super().loss_with_mutable_state(rng_key, param_map, *arguments) | {
                "mutable_state": {"count": param_map["count"]}
            }

    result = run(
        DATA if feed is ArrayFeed else iter(DATA.reshape(3, 10)),
        with_count,
        objective=Counted(),
        num_epochs=3,
        **({} if feed is ArrayFeed else {"steps_per_epoch": 1}),
        init_params={"location": given},
        ema_decay=0.5,
        held_out=HeldOut(DATA[:7], num_samples=5),
        callbacks=lambda epoch, metrics, params: seen.append(params),
    )
    assert len(before) > 6 and all(leaf.is_deleted() for leaf in before)
    assert of_the_model == 0.5 and given == 1.0
    locations = [float(params["location"]) for params in seen]
    assert len(set(locations)) == 3 and locations[-1] == result.params["location"]
    everything = (result.params, result.best_params, result.averaged_params, result.state, seen)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(everything))


# Optimisers by label ----------------------------------------------------------------------------------------------


def test_each_label_has_its_optimiser_and_a_frozen_part_stays_put():
    labels = {"location": "mean", "noise": "spread"}
    result = run(optimizer={"mean": optax.set_to_zero(), "spread": optax.sgd(0.01)}, labels=labels.get)
    assert result.params["location"] == 0.0
    # The loss of `Squares` has slope 1 in the logarithm of the noise.
    np.testing.assert_allclose(result.params["noise"], np.exp(-0.01 * 6), rtol=1e-5)


def test_the_default_label_is_the_name_of_the_site_or_module():
    optimizer = build_optimizer({"decoder": optax.sgd(1.0), "noise": optax.set_to_zero()}, None, 1)
    params = {"decoder$params": jnp.ones(2), "noise": jnp.ones(())}
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    assert updates["noise"] == 0.0 and updates["decoder$params"].tolist() == [-1.0, -1.0]


LABELS = {
    "a site without an optimiser": (
        {"optimizer": {"location": optax.sgd(0.1), "decoder": optax.sgd(0.1)}},
        ValueError,
        r"entries for \['decoder', 'location'\], but .* \{'noise': 'noise'\}",
    ),
    "a label that no site has": (
        {"optimizer": {"location": optax.sgd(0.1), "noise": optax.sgd(0.1), "lokation": optax.sgd(0.1)}},
        ValueError,
        r"entries for \['lokation'\], but parameter sites have only the labels \['location', 'noise'\]",
    ),
    "no optimiser in the dict": ({"optimizer": {"location": 0.1, "noise": 0.1}}, AttributeError, "'init'"),
    "labels without a dict": ({"labels": str}, ValueError, "labels need a dict of optimisers"),
    "accumulate 0": ({"accumulate": 0}, ValueError, "accumulate must be a whole number of at least 1"),
    "accumulate with NumPyro's": (
        {"optimizer": numpyro.optim.SGD(0.1), "accumulate": 2},
        ValueError,
        "accumulate needs an optimiser of Optax",
    ),
    "ema_decay": ({"ema_decay": 1.0}, ValueError, r"ema_decay must lie in \(0, 1\), got 1.0"),
}


@pytest.mark.parametrize("case", LABELS)
def test_options_that_cannot_be_are_named(case):
    options, error, message = LABELS[case]
    with pytest.raises(error, match=message):
        run(**options)


def test_accumulation_over_more_steps_than_there_are_is_told():
    with pytest.warns(RuntimeWarning, match=r"accumulate=7 is more than the 6 steps of this run"):
        assert run(accumulate=7).params["location"] == 0.0


# Bad steps --------------------------------------------------------------------------------------------------------


def test_a_bad_step_changes_nothing_but_the_random_key(tmp_path):
    data = np.append(DATA[:3], np.float32(10.0))  # one batch of the two of each epoch has a loss of not-a-number
    with pytest.warns(RuntimeWarning, match="the loss is nan"):
        result = run(
            data,
            objective=KeptChains(trap=9.0),
            optimizer=optax.adam(0.1),
            num_epochs=4,
            batch_size=2,
            ema_decay=0.9,
            checkpoints=Checkpointing(tmp_path, every=1, keep=10),
        )
    is_bad = np.isnan(result.history["loss"])
    assert is_bad.sum() == result.history["non_finite_steps"].sum() == 4
    states = [saved_arrays(tmp_path, step) for step in range(1, 9)]
    everything = {
        name: next(path for path in states[0] if re.search(pattern, path))
        for name, pattern in {
            "parameter": r"optim_state\[1\]\[0\]\['location'\]",
            "moment": r"mu\['location'\]",
            "count of the optimiser": r"count",
            "step": r"\.step",
            "average": r"average\['location'\]",
            "tuned by the objective": r"shared",
            "chains": r"per_datum",
            "key": r"rng_key",
        }.items()
    }
    for number, (before, after) in enumerate(itertools.pairwise(states), start=1):
        changed = {path for path in before if not np.array_equal(before[path], after[path])}
        if is_bad[number]:
            assert {p for p in changed if not p.endswith(".bad_in_a_row")} == {everything["key"], everything["step"]}
        else:
            assert changed >= set(everything.values())


def test_a_gradient_that_is_not_finite_is_noticed_before_it_is_used():
    class InfiniteSlope(ELBO):
        def loss_with_mutable_state(self, rng_key, param_map, model, guide, x):
            # The square root of zero, which is finite and has no slope, in every batch with the largest value.
            trap = jnp.sqrt(jnp.where(x.max() == DATA.max(), 0.0, 1.0) * jnp.exp(param_map["location"]))
            return {"loss": 0.5 * jnp.sum((x - param_map["location"]) ** 2) + trap, "mutable_state": None}

    with pytest.warns(RuntimeWarning, match="the parameters or the state of the optimiser are not finite at step"):
        result = run(objective=InfiniteSlope(), num_epochs=4, accumulate=2)
    assert np.isfinite(result.history["loss"]).all()
    np.testing.assert_array_equal(result.history["non_finite_steps"], np.ones(4))
    assert 0.0 < result.params["location"] < DATA.max()


# Grids ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("every", "growth"), [(3, 1.0), (4, 1.5), (10, 2.0)])
def test_adaptations_come_at_the_partial_sums_of_growing_intervals(every, growth):
    energy = UnivariateEnergy.init(jax.random.key(0), (), basis=BSpline(4, 3, (-3.0, 3.0)))
    adaptation = GridAdaptation(name="energy", energy=energy, site="z", every=every, growth=growth)
    due = np.flatnonzero(quick_jit(jax.vmap(adaptation.is_due))(np.arange(1, 2001))) + 1
    expected = np.ceil(np.cumsum(every * growth ** np.arange(len(due))) - 1e-6)
    np.testing.assert_array_equal(due, expected)
    assert len(due) == {1.0: 666, 1.5: 13, 2.0: 7}[growth]


INITIAL = UnivariateEnergy.init(jax.random.key(0), (1,), basis=BSpline(6, 3, (-3.0, 3.0)))
GRID = GridAdaptation(name="energy", energy=INITIAL, site="z", every=3, growth=1.0, num_samples=50)


def with_energy(x):
    energy = energy_module("energy", INITIAL)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(1), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(energy(z)[..., 0], 1.0), obs=x)


class PullCoefficients(ELBO):
    """The sum of the squared distances of the coefficients from the mean of a batch."""

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, *args):
        loss = jnp.sum((param_map["energy$params"].coefficients - args[0].mean()) ** 2)
        return {"loss": loss, "mutable_state": {"energy$grid": param_map["energy$grid"]}}


def test_steps_after_an_adaptation_are_no_longer_than_before_it():
    rate = 1e-2
    svi = SVI(with_energy, lambda x: None, optax.adam(rate), PullCoefficients())
    x = np.full(2, 1e4, np.float32)  # so far away that the gradient stays the same
    state = quick_jit(svi.init)(jax.random.key(0), x)

    @quick_jit
    def walk(state):
        def step(state, _):
            before = svi.get_params(state)["energy$params"].coefficients
            state = svi.update(state, x)[0]
            return state, jnp.abs(svi.get_params(state)["energy$params"].coefficients - before).max() / rate

        return jax.lax.scan(step, state, length=200)

    def momenta(state):
        _, (_, (adam, *_)) = state.optim_state
        return np.asarray(adam.mu["energy$params"].coefficients)

    @quick_jit
    def adapted(state):
        return adapt_svi_grid(svi, state, "energy", INITIAL, np.linspace(-2.0, 4.0, 50)[:, None])[0]

    state, before = walk(state)
    assert np.all(momenta(state) != 0.0)
    state = adapted(state)
    assert np.all(momenta(state) == 0.0)
    _, after = walk(state)
    before, after = np.asarray(before), np.asarray(after)
    np.testing.assert_allclose(before[-1], 1.0, rtol=0.02)
    assert after.max() < 1.02 and after[-1] > 0.98


@pytest.mark.slow
def test_the_moving_average_of_an_energy_moves_to_the_new_grid():
    @quick_jit
    def energy(params, z):
        return handlers.substitute(lambda: energy_module("energy", INITIAL), params)()(z)

    # Nothing is learned, so that the average is the energy itself, on whatever grid.
    data, zero = DATA - DATA.mean(), optax.sgd(0.0)
    result = run(data, with_energy, objective=PullCoefficients(), optimizer=zero, ema_decay=0.9, grid_adaptation=GRID)
    z = np.linspace(-3.0, 3.0, 30)[:, None]
    assert not np.allclose(result.params["energy$grid"]["points"], np.linspace(-3.0, 3.0, 7), atol=0.1)
    np.testing.assert_allclose(energy(result.averaged_params, z), energy(result.params, z), atol=1e-4)


@pytest.mark.slow
def test_the_grid_moves_when_it_is_due_and_the_momenta_of_its_weights_start_anew(tmp_path):
    run(
        model=with_energy,
        objective=PullCoefficients(),
        optimizer=optax.adam(1e-2),
        num_epochs=4,
        batch_size=30,
        grid_adaptation=GRID,
        checkpoints=Checkpointing(tmp_path, keep=4),
    )
    states = [saved_arrays(tmp_path, step) for step in range(1, 5)]
    grids, moments = (
        [next(value for path, value in state.items() if re.search(pattern, path)) for state in states]
        for pattern in (r"train.*energy\$grid'\]\['points", r"mu\['energy\$params'\].*coefficients")
    )
    moved = [not np.array_equal(old, new) for old, new in itertools.pairwise(grids)]
    assert moved == [False, True, False]
    assert [np.any(moment != 0.0).item() for moment in moments] == [True, True, False, True]


# TensorBoard ------------------------------------------------------------------------------------------------------


def test_scalars_of_an_epoch_go_to_tensorboard(monkeypatch, tmp_path):
    class SummaryWriter:
        written, flushes = [], 0

        def __init__(self, directory):
            self.directory = directory

        def add_scalar(self, name, value, step):
            SummaryWriter.written.append((self.directory, name, value, step))

        def flush(self):
            SummaryWriter.flushes += 1

    monkeypatch.setitem(sys.modules, "tensorboardX", types.SimpleNamespace(SummaryWriter=SummaryWriter))
    logger = TensorBoardLogger(tmp_path / "logs")
    assert logger(7, {"epoch": 7, "epoch_loss": np.float32(1.5), "vector": np.ones(2)}, {"location": 0.0}) is None
    assert SummaryWriter.written == [(str(tmp_path / "logs"), "epoch_loss", 1.5, 7)]
    assert SummaryWriter.flushes == 1


def test_what_to_install_for_tensorboard_is_said(monkeypatch):
    for name in ("tensorboardX", "clu", "clu.metric_writers"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_kaem\[tensorboard\]'"):
        TensorBoardLogger("logs")
