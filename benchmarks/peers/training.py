"""How every latent-variable model is trained: the same budget, optimiser, averages and early stopping.

The budget is in seconds of one processor core: how many epochs that is was measured before, in a short run of the same
program (`seconds_per_epoch`), so that a run with the same number of epochs gives the same model.
"""

import time
import warnings
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers.contestants import Contestant, Setting
from benchmarks.peers.tasks import Task
from numpyro_kaem import KAEM, HeldOut, TemperedSMC, TrainingFailed
from numpyro_kaem.objectives import Objective

# Of the scores on the way, by which the best parameters of a run are chosen, and those of trials.
NUM_SCORES = 3
# Data that are scored at once, always by the same program: those on the way, and a part of those at the end.
NUM_SCORED = 32
EMA_DECAY = 0.99


def scorer() -> TemperedSMC:
    """The sampler of all scores."""
    return TemperedSMC(num_particles=168, num_mcmc_steps=20, waste_free=True, progress=False)


class Trained(NamedTuple):
    """A trained model with its best parameters, and the scores on the way there with their seconds of training."""

    model: Any
    scores: list[float]
    seconds: list[float]
    num_epochs: int


def train(
    contestant: Contestant, task: Task, setting: Setting, seed: int, budget: float, clock: dict[int, float]
) -> Trained:
    """Train for `budget` seconds of a core, the objectives one after the other, each from the best of the one before.

    The rate goes on falling from one to the next. The model that is returned is the best of all. `clock` has the
    seconds that an epoch by each objective takes; what is missing is measured and put into it.
    """
    key, fit_key = jax.random.split(jax.random.key(seed))
    kaem = best = contestant.build(key, task, setting)
    scores, seconds, total, share_before = [], [], 0, 0.0
    for number, (objective, share) in enumerate(contestant.objectives(setting).items()):
        if number not in clock:
            clock[number] = seconds_per_epoch(kaem, objective, task, setting)
        num_epochs = max(1, round(share * budget / clock[number]))
        num_scores = max(2, round(share * NUM_SCORES))
        every = max(1, -(-num_epochs // num_scores))
        held_out = HeldOut(task.validation[:NUM_SCORED], every=every, patience=10**6, sampler=scorer())
        schedule = num_epochs / share, num_epochs * share_before / share
        try:
            kaem = _fit(kaem, fit_key, objective, task, setting, num_epochs, schedule, held_out=held_out)
        except TrainingFailed:
            if not scores:
                raise
            break  # the best of the objectives before is what there is
        share_before += share
        begun = seconds[-1] if seconds else 0.0
        found = kaem.history["held_out_log_likelihood"].tolist()
        if not scores or max(found) > max(scores):
            best = kaem
        scores += found
        seconds += (begun + clock[number] * kaem.history["held_out_epoch"]).tolist()
        total += num_epochs
    return Trained(best, scores, seconds, total)


def seconds_per_epoch(kaem: KAEM, objective: Any, task: Task, setting: Setting) -> float:
    """Seconds of a core that an epoch takes, at a rate of zero: the least of two, after one that is compiled with."""
    ends: list[float] = []
    still, options = replace(setting, rate=0.0), {"callbacks": lambda *_: ends.append(time.process_time())}
    _fit(kaem, jax.random.key(0), objective, task, still, 3, (3.0, 0.0), **options)
    return float(min(np.diff(ends)))


def _fit(
    kaem: KAEM,
    key: Any,
    objective: Any,
    task: Task,
    setting: Setting,
    num_epochs: int,
    schedule: tuple[float, float],
    **options: Any,
) -> KAEM:
    """Train for `num_epochs` epochs, at the rates of a schedule of so many epochs after so many of them."""

    def label(site: str) -> str:
        return "prior" if site.startswith("prior") else "rest"

    def optimizers(rate: float, weight_decay: float, num_steps: float, num_before: float) -> dict:
        adamw = partial(optax.inject_hyperparams(falling_adamw), num_steps=num_steps, num_before=num_before)
        groups = {"prior": adamw(rate, 0.0), "rest": adamw(rate, weight_decay)}
        return {name: groups[name] for name in {label(site) for site in kaem.params}}

    # Rates and the number of steps are values of the optimiser's state, so that another setting is the same program.
    num_steps, num_before = (float(epochs * (len(task.train) // task.batch_size)) for epochs in schedule)
    sites = kaem.params if not _trains_encoder(objective) else kaem.params | kaem.guide_params
    own = optax.multi_transform(
        optimizers(setting.rate, setting.weight_decay, num_steps, num_before), {site: label(site) for site in sites}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of chains and draws, whose failures the scores show
        return kaem.fit(
            key,
            task.train,
            objective=objective,
            optimizer=optimizers(1.0, 0.0, 1.0, 0.0),
            init_optimizer_state=jax.tree.leaves(own.init(sites)),
            labels=label,
            num_epochs=num_epochs,
            batch_size=task.batch_size,
            ema_decay=EMA_DECAY,
            progress=False,
            **options,
        )


def _trains_encoder(objective: Any) -> bool:
    return not isinstance(objective, Objective) or objective.takes_guide


def falling_adamw(rate: Any, weight_decay: Any, num_steps: Any, num_before: Any = 0.0) -> optax.GradientTransformation:
    """AdamW whose rate falls along half a cosine, to a twentieth."""

    def falling(count: Any) -> Any:
        return rate * (0.525 + 0.475 * jnp.cos(jnp.pi * jnp.minimum((count + num_before) / num_steps, 1.0)))

    return optax.adamw(falling, weight_decay=weight_decay)
