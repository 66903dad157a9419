"""Modules of Flax NNX as modules of Equinox."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax


class NNXModule(eqx.Module):
    """A module of Flax NNX as one of Equinox: its `Param`s are arrays, all else is as it was.

    `module()` is the module of NNX again, with the arrays as they are now.
    """

    params: dict[str, Any]
    others: dict[str, Any]
    graph: Any = eqx.field(static=True)

    def __init__(self, module: Any):
        from flax import nnx

        parts: tuple = nnx.split(module, nnx.Param, ...)
        self.graph, params, others = parts
        self.params, self.others = nnx.to_pure_dict(params), nnx.to_pure_dict(others)
        if any(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(self.others)):
            kinds = sorted({type(leaf).__name__ for _, leaf in nnx.to_flat_state(others)})
            raise ValueError(
                f"a module of NNX must have no arrays but its Params, got {kinds}: use LayerNorm in place of BatchNorm"
            )

    def module(self) -> Any:
        """The module of NNX."""
        from flax import nnx

        return nnx.merge(self.graph, self.params, self.others)

    def __call__(self, *args: Any) -> Any:
        """What the module of NNX gives."""
        return self.module()(*args)


def as_equinox(part: Any) -> Any:
    """A module of NNX as one of Equinox; everything else as it is."""
    is_nnx = any(base.__module__.startswith("flax.nnx") for base in type(part).__mro__)
    return NNXModule(part) if is_nnx else part
