"""The pictures of reading: what is drawn, where, in which order; compared as images with those in tests/baseline.

python -m pytest tests/test_pictures.py --mpl-generate-path=tests/baseline    # draws these anew
"""

import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
import pytest
from matplotlib.text import Text

import numpyro_kaem
from numpyro_kaem import (
    KAEM,
    BSpline,
    KAMixture,
    KAPrior,
    UnivariateEnergy,
    effects,
    interpolate,
    plot_densities,
    plot_effects,
    plot_evidence,
    plot_interpolation,
    plot_ladder,
    plot_reconstructions,
    plot_samples,
    plot_training,
    plot_traversals,
    traverse,
)
from numpyro_kaem.posterior.result import Rungs

NAMES = [name for name in numpyro_kaem.__all__ if name.startswith("plot_")]
COMPARED = {"style": "default", "remove_text": True, "tolerance": 5}
image = pytest.mark.mpl_image_compare(savefig_kwargs={"dpi": 40}, **COMPARED)
# Where a pixel of a tile begins, and what is left of a legend, is rounded differently by Matplotlib's versions.
fine_image = pytest.mark.mpl_image_compare(savefig_kwargs={"dpi": 160}, **COMPARED)


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


def bare(axes):
    """The figure without its words and with axes at fixed places: Matplotlib's versions set and lay out differently."""
    figure = np.ravel(np.array(axes, dtype=object))[0].figure
    figure.set_layout_engine("none")
    for text in figure.findobj(Text):
        text.set_text("")
    return figure


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def make_prior(*shape, scale=1.5, seed=0, reference=None):
    energy = UnivariateEnergy.init(jax.random.key(seed), shape, basis=BSpline(10, 3, (-3.0, 3.0)), scale=scale)
    return KAPrior(energy, reference or dist.Normal(0.0, 1.0))


log_prob = jax.jit(lambda prior, z: prior.log_prob(z))


def blobs(*centres):
    rows, columns = np.mgrid[:8, :8]
    return np.stack([np.exp(-((rows - i) ** 2 + (columns - j) ** 2) / 6) for i, j in centres])


IMAGES = blobs((1, 1), (2, 5), (5, 2), (6, 6), (4, 4), (0, 7))
CURVES = np.sin(np.linspace(0.0, 6.0, 40) + np.arange(6)[:, None]) * np.linspace(0.5, 1.5, 6)[:, None]


def make_traversal(outputs):
    """As `traverse` returns it, of coordinates 4 and 1."""
    probabilities = np.tile(np.linspace(0.1, 0.9, outputs.shape[1]), (2, 1))
    return SimpleNamespace(
        coordinates=(4, 1), names=("z[4]", "z[1]"), probabilities=probabilities, outputs=outputs, change=np.ones(2)
    )


def make_interpolation(outputs):
    return SimpleNamespace(z=None, outputs=outputs, weights=np.linspace(0.0, 1.0, len(outputs)))


def make_effects(output=(8, 8)):
    """As `effects` returns them, of four coordinates, of which the third explains most."""
    total = IMAGES[:4] if output == (8, 8) else np.abs(random(4, *output))
    variance = np.ones(output)
    variance.flat[0] = 0.0
    return SimpleNamespace(
        whole_first_order=np.array([0.1, 0.0, 0.4, 0.2]),
        whole_total=np.array([0.3, 0.02, 0.5, 0.2]),
        whole_first_order_se=np.full(4, 0.02),
        whole_total_se=np.full(4, 0.03),
        ranking=(2, 0, 3, 1),
        names=("z[0]", "z[1]", "z[2]", "z[3]"),
        total=total,
        first_order=0.5 * total,
        variance=variance,
    )


