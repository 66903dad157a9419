"""Ctrl-C in a sampler: what there is comes back, and says what is missing."""

import contextlib
import os
import signal
import warnings
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from numpyro_kaem import ImportanceSampling, Ladder, Langevin, ParallelTempering, TemperedSMC
from numpyro_kaem._checkpoints.store import CheckpointStore
from numpyro_kaem.posterior import chains, importance, particles, run_checkpoints

# jax.enable_x64 appeared in JAX 0.8; its predecessor is removed from later releases.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
X = jax.random.normal(jax.random.key(3), (6, 2))
EXACT = dist.Normal(0.0, 1.25**0.5).log_prob(X).sum(-1)
KEY = jax.random.key(0)


def model(x):
    with numpyro.plate("data", x.shape[0]):
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z, 0.5).to_event(1), obs=x)


def ctrl_c_after(monkeypatch, module, name, calls):
    """Ctrl-C comes during a call of a compiled function."""
    function, count = getattr(module, name), []

    def counted(*args):
        count.append(1)
        if len(count) == calls:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*args)

    monkeypatch.setattr(module, name, counted)
    return count


def test_chains_come_back_as_far_as_they_have_come(monkeypatch):
    sampler = ParallelTempering(Ladder.power(3), num_steps=4_000, warmup=1_000, num_chains=2, progress=False)
    ctrl_c_after(monkeypatch, chains, "advance", 35)  # of 50 stretches of a hundred steps, ten in warm-up
    with pytest.warns(RuntimeWarning, match=r"interrupted: \d+ of 4000 steps after warm-up, 6 of 6 data"):
        posterior = sampler.run(KEY, model, {}, X)
    num_draws = posterior.num_particles // 2
    assert 1_500 < num_draws < 3_000 and posterior.unfinished.startswith(f"{num_draws} of 4000 steps")
    assert np.all(np.abs(posterior.log_evidence - EXACT) < 5 * posterior.log_evidence_std_error)
    assert posterior.to_arviz(num_prior_samples=0).posterior["z"].shape == (2, num_draws, 6, 2)
    assert "unfinished" in repr(posterior)
    # The handler is as it was.
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_chunks_of_data_that_are_finished_come_back(monkeypatch):
    sampler = Langevin(num_steps=200, num_chains=2, chunk_size=4, progress=False)
    ctrl_c_after(monkeypatch, chains, "advance", 80)  # 50 and more for each two of the data
    with pytest.warns(RuntimeWarning, match="interrupted: 200 of 200 steps after warm-up, 2 of 6 data"):
        posterior = sampler.run(KEY, model, {}, X)
    assert posterior.latents["z"].shape == (2, 400, 2) and posterior.latent_model.num_data == 2
    np.testing.assert_allclose(posterior.observed["x"], X[:2])


def test_without_draws_there_is_nothing_to_come_back(monkeypatch):
    ctrl_c_after(monkeypatch, chains, "advance", 2)
    with pytest.raises(KeyboardInterrupt, match="no draws to return yet: chains were in warm-up"):
        Langevin(num_steps=200, progress=False).run(KEY, model, {}, X)


def test_particles_on_their_way_are_weighted_for_what_is_left_of_it(monkeypatch):
    sampler = TemperedSMC(Ladder.power(6), num_particles=4_000, num_runs=2, progress=False)
    ctrl_c_after(monkeypatch, particles, "advance", 3)
    with pytest.warns(RuntimeWarning, match=r"interrupted: 6 of 6 data, particles at temperature 0\.\d+ and weighted"):
        posterior = sampler.run(KEY, model, {}, X)
    assert np.all(np.abs(posterior.log_evidence - EXACT) < 5 * posterior.log_evidence_std_error)
    mean = posterior.expectation(lambda z: z["z"])
    assert np.all(np.abs(mean - 0.8 * X) < 5 * 0.2**0.5 / np.sqrt(posterior.ess[:, None]))
    assert np.all(posterior.ess < 8_000) and "thermodynamic" not in posterior.evidence


def test_batches_of_draws_so_far_come_back(monkeypatch):
    sampler = ImportanceSampling(1_000, target_ess=10_000, progress=False)
    ctrl_c_after(monkeypatch, importance, "_weigh", 3)
    with pytest.warns(RuntimeWarning, match="have an ESS below target_ess=10000 after 3000 draws"):
        posterior = sampler.run(KEY, model, {}, X)
    assert posterior.num_particles == 3_000 and posterior.unfinished.startswith("3 batches of draws")


def test_ctrl_c_after_the_last_draw_leaves_nothing_undone(monkeypatch):
    ctrl_c_after(monkeypatch, importance, "_weigh", 1)
    assert ImportanceSampling(1_000).run(KEY, model, {}, X).unfinished is None


SAMPLERS = {
    "SMC": partial(TemperedSMC, Ladder.power(6), num_particles=500, num_runs=2, chunk_size=3_000),
    "adaptive": partial(TemperedSMC, num_particles=500, chunk_size=1_500),
    "PT": partial(ParallelTempering, Ladder.power(3), num_steps=500, warmup=300, num_chains=2, chunk_size=18),
    "Langevin": partial(Langevin, num_steps=600, num_chains=2, warmup=100),
}


