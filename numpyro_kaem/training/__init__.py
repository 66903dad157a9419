"""Training of NumPyro models on minibatches.

Each file imports from those above it and from earlier rooms only.

result: What `fit` returns, or raises where a run cannot go on
optimizers: The optimiser of a training run: one for all parameters or one for each label, and gradient accumulation
loggers: Callbacks of `fit` that log what it records
sharding: Data, chains and parameters on a mesh of devices
grids: Grids that adapt while a model is trained
step: One training step, and many of them in one compiled call
data: Data as users pass them, checked: arrays, iterables of batches, batches with the indices of their rows
array_feed: Batches of arrays, cut and shuffled on the device
stream_feed: Batches from an iterable on the host
held_out: Held-out data: what is said of data that a model has not been trained on
checkpointing: Where `fit` keeps its checkpoints, and how often it writes one
moved_keywords: Keywords of `fit` that have moved into dataclasses, and work for one more version
history: The books of a run: where it stands, and what it has recorded by step, by epoch and by score
alarms: What a run warns of, once each: skipped steps, collapsed weights, chains that do not get there
initial: What a run begins with: an objective that suits the model, the sites of model and guide, the state
run: The course of a training run on the host: epochs, scores, checkpoints, callbacks, and how it ends
fit: `fit`: train a NumPyro model on minibatches
"""

from numpyro_kaem.training.checkpointing import Checkpointing
from numpyro_kaem.training.data import IndexedBatch
from numpyro_kaem.training.fit import fit
from numpyro_kaem.training.grids import GridAdaptation
from numpyro_kaem.training.held_out import HeldOut
from numpyro_kaem.training.loggers import TensorBoardLogger
from numpyro_kaem.training.result import FitResult, TrainingFailed

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
