"""Training of NumPyro models on minibatches."""

from numpyro_kaem.training.data import IndexedBatch
from numpyro_kaem.training.failure import TrainingFailed
from numpyro_kaem.training.fit import fit
from numpyro_kaem.training.grids import GridAdaptation
from numpyro_kaem.training.loggers import TensorBoardLogger
from numpyro_kaem.training.result import FitResult

__all__ = ["FitResult", "GridAdaptation", "IndexedBatch", "TensorBoardLogger", "TrainingFailed", "fit"]