def make_history(scale=1.0, num_epochs=6, per_epoch=10, seed=0, **metrics):
    loss = scale * (1.0 + 4.0 * np.exp(-np.arange(num_epochs * per_epoch) / 12)) + 0.1 * random(
        num_epochs * per_epoch, seed=seed
    )
    return {
        "acceptance": 0.5 + 0.1 * random(num_epochs * per_epoch, 2),
        "loss": loss,
        **metrics,
        "epoch_loss": loss.reshape(num_epochs, -1).mean(1),
        "seconds": np.ones(num_epochs),
        "non_finite_steps": np.zeros(num_epochs, int),
        "steps": per_epoch * np.arange(1, num_epochs + 1),
        "held_out_epoch": np.array([2, 4, 6]),
        "held_out_log_likelihood": np.array([-3.0, -2.0, -1.8]),
        "held_out_std_error": np.full(3, 0.2),
        "compile_seconds": np.array(1.0),
    }


def make_rungs(num_data=3, exponent=2.0):
    t = np.linspace(0.0, 1.0, 6) ** exponent * np.ones((num_data, 1))
    mean = -(1.0 + np.arange(num_data))[:, None] / (0.1 + t)
    rates = 0.8 - 0.1 * t - 0.1 * np.arange(num_data)[:, None]
    return Rungs(t, rates, 0 * t, 0 * t, mean, 0 * t, swap_acceptance=rates[:, 1:] - 0.3)


SCORES = {"good": random(50), "better": random(50) + 0.3, "bad": random(50) - 1.0 + 0.5 * random(50, seed=1)}
COUNTS = {name: {k: random(50) - shift / k for k in (1, 2, 4)} for name, shift in (("one", 1.0), ("other", 2.0))}


# Images --------------------------------------------------------------------------------------------------------------


@image
def test_image_of_densities():
    return bare(plot_densities(make_prior(3), num_columns=2))


@image
def test_image_of_densities_with_a_credible_band():
    return bare(plot_densities(make_prior(30, 2, scale=0.6), draws=True))


@fine_image
def test_image_of_samples():
    return bare(plot_samples(IMAGES[:5], num_columns=3))


@fine_image
def test_image_of_samples_in_colour():
    return bare(plot_samples(255 * np.stack([IMAGES, IMAGES[::-1], np.roll(IMAGES, 1, 0)], axis=-1)))


@image
def test_image_of_samples_that_are_curves():
    return bare(plot_samples(CURVES[:5], num_columns=3))


@image
def test_image_of_samples_that_are_pairs():
    return bare(plot_samples(random(200, 2)))


@image
def test_image_of_samples_that_are_numbers():
    return bare(plot_samples(random(400)))


@fine_image
def test_image_of_reconstructions():
    return bare(plot_reconstructions(IMAGES, 0.5 * IMAGES, num_columns=4))


@image
def test_image_of_reconstructions_of_curves():
    return bare(plot_reconstructions(CURVES, CURVES + 0.3 * random(*CURVES.shape), num_columns=3))


@image
def test_image_of_reconstructions_of_numbers():
    return bare(plot_reconstructions(random(40), random(40) + 0.3 * random(40, seed=1)))


@fine_image
def test_image_of_traversals():
    return bare(plot_traversals(make_traversal(np.linspace(0, 1, 5)[:, None, None] * IMAGES[:2, None])))


@image
def test_image_of_traversals_of_curves():
    return bare(plot_traversals(make_traversal(np.stack([CURVES, CURVES[::-1] ** 2]))))


@image
def test_image_of_traversals_of_numbers():
    return bare(plot_traversals(make_traversal(np.stack([CURVES[:, :2], CURVES[:, 4:6]]))))


@fine_image
def test_image_of_an_interpolation():
    return bare(plot_interpolation(make_interpolation(IMAGES)))


@fine_image
def test_image_of_effects():
    return bare(plot_effects(make_effects(), num_maps=3))


@image
def test_image_of_effects_on_curves():
    return bare(plot_effects(make_effects((20,)), num_maps=2))


@image
def test_image_of_training():
    return bare(plot_training(make_history()))


@image
def test_image_of_several_runs():
    runs = {"a": make_history(), "b": make_history(2.0, seed=1)}
    return bare(plot_training(runs, metrics=["loss", "held_out_log_likelihood"]))


