"""Convolutional decoders and encoders fit images of any size, alike at both ends, and are the convolutions they say."""

from functools import partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from jax import lax
from numpyro.contrib.module import eqx_module
from prior_cases import quick_jit
from speed import slow_unless

from numpyro_kaem import ConvDecoder, ConvEncoder

U = 2.0**-8
U2 = 2 * U + U**2
LAYOUT = ("NHWC", "HWIO", "NHWC")
SHAPES = [(28, 28, 1), (33, 47, 3), (1, 7, 2), (2, 1, 1)]
UPSAMPLINGS = ("transposed", "resize")
by_upsampling = pytest.mark.parametrize("upsampling", UPSAMPLINGS)


def normal(*shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def decoder(shape, upsampling, **options):
    return ConvDecoder(jax.random.key(0), 3, shape, channels=(6, 4), upsampling=upsampling, **options)


def encoder(shape, **options):
    return ConvEncoder(jax.random.key(0), shape, 5, channels=(4, 6), **options)


GENERATORS = {
    **{f"{upsampling} {shape}": (partial(decoder, shape, upsampling), (3,), shape)
       for shape in SHAPES for upsampling in UPSAMPLINGS},
    **{f"encoder {shape}": (partial(encoder, shape), shape, (5,)) for shape in SHAPES},
}  # fmt: skip
by_name = pytest.mark.parametrize("name", GENERATORS)


def convolution(x, kernel, stride):
    """XLA's, with as many zeros around as make the size of the output that of the input over the stride."""
    return lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=LAYOUT)


def adjoint(h, kernel, size):
    """The adjoint of that of stride 2, from images of this size."""
    x = jax.ShapeDtypeStruct((h.shape[0], *size, kernel.shape[3]), h.dtype)
    (result,) = jax.linear_transpose(lambda x: convolution(x, jnp.swapaxes(kernel, 2, 3), 2), x)(h)
    return result


@by_name
def test_images_have_their_size_and_leading_dimensions_are_a_batch(name):
    make, in_shape, out_shape = GENERATORS[name]
    batches = [normal(*batch_shape, *in_shape) for batch_shape in [(), (4,), (2, 3), (0,)]]

    @quick_jit
    def run(*batches):
        generator = make()
        rows = jnp.concatenate([x.reshape(-1, *in_shape) for x in batches])
        return [generator(x) for x in batches], lax.map(generator, rows), jax.vmap(generator)(rows)

    outputs, by_row, mapped = jax.tree.map(np.asarray, run(*batches))
    for x, y in zip(batches, outputs, strict=True):
        assert y.shape == (*x.shape[: x.ndim - len(in_shape)], *out_shape)
    flat = np.concatenate([y.reshape(-1, *out_shape) for y in outputs])
    np.testing.assert_allclose(flat, by_row, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(mapped, by_row, rtol=1e-4, atol=1e-5)


@by_name
def test_every_tap_of_every_kernel_moves_the_output(name):
    make, in_shape, _ = GENERATORS[name]

    @quick_jit
    def gradient(x):
        return eqx.filter_grad(lambda generator: jnp.sum(jnp.sin(generator(x))))(make())

    gradient = gradient(normal(20, *in_shape))
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient)]
    assert len(leaves) == 6
    assert all(np.all(np.isfinite(leaf)) for leaf in leaves)
    assert all(np.all(np.asarray(kernel) != 0) for kernel in gradient.kernels)
    assert all(np.any(leaf != 0) for leaf in leaves)


