"""What is static of a model on rows: its function, its structure, its data plate, and what tracing has told."""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax

from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem.models.fingerprint import model_fingerprint
from numpyro_kaem.models.structure import ModelStructure, check_no_plate_dimension, find_data_plate


def leading_axes(data: tuple) -> dict[str, int]:
    """The lengths of the leading axes of arrays among positional arguments, by argument."""
    leaves = jax.tree.leaves_with_path(data)
    return {jax.tree_util.keystr(path): leaf.shape[0] for path, leaf in leaves if getattr(leaf, "shape", ())}


class Program:
    """What a model is apart from its arrays; equal to that of every other model that computes the same.

    It holds no array that the model is given, but for NumPy's among the keyword arguments.

    Args:
        model: a NumPyro model.
        structure: its structure.
        static: positional and keyword arguments, a tuple and a dict, without their arrays.
        plate: name of the data plate, if chosen.
        shapes: of parameters, arrays among the arguments, random key and plate indices.

    Attributes:
        model, structure, static, chosen_plate: the arguments.
        plate, num_data, scale, latent_shapes, observed_names, outside_sites: as in `LatentModel`.
        global_names: observed sites and factors outside the data plate.
        row_axes: the axis of the data plate in the values of each latent site; None without a plate.
        kept: what is found out once, by name.

    Raises:
        ValueError: where the data do not fit the plate, or this is ambiguous.
    """

    def __init__(self, model: Callable, structure: ModelStructure, static: Any, plate: str | None, shapes: tuple):
        self.model, self.structure, self.static, self.chosen_plate = model, structure, static, plate
        self._shapes = shapes
        self.kept: dict[str, Any] = {}
        _, (data, _), _, _ = shapes
        lengths = leading_axes(data)
        self.plate, self.outside_sites = find_data_plate(structure, set(lengths.values()), plate)
        self.num_data, self.scale = 1, 1.0
        if self.plate is not None:
            check_no_plate_dimension(structure, self.plate)
            size, self.num_data = structure.plates[self.plate]
            if any(length not in (size, self.num_data) for length in lengths.values()):
                raise ValueError(
                    f"plate {self.plate!r} has {size} rows, {self.num_data} of them at hand, but the positional "
                    f"data have leading axes {lengths} by argument: the data axis leads; the plate of a "
                    "minibatch x takes subsample_size=len(x); what is not data per row is a keyword argument"
                )
            self.scale = size / self.num_data
        latents = structure.latent_sites
        self.row_axes = {name: None if self.plate is None else self.row_axis(name) for name in latents}
        self.latent_shapes = {name: self.datum_shape(name, site.shape) for name, site in latents.items()}
        observed = [name for name, site in structure.sites.items() if site.is_observed]
        outside = [name for name in observed if self.plate not in structure.sites[name].plates]
        self.global_names = () if self.plate is None else tuple(outside)
        self.observed_names = tuple(name for name in observed if name not in self.global_names)

    def row_axis(self, name: str) -> int:
        """The axis of the data plate in the values of a site."""
        site = self.structure.sites[name]
        return site.plates[self.plate] - site.event_dim

    def datum_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a latent site without the axis of the data plate."""
        axis = self.row_axes[name]
        return shape if axis is None else shape[: len(shape) + axis] + shape[len(shape) + axis + 1 :]

    @cached_property
    def computes(self) -> SameProgram:
        """The model function, equal to all that compute the same with arguments of these shapes."""
        params, arrays, rng_key, plate_indices = self._shapes
        data, model_kwargs = eqx.combine(arrays, self.static)
        fingerprint: Hashable = model_fingerprint(self.model, params, data, model_kwargs, rng_key, plate_indices)
        return SameProgram(self.model, (self.plate, fingerprint))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.computes == other.computes)

    def __hash__(self) -> int:
        return hash(self.computes)