@image
def test_image_of_a_ladder():
    return bare(plot_ladder(make_rungs(), datum=1))


@image
def test_image_of_a_ladder_of_many_data():
    return bare(plot_ladder(make_rungs(8)))


@image
def test_image_of_evidence():
    return bare(plot_evidence(SCORES))


@fine_image
def test_image_of_evidence_against_a_number():
    return bare(plot_evidence(COUNTS))


# What all have in common ---------------------------------------------------------------------------------------------

DRAWN = {
    "plot_densities": (lambda **options: plot_densities(make_prior(3), **options), 3),
    "plot_effects": (lambda **options: plot_effects(make_effects(), num_maps=2, **options), 3),
    "plot_evidence": (lambda **options: plot_evidence(SCORES, **options), None),
    "plot_interpolation": (lambda **options: plot_interpolation(make_interpolation(IMAGES), **options), 1),
    "plot_ladder": (lambda **options: plot_ladder(make_rungs(), **options), 2),
    "plot_reconstructions": (lambda **options: plot_reconstructions(IMAGES, IMAGES, **options), None),
    "plot_samples": (lambda **options: plot_samples(IMAGES, **options), None),
    "plot_training": (lambda **options: plot_training(make_history(), **options), 3),
    "plot_traversals": (lambda **options: plot_traversals(make_traversal(np.stack([IMAGES] * 2)), **options), 2),
}
ALL = pytest.mark.parametrize(("draw", "number"), DRAWN.values(), ids=DRAWN)


def test_every_picture_is_tried():
    assert sorted(DRAWN) == NAMES


@ALL
def test_a_figure_has_the_size_that_is_asked_for_and_the_axes_are_returned(draw, number):
    axes = draw(figsize=(7.0, 3.5))
    assert np.shape(axes) == (() if number is None else (number,))
    figure = np.ravel(np.array(axes, dtype=object))[0].figure
    assert tuple(figure.get_size_inches()) == (7.0, 3.5)
    assert all(at in figure.axes for at in np.ravel(np.array(axes, dtype=object)))


@ALL
def test_axes_that_are_given_are_drawn_on_and_no_others(draw, number):
    figure, given = plt.subplots(1, number or 1, squeeze=False)
    axes = draw(ax=given[0, 0] if number is None else list(given[0]))
    assert list(np.ravel(np.array(axes, dtype=object))) == list(given[0]) == figure.axes
    assert plt.get_fignums() == [figure.number]
    assert all(at.has_data() for at in given[0])


@ALL
def test_axes_that_are_no_axes_or_too_few_are_refused(draw, number):
    with pytest.raises(ValueError, match="ax must be Matplotlib's axes or an array of them, got Figure"):
        draw(ax=plt.figure())
    with pytest.raises(ValueError, match=f"ax must hold {number or 1} axes for this picture, got {(number or 1) - 1}"):
        draw(ax=[plt.gca()] * ((number or 1) - 1))
    with pytest.raises(ValueError, match="figsize is of a new figure"):
        draw(ax=[plt.gca()] * (number or 1), figsize=(3, 3))


