"""A run that is broken off and resumed is the run that was left alone, bit by bit."""

import errno
import os
import re
import shutil
from functools import partialmethod

import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from training_cases import DATA, KeptChains, run, saved_arrays

from numpyro_kaem._checkpoints import store
from numpyro_kaem._checkpoints.store import CheckpointStore
from numpyro_kaem.training import Checkpointing, HeldOut

NUM_EPOCHS, NUM_STEPS = 4, 12


def train(directory, **options):
    """Chains that are kept, Adam, moving averages and scores: everything that a run carries along."""
    options = {
        "objective": KeptChains(),
        "optimizer": optax.adam(0.05),
        "num_epochs": NUM_EPOCHS,
        "ema_decay": 0.9,
        "held_out": HeldOut(DATA[:7], num_samples=20),
        "checkpoints": directory,
    } | options
    return run(**options)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    directory = tmp_path_factory.mktemp("alone")
    return train(Checkpointing(directory, every=1, keep=NUM_STEPS)), directory


def assert_the_same(result, directory, alone):
    """Whether the results and the last checkpoints agree in every bit, but for the seconds."""
    expected, its_directory = alone
    for name, values in expected.history.items():
        if name not in ("seconds", "compile_seconds"):
            assert result.history[name].tobytes() == values.tobytes(), name
    for name in ("params", "best_params", "averaged_params"):
        assert getattr(result, name) == getattr(expected, name), name
    mine, others = (saved_arrays(folder, NUM_STEPS) for folder in (directory, its_directory))
    # Parameters, moments and count of Adam, chains, averages, keys.
    assert len(mine) > 10
    assert {path: array.tobytes() for path, array in mine.items()} == {
        path: array.tobytes() for path, array in others.items()
    }


def copy_up_to(step, directory, target):
    """What a process that was killed after this step would have left."""
    target.mkdir()
    for folder in directory.iterdir():
        if int(folder.name) <= step:
            shutil.copytree(folder, target / folder.name)


def test_a_shorter_run_that_is_prolonged_is_the_longer_run(alone, tmp_path):
    assert train(tmp_path, num_epochs=2).stop_reason == "finished"
    result = train(tmp_path)
    assert_the_same(result, tmp_path, alone)


def test_a_run_cut_off_within_an_epoch_goes_on_from_the_newest_undamaged_checkpoint(alone, tmp_path):
    directory = tmp_path / "run"
    copy_up_to(5, alone[1], directory)
    (directory / "0000000005" / "history.npz").write_bytes(b"")
    with pytest.warns(RuntimeWarning, match=r"0000000005 is passed over: history.npz has 0 bytes") as warned:
        result = train(directory)
    assert len(warned) == 1
    assert_the_same(result, directory, alone)


def test_a_finished_run_is_returned_at_once(alone):
    _, directory = alone
    again = train(directory)
    assert again.history["compile_seconds"] == 0.0
    assert again.stop_reason == "finished"
    assert_the_same(again, directory, alone)


def test_an_error_of_a_callback_costs_nothing(alone, tmp_path):
    def full(epoch, metrics, params):
        if epoch == 2:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left") as raised:
        train(Checkpointing(tmp_path, every=100), callbacks=[full])
    assert len(raised.value.result.history["loss"]) == 6 and raised.value.result.stop_reason == "error"
    assert "`result`" in raised.value.__notes__[0]
    assert_the_same(train(tmp_path), tmp_path, alone)


def test_a_run_that_patience_has_ended_stays_ended(tmp_path):
    held_out = HeldOut(DATA[:7], num_samples=20, patience=1)
    options = {"optimizer": optax.sgd(0.0), "num_epochs": 5, "held_out": held_out, "checkpoints": tmp_path}
    first, again = (run(**options) for _ in range(2))
    assert first.stop_reason == again.stop_reason == "patience"
    assert len(first.history["steps"]) == len(again.history["steps"]) == 2


def wider(x):
    location = numpyro.param("location", np.zeros(2, np.float32))
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


def heavier(x):
    location = numpyro.param("location", 0.0)
    noise = numpyro.param("noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(location, 1.0))
        numpyro.sample("x", dist.Cauchy(z, noise), obs=x)


OTHERS = {
    "optimiser": ({"optimizer": optax.sgd(0.05)}, r"mu\['location'\] is in the checkpoint only"),
    "batch size": ({"batch_size": 15}, "batch_size was 10, is 15 now"),
    "moving averages": ({"ema_decay": 0.5}, "ema_decay was 0.9, is 0.5 now"),
    "data": ({"data": DATA[:20]}, r"num_data was 30, is 20 now"),
    "setting of the objective": (
        {"objective": KeptChains(trap=50.0)},
        r"objective_settings.trap was inf, is 50.0 now",
    ),
    "likelihood": ({"model": heavier}, r"distributions.x was Normal, is Cauchy now"),
    "model": ({"model": wider}, r"\['location'\] has the shape \(\) in the checkpoint, \(2,\) now"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_checkpoints_of_another_run_are_refused_with_what_differs(alone, other):
    options, difference = OTHERS[other]
    with pytest.raises(ValueError, match="of another model or run; take another directory") as raised:
        train(alone[1], **options)
    assert raised.match(difference)


def test_a_checkpoint_that_does_not_say_what_the_model_was_is_read(monkeypatch, alone, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointStore, "save", partialmethod(save_as_before, save=CheckpointStore.save))
        train(tmp_path, num_epochs=2)
    assert "distributions" not in (tmp_path / "0000000006" / "manifest.json").read_text()
    assert_the_same(train(tmp_path), tmp_path, alone)


def save_as_before(store, step, state, history, description, save):
    """Save as the version did whose checkpoints said less of the run."""
    names = ("objective", "batch_size", "num_data", "ema_decay")
    return save(store, step, state, history, {name: description[name] for name in names})


def test_a_full_disk_is_told_and_the_run_goes_on_until_a_callback_ends_it(monkeypatch, tmp_path):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store, "write_arrays", full)
    with pytest.warns(RuntimeWarning, match=r"could not be written to .*No space left on device") as warned:
        result = run(num_epochs=5, checkpoints=tmp_path, callbacks=[lambda epoch, metrics, params: epoch == 2])
    assert [re.search(r"step (\d+)", str(warning.message))[1] for warning in warned] == ["3", "6"]
    assert result.stop_reason == "callback"
    assert len(result.history["loss"]) == 6
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_compiled(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match=f"'{tmp_path}/file/run'"):
        run(checkpoints=tmp_path / "file" / "run")
