"""Held-out data scored by a posterior sampler's evidence, against closed forms and the sampler's own runs."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import scipy.stats
from training_cases import Squares, model, run

from numpyro_kaem import HeldOut, ImportanceSampling, Ladder, Langevin, ParallelTempering, TemperedSMC
from numpyro_kaem._compilation.interrupts import interrupts
from numpyro_kaem.posterior import particles

HELD_OUT = np.random.default_rng(1).normal(2.0, 1.4, 7).astype(np.float32)
SMC = TemperedSMC(num_particles=200, num_mcmc_steps=2)


def guide(x):
    """The exact posterior of the model, where the parameters are the model's."""
    location = numpyro.param("q_location", 0.0)
    noise = numpyro.param("q_noise", 1.0, constraint=dist.constraints.positive)
    with numpyro.plate("data", x.shape[0]):
        mean = (x + location * noise**2) / (1 + noise**2)
        numpyro.sample("z", dist.Normal(mean, noise / jnp.sqrt(1 + noise**2)))


class Twice(Squares):
    """The loss of the model's parameters, and that of the guide's, which take the same way."""

    def loss_with_mutable_state(self, rng_key, param_map, model, guide, x):
        guide_map = {name: param_map[f"q_{name}"] for name in ("location", "noise")}
        losses = [
            super(Twice, self).loss_with_mutable_state(rng_key, given, model, guide, x)["loss"]
            for given in (param_map, guide_map)
        ]
        return {"loss": sum(losses), "mutable_state": None}


def exact_score(params):
    scale = np.sqrt(1.0 + params["noise"] ** 2)
    return scipy.stats.norm(params["location"], scale).logpdf(HELD_OUT).mean()


@pytest.fixture(scope="module")
def by_smc():
    """A run, and its parameters after every epoch."""
    seen = []
    options = {"num_epochs": 3, "callbacks": lambda epoch, metrics, params: seen.append(params)}
    return run(held_out=HELD_OUT, held_out_sampler=SMC, **options), seen


def test_the_score_is_the_sampler_s_evidence_of_the_same_key_at_every_epoch(by_smc):
    result, seen = by_smc
    score_key = jax.random.split(jax.random.key(0), 4)[3]
    posteriors = [SMC.having(progress=False).run(score_key, model, params, HELD_OUT) for params in seen]
    scores = result.history["held_out_log_likelihood"]
    np.testing.assert_allclose(scores, [p.log_evidence.mean() for p in posteriors], rtol=1e-6)
    spread = [p.log_evidence.std() / len(HELD_OUT) ** 0.5 for p in posteriors]
    np.testing.assert_allclose(result.history["held_out_std_error"], spread, rtol=1e-5)
    error = np.sqrt(np.sum(posteriors[-1].log_evidence_std_error ** 2)) / len(HELD_OUT)
    assert abs(scores[-1] - exact_score(result.params)) < 5 * error
    best = int(scores.argmax())
    assert result.best_params == seen[best] != seen[best - 1]


def test_either_spelling_does_and_the_sampler_shows_no_bar(by_smc, capsys):
    spelt = run(num_epochs=3, held_out=HeldOut(HELD_OUT, sampler=SMC))
    for name in ("held_out_epoch", "held_out_log_likelihood", "held_out_std_error"):
        np.testing.assert_array_equal(spelt.history[name], by_smc[0].history[name])
    assert capsys.readouterr().err == ""


# With the exact posterior as proposal every weight is the evidence: two draws are enough, but of these parameters only.
@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_the_guide_that_is_trained_has_its_parameters_of_the_time(ema_decay):
    seen = []
    result = run(
        objective=Twice(),
        guide=guide,
        num_epochs=3,
        ema_decay=ema_decay,
        held_out=HeldOut(HELD_OUT, patience=3),
        held_out_sampler=ImportanceSampling(2, guide=guide),
        callbacks=lambda epoch, metrics, params: seen.append(params),
    )
    scores = result.history["held_out_log_likelihood"]
    if ema_decay is None:
        np.testing.assert_allclose(scores, [exact_score(params) for params in seen], atol=2e-5)
    else:
        np.testing.assert_allclose(scores[-1], exact_score(result.averaged_params), atol=2e-5)
        assert abs(scores[-1] - exact_score(result.params)) > 0.01


