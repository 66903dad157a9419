"""An energy and a reference make a density: normalised, with its inverse and its tails.

Each file imports from those above it and from earlier rooms only.

panels: Panels of a domain: where the nodes of a quadrature rule lie, aligned with the cells of a basis
cut_panels: Quadrature panels that are cut where a density has kinks, which may be known at run time only
cdf_table: Tables of one-dimensional cumulative distribution functions
inverse_table: Quantiles of tabulated distributions
tails: Tails by cdf and icdf, and those of normal, Student-t, logistic, Cauchy and Laplace densities and of halves
family_tails: Tails of NumPyro's other families in closed form, and a table of what is known of each family
reference_tails: Tails of any reference distribution, to full relative precision, and their logarithms
reference: What a distribution must be to serve as a reference, and where its density ends or has kinks
density: The density of an energy and a reference: its panels, its normaliser, and the table of its body
masses: Log-densities and cumulative probabilities: of the body by its table, beyond it by the reference's tails
tail_panels: The tails of densities: their panels and their quantiles, from those of the reference
quantiles: Quantiles and draws of densities, with implicit derivatives
moments: Expectations under densities, by quadrature: nodes in z on the body, in probability in the tails
truncated_density: A density between bounds: its mass, its quantiles and its moments, from those of the whole
centered_density: A density in the coordinate in which its mean is zero, and its variance one on request
"""
