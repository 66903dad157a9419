"""Convolutions in the one layout that processors run fast inside of compiled loops."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun


def channels_last(fn: Callable) -> Callable:
    """The same function, its convolutions and those of its gradients written with channels last.

    In the body of a loop XLA for processors runs every other layout many times slower. The function is one that is
    already differentiated and called under `jit`; on accelerators nothing changes.
    """
    if jax.default_backend() != "cpu":
        return fn

    def rewritten(*args: Any) -> Any:
        closed, shapes = jax.make_jaxpr(fn, return_shape=True)(*args)
        outputs = jaxpr_as_fun(_rewrite(closed))(*jax.tree.leaves(args))
        return jax.tree.unflatten(jax.tree.structure(shapes), outputs)

    return rewritten


def _rewrite(part: Any) -> Any:
    """A jaxpr, or what a parameter of an equation holds of them; the very same object where nothing changes."""
    if isinstance(part, ClosedJaxpr) and part.jaxpr is not part:  # the two are one class from JAX 0.11 on
        jaxpr = _rewrite(part.jaxpr)
        return part if jaxpr is part.jaxpr else part.replace(jaxpr=jaxpr)
    if isinstance(part, tuple):
        parts = tuple(map(_rewrite, part))
        return parts if any(new is not old for new, old in zip(parts, part, strict=True)) else part
    if not isinstance(part, Jaxpr):
        return part
    equations = [_rewrite_equation(equation) for equation in part.eqns]
    changed = any(new is not old for new, old in zip(equations, part.eqns, strict=True))
    return part.replace(eqns=equations) if changed else part


def _rewrite_equation(equation: Any) -> Any:
    if equation.primitive is lax.conv_general_dilated_p:
        function = jax.jit(partial(_convolve, params=equation.params))
        call = jax.make_jaxpr(function)(*(variable.aval for variable in equation.invars)).eqns[0]
        return equation.replace(primitive=call.primitive, params=call.params, effects=call.effects)
    params = {name: _rewrite(value) for name, value in equation.params.items()}
    changed = any(params[name] is not value for name, value in equation.params.items())
    return equation.replace(params=params) if changed else equation


def _convolve(inputs: Array, kernel: Array, params: dict[str, Any]) -> Array:
    """The convolution that an equation describes, by way of inputs `b01f`, a kernel `01io` and outputs `b01f`."""
    layout = params["dimension_numbers"]
    num_axes = inputs.ndim
    space = tuple(range(1, num_axes - 1))
    last = (0, num_axes - 1, *space)
    kernel_last = (num_axes - 1, num_axes - 2, *range(num_axes - 2))
    outputs = lax.conv_general_dilated_p.bind(
        lax.transpose(inputs, _channels_behind(layout.lhs_spec)),
        lax.transpose(kernel, (*layout.rhs_spec[2:], layout.rhs_spec[1], layout.rhs_spec[0])),
        **params | {"dimension_numbers": lax.ConvDimensionNumbers(last, kernel_last, last)},
    )
    return jnp.transpose(outputs, sorted(range(num_axes), key=_channels_behind(layout.out_spec).__getitem__))


def _channels_behind(spec: tuple[int, ...]) -> tuple[int, ...]:
    """Axes in the order batch, space, channels, of a specification that has channels second."""
    return (spec[0], *spec[2:], spec[1])
