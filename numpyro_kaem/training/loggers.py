"""Callbacks of `fit` that log what it records."""

from __future__ import annotations

import os
from typing import Any

import numpy as np


class TensorBoardLogger:
    """Log the metrics of every epoch for TensorBoard, as a callback of `fit`.

    Needs tensorboardX or clu: `pip install 'numpyro_kaem[tensorboard]'`.

    Args:
        directory: where the event files go.

    Raises:
        ImportError: if neither package is installed.

    Example:
        <!-- not run: it needs the extra `tensorboard` -->
        ```python
        from numpyro_kaem import TensorBoardLogger, fit

        fit(..., callbacks=[TensorBoardLogger("logs")])
        ```
    """

    def __init__(self, directory: str | os.PathLike):
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            try:
                from clu.metric_writers import create_default_writer
            except ImportError as error:
                raise ImportError(
                    "TensorBoardLogger needs tensorboardX or clu: pip install 'numpyro_kaem[tensorboard]'"
                ) from error
            writer = create_default_writer(os.fspath(directory))
            self._write = lambda step, values: writer.write_scalars(step, values)
            self._flush = writer.flush
        else:
            writer = SummaryWriter(os.fspath(directory))
            self._write = lambda step, values: [writer.add_scalar(name, value, step) for name, value in values.items()]
            self._flush = writer.flush

    def __call__(self, epoch: int, metrics: dict[str, Any], params: dict[str, Any]) -> None:
        """Write the scalars of an epoch."""
        values = {name: float(value) for name, value in metrics.items() if np.ndim(value) == 0 and name != "epoch"}
        self._write(epoch, values)
        self._flush()
