"""One-line faults in the mathematics and the seams, and the tests of the default suite that notice each of them.

`python tests/mutants.py` (or `make mutants`) puts one fault at a time into a copy of the package and runs the tests
that are to fail with it. Those tests run by default, so each failure is one of the default suite. A fault whose tests
pass has survived: a test is missing.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
COPIED = ("numpyro_kaem", "tests", "pyproject.toml")
# Of one pytest. A fault may keep a loop from ending, which counts as an error of the table below and not as a failure.
SECONDS = 600
FAILED, PASSED = 1, 0


class Mutant(NamedTuple):
    """A fault.

    Attributes:
        fault: what is wrong with it, in words.
        path: the file, below numpyro_kaem/.
        old: a part of one line, which occurs in the file once.
        new: what takes its place.
        test: node id, below tests/, of the test that must fail.
    """

    fault: str
    path: str
    old: str
    new: str
    test: str


MUTANTS = [
    # Densities, their tables and quantiles
    Mutant(
        "the normaliser's panels all have the width one",
        "_densities/cdf_table.py",
        "mass = sizes.astype(largest.dtype) * shapes.average",
        "mass = (1.0 + 0.0 * sizes).astype(largest.dtype) * shapes.average",
        "test_inverse_transform.py::test_the_log_integral_is_that_of_body_and_tails",
    ),
    Mutant(
        "survival probabilities lack the upper tail",
        "_densities/cdf_table.py",
        "upper_tail[..., None] + after",
        "0.0 * upper_tail[..., None] + after",
        "test_inverse_transform.py::test_panel_masses_and_ends_are_consistent",
    ),
    Mutant(
        "a panel's own mass lies on either side of it",
        "_densities/cdf_table.py",
        "left = np.triu(np.ones((values.shape[-1], values.shape[-1])), 1)",
        "left = np.triu(np.ones((values.shape[-1], values.shape[-1])), 0)",
        "test_inverse_transform.py::test_panel_masses_and_ends_are_consistent",
    ),
    Mutant(
        "quantiles above one half are told from F, whose digits are lost there",
        "_densities/inverse_table.py",
        "from_above = lower > 0.5",
        "from_above = lower > 1.0",
        "test_prior_exactness.py::test_quantiles_are_exact_and_the_density_integrates_to_one_in_float32"
        "[normal, big tails-b-spline-univariate]",
    ),
    Mutant(
        "the search begins one bucket of the guide too late",
        "_densities/inverse_table.py",
        'keys, starts, side="right").astype(jnp.int32) - 1)',
        'keys, starts, side="right").astype(jnp.int32))',
        "test_inverse_transform.py::test_a_guide_changes_where_the_search_begins_and_nothing_else",
    ),
    Mutant(
        "the search for a quantile ends after three steps",
        "_densities/inverse_table.py",
        "_MOST_STEPS = 16",
        "_MOST_STEPS = 3",
        "test_inverse_transform.py::test_steep_panels_are_inverted_as_well_as_they_are_tabulated[float32]",
    ),
    Mutant(
        "a polygon's cells have as few panels as a smooth function's",
        "energies/splines.py",
        "return self.degree == 1",
        "return self.degree < 1",
        "test_prior_exactness.py::test_quantiles_of_rough_energies_in_float32[degree 1]",
    ),
    Mutant(
        "draws are cut off at a share of 2^-11 of a tail",
        "_densities/inverse_table.py",
        "np.arange(8.0, bits + 1.0)",
        "np.arange(8.0, 12.0)",
        "test_ka_prior.py::test_no_draw_is_at_an_end_of_the_support[normal]",
    ),
    Mutant(
        "the CDF is one above the body",
        "_densities/masses.py",
        "jnp.where(at.is_above, before, body_below)",
        "jnp.where(at.is_above, 1.0, body_below)",
        "test_ka_prior.py::test_a_zero_energy_is_the_reference",
    ),
    Mutant(
        "energies beyond the two ends of the domain change places",
        "_densities/density.py",
        "jnp.where(z < low, constants.at_ends[0], jnp.where(z > high, constants.at_ends[1], energy))",
        "jnp.where(z < low, constants.at_ends[1], jnp.where(z > high, constants.at_ends[0], energy))",
        "test_prior_exactness.py::test_quantiles_are_exact_and_the_density_integrates_to_one_in_float32"
        "[log-normal-degree 0-univariate]",
    ),
    Mutant(
        "upper tails are mirrored at zero, not at the location",
        "_densities/tails.py",
        "return self.of.cdf(2.0 * self.of.loc - z if above else z)",
        "return self.of.cdf(-z if above else z)",
        "test_reference_tails.py::test_masses_on_either_side_have_full_relative_precision[normal-float32]",
    ),
    Mutant(
        "the lower tail of a Gamma lacks the factor 1 / a",
        "_densities/family_tails.py",
        "jnp.log(gamma_series(a, jnp.where(is_low, x, a + 1.0)) / a)",
        "jnp.log(gamma_series(a, jnp.where(is_low, x, a + 1.0)))",
        "test_reference_tails.py::test_masses_on_either_side_have_full_relative_precision[gamma-float64]",
    ),
    Mutant(
        "panels are not cut at kinks",
        "_densities/cut_panels.py",
        "inside = (share > least) & (share < 1.0 - least)",
        "inside = (share > least) & (share < 0.0 - least)",
        "test_kinks.py::test_quantiles_densities_and_moments_with_a_kink[asymmetric-univariate-float64]",
    ),
    Mutant(
        "what is left of a heavy tail is dropped from moments",
        "_densities/moments.py",
        "jnp.sum(jnp.where(counts, last * left, 0.0), axis=0)",
        "jnp.sum(jnp.where(counts, 0.0 * last, 0.0), axis=0)",
        "test_ka_prior.py::test_moments_of_heavy_tails[student t, 2.05]",
    ),
    Mutant(
        "the implicit gradient of quantiles has the sign of the CDF's",
        "_densities/quantiles.py",
        "z_dot = z_dot - cdf_dot",
        "z_dot = z_dot + cdf_dot",
        "test_prior_gradients.py::test_draws_are_pathwise",
    ),
    Mutant(
        "components are mixed before they are normalised",
        "_densities/density.py",
        "log_weights = self.log_proportions - constants.log_integral",
        "log_weights = self.log_proportions - 0.0 * constants.log_integral",
        "test_ka_mixture.py::test_density_cdf_and_moments_are_weighted_sums_over_the_components",
    ),
    Mutant(
        "proportions of a mixture are softmaxed twice",
        "distributions/ka_mixture.py",
        "jax.nn.log_softmax(self.logits, axis=-1)",
        "jax.nn.log_softmax(jax.nn.softmax(self.logits, axis=-1), axis=-1)",
        "test_ka_mixture.py::test_density_cdf_and_moments_are_weighted_sums_over_the_components",
    ),
    Mutant(
        "log p / q is log p q in a divergence",
        "distributions/divergence.py",
        "return log_p - log_q.reshape(",
        "return log_p + log_q.reshape(",
        "test_divergence.py::test_the_divergence_from_oneself_is_zero",
    ),
    Mutant(
        "the upper tail of whitened latents is reached through 1 - p",
        "distributions/tabulated.py",
        "return self.of.icdf(q, complement=jnp.where(from_below, complement, probability))",
        "return self.of.icdf(q)",
        "test_icdf_reparam.py::test_both_tails_keep_their_digits_in_single_precision",
    ),
    Mutant(
        "a rotation has no Jacobian",
        "distributions/rotation.py",
        "jnp.linalg.slogdet(self.matrix)[1]",
        "0.0",
        "test_fitting_posterior.py::test_a_rotation_is_inverted_and_has_the_jacobian_of_automatic_differentiation",
    ),
    Mutant(
        "a copula takes half of its correlation",
        "distributions/copula.py",
        "correlation = covariance / np.outer(scale, scale)",
        "correlation = 0.5 * (np.eye(len(scale)) + covariance / np.outer(scale, scale))",
        "test_fitting_posterior.py::test_a_copula_keeps_marginals_and_the_correlation_of_normal_scores",
    ),
    Mutant(
        "steps of a deep prior have half of their noise",
        "distributions/deep_prior.py",
        "jnp.sqrt(2 * self.step_size * variance)",
        "jnp.sqrt(self.step_size * variance)",
        "test_deep_prior.py::test_long_runs_have_the_moments_of_the_target_up_to_the_bias_of_the_step",
    ),
    # Bases
    Mutant(
        "a wrong sign in the local polynomials of B-splines",
        "energies/splines.py",
        "raised[j][power] = raised[j][power] - knot[j] * share",
        "raised[j][power] = raised[j][power] + knot[j] * share",
        "test_bases.py::test_contraction_is_the_sum_over_the_basis[degree 3]",
    ),
    Mutant(
        "the mexican hat is too wide",
        "energies/bumps.py",
        "(1.0 - t**2) * xp.exp(-0.5 * t**2)",
        "(1.0 - t**2) * xp.exp(-0.4 * t**2)",
        "test_bases.py::test_functions_are_as_written[mexican hat]",
    ),
    Mutant(
        "T_0 counts twice in the derivative of a Chebyshev series",
        "energies/series.py",
        "np.where(order == 0, 1.0, 2.0)",
        "np.where(order == 0, 2.0, 2.0)",
        "test_bases.py::test_derivatives_are_those_of_the_functions[chebyshev]",
    ),
    Mutant(
        "the sines of a Fourier series have the wrong sign",
        "energies/series.py",
        "imaginary - sines[..., k]",
        "imaginary + sines[..., k]",
        "test_bases.py::test_contraction_is_the_sum_over_the_basis[fourier]",
    ),
    # Priors from data, and grids that move
    Mutant(
        "weights of samples are ignored",
        "_fitting/exponential_family.py",
        "np.bincount(slot, weights * current, size)",
        "np.bincount(slot, np.mean(weights) * current, size)",
        "test_fitting.py::test_importance_weights_turn_one_density_into_another",
    ),
    Mutant(
        "the roughness penalty is not in units of the samples' scale",
        "_fitting/smoothing.py",
        "(scale[:, None] / step) ** 2",
        "(1.0 / step) ** 2",
        "test_fitting.py::test_smoothness_means_the_same_at_any_scale_and_place",
    ),
    Mutant(
        "the smoothness is chosen by the samples that the fit has seen",
        "_fitting/smoothing.py",
        "held_out = np.sum(fold_sums[of] * c, axis=-1) - fold_weights[of] * log_z",
        "held_out = np.sum(train[of] * c, axis=-1) * fold_weights[of] - fold_weights[of] * log_z",
        "test_fitting.py::test_cross_validation_smooths_what_is_smooth",
    ),
    Mutant(
        "values on a lattice are not spread over their steps",
        "_fitting/ties.py",
        "half = np.full(len(levels), 0.5 * step) if step else",
        "half = np.zeros(len(levels)) if step else",
        "test_fitting.py::test_values_on_a_lattice_have_the_masses_of_their_steps",
    ),
    Mutant(
        "repeated draws are held out in one fold and learned from in another",
        "_fitting/ties.py",
        "folds[starts][level][~is_spread]",
        "folds[~is_spread]",
        "test_fitting.py::test_repeated_draws_share_a_fold",
    ),
    Mutant(
        "knots are even wherever the samples are",
        "_fitting/default_shape.py",
        "return bool(self.high - self.low > 2.0 * NUM_INTERVALS * self.width)",
        "return False",
        "test_fitting.py::test_heavy_tails_and_outliers_leave_the_quantiles_right",
    ),
    Mutant(
        "a density is fitted without the widths of its panels",
        "_fitting/fit.py",
        "log_density.max(axis=-1, keepdims=True)) * widths",
        "log_density.max(axis=-1, keepdims=True))",
        "test_fitting.py::test_a_member_of_the_family_is_recovered_from_its_log_density",
    ),
    Mutant(
        "an energy that is refitted has its base activation twice",
        "energies/energy.py",
        "(self._continued(z) - moved(z)) / spline_weight",
        "self._continued(z) / spline_weight",
        "test_grid_adaptation.py::test_a_zero_spline_weight_can_be_refitted",
    ),
    Mutant(
        "moments of refitted coefficients are kept by the optimiser",
        "energies/module.py",
        "return fresh_leaf",
        "return leaf",
        "test_training_features.py::test_steps_after_an_adaptation_are_no_longer_than_before_it",
    ),
    # Generators of images and sequences
    Mutant(
        "kernels have one number of taps whatever the parity of the grid",
        "generators/convolution.py",
        "kernel_size + (kernel_size + parity) % 2",
        "kernel_size",
        "test_convolution_generators.py::test_the_two_ends_of_an_axis_are_treated_alike",
    ),
    Mutant(
        "kernels have taps that no pixel meets",
        "generators/convolution.py",
        "2 * size - 2 + parity",
        "2 * size + parity",
        "test_convolution_generators.py::test_every_tap_of_every_kernel_moves_the_output",
    ),
    Mutant(
        "a transposed convolution is cut off one pixel late",
        "generators/convolution.py",
        "slice_in_dim(sums, padding, padding + size, axis=axis)",
        "slice_in_dim(_pad(sums, axis, 0, 1), padding + 1, padding + 1 + size, axis=axis)",
        "test_convolution_generators.py::test_a_transposed_layer_is_the_adjoint_of_a_strided_convolution[(6, 8)-3]",
    ),
    Mutant(
        "an encoder's windows begin at the first pixel",
        "generators/convolution.py",
        "x = _pad(x, axis, padding, length - padding - x.shape[axis])",
        "x = _pad(x, axis, 0, length - x.shape[axis])",
        "test_convolution_generators.py::test_an_encoder_s_layer_is_a_strided_convolution[(6, 8)-3]",
    ),
    Mutant(
        "a token sees itself",
        "generators/sequence.py",
        "jnp.tri(self.length, dtype=bool)",
        "jnp.tri(self.length, k=1, dtype=bool)",
        "test_sequence_generators.py::test_logits_see_the_tokens_before_them_and_no_others",
    ),
    Mutant(
        "a drawn token does not see the one before it",
        "generators/attention.py",
        "[None] <= position",
        "[None] < position",
        "test_sequence_generators.py::"
        "test_logits_of_the_loop_with_kept_keys_and_values_are_those_of_the_whole_sequence",
    ),
    Mutant(
        "the end token itself is padding",
        "generators/autoregressive.py",
        "jnp.cumsum(is_end, axis=-1) - is_end == 0",
        "jnp.cumsum(is_end, axis=-1) == 0",
        "test_sequence_generators.py::test_probabilities_sum_to_one_and_draws_have_them",
    ),
    Mutant(
        "draws go on behind the end token",
        "generators/sequence.py",
        "token = jnp.where(has_ended, self.end_token, token)",
        "token = jnp.where(has_ended, token, token)",
        "test_sequence_generators.py::test_draws_are_filled_with_the_end_token",
    ),
    Mutant(
        "an encoder attends to padding",
        "generators/sequence.py",
        "h = block(h, is_real[..., None, :])",
        "h = block(h, jnp.ones_like(is_real)[..., None, :])",
        "test_sequence_generators.py::test_an_encoder_s_code_of_a_short_sequence_is_that_of_an_encoder_that_ends_there",
    ),
    Mutant(
        "a token outside of the vocabulary has the first one's probability",
        "generators/autoregressive.py",
        "jnp.where(is_known, chosen, -jnp.inf)",
        "jnp.where(is_known, chosen, chosen)",
        "test_sequence_generators.py::"
        "test_a_token_outside_of_the_vocabulary_whose_value_is_not_known_has_no_probability",
    ),
    Mutant(
        "chunks of pairs are as large as data allow, whatever a likelihood makes of them",
        "models/pairwise.py",
        "_ELEMENTS_PER_CHUNK // _largest_array(jax.make_jaxpr(of_value)(one).jaxpr)",
        "_ELEMENTS_PER_CHUNK // max(1, math.prod(fn.shape()))",
        "test_sequence_generators.py::test_pairwise_log_likelihoods_take_little_memory",
    ),
    # Models and pairs
    Mutant(
        "the Jacobian of unconstrained coordinates is dropped",
        "models/rows.py",
        "jnp.sum(transform.log_abs_det_jacobian(u, value))",
        "jnp.zeros(())",
        "test_latent_model.py::test_the_unconstrained_prior_integrates_to_one",
    ),
    Mutant(
        "latents of a scan are those of its first step",
        "models/rows.py",
        "u = u if step is None else u[step]",
        "u = u if step is None else u[0]",
        "test_model_zoo.py::test_scans_are_moved_step_by_step",
    ),
    Mutant(
        "what a scale of a latent adds to the joint density is dropped",
        "models/dependence.py",
        "return jnp.where(jnp.isfinite(drawn), kept - drawn, 0.0)",
        "return jnp.zeros_like(drawn)",
        "test_model_zoo.py::test_samplers_are_right_or_say_why_not[scale on a latent-importance]",
    ),
    Mutant(
        "a masked latent that an observed value counts is taken for one that nothing counts",
        "models/dependence.py",
        "if masks_of(fn) and name not in self.counted_sites:",
        "if masks_of(fn):",
        "test_model_zoo.py::test_samplers_are_right_or_say_why_not[imputation by an observed value-importance]",
    ),
    Mutant(
        "minibatches lack the scale of their plate",
        "models/rows.py",
        "self.scale = size / self.num_data",
        "self.scale = 1.0",
        "test_importance_mle.py::test_subsampled_plates_scale_the_data_and_not_the_global_sites",
    ),
    Mutant(
        "a plate that subsamples is given the first rows, not those that it has drawn",
        "models/rows.py",
        "size, indices = self.structure.plates[self.plate][0], self.plate_indices[self.plate]",
        "size, indices = self.structure.plates[self.plate][0], jnp.arange(self.num_data)",
        "test_latent_model.py::test_subsample_indices_are_drawn_once_by_the_key",
    ),
    Mutant(
        "global sites count once per datum",
        "models/latent_model.py",
        "jnp.sum(jax.vmap(joint)(latents, rows)) + self.global_log_density()",
        "jnp.sum(jax.vmap(joint)(latents, rows) + self.global_log_density())",
        "test_latent_model.py::test_scaled_local_plus_global_is_the_log_density_of_numpyro[factors]",
    ),
    Mutant(
        "the self-check takes any difference for rounding",
        "models/self_check.py",
        "same = np.abs(sums - sums_alone) <= tolerance",
        "same = np.abs(sums - sums_alone) <= np.inf",
        "test_latent_model.py::test_rows_that_do_not_stand_alone_are_an_error_that_names_site_and_cure"
        "[standardised-x3-x-BatchNorm to evaluation mode]",
    ),
    Mutant(
        "likelihoods that depend on the data are taken for shared ones",
        "models/pairwise.py",
        'if latent_model.depends_on_data(output("likelihood", name)):',
        "if False:",
        "test_pairwise.py::test_what_depends_on_the_data_takes_the_generic_path_and_says_so"
        "[covariate-distribution of 'x']",
    ),
    Mutant(
        "the normaliser of a Normal's pairs has no weights",
        "models/pairwise.py",
        "jnp.sum(weights * (jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi)))",
        "jnp.sum(jnp.log(scale) + 0.5 * jnp.log(2 * jnp.pi))",
        "test_pairwise.py::test_each_entry_is_the_log_likelihood_of_its_pair[Normal, masked by a constant]",
    ),
    Mutant(
        "the softplus of a Bernoulli's pairs has the wrong sign",
        "models/pairwise.py",
        "jax.nn.softplus(logits)",
        "jax.nn.softplus(-logits)",
        "test_pairwise.py::test_each_entry_is_the_log_likelihood_of_its_pair[Bernoulli logits]",
    ),
    Mutant(
        "logits of a Categorical's pairs are not normalised",
        "models/pairwise.py",
        "jax.nn.log_softmax(reshape(base.logits, 1))",
        "reshape(base.logits, 1)",
        "test_pairwise.py::test_each_entry_is_the_log_likelihood_of_its_pair[Categorical logits]",
    ),
    Mutant(
        "matrix products are taken whatever their rounding",
        "models/pairwise.py",
        "is_safe = (rounding < _TOLERANCE) & ",
        "is_safe = (rounding < jnp.inf) & ",
        "test_pairwise.py::test_normal_products_are_within_a_hundredth_of_a_nat[3072-0.0001-1000.0]",
    ),
    # Importance weights, evidence and chains
    Mutant(
        "the evidence lacks - log S",
        "posterior/importance.py",
        "log_evidence=(log_sums[0] - np.log(num_samples))",
        "log_evidence=(log_sums[0] - 0.0 * np.log(num_samples))",
        "test_importance_sampling.py::test_log_evidence_is_within_three_standard_errors_of_the_closed_form",
    ),
    Mutant(
        "the effective sample size does not square the sum of weights",
        "posterior/importance.py",
        "np.exp(2 * log_sum - log_sum_of_squares)",
        "np.exp(log_sum - log_sum_of_squares)",
        "test_importance_sampling.py::test_ess_is_the_number_of_draws_where_the_likelihood_is_flat",
    ),
    Mutant(
        "smoothed weights are not on the scale of the others",
        "posterior/pareto.py",
        "np.minimum(np.log(quantiles + np.exp(threshold)), 0.0) + largest",
        "np.minimum(np.log(quantiles + np.exp(threshold)), 0.0) + 0.0 * largest",
        "test_arviz.py::test_smoothed_weights_are_quantiles_of_the_tail",
    ),
    Mutant(
        "p / q is p q in the weights of an encoder's draws",
        "posterior/weights.py",
        "log_prior(latent_model, draws) - log_prior(encoder, draws)",
        "log_prior(latent_model, draws) + log_prior(encoder, draws)",
        "test_encoder_proposal.py::test_with_the_exact_posterior_every_weight_is_the_evidence",
    ),
    Mutant(
        "draws outside of the prior's support have weights",
        "posterior/proposal.py",
        "return in_support(encoder, z, *x) & ~in_support(latent_model, z, *x)",
        "return in_support(encoder, z, *x) & ~in_support(encoder, z, *x)",
        "test_encoder_proposal.py::test_a_density_that_goes_on_outside_of_its_support_counts_for_nothing_there",
    ),
    Mutant(
        "resampled particles keep other particles' log-likelihoods",
        "posterior/result.py",
        "log_likelihood=self.log_likelihood[rows, indices]",
        "log_likelihood=self.log_likelihood[rows, indices[:, ::-1]]",
        "test_importance_sampling.py::test_resampled_posterior_has_equal_weights_and_keeps_evidence_and_diagnostics",
    ),
    Mutant(
        "swaps are accepted by the inverse of their ratio",
        "posterior/swaps.py",
        "difference = jnp.where(high == -jnp.inf, jnp.inf, low - high)",
        "difference = jnp.where(high == -jnp.inf, jnp.inf, high - low)",
        "test_sampler_reports.py::test_swaps_are_as_frequent_as_the_densities_say",
    ),
    Mutant(
        "swaps take the neighbouring datum's point",
        "posterior/swaps.py",
        "jnp.where(like(down), jnp.roll(x, 1, 2), x)",
        "jnp.where(like(down), jnp.roll(x, 1, 0), x)",
        "test_posterior_samplers.py::test_swaps_and_resampling_never_mix_data",
    ),
    Mutant(
        "the preconditioner forgets how far chains move from step to step",
        "posterior/chains.py",
        "squares + within + delta**2 * count * num_chains / total",
        "squares + within",
        "test_sampler_reports.py::test_the_chains_spread_is_that_of_all_of_their_positions",
    ),
    Mutant(
        "step sizes of samplers adapt away from their acceptance rate",
        "posterior/chains.py",
        "update_average(p.averaging, kernel.target_acceptance - acceptance)",
        "update_average(p.averaging, acceptance - kernel.target_acceptance)",
        "test_posterior_samplers.py::test_linear_gaussian_moments_and_evidence_are_within_three_standard_errors[10-ParallelTempering]",
    ),
    Mutant(
        "stepping stones weight draws of the upper rung",
        "posterior/evidence.py",
        "np.diff(temperatures) * log_likelihood[..., :-1]",
        "np.diff(temperatures) * log_likelihood[..., 1:]",
        "test_evidence.py::test_steppingstone_is_unbiased_and_knows_its_error",
    ),
    Mutant(
        "thermodynamic integration takes the lower end of every interval",
        "posterior/evidence.py",
        "steps / 2 * (log_likelihood[..., 1:] + log_likelihood[..., :-1])",
        "steps * log_likelihood[..., :-1]",
        "test_evidence.py::test_thermodynamic_integration_knows_its_error_and_its_bias",
    ),
    Mutant(
        "MALA's ratio has the wrong sign of the way back",
        "posterior/langevin_kernels.py",
        "/ scale - step_size * end.gradient(temperature) * scale",
        "/ scale + step_size * end.gradient(temperature) * scale",
        "test_kernels.py::test_exact_draws_stay_exact[MALA]",
    ),
    Mutant(
        "the drift of ULA and MALA is not preconditioned",
        "posterior/langevin_kernels.py",
        "drift = point.gradient(temperature) * scale",
        "drift = point.gradient(temperature)",
        "test_kernels.py::test_exact_draws_stay_exact[MALA]",
    ),
    Mutant(
        "HMC's first kick is not preconditioned",
        "posterior/kernel.py",
        "return (point.position / scale, *parts(point)), with_gradient(",
        "return (point.position / scale, parts(point)[0], parts(point)[1] / scale), with_gradient(",
        "test_kernels.py::test_exact_draws_of_correlated_latents_stay_exact[HMC]",
    ),
    Mutant(
        "PCNL's ratio lacks the likelihood",
        "posterior/whitened_kernels.py",
        "return potential + 0.5 * jnp.dot(v - u, g)",
        "return 0.0 * potential + 0.5 * jnp.dot(v - u, g)",
        "test_kernels.py::test_exact_draws_of_correlated_latents_stay_exact[PCNL-whitened]",
    ),
    # Tempered SMC
    Mutant(
        "the evidence of a rung lacks - log N",
        "posterior/particles.py",
        "increment = logsumexp(log_weights) - jnp.log(num_particles)",
        "increment = logsumexp(log_weights) - 0.0 * jnp.log(num_particles)",
        "test_sampler_reports.py::test_particles_that_do_not_move_are_draws_of_the_prior_chosen_by_the_likelihood",
    ),
    Mutant(
        "particles' weights are softmaxed twice",
        "posterior/particles.py",
        "weights = jax.nn.softmax(log_weights)",
        "weights = jax.nn.softmax(jax.nn.softmax(log_weights))",
        "test_sampler_reports.py::test_particles_that_do_not_move_are_draws_of_the_prior_chosen_by_the_likelihood",
    ),
    Mutant(
        "resampled particles are not those that were weighted",
        "posterior/particles.py",
        "return order[getattr(resampling, name)(key_draw, weights[order], num_samples)]",
        "return getattr(resampling, name)(key_draw, weights[order], num_samples)",
        "test_sampler_reports.py::test_particles_that_do_not_move_are_draws_of_the_prior_chosen_by_the_likelihood",
    ),
    Mutant(
        "particles make one move less than they should",
        "posterior/particles.py",
        "jax.random.split(key, settings.num_mcmc_steps)",
        "jax.random.split(key, settings.num_mcmc_steps - 1)",
        "test_sampler_reports.py::test_particles_and_chains_make_as_many_moves_as_they_are_asked_for",
    ),
    Mutant(
        "the next temperature is not at the effective sample size asked for",
        "posterior/particles.py",
        "return 2.0 * logsumexp(log_weights) - logsumexp(2.0 * log_weights)",
        "return 2.0 * logsumexp(log_weights) - logsumexp(1.5 * log_weights)",
        "test_sampler_reports.py::test_every_datum_finds_its_own_ladder",
    ),
    Mutant(
        "runs count alike, whatever their evidence",
        "posterior/smc.py",
        "(at_temperature.astype(float)[..., None] + left)",
        "(0.0 * at_temperature.astype(float)[..., None] + left)",
        "test_posterior_samplers.py::test_runs_count_by_their_evidence_and_those_that_found_nothing_not_at_all",
    ),
    Mutant(
        "particles that have not arrived count alike",
        "posterior/smc.py",
        "left = np.where(rest > 0, rest * log_likelihood, 0.0)",
        "left = 0.0 * log_likelihood",
        "test_interrupted_samplers.py::test_particles_on_their_way_are_weighted_for_what_is_left_of_it",
    ),
    Mutant(
        "a split R-hat does not split",
        "posterior/convergence.py",
        "halves = np.concatenate([chains[:, :, :half], chains[:, :, -half:]], axis=1)",
        "halves = np.concatenate([chains, chains], axis=1)[:, :, : 2 * half]",
        "test_convergence.py::test_rank_rhat_is_arviz_s",
    ),
    Mutant(
        "draws that rounding has put at the upper end of a support are taken for others",
        "models/rows.py",
        "at_end |= ~(jnp.abs(transform.inv(beside) - u) < 0.5)",
        "at_end |= jnp.isnan(u)",
        "test_chain_objectives.py::test_priors_at_the_end_of_their_support_are_refused[prior2]",
    ),
    Mutant(
        "a reversed scan is given its latents from the front",
        "models/rows.py",
        "return step if step is None or length is None else length - 1 - step",
        "return step",
        "test_model_zoo.py::test_samplers_are_right_or_say_why_not[a reversed scan-importance]",
    ),
    Mutant(
        "a sampler that goes on starts the chunk at hand anew",
        "posterior/run_checkpoints.py",
        "if chunk >= len(self._chunks):",
        "if chunk >= len(self._chunks) - 1:",
        "test_interrupted_samplers.py::test_a_run_whose_process_has_ended_goes_on_from_its_last_checkpoint",
    ),
    Mutant(
        "elements that a mask hides and nothing counts have an improper prior",
        "models/self_check.py",
        "if _masked_elements(model, name, informed=False):",
        "if False:",
        "test_model_zoo.py::test_samplers_are_right_or_say_why_not[imputed in part-importance]",
    ),
    Mutant(
        "chains that are far below importance sampling are not compared where that is poor",
        "objectives/population.py",
        "jnp.where(of_all < 0, of_all, jnp.nan)",
        "jnp.nan",
        "test_chain_objectives.py::test_what_chains_say_is_compared_with_importance_sampling",
    ),
    Mutant(
        "persistent chains never stay where they are",
        "objectives/population.py",
        "return jnp.where(chosen < num_draws, positions[jnp.minimum(chosen, num_draws - 1)], current)",
        "return positions[jnp.minimum(chosen, num_draws - 1)]",
        "test_chain_objectives.py::test_every_datum_has_a_step_size_of_its_own",
    ),
    Mutant(
        "draws from a guide are weighed by the prior's density in other coordinates than the guide's",
        "objectives/population.py",
        "prior, likelihood = model.log_parts(z, *row)",
        "prior, likelihood = model.log_parts(model.unconstrain(z, *row), *row, unconstrained=True)",
        "test_guided_chains.py::test_chains_of_the_posterior_stay_there[gamma]",
    ),
    Mutant(
        "draws from a guide are weighed by the likelihood alone",
        "objectives/population.py",
        "ratio = prior - encoder.log_prior(z, *row)",
        "ratio = jnp.zeros_like(prior)",
        "test_guided_chains.py::test_chains_of_the_posterior_stay_there[gamma]",
    ),
    Mutant(
        "chains that a guide starts have their first draws from the prior",
        "objectives/population.py",
        "target.draw if encoder is None else drawn_from(encoder, target)",
        "target.draw",
        "test_guided_chains.py::test_chains_start_at_draws_from_the_guide_and_have_their_spread",
    ),
    Mutant(
        "a guide is not told where its chains have ended",
        "objectives/langevin.py",
        "population.log_guide(encoder, latents)",
        "population.log_guide(jax.lax.stop_gradient(encoder), latents)",
        "test_guided_chains.py::test_the_guide_learns_the_posterior[True]",
    ),
    Mutant(
        "an encoder's scales underflow",
        "kaem/networks.py",
        "return loc, log_scale + jax.lax.stop_gradient(jnp.clip(log_scale, -_LARGEST, _LARGEST) - log_scale)",
        "return loc, log_scale",
        "test_kaem.py::test_an_encoder_whose_scales_underflow_has_gradients_that_bring_it_back",
    ),
    Mutant(
        "an explosion of unadjusted steps is let happen",
        "posterior/langevin_kernels.py",
        "& (log_ratio > -_EXPLODING)",
        "",
        "test_chain_objectives.py::test_chains_that_stand_still_are_told",
    ),
    Mutant(
        "the bias of thermodynamic integration is no part of its error",
        "posterior/smc_evidence.py",
        "np.hypot(std_error, bias)",
        "std_error",
        "test_evidence.py::test_the_bias_of_thermodynamic_integration_is_in_its_error",
    ),
    Mutant(
        "draws of one chain are divided among all chains",
        "posterior/labels.py",
        "value = value.reshape(len(value), num_chains, -1, *value.shape[2:])",
        "value = value.reshape(len(value), -1, num_chains, *value.shape[2:]).swapaxes(1, 2)",
        "test_arviz.py::test_equal_weights_keep_chains_and_draws[Langevin]",
    ),
    Mutant(
        "axes outside of the data plate are named one off",
        "posterior/labels.py",
        "axis = dim - event_dim + (data_dim is not None and dim < data_dim)",
        "axis = dim - event_dim",
        "test_arviz.py::test_inner_plates_name_axes_wherever_they_are",
    ),
    Mutant(
        "data whose likelihood is not a number raise nothing",
        "posterior/diagnostics.py",
        "    bad = bad[first_copy]",
        "    bad = 0 * bad[first_copy]",
        "test_importance_sampling.py::test_a_broken_likelihood_names_the_datum",
    ),
    # Objectives
    Mutant(
        "the prior gets no score by importance weights",
        "posterior/weights.py",
        "log_ratio = log_density - jax.lax.stop_gradient(log_density) - negative_phase(latent_model, draws)",
        "log_ratio = 0.0 * log_density - negative_phase(latent_model, draws)",
        "test_importance_mle.py::test_gradient_is_that_of_a_plain_transcription",
    ),
    Mutant(
        "the negative phase has the sign of the positive one",
        "posterior/weights.py",
        "return jnp.mean(values - jax.lax.stop_gradient(values), axis=0)",
        "return jnp.mean(jax.lax.stop_gradient(values) - values, axis=0)",
        "test_deep_prior.py::test_negative_phase_is_zero_with_the_mean_score_of_the_unnormalised_sites",
    ),
    Mutant(
        "the prior gets no gradient from chains",
        "objectives/langevin.py",
        "jnp.mean(likelihood + prior, 1)",
        "jnp.mean(likelihood + jax.lax.stop_gradient(prior), 1)",
        "test_objectives.py::test_gradient_is_that_of_the_log_likelihood[langevin]",
    ),
    Mutant(
        "persistent chains are those of the first data, whatever the plate has drawn",
        "objectives/langevin.py",
        "return latent_model.plate_indices[latent_model.plate]",
        "return jnp.arange(latent_model.num_data)",
        "test_objectives.py::test_chains_are_kept_by_the_indices_of_the_plate",
    ),
    Mutant(
        "step sizes of objectives adapt away from their acceptance rate",
        "objectives/population.py",
        "log_step_size + gain * (acceptance - kernel.target_acceptance)",
        "log_step_size - gain * (acceptance - kernel.target_acceptance)",
        "test_objectives.py::test_step_size_finds_its_acceptance",
    ),
    Mutant(
        "rungs of the path gradient have whole intervals for weights",
        "objectives/thermodynamic.py",
        "jnp.trapezoid(likelihood, temperatures) +",
        "2.0 * jnp.trapezoid(likelihood, temperatures) +",
        "test_objectives.py::test_path_gradient_has_the_bias_that_theory_predicts",
    ),
    # Training
    Mutant(
        "a bad step leaves chains and tuning behind",
        "training/step.py",
        "kept = SVIState(kept.optim_state, kept.mutable_state, after.rng_key)",
        "kept = SVIState(kept.optim_state, after.mutable_state, after.rng_key)",
        "test_training_features.py::test_a_bad_step_changes_nothing_but_the_random_key",
    ),
    Mutant(
        "a step writes the chains of its batch to the first rows",
        "training/step.py",
        "lambda old, new: old.at[rows].set(new), everyones, chains",
        "lambda old, new: old.at[: len(new)].set(new), everyones, chains",
        "test_training_features.py::test_a_bad_step_changes_nothing_but_the_random_key",
    ),
    Mutant(
        "the moving average is mostly the last step",
        "training/step.py",
        "decay * a + (1 - decay) * p",
        "(1 - decay) * a + decay * p",
        "test_training_features.py::test_the_moving_average_follows_its_recursion_and_is_what_is_scored",
    ),
    Mutant(
        "accumulated minibatches make a step of their sum, not of their mean",
        "training/initial.py",
        "return optax.MultiSteps(optimizer, accumulate).gradient_transformation()",
        "return optax.MultiSteps(optimizer, accumulate, use_grad_mean=False).gradient_transformation()",
        "test_training_features.py::test_accumulated_minibatches_make_one_step_on_their_mean_gradient",
    ),
    Mutant(
        "an epoch draws its rows with replacement",
        "training/feeds.py",
        "jax.random.permutation(key, num_data)[",
        "jax.random.randint(key, (num_data,), 0, num_data)[",
        "test_fit.py::test_an_epoch_takes_disjoint_batches_of_a_fresh_permutation",
    ),
    Mutant(
        "a resumed stream begins at its first batch again",
        "training/feeds.py",
        "for number in range(used):",
        "for number in range(0 * used):",
        "test_training_streams.py::test_what_goes_wrong_in_a_stream_costs_no_step_before_it",
    ),
    Mutant(
        "a resumed run begins its epoch anew",
        "training/history.py",
        "history = cls(int(epoch), int(step_in_epoch), seconds)",
        "history = cls(int(epoch), 0, seconds)",
        "test_resume.py::test_a_run_cut_off_within_an_epoch_goes_on_from_the_newest_undamaged_checkpoint",
    ),
    Mutant(
        "patience waits for one score too many",
        "training/run.py",
        "self.history.scores_since_best() >= patience",
        "self.history.scores_since_best() > patience",
        "test_training_features.py::test_patience_ends_the_run_after_so_many_scores_without_a_new_best",
    ),
    Mutant(
        "a keyword of fit that has moved is heard and not heeded",
        "training/settings.py",
        "return replace(given, **fields) if isinstance(given, HeldOut | Checkpointing) else kind(given, **fields)",
        "return given if isinstance(given, HeldOut | Checkpointing) else kind(given)",
        "test_fit_settings.py::test_keywords_that_have_moved_do_what_they_did_and_say_where_they_are_now",
    ),
    Mutant(
        "a checkpoint that is replaced is removed before the new one is whole",
        "_checkpoints/store.py",
        "draft.mkdir()",
        'draft.mkdir(), shutil.rmtree(draft.with_suffix(""), ignore_errors=True)',
        "test_checkpoints.py::test_a_stop_before_any_rename_leaves_a_whole_checkpoint[replace]",
    ),
    Mutant(
        "checksums of a checkpoint are not compared",
        "_checkpoints/manifest.py",
        'if checksums and _sha256(folder / name) != expected["sha256"]:',
        'if checksums and _sha256(folder / name) == "":',
        "test_checkpoints.py::test_damage_to_any_file_is_noticed_and_the_checkpoint_before_is_used",
    ),
    # Files of models
    Mutant(
        "arrays of a model's file are not compared with their checksums",
        "kaem/archive.py",
        "if _checksum(arrays[name]) != checksums[name]",
        "if False",
        "test_kaem_damaged_files.py::test_any_byte_that_is_altered_is_found",
    ),
    Mutant(
        "the manifest of a model's file is not compared with its checksum",
        "kaem/archive.py",
        'if _sha256(text) != metadata.get("sha256"):',
        'if metadata.get("sha256") is None:',
        "test_kaem_damaged_files.py::test_any_byte_that_is_altered_is_found",
    ),
    Mutant(
        "a model's file of a later version of the format is read as one of this",
        "kaem/archive.py",
        'if manifest["version"] > VERSION:',
        'if manifest["version"] > 10 * VERSION:',
        "test_kaem_damaged_files.py::test_the_error_says_what_is_wrong_with_a_file",
    ),
    # The object of a model
    Mutant(
        "uniform numbers choose another component of a mixture",
        "kaem/priors.py",
        "u[:, -1:] >= cuts",
        "u[:, -1:] >= 0.7 * cuts",
        "test_kaem.py::test_uniform_numbers_make_latents_of_the_prior",
    ),
    Mutant(
        "a prior with tables keeps them when its energy is learned",
        "kaem/priors.py",
        "prior = _without_tables(prior)",
        "_without_tables(prior)",
        "test_kaem.py::test_tables_that_were_kept_are_not_those_of_another_energy",
    ),
    Mutant(
        "latents of a matrix are averaged in place of summed",
        "kaem/priors.py",
        "jnp.sum(z, axis=-1) if rank == 2",
        "jnp.mean(z, axis=-1) if rank == 2",
        "test_kaem.py::test_a_matrix_of_latents_is_summed",
    ),
    Mutant(
        "a sampler is not given the encoder",
        "kaem/choice.py",
        "is_free = sampler.guide is None or (",
        "is_free = False and (",
        "test_kaem.py::test_an_exact_encoder_is_a_proposal_without_error",
    ),
    Mutant(
        "importance sampling is chosen where a few draws have all the weight",
        "kaem/choice.py",
        "if ess >= MIN_ESS:",
        "if ess >= 1:",
        "test_kaem.py::test_where_prior_draws_are_few_tempered_smc_is_chosen",
    ),
    # Priors of mean zero, and measurements with errors
    Mutant(
        "the density of effects of variance one is divided by the scale",
        "_densities/centered_density.py",
        "at_original(log_prob, x, -jnp.inf, -jnp.inf) + jnp.log",
        "at_original(log_prob, x, -jnp.inf, -jnp.inf) - jnp.log",
        "test_centered_prior.py::test_a_prior_that_is_moved_and_stretched_has_the_same_centred_density",
    ),
    Mutant(
        "the support of effects of variance one is moved and not scaled",
        "_densities/centered_density.py",
        "(end - loc) / scale for end in",
        "end - loc for end in",
        "test_centered_prior.py::test_the_support_moves_along_and_holds_every_draw[two ends]",
    ),
    Mutant(
        "derivatives pass through a variance that nobody asked for",
        "_densities/centered_density.py",
        "return mean, jnp.sqrt(variance) if self.unit_variance else jnp.ones_like(mean)",
        "return mean, jnp.where(self.unit_variance, jnp.sqrt(variance), 1.0)",
        "test_centered_prior.py::test_a_mean_is_enough_where_only_that_is_taken_out",
    ),
    Mutant(
        "a variance of one is asked for and not had",
        "distributions/centered.py",
        "self._kept_moments, self.unit_variance)",
        "self._kept_moments, False)",
        "test_centered_prior.py::test_a_prior_that_is_moved_and_stretched_has_the_same_centred_density",
    ),
    Mutant(
        "a variance of one is promised of references that have none",
        "distributions/centered.py",
        '("mean", "variance") if unit_variance else ("mean",)',
        '("mean",)',
        "test_centered_prior.py::test_a_reference_without_the_moment_is_refused[variance of t of two]",
    ),
    Mutant(
        "the curvature of the marginal likelihood does not know of weights",
        "measurements/marginal_likelihood.py",
        "(means[of] * weights[of, None]).T @ means[of]",
        "means[of].T @ means[of]",
        "test_measurements.py::test_gradient_and_hessian_are_those_of_finite_differences",
    ),
    Mutant(
        "a block counts whole in each fold that it meets",
        "measurements/marginal_likelihood.py",
        "sums.weight[fold] += weights[of].sum()",
        "sums.weight[fold] += weights.sum()",
        "test_measurements.py::test_sums_of_folds_are_those_of_their_rows",
    ),
    Mutant(
        "the point mass is no part of a posterior's spread",
        "measurements/posteriors.py",
        "square + self.point * (point_mass - mean) ** 2",
        "square",
        "test_measurements.py::test_posteriors_are_those_of_the_learned_prior_on_a_fine_grid",
    ),
    Mutant(
        "probabilities of a posterior are those at the start of a piece",
        "measurements/posteriors.py",
        "np.clip(below + inside, 0.0, 1.0)",
        "np.clip(below, 0.0, 1.0)",
        "test_measurements.py::test_probability_inverts_quantile",
    ),
    # Source separation -----------------------------------------------------------------------------------------------
    Mutant(
        "the profile likelihood's gradient forgets the scale of the sources",
        "separation/unmixing.py",
        "(np.diag(products) - 1.0)[:, None] * covariance",
        "np.eye(num_sources)",
        "test_ica.py::test_the_gradient_is_that_of_the_profile_likelihood",
    ),
    Mutant(
        "samples beyond the domain count as if they lay at its end",
        "separation/source_densities.py",
        "cubics) + bins.far - log_normalizer",
        "cubics) - log_normalizer",
        "test_ica.py::test_the_gradient_is_that_of_the_profile_likelihood",
    ),
    Mutant(
        "the smoothness is that of the greatest likelihood",
        "separation/source_densities.py",
        "- parameters / n",
        "- 0.0 * parameters / n",
        "test_ica.py::test_the_smoothness_is_large_where_the_reference_is_right_and_small_where_it_is_far_off",
    ),
    Mutant(
        "the tails of the reference are no part of the normaliser",
        "separation/source_densities.py",
        "tails = reference.log_tails(self._low, self._high)",
        "tails = reference.log_tails(self._low, self._high) - 50.0",
        "test_ica.py::test_densities_are_those_of_a_fit_of_one_source",
    ),
    Mutant(
        "sources have a negative third moment",
        "separation/alternation.py",
        "-1.0, 1.0) / scale",
        "1.0, -1.0) / scale",
        "test_ica.py::test_sources_have_unit_variance_positive_skewness_and_the_order_of_what_they_explain",
    ),
    Mutant(
        "sources are in the order of their norms in the unmixing matrix",
        "separation/ica.py",
        "-np.linalg.norm(np.linalg.pinv(components), axis=0)",
        "-np.linalg.norm(components, axis=1)",
        "test_ica.py::test_sources_have_unit_variance_positive_skewness_and_the_order_of_what_they_explain",
    ),
    Mutant(
        "densities stay in the order in which sources were found",
        "separation/ica.py",
        "found.densities.reordered(order)",
        "found.densities",
        "test_ica.py::test_densities_are_those_of_a_fit_of_one_source",
    ),
    Mutant(
        "the volume of a subspace is counted twice",
        "separation/ica.py",
        "0.5 * float(np.linalg.slogdet(",
        "float(np.linalg.slogdet(",
        "test_ica.py::test_scores_are_the_log_densities_of_the_sources_and_the_determinant",
    ),
    Mutant(
        "all features are whitened in one unit",
        "separation/whitening.py",
        "scale = np.sqrt(np.mean(x**2, axis=0))",
        "scale = np.ones(num_features)",
        "test_ica.py::test_columns_of_very_different_size_have_full_rank",
    ),
    # Compiled programs that are reused -------------------------------------------------------------------------------
    Mutant(
        "a model whose closure has changed finds the program of the old one",
        "models/fingerprint.py",
        "return SameProgram(self.model, (self.plate, computes))",
        "return SameProgram(self.model, self.plate)",
        "test_programs.py::test_a_sampler_sees_what_a_name_in_the_model_is_bound_to_now[importance-all]",
    ),
    Mutant(
        "models of the same structure are one program for jit, whatever they compute",
        "models/fingerprint.py",
        "(isinstance(other, Program) and self.computes == other.computes)",
        "isinstance(other, Program)",
        "test_latent_model.py::test_models_that_compute_the_same_are_one_program_for_jit",
    ),
    Mutant(
        "a model at another key has the sub-sample of the old one",
        "models/latent_model.py",
        "jax.tree.leaves((*given, indices))",
        "jax.tree.leaves((*given, self.plate_indices))",
        "test_latent_model.py::test_at_other_values_a_model_is_as_if_it_were_read_with_these[a sub-sample]",
    ),
    Mutant(
        "programs with other constants are taken for the same",
        "_compilation/fingerprint.py",
        "return arguments, tuple(map(_of_value, consts)), tuple(equations), tuple(map(atom, jaxpr.outvars))",
        "return arguments, tuple(equations), tuple(map(atom, jaxpr.outvars))",
        "test_programs.py::test_fingerprints_tell_programs_apart",
    ),
    Mutant(
        "rules of derivatives are no part of what a model computes",
        "models/fingerprint.py",
        "    if has_custom_rules(program):",
        "    if False:",
        "test_programs.py::test_a_rebound_derivative_rule_is_another_program",
    ),
    Mutant(
        "the check of the rows is remembered under the name of the model",
        "models/self_check.py",
        "passes_once(model.as_argument.computes, ",
        "passes_once(model.model, ",
        "test_programs.py::test_a_rebound_model_is_checked_again",
    ),
    Mutant(
        "optimisers with other learning rates are taken for the same",
        "training/fit.py",
        "initial.optimizer_fingerprint(svi.optim, params)",
        "'the optimiser'",
        "test_programs.py::test_another_learning_rate_is_another_program",
    ),
    Mutant(
        "programs are kept under the types of settings, not their values",
        "_compilation/programs.py",
        "values.append((type(leaf), leaf))",
        "values.append(type(leaf))",
        "test_programs.py::test_static_arguments_are_compared_by_value_and_functions_by_what_they_compute",
    ),
    # Reading: effects and paths
    Mutant(
        "total effects are told from one of the two points of a row",
        "reading/pick_freeze.py",
        "0.25 * ((a - a_swapped) ** 2 + (b_swapped - b) ** 2)",
        "0.25 * ((a - a_swapped) ** 2)",
        "test_effects.py::test_ishigami_s_function_has_the_indices_of_the_closed_form",
    ),
    Mutant(
        "pairs lack the points that swap the second coordinate alone",
        "reading/pick_freeze.py",
        "((b - b_i) - (b_j - b_swapped))",
        "((b - b_i) - (b_i - b_swapped))",
        "test_effects.py::test_the_g_function_has_the_indices_of_the_closed_form_and_all_its_pairs",
    ),
    Mutant(
        "paths between latents are straight in z",
        "reading/paths.py",
        'in_scores = prior is not None and along != "linear"',
        "in_scores = False",
        "test_paths.py::test_no_point_lies_in_the_gap_but_of_a_straight_line",
    ),
    Mutant(
        "coordinates are in the order of the least change",
        "reading/paths.py",
        "order = np.argsort(-change",
        "order = np.argsort(change",
        "test_paths.py::test_points_of_a_traversal_are_even_in_probability_and_the_rest_is_held",
    ),
    # Formulas
    Mutant(
        "locations have as many places as numbers of size one, whatever their scale",
        "reading/printed_numbers.py",
        "digits - 1 - math.floor(math.log10(significant(unit, digits)))",
        "digits - 1",
        "test_formulas.py::test_rounding_keeps_what_parameters_must_be",
    ),
    Mutant(
        "the outer coefficient of a function of a KAN is that of the function before the search",
        "reading/univariate_functions.py",
        "coefficient=significant(coefficient, digits)",
        "coefficient=1.0",
        "test_kan_formulas.py::test_known_functions_are_found_with_their_numbers",
    ),
    Mutant(
        "a formula of a KAN is judged before its numbers are rounded",
        "reading/kan_formula.py",
        "coefficient=significant(float(coefficient), digits)",
        "coefficient=float(coefficient)",
        "test_kan_formulas.py::test_numbers_are_judged_after_rounding",
    ),
]


def main() -> int:
    """Put every fault into a copy of the package and see whether its tests fail."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--jobs", type=int, default=2, help="how many faults at a time (2)")
    parser.add_argument("--only", default="", metavar="WORDS", help="faults whose description or file has these words")
    parser.add_argument("--list", action="store_true", help="print the faults and run nothing")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in mutant.fault or options.only in mutant.path]
    for mutant in chosen:
        mutated(mutant)
    if options.list:
        print("\n".join(f"{mutant.path}: {mutant.fault} ({mutant.test})" for mutant in chosen))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(make_copy(Path(folder) / str(number)))

        def in_a_copy(run, *arguments):
            copy = copies.get()
            try:
                return run(copy, *arguments)
            finally:
                copies.put(copy)

        with ThreadPoolExecutor(options.jobs) as pool:
            # Of an untouched copy all of these tests pass, each file's in one process.
            for code, output, _ in pool.map(lambda tests: in_a_copy(run_tests, tests), by_file(chosen)):
                if code != PASSED:
                    print(output, "The tests do not pass without a fault.", sep="\n", file=sys.stderr)
                    return 1
            print("| fault | file | killed by | seconds |", "| --- | --- | --- | ---: |", sep="\n", flush=True)
            num_killed = 0
            for mutant, (killer, seconds) in zip(
                chosen, pool.map(lambda mutant: in_a_copy(kill, mutant), chosen), strict=True
            ):
                num_killed += not killer.startswith("**")
                print(f"| {mutant.fault} | `{mutant.path}` | {killer} | {seconds:.0f} |", flush=True)
    print(f"\n{num_killed} of {len(chosen)} killed")
    return int(num_killed < len(chosen))


