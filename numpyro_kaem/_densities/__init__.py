"""An energy and a reference make a density: normalised, with its inverse and its tails.

Each file imports from those above it and from earlier rooms only.

panels: Panels of a domain: where the nodes of a quadrature rule lie, aligned with the cells of a basis
cut_panels: Quadrature panels that are cut where a density has kinks, which may be known at run time only
cdf_table: Tables of one-dimensional cumulative distribution functions
inverse_table: Quantiles of tabulated distributions
tails: Tails of reference distributions, on both sides to full relative precision
log_tails: Logarithms of the tails of reference distributions, which are finite where the probabilities underflow
reference: What a distribution must be to serve as a reference, and where its density ends or has kinks
"""