@pytest.mark.parametrize(
    ("name", "calls"),
    # In warm-up, in the midst of the first chunk, and in a later one.
    [
        ("SMC", 7),
        pytest.param("adaptive", 2, marks=pytest.mark.slow),
        ("PT", 1),
        ("PT", 70),
        pytest.param("Langevin", 30, marks=pytest.mark.slow),
    ],
)
def test_the_same_call_goes_on_and_ends_with_the_same_draws(monkeypatch, tmp_path, name, calls):
    whole = SAMPLERS[name](progress=False).run(KEY, model, {}, X)
    sampler = SAMPLERS[name](progress=False, checkpoint_dir=tmp_path)
    with monkeypatch.context() as patch:
        counts = [ctrl_c_after(patch, module, "advance", calls) for module in (chains, particles)]
        with pytest.warns() as caught, contextlib.suppress(KeyboardInterrupt):
            warnings.warn("one at least", stacklevel=1)
            sampler.run(KEY, model, {}, X)
    assert all("the same call goes on from its checkpoint_dir" in str(w.message) for w in caught[1:])
    taken = max(map(len, counts))
    assert taken == calls
    with monkeypatch.context() as patch:
        counts = [ctrl_c_after(patch, module, "advance", -1) for module in (chains, particles)]
        again = sampler.run(KEY, model, {}, X)
        rest = max(map(len, counts))
        finished = sampler.run(KEY, model, {}, X)
        assert max(map(len, counts)) == rest, "a finished run comes back at once"
    for posterior in (again, finished):
        jax.tree.map(np.testing.assert_array_equal, posterior.latents, whole.latents)
        np.testing.assert_array_equal(posterior.log_evidence, whole.log_evidence)
        jax.tree.map(np.testing.assert_array_equal, posterior.rungs, whole.rungs)
        assert posterior.unfinished is None


def test_a_run_whose_process_has_ended_goes_on_from_its_last_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(run_checkpoints, "_SECONDS", 0.0)
    sampler = TemperedSMC(Ladder.power(6), num_particles=500, progress=False, checkpoint_dir=tmp_path)
    advance, numbers = particles.advance, []

    def ends(*args):
        numbers.append(int(args[4]))
        if len(numbers) == 4:
            raise MemoryError("in the midst of it")
        return advance(*args)

    monkeypatch.setattr(particles, "advance", ends)
    with pytest.raises(MemoryError):
        sampler.run(KEY, model, {}, X)
    sampler.run(KEY, model, {}, X)
    assert numbers == [0, 1, 2, 3, 3, 4, 5]


@pytest.mark.slow
def test_a_ladder_that_was_given_up_goes_on_with_more_rungs(monkeypatch, tmp_path):
    def sampler(**options):
        return TemperedSMC(target_ess=0.9, num_particles=500, progress=False, **options)

    with pytest.raises(RuntimeError, match="after 3 rungs: raise max_rungs"):
        sampler(max_rungs=3, checkpoint_dir=tmp_path).run(KEY, model, {}, X)
    count = ctrl_c_after(monkeypatch, particles, "advance", -1)
    went_on = sampler(checkpoint_dir=tmp_path).run(KEY, model, {}, X)
    assert len(count) == went_on.rungs.temperatures.shape[1] - 1 - 3
    np.testing.assert_array_equal(went_on.log_evidence, sampler().run(KEY, model, {}, X).log_evidence)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    options = {"num_steps": 400, "warmup": 100, "progress": False, "checkpoint_dir": tmp_path}
    Langevin(**options).run(KEY, model, {}, X)
    with pytest.raises(ValueError, match=r"another model or run(.|\n)*checksum.data was \d+, is \d+ now"):
        Langevin(**options).run(KEY, model, {}, X + 1.0)
    with pytest.raises(ValueError, match=r"checksum.key was"):
        Langevin(**options).run(jax.random.key(1), model, {}, X)
    with pytest.raises(ValueError, match=r"settings.num_chains was 4, is 3 now"):
        Langevin(num_chains=3, **options).run(KEY, model, {}, X)

    def another(x):
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.sample("x", dist.Normal(z, 0.6).to_event(1), obs=x)

    with pytest.raises(ValueError, match=r"checksum.model was"):
        Langevin(**options).run(KEY, another, {}, X)
    with enable_x64(True), pytest.raises(ValueError, match=r"x64 was False, is True now"):
        Langevin(**options).run(KEY, model, {}, X)


def test_a_checkpoint_of_other_parameters_is_refused(tmp_path):
    def noisy(x, noise):
        scale = numpyro.param("scale", 1.0)
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(2), scale).to_event(1))
            numpyro.sample("x", dist.Normal(z, noise).to_event(1), obs=x)

    def run(scale, noise):
        sampler = TemperedSMC(Ladder.power(2), num_particles=100, progress=False, checkpoint_dir=tmp_path)
        return sampler.run(KEY, noisy, {"scale": scale}, X, noise=noise)

    run(1.0, 0.5)
    for scale, noise in ((1.1, 0.5), (1.0, 0.6)):
        with pytest.raises(ValueError, match=r"checksum.model was"):
            run(scale, noise)


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    options = {"num_steps": 400, "warmup": 100, "progress": False, "checkpoint_dir": tmp_path}
    with (
        CheckpointStore(tmp_path).held(),
        pytest.raises(ValueError, match="is being written to by another run"),
    ):
        Langevin(**options).run(KEY, model, {}, X)
