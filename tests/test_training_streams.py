"""Data that come as an iterable of batches: the same steps as arrays make, in the iterable's order."""

import itertools
import os
import signal
import threading
import time
import warnings

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from training_cases import DATA, KeptChains, gradient_descent, run

from numpyro_kaem import IndexedBatch, LangevinMLE, fit
from numpyro_kaem.objectives.objective import STATE

RATE = 0.02
BATCHES = DATA.reshape(3, 10)


class Batches:
    """What can be iterated again and again, and has neither a length nor an index."""

    def __init__(self, batches=BATCHES):
        self.batches, self.passes = batches, 0

    def __iter__(self):
        self.passes += 1
        return iter(self.batches)


def endless(before=None):
    """The batches over and over; `before(number)` is called before each."""
    for number, batch in enumerate(itertools.cycle(BATCHES)):
        if before is not None:
            before(number)
        yield batch


@pytest.fixture(scope="module")
def passes():
    data = Batches()
    return run(data), data.passes


def test_every_epoch_is_a_pass_in_the_order_of_the_iterable(passes):
    result, num_passes = passes
    losses, locations = gradient_descent([*BATCHES, *BATCHES], RATE)
    np.testing.assert_allclose(result.history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(result.params["location"], locations[-1], rtol=1e-5)
    np.testing.assert_array_equal(result.history["steps"], [3, 6])
    # One more is begun at the end, by reading ahead.
    assert num_passes in (2, 3)


def test_arrays_make_the_same_steps_of_the_same_batches(passes):
    # All rows in one batch: there is no order.
    as_array, as_stream = (
        run(data, optimizer=optax.sgd(0.001), num_epochs=4, **options).history["loss"]
        for data, options in ((DATA, {"batch_size": 30}), (Batches([DATA]), {}))
    )
    np.testing.assert_allclose(as_array, as_stream, rtol=1e-6)


def test_steps_per_epoch_cut_a_stream_and_ctrl_c_in_an_epoch_is_made_good(passes, tmp_path):
    def interrupt(number):
        if number == 2:  # the first batch of the second epoch, which may be read while the first one ends
            os.kill(os.getpid(), signal.SIGINT)

    # Epochs that are no whole number of rounds, so that it matters which batches were used before the last one.
    options = {"steps_per_epoch": 2, "num_epochs": 3, "checkpoints": tmp_path}
    usual = signal.getsignal(signal.SIGINT)
    cut = run(endless(interrupt), **options)
    assert cut.stop_reason == "interrupted"
    assert signal.getsignal(signal.SIGINT) is usual
    assert 2 <= len(cut.history["loss"]) < 6
    assert (tmp_path / f"{len(cut.history['loss']):010d}").exists()

    whole = run(endless(), **options)
    assert whole.stop_reason == "finished"
    np.testing.assert_array_equal(whole.history["loss"], passes[0].history["loss"])
    assert whole.params == passes[0].params


def test_what_goes_wrong_in_a_stream_costs_no_step_before_it(passes, tmp_path):
    def unplugged(number):
        if number == 5:
            raise OSError("the disk is gone")

    options = {"steps_per_epoch": 2, "num_epochs": 3, "checkpoints": tmp_path}
    with pytest.raises(OSError, match="the disk is gone") as raised:
        run(endless(unplugged), **options)
    cut = raised.value.result
    assert cut.stop_reason == "error"
    np.testing.assert_array_equal(cut.history["loss"], passes[0].history["loss"][:5])
    table = cut.to_pandas()
    assert table["steps"].tolist() == [2, 4, 5] and table["seconds"].isna().tolist() == [False, False, True]
    np.testing.assert_allclose(table["epoch_loss"][3], cut.history["loss"][4], rtol=1e-6)

    whole = run(endless(), **options)
    np.testing.assert_array_equal(whole.history["loss"], passes[0].history["loss"])
    assert whole.params == passes[0].params


def test_ctrl_c_does_not_wait_for_a_batch():
    released = threading.Event()

    def stuck(number):
        if number == 1:
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()
            released.wait(60.0)

    start = time.perf_counter()
    result = run(endless(stuck), steps_per_epoch=3, num_epochs=1)
    released.set()
    assert time.perf_counter() - start < 30.0
    assert result.stop_reason == "interrupted"
    assert result.to_pandas()["steps"].tolist() == [1]


def with_nan():
    batches = BATCHES.copy()
    batches[2, 4] = np.nan
    return batches


def test_a_short_last_batch_is_left_out_with_a_word():
    with pytest.warns(
        RuntimeWarning, match="the last batch of a pass has 7 rows, the others 10: it is left out"
    ) as told:
        result = run(Batches([*BATCHES, BATCHES[0, :7]]), num_epochs=3)
    assert len(told) == 1
    whole = run(Batches(BATCHES), num_epochs=3)
    np.testing.assert_array_equal(result.history["loss"], whole.history["loss"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # An epoch that is more than a pass goes on with the next one.
        longer = run(Batches([*BATCHES, BATCHES[0, :7]]), num_epochs=2, steps_per_epoch=4)
    np.testing.assert_array_equal(longer.history["loss"][:3], whole.history["loss"][:3])
    assert len(longer.history["loss"]) == 8


def test_chains_are_kept_by_the_indices_of_a_stream():
    def of_all(x):
        location = numpyro.param("location", 3.0)
        with numpyro.plate("data", 30, subsample_size=x.shape[0]):
            z = numpyro.sample("z", dist.Normal(location, 1.0))
            numpyro.sample("x", dist.Normal(z, 0.01), obs=x)

    x = np.linspace(-3.0, 9.0, 30, dtype=np.float32)
    rows = np.random.default_rng(0).permutation(30).reshape(3, 10)
    options = {"optimizer": optax.sgd(0.0), "num_epochs": 4, "progress": False}
    batches = Batches([IndexedBatch(x[r], r) for r in rows[:2]])
    result = fit(jax.random.key(0), of_all, batches, objective=LangevinMLE(persistent=True), **options)
    kept = result.state.mutable_state[STATE]["per_datum"]
    seen = np.isin(np.arange(30), rows[:2])
    np.testing.assert_array_equal(kept["started"], seen)
    # The chains of a datum are where its posterior is, whose standard deviation is 0.01.
    assert np.abs(np.asarray(kept["positions"])[seen, 0, 0, 0] - x[seen]).max() < 0.1
    for bad, message in (([0] * 10, "must be 10 different whole numbers"), (np.arange(5), "must be 10 different")):
        with pytest.raises(ValueError, match=f"indices of batch 0 of data {message}"):
            fit(jax.random.key(0), of_all, Batches([IndexedBatch(x[:10], bad)]), objective=LangevinMLE(), **options)


class WithoutIter:
    """What has batches, and no way to get at them."""


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: endless,
            r"data\[0\] must be an array of numbers, got <function endless.* is called first",
        ),
        (
            WithoutIter,
            r"got <.*WithoutIter object.*: an iterable of batches has an __iter__",
        ),
    ],
    ids=["function", "loader"],
)
def test_what_is_no_stream_is_told(make, message):
    with pytest.raises(TypeError, match=message):
        run(make(), batch_size=10)


