"""Paths go where the mass is, end where they should, and stop at modes."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from two_bumps import bimodal_energy

from numpyro_kaem import KAPrior, interpolate, modes, traverse
from numpyro_kaem.kaem import ClusterPrior

TWO = dist.Normal(jnp.zeros(2), 1.0)


@pytest.fixture(scope="module")
def bumps():
    """Two coordinates, each with bumps at -2 and 2 of 0.4 and 0.6 of the mass."""
    return KAPrior(bimodal_energy(), dist.Normal(0.0, 1.0)).expand((2,))


def test_points_of_a_traversal_are_even_in_probability_and_the_rest_is_held(bumps):
    paths = traverse(bumps, lambda z: z @ jnp.array([1.0, 3.0]), at=jnp.array([0.3, -2.0]), num_points=5)
    assert paths.coordinates == (1, 0) and paths.names == ("z[1]", "z[0]")
    assert np.allclose(paths.probabilities, np.linspace(0.02, 0.98, 5))
    for row, d in enumerate(paths.coordinates):
        assert np.allclose(bumps.cdf(paths.z[row])[:, d], paths.probabilities[row], atol=2e-6)
        assert np.all(paths.z[row, :, 1 - d] == np.float32([0.3, -2.0])[1 - d])
    assert np.allclose(paths.outputs, paths.z @ np.array([1.0, 3.0]), atol=1e-5)
    # Of a function that is linear in it a path is as long as from end to end.
    ends = np.abs(paths.outputs[:, -1] - paths.outputs[:, 0])
    assert np.allclose(paths.change, ends, rtol=1e-4) and paths.change[0] > paths.change[1]


def test_the_medians_are_held_where_nothing_is_said():
    prior = dist.LogNormal(jnp.array([0.0, 1.0]), 1.0)
    paths = traverse(prior, lambda z: z, num_points=3, quantiles=(0.1, 0.9))
    assert np.allclose(paths.z[:, 1], np.exp([[0.0, 1.0]] * 2), rtol=1e-5)


def test_change_is_the_length_of_a_path_that_turns_back():
    paths = traverse(TWO, lambda z: jnp.stack([z[:, 0] ** 2, 0.1 * z[:, 1]], axis=-1), num_points=3)
    quantile = float(TWO.icdf(0.98)[0])
    lengths = [2.0 * quantile**2, 0.2 * quantile]
    # Distances are roots of means over two outputs, of which one moves.
    assert np.allclose(paths.change, np.array(lengths) / np.sqrt(2.0), rtol=1e-3)


def test_even_points_are_even_along_the_outputs():
    paths = traverse(TWO, jnp.exp, num_points=6, even=True)
    steps = np.diff(np.stack([paths.outputs[row, :, d] for row, d in enumerate(paths.coordinates)]), axis=1)
    assert np.all(np.abs(steps / steps.mean(axis=1, keepdims=True) - 1.0) < 0.02)
    assert np.allclose(paths.probabilities[:, [0, -1]], [0.02, 0.98], atol=1e-6)
    still = traverse(TWO, lambda z: 0.0 * z, num_points=4, even=True)
    assert np.allclose(still.probabilities, np.linspace(0.02, 0.98, 4)) and np.all(still.change == 0.0)


def test_coordinates_are_chosen_by_number_index_or_name_and_outputs_may_be_images():
    prior = dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2)

    def image(z):
        return z[..., None] * jnp.arange(1.0, 4.0)

    paths = traverse(prior, image, ["z[1, 2]", (0, 1), 0], num_points=4)
    assert set(paths.names) == {"z[0, 0]", "z[0, 1]", "z[1, 2]"}
    assert paths.z.shape == (3, 4, 2, 3) and paths.outputs.shape == (3, 4, 2, 3, 3)
    assert traverse(prior, image, "z[0, 1]", num_points=2).coordinates == (1,)


def test_the_modes_of_two_bumps_are_found_with_their_masses(bumps):
    for found in modes(bumps):
        assert len(found) == 2
        assert np.allclose([mode.z for mode in found], [-2.0, 2.0], atol=0.02)
        assert np.allclose([mode.mass for mode in found], [0.4, 0.6], atol=0.01)
        assert np.allclose([mode.probability for mode in found], [0.2, 0.7], atol=0.02)


def test_densities_with_one_mode_have_one():
    assert [[mode.mass for mode in found] for found in modes(dist.Normal(jnp.array([0.0, 3.0]), 1.0))] == [[1.0]] * 2
    assert abs(modes(dist.Gumbel(2.0, 1.0))[0][0].z - 2.0) < 0.01
    assert abs(modes(dist.Uniform(0.0, 2.0))[0][0].z - 1.0) < 0.01
    assert modes(dist.Exponential(1.0))[0][0].z < 0.001


def test_a_traversal_stops_at_the_modes(bumps):
    paths = traverse(bumps, lambda z: z, num_points=6, through="modes")
    for row, d in enumerate(paths.coordinates):
        for mode in modes(bumps)[d]:
            assert np.min(np.abs(paths.z[row, :, d] - mode.z)) < 1e-3
    assert np.all(np.diff(paths.probabilities, axis=1) > 0.0)


def test_no_point_lies_in_the_gap_but_of_a_straight_line(bumps):
    path = interpolate([-2.2, 1.9], [1.8, -2.3], prior=bumps, num_points=10)
    assert np.all(np.abs(path.z) > 1.0)
    straight = interpolate([-2.2, 1.9], [1.8, -2.3], "linear", num_points=10)
    assert np.any(np.abs(straight.z) < 0.3)
    assert np.allclose(straight.z[:, 0], np.linspace(-2.2, 1.8, 10))


def test_between_normal_latents_all_paths_but_circles_are_straight():
    prior = dist.Normal(jnp.array([1.0, -3.0]), jnp.array([0.5, 20.0]))
    a, b = np.array([0.4, 30.0]), np.array([2.2, -50.0])
    paths = [interpolate(a, b, along, prior=prior).z for along in ("cdf", "linear")]
    assert np.allclose(*paths, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("along", ["cdf", "linear", "slerp"])
def test_paths_end_where_they_should_far_out_too(bumps, along):
    a, b = np.float32([-9.0, 14.0]), np.float32([7.5, 1e-3])
    for prior in (bumps, dist.Laplace(jnp.zeros(2), 1.0)):
        path = interpolate(a, b, along, prior=prior, num_points=1001)
        assert np.array_equal(path.z[0], a) and np.array_equal(path.z[-1], b)
        assert np.all(np.isfinite(path.z))
        if along != "slerp":
            assert np.all(np.diff(path.z, axis=0) * (b - a) >= 0.0)
        # The points next to the ends are near them: no digits of the tails are lost.
        if along == "cdf" and prior is bumps:
            assert abs(path.z[1, 0] - a[0]) < 0.1 and abs(path.z[-2, 0] - b[0]) < 0.1


def test_circles_keep_the_norm_and_its_even_change():
    a, b = np.array([3.0, 0.0, 4.0]), np.array([0.0, 5.0, 0.0])
    path = interpolate(a, b, "slerp", num_points=7)
    assert np.allclose(np.linalg.norm(path.z, axis=1), 5.0, rtol=1e-5)
    angles = np.sum(path.z[:-1] * path.z[1:], axis=1) / 25.0
    assert np.allclose(np.arccos(angles), np.pi / 12.0, rtol=1e-3)
    longer = interpolate(a, 3.0 * b, "slerp", num_points=5)
    assert np.allclose(np.linalg.norm(longer.z, axis=1), np.linspace(5.0, 15.0, 5), rtol=1e-5)


def test_circles_to_the_opposite_point_and_from_zero():
    a = np.array([2.0, 0.5, -1.0])
    opposite = interpolate(a, -a, "slerp", num_points=5).z
    assert np.allclose(np.linalg.norm(opposite, axis=1), np.linalg.norm(a), rtol=1e-5)
    assert abs(opposite[2] @ a) < 1e-5
    assert np.allclose(interpolate(np.zeros(3), a, "slerp", num_points=3).z[1], 0.5 * a)
    assert np.allclose(interpolate(a, a, "slerp").z, a, rtol=1e-6)
    assert np.allclose(interpolate([1.0], [-1.0], "slerp", num_points=3).z[:, 0], [1.0, 0.0, -1.0])


def test_circles_are_circles_in_normal_scores():
    prior = dist.Normal(jnp.array([1.0, -1.0]), jnp.array([10.0, 0.1]))
    path = interpolate([11.0, -1.0], [1.0, -0.9], "slerp", prior=prior, num_points=5)
    scores = (path.z - [1.0, -1.0]) / [10.0, 0.1]
    assert np.allclose(np.linalg.norm(scores, axis=1), 1.0, atol=1e-4)


def test_an_even_path_is_even_along_the_outputs():
    path = interpolate([-1.0, 0.0], [2.0, 1.0], "linear", function=lambda z: jnp.exp(z), num_points=6, even=True)
    steps = np.linalg.norm(np.diff(path.outputs, axis=0), axis=1)
    assert np.all(np.abs(steps / steps.mean() - 1.0) < 0.02)
    assert path.weights[0] == 0.0 and path.weights[-1] == 1.0 and np.all(np.diff(path.weights) > 0.0)
    assert np.allclose(path.z[:, 0], -1.0 + 3.0 * path.weights, atol=1e-5)


def test_many_pairs_go_at_once():
    a = np.random.default_rng(0).normal(size=(3, 4, 2)).astype(np.float32)
    many = interpolate(a, np.zeros(2), prior=TWO, function=lambda z: z.sum(axis=1), num_points=5, even=True)
    assert many.z.shape == (3, 4, 5, 2) and many.outputs.shape == many.weights.shape == (3, 4, 5)
    one = interpolate(a[1, 2], np.zeros(2), prior=TWO, function=lambda z: z.sum(axis=1), num_points=5, even=True)
    assert np.allclose(many.z[1, 2], one.z, atol=1e-5) and np.allclose(many.outputs[1, 2], one.outputs, atol=1e-5)


@pytest.mark.slow
def test_a_component_of_clusters_is_walked_in():
    clusters = ClusterPrior(jax.random.key(3), 2, 2)
    with pytest.raises(ValueError, match="component=0 to 1"):
        traverse(clusters, lambda z: z)
    paths = traverse(clusters, lambda z: z, num_points=3, component=1)
    factors = clusters().component_distribution.base_dist
    medians = [factors.icdf(jnp.full((2, 2), 0.5))[1]]
    assert np.allclose(paths.z[:, 1], medians, atol=1e-5)
    path = interpolate(paths.z[0, 0], paths.z[0, 2], prior=clusters, component=1, num_points=3)
    assert np.allclose(path.z[1], paths.z[0, 1], atol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinates": "z[2]"}, r"from z\[0\] to z\[1\], given by number, index or name; got 'z\[2\]'"),
        ({"coordinates": [0, 2]}, "got 2"),
        ({"coordinates": [0, 0]}, "different ones"),
        ({"coordinates": []}, "one or more"),
        ({"at": jnp.zeros(3)}, r"at must be a latent, of shape \(2,\), got \(3,\)"),
        ({"at": jnp.array([jnp.nan, 0.0])}, "at must be finite"),
        ({"num_points": 1}, "num_points"),
        ({"quantiles": (0.9, 0.1)}, "quantiles must be two rising"),
        ({"quantiles": (0.0, 1.0)}, "quantiles must be two rising"),
        ({"through": "antimodes"}, "through must be"),
        ({"through": "modes", "even": True}, "give one"),
        ({"component": 0}, "component is for a mixture"),
    ],
)
def test_a_traversal_s_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        traverse(TWO, lambda z: z, **options)


def test_functions_that_do_not_fit_or_are_not_finite_are_refused():
    with pytest.raises(ValueError, match=r"use jax\.vmap"):
        traverse(TWO, lambda z: z.sum())
    with pytest.raises(ValueError, match=r"of the latent z = \[-2\.0"):
        traverse(TWO, lambda z: jnp.log(z + 2.0))
    with pytest.raises(ValueError, match=r"of the latent z = \[2\., 0\.\]"):
        interpolate([0.0, 0.0], [2.0, 0.0], "linear", function=lambda z: jnp.log(1.4 - z), num_points=3)
    with pytest.raises(ValueError, match=r"of the latent z = \[1\.4"):
        interpolate([0.0, 0.0], [2.0, 0.0], "linear", function=lambda z: jnp.log(1.4 - z), num_points=3, even=True)


@pytest.mark.parametrize(
    ("ends", "options", "message"),
    [
        (([0.0, 0.0], [1.0, 1.0]), {"along": "geodesic"}, "along must be one of"),
        (([0.0, 0.0], [1.0, 1.0]), {}, "needs the prior"),
        (([0.0, 0.0], [1.0]), {"along": "linear"}, "z_a and z_b must have one shape"),
        (([0.0, 0.0], [1.0]), {"prior": TWO}, r"z_b must end in the shape of a latent, \(2,\), got \(1,\)"),
        (([[0.0, 0.0]] * 2, [[1.0, 1.0]] * 3), {"prior": TWO}, "leading axes that broadcast"),
        (([0.0, np.inf], [1.0, 1.0]), {"prior": TWO}, "z_a must be finite"),
        (([0.5, 0.5], [1.0, -1.0]), {"prior": dist.Exponential(jnp.ones(2))}, "z_b must be in the support"),
        (([0.0, 0.0], [1.0, 1.0]), {"prior": TWO, "even": True}, "needs the function"),
        (([0.0, 0.0], [1.0, 1.0]), {"prior": TWO, "num_points": 1}, "num_points"),
        (([0.0, 0.0], [1.0, 1.0]), {"along": "linear", "component": 1}, "component is of a prior"),
    ],
)
def test_an_interpolation_s_wrong_arguments_are_named(ends, options, message):
    with pytest.raises(ValueError, match=message):
        interpolate(*ends, **options)
