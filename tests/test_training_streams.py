"""Data that come as an iterable of batches: the same steps as arrays make, in the iterable's order."""

import itertools
import os
import signal
import threading
import time

import numpy as np
import optax
import pytest
from training_cases import DATA, KeptChains, gradient_descent, run

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
    options = {"steps_per_epoch": 2, "num_epochs": 3, "checkpoint_dir": tmp_path}
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

    options = {"steps_per_epoch": 2, "num_epochs": 3, "checkpoint_dir": tmp_path}
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


BAD_STREAMS = {
    "ends early": (
        lambda: iter(BATCHES),
        {"steps_per_epoch": 2},
        "data ended after 3 batches, 1 of them in this epoch of 2: give an iterable that can be iterated again",
    ),
    "one pass, two epochs": (lambda: iter(BATCHES), {}, "data ended after 3 batches, 0 of them in this epoch"),
    "short last batch": (
        lambda: Batches([*BATCHES, BATCHES[0, :7]]),
        {},
        r"batch 3 of data has arrays float32\[7\], the first had float32\[10\]: drop a last batch that is short",
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
        "persistent chains need data as arrays: an iterable does not tell which datum is which",
    ),
    "steps_per_epoch of arrays": (lambda: DATA, {"steps_per_epoch": 2}, "steps_per_epoch is for an iterable"),
    "no batch_size of arrays": (lambda: (DATA,), {}, "batch_size must be given for data that are arrays"),
}


@pytest.mark.parametrize("case", BAD_STREAMS)
def test_what_is_wrong_with_a_stream_is_told(case):
    make, options, message = BAD_STREAMS[case]
    with pytest.raises(ValueError, match=message):
        run(make(), **options)
