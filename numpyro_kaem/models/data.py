"""What callers pass as a model's data, as arrays: of Series, tables and lists of numbers too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from numpyro_kaem.checks import check_not_masked


class NotAnArray(AttributeError):
    """Something was asked of the columns of a table that arrays cannot give."""


@jax.tree_util.register_pytree_with_keys_class
class Columns(Mapping):
    """The columns of a table, such as a pandas DataFrame, as arrays that can be traced and cut to rows.

    `table["a"]` and `table.a` are arrays; those of the `others`, which hold no numbers, are an error when asked for.
    """

    def __init__(self, arrays: dict[Any, Any], others: tuple = ()):
        self._arrays, self._others = arrays, others

    def __getitem__(self, name: Any) -> Any:
        """A column, or the columns of a list of names."""
        if isinstance(name, list):
            return Columns({one: self[one] for one in name})
        if name in self._others:
            raise NotAnArray(f"column {name!r} holds no numbers: encode it first, as pandas.factorize does")
        return self._arrays[name]

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and (name in self._arrays or name in self._others):
            return self[name]
        raise NotAnArray(
            f"{name!r}: a table is given to the model as arrays by column, {list(self._arrays)}, and is no DataFrame "
            "inside of it"
        )

    def __iter__(self) -> Iterator:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(next(iter(self._arrays.values()), ()))

    @property
    def columns(self) -> list:
        """Names of the columns that hold numbers."""
        return list(self._arrays)

    def to_numpy(self) -> jax.Array:
        """All columns side by side, (num_rows, num_columns)."""
        return jax.numpy.stack(list(self._arrays.values()), -1)

    values = property(to_numpy)  # as pandas has it, and not as Mapping does

    def tree_flatten_with_keys(self) -> tuple[list, tuple]:
        """The columns are the leaves."""
        keys = [(jax.tree_util.DictKey(name), value) for name, value in self._arrays.items()]
        return keys, (tuple(self._arrays), self._others)

    @classmethod
    def tree_unflatten(cls, aux: tuple, leaves: Any) -> Columns:
        """As JAX asks for it."""
        names, others = aux
        return cls(dict(zip(names, leaves, strict=True)), others)


def as_arrays(name: str, tree: Any) -> Any:
    """Data with arrays of NumPy or JAX for Series, tables and lists of numbers; `name` is the caller's argument."""

    def convert(path: tuple, leaf: Any) -> Any:
        label = name + jax.tree_util.keystr(path)
        if is_table(leaf):
            columns = {column: leaf[column].to_numpy() for column in leaf.columns}
            numbers = {column: _as_numbers(values) for column, values in columns.items()}
            others = tuple(column for column, values in numbers.items() if values is None)
            return Columns({column: values for column, values in numbers.items() if values is not None}, others)
        if isinstance(leaf, list):
            leaf = np.asarray(leaf)
        elif isinstance(leaf, jax.Array) or not hasattr(leaf, "__array__"):
            return leaf
        check_not_masked(label, leaf)
        array = np.asarray(leaf)
        numbers = _as_numbers(array)
        if numbers is None:
            raise TypeError(
                f"{label} must hold numbers, got a {type(leaf).__name__} of {array.dtype}: encode text, as "
                "pandas.factorize does, drop or fill in what is missing, and leave out what the model does not use"
            )
        return numbers

    return jax.tree_util.tree_map_with_path(convert, tree, is_leaf=lambda x: is_table(x) or _is_list_of_numbers(x))


def is_table(leaf: Any) -> bool:
    """Whether something is a table with named columns, such as a DataFrame."""
    return hasattr(leaf, "columns") and hasattr(leaf, "to_numpy") and not isinstance(leaf, Columns)


def _is_list_of_numbers(leaf: Any) -> bool:
    """Whether a list, maybe of lists, holds numbers only, and as many in each."""
    if not isinstance(leaf, list) or not leaf:
        return False
    if all(isinstance(x, bool | int | float | np.generic) for x in leaf):
        return True
    return all(map(_is_list_of_numbers, leaf)) and len({np.shape(x) for x in leaf}) == 1


def _as_numbers(array: np.ndarray) -> np.ndarray | None:
    """Numbers that JAX knows; None where there are others, or something is missing."""
    if array.dtype == object:
        try:
            array = array.astype(float)
        except (TypeError, ValueError):
            return None
    known = array.dtype.kind in "biufc" or jax.numpy.issubdtype(array.dtype, jax.numpy.inexact)
    return array if known else None
