"""Decoders of sequences see the past alone, draw what they score and leave padding out; encoders see all but that."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr
from numpyro.contrib.module import eqx_module
from numpyro.distributions.batch_util import promote_batch_shape, vmap_over
from numpyro.infer import Predictive
from numpyro.infer.util import log_density
from prior_cases import quick_jit

from numpyro_kaem import (
    AutoregressiveCategorical,
    ImportanceMLE,
    LatentModel,
    SequenceDecoder,
    SequenceEncoder,
    fit,
    pairwise_log_likelihood,
)

V, T, END = 5, 6, 1
SIZES = {"width": 8, "num_heads": 2, "num_layers": 2}
ENDS = pytest.mark.parametrize("end_token", [None, END], ids=["full length", "end token"])
RNG = np.random.default_rng(0)
Z = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)
TOKENS = RNG.integers(0, V, size=(4, T))


def decoder(end_token=None, vocabulary_size=V, length=T, **options):
    return SequenceDecoder(jax.random.key(0), 3, vocabulary_size, length, end_token=end_token, **{**SIZES, **options})


def encoder(end_token=None, **options):
    return SequenceEncoder(jax.random.key(0), V, T, 7, end_token=end_token, **{**SIZES, **options})


@ENDS
def test_leading_dimensions_are_a_batch(end_token):
    shapes = [(), (4,), (2, 3), (0,)]
    batches = [(RNG.normal(size=(*s, 3)).astype(np.float32), RNG.integers(0, V, size=(*s, T))) for s in shapes]

    @quick_jit
    def run(batches):
        decode, encode = decoder(end_token), encoder(end_token)

        def of(z, tokens):
            given = decode.distribution(z, validate_args=False)  # NumPyro's check of z fails where there is none
            return decode(z, tokens), given.log_prob(tokens), encode(tokens)

        rows = [jnp.concatenate([x.reshape(-1, x.shape[-1]) for x in each]) for each in zip(*batches, strict=True)]
        draws = [decode.sample(jax.random.key(0), z) for z, _ in batches]
        return [of(*batch) for batch in batches], jax.lax.map(lambda row: of(*row), rows), jax.vmap(of)(*rows), draws

    outputs, by_row, mapped, draws = jax.tree.map(np.asarray, run(batches))
    for shape, (logits, log_probs, codes), draw in zip(shapes, outputs, draws, strict=True):
        assert logits.shape == (*shape, T, V) and log_probs.shape == shape and codes.shape == (*shape, 7)
        assert draw.shape == (*shape, T) and np.issubdtype(draw.dtype, np.integer)
        assert np.all((draw >= 0) & (draw < V))
    for index, expected in enumerate(by_row):
        flat = np.concatenate([output[index].reshape(-1, *expected.shape[1:]) for output in outputs])
        np.testing.assert_allclose(flat, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(mapped[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [decoder, encoder])
def test_every_parameter_moves_the_output(make):
    @quick_jit
    def gradient(z, tokens):
        def total(generator):
            return jnp.sum(jnp.sin(generator(z, tokens) if make is decoder else generator(tokens)))

        return eqx.filter_grad(total)(make())

    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(gradient(Z, TOKENS))]
    assert len(leaves) == 2 * 10 + (7 if make is decoder else 6)
    assert all(np.all(np.isfinite(leaf)) and np.any(leaf != 0) for leaf in leaves)


def test_logits_see_the_tokens_before_them_and_no_others():
    @quick_jit
    def run(z, tokens):
        decode = decoder()

        def changed_at(t):
            return decode(z, tokens.at[:, t].set((tokens[:, t] + 1) % V))

        return decode(z, tokens), jax.lax.map(changed_at, jnp.arange(T))

    logits, changed = map(np.asarray, run(Z, TOKENS))
    moved = np.any(changed != logits, axis=-1)  # by place of the change, sequence, position
    assert moved.shape == (T, 4, T)
    for t in range(T):
        assert not moved[t, :, : t + 1].any()
        assert moved[t, :, t + 1 :].all()


def test_logits_see_the_latent_at_every_position():
    jacobian = quick_jit(lambda z: jax.jacfwd(lambda z: decoder()(z, TOKENS[0]))(z))(Z[0])
    assert np.all(np.any(np.asarray(jacobian) != 0, axis=1))


@ENDS
@pytest.mark.parametrize("compute_dtype", [None, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_logits_of_the_loop_with_kept_keys_and_values_are_those_of_the_whole_sequence(end_token, compute_dtype):
    @quick_jit
    def run(z, tokens):
        decode = decoder(end_token, compute_dtype=compute_dtype)
        # The loop itself pads behind an end token, and what follows is not compared.
        drawn, logits = decode._generate(z, jnp.moveaxis(tokens, -1, 0), lambda token, _: token)
        return drawn, logits, decode(z, drawn)

    drawn, kept, whole = map(np.asarray, run(Z, TOKENS))
    assert end_token is not None or np.array_equal(drawn, TOKENS)
    # In bfloat16 sums in another order may round to a neighbour.
    tolerance = 1e-5 if compute_dtype is None else 0.03
    np.testing.assert_allclose(kept, whole, rtol=0, atol=tolerance)


def sequences(vocabulary_size, length, end_token):
    """All of them, once each: padded by the end token."""
    every = np.array(list(itertools.product(range(vocabulary_size), repeat=length)))
    if end_token is None:
        return every
    has_ended = np.cumsum(every == end_token, axis=1) > 0
    return every[np.all(~has_ended | (every == end_token), axis=1)]


@ENDS
def test_probabilities_sum_to_one_and_draws_have_them(end_token):
    """No count is six standard errors and one draw off: in 27 counts that happens by chance less than once in 10^6."""
    num_draws, every = 40_000, sequences(3, 3, end_token)
    assert len(every) == (27 if end_token is None else 15)

    @quick_jit
    def run(z):
        decode = decoder(end_token, vocabulary_size=3, length=3)
        given = decode.distribution(z)
        return given.log_prob(every), given.sample(jax.random.key(1), (num_draws,))

    log_probs, draws = map(np.asarray, run(Z[0]))
    probs = np.exp(log_probs.astype(np.float64))
    np.testing.assert_allclose(probs.sum(), 1.0, rtol=1e-5)
    counts = np.array([np.sum(np.all(draws == each, axis=1)) for each in every])
    assert counts.sum() == num_draws
    error = np.sqrt(num_draws * probs * (1 - probs))
    assert np.all(np.abs(counts - num_draws * probs) < 6 * error + 1)
    assert np.max(probs) > 2 * np.median(probs)


@ENDS
def test_log_probabilities_are_sums_over_the_logits(end_token):
    @quick_jit
    def run(z, tokens):
        decode = decoder(end_token)
        return decode(z, tokens), decode.distribution(z).log_prob(tokens)

    logits, log_probs = map(np.asarray, run(Z, TOKENS))
    for row, tokens, total in zip(logits.astype(np.float64), TOKENS, log_probs, strict=True):
        terms = row[np.arange(T), tokens] - np.log(np.sum(np.exp(row), axis=-1))
        ends = np.nonzero(tokens == end_token)[0] if end_token is not None else []
        stop = ends[0] + 1 if len(ends) else T
        np.testing.assert_allclose(total, terms[:stop].sum(), rtol=1e-5)
    assert end_token is None or any(END in tokens[:-1] for tokens in TOKENS)


def test_what_is_behind_the_end_token_has_no_part_in_anything():
    tokens = np.array([[2, 3, END, 0, 4, END], [END, 0, 0, 0, 0, 0]])
    others = np.array([[2, 3, END, -7, 99, 4], [END, 2, 3, 4, 5, 6]])

    @quick_jit
    def run(z, tokens):
        decode, encode = decoder(END), encoder(END)

        def total(pair):
            return jnp.sum(pair[0].distribution(z).log_prob(tokens)) + jnp.sum(jnp.sin(pair[1](tokens)))

        gradient = eqx.filter_grad(total)((decode, encode))
        return decode.distribution(z).log_prob(tokens), encode(tokens), jax.tree.leaves(gradient)

    results = run(Z[:2], tokens), run(Z[:2], others)
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
        assert np.all(np.isfinite(one))


def test_draws_are_filled_with_the_end_token():
    draws = np.asarray(quick_jit(lambda z: decoder(END).distribution(z).sample(jax.random.key(0), (50,)))(Z))
    has_ended = np.cumsum(draws == END, axis=-1) > 0
    assert np.all(draws[has_ended] == END)
    assert 0.05 < has_ended[..., :-1].mean() < 0.95


def test_an_encoder_s_code_of_a_short_sequence_is_that_of_an_encoder_that_ends_there():
    tokens = np.array([2, 3, 0, END, END, END])

    @quick_jit
    def run(tokens):
        encode = encoder(END)
        short = eqx.tree_at(lambda e: e.position_embedding, encode, encode.position_embedding[:4])
        return encode(tokens), short(tokens[:4])

    np.testing.assert_allclose(*run(tokens), rtol=1e-5, atol=1e-6)


def test_an_encoder_sees_every_token_and_its_place():
    codes = np.asarray(
        quick_jit(lambda tokens: encoder()(tokens))(
            np.stack([TOKENS[0], *((TOKENS[0] + np.eye(T, dtype=int)) % V), np.roll(TOKENS[0], 1)])
        )
    )
    assert np.all(np.max(np.abs(codes[1:] - codes[0]), axis=1) > 1e-3)


def products(part):
    """The equations of all matrix products in a jaxpr."""
    if isinstance(part, ClosedJaxpr) and part.jaxpr is not part:
        return products(part.jaxpr)
    if isinstance(part, tuple):
        return [found for each in part for found in products(each)]
    if not isinstance(part, Jaxpr):
        return []
    inside = [found for equation in part.eqns for found in products(tuple(equation.params.values()))]
    return inside + [equation for equation in part.eqns if equation.primitive.name == "dot_general"]


def test_all_factors_are_rounded_and_no_sum_is():
    decode, encode = decoder(compute_dtype=jnp.bfloat16), encoder(compute_dtype=jnp.bfloat16)
    runs = [
        (decode, jax.make_jaxpr(lambda z, tokens: decode(z, tokens))(Z, TOKENS), 6),
        (decode, jax.make_jaxpr(lambda z: decode.sample(jax.random.key(0), z))(Z), 6),
        (encode, jax.make_jaxpr(lambda tokens: encode(tokens))(TOKENS), 6),
    ]
    for generator, jaxpr, of_a_block in runs:
        found = products(jaxpr)
        assert len(found) == of_a_block * len(generator.blocks) + (2 if generator is decode else 1)
        for equation in found:
            assert {variable.aval.dtype for variable in equation.invars} == {jnp.dtype(jnp.bfloat16)}
            assert equation.outvars[0].aval.dtype == jnp.float32


def test_the_last_product_is_within_the_rounding_of_its_factors():
    """Without the latent, and blocks that add nothing, all before it is exact."""
    u = 2.0**-8

    @quick_jit
    def run(z, tokens):
        def added(d):
            return [d.latent_weight, *(w for block in d.blocks for w in (block.attention_out, block.mlp_out))]

        exact, rounded = (
            eqx.tree_at(added, decoder(compute_dtype=dtype), replace_fn=jnp.zeros_like)
            for dtype in (None, jnp.bfloat16)
        )
        h = exact.token_embedding[tokens[:, :-1]]
        h = jnp.pad(h, ((0, 0), (1, 0), (0, 0))) + exact.position_embedding
        h = (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)
        bound = (2 * u + u**2) * jnp.abs(h) @ jnp.abs(exact.out_weight)
        return exact(z, tokens), rounded(z, tokens), bound

    exact, rounded, bound = map(np.asarray, run(Z, TOKENS))
    error = np.abs(rounded - exact)
    assert np.all(error < bound + 1e-6)
    assert np.mean(error / bound) > 0.02


@pytest.mark.parametrize("make", [decoder, encoder])
def test_outputs_and_gradients_in_half_precision_keep_the_parameters_dtype(make):
    @quick_jit
    def run(z, tokens):
        def of(dtype):
            def total(generator):
                output = generator(z, tokens) if make is decoder else generator(tokens)
                return jnp.sum(jnp.sin(output)), output

            gradient, output = eqx.filter_grad(total, has_aux=True)(make(compute_dtype=dtype))
            return output, jax.tree.leaves(gradient)

        return of(None), of(jnp.bfloat16)

    (output, gradient), (rounded, rounded_gradient) = run(Z, TOKENS)
    assert rounded.dtype == jnp.float32
    # A dozen products in a row, each rounding by two parts in 256, and most of them averaging.
    assert 1e-4 < np.max(np.abs(rounded - output)) < 0.1
    for exact, approximate in zip(gradient, rounded_gradient, strict=True):
        assert approximate.dtype == jnp.float32
        assert np.max(np.abs(exact - approximate)) < 0.15 * np.max(np.abs(exact))


def test_outputs_start_at_unit_scale():
    options = {"width": 64, "num_heads": 4, "num_layers": 3}

    @quick_jit
    def stds(z, tokens):
        decode = SequenceDecoder(jax.random.key(0), 20, 30, 12, **options)
        encode = SequenceEncoder(jax.random.key(0), 30, 1, 50, **options)
        return jnp.std(decode(z, tokens)), jnp.std(encode(tokens[..., :1]))

    stds = np.asarray(stds(RNG.normal(size=(50, 20)).astype(np.float32), RNG.integers(0, 30, size=(50, 12))))
    assert np.all((stds > 0.7) & (stds < 1.4)), stds


@pytest.mark.parametrize("make", [decoder, encoder])
def test_float64_keys_give_float64_generators(x64, make):
    def output(z):
        generator = make(END)
        if make is encoder:
            return generator(TOKENS)
        return generator(z, TOKENS), generator.distribution(z).log_prob(TOKENS)

    assert {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(output, jnp.zeros((4, 3))))} == {np.dtype("float64")}


def test_only_weights_are_parameters_of_the_model():
    def parameters():
        with numpyro.handlers.trace() as trace, numpyro.handlers.seed(rng_seed=0):
            eqx_module("decoder", decoder(END))
        return trace["decoder$params"]["value"]

    leaves = jax.tree.leaves(jax.eval_shape(parameters))
    assert {leaf.dtype for leaf in leaves} == {np.dtype("float32")}
    weights = [3 * 8, V * 8, T * 8, 8 * V, V, 2 * 8]
    block = [8 * 3 * 8, 8 * 8, 8 * 32, 32, 32 * 8, 8, 4 * 8]
    assert sum(leaf.size for leaf in leaves) == sum(weights) + 2 * sum(block)


def test_the_distribution_has_numpyro_s_shapes():
    @quick_jit
    def run(z):
        given = decoder().distribution(z)
        assert isinstance(given, AutoregressiveCategorical)
        assert given.batch_shape == (4,) and given.event_shape == (T,) and given.support.is_discrete
        expanded = given.expand((2, 4))
        draws = expanded.sample(jax.random.key(0), (3,))
        assert draws.shape == (3, 2, 4, T)
        masked = given.mask(jnp.array([True, False, True, True]))
        of_one = decoder().distribution(z[0])
        assert of_one.batch_shape == () and of_one.sample(jax.random.key(0)).shape == (T,)
        return (
            [expanded.log_prob(draws), given.log_prob(draws), given.to_event(1).log_prob(draws)],
            [masked.log_prob(draws[0, 0]), of_one.log_prob(draws)],
            given.support(draws),
        )

    (expanded, plain, summed), (masked, of_one), supported = run(Z)
    np.testing.assert_allclose(expanded, plain, rtol=1e-6)
    np.testing.assert_allclose(summed, np.sum(plain, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(masked, np.where([1, 0, 1, 1], np.asarray(plain)[0, 0], 0.0), rtol=1e-5)
    np.testing.assert_allclose(np.asarray(of_one)[..., 0], np.asarray(plain)[..., 0], rtol=1e-5)
    assert np.all(supported) and supported.shape == (3, 2, 4)


def test_the_distribution_is_a_pytree_that_jit_and_vmap_take():
    given = decoder(END).distribution(jnp.asarray(Z))
    leaves, structure = jax.tree.flatten(given)
    again = jax.tree.unflatten(structure, leaves)
    assert again.batch_shape == (4,) and again.event_shape == (T,)

    @quick_jit
    def of_argument(given, tokens):
        return given.log_prob(tokens)

    @quick_jit
    def mapped(given, tokens):
        return jax.vmap(lambda given, tokens: given.log_prob(tokens), in_axes=(vmap_over(given, z=0), 0))(given, tokens)

    expected = of_argument(given, TOKENS)
    np.testing.assert_allclose(of_argument(again, TOKENS), expected, rtol=1e-6)
    np.testing.assert_allclose(mapped(given, TOKENS), expected, rtol=1e-5)


def test_distributions_that_vmap_returns_have_a_decoder_each():
    z = jnp.stack([Z, Z + 1])

    @quick_jit
    def run(z, tokens):
        def of_scale(z, scale):
            decode = decoder(END)
            return eqx.tree_at(lambda d: d.out_weight, decode, scale * decode.out_weight).distribution(z)

        scales = jnp.array([0.5, 2.0])
        many = promote_batch_shape(jax.vmap(of_scale)(z, scales))
        assert many.batch_shape == (2, 4) and many.event_shape == (T,)
        expanded = promote_batch_shape(jax.vmap(lambda z, scale: of_scale(z, scale).expand((3, 4)))(z, scales))
        assert expanded.batch_shape == (2, 3, 4)
        draws, repeated = many.sample(jax.random.key(0), (3,)), jnp.stack([tokens, tokens[::-1], tokens % 3])
        alone = [of_scale(*each) for each in zip(z, scales, strict=True)]
        return (
            draws,
            (many.log_prob(tokens), jnp.stack([each.log_prob(tokens) for each in alone])),
            (many.log_prob(draws), jnp.stack([each.log_prob(draws[:, i]) for i, each in enumerate(alone)], 1)),
            (expanded.log_prob(repeated), jnp.stack([each.log_prob(repeated) for each in alone])),
        )

    draws, *pairs = run(z, TOKENS)
    assert draws.shape == (3, 2, 4, T)
    assert np.any(draws[:, 0] != draws[:, 1])
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def model_of(end_token):
    def model(x=None, num_data=None):
        decode = eqx_module("decoder", decoder(end_token))
        with numpyro.plate("data", len(x) if num_data is None else num_data):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
            numpyro.sample("x", decode.distribution(z), obs=x)

    return model


def parameters(end_token):
    return {"decoder$params": eqx.filter(decoder(end_token), eqx.is_inexact_array)}


@ENDS
def test_a_model_has_its_log_density_and_draws_where_nothing_is_observed(end_token):
    model, params = model_of(end_token), parameters(end_token)
    total, _ = log_density(model, (TOKENS,), {}, {**params, "z": Z})
    expected = decoder(end_token).distribution(Z).log_prob(TOKENS).sum() + dist.Normal().log_prob(Z).sum()
    np.testing.assert_allclose(total, expected, rtol=1e-5)
    draws = Predictive(model, params=params, num_samples=3)(jax.random.key(0), num_data=2)
    assert draws["x"].shape == (3, 2, T) and draws["z"].shape == (3, 2, 3)
    given = Predictive(model, posterior_samples={"z": np.zeros((5, 2, 3), np.float32)}, params=params)
    assert given(jax.random.key(0), num_data=2)["x"].shape == (5, 2, T)


@ENDS
def test_pairwise_log_likelihoods_are_those_of_the_pairs(end_token):
    latent_model = LatentModel(model_of(end_token), parameters(end_token), TOKENS)
    z = RNG.normal(size=(7, 3)).astype(np.float32)
    matrix = quick_jit(lambda z: pairwise_log_likelihood(latent_model, {"z": z}))(z)
    log_prob = quick_jit(lambda z, tokens: decoder(end_token).distribution(z).log_prob(tokens))
    loop = [[log_prob(each, tokens) for tokens in TOKENS] for each in z]
    np.testing.assert_allclose(matrix, loop, rtol=1e-5)


def test_pairwise_log_likelihoods_take_little_memory():
    """The perceptrons' hidden arrays of all pairs would be 400 MB."""
    x = RNG.integers(0, V, size=(500, T))
    latent_model = LatentModel(model_of(None), parameters(None), x)

    @jax.jit
    def gradient(z):
        return jax.grad(lambda z: jnp.sum(pairwise_log_likelihood(latent_model, {"z": z})))(z)

    compiled = gradient.lower(jnp.zeros((1000, 3))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100e6


@pytest.mark.slow
def test_training_finds_the_sequences_that_there_are():
    """Of two kinds of data, each with a random first token, the likelihood comes near -log(2 V)."""
    first = RNG.integers(0, V, size=200)
    x = np.where(RNG.random(200)[:, None] < 0.5, 0, 3) * np.ones((200, T), int)
    x[:, 0] = first
    result = fit(
        jax.random.key(0),
        model_of(None),
        x,
        objective=ImportanceMLE(20),
        optimizer=optax.adam(1e-2),
        num_epochs=40,
        batch_size=50,
        progress=False,
    )
    assert np.mean(result.history["epoch_loss"][-5:]) / 200 < np.log(2 * V) + 0.5


@pytest.mark.parametrize("make", [decoder, encoder])
def test_a_token_outside_of_the_vocabulary_is_named_with_its_place(make):
    tokens = TOKENS.copy()
    tokens[1, 4], tokens[2, 0] = V, -1
    message = rf"tokens must be at least 0 and below vocabulary_size={V}, got {V} at index \(1, 4\) and 1 more"
    generator = make()
    checks = [generator.check_tokens]
    if make is decoder:
        checks += [lambda tokens: generator(Z, tokens), lambda tokens: generator.distribution(Z).log_prob(tokens)]
    else:
        checks.append(generator)
    for check in checks:
        with pytest.raises(ValueError, match=message):
            check(jnp.asarray(tokens))
    with pytest.raises(ValueError, match=rf"got {V} at index 4$"):
        generator.check_tokens(tokens[1])
    generator.check_tokens(TOKENS)


def test_a_token_outside_of_the_vocabulary_whose_value_is_not_known_has_no_probability():
    tokens = TOKENS.copy()
    tokens[1, 4], tokens[2, 0] = V, -1
    log_probs = np.asarray(quick_jit(lambda tokens: decoder().distribution(Z).log_prob(tokens))(tokens))
    np.testing.assert_array_equal(np.isneginf(log_probs), [False, True, True, False])
    assert not np.isnan(log_probs).any()


@pytest.mark.parametrize("make", [decoder, encoder])
def test_tokens_of_another_kind_or_length_are_refused_under_jit_too(make):
    generator = make()
    run = (lambda tokens: generator(jnp.asarray(Z), tokens)) if make is decoder else generator
    for tokens, error, message in [
        (jnp.zeros((4, T)), TypeError, "tokens must be whole numbers of an integer dtype, got float32"),
        (jnp.zeros((4, T), bool), TypeError, "tokens must be whole numbers of an integer dtype, got bool"),
        (jnp.zeros((4, T + 1), int), ValueError, rf"tokens must have a last axis of size {T}, got shape \(4, 7\)"),
        (jnp.zeros((), int), ValueError, rf"tokens must have a last axis of size {T}, got shape \(\)"),
    ]:
        with pytest.raises(error, match=message):
            generator.check_tokens(tokens)
        if jnp.issubdtype(tokens.dtype, jnp.integer):
            with pytest.raises(error, match=message):
                jax.eval_shape(run, tokens)


def test_latents_must_fit():
    decode = decoder()
    for shape in [(), (5,), (3, 4)]:
        for call in (
            decode.distribution,
            lambda z: decode.sample(jax.random.key(0), z),
            lambda z: decode(z, TOKENS[0]),
        ):
            with pytest.raises(ValueError, match="z must have a last axis of size 3, got shape"):
                call(jnp.zeros(shape))
    with pytest.raises(
        ValueError, match=r"leading axes of z and tokens must broadcast, got shapes \(3, 3\) and \(4, 6\)"
    ):
        decode(jnp.zeros((3, 3)), jnp.asarray(TOKENS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary_size": 0}, "vocabulary_size must be a whole number of at least 1, got 0"),
        ({"length": 0}, "length must be a whole number of at least 1, got 0"),
        ({"width": 0}, "width must be a whole number of at least 1, got 0"),
        ({"num_heads": 0}, "num_heads must be a whole number of at least 1, got 0"),
        ({"num_layers": 0}, "num_layers must be a whole number of at least 1, got 0"),
        ({"width": 9}, "width must be a multiple of num_heads, got 9 and 2"),
        ({"end_token": V}, f"end_token must be below vocabulary_size={V}, got {V}"),
        ({"end_token": -1}, "end_token must be a whole number of at least 0, got -1"),
        ({"compute_dtype": int}, "compute_dtype must be a floating dtype"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        decoder(**options)
    sizes = {"vocabulary_size": V, "length": T, "out_size": 7, **SIZES}
    with pytest.raises(ValueError, match=message):
        SequenceEncoder(jax.random.key(0), **{**sizes, **options})


def test_sizes_of_the_ends_are_at_least_one():
    with pytest.raises(ValueError, match="in_size must be a whole number of at least 1, got 0"):
        SequenceDecoder(jax.random.key(0), 0, V, T)
    with pytest.raises(ValueError, match="out_size must be a whole number of at least 1, got 0"):
        SequenceEncoder(jax.random.key(0), V, T, 0)


def test_padding_is_the_end_token():
    decoder = SequenceDecoder(jax.random.key(0), 2, 5, 4, width=8, num_heads=2, num_layers=1, end_token=0)
    tokens = np.array([[3, 0, 4, -7], [1, 2, 3, 4]])
    np.testing.assert_array_equal(decoder.padded(tokens), [[3, 0, 0, 0], [1, 2, 3, 4]])
    np.testing.assert_array_equal(decoder.padded(tokens, np.array([4, 2])), [[3, 0, 0, 0], [1, 2, 0, 0]])
    endless = SequenceDecoder(jax.random.key(0), 2, 5, 4, width=8, num_heads=2, num_layers=1)
    with pytest.raises(ValueError, match="lengths need an end_token"):
        endless.padded(tokens, np.array([4, 2]))
