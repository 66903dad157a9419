"""Programs that run without this package: StableHLO by `jax.export`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from numpyro_kaem.checks import check_count
from numpyro_kaem.kaem.model import Parts, draw
from numpyro_kaem.kaem.priors import from_uniforms, num_uniforms

SAMPLE, TRANSFORM, ABOUT = "sample.stablehlo", "from_uniforms.stablehlo", "about.json"
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def export(parts: Parts, path: str | os.PathLike, num_samples: int, platforms: Sequence[str]) -> None:
    """Write both programs, and what they take and give, to a folder."""
    check_count("num_samples", num_samples, 1)
    platforms = tuple(platforms)
    if not platforms or not set(platforms) <= set(PLATFORMS):
        raise ValueError(f"platforms must be some of {PLATFORMS}, got {list(platforms)!r}")
    try:
        import flatbuffers  # noqa: F401  # which jax.export needs, and JAX does not install
    except ImportError as error:
        raise ImportError("KAEM.export needs flatbuffers: pip install 'numpyro_kaem[export]'") from error

    # What the prior is made of is computed here, once, and not inside the programs.
    drawn = parts.drawn

    def sample(seed: Array) -> Array:
        return draw.function(parts, jax.random.key(seed), num_samples, False)

    def transform(u: Array) -> Array:
        z = from_uniforms(drawn.prior, u)
        return jax.vmap(lambda z: drawn.mean(z[None]))(z)

    u = jax.ShapeDtypeStruct((num_samples, num_uniforms(drawn.prior)), jnp.result_type(float))
    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    programs = {
        name: jax.export.export(jax.jit(function), platforms=platforms)(argument)
        for name, function, argument in ((TRANSFORM, transform, u), (SAMPLE, sample, seed))
    }
    about: dict[str, Any] = {"platforms": platforms, "jax": jax.__version__}
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    for name, program in programs.items():
        (folder / name).write_bytes(program.serialize())
        about[name] = {
            "takes": [[str(aval.dtype), list(aval.shape)] for aval in program.in_avals],
            "gives": [[str(aval.dtype), list(aval.shape)] for aval in program.out_avals],
        }
    (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n")