def test_parameters_that_the_guide_is_given_are_kept():
    given = {"q_location": jnp.array(0.0), "q_noise": jnp.array(1.0)}
    sampler = ImportanceSampling(2, guide=guide, guide_params=given)
    result = run(objective=Twice(), guide=guide, num_epochs=2, held_out=HELD_OUT, held_out_sampler=sampler)
    score_key = jax.random.split(jax.random.key(0), 4)[3]
    log_evidence = sampler.run(score_key, model, result.params, HELD_OUT).log_evidence
    np.testing.assert_allclose(result.history["held_out_log_likelihood"][-1], log_evidence.mean(), rtol=1e-6)


def test_ctrl_c_in_a_score_ends_the_run_which_goes_on_with_that_score(by_smc, monkeypatch, tmp_path):
    advance, count = particles.advance, []

    def interrupted(*arguments):
        count.append(1)
        if len(count) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return advance(*arguments)

    monkeypatch.setattr(particles, "advance", interrupted)
    options = {"num_epochs": 3, "held_out": HELD_OUT, "held_out_sampler": SMC, "checkpoints": tmp_path}
    with pytest.warns(RuntimeWarning, match="interrupted: 7 of 7 data, particles at temperature"):
        cut = run(**options)
    assert cut.stop_reason == "interrupted"
    assert len(cut.history["loss"]) == 3 and len(cut.history["held_out_epoch"]) == len(cut.history["epoch_loss"]) == 0
    whole = run(**options)
    assert whole.stop_reason == "finished"
    for name in ("loss", "epoch_loss", "held_out_epoch", "held_out_log_likelihood"):
        np.testing.assert_array_equal(whole.history[name], by_smc[0].history[name])


def test_ctrl_c_reaches_all_that_wait_for_it_and_a_second_one_is_python_s():
    usual = signal.getsignal(signal.SIGINT)
    with interrupts() as outer:
        with interrupts() as inner:
            os.kill(os.getpid(), signal.SIGINT)
            assert inner == outer == [True]
        assert signal.getsignal(signal.SIGINT) is usual
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    with interrupts() as outer:
        with interrupts():
            pass
        os.kill(os.getpid(), signal.SIGINT)
        assert outer == [True]
    assert signal.getsignal(signal.SIGINT) is usual


def other_guide(x):
    location = numpyro.param("nowhere", 0.0)
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("z", dist.Normal(location, 1.0))


REFUSED = {
    "no held-out data": (
        {"held_out": None, "held_out_sampler": SMC},
        ValueError,
        "held_out_sampler needs held_out data",
    ),
    "two samplers": (
        {"held_out": lambda: HeldOut(HELD_OUT, sampler=SMC), "held_out_sampler": SMC},
        ValueError,
        r"give held_out_sampler or HeldOut\(sampler=\.\.\.\), not both, got TemperedSMC\(.*\) and TemperedSMC\(",
    ),
    "chains": (
        {"held_out_sampler": Langevin()},
        ValueError,
        r"must have an evidence, got Langevin\(.*take TemperedSMC\(\.\.\.\), ImportanceSampling\(",
    ),
    "a ladder without the prior": (
        {"held_out": lambda: HeldOut(HELD_OUT, sampler=ParallelTempering(Ladder([0.5, 1.0])))},
        ValueError,
        "must have an evidence, got ParallelTempering.*a ladder that begins at t = 0",
    ),
    "checkpoints of the sampler": (
        {"held_out_sampler": TemperedSMC(checkpoint_dir="somewhere")},
        ValueError,
        "must have no checkpoint_dir, got 'somewhere'",
    ),
    "no sampler": ({"held_out_sampler": "smc"}, TypeError, "must be a posterior sampler, .* got 'smc'"),
    "a guide that does not fit": (
        {"held_out_sampler": ImportanceSampling(2, guide=other_guide)},
        ValueError,
        "guide cannot be read.*nowhere",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_score_is_told_before_anything_is_trained(case):
    options, error, message = REFUSED[case]
    options = {"held_out": HELD_OUT, "callbacks": lambda *_: pytest.fail("an epoch was trained")} | options
    with pytest.raises(error, match=message):
        run(**{name: value() if name == "held_out" and callable(value) else value for name, value in options.items()})