@ALL
def test_without_matplotlib_the_error_says_what_to_install(draw, number, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install 'numpyro_kaem\[reading\]'"):
        draw()


# Densities -----------------------------------------------------------------------------------------------------------


def test_lines_are_the_densities_and_dots_their_quantiles():
    prior = make_prior(3)
    axes = plot_densities(prior.to_event(1), coordinates=["z[2]", 0], quantiles=(0.1, 0.4, 0.7))
    assert [at.get_title() for at in axes] == ["z[2]", "z[0]"]
    for at, d in zip(axes, (2, 0), strict=True):
        line, dots = at.lines
        z, density = line.get_data()
        assert np.all(np.diff(z) >= 0)
        assert np.allclose(density, np.exp(log_prob(prior, np.tile(z[:, None], 3)))[:, d], rtol=1e-4)
        assert np.trapezoid(density, z) > 0.99
        assert np.allclose(prior.cdf(np.tile(dots.get_xdata()[:, None], 3))[:, d], [0.1, 0.4, 0.7], atol=1e-4)
        assert np.allclose(dots.get_ydata(), np.interp(dots.get_xdata(), z, density))
        reference = at.collections[0].get_paths()[0].vertices
        assert np.isclose(reference[:, 1].max(), np.exp(dist.Normal().log_prob(0.0)), atol=1e-3)


def test_a_density_is_drawn_inside_of_its_support():
    (at,) = plot_densities(dist.Exponential(2.0))
    z, density = at.lines[0].get_data()
    assert 0.0 < z[0] < 0.01
    assert np.allclose(density, 2.0 * np.exp(-2.0 * z), rtol=1e-4)
    assert not at.collections  # there is no reference


def test_the_band_of_draws_has_pointwise_quantiles():
    prior = make_prior(30, 2, scale=0.5)
    axes = plot_densities(prior, draws=True, level=0.8)
    assert [at.get_title() for at in axes] == ["z[0]", "z[1]"]
    for d, at in enumerate(axes):
        z, middle = at.lines[0].get_data()
        every = np.exp(log_prob(prior, np.broadcast_to(z[:, None, None], (len(z), 30, 2))))[..., d]
        assert np.allclose(middle, np.median(every, axis=1), rtol=1e-4)
        # A polygon that goes along one end of the band and comes back along the other.
        low, high = np.quantile(every, [0.1, 0.9], axis=1)
        vertices = at.collections[1].get_paths()[0].vertices
        assert np.allclose(vertices[1 : 1 + len(z), 1], low, rtol=1e-4)
        assert np.allclose(vertices[2 + len(z) : 2 + 2 * len(z), 1][::-1], high, rtol=1e-4)


@pytest.mark.slow
def test_the_common_reference_of_a_mixture_is_drawn():
    (at,) = plot_densities(KAMixture(make_prior(2), jnp.zeros(2)))
    assert len(at.collections) == 1


def test_a_mixture_of_whole_latents_is_drawn_by_component():
    clusters = dist.MixtureSameFamily(dist.Categorical(np.full(30, 1 / 30)), make_prior(30, 2).to_event(1))
    axes = plot_densities(clusters, component=2)
    z, density = axes[1].lines[0].get_data()
    exact = np.exp(log_prob(make_prior(30, 2), np.broadcast_to(z[:, None, None], (len(z), 30, 2))))[:, 2, 1]
    assert np.allclose(density, exact, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinates": [7]}, "coordinate must be one of the 3 .* got 7"),
        ({"coordinates": []}, r"coordinates must name one at least, got \[\]"),
        ({"quantiles": (0.5, 1.0)}, r"quantiles must be probabilities between 0 and 1, got \(0.5, 1.0\)"),
        ({"level": 95.0}, r"level must be probabilities between 0 and 1, got \[95.0\]"),
        ({"num_columns": 0}, "num_columns must be a whole number of at least 1, got 0"),
        ({"component": 1}, "component is for a mixture"),
    ],
)
def test_densities_that_cannot_be_drawn(options, message):
    with pytest.raises(ValueError, match=message):
        plot_densities(make_prior(3), **options)


def test_draws_need_an_axis():
    with pytest.raises(ValueError, match=r"first batch axis is one of draws, got batch shape \(\)"):
        plot_densities(make_prior(), draws=True)


# Outputs -------------------------------------------------------------------------------------------------------------


def test_tiles_are_the_samples_row_by_row():
    canvas = plot_samples(IMAGES[:5, :, :6], num_columns=3).images[0].get_array()
    assert canvas.shape == (2 * 9 - 1, 3 * 7 - 1)
    assert np.array_equal(canvas[:8, 14:], IMAGES[2, :, :6])
    assert np.array_equal(canvas[9:, 7:13], IMAGES[4, :, :6])
    assert np.isnan(canvas[9:, 14:].filled(np.nan)).all()
    assert np.isnan(canvas[8].filled(np.nan)).all()


