"""Files of a KAEM that are cut off, altered or not there: the error says which."""

import hashlib
import json

import jax.random as jr
import numpy as np
import numpyro.distributions as dist
import pytest
from safetensors.numpy import load as load_tensors

from numpyro_kaem import KAEM, MLP, BSpline, DamagedFile, KAPrior, UnivariateEnergy
from numpyro_kaem.kaem import archive, codec


def small(generator=None):
    """A model of two numbers that counts as trained."""
    energy = UnivariateEnergy.init(jr.key(0), (2,), basis=BSpline(4, 3, (-2.0, 2.0)))
    prior = KAPrior(energy, dist.Normal(0.0, 1.0)).to_event(1)
    kaem = KAEM(prior, MLP(jr.key(1), 2, 2, (3,)) if generator is None else generator, "normal")
    return kaem.at(kaem.params)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "a.kaem"
    small().save(path)
    return path.read_bytes()


def rewritten(saved, change=lambda manifest: None, change_arrays=lambda arrays: None):
    """The file with another manifest and other arrays, and the checksum of the manifest mended."""
    from safetensors.numpy import save

    size = int.from_bytes(saved[:8], "little")
    manifest = json.loads(json.loads(saved[8 : 8 + size])["__metadata__"]["numpyro_kaem"])
    arrays = load_tensors(saved)
    change(manifest), change_arrays(arrays)
    text = json.dumps(manifest)
    return save(arrays, {"numpyro_kaem": text, "sha256": hashlib.sha256(text.encode()).hexdigest()})


def load_bytes(tmp_path, content):
    path = tmp_path / "damaged.kaem"
    path.write_bytes(content)
    return KAEM.load(path)


def test_a_file_that_is_cut_off_anywhere_says_so(saved, tmp_path):
    for length in (*range(0, len(saved), 97), len(saved) - 1):
        with pytest.raises(DamagedFile, match=r"damaged.kaem' is cut off"):
            load_bytes(tmp_path, saved[:length])


def test_any_byte_that_is_altered_is_found(saved, tmp_path):
    path = tmp_path / "damaged.kaem"
    start = 8 + int.from_bytes(saved[:8], "little")
    for place in (*range(0, start, 5), *range(start, len(saved))):
        path.write_bytes(saved[:place] + bytes([saved[place] ^ 1]) + saved[place + 1 :])
        with pytest.raises(DamagedFile, match="arrays of .* have been altered: " if place >= start else "damaged.kaem"):
            archive.read(path)
    with pytest.raises(DamagedFile):
        load_bytes(tmp_path, saved + b"\0")


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        (lambda saved: b"PK\3\4" + bytes(100), DamagedFile, "is no safetensors file"),
        (lambda saved: b"\x10" + bytes(7) + b"{}" + b" " * 14, DamagedFile, "none that KAEM.save has written"),
        (
            lambda saved: saved.replace(b"is_trained", b"is_strange"),
            DamagedFile,
            "the manifest of .* has been altered",
        ),
        (
            lambda saved: rewritten(saved, lambda manifest: manifest.update(version=2, written_by="numpyro_kaem 9.0")),
            ValueError,
            r"is of version 2 of the format.* reads up to 1: install numpyro_kaem 9.0, or later",
        ),
        (
            lambda saved: rewritten(saved, change_arrays=lambda arrays: arrays.pop("generator.biases.1")),
            DamagedFile,
            r"lacks the arrays \['generator.biases.1'\]",
        ),
        (
            lambda saved: rewritten(saved, change_arrays=lambda arrays: arrays.update(more=np.ones(2))),
            DamagedFile,
            r"has arrays that were not saved: \['more'\]",
        ),
        (
            lambda saved: rewritten(
                saved, change_arrays=lambda arrays: arrays.update({"generator.weights.0": np.ones((3, 2), "f")})
            ),
            DamagedFile,
            r"altered: \['generator.weights.0'\]",
        ),
        (
            lambda saved: rewritten(saved, lambda manifest: manifest["parts"]["generator"].update(of="generators.New")),
            ValueError,
            r"generator of .* has 'generators.New', which this version .* does not know: install numpyro_kaem",
        ),
        (
            lambda saved: rewritten(
                saved, lambda manifest: manifest["parts"].update(generator={"is": "list", "of": 1})
            ),
            DamagedFile,
            "generator of .* cannot be put together",
        ),
    ],
    ids=lambda value: "",
)
def test_the_error_says_what_is_wrong_with_a_file(saved, tmp_path, change, error, match):
    with pytest.raises(error, match=match) as found:
        load_bytes(tmp_path, change(saved))
    assert type(found.value) is error


@pytest.mark.parametrize("of", ["os.system", "jax.numpy.load", "jax.numpy.save", "numpyro.kl_divergence", "eval"])
def test_a_file_names_nothing_outside_of_the_list(of):
    for kind in ("function", "module", "distribution", "transform", "constraint"):
        with pytest.raises(codec.NotKnown):
            codec.build({"is": kind, "of": of, "arguments": {}, "fields": {}, "shapes": [[], [], None]}, {})
    with pytest.raises(codec.NotKnown, match="__class__"):
        codec.build({"is": "module", "of": "generators.MLP", "fields": {"__class__": 1}}, {})


def test_paths_that_hold_no_file_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none.kaem"):
        KAEM.load(tmp_path / "none.kaem")
    with pytest.raises(IsADirectoryError, match=r"must be a file that KAEM.save has written, got the folder"):
        KAEM.load(tmp_path)
    with pytest.raises(IsADirectoryError, match=r"got the folder .* name a file in it"):
        small().save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"a.kaem' cannot be written, make the folder first"):
        small().save(tmp_path / "none" / "a.kaem")


def test_a_save_that_fails_leaves_the_old_file(saved, tmp_path, monkeypatch):
    path = tmp_path / "a.kaem"
    path.write_bytes(saved)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archive, "flush", full)
    with pytest.raises(OSError, match=r"a.kaem' cannot be written, save to where there is room.*No space left"):
        small(generator=MLP(jr.key(5), 2, 2, ())).save(path)
    assert path.read_bytes() == saved and list(tmp_path.iterdir()) == [path]


def test_other_tools_read_the_arrays(saved):
    arrays = load_tensors(saved)
    np.testing.assert_array_equal(arrays["generator.weights.0"], small().parts.generator.weights[0])
