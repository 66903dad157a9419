"""The benchmark of peers: its scores against closed forms, its table against numbers by hand, and that it goes on."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("flowjax")
pytest.importorskip("mlxtend")
sys.path.insert(0, str(ROOT))
from benchmarks.peers import table  # noqa: E402
from benchmarks.peers.runs import Effort, contestants, path_of  # noqa: E402

sys.path.remove(str(ROOT))
EFFORT = Effort(0.3, 0.2, 2, 1, 8, ("digits",))


def job(name, log_likelihood, scores, effort=EFFORT, **more):
    runs = [
        {
            "log_likelihood": row,
            "importance_gap": [-1.0, -2.0],
            "frechet": [3.0, 0.4],
            "kernel": [0.002, 0.001],
            "nearer": [0.4, 0.01],
            "draws_per_second": 12_345.0,
            "num_parameters": 1_000,
            "scores": scores,
            "seconds": [1.0, 2.0],
        }
        for row in log_likelihood
    ]
    return {"effort": effort.told, "contestant": name, "runs": runs} | more


def test_the_table_pairs_by_datum_and_adds_the_spread_of_seeds():
    ours = job("KAEM cluster, amortised", [[-1.0, -4.0], [-2.0, -5.0]], [-9.0, -3.0])
    vae = job("VAE", [[-3.0, -5.0], [-3.0, -5.0]], [-8.0, -4.0])
    mean, error = table.difference(ours, vae)
    # Means over seeds are -1.5 and -4.5 against -3 and -5: 1.5 and 0.5 a datum. Seeds are one apart.
    assert mean == pytest.approx(1.0)
    assert error == pytest.approx(math.sqrt(0.5 / 2 + 0.5 / 2))
    jobs = {"VAE": vae, "KAEM cluster, amortised": ours}
    first, second = table.rows_of(jobs)
    assert first[0] == "KAEM cluster, amortised" and second[0] == "VAE"
    assert first[2] == "" and second[2] == "1.00 ± 0.71"
    # Between -9 after 1 s and -3 after 2 s it is at -4, the VAE's score, after 1.83 s.
    assert table.seconds_to(ours["runs"][0], -4.0) == pytest.approx(1 + 5 / 6)
    assert table.seconds_to(vae["runs"][0], -3.0) == math.inf
    assert first[-1] == "readable" and second[-1] == ""
    assert table.to_markdown(jobs).count("\n") == 3


def test_every_contestant_can_be_built_and_tries_as_many_settings(small):
    data, _, _ = small
    names = contestants()
    for one in names.values():
        if one.objectives is not None:
            kaem = one.build(jax.random.key(0), data, one.settings[0])
            assert kaem.shape == (4,) and kaem.prior.event_shape == (2,)
            shares = {share for setting in one.settings for share in [sum(one.objectives(setting).values())]}
            assert shares == {1.0}
    assert {len(one.settings) for one in names.values()} == {EFFORT.num_trials}
    assert sum(one.is_ours for one in names.values()) >= 11 and len(names) >= 17


@pytest.fixture
def small(monkeypatch):
    """A data set of 200 points of four numbers, known to every file of the benchmark."""
    from benchmarks.peers import features, tasks

    weight = np.random.default_rng(1).normal(size=(2, 4))
    x = np.random.default_rng(0).normal(size=(300, 2)) @ weight + 0.5 * np.random.default_rng(2).normal(size=(300, 4))
    data = tasks._split("small", x.astype(np.float32), 40, 60, likelihood="normal", latent_size=2, batch_size=50)
    monkeypatch.setitem(tasks.TASKS, "small", lambda: data)
    tasks.task.cache_clear(), features.features_of.cache_clear()
    yield data, np.cov(x.T), x.mean(0)
    tasks.task.cache_clear(), features.features_of.cache_clear()


def test_the_model_is_the_best_of_all_objectives(small, monkeypatch):
    from types import SimpleNamespace

    from benchmarks.peers import training
    from numpyro_kaem import TrainingFailed

    histories = iter([([-5.0, -1.0], [1, 2]), ([-4.0, -3.0], [2, 4])])

    schedules = []

    def fit(*args, **_):
        schedules.append(args[-1])
        scores, epochs = map(np.array, next(histories))
        return SimpleNamespace(history={"held_out_log_likelihood": scores, "held_out_epoch": epochs})

    monkeypatch.setattr(training, "_fit", fit)
    one = contestants()["KAEM cluster, amortised, then Langevin"]
    trained = training.train(one, small[0], one.settings[1], 0, 8.0, {0: 2.0, 1: 1.0})
    assert trained.scores == [-5.0, -1.0, -4.0, -3.0] and max(trained.model.history["held_out_log_likelihood"]) == -1.0
    # Half of eight seconds for each: two epochs of two seconds, then four of one.
    assert trained.num_epochs == 6 and trained.seconds == [2.0, 4.0, 6.0, 8.0]
    # The rate of the second goes on half-way down.
    assert schedules == [(4.0, 0.0), (8.0, 4.0)]

    def diverges(*args, **_):
        if args[-1][1] > 0:
            raise TrainingFailed.__new__(TrainingFailed)
        return SimpleNamespace(
            history={"held_out_log_likelihood": np.array([-5.0, -1.0]), "held_out_epoch": np.array([1, 2])}
        )

    monkeypatch.setattr(training, "_fit", diverges)
    trained = training.train(one, small[0], one.settings[1], 0, 8.0, {0: 2.0, 1: 1.0})
    assert trained.scores == [-5.0, -1.0] and trained.num_epochs == 2


@pytest.mark.slow
def test_a_diffusion_model_bounds_the_entropy_of_normal_data(small):
    from scipy.stats import multivariate_normal

    from benchmarks.peers import ddpm

    data, covariance, mean = small
    setting = replace(ddpm.DDPM.settings[0], own=64)
    trained = ddpm.train(data, setting, 0, 6.0, 3, 40)
    model = trained.model
    assert len(trained.scores) == len(trained.seconds) <= 3 and trained.num_epochs > 3
    bound = model.log_likelihood(jax.random.key(0), data.test)
    exact = multivariate_normal(mean, covariance).logpdf(data.test)
    # The covariance is of all data, the test's among them. Below it, and by not much.
    difference = bound - exact
    error = 6 * difference.std() / math.sqrt(len(difference))
    assert difference.mean() < error and difference.mean() > -1.5
    drawn = np.asarray(model.sampler(2_000)(jax.random.key(1)))
    np.testing.assert_allclose(np.cov(drawn.T), covariance, atol=0.25 * covariance.max())


@pytest.mark.slow
def test_jobs_write_what_they_have_and_go_on(small, tmp_path, capsys):
    from benchmarks.peers.runs import is_done, run_job

    effort = replace(EFFORT, tasks=("small",))
    name = "VAE"
    run_job(tmp_path, "small", name, effort)
    assert is_done(tmp_path, "small", name, effort)
    path = path_of(tmp_path, "small", name)
    first = json.loads(path.read_text())
    assert len(first["trials"]) == 2 and len(first["runs"]) == 1
    assert len(first["runs"][0]["log_likelihood"]) == 8
    # The best of the trials is what runs have.
    best = max(range(2), key=lambda number: max(first["trials"][number]["scores"]))
    assert first["runs"][0]["setting"] == best
    capsys.readouterr()
    run_job(tmp_path, "small", name, replace(effort, num_seeds=1))
    assert capsys.readouterr().out == "" and json.loads(path.read_text()) == first
    # Broken off before its run: that alone is done again, and comes out the same but for what depends on the clock.
    path.write_text(json.dumps(first | {"runs": []}))
    run_job(tmp_path, "small", name, effort)
    again = json.loads(path.read_text())
    assert again["trials"] == first["trials"]
    assert again["runs"][0]["log_likelihood"] == first["runs"][0]["log_likelihood"]
    # Another effort begins anew.
    assert not is_done(tmp_path, "small", name, replace(effort, seconds=1.0))


def test_a_setting_that_diverges_is_not_taken(small, tmp_path, monkeypatch):
    from types import SimpleNamespace

    from benchmarks.peers import runs, scoring, training
    from numpyro_kaem import TrainingFailed

    def train(contestant, data, setting, seed, budget, clock):
        if setting is contestant.settings[0]:
            raise TrainingFailed.__new__(TrainingFailed)
        return training.Trained(SimpleNamespace(save=lambda path: None), [-7.0], [budget], 1)

    monkeypatch.setattr(training, "train", train)
    monkeypatch.setattr(scoring, "score", lambda *_: {"log_likelihood": [-7.0], "drawn": []})
    runs.run_job(tmp_path, "small", "VAE", EFFORT)
    found = json.loads(path_of(tmp_path, "small", "VAE").read_text())
    assert [trial["scores"] for trial in found["trials"]] == [[-math.inf], [-7.0]]
    assert [run["setting"] for run in found["runs"]] == [1]


def test_the_command_prints_and_draws_what_there_is(tmp_path, capsys):
    from benchmarks.peers.__main__ import main
    from benchmarks.peers.runs import QUICK

    one = job("VAE", [[-1.0] * 8], [-2.0, -1.0], effort=QUICK)
    one["runs"][0]["drawn"] = np.zeros((10, 28, 28)).tolist()
    path = path_of(tmp_path, "digits", "VAE")
    path.parent.mkdir()
    path.write_text(json.dumps(one))
    main(["--quick", "--table", "--folder", str(tmp_path)])
    told = capsys.readouterr().out
    assert "Not run from all seeds: IWAE; VAE, Gaussian mixture; VAE, flow;" in told
    assert "| VAE | -1.00 |" in told and "4 s of training from seeds 1, no trials" in told and "jax 0." in told
    assert (tmp_path / "digits.png").stat().st_size > 10_000
    with pytest.raises(SystemExit):
        main(["--only", "VAEs", "--folder", str(tmp_path)])
    assert "no contestants ['VAEs']; there are ['VAE', 'IWAE'" in capsys.readouterr().err