@pytest.mark.parametrize(("given", "scale"), [(IMAGES, 1.0), (255 * IMAGES, 255.0)])
def test_colours_are_from_0_to_1_or_to_255(given, scale):
    colours = np.stack([given, 0.5 * given, 0 * given], axis=-1)
    assert np.allclose(plot_samples(colours).images[0].get_array()[:8, :8], colours[0] / scale)


def test_images_have_one_scale_which_may_be_given():
    assert plot_samples(0.3 * IMAGES).images[0].get_clim() == (0.0, 1.0)
    assert plot_samples(4.0 * IMAGES - 1.0).images[0].get_clim() == (4.0 * IMAGES.min() - 1.0, 3.0)
    assert plot_samples(IMAGES, vmax=0.5).images[0].get_clim() == (0.0, 0.5)
    assert plot_samples(IMAGES[..., None], cmap="cividis").images[0].get_cmap().name == "cividis"


def test_curves_of_tiles_have_one_scale():
    curves = np.array([[0.0, 1.0, 0.0], [0.0, 4.0, 2.0]])
    (collection,) = plot_samples(curves, num_columns=2).collections
    heights = [0.95 - segment[:, 1] for segment in collection.get_segments()]
    assert np.allclose(heights, 0.9 * curves / 4.0)


def test_a_scatter_and_a_histogram_are_of_all_samples():
    z = random(300, 2)
    assert np.array_equal(np.transpose(plot_samples(z).lines[0].get_data()), z)
    bars = plot_samples(z[:, :1]).patches
    assert np.isclose(sum(bar.get_width() * bar.get_height() for bar in bars), 1.0)


def test_reconstructions_lie_below_their_data():
    ax = plot_reconstructions(IMAGES, 0.5 * IMAGES, num_columns=4)
    canvas = ax.images[0].get_array()
    assert np.array_equal(canvas[18:26, 9:17], IMAGES[5])
    assert np.array_equal(canvas[27:, 9:17], 0.5 * IMAGES[5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "model"] * 2


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((0, 8, 8)), r"samples must be of shape \(num_samples, \*event\) .* got shape \(0, 8, 8\)"),
        (1.0, r"got shape \(\)"),
        (np.zeros((3, 8, 8, 2)), r"samples must be numbers, pairs, curves .* got data of shape \(8, 8, 2\)"),
        (np.zeros((3, 2, 2, 2, 2)), r"got data of shape \(2, 2, 2, 2\)"),
        (np.array([1.0, np.nan, np.inf]), "samples must be finite, but 2 of 3 numbers are infinite or NaN"),
        (np.array(["a"]), "samples must be real numbers, got <U1"),
    ],
)
def test_samples_that_cannot_be_drawn(samples, message):
    with pytest.raises(ValueError, match=message):
        plot_samples(samples)


def test_reconstructions_are_as_many_as_data():
    with pytest.raises(ValueError, match=r"shape of x, \(6, 8, 8\), got \(5, 8, 8\)"):
        plot_reconstructions(IMAGES, IMAGES[:5])


# Paths ---------------------------------------------------------------------------------------------------------------


def test_traversals_are_drawn_in_their_order_or_in_another():
    traversal = make_traversal(np.linspace(0, 1, 5)[:, None, None] * IMAGES[:2, None])
    for coordinates, order in ((None, [0, 1]), ([1, "z[4]"], [1, 0]), (["z[1]"], [1])):
        axes = plot_traversals(traversal, coordinates=coordinates)
        assert [at.get_yticklabels()[0].get_text() for at in axes] == [traversal.names[place] for place in order]
        for at, place in zip(axes, order, strict=True):
            assert np.array_equal(at.images[0].get_array()[:, 36:], traversal.outputs[place, 4])
        assert [label.get_text() for label in axes[-1].get_xticklabels()] == ["0.1", "0.3", "0.5", "0.7", "0.9"]


