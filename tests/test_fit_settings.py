"""Settings of `fit` in dataclasses: plain data and paths do as well, and the keywords from before still work."""

import re

import numpy as np
import optax
import pytest
from training_cases import DATA, run

from numpyro_kaem import Checkpointing, HeldOut

RATE = {"optimizer": optax.sgd(0.01), "num_epochs": 3}


@pytest.mark.parametrize("kind", [HeldOut, Checkpointing])
@pytest.mark.parametrize("value", [0, -1])
def test_counts_out_of_range_are_named(kind, value):
    given = DATA if kind is HeldOut else "folder"
    for field in set(kind.__dataclass_fields__) - {"data", "sampler", "path"}:
        with pytest.raises(ValueError, match=rf"{kind.__name__}\.{field} must be a whole number .*, got {value}"):
            kind(given, **{field: value})


def test_plain_data_and_a_bare_path_have_the_settings_by_default(tmp_path):
    plain = run(held_out=DATA[:7], checkpoints=tmp_path / "plain", **RATE)
    given = run(held_out=HeldOut(DATA[:7]), checkpoints=Checkpointing(tmp_path / "given"), **RATE)
    assert plain.history["held_out_epoch"].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(plain.history["held_out_log_likelihood"], given.history["held_out_log_likelihood"])
    names = [sorted(path.name for path in (tmp_path / name).iterdir()) for name in ("plain", "given")]
    assert names[0] == names[1] == ["0000000003", "0000000006", "0000000009"]


@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_keywords_that_have_moved_do_what_they_did_and_say_where_they_are_now(tmp_path):
    moved = {"held_out_num_samples": 20, "held_out_every": 2, "patience": 5}
    moved |= {"checkpoint_dir": tmp_path / "before", "checkpoint_every": 4, "keep_checkpoints": 1}
    with pytest.warns(DeprecationWarning) as warned:
        before = run(held_out=DATA[:7], **moved, **RATE)
    messages = [str(warning.message) for warning in warned]
    assert [message.split(" ")[0] for message in messages] == list(moved)
    assert all(re.search(r"write (held_out=HeldOut\(data, |checkpoints=)", message) for message in messages)

    held_out = HeldOut(DATA[:7], num_samples=20, every=2, patience=5)
    after = run(held_out=held_out, checkpoints=Checkpointing(tmp_path / "after", every=4, keep=1), **RATE)
    assert before.history["held_out_epoch"].tolist() == [2, 3]
    for name in ("held_out_epoch", "held_out_log_likelihood", "loss"):
        np.testing.assert_array_equal(before.history[name], after.history[name])
    assert [path.name for path in (tmp_path / "before").iterdir()] == ["0000000009"]
    assert [path.name for path in (tmp_path / "after").iterdir()] == ["0000000009"]


def test_settings_of_what_is_not_there_are_of_no_use_but_patience_needs_a_score():
    with pytest.warns(DeprecationWarning):
        assert run(held_out_every=2, checkpoint_every=2, checkpoint_dir=None).stop_reason == "finished"
    with pytest.warns(DeprecationWarning), pytest.raises(ValueError, match="patience needs held_out data"):
        run(patience=3)


def test_a_keyword_that_there_never_was_is_named():
    with pytest.raises(TypeError, match="unexpected keyword argument 'holdout'"):
        run(holdout=DATA)
