"""Inverse CDFs as tables of integers: their errors are what they say, in float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from prior_cases import quick_jit, random_energy

from numpyro_kaem import BSpline, KAMixture, KAPrior

BITS, ADDRESS_BITS = 12, 6
SIZE = 2**ADDRESS_BITS


def prior(reference, domain, batch_shape=(2,)):
    return KAPrior(random_energy(BSpline(6, 3, domain), batch_shape, 1.5, dtype=np.float64), reference)


def mixture():
    return KAMixture(prior(dist.Normal(0.0, 1.0), (-3.0, 3.0), (2, 3)), jnp.array([0.5, 0.0, -0.5]))


# The distribution, and the sides on which its support has no end.
CASES = {
    "open on both sides": (lambda: prior(dist.Normal(0.0, 1.0), (-3.0, 3.0)), (0, SIZE - 1)),
    "open above": (lambda: prior(dist.LogNormal(0.0, 1.0), (0.1, 5.0)), (SIZE - 1,)),
    "bounded": (lambda: prior(dist.Uniform(-1.0, 2.0), (-1.0, 2.0)), ()),
    "mixture": (mixture, (0, SIZE - 1)),
    "truncated": (lambda: prior(dist.Normal(0.0, 1.0), (-3.0, 3.0)).truncate(low=-0.5), (SIZE - 1,)),
}


@pytest.mark.parametrize("case", CASES)
def test_no_quantile_is_further_from_its_entry_than_said(case, x64):
    make, open_cells = CASES[case]
    distribution = make().tabulate()
    lookup = distribution.lookup_table(BITS, address_bits=ADDRESS_BITS)
    u = (np.arange(40 * SIZE) + 0.5) / (40 * SIZE)
    u = np.concatenate([u, np.arange(SIZE) / SIZE, (np.arange(SIZE) + 1) / SIZE - 1e-13])  # and both ends of the cells
    cell = np.floor(u * SIZE).astype(int)
    error = np.abs(lookup(cell[:, None]) - quick_jit(lambda d, q: d.icdf(q))(distribution, u[:, None]))
    covered = ~np.isin(cell, open_cells)
    np.testing.assert_array_less(error[covered].max(0), lookup.max_error * (1 + 1e-9))
    np.testing.assert_allclose(error[covered].max(0), lookup.max_error, rtol=1e-6)
    np.testing.assert_array_equal(lookup.tail_probability, [len(open_cells) / SIZE] * 2)


@pytest.mark.parametrize("bits", [3, BITS])
def test_the_cdf_of_draws_is_as_far_from_the_prior_s_as_said(bits, x64):
    distribution = CASES["mixture"][0]()
    lookup = distribution.lookup_table(bits, address_bits=ADDRESS_BITS)
    draws = np.moveaxis(lookup(np.arange(SIZE)[:, None]), 0, -1)
    # Just below and at every value that is drawn, where the difference of a step function and another is largest.
    below, at = (
        np.mean(draws[:, None, :] < draws[..., None], -1),
        np.mean(draws[:, None, :] <= draws[..., None], -1),
    )
    cdf = np.asarray(distribution.cdf(draws.T)).T
    largest = np.maximum(np.abs(cdf - below), np.abs(at - cdf)).max(-1)
    np.testing.assert_allclose(lookup.kolmogorov_distance, largest, rtol=1e-10)
    # Of equally likely values none is nearer; a step that is finer than the entries adds little to it.
    assert np.all(largest >= 0.5 / SIZE) and np.all(largest < 0.55 / SIZE) == (bits == BITS)


@pytest.mark.parametrize(
    ("bits", "dtype"), [(1, np.uint8), (8, np.uint8), (9, np.uint16), (16, np.uint16), (17, np.uint32), (32, np.uint32)]
)
def test_codes_ascend_from_end_to_end_of_their_bits(bits, dtype):
    distribution = KAPrior(random_energy(BSpline(6, 3, (-3.0, 3.0)), (2,), 1.5), dist.Normal(0.0, 1.0))
    lookup = distribution.lookup_table(bits, address_bits=ADDRESS_BITS)
    assert lookup.table.shape == (2, SIZE) and lookup.table.dtype == dtype
    assert (lookup.bits, lookup.address_bits) == (bits, ADDRESS_BITS)
    assert np.all(lookup.table[:, 0] == 0) and np.all(lookup.table[:, -1] == 2**bits - 1)
    assert np.all(np.diff(lookup.table.astype(np.int64), axis=-1) >= 0)
    # The ends are the quantiles of half an entry, whatever the bits.
    ends = np.array([[0.5 / SIZE], [1 - 0.5 / SIZE]])
    np.testing.assert_allclose(lookup(np.array([[0], [SIZE - 1]])), distribution.icdf(ends), rtol=1e-6)


def test_batch_shapes_and_addresses_broadcast_and_a_file_has_all_of_it(tmp_path):
    distribution = KAPrior(random_energy(BSpline(6, 3, (0.0, 1.0)), (3, 1), 1.5), dist.Uniform(0.0, 1.0)).expand((3, 2))
    lookup = distribution.lookup_table(8, address_bits=3)
    assert lookup.table.shape == (3, 2, 8)
    assert lookup.offset.shape == lookup.max_error.shape == lookup.kolmogorov_distance.shape == (3, 2)
    address = np.random.default_rng(0).integers(8, size=(5, 3, 2))
    z = lookup(address)
    assert z.shape == (5, 3, 2) and lookup(4).shape == (3, 2)
    for draw, row, column in [(0, 0, 0), (3, 2, 1), (4, 1, 0)]:
        code = lookup.table[row, column, address[draw, row, column]]
        assert z[draw, row, column] == lookup.offset[row, column] + lookup.scale[row, column] * code
    np.savez(tmp_path / "prior.npz", **vars(lookup))
    with np.load(tmp_path / "prior.npz") as file:
        assert {name: file[name].tolist() for name in file} == {
            name: np.asarray(value).tolist() for name, value in dataclasses.asdict(lookup).items()
        }


SCALAR = KAPrior(random_energy(BSpline(6, 3, (0.0, 1.0)), (), 1.5), dist.Uniform(0.0, 1.0))


@pytest.mark.parametrize("bits", [0, 33, True])
def test_widths_out_of_range_are_named(bits):
    with pytest.raises(ValueError, match=f"^bits must be a whole number from 1 to 32, got {bits}"):
        SCALAR.lookup_table(bits)
    with pytest.raises(ValueError, match=f"address_bits must be a whole number from 1 to 20, got {bits}"):
        SCALAR.lookup_table(16, address_bits=bits)


def test_addresses_that_are_none_are_named():
    lookup = SCALAR.expand((3,)).lookup_table(8, address_bits=2)
    with pytest.raises(TypeError, match="address must be whole numbers, got float64"):
        lookup(np.array([0.5]))
    with pytest.raises(ValueError, match="address must be from 0 to 3, got 4"):
        lookup(np.array([0, 4, 1]))
    with pytest.raises(ValueError, match=r"broadcasts with the batch shape \(3,\), got \(2,\)"):
        lookup(np.array([0, 1]))


def test_the_default_is_four_thousand_entries_of_two_bytes():
    lookup = SCALAR.lookup_table()
    assert lookup.table.shape == (4096,) and lookup.table.nbytes == 8192
    u = jax.random.uniform(jax.random.key(0), (20_000,))
    error = np.abs(lookup(np.floor(u * 4096).astype(int)) - SCALAR.icdf(u))
    assert error.max() <= lookup.max_error + 1e-6