BAD_STREAMS = {
    "ends early": (
        lambda: iter(BATCHES),
        {"steps_per_epoch": 2},
        "data ended after 3 batches, 1 of them in this epoch of 2: give an iterable that can be iterated again",
    ),
    "one pass, two epochs": (lambda: iter(BATCHES), {}, "data ended after 3 batches, 0 of them in this epoch"),
    "short batch": (
        lambda: Batches([BATCHES[0], BATCHES[0, :7], BATCHES[1]]),
        {},
        r"batch 1 of data has arrays float32\[7\], the first had float32\[10\]: only the last batch of a pass may be",
    ),
    "not a number": (
        lambda: Batches(with_nan()),
        {},
        r"batch 2 of data\[0\] must be finite, got nan at index \(4,\)",
    ),
    "empty": (lambda: Batches([]), {}, "data gives no batch"),
    "batch_size": (Batches, {"batch_size": 10}, "batch_size is that of the iterable's batches: leave it out, got 10"),
    "persistent chains": (
        Batches,
        {"objective": KeptChains()},
        "persistent chains need data as arrays, or batches that are IndexedBatch",
    ),
    "steps_per_epoch of arrays": (lambda: DATA, {"steps_per_epoch": 2}, "steps_per_epoch is for an iterable"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_what_is_wrong_with_a_stream_is_told(case):
    make, options, message = BAD_STREAMS[case]
    with pytest.raises(ValueError, match=message):
        run(make(), **options)
