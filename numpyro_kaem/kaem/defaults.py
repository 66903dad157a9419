"""What a KAEM is trained with where nothing is said: objective, optimiser, epochs, held-out score."""

from __future__ import annotations

import math
from typing import Any

import jax
import optax
from numpyro.infer import RenyiELBO

from numpyro_kaem.checks import check_count
from numpyro_kaem.kaem.model import Guide, Parts
from numpyro_kaem.objectives import ImportanceMLE, LangevinMLE
from numpyro_kaem.posterior import ImportanceSampling
from numpyro_kaem.training import HeldOut

# Latents up to which prior draws that all data of a batch share are enough to train by.
FEW_LATENTS = 16
# Steps of a run, and epochs of one whose epochs have steps that are not known before.
_NUM_STEPS, _STREAM_EPOCHS = 3_000, 20
_RATES = {"prior": 3e-4, "rest": 1.5e-3}
# Draws times numbers of held-out data that a score by prior draws costs at most.
_LARGEST_SCORE = 10**9
_ENCODER_DRAWS = 100


def training_options(parts: Parts, num_data: int | None, options: dict[str, Any]) -> dict[str, Any]:
    """The arguments of `fit`, with those that were not given; `num_data` is None of a stream of batches."""
    options = dict(options)
    if num_data is None:
        steps = options.get("steps_per_epoch")
    else:
        options.setdefault("batch_size", min(num_data, max(16, min(200, num_data // 10))))
        steps = num_data // check_count("batch_size", options["batch_size"], 1) or 1
    default_epochs = _STREAM_EPOCHS if steps is None else max(5, min(1_000, math.ceil(_NUM_STEPS / steps)))
    options.setdefault("num_epochs", default_epochs)
    options.setdefault("objective", default_objective(parts))
    if "optimizer" not in options:
        options |= default_optimizer(parts, None if steps is None else options["num_epochs"] * steps)
    return options


def default_objective(parts: Parts) -> Any:
    """An importance-weighted bound with an encoder; without one, by the number of latents."""
    if parts.encoder is not None:
        return RenyiELBO(num_particles=5)
    size = math.prod(parts.prior_distribution.event_shape)
    return ImportanceMLE(1_000) if size <= FEW_LATENTS else LangevinMLE(num_steps=10)


def default_optimizer(parts: Parts, num_steps: int | None) -> dict[str, Any]:
    """Adam; the density of a coordinate is to change more slowly than the network that reads it."""

    def adam(rate: float) -> optax.GradientTransformation:
        return optax.adam(rate if num_steps is None else optax.cosine_decay_schedule(rate, num_steps, alpha=0.05))

    labels = {_label(site) for site in parts.params | (parts.encoder_params or {})}
    return {"optimizer": {label: adam(_RATES[label]) for label in labels}, "labels": _label}


def _label(site: str) -> str:
    return "prior" if site.startswith("prior") else "rest"


def default_held_out(x: Any, num_epochs: int, guide: Guide | None, given: Any) -> HeldOut:
    """Some twenty scores: by what is given, draws from the encoder, or as many from the prior as are cheap."""
    sampler = None if guide is None or given is not None else ImportanceSampling(_ENCODER_DRAWS, progress=False)
    draws = min(1_000, max(100, _LARGEST_SCORE // max(1, math.prod(jax.numpy.shape(x)))))
    return HeldOut(x, every=max(1, num_epochs // 20), num_samples=draws, sampler=sampler)