def by_file(mutants: list[Mutant]) -> list[list[str]]:
    """The tests of some faults, each once, by file and in the order of the file."""
    files: dict[str, set[str]] = {}
    for mutant in mutants:
        files.setdefault(mutant.test.partition("::")[0], set()).add(mutant.test)

    def place(test: str) -> tuple[int, str]:
        file, _, name = test.partition("::")
        return (ROOT / "tests" / file).read_text().index(f"def {name.partition('[')[0]}("), test

    return [sorted(tests, key=place) for tests in files.values()]


def mutated(mutant: Mutant) -> str:
    """The text of the file with the fault in it.

    Raises:
        ValueError: unless the old text occurs once, within a line, and what comes of it is Python.
    """
    text = (ROOT / "numpyro_kaem" / mutant.path).read_text()
    count = text.count(mutant.old)
    if count != 1 or "\n" in mutant.old + mutant.new or mutant.old == mutant.new:
        raise ValueError(
            f"the fault {mutant.fault!r} must change a text that occurs once in a line of {mutant.path}, but "
            f"{mutant.old!r} occurs {count} times: write the mutant anew"
        )
    text = text.replace(mutant.old, mutant.new)
    compile(text, mutant.path, "exec")
    return text


def make_copy(folder: Path) -> Path:
    """A copy of what the tests need."""
    folder.mkdir()
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, folder / name)
    return folder


