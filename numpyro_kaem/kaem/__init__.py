"""One object that carries a model from its parts to a file.

Each file imports from those above it and from earlier rooms only.

likelihoods: Likelihoods by name: from a generator's output to a NumPyro distribution of data of a known shape
priors: Priors of a KAEM: those of `KAEM.create`, clusters of latent vectors, and what of a distribution is learned
networks: Generators and encoders that suit data of a shape
nnx: Modules of Flax NNX as modules of Equinox
model: The parts of a KAEM, and the NumPyro model and guide that they make
data: Data of a KAEM, checked and converted
composition: Parts put together: their shapes must fit
archive: One file: a manifest in JSON and arrays of safetensors, each with its checksum
codec: Values as JSON and arrays: what a file says of a model, read again without pickle and without running its code
files: What a file holds of a model: its parts, values, history and optimiser state, and how they are put together again
summary: A text table of a model
defaults: What a KAEM is trained with where nothing is said: objective, optimiser, epochs, held-out score
choice: Which posterior sampler suits a trained model: a short trial decides, and says so
evaluation: How good a trained model is: scores with their errors, as a table
shipping: Programs that run without this package: StableHLO by `jax.export`
kaem: The KAEM object: a prior, a generator and a likelihood, from `fit` to a file
"""

from numpyro_kaem.kaem.archive import DamagedFile
from numpyro_kaem.kaem.evaluation import Evaluation, Score
from numpyro_kaem.kaem.kaem import KAEM
from numpyro_kaem.kaem.priors import ClusterPrior

__all__ = ["KAEM", "ClusterPrior", "DamagedFile", "Evaluation", "Score"]
