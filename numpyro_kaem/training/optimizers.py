"""The optimiser of a training run: one for all parameters or one for each label, and gradient accumulation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array
from numpyro.optim import _NumPyroOptim

from numpyro_kaem._compilation.fingerprint import fingerprint
from numpyro_kaem.checks import check_count


def build_optimizer(optimizer: Any, labels: Callable[[str], str] | None, accumulate: int) -> Any:
    """The optimiser that NumPyro's `SVI` is given, from what `fit` is given."""
    check_count("accumulate", accumulate, 1)
    if isinstance(optimizer, Mapping):
        optimizer = _by_label(dict(optimizer), labels or (lambda site: site.removesuffix("$params")))
    elif labels is not None:
        raise ValueError("labels need a dict of optimisers: optimizer={'energy': optax.adam(1e-3), ...}")
    if accumulate == 1:
        return optimizer
    if not isinstance(optimizer, optax.GradientTransformation):
        raise ValueError("accumulate needs an optimiser of Optax, got one of NumPyro")
    return optax.MultiSteps(optimizer, accumulate).gradient_transformation()


def optimizer_fingerprint(optim: _NumPyroOptim, params: dict[str, Any]) -> Hashable:
    """What an optimiser computes for parameters of these shapes: two of `optax.adam(1e-3)` are two closures."""

    def use(params: dict[str, Any]) -> Any:
        def loss(params: dict[str, Any]) -> tuple[Array, None]:
            return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), None

        state = optim.init(params)
        return state, optim.eval_and_update(loss, state)

    return fingerprint(jax.make_jaxpr(use)(params))


def _by_label(optimizers: dict[str, Any], labels: Callable[[str], str]) -> Any:
    def label_sites(params: dict[str, Any]) -> dict[str, str]:
        chosen = {site: labels(site) for site in params}
        if unknown := {site: label for site, label in chosen.items() if label not in optimizers}:
            raise ValueError(
                f"optimizer has entries for {sorted(optimizers)}, but parameter sites have labels {unknown}: add an "
                "entry, or pass labels, a function from the name of a site to a key"
            )
        if unused := set(optimizers) - set(chosen.values()):
            raise ValueError(
                f"optimizer has entries for {sorted(unused)}, but parameter sites have only the labels "
                f"{sorted(set(chosen.values()))}: remove them, or see whether they are spelt as the model does"
            )
        return chosen

    return optax.multi_transform(optimizers, label_sites)
