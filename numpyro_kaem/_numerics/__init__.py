"""Numbers and arrays: nothing here knows an energy, a density or a model.

Each file imports from those above it and from earlier rooms only.

two_floats: sums and products as a high and a low part
log_probabilities: probabilities that are given by their logarithms, which are finite where these underflow
special: incomplete gamma and beta integrals, by series and fractions
grid: points that are not trained: static, or the bits of an array
quadrature: Gauss-Legendre and trapezoid rules on panels
convolutions: convolutions whose channels come last, as CPUs want them
sharding: rows of arrays over devices and processes
"""
