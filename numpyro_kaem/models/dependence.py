"""What depends on what in a model, by a run on one row that is traced once for all values of its arrays."""

from __future__ import annotations

import abc
from collections.abc import Callable
from functools import wraps
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from numpyro_kaem.models.rows import Latents, RowModel, drop_row
from numpyro_kaem.models.staging import StagedFunction, Static, abstract
from numpyro_kaem.models.structure import masks_of, scaled_log_prob


def _once(function: Callable) -> property:
    """A property that is found out once, from shapes alone, and kept for the model at all other values."""

    @wraps(function)
    def get(self: TracedModel) -> Any:
        kept = self._program.kept
        if function.__name__ not in kept:
            kept[function.__name__] = function(abstract(self))
        return kept[function.__name__]

    return property(get)


def output(kind: str, name: str) -> Callable[[dict], Any]:
    """Selects one site's entry of a traced run, see `TracedModel._staged`."""
    return lambda out: out[kind][name]


class TracedModel(RowModel):
    """A model on rows that tells what its densities depend on."""

    @abc.abstractmethod
    def at(
        self, *, params: dict[str, Any] | None = None, data: tuple | None = None, key: Array | None = None
    ) -> TracedModel:
        """The same model at other parameters, data or key."""

    @_once
    def _staged(self) -> StagedFunction:
        """The run on one row as a traced function of the model, latents and rows.

        Of its log-probabilities by site the observed ones' are at a value that is no datum, so that data enter through
        the distributions only.
        """

        def run(model: TracedModel, latents: Latents, rows: tuple) -> dict[str, dict[str, Any]]:
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

        def run(model: TracedModel, latents: Latents, rows: tuple) -> Static:
            sites, _ = model.run(latents, rows)
            return Static(tuple(name for name in latents if _is_adjusted(sites[name])))

        return StagedFunction(run, self, *self.one_row).outputs.value

    @_once
    def counted_sites(self) -> tuple[str, ...]:
        """The latent sites that an observed value or a factor depends on."""
        factors = [name for name in self.observed_names if self.structure.sites[name].is_factor]
        return self.latents_used(lambda out: (out["observed"], [out["likelihood"][name] for name in factors]))

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

    def _observed_value(self, site: dict) -> Array:
        """The value of an observed site in a run on one row, without the data plate's axis."""
        shape = jnp.broadcast_shapes(jnp.shape(site["value"]), site["fn"].shape())
        return drop_row(jnp.broadcast_to(site["value"], shape), self.row_axis(site["name"]))


def _is_adjusted(site: dict) -> bool:
    """Whether a latent site has a mask or a handler's scale, and so counts for more or less than it is drawn with."""
    scale = site["scale"]
    is_scaled = not (scale is None or (isinstance(scale, int | float) and scale == 1.0))
    return is_scaled or bool(masks_of(site["fn"]))
