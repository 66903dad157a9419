"""A NumPyro model with its values, as a pytree: run on any number of rows of its data, read per row."""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import wraps
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.handlers import seed, substitute, trace

from numpyro_kaem._compilation.fingerprint import SameProgram
from numpyro_kaem.models.data import as_arrays
from numpyro_kaem.models.program import Program, leading_axes
from numpyro_kaem.models.scans import CountScans, step_of_scan
from numpyro_kaem.models.staging import StagedFunction, abstract
from numpyro_kaem.models.structure import (
    CURES,
    ModelStructure,
    check_parameter_names,
    inspect_model,
    masks_of,
    scaled_log_prob,
    unmasked,
)

Latents = dict[str, ArrayLike]
# End of the names of sites by which latents hand on the log-determinants of their transforms.
_LOG_DET = "$log_det"


def _once(function: Callable) -> property:
    """A property that is found out once, from shapes alone, and kept for the model at all other values."""

    @wraps(function)
    def get(self: RowModel) -> Any:
        kept = self._program.kept
        if function.__name__ not in kept:
            kept[function.__name__] = function(abstract(self))
        return kept[function.__name__]

    return property(get)


class RowModel(eqx.Module):
    """A NumPyro model that runs on k rows of its data and k latents, its plate indices substituted.

    Where no plate holds every latent site the whole data set is the one row, and there is no leading axis.

    Args:
        model: a NumPyro model.
        params: values of parameter and mutable sites, constrained.
        data: positional arguments.
        model_kwargs: keyword arguments.
        plate: name of the data plate, if chosen.
        rng_key: draws sub-sample indices and seeds the model.

    Attributes:
        params, rng_key: as given.
        arrays: what is array of positional and keyword arguments.
        plate_indices: the indices of each plate, drawn once where they are random.

    Raises:
        ValueError: as `LatentModel`.
    """

    params: dict[str, Any]
    arrays: Any
    rng_key: Array
    plate_indices: dict[str, Array]
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
        lengths = leading_axes(data)
        if 0 in lengths.values():
            raise ValueError(f"the positional data have no rows: leading axes by argument {lengths}")
        arrays, static = eqx.partition((data, model_kwargs), eqx.is_array)
        structure = inspect_model(model, params, arrays, static, rng_key)
        check_parameter_names(structure, params)
        self.params, self.arrays, self.rng_key = params, arrays, rng_key
        self.plate_indices = structure.staged.evaluate(lambda values: values["plate"], params, arrays, rng_key)
        shapes = abstract((params, arrays, rng_key, self.plate_indices))
        self._program = Program(model, structure, static, plate, shapes)

    @abc.abstractmethod
    def at(self, *, params: dict[str, Any] | None = None, data: tuple | None = None, key: Array | None = None) -> Self:
        """The same model at other parameters, data or key."""

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
    def plate(self) -> str | None:
        """Name of the data plate."""
        return self._program.plate

    @property
    def num_data(self) -> int:
        """Number of rows at hand."""
        return self._program.num_data

    @property
    def scale(self) -> float:
        """How many data of the plate each row stands for."""
        return self._program.scale

    @property
    def latent_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each latent site for one datum."""
        return self._program.latent_shapes

    @property
    def observed_names(self) -> tuple[str, ...]:
        """The observed sites and factors of a datum."""
        return self._program.observed_names

    @property
    def global_names(self) -> tuple[str, ...]:
        """The observed sites and factors outside the data plate."""
        return self._program.global_names

    @property
    def outside_sites(self) -> tuple[str, ...]:
        """The latent sites outside the data plate."""
        return self._program.outside_sites

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
        """Run the model on k rows.

        Args:
            latents: values with leading axis k; sites left out are drawn.
            rows: positional data with leading axis k, or what the model itself cuts at `row_indices`.
            row_indices: k indices of the data plate; `[0]` by default.
            key: in place of `self.rng_key`.
            unconstrained: whether `latents` holds unconstrained coordinates.

        Returns:
            The trace, and the log-determinant of the transforms that constrained the latents.
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
            step = step_of_scan(site)
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
                value = _insert_rows(latents[name], self._program.row_axes[name])
            shape = self._program.datum_shape(name, jnp.shape(value))
            if shape != self.latent_shapes[name]:
                raise ValueError(
                    f"latent site {name!r} has shape {self.latent_shapes[name]} for one datum, got {shape}"
                )
            return value if step is None else value[step]

        model = seed(substitute(CountScans(self.model), substitute_fn=value_of), self.rng_key if key is None else key)
        sites = trace(model).get_trace(*self._arguments(rows), **self.model_kwargs)
        for name, site in self.structure.sites.items():
            if self.plate in site.plates:
                # The plate's own factor is kept apart; a handler's scale stays with its site.
                size, num_rows = sites[self.plate]["args"]
                if size != num_rows:
                    sites[name]["scale"] = sites[name]["scale"] / (size / num_rows)
        if not unconstrained:
            return sites, 0.0
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

    def correction(self, sites: dict[str, dict]) -> ArrayLike:
        """What masks and scales of latent sites add to the log-likelihood of each row of a run.

        Of a scale, what NumPyro's joint density has more or less than the density of draws. Of a mask the same where an
        observed value or a factor depends on the site, which counts it there; nothing where none does: what is masked
        is drawn and counted nowhere.
        """
        adjusted = (name for name in self.latent_shapes if _is_adjusted(sites[name]))
        return sum((jnp.sum(self._correction_terms(sites, name), -1) for name in adjusted), 0.0)

    def _correction_terms(self, sites: dict[str, dict], name: str) -> Array:
        kept, drawn, fn = self.site_terms(sites, name), self.draw_terms(sites, name), sites[name]["fn"]
        if masks_of(fn) and name not in self.counted_sites:
            return kept - self._terms(sites, name, fn.log_prob(sites[name]["value"]))
        # Outside of the support the prior is zero, and nothing makes up for that.
        return jnp.where(jnp.isfinite(drawn), kept - drawn, 0.0)

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

    @_once
    def _staged(self) -> StagedFunction:
        """The run on one row as a traced function of the model, latents and rows.

        Its outputs are log-probabilities by site, the observed ones' at a value that is no datum, so that
        data enter through the distributions only (`prior`, `likelihood`, `global`), the values, distributions and
        scales of a datum's observed sites (`observed`, `distributions`, `scales`).
        """

        def run(model: RowModel, latents: Latents, rows: tuple) -> dict[str, dict[str, Any]]:
            sites, _ = model.run(latents, rows)
            blind = dict(sites)
            for name in model.observed_names:
                value = sites[name]["value"]
                blind[name] = {**sites[name], "value": jnp.zeros(jnp.shape(value), jnp.result_type(value))}
            return {
                "prior": {name: model.site_log_probs(sites, name) for name in latents},
                "likelihood": {name: model.site_log_probs(blind, name) for name in model.observed_names},
                "global": {name: scaled_log_prob(sites[name]) for name in model.global_names},
                "observed": {name: model._observed_value(sites[name]) for name in model.observed_names},
                "distributions": {name: sites[name]["fn"] for name in model.observed_names},
                "scales": {name: sites[name]["scale"] for name in model.observed_names},
            }

        return StagedFunction(run, self, *self.one_row)

    @_once
    def one_row(self) -> tuple[dict[str, jax.ShapeDtypeStruct], tuple]:
        """The shapes of latents and rows of a run on one row."""
        lead = () if self.plate is None else (1,)
        latents = {
            name: jax.ShapeDtypeStruct((*lead, *self.latent_shapes[name]), site.dtype)
            for name, site in self.structure.latent_sites.items()
        }
        rows = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((*lead, *leaf.shape[len(lead) :]), leaf.dtype), self.uncut_rows
        )
        return latents, rows

    def evaluate(self, select: Callable[[dict], Any], latents: Latents | None, rows: tuple) -> Any:
        """What `select` picks of a traced run on one row, see `_staged`; without latents what needs none."""
        latents = self.one_row[0] if latents is None else latents
        return self._staged.evaluate(select, self, latents, rows)

    def depends_on_latents(self, select: Callable[[dict], Any]) -> bool:
        """Whether what `select` picks of a traced run depends on the latents."""
        return self._staged.depends(select, 1)

    def depends_on_data(self, select: Callable[[dict], Any]) -> bool:
        """Whether what `select` picks of a traced run depends on the rows."""
        return self._staged.depends(select, 2)

    def latents_used(self, select: Callable[[dict], Any]) -> tuple[str, ...]:
        """The latent sites that what `select` picks of a traced run depends on."""
        _, latents, _ = self._staged.uses(select)
        return tuple(name for name, used in latents.items() if used)

    @_once
    def adjusted_sites(self) -> tuple[str, ...]:
        """The latent sites that a mask or a handler's scale alters."""
        found = []

        def run(model: RowModel, latents: Latents, rows: tuple) -> None:
            sites, _ = model.run(latents, rows)
            found.extend(name for name in latents if _is_adjusted(sites[name]))

        StagedFunction(run, self, *self.one_row)
        return tuple(found)

    @_once
    def counted_sites(self) -> tuple[str, ...]:
        """The latent sites that an observed value or a factor depends on."""
        factors = [name for name in self.observed_names if self.structure.sites[name].is_factor]
        return self.latents_used(lambda out: (out["observed"], [out["likelihood"][name] for name in factors]))

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
        axis = self._program.row_axes[name]
        if axis is not None and value.shape[axis] != 1:
            raise ValueError(f"site {name!r}: one row of data gives latents of shape {value.shape}. {self.cures()}")
        return _drop_row(value, axis)

    def row_axis(self, name: str) -> int:
        """The axis of the data plate in the values of a site."""
        return self._program.row_axis(name)

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

    def _arguments(self, rows: tuple) -> tuple:
        """The model's positional arguments: `rows` completed by what is not cut."""
        return eqx.combine(self.checked_rows(rows), self.data)

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
        return _drop_row(at_end, self._unconstrained_axis(name, transform))

    def _coordinates(self, name: str, site: dict) -> Array:
        transform = biject_to(site["fn"].support)
        return _drop_row(transform.inv(site["value"]), self._unconstrained_axis(name, transform))

    def _unconstrained_axis(self, name: str, transform: Transform) -> int | None:
        """Where the data plate is in unconstrained coordinates, which may have other event dimensions."""
        axis = self._program.row_axes[name]
        return axis if axis is None else axis + transform.codomain.event_dim - transform.domain.event_dim

    def _observed_value(self, site: dict) -> Array:
        """The value of an observed site in a run on one row, without the data plate's axis."""
        shape = jnp.broadcast_shapes(jnp.shape(site["value"]), site["fn"].shape())
        axis = None if self.plate is None else self.row_axis(site["name"])
        return _drop_row(jnp.broadcast_to(site["value"], shape), axis)


def _insert_rows(value: Array, axis: int | None) -> Array:
    return value if axis is None else jnp.moveaxis(value, 0, axis)


def _drop_row(value: Array, axis: int | None) -> Array:
    return value if axis is None else jnp.squeeze(value, axis)


def _is_adjusted(site: dict) -> bool:
    """Whether a latent site has a mask or a handler's scale, and so counts for more or less than it is drawn with."""
    scale = site["scale"]
    is_scaled = not (scale is None or (isinstance(scale, int | float) and scale == 1.0))
    return is_scaled or bool(masks_of(site["fn"]))


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
