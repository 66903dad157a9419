"""Log-likelihoods of every pair of a shared latent draw and a datum."""

import logging
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import Array, lax
from jax.extend.core import ClosedJaxpr, Jaxpr
from jax.typing import ArrayLike
from jaxtyping import Float
from numpyro.distributions.distribution import ExpandedDistribution, Independent, MaskedDistribution

from numpyro_kaem.models.dependence import output
from numpyro_kaem.models.latent_model import LatentModel

_logger = logging.getLogger("numpyro_kaem")

_TOLERANCE = 1e-2  # nats; how far a matrix product may be from the element-wise form on a matching pair
_PAIRS_PER_CHUNK = 2**12
_ELEMENTS_PER_CHUNK = 2**20  # larger ones slow down even the program that takes the matrix product


def pairwise_log_likelihood(
    latent_model: LatentModel, z: dict[str, ArrayLike], *rows: Any, chunk_size: int | None = None
) -> Float[Array, "S B"]:
    r"""The matrix $\log p(x_b \mid z_s)$ of S draws and B data.

    The decoder runs on the S draws, once, where neither the latents' nor the likelihood's distribution
    depends on the data and no observed value depends on the latents; this is decided from the traced program.
    The matrix is then a matrix product for Normal (of a scale that is the same for all draws), Bernoulli and
    Categorical likelihoods with logits,

    $$\log p(x_b \mid z_s) = \sum_d x_{bd} \ell_{sd} - \sum_d \log(1 + e^{\ell_{sd}})$$

    for instance, as long as rounding stays below 0.01 nats, and `log_prob` mapped over the data otherwise.
    Any other model (covariates, teacher forcing, masks made from the data) is evaluated on all S x B
    pairs, in chunks, and the logger `numpyro_kaem` says which site made it so.

    Args:
        latent_model: a model with one data plate.
        z: for each latent site S draws, of shape `(S, *latent_shapes[site])`.
        rows: positional data with leading axis B; by default `latent_model.rows`.
        chunk_size: number of data evaluated at once where the form is not a matrix product; by default what keeps a
            chunk at about 2^20 numbers.

    Returns:
        The matrix, shape (S, B), without the plate's scale.

    Raises:
        ValueError: where a latent site is outside the data plate, or shapes do not fit.

    Example:
        ```python
        import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        from numpyro_kaem import LatentModel, pairwise_log_likelihood


        def model(x):
            with numpyro.plate("data", x.shape[0]):
                z = numpyro.sample("z", dist.Normal(0.0, 1.0))
                numpyro.sample("x", dist.Normal(z, 0.5), obs=x)


        latent_model = LatentModel(model, {}, jnp.array([0.3, -1.2, 0.8]))


        @jax.jit
        def log_evidence(key):
            z = latent_model.sample_prior(key, 1000)
            return jax.nn.logsumexp(pairwise_log_likelihood(latent_model, z), axis=0) - jnp.log(1000)


        assert log_evidence(jax.random.key(0)).shape == (3,)
        ```
    """
    latent_model.require_per_datum("pairwise_log_likelihood")
    latent_model.check_latent_names(z)
    rows = rows or latent_model.rows
    leading = {leaf.shape[0] for leaf in jax.tree.leaves(rows)} or {latent_model.num_data}
    num_draws = {leaf.shape[0] for leaf in z.values()}
    if len(leading) > 1 or len(num_draws) > 1:
        raise ValueError(f"z and rows must each have one leading axis, got {sorted(num_draws)} and {sorted(leading)}")
    (num_rows,), (num_draws,) = leading, num_draws

    obstacle = _obstacle_to_sharing(latent_model)
    if obstacle:
        _logger.warning("pairwise_log_likelihood runs the model on all pairs, in chunks: %s", obstacle)

        @jax.checkpoint
        def of_row(args: tuple[Array, tuple]) -> Array:
            return jax.vmap(lambda z: latent_model.log_likelihood(z, *args[1]))(z)

        chunk_size = min(num_rows, chunk_size or max(1, _PAIRS_PER_CHUNK // num_draws))
        return lax.map(of_row, (jnp.arange(num_rows), rows), batch_size=chunk_size).T

    # This run cannot see the data. They have as many rows, but one where the model itself would cut them.
    rows_shown = 1 if latent_model.structure.has_subsample_statement else num_draws
    shown = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], (rows_shown, *x.shape[1:])), latent_model.rows)
    sites, _ = latent_model.run(z, shown, jnp.zeros(num_draws, int))

    def observe(row: tuple) -> dict[str, Array]:
        return latent_model.evaluate(lambda out: out["observed"], None, latent_model.lead(row))

    observed = jax.vmap(observe, axis_size=num_rows)(latent_model.checked_rows(rows))
    matrices = (_site_matrix(latent_model, sites, name, values, chunk_size) for name, values in observed.items())
    # Masks and scales of latents, whose prior does not depend on the data, are the same for all of these.
    correction = jnp.reshape(latent_model.correction(sites), (-1, 1))
    return jnp.broadcast_to(sum(matrices, correction), (num_draws, num_rows))


