"""A NumPyro model as a program on rows of data: run on any number of them, read per row."""

from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions.transforms import Transform, biject_to
from numpyro.handlers import seed, substitute, trace

from numpyro_kaem.models.data import as_arrays
from numpyro_kaem.models.fingerprint import model_fingerprint
from numpyro_kaem.models.scans import CountScans, step_of_scan
from numpyro_kaem.models.staging import StagedFunction
from numpyro_kaem.models.structure import (
    CURES,
    check_no_plate_dimension,
    check_parameter_names,
    find_data_plate,
    inspect_model,
    masks_of,
    scaled_log_prob,
    unmasked,
)

Latents = dict[str, ArrayLike]
# End of the names of sites by which latents hand on the log-determinants of their transforms.
_LOG_DET = "$log_det"


class RowProgram:
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
        structure: the model's static structure.
        plate, num_data, scale, rows, latent_shapes, observed_names, outside_sites: as in `LatentModel`.
        uncut_rows: as `rows`, of all positional data.
        global_names: observed sites and factors outside the data plate.

    Raises:
        ValueError: as `LatentModel`.
    """

    def __init__(
        self,
        model: Callable,
        params: dict[str, Any],
        data: tuple,
        model_kwargs: dict[str, Any],
        plate: str | None,
        rng_key: Array,
    ):
        self.model, self.params, self.rng_key = model, params, rng_key
        self.plate_name = plate
        data = as_arrays("data", data)
        self.model_kwargs = model_kwargs = as_arrays("model_kwargs", model_kwargs)
        # Inside a jit, NumPy arrays would become traced values; here they stay known.
        with jax.core.eval_context():
            self.data = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, data)
        self.uncut_rows = jax.tree.map(lambda leaf: leaf if _is_cut(leaf) else None, self.data)
        lengths = {jax.tree_util.keystr(p): x.shape[0] for p, x in jax.tree.leaves_with_path(self.uncut_rows)}
        if 0 in lengths.values():
            raise ValueError(f"the positional data have no rows: leading axes by argument {lengths}")

        structure = self.structure = inspect_model(model, params, self.data, model_kwargs, rng_key)
        check_parameter_names(structure, params)
        self.plate, self.outside_sites = find_data_plate(structure, set(lengths.values()), plate)
        latents = structure.latent_sites
        if self.plate is None:
            self.num_data, self.scale, self.rows = 1, 1.0, self.uncut_rows
            self._axes = dict.fromkeys(latents)
        else:
            check_no_plate_dimension(structure, self.plate)
            size, self.num_data = structure.plates[self.plate]
            self.scale = size / self.num_data
            self.rows = self._cut(lengths, size)
            self._axes = {name: self.row_axis(name) for name in latents}
        self.latent_shapes = {name: self._datum_shape(name, site.shape) for name, site in latents.items()}
        observed = [name for name, site in structure.sites.items() if site.is_observed]
        outside = [name for name in observed if self.plate not in structure.sites[name].plates]
        self.global_names = () if self.plate is None else tuple(outside)
        self.observed_names = tuple(name for name in observed if name not in self.global_names)

    def _cut(self, lengths: dict[str, int], size: int) -> tuple:
        """The positional data at the plate's rows: indexed where they lead with the plate's size."""
        if any(length not in (size, self.num_data) for length in lengths.values()):
            raise ValueError(
                f"plate {self.plate!r} has {size} rows, {self.num_data} of them at hand, but the positional "
                f"data have leading axes {lengths} by argument: the data axis leads; the plate of a "
                "minibatch x takes subsample_size=len(x); what is not data per row is a keyword argument"
            )
        if size == self.num_data:
            return self.uncut_rows
        indices = self.structure.plate_indices[self.plate]
        return jax.tree.map(lambda leaf: leaf[indices] if leaf.shape[0] == size else leaf, self.uncut_rows)

    @property
    def one_index(self) -> Array:
        """The plate index of a single row."""
        return jnp.zeros(1, int)

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
        params: dict[str, Any] | None = None,
        key: Array | None = None,
        unconstrained: bool = False,
    ) -> tuple[dict[str, dict], ArrayLike]:
        """Run the model on k rows.

        Args:
            latents: values with leading axis k; sites left out are drawn.
            rows: positional data with leading axis k, or what the model itself cuts at `row_indices`.
            row_indices: k indices of the data plate; `[0]` by default.
            params: in place of `self.params`.
            key: in place of `self.rng_key`.
            unconstrained: whether `latents` holds unconstrained coordinates.

        Returns:
            The trace, and the log-determinant of the transforms that constrained the latents.
        """
        row_indices = self.one_index if row_indices is None else row_indices
        values = {**(self.params if params is None else params), **self.structure.plate_indices}

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
                u = self._insert_rows(latents[name], self._unconstrained_axis(name, transform))
                u = u if step is None else u[step]
                value = transform(u)
                # What is traced in the body of a scan or cond comes out of it as the value of a site.
                numpyro.deterministic(name + _LOG_DET, jnp.sum(transform.log_abs_det_jacobian(u, value)))
                if step is not None:
                    return value
            else:
                value = self._insert_rows(latents[name], self._axes[name])
            shape = self._datum_shape(name, jnp.shape(value))
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
        total = 0.0
        for name in self.latent_shapes:
            if is_adjusted(sites[name]):
                total += jnp.sum(self._correction_terms(sites, name), -1)
        return total

    def _correction_terms(self, sites: dict[str, dict], name: str) -> Array:
        kept, drawn, fn = self.site_terms(sites, name), self.draw_terms(sites, name), sites[name]["fn"]
        if masks_of(fn) and name not in self.counted_sites:
            return kept - self._terms(sites, name, fn.log_prob(sites[name]["value"]))
        # Outside of the support the prior is zero, and nothing makes up for that.
        return jnp.where(jnp.isfinite(drawn), kept - drawn, 0.0)

    @cached_property
    def adjusted_sites(self) -> tuple[str, ...]:
        """The latent sites that a mask or a handler's scale alters, by a run that is traced to find out."""
        found = []

        def run(latents: Latents, rows: tuple) -> None:
            sites, _ = self.run(latents, rows)
            found.extend(name for name in latents if is_adjusted(sites[name]))

        jax.eval_shape(run, *self.staged.args)
        return tuple(found)

    @cached_property
    def counted_sites(self) -> tuple[str, ...]:
        """The latent sites that an observed value or a factor depends on."""
        factors = [name for name in self.observed_names if self.structure.sites[name].is_factor]
        latents, _ = self.staged.uses(lambda out: (out["observed"], [out["likelihood"][name] for name in factors]))
        return tuple(name for name, used in latents.items() if used)

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

    @cached_property
    def staged(self) -> StagedFunction:
        """The run on one row as a traced function of latents and rows.

        Its outputs are log-probabilities by site, the observed ones' at a value that is no datum, so that
        data enter through the distributions only (`prior`, `likelihood`, `global`), and the values,
        distributions and scales of a datum's observed sites (`observed`, `distributions`, `scales`).
        """

        def run(latents: Latents, rows: tuple) -> dict[str, dict[str, Any]]:
            sites, _ = self.run(latents, rows)
            blind = dict(sites)
            for name in self.observed_names:
                value = sites[name]["value"]
                blind[name] = {**sites[name], "value": jnp.zeros(jnp.shape(value), jnp.result_type(value))}
            return {
                "prior": {name: self.site_log_probs(sites, name) for name in latents},
                "likelihood": {name: self.site_log_probs(blind, name) for name in self.observed_names},
                "global": {name: scaled_log_prob(sites[name]) for name in self.global_names},
                "observed": {name: self._observed_value(sites[name]) for name in self.observed_names},
                "distributions": {name: sites[name]["fn"] for name in self.observed_names},
                "scales": {name: sites[name]["scale"] for name in self.observed_names},
            }

        def one_row() -> tuple[Latents, tuple]:
            dtypes = {name: site.dtype for name, site in self.structure.latent_sites.items()}
            latents = {name: jnp.zeros(shape, dtypes[name]) for name, shape in self.latent_shapes.items()}
            return self.lead((latents, self.first_row))

        return StagedFunction(run, *jax.eval_shape(one_row))

    @cached_property
    def fingerprint(self) -> Hashable:
        """What the model computes, see `model_fingerprint`, and which plate is the data's."""
        given = self.params, self.data, self.model_kwargs, self.rng_key, self.structure.plate_indices
        return self.plate, model_fingerprint(self.model, *given)

    def draw_latents(
        self, key: Array, rows: tuple, params: dict[str, Any] | None = None, unconstrained: bool = False
    ) -> Latents:
        """One draw of the latents from their prior, given one row of data."""
        sites, _ = self.run({}, rows, key=key, params=params)
        if unconstrained:
            return {name: self.unconstrained_datum(name, sites[name]) for name in self.latent_shapes}
        return {name: self.datum(name, sites[name]["value"]) for name in self.latent_shapes}

    def draw_and_tell(self, key: Array, rows: tuple) -> tuple[Latents, Latents]:
        """One draw in unconstrained coordinates, and which of these rounding has put on the end of their support."""
        sites, _ = self.run({}, rows, key=key)
        coordinates = {name: self.unconstrained_datum(name, sites[name]) for name in self.latent_shapes}
        return coordinates, {name: self._is_at_end(name, sites[name]) for name in self.latent_shapes}

    def _is_at_end(self, name: str, site: dict) -> Array:
        """Of each unconstrained coordinate, whether numbers are too few about a value for it to move."""
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
        axis = self._unconstrained_axis(name, transform)
        return at_end if axis is None else jnp.squeeze(at_end, axis)

    def datum(self, name: str, value: Array) -> Array:
        """The value of a latent site in a run on one row, without the data plate's axis."""
        axis = self._axes[name]
        if axis is not None and value.shape[axis] != 1:
            raise ValueError(f"site {name!r}: one row of data gives latents of shape {value.shape}. {self.cures()}")
        return value if axis is None else jnp.squeeze(value, axis)

    def unconstrained_datum(self, name: str, site: dict) -> Array:
        """As `datum`, in unconstrained coordinates."""
        transform = biject_to(site["fn"].support)
        value, axis = transform.inv(site["value"]), self._unconstrained_axis(name, transform)
        return value if axis is None else jnp.squeeze(value, axis)

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
        return jax.tree.map(
            lambda original, leaf: original if leaf is None else leaf,
            self.data,
            self.checked_rows(rows),
            is_leaf=lambda leaf: leaf is None,
        )

    def _insert_rows(self, value: Array, axis: int | None) -> Array:
        return value if axis is None else jnp.moveaxis(value, 0, axis)

    def _datum_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        axis = self._axes[name]
        return shape if axis is None else shape[: len(shape) + axis] + shape[len(shape) + axis + 1 :]

    def _unconstrained_axis(self, name: str, transform: Transform) -> int | None:
        """Where the data plate is in unconstrained coordinates, which may have other event dimensions."""
        axis = self._axes[name]
        return axis if axis is None else axis + transform.codomain.event_dim - transform.domain.event_dim

    def _observed_value(self, site: dict) -> Array:
        """The value of an observed site in a run on one row, without the data plate's axis."""
        shape = jnp.broadcast_shapes(jnp.shape(site["value"]), site["fn"].shape())
        value = jnp.broadcast_to(site["value"], shape)
        if self.plate is None:
            return value
        return jnp.squeeze(value, self.row_axis(site["name"]))

    def row_axis(self, name: str) -> int:
        """The axis of the data plate in the values of a site."""
        site = self.structure.sites[name]
        return site.plates[self.plate] - site.event_dim


def is_adjusted(site: dict) -> bool:
    """Whether a latent site has a mask or a handler's scale, and so counts for more or less than it is drawn with."""
    scale = site["scale"]
    is_scaled = not (scale is None or (isinstance(scale, int | float) and scale == 1.0))
    return is_scaled or bool(masks_of(site["fn"]))


def _is_cut(leaf: Any) -> bool:
    """Whether a leaf of the positional data has a leading axis."""
    return isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim > 0