def test_curves_of_a_traversal_go_from_dark_to_light():
    axes = plot_traversals(make_traversal(np.stack([CURVES, -CURVES])))
    assert np.array_equal([line.get_ydata() for line in axes[1].lines], -CURVES)
    lightness = [np.sum(line.get_color()[:3]) for line in axes[1].lines]
    assert np.all(np.diff(lightness) > 0)


def test_several_ways_have_a_row_each():
    ways = make_interpolation(IMAGES)
    ways.outputs, ways.weights = np.stack([IMAGES, IMAGES[::-1]]), np.tile(ways.weights, (2, 1))
    axes = plot_interpolation(ways)
    assert np.array_equal(axes[1].images[0].get_array()[:, :8], IMAGES[-1])


def test_paths_that_cannot_be_drawn():
    with pytest.raises(ValueError, match=r"coordinates must be some of the traversal's, z\[4\], z\[1\], got \[0\]"):
        plot_traversals(make_traversal(np.stack([CURVES] * 2)), coordinates=[0])
    with pytest.raises(TypeError, match="traversal must be what `traverse` returns, but a dict has no coordinates"):
        plot_traversals({})
    with pytest.raises(TypeError, match="interpolation must be what `interpolate` returns, but a ndarray has no"):
        plot_interpolation(IMAGES)
    with pytest.raises(ValueError, match="give `interpolate` the function"):
        plot_interpolation(SimpleNamespace(outputs=None, weights=np.zeros(3)))


def test_what_traverse_interpolate_and_effects_return_is_drawn():
    prior = dist.Normal(jnp.zeros(2), jnp.array([1.0, 3.0])).to_event(1)

    def outer(z):
        return z[..., None] * z[..., None, :]

    axes = plot_traversals(traverse(prior, outer))
    assert [at.get_yticklabels()[0].get_text() for at in axes] == ["z[1]", "z[0]"]
    assert len(plot_interpolation(interpolate(jnp.zeros(2), jnp.ones(2), prior=prior, function=outer))) == 1
    bars, _ = plot_effects(effects(jax.random.key(0), prior, outer, num_samples=64), num_maps=1)
    assert [label.get_text() for label in bars.get_yticklabels()] == ["z[1]", "z[0]"]


# Effects -------------------------------------------------------------------------------------------------------------


def test_bars_are_ranked_with_two_standard_errors_and_maps_follow_the_ranking():
    bars, *maps = plot_effects(make_effects(), num_coordinates=3, num_maps=2)
    assert [label.get_text() for label in bars.get_yticklabels()] == ["z[2]", "z[0]", "z[3]"]
    total, first = bars.containers[0], bars.containers[2]
    assert [bar.get_width() for bar in total] == [0.5, 0.3, 0.2]
    assert [bar.get_width() for bar in first] == [0.4, 0.1, 0.2]
    errors = bars.containers[1].lines[2][0].get_segments()
    assert np.allclose([segment[:, 0] for segment in errors], [[0.44, 0.56], [0.24, 0.36], [0.14, 0.26]])
    assert [at.get_title() for at in maps] == ["z[2]", "z[0]"]
    drawn = [at.images[0].get_array() for at in maps]
    assert np.allclose(drawn[1], IMAGES[0] * make_effects().variance)
    assert len({at.images[0].get_clim() for at in maps}) == 1


def test_the_map_of_colours_is_the_sum_of_their_variances():
    found = make_effects((8, 8, 2))
    found.variance = np.stack([np.ones((8, 8)), np.full((8, 8), 3.0)], axis=-1)
    _, at = plot_effects(found, num_maps=1)
    assert np.allclose(at.images[0].get_array(), found.total[2, ..., 0] + 3.0 * found.total[2, ..., 1])


def test_effects_that_cannot_be_drawn():
    with pytest.raises(TypeError, match="effects must be what `effects` returns, but a list has no whole_first_order"):
        plot_effects([0.1])
    with pytest.raises(ValueError, match=r"num_maps must be 0 for outputs of shape \(\)"):
        plot_effects(make_effects(()), num_maps=1)
    with pytest.raises(ValueError, match="num_coordinates must be a whole number of at least 1, got 0"):
        plot_effects(make_effects(), num_coordinates=0)


