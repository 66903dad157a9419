"""Values as JSON and arrays: what a file says of a model, read again without pickle and without running its code.

Described are the modules of this package and the distributions and transforms of NumPyro, by class and arguments, and
what these hold. Modules of anybody else are described by their arrays alone, and are given again when they are read.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem import distributions, energies, generators
from numpyro_kaem._numerics import grid, quadrature
from numpyro_kaem.generators import attention
from numpyro_kaem.kaem import likelihoods, networks, priors

# Where functions and classes are looked up, by the name that a file has for each module.
_FUNCTIONS = {"jax.nn": jax.nn, "jax.numpy": jnp}
_DISTRIBUTIONS = {"numpyro_kaem": distributions, "numpyro": dist}
_TRANSFORMS = {"numpyro.transforms": dist.transforms}
_MODULES = {
    "energies": energies,
    "generators": generators,
    "attention": attention,
    "likelihoods": likelihoods,
    "networks": networks,
    "priors": priors,
    "grid": grid,
    "quadrature": quadrature,
    "layers": eqx.nn,
}
# Arguments of distributions that are attributes of another name.
_RENAMED = {"base_distribution": "base_dist"}


class NotDescribed(TypeError):
    """Raised for a value that a file cannot describe."""


def describe(value: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    """What JSON says of a value; its arrays are added to `arrays`, named by where they are.

    Raises:
        NotDescribed: for a function or an object that is not one of JAX, NumPyro or this package.
    """

    def inner(value: Any, name: Any) -> Any:
        return describe(value, arrays, f"{path}.{name}")

    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"is": "float", "of": repr(value)}
    if eqx.is_array(value) or isinstance(value, np.generic):
        arrays[path] = np.asarray(value)
        return {"is": "array", "of": path}
    if isinstance(value, np.dtype):
        return {"is": "dtype", "of": value.name}
    if isinstance(value, list | tuple):
        return {"is": type(value).__name__, "of": [inner(item, index) for index, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"is": "dict", "of": {name: inner(item, name) for name, item in value.items()}}
    if isinstance(value, dist.Distribution | dist.transforms.Transform):
        return _described_by_arguments(value, inner, path)
    if isinstance(value, eqx.Module) and (where := _found(type(value), _MODULES)):
        fields = {field.name: inner(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return {"is": "module", "of": where, "fields": fields}
    if isinstance(value, dist.constraints.Constraint):
        for name in dist.constraints.__all__:
            if getattr(dist.constraints, name) is value:
                return {"is": "constraint", "of": name}
    if where := _found(value, _FUNCTIONS):
        return {"is": "function", "of": where}
    raise NotDescribed(f"{path} is a {type(value).__name__}, {value!r}, which a file cannot describe")


def build(described: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that was described.

    Raises:
        KeyError: for names of classes, functions and arrays that there are not.
    """

    def inner(described: Any) -> Any:
        return build(described, arrays)

    if not isinstance(described, dict):
        return described
    kind, content = described["is"], described["of"]
    match kind:
        case "float":
            return float(content)
        case "array":
            return jnp.asarray(arrays[content])
        case "dtype":
            return jnp.dtype(content)
        case "list" | "tuple":
            return {"list": list, "tuple": tuple}[kind](map(inner, content))
        case "dict":
            return {name: inner(item) for name, item in content.items()}
        case "constraint":
            return getattr(dist.constraints, content)
        case "function":
            return _look_up(content, _FUNCTIONS)
        case "distribution" | "transform":
            made = _look_up(content, _DISTRIBUTIONS if kind == "distribution" else _TRANSFORMS)
            return made(**{name: inner(item) for name, item in described["arguments"].items()})
        case "module":
            # As it was: an __init__ may draw, check and convert.
            module = object.__new__(_look_up(content, _MODULES))
            for name, item in described["fields"].items():
                object.__setattr__(module, name, inner(item))
            return module
    raise KeyError(f"{kind!r} is no kind of value that this version knows")


def _described_by_arguments(value: Any, inner: Callable, path: str) -> dict[str, Any]:
    """A distribution or a transform by the arguments of its class, which are attributes of it."""
    kind = "distribution" if isinstance(value, dist.Distribution) else "transform"
    where = _found(type(value), _DISTRIBUTIONS if kind == "distribution" else _TRANSFORMS)
    names = [name for name in inspect.signature(type(value)).parameters if name != "validate_args"]
    attributes = {name: _RENAMED.get(name, name) for name in names}
    if not where or not all(hasattr(value, attribute) for attribute in attributes.values()):
        raise NotDescribed(f"{path} is a {type(value).__name__}, which a file cannot describe")
    arguments = {name: inner(getattr(value, attribute), name) for name, attribute in attributes.items()}
    return {"is": kind, "of": where, "arguments": arguments}


def _found(value: Any, places: dict[str, Any]) -> str:
    """The name of a class or function in one of these modules; empty where it is in none."""
    name = getattr(value, "__name__", "")
    return next((f"{where}.{name}" for where, module in places.items() if getattr(module, name, None) is value), "")


def _look_up(name: str, places: dict[str, Any]) -> Any:
    where, _, last = name.rpartition(".")
    if where not in places or not hasattr(places[where], last):
        raise KeyError(f"{name!r} is not known to this version")
    return getattr(places[where], last)
