"""Data of a KAEM, checked and converted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from numpyro_kaem.generators import SequenceDecoder
from numpyro_kaem.kaem.likelihoods import check_values
from numpyro_kaem.kaem.model import Parts
from numpyro_kaem.training.data import IndexedBatch


def check_data(parts: Parts, datum_shape: tuple[int, ...], name: str, x: Any) -> Array:
    """Data as the model takes them; a ValueError for those of another shape, or without probability."""
    shape = tuple(jnp.shape(x))
    if shape[1:] != datum_shape or not shape:
        raise ValueError(
            f"{name} must have a row for each datum, of shape {datum_shape}, got shape {shape}: the prior has latents "
            f"of shape {parts.prior_distribution.event_shape}, of which generator {type(parts.generator).__name__} and "
            f"the likelihood make data of shape {datum_shape}"
        )
    if isinstance(parts.generator, SequenceDecoder):
        parts.generator.check_tokens(x)
        return parts.generator.padded(x)
    return check_values(parts.likelihood, name, x)


class CheckedBatches:
    """An iterable of batches that are checked and converted as they come."""

    def __init__(self, parts: Parts, datum_shape: tuple[int, ...], batches: Iterable[Any]):
        self.parts, self.datum_shape, self.batches = parts, datum_shape, batches

    def __iter__(self) -> Iterator[Array]:
        for batch in self.batches:
            if isinstance(batch, IndexedBatch):
                raise ValueError(
                    "batches of KAEM.fit must be arrays, got an IndexedBatch, which needs a plate that has the size of "
                    "all data: call numpyro_kaem.fit with a model of your own around kaem.parts"
                )
            x = batch[0] if isinstance(batch, tuple) and len(batch) == 1 else batch
            yield check_data(self.parts, self.datum_shape, "batch of x", x)