@pytest.mark.parametrize("kernel_size", slow_unless([3, 4], [1, 2, 3, 4, 5]))
@pytest.mark.parametrize("size", [(6, 8), (5, 9), (4, 7), (1, 3)], ids=str)
def test_a_transposed_layer_is_the_adjoint_of_a_strided_convolution(x64, kernel_size, size):
    shape, grid = (*size, 2), (-(-size[0] // 2), -(-size[1] // 2), 3)
    make = partial(ConvDecoder, activation=lambda h: h, kernel_size=kernel_size)

    @quick_jit
    def both(z):
        decoder = make(jax.random.key(0), 4, shape, channels=(3,))
        h = (z @ decoder.dense_weight).reshape(-1, *grid)
        return decoder(z), adjoint(h, decoder.kernels[0], size)

    np.testing.assert_allclose(*both(normal(5, 4).astype(np.float64)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", slow_unless([3], [1, 3, 5]))
@pytest.mark.parametrize("size", [(6, 8), (5, 9), (1, 3)], ids=str)
def test_a_resizing_layer_interpolates_and_convolves(x64, kernel_size, size):
    shape, grid = (*size, 2), (-(-size[0] // 2), -(-size[1] // 2), 3)
    make = partial(ConvDecoder, activation=lambda h: h, kernel_size=kernel_size, upsampling="resize")

    @quick_jit
    def both(z):
        decoder = make(jax.random.key(0), 4, shape, channels=(3,))
        h = (z @ decoder.dense_weight).reshape(-1, *grid)
        h = jax.image.resize(h, (5, *size, 3), "linear")
        return decoder(z), convolution(h, decoder.kernels[0][::-1, ::-1], 1)

    np.testing.assert_allclose(*both(normal(5, 4).astype(np.float64)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel_size", slow_unless([3, 4], [1, 2, 3, 4, 5]))
@pytest.mark.parametrize("size", [(6, 8), (5, 9), (4, 7), (1, 3)], ids=str)
def test_an_encoder_s_layer_is_a_strided_convolution(x64, kernel_size, size):

    @quick_jit
    def both(x):
        encoder = ConvEncoder(jax.random.key(0), (*size, 2), 4, channels=(3,), kernel_size=kernel_size)
        h = jax.nn.gelu(convolution(x, encoder.kernels[0], 2))
        return encoder(x), h.reshape(5, -1) @ encoder.dense_weight

    np.testing.assert_allclose(*both(normal(5, *size, 2).astype(np.float64)), rtol=1e-12, atol=1e-12)


def test_a_decoder_of_even_sizes_is_that_of_flax_with_its_weights():
    nnx = pytest.importorskip("flax.nnx")
    decoder = ConvDecoder(jax.random.key(0), 10, (28, 28, 1), activation=jnp.tanh)
    decoder = eqx.tree_at(lambda d: d.biases, decoder, tuple(normal(len(bias)) for bias in decoder.biases))

    def of_flax(z):
        h = (z @ decoder.dense_weight + decoder.dense_bias).reshape(-1, 7, 7, 64)
        for kernel, bias in zip(decoder.kernels, decoder.biases, strict=True):
            *size, fan_in, fan_out = kernel.shape
            layer = nnx.ConvTranspose(
                fan_in,
                fan_out,
                size,
                strides=2,
                padding="SAME",
                transpose_kernel=True,
                kernel_init=lambda *_, kernel=kernel: jnp.swapaxes(kernel, 2, 3),
                bias_init=lambda *_, bias=bias: bias,
                rngs=nnx.Rngs(0),
            )
            h = layer(jnp.tanh(h))
        return h

    z = normal(8, 10)
    np.testing.assert_allclose(quick_jit(lambda z: decoder(z))(z), quick_jit(of_flax)(z), rtol=1e-4, atol=1e-5)


def _mirrored(decoder, axis):
    """The same decoder with its first grid and its kernels turned round along an axis: height 0 or width 1."""
    grid = (*decoder.dense_weight.shape[:-1], *decoder.grids[0])
    weight = jnp.flip(decoder.dense_weight.reshape(grid), axis + 1).reshape(decoder.dense_weight.shape)
    kernels = tuple(jnp.flip(kernel, axis) for kernel in decoder.kernels)
    return eqx.tree_at(lambda d: (d.dense_weight, d.kernels), decoder, (weight, kernels))


@by_upsampling
@pytest.mark.parametrize("shape", [(28, 28, 1), (33, 46, 2), (9, 7, 2)], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_the_two_ends_of_an_axis_are_treated_alike(upsampling, shape, axis):
    @quick_jit
    def both(z):
        original = decoder(shape, upsampling)
        return jnp.flip(original(z), axis + 1), _mirrored(original, axis)(z)

    np.testing.assert_allclose(*both(normal(4, 3)), rtol=1e-4, atol=1e-5)


@by_upsampling
def test_a_grid_that_is_shifted_by_one_shifts_the_image_by_two(upsampling):
    """Away from the ends, by which the kernels and the interpolation reach."""
    grid = normal(2, 12, 12, 1)

    @quick_jit
    def images(grid):
        one = ConvDecoder(jax.random.key(0), 144, (24, 24, 2), channels=(1,), upsampling=upsampling)
        one = eqx.tree_at(lambda d: d.dense_weight, one, jnp.eye(144))
        return one(grid.reshape(2, -1)), one(jnp.roll(grid, (1, 1), (1, 2)).reshape(2, -1))

    image, shifted = images(grid)
    np.testing.assert_allclose(shifted[:, 6:20, 6:20], image[:, 4:18, 4:18], rtol=1e-4, atol=1e-5)
    assert np.ptp(image[:, 4:18, 4:18]) > 0.1


def test_interpolation_covers_all_pixels_alike_and_odd_kernels_do_not():
    """The image of a constant, under kernels of ones, is constant but for the ends, or it has a checkerboard."""

    @quick_jit
    def images(z):
        made = [
            ConvDecoder(jax.random.key(0), 1, (32, 32, 1), channels=(1,), upsampling=upsampling, activation=jnp.tanh)
            for upsampling in UPSAMPLINGS
        ]
        made.append(ConvDecoder(jax.random.key(0), 1, (31, 31, 1), channels=(1,), activation=jnp.tanh))
        ones = [eqx.tree_at(lambda d: (d.dense_weight, *d.kernels), d, replace_fn=jnp.ones_like) for d in made]
        return [decoder(z) for decoder in ones]

    transposed, resized, odd = (np.asarray(image)[0, 4:-4, 4:-4] for image in images(np.ones((1, 1), np.float32)))
    assert np.ptp(transposed) < 1e-5 and np.ptp(resized) < 1e-5
    assert np.ptp(odd) > 0.1


def test_errors_of_half_precision_grow_by_the_weights():
    """As those of an MLP: an error e becomes (|e| (1 + U)^2 + U2 |h|) |K| in a product; |tanh'| is at most 1."""
    options = {"channels": (6, 4), "activation": jnp.tanh}
    z = 1.5 * normal(16, 3)
    size = (9, 12)

    @quick_jit
    def run(z):
        exact = ConvDecoder(jax.random.key(0), 3, (*size, 2), **options)
        rounded = ConvDecoder(jax.random.key(0), 3, (*size, 2), compute_dtype=jnp.bfloat16, **options)
        bound = (U2 * jnp.abs(z) @ jnp.abs(exact.dense_weight)).reshape(-1, *exact.grids[0])
        h = (z @ exact.dense_weight).reshape(-1, *exact.grids[0])
        for kernel, (height, width, _) in zip(exact.kernels, exact.grids[1:], strict=True):
            h = jnp.tanh(h)
            bound = adjoint(bound * (1 + U) ** 2 + U2 * jnp.abs(h), jnp.abs(kernel), (height, width))
            h = adjoint(h, kernel, (height, width))
        return exact(z), rounded(z), bound

    exact, rounded, bound = map(np.asarray, run(z))
    assert np.all(np.abs(rounded - exact) < bound + 1e-5)
    assert np.max(np.abs(rounded - exact)) > 1e-3


@pytest.mark.parametrize(
    "name", ["transposed (1, 7, 2)", "resize (1, 7, 2)", "encoder (1, 7, 2)"], ids=["transposed", "resize", "encoder"]
)
def test_gradients_in_half_precision_keep_the_parameters_dtype(name):
    make, in_shape, _ = GENERATORS[name]

    @quick_jit
    def gradients(x):
        gradient = eqx.filter_grad(lambda pair: jnp.sum(jnp.sin(pair[0](pair[1]))))
        return [jax.tree.leaves(gradient((make(compute_dtype=dtype), x))) for dtype in (None, jnp.bfloat16)]

    for exact, rounded in zip(*gradients(normal(16, *in_shape)), strict=True):
        assert exact.dtype == rounded.dtype == jnp.float32
        # Relative to the largest: about six roundings of U in a row.
        assert np.max(np.abs(exact - rounded)) < 6 * U2 * np.max(np.abs(exact))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(28, 28, 3), (33, 47, 3)], ids=str)
def test_outputs_start_at_unit_scale(shape):
    channels = (64, 32, 16)

    @quick_jit
    def stds(z, x):
        decoders = [ConvDecoder(jax.random.key(0), 30, shape, channels, upsampling=each) for each in UPSAMPLINGS]
        encoder = ConvEncoder(jax.random.key(0), shape, 30, channels[::-1])
        return [jnp.std(decoder(z)) for decoder in decoders] + [jnp.std(encoder(x))]

    # A wide band, as of the other generators; interpolation is an average, and takes away some of the variance.
    stds = np.asarray(stds(normal(50, 30), normal(50, *shape)))
    assert np.all((stds > 0.25) & (stds < 2.0)), stds


def test_only_weights_are_parameters_of_the_model():
    def leaves():
        with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
            eqx_module("decoder", decoder((5, 8, 1), "transposed"))
        return jax.tree.leaves(trace["decoder$params"]["value"])

    shapes = [leaf.shape for leaf in jax.eval_shape(leaves)]
    assert shapes == [(3, 2 * 2 * 6), (24,), (5, 4, 6, 4), (5, 4, 4, 1), (4,), (1,)]


@pytest.mark.parametrize("name", [name for name in GENERATORS if "28" in name])
def test_float64_keys_give_float64_generators(x64, name):
    make, in_shape, out_shape = GENERATORS[name]
    output = jax.eval_shape(lambda: make()(jnp.zeros((2, *in_shape))))
    assert output.dtype == jnp.float64 and output.shape == (2, *out_shape)


def test_without_channels_they_are_affine():
    z = normal(4, 3)
    affine = ConvDecoder(jax.random.key(0), 3, (2, 5, 1), channels=())
    expected = (z @ np.asarray(affine.dense_weight)).reshape(4, 2, 5, 1)
    np.testing.assert_allclose(quick_jit(lambda z: affine(z))(z), expected, rtol=1e-5, atol=1e-6)
    x = normal(4, 2, 5, 1)
    affine = ConvEncoder(jax.random.key(0), (2, 5, 1), 3, channels=())
    expected = x.reshape(4, -1) @ np.asarray(affine.dense_weight)
    np.testing.assert_allclose(quick_jit(lambda x: affine(x))(x), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, (8, 8, 1)), {}, r"in_size must be a whole number of at least 1, got 0"),
        ((3, (8, 8)), {}, r"out_shape must be \(height, width, channels\), got \(8, 8\)"),
        ((3, (8, 0, 1)), {}, r"out_shape must be a whole number of at least 1, got 0"),
        ((3, (8, 8, 1)), {"channels": (4, 0)}, r"channels must be a whole number of at least 1, got 0"),
        ((3, (8, 8, 1)), {"upsampling": "nearest"}, r'upsampling must be "transposed" or "resize", got \'nearest\''),
        ((3, (8, 8, 1)), {"kernel_size": 0}, r"kernel_size must be a whole number of at least 1, got 0"),
        ((3, (8, 8, 1)), {"kernel_size": 4, "upsampling": "resize"}, r"kernel_size must be odd .*, got 4"),
        ((3, (8, 8, 1)), {"compute_dtype": int}, r"compute_dtype must be a floating dtype"),
    ],
)
def test_a_decoder_s_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ConvDecoder(jax.random.key(0), *arguments, **options)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (((8, 8), 3), {}, r"in_shape must be \(height, width, channels\), got \(8, 8\)"),
        (((8, 8, 1), 0), {}, r"out_size must be a whole number of at least 1, got 0"),
        (((8, 8, 1), 3), {"kernel_size": 0}, r"kernel_size must be a whole number of at least 1, got 0"),
        (((8, 8, 1), 3), {"compute_dtype": int}, r"compute_dtype must be a floating dtype"),
    ],
)
def test_an_encoder_s_bad_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        ConvEncoder(jax.random.key(0), *arguments, **options)


@by_upsampling
def test_the_last_axis_must_be_in_size(upsampling):
    for shape in [(), (5,), (3, 4)]:
        with pytest.raises(ValueError, match=r"z must have a last axis of size 3, got shape"):
            decoder((8, 8, 1), upsampling)(jnp.zeros(shape))


def test_an_image_must_have_the_encoder_s_shape():
    for shape in [(), (8, 9), (8, 9, 2), (4, 9, 8, 1)]:
        with pytest.raises(ValueError, match=r"x must have last axes of sizes \(8, 9, 1\), got shape"):
            encoder((8, 9, 1))(jnp.zeros(shape))
