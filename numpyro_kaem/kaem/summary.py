"""A text table of a model."""

from __future__ import annotations

import equinox as eqx
import jax

from numpyro_kaem.kaem.model import Parts


def summary(parts: Parts, shape: tuple[int, ...]) -> str:
    """Sample sites with their distributions and shapes, parameter sites with shapes and numbers, and the total."""
    prior = parts.prior_distribution
    rows = [
        ("site", "kind", "shape", "parameters"),
        ("z", f"latents, {_family(prior)}", _text(prior.event_shape), ""),
        ("x", f"data, {type(parts.likelihood).__name__}", _text(shape), ""),
    ]
    total = 0
    for site, value in (parts.params | (parts.encoder_params or {})).items():
        leaves = [leaf for leaf in jax.tree.leaves(value) if eqx.is_inexact_array(leaf)]
        number = sum(leaf.size for leaf in leaves)
        part = getattr(parts, site.removesuffix("$params"), None)
        kind = "array" if part is None else _family(part)
        rows.append((site.removesuffix("$params"), kind, " ".join(_text(leaf.shape) for leaf in leaves), f"{number:,}"))
        total += number
    rows.append(("total", "", "", f"{total:,}"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d:>10}" for a, b, c, d in rows]
    rule = "-" * max(map(len, lines))
    return "\n".join(line.rstrip() for line in (lines[0], rule, *lines[1:-1], rule, lines[-1]))


def _family(prior: object) -> str:
    while hasattr(prior, "base_dist"):
        prior = prior.base_dist
    return type(prior).__name__


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "1"
