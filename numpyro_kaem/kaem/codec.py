"""Values as JSON and arrays: what a file says of a model, read again without pickle and without running its code.

Described are the modules of this package and the distributions and transforms of NumPyro, by class and arguments, and
what these hold. Modules of anybody else are described by their arrays alone, and are given again when they are read.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from numpyro_kaem import distributions, energies, generators
from numpyro_kaem._numerics.grid import Grid
from numpyro_kaem._numerics.quadrature import GaussLegendre, Trapezoid
from numpyro_kaem.distributions import copula, discretized, rotation
from numpyro_kaem.distributions.tabulated import TabulatedDistribution
from numpyro_kaem.generators import attention
from numpyro_kaem.kaem import likelihoods, networks, priors


def _classes(kind: type, **modules: ModuleType) -> dict[str, type]:
    return {
        f"{where}.{name}": value
        for where, module in modules.items()
        for name, value in vars(module).items()
        if inspect.isclass(value) and issubclass(value, kind) and name[0] != "_"
    }


# All that a file can name, under its names in files, of which the first is written. Nothing else of it is run.
_MODULES = {"Grid": Grid, "GaussLegendre": GaussLegendre, "Trapezoid": Trapezoid} | _classes(
    eqx.Module,
    energies=energies,
    generators=generators,
    attention=attention,
    likelihoods=likelihoods,
    networks=networks,
    priors=priors,
    equinox=eqx.nn,
)
_DISTRIBUTIONS = _classes(
    dist.Distribution, numpyro=dist, numpyro_kaem=distributions, copula=copula, discretized=discretized
)
_TRANSFORMS = _classes(dist.transforms.Transform, numpyro=dist.transforms, rotation=rotation)
_CONSTRAINTS = {name: getattr(dist.constraints, name) for name in dist.constraints.__all__}
_ACTIVATIONS = (
    "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax mish "
    "relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus standardize swish "
    "tanh"
)
_UNARY = (
    "abs absolute arccos arcsin arcsinh arctan cbrt cos cosh exp exp2 expm1 fabs log log1p logistic negative neg "
    "positive reciprocal rsqrt sign sin sinc sinh sqrt square tan tanh"
)
_FUNCTIONS = {
    f"{where}.{name}": getattr(module, name)
    for where, module, names in (
        ("jax.nn", jax.nn, _ACTIVATIONS),
        ("jax.numpy", jnp, _UNARY),
        ("jax.lax", jax.lax, _UNARY),
        # Those that choose a class by their arguments.
        ("numpyro", dist, "Bernoulli Binomial Categorical Geometric Multinomial ZeroInflatedNegativeBinomial2"),
    )
    for name in names.split()
    if hasattr(module, name)
} | _DISTRIBUTIONS
# Arguments that stand for others, and those that are attributes of another name.
_ARGUMENTS = {
    dist.MultivariateNormal: ("loc", "scale_tril"),
    dist.GaussianCopula: ("marginal_dist", "correlation_cholesky"),
    copula.OpenGaussianCopula: ("marginal_dist", "correlation_cholesky"),
}
_RENAMED = {"base_distribution": "base_dist", "mask": "_mask"}


class NotDescribed(TypeError):
    """Raised for a value that a file cannot describe."""


class NotKnown(LookupError):
    """Raised for a name that this version does not know."""


def describe(value: Any, arrays: dict[str, np.ndarray], path: str) -> Any:
    """What JSON says of a value; its arrays are added to `arrays`, named by where they are.

    Raises:
        NotDescribed: for a function or an object that is not one of JAX, NumPyro or this package.
    """

    def inner(value: Any, name: Any) -> Any:
        return describe(value, arrays, f"{path}.{name}")

    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"is": "float", "of": repr(value)}
    if isinstance(value, jax.Array | np.ndarray) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        arrays[path] = np.asarray(value)
        return {"is": "array" if isinstance(value, jax.Array) else "numpy", "of": path}
    if isinstance(value, np.dtype):
        return {"is": "dtype", "of": value.name}
    if isinstance(value, tuple) and len(value) > 8 and all(type(item) is float for item in value):
        arrays[path] = np.asarray(value)  # in a third of the space
        return {"is": "floats", "of": path}
    if isinstance(value, list) or type(value) is tuple:
        return {"is": type(value).__name__, "of": [inner(item, index) for index, item in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(name, str) for name in value):
        return {"is": "dict", "of": {name: inner(item, name) for name, item in value.items()}}
    if isinstance(value, Grid) and value.bits is not None:
        # The points, whose bits depend on JAX's precision.
        return {"is": "grid", "of": inner(np.asarray(value.points), "points")}
    if isinstance(value, dist.Distribution | dist.transforms.Transform):
        return _described_by_arguments(value, inner, path)
    if where := _name(type(value), _MODULES):
        fields = {field.name: inner(getattr(value, field.name), field.name) for field in dataclasses.fields(value)}
        return {"is": "module", "of": where, "fields": fields}
    for kind, known in (("constraint", _CONSTRAINTS), ("function", _FUNCTIONS)):
        if where := _name(value, known):
            return {"is": kind, "of": where}
    raise NotDescribed(f"{path} is a {type(value).__name__}, {value!r}, which a file cannot describe")


def build(described: Any, arrays: dict[str, np.ndarray]) -> Any:
    """The value that was described.

    Raises:
        NotKnown: for names of classes and functions that there are not.
        ValueError: for what is no description, and for numbers of 64 bits that have no place in 32.
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
            return _on_device(arrays[content], content)
        case "numpy":
            return arrays[content]
        case "floats":
            return tuple(arrays[content].tolist())
        case "dtype":
            return jnp.dtype(content)
        case "list" | "tuple":
            return {"list": list, "tuple": tuple}[kind](map(inner, content))
        case "dict":
            return {name: inner(item) for name, item in content.items()}
        case "grid":
            return Grid(None, _bits(inner(content), content["of"]))
        case "constraint":
            return _known(content, _CONSTRAINTS)
        case "function":
            return _known(content, _FUNCTIONS)
        case "distribution" | "transform":
            return _built_of_arguments(described, inner)
        case "module":
            made = _known(content, _MODULES)
            # As it was: an __init__ may draw, check and convert.
            module = object.__new__(made)
            known = {field.name for field in dataclasses.fields(made)}
            for name, item in described["fields"].items():
                if name not in known:
                    raise NotKnown(f"{content}.{name}")
                object.__setattr__(module, name, inner(item))
            return module
    raise NotKnown(str(kind))