# Training ------------------------------------------------------------------------------------------------------------


def test_a_picture_of_training_has_the_history():
    history = make_history(num_rungs=np.full(60, np.nan))
    loss, score, acceptance = plot_training(SimpleNamespace(history=history))
    assert [at.get_title() for at in (loss, score, acceptance)] == [
        "loss per datum",
        "held-out log-likelihood",
        "acceptance",
    ]
    steps, epochs = loss.lines
    assert np.array_equal(steps.get_ydata(), history["loss"])
    assert np.allclose(steps.get_xdata(), np.arange(1, 61) / 10)
    assert np.array_equal(epochs.get_ydata(), history["epoch_loss"])
    assert np.array_equal(epochs.get_xdata(), np.arange(6) + 0.5)
    assert np.array_equal(score.lines[0].get_data(), [[2, 4, 6], [-3.0, -2.0, -1.8]])
    assert len(acceptance.lines) == 4


def test_first_steps_do_not_shrink_the_rest():
    history = make_history(num_epochs=50)
    history["loss"][0] = 1e6
    assert plot_training(history, metrics=["loss"])[0].get_ylim()[1] < 10


def test_steps_that_were_skipped_are_gaps():
    history = make_history()
    history["loss"][7] = np.inf
    steps = plot_training(history, metrics=["loss"])[0].lines[0].get_ydata()
    assert np.array_equal(np.isnan(steps), np.arange(60) == 7)


def test_runs_are_told_apart_by_name_and_metrics_of_some_are_drawn():
    runs = {"first": make_history(ess=np.full(60, 9.0)), "second": make_history(2.0)}
    loss, ess = plot_training(runs, metrics=["loss", "ess"])
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["first", "second"]
    assert len(ess.lines) == 2
    assert ess.get_yscale() == "log"


def test_what_was_not_trained_has_no_picture():
    kaem = KAEM.create(jax.random.key(0), (3,), latent_size=2, likelihood="normal")
    with pytest.raises(ValueError, match="results must be trained, but has no history: call its fit first"):
        plot_training(kaem)
    with pytest.raises(ValueError, match=r"metrics must be some of \['loss', .*\], which were recorded, got \['ess'\]"):
        plot_training(make_history(), metrics=["ess"])
    with pytest.raises(TypeError, match=r"results must be a FitResult, .* got list"):
        plot_training([1.0, 0.5])
    with pytest.raises(ValueError, match="got an empty dict"):
        plot_training({})


# Tempering and evidence ----------------------------------------------------------------------------------------------


def test_a_ladder_shows_rates_and_the_integrand_of_a_datum():
    rungs = make_rungs()
    rates, integrand = plot_ladder(SimpleNamespace(rungs=rungs), datum=2)
    moves, swaps = rates.lines
    assert np.array_equal(moves.get_data(), [np.arange(6), rungs.acceptance[2]])
    assert np.array_equal(swaps.get_data(), [np.arange(5) + 0.5, rungs.swap_acceptance[2]])
    assert np.array_equal(integrand.lines[0].get_data(), [rungs.temperatures[2], rungs.log_likelihood_mean[2]])
    # The boxes: all that the trapezoidal rule can be wrong by, either way, is half of their area.
    area = sum(box.get_width() * box.get_height() for box in integrand.patches)
    assert np.isclose(area, np.sum(np.diff(rungs.temperatures[2]) * np.diff(rungs.log_likelihood_mean[2])))


def test_means_over_data_are_drawn_where_ladders_are_the_same():
    rungs = make_rungs(50)
    _, integrand = plot_ladder(rungs)
    assert len(integrand.lines) == 25 + 1
    assert np.allclose(integrand.lines[-1].get_ydata(), rungs.log_likelihood_mean.mean(0))
    t = rungs.temperatures.copy()
    t[0, 1] *= 0.5
    _, integrand = plot_ladder(rungs._replace(temperatures=t))
    assert len(integrand.lines) == 25


