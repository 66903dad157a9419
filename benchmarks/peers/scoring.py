"""The scores of a trained model, the same for all: likelihood, distances, copies of training data, speed."""

import time
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers.ddpm import Diffusion
from benchmarks.peers.features import features_of, numbers
from benchmarks.peers.latent_ebm import Energy
from benchmarks.peers.tasks import Task
from benchmarks.peers.training import NUM_SCORED, scorer
from numpyro_kaem import KAEM, ImportanceSampling, frechet_distance, kernel_distance
from numpyro_kaem.reading.memorisation import nearest

NUM_IMPORTANCE_DRAWS = 1_000
NUM_DRAWS, NUM_SHOWN = 2_000, 10
# Steps of a chain that draws from an energy-based prior when it is scored, so that its draws are from what it says.
LONG_CHAIN = 200


def score(model: KAEM | Diffusion, task: Task, num_scored: int) -> dict:
    """A row of scores, and draws to look at."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x = jnp.asarray(task.test[:num_scored])
        if isinstance(model, Diffusion):
            log_likelihood, gap = model.log_likelihood(jax.random.key(1), x), None
            size, draw = model.num_parameters, model.sampler(NUM_DRAWS // 10)
        else:
            log_likelihood, gap = _log_likelihood(model, x)
            size = sum(leaf.size for leaf in jax.tree.leaves(model.params) if eqx.is_inexact_array(leaf))
            draw = jax.jit(lambda key: model.sample(key, NUM_DRAWS // 2))
        drawn, seconds = _drawn(draw)
        distances = {
            name: distance(task.test, drawn, features=features_of(task.name))
            for name, distance in (("frechet", frechet_distance), ("kernel", kernel_distance))
        }
        near = nearest(*(numbers(task, values) for values in (drawn, task.train, task.test)))
    return {
        "log_likelihood": [round(float(value), 3) for value in log_likelihood],
        "importance_gap": None if gap is None else [round(float(value), 3) for value in gap],
        **{name: [result.value, result.std_error] for name, result in distances.items()},
        "nearer": [near.share, near.share_error],
        "draws_per_second": seconds,
        "num_parameters": int(size),
        "drawn": np.asarray(drawn[:NUM_SHOWN], float).round(2).tolist(),
    }


def _log_likelihood(kaem: KAEM, x) -> tuple[np.ndarray, np.ndarray]:
    """Log p(x) of each datum by tempered SMC, and how far the importance bound is below."""
    if isinstance(kaem.parts.prior, Energy):
        prior = kaem.parts.prior
        long = Energy(prior.network, prior.latent_size, LONG_CHAIN)
        kaem = eqx.tree_at(lambda kaem: kaem.parts.prior, kaem, long, is_leaf=lambda leaf: leaf is prior)
    guided = {} if kaem.guide is None else {"guide": kaem.guide, "guide_params": kaem.guide_params}
    cheap = ImportanceSampling(NUM_IMPORTANCE_DRAWS, progress=False, **guided)

    def by(sampler):
        parts = [x[first : first + NUM_SCORED] for first in range(0, len(x), NUM_SCORED)]
        runs = (sampler.run(jax.random.key(1), kaem.model, kaem.params, part) for part in parts)
        return np.concatenate([np.asarray(run.log_evidence) for run in runs])

    exact = by(scorer())
    return exact, by(cheap) - exact


def _drawn(draw) -> tuple[np.ndarray, float]:
    """`NUM_DRAWS` draws, and how many there are in a second of a core, the most of several calls."""
    found, seconds = [], []
    while len(found) < 2 or sum(map(len, found)) < NUM_DRAWS + len(found[0]):
        start = time.process_time()
        found.append(np.asarray(draw(jax.random.key(100 + len(found)))))
        seconds.append(time.process_time() - start)
    return np.concatenate(found)[:NUM_DRAWS], len(found[0]) / min(seconds[1:])
