"""Checkpoints of a sampler's run, with which the same call goes on after Ctrl-C or the end of its process."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree
from numpyro.distributions import Distribution

from numpyro_kaem._checkpoints.arrays import checksum, to_device, to_host
from numpyro_kaem._checkpoints.store import CheckpointStore
from numpyro_kaem.posterior.kernel import Kernel
from numpyro_kaem.posterior.ladder import Ladder
from numpyro_kaem.posterior.target import Target

# Seconds between two checkpoints, at least.
_SECONDS = 30.0
# What may change between a run and its continuation.
_FREE = ("progress", "checkpoint_dir")
# Settings that hold arrays.
_ARRAYS = ("guide_params", "tuning")


class RunCheckpoints:
    """Where a run has come in each chunk of its data, on the disk if a directory is given."""

    def __init__(self, directory: str | os.PathLike | None):
        if directory is not None and jax.process_count() > 1:
            raise ValueError("checkpoint_dir must be None where JAX runs in several processes, which sample apart")
        self._store = None if directory is None else CheckpointStore(directory, keep=2)
        # Of each the stages behind it, and by name its state and the records, one a stage or none.
        self._chunks: list[tuple[int, dict[str, np.ndarray]]] = []
        self._description: dict[str, Any] | None = None
        self._is_written, self._next = True, time.monotonic() + _SECONDS

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from writing to the directory, and write what has been taken down when the run ends."""
        with contextlib.nullcontext() if self._store is None else self._store.held():
            try:
                yield
            finally:
                self._write()

    @property
    def way_on(self) -> str:
        """How an interrupted run is gone on with."""
        if self._store is None:
            return "with a checkpoint_dir, the same call would go on"
        return "the same call goes on from its checkpoint_dir"

    def describe(self, sampler: Any, target: Target, rows: tuple, **given: PyTree) -> None:
        """Say what a run and its continuation must have in common: settings, the model, the data, arrays `given`."""
        if self._store is None:
            return
        row = jax.tree.map(lambda leaf: leaf[0], rows)
        computed = jax.make_jaxpr(target.latent_model.log_parts)(
            target.unravel(jnp.zeros(target.dim, target.dtype)), *row
        )
        # Without the addresses of functions, which are others in every process.
        text = re.sub(r"0x[0-9a-f]+", "", str(computed.jaxpr))
        settings = {name: value for name, value in describe_settings(sampler).items() if name not in _FREE}
        if not settings.get("persistent"):  # which has memory for so many
            settings.pop("max_rungs", None)
        self._description = {
            "sampler": type(sampler).__name__,
            "settings": settings,
            "x64": jnp.result_type(float) == jnp.float64,
            "latents": {name: list(shape) for name, shape in target.latent_model.latent_shapes.items()},
            "checksum": {
                "model": checksum((np.frombuffer(text.encode(), np.uint8), computed.consts)),
                "data": checksum(rows),
                "settings": checksum([getattr(sampler, name, None) for name in _ARRAYS]),
                **{name: checksum(tree) for name, tree in given.items()},
            },
        }

    def at(self, chunk: int, begin: PyTree) -> tuple[PyTree, int, dict[str, np.ndarray]]:
        """State, number of stages and records of a chunk: as it begins, or as the checkpoint has it."""
        if self._store is not None and chunk == 0:
            self._read()
        if chunk >= len(self._chunks):
            return begin, 0, {}
        stages, arrays = self._chunks[chunk]
        begun, structure = jax.tree.flatten(begin)
        leaves = [to_device(arrays[f"state/{j}"], leaf) for j, leaf in enumerate(begun)]
        records = {name.removeprefix("record/"): value for name, value in arrays.items() if name.startswith("record/")}
        return jax.tree.unflatten(structure, leaves), stages, records

    def keep(self, chunk: int, state: PyTree, stages: int, records: Sequence[Any] = (), whole: bool = False) -> None:
        """Take down where a chunk is, if it is time or it is `whole`; records are named tuples of the same shapes."""
        if self._store is None or not (whole or time.monotonic() >= self._next):
            return
        if chunk < len(self._chunks) and self._chunks[chunk][0] == stages:
            return  # taken down already
        arrays = {f"state/{j}": to_host(leaf) for j, leaf in enumerate(jax.tree.leaves(state))}
        for name in records[0]._fields if records else ():
            arrays[f"record/{name}"] = np.stack([getattr(record, name) for record in records])
        self._chunks[chunk : chunk + 1] = [(stages, arrays)]
        self._is_written = False
        if time.monotonic() >= self._next:
            self._write()

    def _write(self) -> None:
        if self._is_written:
            return
        history = {"stages": np.array([stages for stages, _ in self._chunks])}
        for i, (_, arrays) in enumerate(self._chunks):
            history |= {f"{i}/{name}": value for name, value in arrays.items()}
        self._store.save(int(history["stages"].sum()), {}, history, self._description)
        self._is_written, self._next = True, time.monotonic() + _SECONDS

    def _read(self) -> None:
        found = self._store.restore({}, self._description)
        if found is None:
            return
        history = found[2]
        for i, stages in enumerate(history["stages"]):
            prefix = f"{i}/"
            arrays = {name.removeprefix(prefix): x for name, x in history.items() if name.startswith(prefix)}
            self._chunks.append((int(stages), arrays))


def describe_distributions(trace: dict[str, dict]) -> dict[str, str]:
    """The families of a model's sample sites, by name, without parameters: most are functions of what is learned."""
    return {name: _family(site["fn"]) for name, site in trace.items() if site["type"] == "sample"}


def describe_settings(thing: Any) -> dict[str, Any]:
    """What an objective or a sampler is set to, as far as JSON can say it: functions, as schedules, are left out."""
    settings = {}
    for name in dict.fromkeys(("num_particles", "vectorize_particles", *vars(thing))):
        value = getattr(thing, name, None)
        if isinstance(value, Ladder):
            settings[name] = np.asarray(value.temperatures).tolist()
        elif isinstance(value, Kernel):
            settings[name] = repr(value)
        elif value is None or isinstance(value, bool | int | float | str):
            settings[name] = value
    return settings


def _family(distribution: Distribution) -> str:
    name, base = type(distribution).__name__, getattr(distribution, "base_dist", None)
    return name if base is None else f"{name}({_family(base)})"
