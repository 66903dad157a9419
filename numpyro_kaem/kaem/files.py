"""What a file holds of a model: its parts, values, history and optimiser state, and how they are put together again."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.kaem import codec
from numpyro_kaem.kaem.model import Parts
from numpyro_kaem.kaem.nnx import as_equinox

PARTS = ("prior", "generator", "likelihood", "encoder")


def describe_parts(parts: Parts, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    """The parts as the manifest has them; their arrays are added to `arrays`."""
    described = {name: _describe_part(getattr(parts, name), arrays, name) for name in PARTS}
    return described | {"values": codec.describe(parts.values, arrays, "values"), "adapts": parts.adapts}


def build_parts(described: dict[str, Any], arrays: dict[str, np.ndarray], own: dict[str, Any]) -> Parts:
    """The parts that were described; `own` are those that a file cannot describe, by name.

    Raises:
        ValueError: for a part that is missing, not needed, or has other arrays than the one that was saved.
    """
    parts = {name: _build_part(name, described[name], arrays, own.get(name)) for name in PARTS}
    return Parts(**parts, values=codec.build(described["values"], arrays), adapts=described["adapts"])


def _describe_part(part: Any, arrays: dict[str, np.ndarray], name: str) -> dict[str, Any] | None:
    """A part whole, or the arrays of a module or function of the user's own."""
    found: dict[str, np.ndarray] = {}
    try:
        described = codec.describe(part, found, name)
    except codec.NotDescribed:
        found = {path: np.asarray(leaf) for path, leaf in _leaves(name, part).items()}
        described = {"is": "own", "of": getattr(part, "__qualname__", type(part).__qualname__), "arrays": list(found)}
    arrays.update(found)
    return described


def _build_part(name: str, described: Any, arrays: dict[str, np.ndarray], own: Any) -> Any:
    is_own = isinstance(described, dict) and described["is"] == "own"
    if not is_own:
        if own is not None:
            raise ValueError(f"{name} is in the file, and need not be given")
        return codec.build(described, arrays)
    if own is None:
        raise ValueError(f"{name} of this file is {described['of']!r}, not of this package: give one as {name}=")
    own = as_equinox(own)
    expected = {path: leaf.shape for path, leaf in _leaves(name, own).items()}
    saved = {path: arrays[path].shape for path in described["arrays"]}
    if expected != saved:
        different = sorted(path for path in expected.keys() | saved.keys() if expected.get(path) != saved.get(path))
        raise ValueError(
            f"{name} is not like the {described['of']!r} that was saved: its arrays differ at "
            + ", ".join(f"{path} ({expected.get(path)}, saved {saved.get(path)})" for path in different)
        )
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(arrays[_path(name, path)]) if eqx.is_array(leaf) else leaf, own
    )


def _leaves(name: str, part: Any) -> dict[str, Any]:
    """The arrays of a part by their path."""
    return {_path(name, path): leaf for path, leaf in jax.tree.leaves_with_path(part) if eqx.is_array(leaf)}


def _path(name: str, path: tuple) -> str:
    return f"{name}{jax.tree_util.keystr(path)}"


def as_numpy(history: dict[str, Any] | None) -> dict[str, np.ndarray] | None:
    """A history as `fit` gives it."""
    return None if history is None else {name: np.asarray(values) for name, values in history.items()}
