"""Training of NumPyro models on minibatches.

Each file imports from those above it and from earlier rooms only.

result: What `fit` returns
failure: How a training run ends that cannot go on
processes: What the processes of a run on several hosts must agree on
optimizers: The optimiser of a training run: one for all parameters or one for each label, and gradient accumulation
loggers: Callbacks of `fit` that log what it records
sharding: Data, chains and parameters on a mesh of devices
grids: Grids that adapt while a model is trained
step: One training step, and many of them in one compiled call
data: Where batches come from: arrays on the device, or an iterable on the host
run: The course of a training run on the host: epochs, scores, checkpoints, callbacks, and how it ends
fit: `fit`: train a NumPyro model on minibatches
"""

from numpyro_kaem.training.data import IndexedBatch
from numpyro_kaem.training.failure import TrainingFailed
from numpyro_kaem.training.fit import fit
from numpyro_kaem.training.grids import GridAdaptation
from numpyro_kaem.training.loggers import TensorBoardLogger
from numpyro_kaem.training.result import FitResult

__all__ = ["FitResult", "GridAdaptation", "IndexedBatch", "TensorBoardLogger", "TrainingFailed", "fit"]
