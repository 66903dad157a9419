"""A training process that is killed again and again ends with the bits of one that was left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from training_cases import saved_arrays

import numpyro_kaem
from numpyro_kaem._checkpoints.store import CheckpointStore

NUM_EPOCHS, STEPS_PER_EPOCH = 16, 10
NUM_STEPS = NUM_EPOCHS * STEPS_PER_EPOCH
MIN_KILLS = 3
SCRIPT = f"""
import sys
import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from numpyro_kaem import Checkpointing, LangevinMLE, fit


def model(x):
    weight = numpyro.param("weight", jnp.array([1.0, -0.5, 0.2]))
    noise = numpyro.param("noise", 0.7, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(jnp.tanh(z)[..., None] * weight, noise).to_event(1), obs=x)


result = fit(
    jax.random.key(1),
    model,
    jax.random.normal(jax.random.key(0), (200, 3)),
    objective=LangevinMLE(num_steps=2, persistent=True),
    optimizer=optax.adam(1e-2),
    num_epochs={NUM_EPOCHS},
    batch_size=20,
    ema_decay=0.99,
    progress=False,
    checkpoints=Checkpointing(sys.argv[1], every=int(sys.argv[2])),
)
assert result.stop_reason == "finished"
"""


def start(directory, checkpoint_every):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    root = Path(numpyro_kaem.__file__).parent.parent
    command = [sys.executable, "-c", SCRIPT, os.fspath(directory), str(checkpoint_every)]
    return subprocess.Popen(command, cwd=root, env=environment)


def last_step(store):
    return max(store.steps(), default=0)


@pytest.mark.slow
def test_a_run_that_is_killed_over_and_over_is_the_run_that_was_left_alone(tmp_path):
    assert start(tmp_path / "alone", NUM_STEPS).wait(timeout=600) == 0

    directory = tmp_path / "killed"
    store, rng = CheckpointStore(directory), np.random.default_rng(0)
    kills = kills_while_saving = 0
    while True:
        process, before = start(directory, checkpoint_every=1), last_step(store)
        try:
            deadline = time.monotonic() + 300
            # The first checkpoint of this life, so that no life is in vain, and then a random moment.
            while process.poll() is None and last_step(store) == before:
                assert time.monotonic() < deadline, "no progress"
                time.sleep(0.03)  # looking into the folder takes longer than a step
            if kills < MIN_KILLS + 1:
                time.sleep(rng.uniform(0, 0.3))
            else:
                process.wait(timeout=600)
        finally:
            process.kill()
        if process.wait() == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
        kills_while_saving += any(path.suffix == ".writing" for path in directory.iterdir())
    assert kills >= MIN_KILLS
    assert kills_while_saving >= 1

    alone, killed = (saved_arrays(tmp_path / name, NUM_STEPS) for name in ("alone", "killed"))
    assert any("positions" in path for path in alone) and any("nu['weight']" in path for path in alone)
    assert {path: array.tobytes() for path, array in killed.items()} == {
        path: array.tobytes() for path, array in alone.items()
    }
    histories = [np.load(tmp_path / name / f"{NUM_STEPS:010d}" / "history.npz") for name in ("alone", "killed")]
    assert histories[0]["step/loss"].shape == (NUM_STEPS,)
    for name in set(histories[0].files) - {"epoch/seconds", "position"}:
        assert histories[0][name].tobytes() == histories[1][name].tobytes(), name
