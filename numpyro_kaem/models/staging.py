"""Functions traced once to a jaxpr, asked what each output depends on and evaluated in part."""

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.interpreters.partial_eval import dce_jaxpr


def abstract(tree: Any) -> Any:
    """Shapes and dtypes in place of the leaves of a tree."""

    def of_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        aval = jax.typeof(leaf)
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=aval.weak_type)

    return jax.tree.map(of_leaf, tree)


@jax.tree_util.register_static
class Static:
    """A part of a traced function's output that is no array: it comes out of the trace in the tree's structure."""

    def __init__(self, value: Any):
        self.value = value


class StagedFunction:
    """A function traced once, of which any part of the output can be analysed or evaluated alone.

    Dead-code elimination keeps the equations that the selected outputs need. What is left tells which arguments they
    depend on (never too few), and running it costs nothing for the outputs that were left out. `outputs` is the tree of
    its outputs, with numbers in place of arrays.
    """

    def __init__(self, fn: Callable, *args: Any):
        self.args = abstract(args)
        leaves, structure = jax.tree.flatten(self.args)

        # Of leaves alone: JAX hashes the structure of arguments, and the hash of a model takes further traces of it.
        def of_leaves(*leaves: Any) -> Any:
            return fn(*jax.tree.unflatten(structure, leaves))

        closed, shapes = jax.make_jaxpr(of_leaves, return_shape=True)(*leaves)
        self._jaxpr, self._consts = closed.jaxpr, closed.consts
        structs, treedef = jax.tree.flatten(shapes)
        self.outputs = jax.tree.unflatten(treedef, range(len(structs)))

    def depends(self, select: Callable[[Any], Any], argument: int) -> bool:
        """Whether the outputs that `select` picks from the output tree use the given positional argument."""
        return any(jax.tree.leaves(self.uses(select)[argument]))

    def uses(self, select: Callable[[Any], Any]) -> tuple:
        """Whether the outputs that `select` picks use each leaf of the arguments, in a tuple of trees like these."""
        _, used_inputs = self._eliminate(select)
        return jax.tree.unflatten(jax.tree.structure(self.args), used_inputs)

    def evaluate(self, select: Callable[[Any], Any], *args: Any) -> Any:
        """The outputs that `select` picks; arguments they do not depend on may be shapes only."""
        jaxpr, used_inputs = self._eliminate(select)
        inputs = [leaf for leaf, used in zip(jax.tree.leaves(args), used_inputs, strict=True) if used]
        outputs = jaxpr_as_fun(ClosedJaxpr(jaxpr, self._consts))(*inputs)
        indices, treedef = jax.tree.flatten(select(self.outputs))
        by_index = dict(zip(sorted(set(indices)), outputs, strict=True))
        return jax.tree.unflatten(treedef, [by_index[index] for index in indices])

    def _eliminate(self, select: Callable[[Any], Any]) -> tuple[Any, list[bool]]:
        selected = set(jax.tree.leaves(select(self.outputs)))
        return dce_jaxpr(self._jaxpr, [index in selected for index in range(len(self._jaxpr.outvars))])
