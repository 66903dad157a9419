"""The self-check of a latent model: does each row stand alone?"""

import contextlib
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from numpyro.distributions.transforms import biject_to
from numpyro.primitives import Messenger

from numpyro_kaem.compiler_options import RUN_ONCE, known_options
from numpyro_kaem.model_structure import CURES, inspect_model
from numpyro_kaem.programs import passes_once
from numpyro_kaem.row_program import RowProgram


def check_rows_stand_alone(program: RowProgram) -> None:
    """Compare, site by site, a run on two rows with runs on each of them, at draws from the prior.

    Values are needed: with traced parameters the model's own initial ones are used, with traced data there is
    no comparison.

    Args:
        program: a model on rows; nothing is to be compared where it has no data plate.

    Raises:
        ValueError: naming the site whose log-probability for a row depends on anything but the row.
    """
    for name in program.global_names:
        if program.staged.depends(lambda out, name=name: out["global"][name], 0):
            raise ValueError(
                f"site {name!r} is outside plate {program.plate!r} but depends on latents inside it. {program.cures()}"
            )
    if program.plate is None or _is_traced((program.data, program.model_kwargs)):
        return
    if _is_traced((program.params, program.rng_key)):
        # Not jax.ensure_compile_time_eval, which would run the model op by op. A model that closes over
        # traced values cannot be run at all.
        with jax.core.eval_context(), contextlib.suppress(jax.errors.UnexpectedTracerError):
            key = jax.random.key(0)
            structure = inspect_model(program.model, {}, program.data, program.model_kwargs, key)
            params = structure.initial_state()
            _compare(RowProgram(program.model, params, program.data, program.model_kwargs, program.plate, key))
        return
    # Samplers read a model again at every call.
    passes_once(program.fingerprint, lambda: _compare(program))


def check_constants_are_constant(program: RowProgram) -> None:
    """Check that the unknown normalising constants of latent sites depend on no latents: then they cancel.

    Raises:
        ValueError: naming a site that is not normalised and the latents that its distribution depends on.
    """
    for name in program.structure.unnormalized_sites:
        latents, _ = program.staged.uses(lambda out, name=name: out["prior"][name])
        if others := [other for other, used in latents.items() if used and other != name]:
            raise ValueError(
                f"latent site {name!r} has a density that is not normalised and depends on the latents {others}: its "
                "unknown normalising constant depends on them too, and posteriors would be wrong; give it a normalised "
                "distribution, or make its energy and reference parameters"
            )


class _CompletedSites(Messenger):
    """Notes the last sample site that a run completed."""

    last: str | None = None

    def postprocess_message(self, msg: dict) -> None:
        if msg["type"] == "sample":
            self.last = msg["name"]


def _compare(program: RowProgram) -> None:
    structure, plate = program.structure, program.plate
    # Where the model itself cuts the data, it is given all of them, and the indices of two rows.
    size = structure.plates[plate][0]
    cuts_itself = structure.has_subsample_statement or any(
        leaf.shape[0] == size != program.num_data for leaf in jax.tree.leaves(program.uncut_rows)
    )
    ends = jnp.array([0, program.num_data - 1])
    # A random decoder draws anew for another number of rows, so it is run on the same row twice.
    repeats = 2 if structure.has_random_state else 1
    names = [name for name, site in structure.sites.items() if plate in site.plates]

    @partial(jax.jit, compiler_options=known_options(RUN_ONCE))
    def log_probs(params: dict, rows: tuple, all_rows: tuple, keys: Array) -> tuple[dict, dict]:
        def of_rows(chosen: Array) -> dict[str, tuple[Array, Array]]:
            if cuts_itself and len(chosen) > 1:
                data, indices = all_rows, structure.plate_indices[plate][ends[chosen]]
            else:
                data, indices = jax.tree.map(lambda leaf: leaf[chosen], rows), jnp.arange(len(chosen))
            sites, _ = program.run({name: z[name][chosen] for name in z}, data, indices, params=params)
            terms = {name: program.site_terms(sites, name) for name in names}
            return {name: (jnp.sum(terms[name], -1), jnp.sum(jnp.abs(terms[name]), -1)) for name in names}

        z = jax.vmap(lambda key, row: program.draw_latents(key, program.lead(row), params))(keys, rows)
        both = jnp.arange(2)
        alone = jax.vmap(lambda row: of_rows(jnp.full(repeats, row)))(both)
        return of_rows(both), jax.tree.map(lambda value: value[both, both % repeats], alone)

    completed = _CompletedSites()
    rows = jax.tree.map(lambda leaf: leaf[ends], program.rows)
    try:
        with completed:
            together, alone = log_probs(
                _generic_values(program),
                rows,
                program.uncut_rows,
                jax.random.split(jax.random.key(0)),
            )
    except (TypeError, ValueError, AssertionError) as error:
        if CURES in str(error) or isinstance(error, jax.errors.JAXTypeError):
            raise
        order = list(structure.sites)
        next_site = order.index(completed.last) + 1 if completed.last in order else 0
        raise ValueError(
            f"site {order[min(next_site, len(order) - 1)]!r}: the model does not run on one or two rows of "
            f"its data ({error}). {program.cures()}"
        ) from error
    for name in names:
        (sums, magnitudes), (sums_alone, _) = jax.tree.map(np.asarray, (together[name], alone[name]))
        tolerance = np.sqrt(np.finfo(sums.dtype).eps) * np.maximum(1.0, magnitudes)
        with np.errstate(invalid="ignore"):
            same = np.abs(sums - sums_alone) <= tolerance
        if not np.all(same | (sums == sums_alone) | (np.isnan(sums) & np.isnan(sums_alone))):
            raise ValueError(
                f"site {name!r}: the log-probabilities of two rows are {sums} together, but {sums_alone} "
                f"alone. {program.cures()}"
            )


def _generic_values(program: RowProgram) -> dict[str, Any]:
    """The parameters, those with an axis as long as the plate moved off values equal for all rows."""
    values, generator = dict(program.params), np.random.default_rng(0)
    for name, site in program.structure.parameters.items():
        if program.may_vary_by_row(values[name]):
            transform = biject_to(site.constraint)
            leaves, treedef = jax.tree.flatten(transform.inv(values[name]))
            # By NumPy: JAX would compile a generator for every shape.
            moved = [leaf + 0.1 * generator.normal(size=leaf.shape).astype(leaf.dtype) for leaf in leaves]
            values[name] = transform(jax.tree.unflatten(treedef, moved))
    return values


def _is_traced(tree: Any) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))