def run_tests(copy: Path, tests: list[str]) -> tuple[int | None, str, float]:
    """Pytest's exit code (None where it does not end), its output, and the seconds that it took."""
    # Bytecode is told from its source by the second of the last change, which two faults may share.
    environment = os.environ | {"PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *(f"tests/{t}" for t in tests)]
    start = time.perf_counter()
    try:
        process = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired as error:
        return None, str(error), SECONDS
    return process.returncode, process.stdout + process.stderr, time.perf_counter() - start


def kill(copy: Path, mutant: Mutant) -> tuple[str, float]:
    """The test that fails with a fault, or in bold what has become of it instead, and the seconds that it took."""
    path = copy / "numpyro_kaem" / mutant.path
    text = path.read_text()
    path.write_text(mutated(mutant))
    try:
        code, output, seconds = run_tests(copy, [mutant.test])
    finally:
        path.write_text(text)
    if code == FAILED:
        return f"`{re.search(r'^(?:FAILED|ERROR) tests/(.+?)(?: - .*)?$', output, re.MULTILINE)[1]}`", seconds
    if code == PASSED:
        return "**survived**", seconds
    print(output, file=sys.stderr)
    return f"**pytest ended with {code}**", seconds


if __name__ == "__main__":
    sys.exit(main())
