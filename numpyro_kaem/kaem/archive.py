"""One file: a manifest in JSON and arrays of safetensors, each with its checksum."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from numpyro_kaem._checkpoints.manifest import flush

FORMAT = "numpyro_kaem"
VERSION = 1
# By which safetensors knows dtypes when it reads; when it writes, by NumPy's names.
_DTYPES = {
    "BOOL": "bool",
    **{f"{kind[0].upper()}{bits}": f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


class DamagedFile(ValueError):
    """Raised for a file that is not what was saved: cut off, altered, or of another kind."""


def write(path: str | os.PathLike, manifest: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Write the file at once: there is the whole one at the end, or what was there before.

    It is a safetensors file, whose metadata hold the manifest as JSON; other tools read its arrays.

    Raises:
        IsADirectoryError: where the path is a folder.
        OSError: where the file cannot be written.
        ValueError: for arrays of a dtype that safetensors does not have.
    """
    from safetensors.numpy import save

    if unknown := sorted(name for name, array in arrays.items() if array.dtype.name not in _DTYPES.values()):
        raise ValueError(f"arrays of dtype {arrays[unknown[0]].dtype} have no place in a safetensors file: {unknown}")
    given, path = os.fspath(path), Path(path).resolve()
    if path.is_dir():
        raise IsADirectoryError(f"path must be a file, got the folder {given!r}: name a file in it, such as model.kaem")
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    checksums = {name: _checksum(array) for name, array in arrays.items()}
    text = json.dumps({"version": VERSION, "checksums": checksums, **manifest}, allow_nan=False, separators=(",", ":"))
    content = save(arrays, {FORMAT: text, "sha256": _sha256(text)})
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}.writing")
    try:
        draft.write_bytes(content)
        flush(draft)
        draft.replace(path)
        flush(path.parent)
    except OSError as error:
        cure = "make the folder first" if not path.parent.exists() else "save to where there is room and leave to write"
        raise type(error)(error.errno, f"{given!r} cannot be written, {cure}: {error.strerror}") from error
    finally:
        draft.unlink(missing_ok=True)


def read(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The manifest and the arrays, checked.

    Raises:
        FileNotFoundError: where there is no file.
        IsADirectoryError: where the path is a folder.
        DamagedFile: for a file that is cut off, altered, or not one of KAEM's.
        ValueError: for one of a later version of the format.
    """
    from safetensors import SafetensorError, deserialize

    where = repr(os.fspath(path))
    if Path(path).is_dir():
        raise IsADirectoryError(f"path must be a file that KAEM.save has written, got the folder {where}")
    content = Path(path).read_bytes()
    metadata = _header(where, content).get("__metadata__", {})
    try:
        tensors = dict(deserialize(content))
    except SafetensorError as error:
        raise DamagedFile(f"the header of {where} has been altered: {error}") from error
    if not isinstance(metadata, dict) or FORMAT not in metadata:
        raise DamagedFile(f"{where} is a safetensors file, but none that KAEM.save has written: it has no manifest")
    text = metadata[FORMAT]
    if _sha256(text) != metadata.get("sha256"):
        raise DamagedFile(f"the manifest of {where} has been altered: its checksum does not fit; take another copy")
    manifest = json.loads(text)
    if manifest["version"] > VERSION:
        raise ValueError(
            f"{where} is of version {manifest['version']} of the format, and this version of numpyro_kaem reads up to "
            f"{VERSION}: install {manifest.get('written_by', 'the version that wrote it')}, or later"
        )
    checksums = manifest["checksums"]
    if missing := sorted(set(checksums) - set(tensors)):
        raise DamagedFile(f"{where} lacks the arrays {missing}; take another copy")
    if added := sorted(set(tensors) - set(checksums)):
        raise DamagedFile(f"{where} has arrays that were not saved: {added}; take another copy")
    arrays = {
        name: np.frombuffer(tensor["data"], jnp.dtype(_DTYPES[tensor["dtype"]])).reshape(tensor["shape"])
        for name, tensor in tensors.items()
    }
    if changed := sorted(name for name in checksums if _checksum(arrays[name]) != checksums[name]):
        raise DamagedFile(f"arrays of {where} have been altered: {changed}; take another copy")
    return manifest, arrays


def _header(where: str, content: bytes) -> dict[str, Any]:
    """The header of a safetensors file, whose length is that of the file."""
    size = int.from_bytes(content[:8], "little")
    is_other = content[8:9] not in (b"{", b"")
    if len(content) < 8 or (len(content) < 8 + size and not is_other):
        raise DamagedFile(f"{where} is cut off inside its header, after {len(content)} bytes; take another copy")
    try:
        if is_other:
            raise ValueError("it has no header")
        header = json.loads(content[8 : 8 + size])
        end = (
            8 + size + max((entry["data_offsets"][1] for name, entry in header.items() if name[:2] != "__"), default=0)
        )
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamagedFile(f"{where} is no safetensors file, or its header has been altered: {error}") from error
    if len(content) < end:
        raise DamagedFile(f"{where} is cut off: it has {len(content):,} of {end:,} bytes; take another copy")
    return header


def _checksum(array: np.ndarray) -> str:
    """Of an array's bytes, dtype and shape; 64 bits of it, so that many arrays have small manifests."""
    digest = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    digest.update(array.tobytes())
    return digest.hexdigest()[:16]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