def _obstacle_to_sharing(latent_model: LatentModel) -> str | None:
    """Why the likelihoods of one run on the draws would not be those of the data, if so."""
    for name in latent_model.latent_shapes:
        if latent_model.depends_on_data(output("prior", name)):
            return f"the prior of {name!r} depends on the data"
    for name in latent_model.observed_names:
        if latent_model.depends_on_data(output("likelihood", name)):
            return f"the distribution of {name!r} (or its mask or scale) depends on the data"
        if latent_model.depends_on_latents(output("observed", name)):
            return f"the observed value of {name!r} depends on the latents"
    return None


def _site_matrix(
    latent_model: LatentModel, sites: dict[str, dict], name: str, values: Array, chunk_size: int | None
) -> Array:
    """The (S, B) log-probabilities of one observed site; values has shape (B, *datum)."""
    site, fn = sites[name], sites[name]["fn"]
    axis = latent_model.row_axis(name)

    @jax.checkpoint
    def of_value(value: Array) -> Array:
        value = jnp.broadcast_to(jnp.expand_dims(value, axis), fn.shape())
        return latent_model.site_log_probs({**sites, name: {**site, "value": value}}, name)

    def element_wise() -> Array:
        one = jax.ShapeDtypeStruct(values.shape[1:], values.dtype)
        size = chunk_size or max(1, _ELEMENTS_PER_CHUNK // _largest_array(jax.make_jaxpr(of_value)(one).jaxpr))
        return lax.map(of_value, values, batch_size=_even(size, values.shape[0])).T

    form = _MATRIX_FORMS.get(type(_unwrap(fn)[0]))
    if form is None or latent_model.depends_on_latents(partial(_fixed_parts, name=name)):
        return element_wise()
    base, reshape, weights, data = _by_draw(site, values, axis)
    product, rounding = form(base, reshape, weights, data)
    is_possible = jnp.all(base.support(data), -1)
    dtype = jax.eval_shape(of_value, values[0]).dtype
    # The comparison is false for NaN too. A logit of -inf, say, is sound by element, but not in a product.
    is_safe = (rounding < _TOLERANCE) & jnp.all(jnp.isfinite(product))
    return lax.cond(is_safe, lambda: jnp.where(is_possible, product, -jnp.inf).astype(dtype), element_wise)


def _even(size: int, total: int) -> int:
    """A size of chunks, at most the given one, that leaves no rest if it need not: a rest is compiled a second time."""
    size = min(size, total)
    return next((even for even in range(size, size // 2, -1) if total % even == 0), size)


def _largest_array(part: Any) -> int:
    """The most elements of any array that a jaxpr makes: within a likelihood they may be much larger than the data."""
    if isinstance(part, ClosedJaxpr) and part.jaxpr is not part:  # the two are one class from JAX 0.11 on
        return _largest_array(part.jaxpr)
    if isinstance(part, tuple):
        return max(map(_largest_array, part), default=1)
    if not isinstance(part, Jaxpr):
        return 1
    sizes = (math.prod(getattr(variable.aval, "shape", ())) for equation in part.eqns for variable in equation.outvars)
    return max(1, *sizes, *(_largest_array(tuple(equation.params.values())) for equation in part.eqns))


def _fixed_parts(out: dict[str, dict], name: str) -> tuple:
    """What a matrix product needs to be the same for all draws: weights, and the scale of a Normal."""
    base, masks = _unwrap(out["distributions"][name])
    scale = base.scale if isinstance(base, dist.Normal) else None
    return scale, [mask for mask, _ in masks if not isinstance(mask, bool)], out["scales"][name]


def _by_draw(site: dict, values: Array, axis: int) -> tuple[dist.Distribution, Callable, Array, Array]:
    """A matrix form's arguments: distribution, reshaping of its parameters, weights (D,), data (B, D)."""
    base, masks = _unwrap(site["fn"])
    shape, event_dim = site["fn"].shape(), site["fn"].event_dim

    def reshape(parameter: ArrayLike, own_dim: int = 0) -> Array:
        """(S, D), or (S, D, K) where the parameter has one dimension of its own."""
        own = jnp.shape(parameter)[jnp.ndim(parameter) - own_dim :]
        full = jnp.moveaxis(jnp.broadcast_to(parameter, shape + own), axis - own_dim, 0)
        return full.reshape(full.shape[0], -1, *own)

    weights = 1.0
    for weight, weight_event_dim in [*masks, (site["scale"], event_dim)]:
        if weight is not None:
            weights = weights * jnp.expand_dims(weight, tuple(range(-weight_event_dim, 0)))
    weights = reshape(jnp.asarray(weights, jnp.result_type(weights, *jax.tree.leaves(base))))[0]
    # What a mask hides may be missing (NaN), and 0 * NaN would show in the product.
    return base, reshape, weights, jnp.where(weights == 0, 0, values.reshape(values.shape[0], -1))


def _unwrap(fn: dist.Distribution) -> tuple[dist.Distribution, list[tuple[Any, int]]]:
    """The distribution inside expansions, event dimensions and masks; masks and their event dimensions."""
    masks = []
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        if isinstance(fn, MaskedDistribution):
            masks.append((fn._mask, fn.event_dim))
        fn = fn.base_dist
    return fn, masks


def _product(a: Array, b: Array) -> Array:
    """The product a b^T by blocks of columns: the rounding error of one long sum grows with its length."""
    block = max(1024, -(-a.shape[1] // 12))
    parts = [slice(start, start + block) for start in range(0, a.shape[1], block)]
    products = (jnp.matmul(a[:, part], b[:, part].T, precision=lax.Precision.HIGHEST) for part in parts)
    return jnp.asarray(sum(products))


def _rounding(sums: Array) -> Array:
    """A bound of the error of a difference of such sums, of terms of one sign.

    The factor covers what was measured from 10 to 50,000 dimensions, with JAX 0.10 and 0.12 on a CPU.
    """
    return 6 * jnp.finfo(sums.dtype).eps * jnp.max(sums)


# Each form takes what _by_draw gives, and returns the matrix with a bound of its rounding error on matching
# pairs: for those the two sums that cancel are about equal.


def _normal(base: dist.Normal, reshape: Callable, weights: Array, x: Array) -> tuple[Array, Array]:
    loc, scale = reshape(base.loc), reshape(base.scale)[0]
    precision = weights / scale**2
    x = x.astype(jnp.result_type(x, loc))
    center = jnp.mean(x, 0)
    x, loc = x - center, loc - center
    x_norm, loc_norm = jnp.sum(precision * x**2, -1), jnp.sum(precision * loc**2, -1)
    log_normalizer = jnp.sum(weights * (jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi)))
    product = _product(precision * loc, x) - 0.5 * (x_norm + loc_norm[:, None]) - log_normalizer
    return product, _rounding(x_norm + jnp.abs(log_normalizer))


def _bernoulli(base: dist.BernoulliLogits, reshape: Callable, weights: Array, x: Array) -> tuple[Array, Array]:
    logits = reshape(base.logits)
    log_normalizer = jnp.sum(weights * jax.nn.softplus(logits), -1)
    product = _product(weights * logits, x.astype(jnp.result_type(x, logits))) - log_normalizer[:, None]
    return product, _rounding(log_normalizer)


def _categorical(base: dist.CategoricalLogits, reshape: Callable, weights: Array, x: Array) -> tuple[Array, Array]:
    log_probs = weights[:, None] * jax.nn.log_softmax(reshape(base.logits, 1))
    one_hot = jax.nn.one_hot(x, log_probs.shape[-1], dtype=log_probs.dtype)
    flat = log_probs.reshape(log_probs.shape[0], -1)
    # All terms have one sign, so nothing cancels.
    return _product(flat, one_hot.reshape(one_hot.shape[0], -1)), jnp.zeros(())


_MATRIX_FORMS = {dist.Normal: _normal, dist.BernoulliLogits: _bernoulli, dist.CategoricalLogits: _categorical}
