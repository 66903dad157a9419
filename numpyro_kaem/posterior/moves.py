"""One step of a datum's chains at all rungs: what samplers and training objectives share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from numpyro_kaem.posterior.kernel import Kernel, Move, ProposalKernel, Tuning
from numpyro_kaem.posterior.target import Point, Target, map_batched


def move_or_draw(
    target: Target,
    kernel: Kernel,
    keys: Array,
    row: tuple,
    points: Point,
    tuning: Tuning,
    draws: Float[Array, "C dim"] | None,
) -> tuple[Point, Float[Array, " K"], Int[Array, ""]]:
    """One step of the C chains of a datum at K rungs, the lowest to `draws` if given; acceptance, and what diverged."""
    if draws is not None and isinstance(kernel, ProposalKernel):
        places = jnp.broadcast_to(draws[:, None], points.position.shape)
        is_lowest = jnp.arange(len(tuning.temperature)) == 0
        return move_or_place(target, kernel, keys, row, points, tuning, (places, is_lowest))
    evaluate = partial(target.evaluate, row=row)

    def move(key: Array, point: Point, tuning: Tuning) -> Move:
        return kernel.step(key, point, *tuning, evaluate)

    if draws is not None:
        keys, points = jax.tree.map(lambda x: x[:, 1:], (keys, points))
        tuning = jax.tree.map(lambda x: x[1:], tuning)
    moved, acceptance, divergent = _over_states(move, target.batch_size, (keys, points), (tuning,))
    acceptance, divergences = acceptance.mean(0), divergent.sum()
    if draws is not None:
        fresh = map_batched(evaluate, target.batch_size, draws)
        moved = jax.tree.map(lambda a, b: jnp.concatenate([a[:, None], b], 1), fresh, moved)
        acceptance = jnp.concatenate([jnp.ones(1, acceptance.dtype), acceptance])
    return moved, acceptance, divergences


def move_or_place(
    target: Target,
    kernel: ProposalKernel,
    keys: Array,
    row: tuple,
    points: Point,
    tuning: Tuning,
    placing: tuple[Float[Array, "C K dim"], Bool[Array, " K"]],
) -> tuple[Point, Float[Array, " K"], Int[Array, ""]]:
    """As `move_or_draw`, by a kernel that proposes; some rungs go to places instead: `placing` is these, and which."""
    places, is_placed = placing

    def move(key, point, place, tuning, is_placed):
        return kernel.step_or_place(key, point, tuning, partial(target.evaluate, row=row), place, is_placed)

    moved, acceptance, divergent = _over_states(move, target.batch_size, (keys, points, places), (tuning, is_placed))
    return moved, acceptance.mean(0), divergent.sum()


def _over_states(move: Callable, batch_size: int, of_states: tuple, of_rungs: tuple) -> Any:
    """Apply `move` to the states `(C, K)` of a datum, at most so many at once; other arguments are by rung, `(K,)`."""
    num_chains, num_rungs = jax.tree.leaves(of_states)[0].shape[:2]
    if not batch_size or batch_size >= num_chains * num_rungs:
        over_rungs = jax.vmap(move)
        return jax.vmap(lambda *states: over_rungs(*states, *of_rungs))(*of_states)
    of_rungs = jax.tree.map(lambda x: jnp.broadcast_to(x, (num_chains, *x.shape)), of_rungs)
    flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), (*of_states, *of_rungs))
    moved = map_batched(move, batch_size, *flat)
    return jax.tree.map(lambda x: x.reshape(num_chains, num_rungs, *x.shape[1:]), moved)
