"""One object that carries a model from its parts to a file.

Each file imports from those above it and from earlier rooms only.

likelihoods: Likelihoods by name: from a generator's output to a NumPyro distribution of data of a known shape
priors: Priors of a KAEM: those of `KAEM.create`, clusters of latent vectors, and what of a distribution is learned
model: The parts of a KAEM, and the NumPyro model and guide that they make
codec: Values as JSON and arrays: what a file says of a model, read again without pickle and without running its code
archive: One file: a manifest in JSON and arrays of safetensors, each with its checksum
"""
