"""Convolutions rewritten for compiled loops are the same convolutions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from prior_cases import quick_jit

from numpyro_kaem._numerics.convolutions import channels_last

LAYOUTS = {
    "channels first": (("NCHW", "OIHW", "NCHW"), (3, 4, 9, 8), (6, 4, 3, 2)),
    "channels last": (("NHWC", "HWIO", "NHWC"), (3, 9, 8, 4), (3, 2, 4, 6)),
    "mixed": (("NCHW", "HWOI", "HWNC"), (3, 4, 9, 8), (3, 2, 6, 4)),
    "one dimension": (("NCW", "OIW", "NCW"), (3, 4, 9), (6, 4, 3)),
}
OPTIONS = {
    "plain": {"window_strides": 1, "padding": "SAME"},
    "strided": {"window_strides": 2, "padding": "VALID"},
    "transposed": {"window_strides": 1, "padding": (2, 1), "lhs_dilation": 2},
    "dilated": {"window_strides": 1, "padding": "SAME", "rhs_dilation": 2},
}


def _normal(shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def _assert_the_same(gradient, inputs, kernel):
    """Whether the rewritten function has the values of the plain one, both compiled in one program."""
    actual, expected = quick_jit(lambda *inputs: (channels_last(gradient)(*inputs), gradient(*inputs)))(inputs, kernel)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


def _convolution(layout, options):
    numbers, lhs, rhs = LAYOUTS[layout]
    num_space = len(lhs) - 2
    options = {name: value if isinstance(value, str) else (value,) * num_space for name, value in options.items()}
    inputs, kernel = _normal(lhs), _normal(rhs)

    def convolve(inputs, kernel):
        return jax.lax.conv_general_dilated(inputs, kernel, dimension_numbers=numbers, **options)

    return convolve, inputs, kernel


def _layouts(text):
    return {line.split("dim_labels=")[1].split(",")[0] for line in text.splitlines() if "dim_labels=" in line}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients_stay(layout, options):
    convolve, inputs, kernel = _convolution(layout, OPTIONS[options])

    def loss(inputs, kernel):
        return jnp.sum(jnp.sin(convolve(inputs, kernel)))

    _assert_the_same(jax.value_and_grad(loss, (0, 1)), inputs, kernel)


def test_groups_stay():
    inputs, kernel = _normal((2, 6, 9, 9)), _normal((12, 2, 3, 3))

    def loss(inputs, kernel):
        outputs = jax.lax.conv_general_dilated(inputs, kernel, (1, 1), "SAME", feature_group_count=3)
        return jnp.sum(jnp.sin(outputs))

    _assert_the_same(jax.grad(loss, (0, 1)), inputs, kernel)


@pytest.mark.parametrize("loop", ["scan", "while", "cond in vmap"])
def test_the_bodies_of_loops_compile_to_the_fast_layout(loop):
    convolve, inputs, kernel = _convolution("channels first", OPTIONS["plain"])
    gradient = jax.grad(lambda x, kernel: jnp.sum(convolve(x, kernel) ** 2))

    def run(x, kernel):
        if loop == "scan":
            return jax.lax.scan(lambda x, _: (x - 1e-3 * gradient(x, kernel), None), x, None, 3)[0]
        if loop == "while":
            step = lambda carry: (carry[0] + 1, carry[1] - 1e-3 * gradient(carry[1], kernel))  # noqa: E731
            return jax.lax.while_loop(lambda carry: carry[0] < 3, step, (0, x))[1]
        kernels = jnp.stack([kernel, 2 * kernel])
        choose = lambda k: jax.lax.cond(k[0, 0, 0, 0] > 0, gradient, lambda x, k: x, x, k)  # noqa: E731
        return jax.lax.map(choose, kernels)

    plain, rewritten = (jax.jit(f).lower(inputs, kernel).compile() for f in (run, channels_last(run)))
    assert _layouts(rewritten.as_text()) == {"b01f_01io->b01f"}
    assert _layouts(plain.as_text()) != {"b01f_01io->b01f"}  # the day that this fails the module can go
    np.testing.assert_allclose(rewritten(inputs, kernel), plain(inputs, kernel), rtol=1e-4, atol=1e-4)


def test_functions_without_convolutions_stay():
    def fn(x):
        return {"y": jax.lax.fori_loop(0, 3, lambda i, x: 2 * x, x["x"])}

    x = {"x": jnp.arange(3.0)}
    assert jax.make_jaxpr(channels_last(fn))(x).pretty_print() == jax.make_jaxpr(fn)(x).pretty_print()


def test_a_function_may_close_over_traced_values():
    convolve, inputs, kernel = _convolution("channels first", OPTIONS["plain"])

    def total(x, kernel):
        return channels_last(lambda x: jnp.sum(convolve(x[None], kernel)))(x)

    @quick_jit
    def both(inputs, kernel):
        return jax.vmap(total, (0, None))(inputs, kernel), jnp.sum(convolve(inputs, kernel), (1, 2, 3))

    np.testing.assert_allclose(*both(inputs, kernel), rtol=1e-4, atol=1e-3)
