"""Checkpoints of a training run: each is written whole or not at all, and verified before it is used."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from numpyro_kaem._checkpoints.arrays import leaves_by_path, read_arrays, signature, to_device, to_host, write_arrays
from numpyro_kaem._checkpoints.manifest import MANIFEST, DamagedError, flush, is_whole, to_json, verify, write_manifest

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

ARRAYS, HISTORY = "state", "history.npz"
FOLDER_NAME = re.compile(r"(\d{10,})(\.writing|\.removed)?")
MAX_DIFFERENCES = 20


class CheckpointStore:
    """A folder of checkpoints; `name` is how the caller calls the argument that names it.

    A checkpoint is a folder named by its step: `0000001200/state/`, the arrays (Orbax), `history.npz` and
    `manifest.json`. It is written as `0000001200.writing`, its manifest last, flushed to the disk and renamed: a killed
    process leaves a whole checkpoint or a folder that is ignored, and removed by the next `save`. Nothing on the disk
    depends on classes, and reading runs no code. Of several processes all call `save` and `restore`, with a folder
    that they share; the first one writes.
    """

    # Orbax's `CheckpointManager` counts damaged checkpoints among those to keep, refuses a step that is there (a kill
    # after its removal would lose it), leaves its draft on a full disk, and makes a folder anew that has vanished.
    def __init__(self, directory: str | os.PathLike, keep: int = 3, name: str = "checkpoint_dir"):
        self._keep, self._name = keep, name
        if "://" in os.fspath(directory):
            raise ValueError(f"{name} must be a folder on a file system, got {os.fspath(directory)!r}")
        # A later change of the working directory must not move the checkpoints.
        self._directory = Path(directory).expanduser().absolute()
        self._directory.mkdir(parents=True, exist_ok=True)
        # Whether it can be written to is told now, and not after the first epoch.
        tempfile.TemporaryFile(dir=self._directory).close()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs from writing to the folder, by a lock that ends with the process, however it does."""
        if fcntl is None or jax.process_index():
            yield
            return
        folder = os.open(self._directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"{self._name} {os.fspath(self._directory)!r} is being written to by another run: wait for its "
                    "end, or take another directory"
                ) from None
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(folder)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that have all their files in full length, ascending."""
        return sorted({step for step, folder in self._candidates() if is_whole(folder)})

    def save(self, step: int, state: PyTree, history: dict[str, np.ndarray], description: dict[str, Any]) -> bool:
        """Write a checkpoint, or replace that of the same step, and then remove the oldest ones beyond `keep`.

        Whether it was written is the same on all processes; a warning tells what the file system has refused.
        """
        leaves = leaves_by_path(state)
        arrays = {path: to_host(leaf) for path, leaf in leaves.items() if np.size(leaf)}
        manifest = {"step": step, "description": json.loads(to_json(description)), "tree": signature(leaves)}
        written = True
        if jax.process_index() == 0:
            try:
                self._write(step, arrays, history, manifest)
            except OSError as error:
                written = False
                warnings.warn(
                    f"the checkpoint of step {step} could not be written to {os.fspath(self._directory)!r} "
                    f"({error.strerror or error}); the run goes on without it",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return not any_process(not written)

    def restore(self, like: PyTree, description: dict[str, Any]) -> tuple[int, PyTree, dict[str, np.ndarray]] | None:
        """The newest undamaged checkpoint, its arrays placed where those of `like` are; None where there is none.

        The description must agree with the one saved, where the checkpoint has its facts.
        """
        leaves = leaves_by_path(like)
        names = of_first_process([folder.name for _, folder in self._candidates()])
        for name in names:
            folder, damage, manifest = self._directory / name, None, {}
            try:
                manifest = verify(folder)
            except DamagedError as error:
                damage = str(error)
            if any_process(damage is not None):
                damage = damage or "another process cannot read it"
                warnings.warn(f"the checkpoint {folder} is passed over: {damage}", RuntimeWarning, stacklevel=2)
                continue
            self._check_same_run(manifest, signature(leaves), json.loads(to_json(description)))
            # An empty array has no content to restore.
            paths = [path for path, leaf in leaves.items() if np.size(leaf)]
            arrays = read_arrays(folder / ARRAYS, paths) if paths else {}
            restored = [to_device(arrays[path], leaf) if path in arrays else leaf for path, leaf in leaves.items()]
            state = jax.tree.unflatten(jax.tree.structure(like), restored)
            with np.load(folder / HISTORY, allow_pickle=False) as history:
                return manifest["step"], state, dict(history)
        if names:
            warnings.warn(
                f"no undamaged checkpoint is left in {os.fspath(self._directory)!r}: the run starts anew",
                RuntimeWarning,
                stacklevel=2,
            )
        return None

    def _folders(self) -> list[tuple[int, str, Path]]:
        """Step, suffix and path of what may be a checkpoint, or was to become one, the newest first."""
        folders = [folder for folder in self._directory.iterdir() if FOLDER_NAME.fullmatch(folder.name)]
        return sorted(((int(f.stem), f.suffix, f) for f in folders if f.is_dir()), reverse=True)

    def _candidates(self) -> list[tuple[int, Path]]:
        """Steps and folders that may hold a checkpoint, the newest first."""
        # A draft with a manifest is whole: the process was killed just before it could rename the folder.
        return [
            (step, folder)
            for step, suffix, folder in self._folders()
            if not suffix or (suffix == ".writing" and (folder / MANIFEST).exists())
        ]

    def _write(
        self, step: int, arrays: dict[str, np.ndarray], history: dict[str, np.ndarray], manifest: dict[str, Any]
    ) -> None:
        """Write a checkpoint under its temporary name and put it into place."""
        self._tidy()
        draft = self._directory / f"{step:010d}.writing"
        try:
            draft.mkdir()
            if arrays:
                write_arrays(draft / ARRAYS, arrays)
            _write_history(draft / HISTORY, history)
            write_manifest(draft, manifest)
        except OSError:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        if not is_whole(self._put_into_place(draft)):
            raise OSError(f"the checkpoint of step {step} is not what has been written")
        self._remove_older_than(step)

    def _tidy(self) -> None:
        """Finish or remove what a killed process has left."""
        for _, suffix, folder in self._folders():
            if suffix == ".writing" and is_whole(folder):
                self._put_into_place(folder)
            elif suffix:
                shutil.rmtree(folder, ignore_errors=True)

    def _put_into_place(self, draft: Path) -> Path:
        folder = draft.with_suffix("")
        if folder.exists():
            self._remove(folder)  # the draft is a candidate itself by now
        draft.rename(folder)
        flush(self._directory)
        return folder

    def _remove_older_than(self, step: int) -> None:
        """Remove what is older than the newest `keep` whole checkpoints up to this step."""
        whole = [other for other in self.steps() if other <= step]
        for other, folder in self._candidates():
            # Without a manifest it need not be ours.
            if other < whole[-self._keep :][0] and (folder / MANIFEST).exists():
                with contextlib.suppress(OSError):
                    self._remove(folder)

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint, renamed first so that what is left of it is never taken for a damaged one."""
        removed = folder.with_suffix(".removed")
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)

    def _check_same_run(self, manifest: dict, tree: dict, description: dict) -> None:
        """Raise an error that lists what differs between a checkpoint and this run."""
        saved, differences = manifest["tree"], []
        differences += [f"{path} is not in the checkpoint" for path in tree if path not in saved]
        differences += [f"{path} is in the checkpoint only" for path in saved if path not in tree]
        for path, kind in itertools.product([path for path in tree if path in saved], ("shape", "dtype")):
            old, new = (tuple(t[path][kind]) if kind == "shape" else t[path][kind] for t in (saved, tree))
            if old != new:
                differences.append(f"{path} has the {kind} {old} in the checkpoint, {new} now")
        # A fact that is not there at all was not noted yet by the version that has written the checkpoint.
        now = _entries({name: value for name, value in description.items() if name in manifest["description"]})
        saved = _entries(manifest["description"])
        for name in sorted(saved | now):
            old, new = (entries.get(name, "absent") for entries in (saved, now))
            if old != new:
                differences.append(f"{name} was {old}, is {new} now")
        if differences:
            more = len(differences) - MAX_DIFFERENCES
            listed = differences[:MAX_DIFFERENCES] + ([f"and {more} more"] if more > 0 else [])
            raise ValueError(
                f"{self._name} {os.fspath(self._directory)!r} holds a checkpoint (step {manifest['step']}) of "
                "another model or run; take another directory, or the same model, data and settings. It differs:\n- "
                + "\n- ".join(listed)
            )


def any_process(value: bool) -> bool:
    """Whether the value is true in any process."""
    if jax.process_count() == 1:
        return value
    return bool(np.any(multihost_utils.process_allgather(np.array([value], np.uint8))))


def of_first_process(names: list[str]) -> list[str]:
    """The names that the first process has."""
    if jax.process_count() == 1:
        return names
    text = "\n".join(names).encode()
    size = int(multihost_utils.broadcast_one_to_all(np.array(len(text), np.int32)))
    padded = np.frombuffer(text[:size].ljust(size, b"\0"), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(padded)).decode().split("\n") if size else []


def _write_history(path: Path, history: dict[str, np.ndarray]) -> None:
    # numpy.savez takes no array by the name of "file", and pickles what it cannot write.
    with zipfile.ZipFile(path, "w") as archive:
        for name, array in history.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array(file, np.asarray(array), allow_pickle=False)


def _entries(description: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The entries of nested dictionaries by dotted name; not-a-number as text, since it equals nothing."""
    entries = {}
    for name, value in description.items():
        if isinstance(value, dict):
            entries |= _entries(value, f"{prefix}{name}.")
        else:
            entries[prefix + name] = "nan" if isinstance(value, float) and math.isnan(value) else value
    return entries
