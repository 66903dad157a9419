"""What a contestant is: how to build its model of a data set, what to train it by, and what is tried out."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from benchmarks.peers.tasks import Task
from numpyro_kaem import KAEM, MLP
from numpyro_kaem.kaem.networks import Flat

HIDDEN_SIZES = (256, 256)


@dataclass(frozen=True)
class Setting:
    """What is tuned: the learning rate, the weight decay, and a number of the contestant's own."""

    rate: float = 1e-3
    weight_decay: float = 1e-4
    own: float | None = None


@dataclass(frozen=True)
class Contestant:
    """A model and how it is trained.

    Attributes:
        name: in the table.
        build: from a key, a task and a setting to an untrained model; None of one that is no latent-variable model.
        objectives: from a setting to what is minimised, several one after the other, each for its share of the budget;
            None of one that is no latent-variable model, which has a training of its own.
        settings: that are tried out, as many for every contestant.
        is_ours: whether it is a KAEM, a prior of one-dimensional learned densities.
    """

    name: str
    build: Callable[[Any, Task, Setting], Any] | None
    objectives: Callable[[Setting], dict[Any, float]] | None
    settings: tuple[Setting, ...]
    is_ours: bool = False


def trials(*own: float | None) -> tuple[Setting, ...]:
    """What every contestant tries: two pairs of learning rate and weight decay, each with a number of its own."""
    common = (Setting(4e-3, 0.1), Setting(6e-3, 0.3))
    return tuple(replace(setting, own=value) for setting, value in zip(common, own, strict=True))


def make(key: Any, task: Task, prior: Any, *, encoder: bool, **options: Any) -> KAEM:
    """A model of a task, with the decoder and the encoder that all have."""
    prior_key, decoder_key, encoder_key = jax.random.split(key, 3)
    size, num_axes = task.train[0].size, len(task.shape)
    if task.num_categories:
        size, num_axes = size * task.num_categories, num_axes + 1
    network = Flat(MLP(encoder_key, size, 2 * task.latent_size, HIDDEN_SIZES[::-1]), num_axes)
    return KAEM.create(
        prior_key,
        task.shape,
        latent_size=task.latent_size,
        likelihood=task.likelihood,
        prior=prior,
        generator=MLP(decoder_key, task.latent_size, size, HIDDEN_SIZES),
        encoder=network if encoder else False,
        num_categories=task.num_categories,
        **options,
    )


def normal(task: Task) -> dist.Distribution:
    """The standard normal prior."""
    return dist.Normal(jnp.zeros(task.latent_size), 1.0).to_event(1)
