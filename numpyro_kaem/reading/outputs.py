"""Functions of latents that are read: what they return is checked before anything is compiled."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Shaped

from numpyro_kaem.reading.product import Product


def output_shape(function: Callable, product: Product) -> tuple[int, ...]:
    """The shape of what a function makes of one latent of a product.

    Raises:
        TypeError: for what is no function.
        ValueError: unless it is made of JAX operations and maps (n, *latent) to one array (n, *output) for every n.
    """
    if not callable(function):
        raise TypeError(f"function must be a function of latents, such as kaem.decode, got {function!r}")
    dtype = jax.eval_shape(product.icdf, jax.ShapeDtypeStruct((1, product.size), float)).dtype
    shapes = []
    for n in (2, 3):
        try:
            output = jax.eval_shape(function, jax.ShapeDtypeStruct((n, *product.shape), dtype))
        except jax.errors.JAXTypeError as error:
            raise ValueError("function must be made of JAX operations, which run inside of a compiled one") from error
        if not hasattr(output, "shape"):
            raise ValueError(f"function must return one array, got {output}")
        if output.shape[:1] != (n,):
            raise ValueError(
                f"function must map latents of shape (n, {', '.join(map(str, product.shape))}) to an array whose first "
                f"axis is n, too; of n = {n} it made the shape {output.shape}: use jax.vmap(function)"
            )
        if not jnp.issubdtype(output.dtype, jnp.number) and output.dtype != bool:
            raise ValueError(f"function must return numbers, got {output.dtype}")
        if jnp.issubdtype(output.dtype, jnp.complexfloating):
            raise ValueError("function must return real numbers: take real and imaginary parts as two outputs")
        if 0 in output.shape:
            raise ValueError(f"function must return at least one number for each latent, got the shape {output.shape}")
        shapes.append(output.shape[1:])
    if shapes[0] != shapes[1]:
        raise ValueError(
            "function must return outputs of one shape, whatever the number of latents; of 2 and 3 it made those of "
            f"shape {shapes[0]} and {shapes[1]}"
        )
    return shapes[0]


def outputs_at(function: Callable, z: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """What a function makes of latents, as floating-point numbers of at least 32 bits."""
    output = function(z)
    return output.astype(jnp.promote_types(output.dtype, jnp.float32))


def check_finite(outputs: Shaped[np.ndarray, "n ..."], z: Shaped[np.ndarray, "n ..."]) -> None:
    """Raise an error that names the first latent at which an output is NaN or infinite."""
    is_bad = ~np.isfinite(outputs.reshape(len(outputs), -1)).all(axis=1)
    if is_bad.any():
        raise_not_finite(z[np.argmax(is_bad)])


def raise_not_finite(z: Shaped[np.ndarray, "..."]) -> None:
    """Raise the error for a latent at which an output is NaN or infinite."""
    raise ValueError(
        f"function must return finite numbers, but it makes NaN or infinity of the latent z = "
        f"{np.array2string(z, threshold=40, separator=', ')}"
    )
