"""What a file holds of a model: its parts, values, history and optimiser state, and how they are put together again."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numpyro_kaem.kaem import archive, codec
from numpyro_kaem.kaem.likelihoods import Likelihood, OwnLikelihood
from numpyro_kaem.kaem.model import Parts
from numpyro_kaem.kaem.nnx import as_equinox

PARTS = ("prior", "generator", "likelihood", "encoder")


def save(path: str | os.PathLike, parts: Parts, others: dict[str, Any]) -> None:
    """Write parts and others, which `load` gives back.

    Raises:
        TypeError: for others that a file cannot describe.
        OSError: where the file cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    described = {name: _describe(getattr(parts, name), arrays, name) for name in PARTS}
    values = {name: _describe(value, arrays, f"values.{name}") for name, value in (parts.values or {}).items()}
    others = {name: codec.describe(value, arrays, name) for name, value in others.items()}
    # The package has been imported before its modules; importing it from here would go round in a circle.
    about = {"written_by": f"numpyro_kaem {sys.modules['numpyro_kaem'].__version__}", "adapts": parts.adapts}
    archive.write(path, about | {"parts": described, "values": values, **others}, arrays)


def load(path: str | os.PathLike, own: dict[str, Any]) -> tuple[Parts, dict[str, Any]]:
    """The parts of a file and the rest of it; `own` are the parts that a file cannot describe, by name.

    Raises:
        FileNotFoundError: where there is no file.
        DamagedFile: for a file that is cut off, altered, or not written by `save`.
        ValueError: for a file of a later version, and for a part that is missing, not needed, or has other arrays than
            the one that was saved.
    """
    manifest, arrays = archive.read(path)
    reader = _Reader(os.fspath(path), manifest, arrays, own)
    rest = {name: reader.build(name, value) for name, value in manifest.items() if name not in _READ}
    return reader.parts, rest


_READ = ("version", "checksums", "written_by", "adapts", "parts", "values")


class _Reader:
    """A file that is put together."""

    def __init__(self, path: str, manifest: dict[str, Any], arrays: dict[str, np.ndarray], own: dict[str, Any]):
        self.path, self.manifest, self.arrays, self.own = path, manifest, arrays, own

    @property
    def parts(self) -> Parts:
        """The parts with the values that their parameters were saved with."""
        values = {site: self._value(site, described) for site, described in self.manifest["values"].items()}
        return replace(self._parts, values=values or None)

    @cached_property
    def _parts(self) -> Parts:
        return Parts(**{name: self._part(name) for name in PARTS}, adapts=self.manifest["adapts"])

    def _part(self, name: str) -> Any:
        described, own = self.manifest["parts"][name], self.own.get(name)
        if not _is_own(described):
            if own is not None:
                raise ValueError(f"{name} is in {self.path!r}, and must not be given: leave out {name}=")
            return self.build(name, described)
        if own is None:
            raise ValueError(
                f"{name} of {self.path!r} is {described['of']!r}, not of this package: give it, {name}=..."
            )
        own = as_equinox(own)
        if name == "likelihood" and not isinstance(own, Likelihood | OwnLikelihood):
            own = OwnLikelihood(own)
        return self._fill(name, described, own)

    def _value(self, site: str, described: Any) -> Any:
        """Of a parameter site of a function of the user's own: what the function declares, its arrays those saved."""
        if not _is_own(described):
            return self.build(site, described)
        initial = self._parts.params
        if site not in initial:
            raise ValueError(f"the functions that were given have no parameter {site!r}, which {self.path!r} has")
        return self._fill(f"values.{site}", described, initial[site])

    def _fill(self, name: str, described: dict[str, Any], own: Any) -> Any:
        """A module of the user's own with the arrays of the file."""
        expected = {path: jnp.shape(leaf) for path, leaf in _leaves(name, own).items()}
        saved = {path: self.arrays[path].shape for path in described["arrays"]}
        if expected != saved:
            paths = sorted(path for path in expected.keys() | saved.keys() if expected.get(path) != saved.get(path))
            raise ValueError(
                f"{name} must be like the {described['of']!r} that was saved, but arrays differ: "
                + ", ".join(f"{path} is {_text(expected, path)}, saved was {_text(saved, path)}" for path in paths)
            )

        def filled(path: tuple, leaf: Any) -> Any:
            kind = "array" if isinstance(leaf, jax.Array) else "numpy"
            return self.build(name, {"is": kind, "of": _path(name, path)}) if _is_array(leaf) else leaf

        return jax.tree.map_with_path(filled, own)

    def build(self, name: str, described: Any) -> Any:
        """What was described; errors say what of the file it is."""
        try:
            return codec.build(described, self.arrays)
        except codec.NotKnown as error:
            raise ValueError(
                f"{name} of {self.path!r} has {error.args[0]!r}, which this version of numpyro_kaem does not know: "
                f"install {self.manifest['written_by']}, which wrote it, or later"
            ) from error
        except Exception as error:
            raise archive.DamagedFile(f"{name} of {self.path!r} cannot be put together: {error}") from error


def _describe(part: Any, arrays: dict[str, np.ndarray], name: str) -> Any:
    """A part whole, or the arrays of a module or function of the user's own."""
    found: dict[str, np.ndarray] = {}
    try:
        described = codec.describe(part, found, name)
        is_whole = codec.is_faithful(described, found, name)
    except codec.NotDescribed:
        is_whole = False
    if not is_whole:
        found = {path: np.asarray(leaf) for path, leaf in _leaves(name, part).items()}
        of = part.function if isinstance(part, OwnLikelihood) else part
        described = {"is": "own", "of": getattr(of, "__qualname__", type(of).__qualname__), "arrays": list(found)}
    arrays.update(found)
    return described


def _is_own(described: Any) -> bool:
    return isinstance(described, dict) and described.get("is") == "own"


def _leaves(name: str, part: Any) -> dict[str, Any]:
    """The arrays of a part by their path."""
    return {_path(name, path): leaf for path, leaf in jax.tree.leaves_with_path(part) if _is_array(leaf)}


def _is_array(leaf: Any) -> bool:
    """Random keys are none: they are given again."""
    return isinstance(leaf, jax.Array | np.ndarray) and not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _path(name: str, path: tuple) -> str:
    return f"{name}{jax.tree_util.keystr(path)}"


def _text(shapes: dict[str, tuple[int, ...]], path: str) -> str:
    return str(shapes[path]) if path in shapes else "missing"
