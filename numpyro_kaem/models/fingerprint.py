"""What a NumPyro model computes, as a value by which compiled programs are kept."""

import contextlib
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array
from numpyro.distributions.transforms import biject_to
from numpyro.handlers import seed, substitute, trace

from numpyro_kaem._compilation.fingerprint import SameProgram, fingerprint, has_custom_rules, value_of
from numpyro_kaem.models.staging import Static
from numpyro_kaem.models.structure import ModelStructure, layers, scaled_log_prob


class Program:
    """What a model is apart from its arrays; equal to that of every other model that computes the same.

    It holds no array that the model is given, but for NumPy's among the keyword arguments. What is found out once for
    all values of the arrays is in `kept`, by name.
    """

    def __init__(self, model: Callable, structure: ModelStructure, static: Any, plate: str | None, shapes: tuple):
        self.model, self.structure, self.static, self.plate, self._shapes = model, structure, static, plate, shapes
        self.kept: dict[str, Any] = {}

    @cached_property
    def computes(self) -> SameProgram:
        """The model function, equal to all that compute the same with arguments of these shapes."""
        params, arrays, rng_key, plate_indices = self._shapes
        data, model_kwargs = eqx.combine(arrays, self.static)
        computes = model_fingerprint(self.model, params, data, model_kwargs, rng_key, plate_indices)
        return SameProgram(self.model, (self.plate, computes))

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Program) and self.computes == other.computes)

    def __hash__(self) -> int:
        return hash(self.computes)


def model_fingerprint(
    model: Callable,
    params: dict[str, Any],
    data: tuple,
    model_kwargs: dict[str, Any],
    rng_key: Array | jax.ShapeDtypeStruct,
    plate_indices: dict[str, Any],
) -> Hashable:
    """What a model or guide computes: equal for those that do the same with arguments of these shapes.

    It holds two runs as JAX has traced them: one draws the latents, the other finds the densities of latents and
    observed sites, and their derivatives where a function in the model has rules of its own for these. What the model
    closes over is in them: JAX's large arrays by identity, all other constants by content.
    """
    is_array = lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct)  # noqa: E731
    arrays, static = eqx.partition((params, data, model_kwargs), is_array)

    def run(arrays: Any, key: Array, indices: dict, latents: dict[str, Array]) -> dict[str, dict]:
        params, data, model_kwargs = eqx.combine(arrays, static)
        model_at_values = seed(substitute(model, data={**params, **indices, **latents}), key)
        return trace(model_at_values).get_trace(*data, **model_kwargs)

    def draws(arrays: Any, key: Array, indices: dict) -> tuple[dict[str, Array], Static]:
        sites = run(arrays, key, indices, {})
        latents = {name: site["value"] for name, site in sites.items() if _is_latent(site)}
        return latents, Static(tuple((name, _description(site)) for name, site in sites.items()))

    def densities(*inputs: Any) -> tuple[Array, dict[str, Any]]:
        computed = {name: _computed(site) for name, site in run(*inputs).items()}
        terms = (jnp.sum(x["log_prob"]) for x in computed.values() if "log_prob" in x)
        return sum(terms, jnp.zeros(())), computed

    def derivatives(*inputs: Any) -> Any:
        return eqx.filter_value_and_grad(lambda inputs: densities(*inputs), has_aux=True)(inputs)

    inputs = arrays, rng_key, plate_indices
    drawing, (latents, described) = jax.make_jaxpr(draws, return_shape=True)(*inputs)
    program = drawing if has_custom_rules(drawing) else jax.make_jaxpr(densities)(*inputs, latents)
    if has_custom_rules(program):
        program = jax.make_jaxpr(derivatives)(*inputs, latents)
    return value_of(static), described.value, fingerprint(drawing), fingerprint(program)


def _is_latent(site: dict) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _description(site: dict) -> Hashable:
    """What is static about a traced site: its distribution's classes, and the plates around it."""
    classes = tuple(map(type, layers(site["fn"]))) if site["type"] == "sample" else ()
    frames = tuple((frame.name, frame.dim, frame.size) for frame in site.get("cond_indep_stack", ()))
    return site["type"], site.get("is_observed", False), classes, frames


def _computed(site: dict) -> dict[str, Any]:
    """What a model computes at a site."""
    if site["type"] != "sample":
        return {"value": eqx.filter(site["value"], eqx.is_array_like)}
    computed = {"value": site["value"], "log_prob": scaled_log_prob(site)}
    if _is_latent(site):
        # A support without a transform is refused where one is needed.
        with contextlib.suppress(NotImplementedError):
            transform = biject_to(site["fn"].support)
            u = transform.inv(site["value"])
            z = transform(u)
            computed |= {"u": u, "z": z, "log_det": transform.log_abs_det_jacobian(u, z)}
    return computed
