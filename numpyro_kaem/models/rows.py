"""A NumPyro model with its values, as a pytree: run on any number of rows of its data, read per row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro.contrib.control_flow.scan import scan_wrapper
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.handlers import infer_config, seed, substitute, trace
from numpyro.primitives import Messenger

from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem.models.data import as_arrays
from numpyro_kaem.models.fingerprint import Program
from numpyro_kaem.models.staging import abstract
from numpyro_kaem.models.structure import (
    CURES,
    ModelStructure,
    check_no_plate_dimension,
    check_parameter_names,
    find_data_plate,
    inspect_model,
    scaled_log_prob,
    unmasked,
)

Latents = dict[str, ArrayLike]
# End of the names of sites by which latents hand on the log-determinants of their transforms.
_LOG_DET = "$log_det"
_LENGTH = "_length_of_reversed_scan"


class _CountScans(Messenger):
    """Tell the sites in the body of a reversed scan how long it is.

    NumPyro counts steps from zero in the order in which they are taken, and stacks values in the order of the data: in
    a reversed scan the last come first.
    """

    def process_message(self, msg: dict) -> None:
        """Mark what is in the body of a reversed scan."""
        if msg["type"] != "control_flow" or msg["fn"] is not scan_wrapper:
            return
        function, init, xs, length, is_reversed = msg["args"]
        if is_reversed:
            length = jax.tree.leaves(xs)[0].shape[0] if length is None else length
            marked = infer_config(function, config_fn=lambda site: {_LENGTH: length})
            msg["args"] = marked, init, xs, length, is_reversed


def _step_of_scan(site: dict) -> Any:
    """The index of a site among the values of its scan, in the order of the data; None outside of scans."""
    step, length = site["infer"].get("_scan_current_index"), site["infer"].get(_LENGTH)
    return step if step is None or length is None else length - 1 - step


class RowModel(eqx.Module):
    """A NumPyro model that runs on k rows of its data and k latents, its plate indices substituted.

    Where no plate holds every latent site the whole data set is the one row, and there is no leading axis. `arrays` are
    those of positional and keyword arguments, `global_names` the observed sites and factors outside the data plate.
    """

    params: dict[str, Any]
    arrays: Any
    rng_key: Array
    plate_indices: dict[str, Array]
    plate: str | None = eqx.field(static=True)
    num_data: int = eqx.field(static=True)
    scale: float = eqx.field(static=True)
    observed_names: tuple[str, ...] = eqx.field(static=True)
    global_names: tuple[str, ...] = eqx.field(static=True)
    outside_sites: tuple[str, ...] = eqx.field(static=True)
    _program: Program = eqx.field(static=True)

    def __init__(
        self,
        model: Callable,
        params: dict[str, Any],
        data: tuple,
        model_kwargs: dict[str, Any],
        plate: str | None,
        rng_key: Array,
    ):
        params = parameter_arrays(params)
        data, model_kwargs = data_arrays(data), as_arrays("model_kwargs", model_kwargs)
        arrays, static = eqx.partition((data, model_kwargs), eqx.is_array)
        self.params, self.arrays, self.rng_key = params, arrays, rng_key
        lengths = {jax.tree_util.keystr(p): x.shape[0] for p, x in jax.tree.leaves_with_path(self.uncut_rows)}
        if 0 in lengths.values():
            raise ValueError(f"the positional data have no rows: leading axes by argument {lengths}")

        structure = inspect_model(model, params, arrays, static, rng_key)
        check_parameter_names(structure, params)
        self.plate, self.outside_sites = find_data_plate(structure, set(lengths.values()), plate)
        self.num_data, self.scale = 1, 1.0
        if self.plate is not None:
            check_no_plate_dimension(structure, self.plate)
            size, self.num_data = structure.plates[self.plate]
            self.scale = size / self.num_data
            if any(length not in (size, self.num_data) for length in lengths.values()):
                raise ValueError(
                    f"plate {self.plate!r} has {size} rows, {self.num_data} of them at hand, but the positional "
                    f"data have leading axes {lengths} by argument: the data axis leads; the plate of a "
                    "minibatch x takes subsample_size=len(x); what is not data per row is a keyword argument"
                )
        observed = [name for name, site in structure.sites.items() if site.is_observed]
        outside = [name for name in observed if self.plate not in structure.sites[name].plates]
        self.global_names = () if self.plate is None else tuple(outside)
        self.observed_names = tuple(name for name in observed if name not in self.global_names)
        self.plate_indices = structure.staged.evaluate(lambda values: values["plate"], params, arrays, rng_key)
        shapes = abstract((params, arrays, rng_key, self.plate_indices))
        self._program = Program(model, structure, static, self.plate or plate, shapes)

    # A model is equal to itself alone, so that `jax.jit` takes its methods.
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other

    @property
    def model(self) -> Callable:
        """The NumPyro model."""
        return self._program.model

    @property
    def data(self) -> tuple:
        """The model's positional arguments."""
        return eqx.combine(self.arrays, self._program.static)[0]

    @property
    def model_kwargs(self) -> dict[str, Any]:
        """The model's keyword arguments."""
        return eqx.combine(self.arrays, self._program.static)[1]

    @property
    def structure(self) -> ModelStructure:
        """What is static of the model's sites and plates."""
        return self._program.structure

    @property
    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each latent site for one datum."""
        return {name: self._datum_shape(name, site.shape) for name, site in self.structure.latent_sites.items()}

    @property
    def as_argument(self) -> SameProgram:
        """The model function as an argument of compiled functions: equal to all that compute the same."""
        return self._program.computes

    @property
    def uncut_rows(self) -> tuple:
        """The positional arrays with a leading axis; None in place of all else."""
        return jax.tree.map(lambda leaf: leaf if leaf.ndim else None, self.arrays[0])

    @property
    def rows(self) -> tuple:
        """As `uncut_rows`, at the plate's rows: indexed where they lead with the plate's size."""
        if self.scale == 1.0:
            return self.uncut_rows
        size, indices = self.structure.plates[self.plate][0], self.plate_indices[self.plate]
        return jax.tree.map(lambda leaf: leaf[indices] if leaf.shape[0] == size else leaf, self.uncut_rows)

    @property
    def first_row(self) -> tuple:
        """One row of the data at hand, without leading axis."""
        return self.rows if self.plate is None else jax.tree.map(lambda leaf: leaf[0], self.rows)

    def lead(self, datum: Any) -> Any:
        """Give one datum the leading axis of a run on one row."""
        return datum if self.plate is None else jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], datum)

    def run(
        self,
        latents: Latents,
        rows: tuple,
        row_indices: Array | None = None,
        *,
        key: Array | None = None,
        unconstrained: bool = False,
    ) -> tuple[dict[str, dict], ArrayLike]:
        """The trace of the model on k rows, and the log-determinant of the transforms that constrained its latents.

        Latents that are left out are drawn. `rows` lead with k, or are what the model itself cuts at `row_indices`.
        """
        row_indices = jnp.zeros(1, int) if row_indices is None else row_indices
        values = {**self.params, **self.plate_indices}

        def value_of(site: dict) -> Any:
            name = site["name"]
            if site["type"] == "plate" and name == self.plate:
                # NumPyro warns where the declared sub-sample size is not that of the substituted indices.
                site["args"] = (site["args"][0], row_indices.shape[0])
                return row_indices
            if name not in latents:
                return values.get(name)
            step = _step_of_scan(site)
            if unconstrained:
                transform = biject_to(site["fn"].support)
                u = _insert_rows(latents[name], self._unconstrained_axis(name, transform))
                u = u if step is None else u[step]
                value = transform(u)
                # What is traced in the body of a scan or cond comes out of it as the value of a site.
                numpyro.deterministic(name + _LOG_DET, jnp.sum(transform.log_abs_det_jacobian(u, value)))
                if step is not None:
                    return value
            else:
                value = _insert_rows(latents[name], self.row_axis(name))
            shape = self._datum_shape(name, jnp.shape(value))
            if shape != self.latent_shapes[name]:
                raise ValueError(
                    f"latent site {name!r} has shape {self.latent_shapes[name]} for one datum, got {shape}"
                )
            return value if step is None else value[step]

        model = seed(substitute(_CountScans(self.model), substitute_fn=value_of), self.rng_key if key is None else key)
        # What is not cut completes the positional arguments.
        sites = trace(model).get_trace(*eqx.combine(self.checked_rows(rows), self.data), **self.model_kwargs)
        for name, site in self.structure.sites.items():
            if self.plate in site.plates:
                # The plate's own factor is kept apart; a handler's scale stays with its site.
                size, num_rows = sites[self.plate]["args"]
                if size != num_rows:
                    sites[name]["scale"] = sites[name]["scale"] / (size / num_rows)
        # `handlers.scope` has put its prefix before these, too.
        log_dets = [sites.pop(name)["value"] for name in list(sites) if name.endswith(_LOG_DET)]
        return sites, sum(map(jnp.sum, log_dets))

    def site_log_probs(self, sites: dict[str, dict], name: str) -> Array:
        """The log-probability of a site, without the plate's scale, for each row of a run."""
        return jnp.sum(self.site_terms(sites, name), -1)

    def site_terms(self, sites: dict[str, dict], name: str) -> Array:
        """The terms of `site_log_probs`, along a last axis."""
        return self._terms(sites, name, scaled_log_prob(sites[name]))

    def draw_terms(self, sites: dict[str, dict], name: str) -> Array:
        """The terms of the log-density with which a latent site is drawn: without masks and scales."""
        site = sites[name]
        return self._terms(sites, name, unmasked(site["fn"]).log_prob(site["value"]))

    def _terms(self, sites: dict[str, dict], name: str, terms: Array) -> Array:
        if self.plate is None:
            return terms.reshape(-1)
        _, num_rows = sites[self.plate]["args"]
        dim = self.structure.sites[name].plates[self.plate]
        if terms.ndim < -dim or terms.shape[dim] != num_rows:
            raise ValueError(
                f"site {name!r}: with {num_rows} row(s) of data its log-probability has shape {terms.shape}, "
                f"where axis {dim} is that of plate {self.plate!r}. {self.cures()}"
            )
        return jnp.moveaxis(terms, dim, 0).reshape(num_rows, -1)

    def cures(self) -> str:
        """What to do about rows that do not stand alone."""
        suspects = [name for name in self.structure.parameters if self.may_vary_by_row(self.params.get(name))]
        return CURES + (f" (Parameters as long as the plate: {', '.join(suspects)}.)" if suspects else "")

    def may_vary_by_row(self, value: Any) -> bool:
        """Whether a parameter has an axis as long as the plate."""
        size = self.structure.plates[self.plate][0]
        return size > 1 and any(size in jnp.shape(leaf) for leaf in jax.tree.leaves(value))

    def draw_latents(self, key: Array, rows: tuple) -> Latents:
        """One draw of the latents from their prior, given one row of data."""
        return self.read_latents(self.run({}, rows, key=key)[0])

    def read_latents(self, sites: dict[str, dict], unconstrained: bool = False) -> Latents:
        """The latents in a run on one row, without the data plate's axis, maybe in unconstrained coordinates."""
        if unconstrained:
            return {name: self._coordinates(name, sites[name]) for name in self.latent_shapes}
        return {name: self.datum(name, sites[name]["value"]) for name in self.latent_shapes}

    def at_end(self, sites: dict[str, dict]) -> Latents:
        """Of each unconstrained coordinate in a run on one row, whether values are too few for it to move."""
        return {name: self._is_at_end(name, sites[name]) for name in self.latent_shapes}

    def datum(self, name: str, value: Array) -> Array:
        """The value of a latent site in a run on one row, without the data plate's axis."""
        axis = self.row_axis(name)
        if axis is not None and value.shape[axis] != 1:
            raise ValueError(f"site {name!r}: one row of data gives latents of shape {value.shape}. {self.cures()}")
        return drop_row(value, axis)

    def row_axis(self, name: str) -> int | None:
        """The axis of the data plate in the values of a site; None where there is no data plate."""
        site = self.structure.sites[name]
        return None if self.plate is None else site.plates[self.plate] - site.event_dim

    def _datum_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self.row_axis(name)
        return shape if axis is None else shape[: len(shape) + axis] + shape[len(shape) + axis + 1 :]

    def check_latent_names(self, latents: Latents) -> None:
        """Raise a ValueError unless there is a value for each latent site and none for others."""
        if set(latents) != set(self.latent_shapes):
            raise ValueError(f"the latent sites are {sorted(self.latent_shapes)}, got {sorted(latents)}")

    def checked_rows(self, rows: tuple) -> tuple:
        """Positional data of the shapes of construction, in its dtypes; None in place of what is not cut."""
        if len(rows) != len(self.uncut_rows):
            raise ValueError(f"the model takes {len(self.uncut_rows)} positional arguments, got {len(rows)}")
        first = 0 if self.plate is None else 1

        def check(original: Array | None, leaf: Any) -> Array | None:
            if original is None:
                return None
            leaf = jnp.asarray(leaf)
            if leaf.shape[first:] != original.shape[first:]:
                raise ValueError(f"a datum has shape {original.shape[first:]}, got {leaf.shape[first:]}")
            return leaf.astype(original.dtype)

        return jax.tree.map(check, self.uncut_rows, rows, is_leaf=lambda leaf: leaf is None)

    def _is_at_end(self, name: str, site: dict) -> Array:
        transform, value = biject_to(site["fn"].support), site["value"]
        u = transform.inv(value)
        if self.structure.sites[name].is_unbounded:
            at_end = jnp.zeros(u.shape, bool)
        else:
            # NumPyro takes what underflows for the smallest number that there is, of which this is the logarithm.
            at_end = ~(jnp.abs(u) < -0.97 * jnp.log(jnp.finfo(u.dtype).tiny))
            # Elsewhere an end is where the next number is far away. Every other element has its turn, because sums and
            # differences of neighbours count in some supports.
            turn = jnp.arange(value.size).reshape(value.shape) % 2
            for moved in (0, 1):
                beside = jnp.where(turn == moved, value * (1 - jnp.finfo(value.dtype).eps), value)
                at_end |= ~(jnp.abs(transform.inv(beside) - u) < 0.5)
        return drop_row(at_end, self._unconstrained_axis(name, transform))

    def _coordinates(self, name: str, site: dict) -> Array:
        transform = biject_to(site["fn"].support)
        return drop_row(transform.inv(site["value"]), self._unconstrained_axis(name, transform))

    def _unconstrained_axis(self, name: str, transform: Transform) -> int | None:
        """Where the data plate is in unconstrained coordinates, which may have other event dimensions."""
        axis = self.row_axis(name)
        return axis if axis is None else axis + transform.codomain.event_dim - transform.domain.event_dim


def _insert_rows(value: Array, axis: int | None) -> Array:
    return value if axis is None else jnp.moveaxis(value, 0, axis)


def drop_row(value: Array, axis: int | None) -> Array:
    """What a run on one row has given, without the axis of the data plate."""
    return value if axis is None else jnp.squeeze(value, axis)


def data_arrays(data: tuple) -> tuple:
    """A model's positional arguments, with arrays of JAX for all that holds numbers but for Python's own."""
    return _on_device(as_arrays("data", data), np.ndarray)


def parameter_arrays(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters as arrays of JAX."""
    return _on_device(params, np.ndarray | np.generic | bool | int | float | complex)


def _on_device(tree: Any, kinds: Any) -> Any:
    """A tree with arrays of JAX in place of leaves of these types, whose values are known inside of a jit too."""
    with jax.core.eval_context():
        return jax.tree.map(lambda leaf: jnp.asarray(leaf) if isinstance(leaf, kinds) else leaf, tree)
