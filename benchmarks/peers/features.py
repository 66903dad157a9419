"""What distances between draws and data are taken of: a classifier's last layer, or the data."""

from functools import cache

import numpy as np
from sklearn.neural_network import MLPClassifier

from benchmarks.peers.tasks import Task, task
from numpyro_kaem.kaem.evaluation import Named

NUM_FEATURES = 32
# Of data without labels: principal components of the numbers.
NUM_COMPONENTS = 32


def numbers(task: Task, x: np.ndarray) -> np.ndarray:
    """Rows of numbers of about unit size: one-hot of categories."""
    x = np.asarray(x)
    if task.num_categories:
        x = np.eye(task.num_categories, dtype=np.float32)[x.astype(int)]
    elif task.likelihood == "8-bit":
        x = x / np.float32(127.5) - 1
    return x.reshape(len(x), -1).astype(np.float32)


@cache
def features_of(name: str) -> Named:
    """The features of a data set, a function of rows of it, with a name that says what they are.

    They have mean zero and, together, the mean variance one over the training data, so that distances of data sets are
    of one size. Each by itself would not do: units that are hardly ever active would count most.
    """
    data = task(name)
    x = numbers(data, data.train)
    if data.labels is None:
        center = x.mean(0)
        _, _, axes = np.linalg.svd(x - center, full_matrices=False)
        what = f"{NUM_COMPONENTS} principal components"

        def raw(batch: np.ndarray) -> np.ndarray:
            return (numbers(data, batch) - center) @ axes[:NUM_COMPONENTS].T
    else:
        classifier = MLPClassifier((256, NUM_FEATURES), alpha=1e-2, early_stopping=True, max_iter=40, random_state=0)
        classifier.fit(x, data.labels)
        layers = list(zip(classifier.coefs_[:-1], classifier.intercepts_[:-1], strict=True))
        share = max(classifier.validation_scores_)
        what = f"{NUM_FEATURES} units of a classifier that is right in {share:.0%} of cases"

        def raw(batch: np.ndarray) -> np.ndarray:
            hidden = numbers(data, batch)
            for weight, bias in layers:
                hidden = np.maximum(hidden @ weight + bias, 0.0)
            return hidden

    mean = raw(data.train).mean(0)
    scale = np.sqrt(np.mean((raw(data.train) - mean) ** 2))
    return Named(what, lambda batch: (raw(batch) - mean) / scale)