def test_the_ladder_of_a_training_run_is_that_of_its_last_epoch():
    t = np.tile([0.0, 1.0], (60, 1))
    history = make_history(temperatures=t, swap_acceptance=np.linspace(0.0, 1.0, 60))
    (rates,) = plot_ladder(history)
    assert np.allclose(rates.lines[0].get_ydata(), history["acceptance"][-10:].mean(0))
    assert np.allclose(rates.lines[1].get_ydata(), history["swap_acceptance"][-10:].mean())
    with pytest.raises(ValueError, match=r"panels must be some of \('rates',\)"):
        plot_ladder(history, panels=["integrand"])


def test_ladders_that_cannot_be_drawn():
    with pytest.raises(ValueError, match="datum must be below 3, the number of data, got 3"):
        plot_ladder(make_rungs(), datum=3)
    with pytest.raises(ValueError, match=r"panels must be some of \('rates', 'integrand'\), .* got \('swaps',\)"):
        plot_ladder(make_rungs(), panels=["swaps"])
    for without in (SimpleNamespace(rungs=None), make_history()):
        with pytest.raises(TypeError, match="posterior must be of a sampler with temperatures"):
            plot_ladder(without)


def test_evidence_is_compared_datum_by_datum():
    ax = plot_evidence(SCORES)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["better", "good", "bad"]
    assert ax.get_xlabel().startswith("log-evidence less that of better\n")
    line, _, (errors,) = ax.containers[0].lines
    difference = SCORES["bad"] - SCORES["better"]
    assert np.allclose(line.get_xdata(), [0.0, -0.3, difference.mean()])
    widths = [np.ptp(segment[:, 0]) for segment in errors.get_segments()]
    assert np.allclose(widths, [0.0, 0.0, 4.0 * difference.std(ddof=1) / 50**0.5])


def test_of_one_datum_errors_are_the_sampler_s():
    one, other = (
        SimpleNamespace(log_evidence=np.array([value]), log_evidence_std_error=np.array([error]))
        for value, error in ((-3.0, 0.3), (-5.0, 0.4))
    )
    _, _, (errors,) = plot_evidence({"one": one, "other": other}).containers[0].lines
    assert np.allclose([np.ptp(segment[:, 0]) for segment in errors.get_segments()], [0.0, 4.0 * 0.5])


def test_models_that_are_numbers_make_a_curve_and_the_baseline_may_be_chosen():
    ax = plot_evidence(COUNTS["one"], baseline=1)
    line = ax.containers[0].lines[0]
    assert np.allclose(line.get_data(), [[1, 2, 4], [0.0, 0.5, 0.75]])
    ax = plot_evidence(COUNTS, baseline=("other", 4))
    assert [container.get_label() for container in ax.containers] == ["one", "other"]
    assert np.allclose(ax.containers[1].lines[0].get_ydata(), [-1.5, -0.5, 0.0])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({"a": np.zeros(3)}, {}, r"two models of the same data at least, got numbers of data \{'a': 3\}"),
        ({"a": np.zeros(3), "b": np.zeros(4)}, {}, r"got numbers of data \{'a': 3, 'b': 4\}"),
        ({}, {}, r"got numbers of data \{\}"),
        ({"a": np.zeros(3), "b": SimpleNamespace(log_evidence=None)}, {}, "of 'b' must be of a sampler that estimates"),
        ({"a": np.zeros(3), "b": np.full(3, -np.inf)}, {}, "evidence of 'b' must be finite, but 3 of 3"),
        ({"a": np.zeros(3), "b": np.zeros(3)}, {"baseline": "c"}, r"baseline must be one of \['a', 'b'\], got 'c'"),
    ],
)
def test_evidence_that_cannot_be_drawn(given, options, message):
    with pytest.raises(ValueError, match=message):
        plot_evidence(given, **options)
