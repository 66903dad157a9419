"""The self-check of a latent model: does each row stand alone?"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from numpyro_kaem._compilation.options import RUN_ONCE, known_options
from numpyro_kaem._compilation.programs import jit_by_program, passes_once
from numpyro_kaem.models.dependence import TracedModel, output
from numpyro_kaem.models.staging import StagedFunction
from numpyro_kaem.models.structure import CURES, initial_values


def check_rows_stand_alone(model: TracedModel) -> None:
    """Compare, site by site, a run on two rows with runs on each of them, at draws from the prior.

    Values are needed: with traced parameters the model's own initial ones are used, with traced data there is no
    comparison.
    """
    for name in model.global_names:
        if model.depends_on_latents(output("global", name)):
            raise ValueError(
                f"site {name!r} is outside plate {model.plate!r} but depends on latents inside it. {model.cures()}"
            )
    if model.plate is None or _is_traced(model.arrays):
        return
    if _is_traced((model.params, model.rng_key)):
        # Not jax.ensure_compile_time_eval, which would run the model op by op. A model that closes over
        # traced values cannot be run at all.
        with jax.core.eval_context(), contextlib.suppress(jax.errors.UnexpectedTracerError):
            key = jax.random.key(0)
            _compare(model.at(params=initial_values(model.model, model.data, model.model_kwargs, key), key=key))
        return
    # Samplers read a model again at every call.
    passes_once(model.as_argument.computes, lambda: _compare(model))


def check_constants_are_constant(model: TracedModel) -> None:
    """Check that the unknown normalising constants of latent sites depend on no latents: then they cancel."""
    for name in model.structure.unnormalized_sites:
        used = model.latents_used(output("prior", name))
        if others := [other for other in used if other != name]:
            raise ValueError(
                f"latent site {name!r} has a density that is not normalised and depends on the latents {others}: its "
                "unknown normalising constant depends on them too, and posteriors would be wrong; give it a normalised "
                "distribution, or make its energy and reference parameters"
            )


def check_latents_are_drawn(model: TracedModel) -> None:
    """Check that latents are drawn, and not fixed by a handler that samplers would not respect."""

    def check() -> None:
        _, rows = model.one_row
        staged = StagedFunction(lambda key, rows: model.draw_latents(key, rows), model.rng_key, rows)
        for name, shape in model.latent_shapes.items():
            if 0 not in shape and not staged.depends(itemgetter(name), 0):
                raise ValueError(
                    f"draws of latent site {name!r} do not depend on the random key: handlers.seed, substitute or "
                    "replay, or dist.Delta, has fixed its value. Pass the model without handlers.seed; to fix a site "
                    "use handlers.condition, which counts its density, or handlers.do, which does not"
                )

    passes_once((model.as_argument.computes, "draws"), check)


def check_priors_are_proper(model: TracedModel) -> None:
    """Check that what a mask hides of a latent site is counted elsewhere, or that nothing observed depends on it.

    Values are needed where masks are arrays: with traced ones there is no check.
    """
    for name, site in model.structure.latent_sites.items():
        if not site.is_masked:
            continue
        if name in model.counted_sites:
            if _masked_elements(model, name, informed=False):
                raise ValueError(
                    f"latent site {name!r} is masked, and has elements that no observed value counts either, so that "
                    "their prior is improper: make a latent of the missing values alone, or leave the latent unmasked "
                    "and mask the observed site where values are missing"
                )
            continue
        is_used = name in model.latents_used(lambda out: out["likelihood"])
        if is_used and (site.is_masked_out or _masked_elements(model, name, informed=True)):
            raise ValueError(
                f"latent site {name!r} is masked, and so has an improper prior, from which nothing can be drawn, "
                "though observed sites depend on it: give it a proper distribution without a mask, such as a wide "
                "dist.Normal; a mask for missing data belongs on observed sites"
            )


def _masked_elements(model: TracedModel, name: str, informed: bool) -> bool:
    """Whether a latent site has elements in any row that its mask hides and the likelihood depends on, or does not."""
    if _is_traced((model.params, model.arrays, model.rng_key)):
        return False

    def of_draw(model: TracedModel, key: Array, row: tuple) -> Array:
        rows = model.lead(row)
        z = model.draw_latents(key, rows)

        def gradient(terms: Callable) -> Array:
            def total(value: Array) -> Array:
                sites, _ = model.run(model.lead({**z, name: value}), rows)
                return sum((jnp.sum(x) for x in terms(sites)), jnp.zeros(()))

            return jax.grad(total)(z[name])

        drawn = gradient(lambda sites: [model.draw_terms(sites, name)])
        counted = gradient(lambda sites: [model.site_terms(sites, name)])
        observed = gradient(lambda sites: [model.site_terms(sites, site) for site in model.observed_names])
        return (drawn != 0) & (counted == 0) & ((observed != 0) == informed)

    def check_priors(model: TracedModel, keys: Array) -> Array:
        def of_row(key: Array, row: tuple) -> Array:
            # A derivative may vanish at a draw.
            draws = jax.vmap(lambda key: of_draw(model, key, row))(jax.random.split(key, 3))
            return jnp.any(jnp.any(draws, 0) if informed else jnp.all(draws, 0))

        return of_row(keys[0], model.rows) if model.plate is None else jnp.any(jax.vmap(of_row)(keys, model.rows))

    keys = jax.random.split(jax.random.key(0), model.num_data)
    return bool(jit_by_program(check_priors, compiler_options=RUN_ONCE)(model, keys))


class _CompletedSites(Messenger):
    """Notes the last sample site that a run completed."""

    last: str | None = None

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "sample":
            self.last = msg["name"]


@contextlib.contextmanager
def _errors_name_the_site(model: TracedModel) -> Iterator[None]:
    """Where a model does not run on its rows, say so, and at which site."""
    completed, order = _CompletedSites(), list(model.structure.sites)
    try:
        with completed:
            yield
    except (TypeError, ValueError, AssertionError) as error:
        if CURES in str(error) or isinstance(error, jax.errors.JAXTypeError):
            raise
        next_site = order.index(completed.last) + 1 if completed.last in order else 0
        raise ValueError(
            f"site {order[min(next_site, len(order) - 1)]!r}: the model does not run on one or two rows of "
            f"its data ({error}). {model.cures()}"
        ) from error


def _compare(model: TracedModel) -> None:
    structure, plate = model.structure, model.plate
    # Where the model itself cuts the data, it is given all of them, and the indices of two rows.
    size = structure.plates[plate][0]
    cuts_itself = structure.has_subsample_statement or any(
        leaf.shape[0] == size != model.num_data for leaf in jax.tree.leaves(model.uncut_rows)
    )
    ends = jnp.array([0, model.num_data - 1])
    # A random decoder draws anew for another number of rows, so it is run on the same row twice.
    repeats = 2 if structure.has_random_state else 1
    names = [name for name, site in structure.sites.items() if plate in site.plates]

    leaves, tree = jax.tree.flatten(model.at(params=_generic_values(model)))

    @partial(jax.jit, compiler_options=known_options(RUN_ONCE))
    def log_probs(leaves: list, keys: Array) -> tuple[dict, dict]:
        at = jax.tree.unflatten(tree, leaves)
        rows = jax.tree.map(lambda leaf: leaf[ends], at.rows)

        def of_rows(chosen: Array) -> dict[str, tuple[Array, Array]]:
            if cuts_itself and len(chosen) > 1:
                data, indices = at.uncut_rows, at.plate_indices[plate][ends[chosen]]
            else:
                data, indices = jax.tree.map(lambda leaf: leaf[chosen], rows), jnp.arange(len(chosen))
            sites, _ = at.run({name: z[name][chosen] for name in z}, data, indices)
            terms = {name: at.site_terms(sites, name) for name in names}
            return {name: (jnp.sum(terms[name], -1), jnp.sum(jnp.abs(terms[name]), -1)) for name in names}

        both = jnp.arange(2)
        with _errors_name_the_site(model):
            z = jax.vmap(lambda key, row: at.draw_latents(key, at.lead(row)))(keys, rows)
            alone = jax.vmap(lambda row: of_rows(jnp.full(repeats, row)))(both)
            return of_rows(both), jax.tree.map(lambda value: value[both, both % repeats], alone)

    together, alone = log_probs(leaves, jax.random.split(jax.random.key(0)))
    for name in names:
        (sums, magnitudes), (sums_alone, _) = jax.tree.map(np.asarray, (together[name], alone[name]))
        tolerance = np.sqrt(np.finfo(sums.dtype).eps) * np.maximum(1.0, magnitudes)
        with np.errstate(invalid="ignore"):
            same = np.abs(sums - sums_alone) <= tolerance
        if not np.all(same | (sums == sums_alone) | (np.isnan(sums) & np.isnan(sums_alone))):
            raise ValueError(
                f"site {name!r}: the log-probabilities of two rows are {sums} together, but {sums_alone} "
                f"alone. {model.cures()}"
            )


def _generic_values(model: TracedModel) -> dict[str, Any]:
    """The parameters, those with an axis as long as the plate moved off values equal for all rows."""
    values, generator = dict(model.params), np.random.default_rng(0)
    for name, site in model.structure.parameters.items():
        if model.may_vary_by_row(values[name]):
            transform = biject_to(site.constraint)
            leaves, treedef = jax.tree.flatten(transform.inv(values[name]))
            # By NumPy: JAX would compile a generator for every shape.
            moved = [leaf + 0.1 * generator.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
            values[name] = transform(jax.tree.unflatten(treedef, moved))
    return values


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