def is_faithful(described: Any, arrays: dict[str, np.ndarray], path: str) -> bool:
    """Whether what is built of a description has the same one, as not all distributions keep their arguments."""
    again: dict[str, np.ndarray] = {}
    try:
        is_same = described == describe(build(described, arrays), again, path)
    except Exception:  # of the class, whatever it is
        return False
    return is_same and again.keys() == arrays.keys() and all(map(_equal, again.values(), map(arrays.get, again)))


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _described_by_arguments(value: Any, inner: Callable, path: str) -> dict[str, Any]:
    """A distribution or a transform by the arguments of its class, which are attributes of it."""
    is_distribution = isinstance(value, dist.Distribution)
    made = type(value)
    where = _name(made, _DISTRIBUTIONS if is_distribution else _TRANSFORMS)
    names = _ARGUMENTS.get(made) or [name for name in inspect.signature(made).parameters if name != "validate_args"]
    attributes = {name: _RENAMED.get(name, name) for name in names}
    if not where or not all(hasattr(value, attribute) for attribute in attributes.values()):
        raise NotDescribed(f"{path} is a {made.__name__}, which a file cannot describe")
    arguments = {name: inner(getattr(value, attribute), name) for name, attribute in attributes.items()}
    if not is_distribution:
        return {"is": "transform", "of": where, "arguments": arguments}
    shapes = [list(value.batch_shape), list(value.event_shape), vars(value).get("_validate_args")]
    return {"is": "distribution", "of": where, "arguments": arguments, "shapes": shapes}


def _built_of_arguments(described: dict[str, Any], inner: Callable) -> Any:
    arguments = {name: inner(item) for name, item in described["arguments"].items()}
    if described["is"] == "transform":
        return _known(described["of"], _TRANSFORMS)(**arguments)
    batch_shape, event_shape, validate_args = described["shapes"]
    # They were valid when they were saved, and to look at them again takes longer than all else.
    made = _known(described["of"], _DISTRIBUTIONS)
    unchecked = {"validate_args": False} if "validate_args" in inspect.signature(made).parameters else {}
    value = made(**arguments, **unchecked)
    if isinstance(value, TabulatedDistribution) and list(value.batch_shape) != batch_shape:
        value = value.expand(tuple(batch_shape))
    if [list(value.batch_shape), list(value.event_shape)] != [batch_shape, event_shape]:
        raise ValueError(f"{described['of']} has shapes {value.batch_shape} and {value.event_shape}")
    if validate_args is not None:
        value._validate_args = bool(validate_args)
    elif "_validate_args" in vars(value):
        del value._validate_args
    return value


def _on_device(array: np.ndarray, name: str) -> jax.Array:
    """An array of JAX; where it has 64 bits and JAX none, rounded."""
    if array.dtype.itemsize == 8 and array.dtype.kind in "iuf" and not jax.config.read("jax_enable_x64"):
        narrow = array.astype(array.dtype.kind + "4")
        if array.dtype.kind != "f":
            if np.any(narrow != array):
                raise ValueError(f"{name} has integers of more than 32 bits: enable JAX's 64-bit mode (jax_enable_x64)")
        else:
            warnings.warn(
                "the file has numbers in float64, which are rounded to float32: enable JAX's 64-bit mode "
                "(jax_enable_x64) to have them as they were saved",
                UserWarning,
                stacklevel=2,
            )
        array = narrow
    return jax.device_put(array)


def _bits(points: np.ndarray, name: str) -> jax.Array:
    """The bits of points in a precision that JAX has."""
    if points.dtype == np.float64 and not jax.config.read("jax_enable_x64"):
        points = points.astype(np.float32)
        if np.any(np.diff(points) <= 0):
            raise ValueError(f"{name} has points that float32 cannot tell apart: enable JAX's 64-bit mode")
    return jax.device_put(points.view(f"i{points.dtype.itemsize}"))


def _name(value: Any, known: dict[str, Any]) -> str:
    """The name of a class, function or constraint; empty where it has none."""
    return next((name for name, each in known.items() if each is value), "")


def _known(name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise NotKnown(name)
    return known[name]
