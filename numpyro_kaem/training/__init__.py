"""Training of NumPyro models on minibatches.

Each file imports from those above it and from earlier rooms only.

settings: Settings of `fit` that are several: what is held out, and where checkpoints go
result: What `fit` returns, raises where a run cannot go on, and has logged after every epoch
sharding: Data, chains and parameters on a mesh of devices
grids: Grids that adapt while a model is trained
step: One training step, and many of them in one compiled call
data: Data as users pass them, checked: arrays, iterables of batches, batches with the indices of their rows
feeds: Where batches come from: arrays on the device, or an iterable on the host
held_out: Held-out data: what is said of data that a model has not been trained on
history: The books of a run: where it stands, what it has recorded by step, by epoch and by score; what it warns of
initial: What a run begins with: an optimiser, an objective that suits the model, sites of model and guide, the state
run: The course of a training run on the host: epochs, scores, checkpoints, callbacks, and how it ends
fit: `fit`: train a NumPyro model on minibatches
"""

from numpyro_kaem.training.data import IndexedBatch
from numpyro_kaem.training.fit import fit
from numpyro_kaem.training.grids import GridAdaptation
from numpyro_kaem.training.result import FitResult, TensorBoardLogger, TrainingFailed
from numpyro_kaem.training.settings import Checkpointing, HeldOut

__all__ = [
    "Checkpointing",
    "FitResult",
    "GridAdaptation",
    "HeldOut",
    "IndexedBatch",
    "TensorBoardLogger",
    "TrainingFailed",
    "fit",
]
