"""A checkpoint is restored bit by bit or not at all: no damage goes unseen, no kill loses what was complete."""

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numpyro_kaem
from numpyro_kaem._checkpoints import store as checkpoint_store
from numpyro_kaem._checkpoints.store import CheckpointStore

PACKAGE = Path(numpyro_kaem.__file__).parent
NARROW_DTYPES = ("int4", "uint4", "int8", "uint8", "float8_e4m3fn")
DESCRIPTION = {"model": {"name": "toy", "sizes": [2, 3]}, "batch_size": 50, "tolerance": float("nan")}
# Checkpointing needs little of the package, and the processes of these tests start often.
LIGHT_IMPORT = f"""
import sys, types
package = types.ModuleType("numpyro_kaem")
package.__path__, package.__version__ = [{os.fspath(PACKAGE)!r}], "test"
sys.modules["numpyro_kaem"] = package
from numpyro_kaem._checkpoints.store import CheckpointStore
"""


class Pair(NamedTuple):
    first: object
    second: object


def small_state(step=0):
    return {"weight": np.full(5, step, np.float32), "count": np.array(step)}


def save_steps(store, *steps):
    for step in steps:
        history = {"loss": np.arange(step, dtype=float)}
        assert store.save(step, small_state(step), history, DESCRIPTION)


def restored_step(store):
    """The step that is restored, once its content has been checked to be of that step."""
    step, state, history = store.restore(small_state(), DESCRIPTION)
    assert jax.tree.all(jax.tree.map(np.array_equal, state, small_state(step)))
    assert np.array_equal(history["loss"], np.arange(step))
    return step


def files_of(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def bits(leaf):
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).tobytes()


def assert_same(restored, saved):
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    for (path, a), b in zip(jax.tree.leaves_with_path(restored), jax.tree.leaves(saved), strict=True):
        assert type(a) is type(b), path
        assert np.shape(a) == np.shape(b) and bits(a) == bits(b), path
        if not isinstance(b, bool | int | float):
            assert a.dtype == b.dtype, path
        if isinstance(b, jax.Array):
            assert a.sharding == b.sharding and a.committed == b.committed, path


def on_device(values, dtype=None):
    """A JAX array that is made without compiling anything."""
    return jnp.asarray(np.asarray(values).astype(np.float32 if dtype is None else jnp.dtype(dtype)))


def test_every_kind_of_leaf_is_restored_bit_by_bit(tmp_path):
    ones, zeros = (lambda *shape: on_device(np.ones(shape))), (lambda *shape: on_device(np.zeros(shape)))
    patterns = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 0, 0x00000001], np.uint32)
    params = {"decoder/w": ones(2, 3), "..": zeros(2), "a": {"b": ones(1)}, "a/b": zeros(1)}
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "data")
    placed = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = {
        "params": params,
        "optimiser": optax.adam(1e-3).init(params),
        "module": jax.jit(lambda key: eqx.nn.Linear(2, 3, key=key))(jax.random.key(1)),
        "pair": Pair(None, [on_device(np.arange(3), "int32"), (np.float32(0.1), np.arange(4.0).reshape(2, 2).T)]),
        "not numbers": [patterns.view(np.float32), jnp.array(patterns.view(np.float32))],
        "minus zeros": on_device(-np.zeros(7)),
        "dtypes": [
            on_device(np.arange(-2, 2), name)
            for name in (*NARROW_DTYPES, "bool", "int16", "uint32", "float16", "bfloat16", "complex64")
        ],
        "numpy": [np.arange(3, dtype=name) for name in ("int64", "float64", "complex128", jnp.bfloat16)],
        "scalars": [jnp.array(True), jnp.array(3, jnp.bfloat16), np.array(2.5), True, 7, 0.1],
        "empty": [zeros(0, 3), np.zeros(0, np.int8), jax.random.split(jax.random.key(0), 0)],
        "keys": [jax.random.key(5), jax.random.key(6, impl="rbg"), jax.random.split(jax.random.key(7), (2, 3))],
        "placed": jax.device_put(np.arange(4.0, dtype=np.float32), placed),
    }
    history = {"loss": np.arange(3.0), "file": np.array(1.5), "empty": np.zeros((0, 2), int), "π/2": np.array(["a"])}
    store = CheckpointStore(tmp_path)
    assert store.save(12, state, history, DESCRIPTION)
    step, restored, restored_history = store.restore(jax.tree.map(lambda leaf: leaf, state), DESCRIPTION)
    assert step == 12
    assert_same(restored, state)
    assert {name: (a.dtype, a.tolist()) for name, a in history.items()} == {
        name: (a.dtype, a.tolist()) for name, a in restored_history.items()
    }


def test_float64_is_restored_under_x64(tmp_path, x64):
    state = {"x": jnp.array([0.1, -0.0]), "n": jnp.array(2**40)}
    assert CheckpointStore(tmp_path).save(1, state, {}, {})
    _, restored, _ = CheckpointStore(tmp_path).restore(state, {})
    assert_same(restored, state)


def test_float64_is_never_cut_to_float32(tmp_path):
    enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else jax.experimental.enable_x64
    with enable_x64(True):
        uncommitted = jnp.ones(2)
    store = CheckpointStore(tmp_path)
    for state in (uncommitted, jax.device_put(uncommitted, jax.devices()[0])):
        assert store.save(1, state, {}, {})
        with pytest.raises(ValueError, match="restoring float64 arrays takes JAX's x64 mode"):
            store.restore(state, {})


def test_an_empty_folder_an_empty_state_and_a_bare_array(tmp_path):
    store = CheckpointStore(tmp_path / "made" / "here")
    assert store.steps() == [] and store.restore({}, {}) is None
    assert store.save(0, {}, {}, {})
    assert store.restore({}, {}) == (0, {}, {})
    assert store.save(1, np.arange(2), {}, {})
    assert store.restore(np.zeros(2, int), {})[1].tolist() == [0, 1]


def test_the_folder_does_not_move_with_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = CheckpointStore("relative")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    save_steps(store, 3)
    assert CheckpointStore(tmp_path / "relative").steps() == [3]


@pytest.mark.parametrize("directory", ["{}/file", "{}/file/below", "gs://bucket/run"])
def test_a_folder_that_cannot_be_made_is_named(tmp_path, directory):
    (tmp_path / "file").write_text("")
    directory = directory.format(tmp_path)
    with pytest.raises((OSError, ValueError), match=f"'{directory}'"):
        CheckpointStore(directory)


def test_the_newest_few_are_kept_and_strangers_are_left_alone(tmp_path):
    strangers = [tmp_path / name for name in ("0000000001", "notes.writing", "7", "0000000002.backup")]
    for stranger in strangers:
        stranger.mkdir()
    store = CheckpointStore(tmp_path, keep=2)
    save_steps(store, 3, 5, 10, 200)
    assert store.steps() == [10, 200]
    assert all(stranger.exists() for stranger in strangers)
    save_steps(CheckpointStore(tmp_path, keep=1), 201)
    assert store.steps() == [201]


def test_the_same_step_is_replaced(tmp_path):
    store = CheckpointStore(tmp_path)
    save_steps(store, 4)
    assert store.save(4, {"other": np.ones(2)}, {}, {})
    assert store.steps() == [4]
    assert np.array_equal(store.restore({"other": np.zeros(2)}, {})[1]["other"], np.ones(2))


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << (len(data) % 8)
    path.write_bytes(data)


DAMAGES = {
    "flipped": flip,
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "removed": lambda path: path.unlink(),
}


def test_damage_to_any_file_is_noticed_and_the_checkpoint_before_is_used(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    save_steps(store, 3, 6)
    newest = tmp_path / "run" / "0000000006"
    shutil.copytree(newest, tmp_path / "copy")
    names = [path.relative_to(newest) for path in files_of(newest)]
    assert {"manifest.json", "history.npz"} < {os.fspath(name) for name in names}
    for name in names:
        for damage in DAMAGES.values():
            damage(newest / name)
            with pytest.warns(RuntimeWarning, match=f"{newest} is passed over: {name} ") as caught:
                assert restored_step(store) == 3
            assert len(caught) == 1
            shutil.rmtree(newest)
            shutil.copytree(tmp_path / "copy", newest)
    assert restored_step(store) == 6


def test_a_flipped_bit_in_any_byte_of_the_manifest_is_noticed(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, {"x": np.ones(0)}, {}, {"a": [1.5e-9, " ", True], "b": None})
    path = tmp_path / "0000000001" / "manifest.json"
    text = path.read_bytes()
    for index in range(len(text)):
        path.write_bytes(text[:index] + bytes([text[index] ^ (1 << index % 8)]) + text[index + 1 :])
        assert store.steps() == [], index
    path.write_bytes(text)
    assert store.steps() == [1]


def test_nothing_undamaged_left_is_said(tmp_path):
    (tmp_path / "0000000009").mkdir()
    with pytest.warns(RuntimeWarning) as caught:
        assert CheckpointStore(tmp_path).restore({}, {}) is None
    assert [str(warning.message).split(":")[0].split(" ")[-1] for warning in caught] == ["over", repr(str(tmp_path))]
    assert "manifest.json is missing" in str(caught[0].message) and "starts anew" in str(caught[1].message)


def test_a_renamed_checkpoint_is_not_of_its_new_step(tmp_path):
    store = CheckpointStore(tmp_path)
    save_steps(store, 3)
    shutil.copytree(tmp_path / "0000000003", tmp_path / "0000000008")
    with pytest.warns(RuntimeWarning, match="its manifest is of step 3"):
        assert restored_step(store) == 3


def test_half_written_folders_are_ignored_and_removed_by_the_next_save(tmp_path):
    store = CheckpointStore(tmp_path)
    save_steps(store, 3, 6)
    draft, removed = tmp_path / "0000000009.writing", tmp_path / "0000000001.removed"
    shutil.copytree(tmp_path / "0000000006", draft)
    (draft / "manifest.json").unlink()
    shutil.copytree(tmp_path / "0000000003", removed)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert restored_step(store) == 6
    assert store.steps() == [3, 6]
    save_steps(store, 7)
    assert sorted(os.listdir(tmp_path)) == ["0000000003", "0000000006", "0000000007"]


def test_a_draft_that_only_lacks_its_name_is_a_checkpoint(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    save_steps(store, 6)
    (tmp_path / "0000000006").rename(tmp_path / "0000000006.writing")
    assert restored_step(store) == 6
    # The next save, which tidies up, may fail or be killed as well.
    monkeypatch.setattr(checkpoint_store, "write_arrays", lambda *args: (tmp_path / "missing").stat())
    with pytest.warns(RuntimeWarning, match="could not be written"):
        assert not store.save(9, small_state(9), {}, DESCRIPTION)
    assert restored_step(store) == 6 and os.listdir(tmp_path) == ["0000000006"]


def test_a_damaged_checkpoint_ahead_does_not_cost_those_saved_after_it(tmp_path):
    store = CheckpointStore(tmp_path, keep=1)
    save_steps(store, 9)
    flip(tmp_path / "0000000009" / "history.npz")
    save_steps(store, 4, 5)
    assert store.steps() == [5, 9]
    with pytest.warns(RuntimeWarning, match="0000000009 is passed over"):
        assert restored_step(store) == 5
    save_steps(store, 9)
    assert sorted(os.listdir(tmp_path)) == ["0000000009"] and restored_step(store) == 9


def test_another_model_is_refused_with_what_differs(tmp_path):
    store = CheckpointStore(tmp_path)
    saved = {"w": jnp.ones((2, 3)), "old": jnp.ones(1), "key": jax.random.key(0), "n": jnp.array(1), "none": None}
    store.save(7, saved, {}, {"batch_size": 50, "model": {"name": "a", "gone": 1}, "same": float("nan")})
    like = {"w": jnp.ones((2, 4)), "new": Pair(jnp.ones(1), None), "key": jax.random.key(0, impl="rbg"), "n": 1.5}
    with pytest.raises(ValueError, match=r"step 7.*another model or run; take another directory") as error:
        store.restore(like, {"batch_size": 60, "model": {"name": "a", "extra": "x"}, "same": float("nan")})
    assert str(tmp_path) in str(error.value)
    assert str(error.value).splitlines()[1:] == [
        "- state['new'].first is not in the checkpoint",
        "- state['old'] is in the checkpoint only",
        "- state['key'] has the dtype key<fry> in the checkpoint, key<rbg> now",
        "- state['n'] has the dtype int32 in the checkpoint, float64 now",
        "- state['w'] has the shape (2, 3) in the checkpoint, (2, 4) now",
        "- batch_size was 50, is 60 now",
        "- model.extra was absent, is x now",
        "- model.gone was 1, is absent now",
    ]


def test_a_long_list_of_differences_is_cut(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(1, [np.ones(1)] * 50, {}, {})
    with pytest.raises(ValueError, match="and 30 more"):
        store.restore([np.ones(2)] * 50, {})


def test_a_newer_format_is_refused(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(numpyro_kaem._checkpoints.manifest, "FORMAT", 2)
        patch.setattr(numpyro_kaem, "__version__", "9.1")
        patch.setattr(checkpoint_store, "is_whole", lambda folder: True)
        save_steps(store, 1)
    with pytest.raises(ValueError, match=r"has format 2, this version .* written by version 9\.1"):
        restored_step(store)


def test_versions_and_time_are_noted_and_need_not_agree(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    save_steps(store, 3)
    environment = json.loads((tmp_path / "0000000003" / "manifest.json").read_text())["environment"]
    assert environment["jax"] == jax.__version__ and environment["numpyro_kaem"] == numpyro_kaem.__version__
    monkeypatch.setattr(numpyro_kaem, "__version__", "9.1")
    assert restored_step(store) == 3


@pytest.mark.parametrize("function", ["write_arrays", "_write_history", "write_manifest", "flush"])
def test_a_full_disk_costs_one_checkpoint_only(tmp_path, monkeypatch, function):
    store = CheckpointStore(tmp_path)
    save_steps(store, 3)

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_store, function, full)
        with pytest.warns(RuntimeWarning, match=r"step 6 could not be written to .*No space left on device") as caught:
            assert not store.save(6, small_state(6), {"loss": np.arange(6.0)}, DESCRIPTION)
    assert len(caught) == 1
    assert restored_step(store) in (3, 6)
    assert not list(tmp_path.glob("*.writing"))
    save_steps(store, 9)
    assert restored_step(store) == 9


@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes are POSIX's")
def test_a_limit_met_inside_of_orbax_is_one_clear_warning(tmp_path, caplog):
    import resource

    store = CheckpointStore(tmp_path)
    state = {"noise": np.random.default_rng(0).random(50_000)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.warns(RuntimeWarning, match="File too large"):
            assert not store.save(6, state, {}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caplog.records == []
    assert os.listdir(tmp_path) == []


def test_a_vanished_folder_is_survived(tmp_path):
    store = CheckpointStore(tmp_path / "run")
    save_steps(store, 3)
    shutil.rmtree(tmp_path / "run")
    with pytest.warns(RuntimeWarning, match="could not be written"):
        assert not store.save(6, small_state(6), {}, DESCRIPTION)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["rename", "replace"])
def test_a_stop_before_any_rename_leaves_a_whole_checkpoint(tmp_path, monkeypatch, name):
    class Stop(BaseException):
        pass

    original, stops = getattr(Path, name), 0
    save_steps(CheckpointStore(tmp_path / "before", keep=1), 3, 6)
    for stop_at in range(20):
        store = CheckpointStore(shutil.copytree(tmp_path / "before", tmp_path / str(stop_at)), keep=1)
        calls = iter(range(100))

        def stopping(path, *args, calls=calls, stop_at=stop_at, **kwargs):
            if next(calls) == stop_at:
                raise Stop
            return original(path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Path, name, stopping)
            try:
                save_steps(store, 6, 9)
            except Stop:
                stops += 1
        assert restored_step(store) in (6, 9)
        save_steps(store, 10)
        assert [path.name for path in (tmp_path / str(stop_at)).iterdir()] == ["0000000010"]
        if next(calls) < stop_at:
            break
    assert stops >= 2 and stop_at < 19


def test_a_killed_process_leaves_a_whole_checkpoint(tmp_path):
    # One process imports, its forks save until they are killed.
    code = LIGHT_IMPORT + textwrap.dedent(f"""
        import os, numpy as np, orbax.checkpoint
        store = CheckpointStore({os.fspath(tmp_path)!r}, keep=2)
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                step = int(line)
                while True:
                    step += 1
                    state = {{"weight": np.full(5, step, np.float32), "count": np.array(step)}}
                    store.save(step, state, {{"loss": np.arange(step, dtype=float)}}, {DESCRIPTION!r})
            print(child, flush=True)
            os.waitpid(child, 0)
            print("dead", flush=True)
    """).replace("nan", "float('nan')")
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    rng, step, store = np.random.default_rng(0), 0, CheckpointStore(tmp_path, keep=2)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            for _ in range(12):
                process.stdin.write(f"{step}\n")
                process.stdin.flush()
                child = int(process.stdout.readline())
                deadline = time.monotonic() + 60
                while not max(store.steps(), default=0) > step and time.monotonic() < deadline:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.15))
                os.kill(child, signal.SIGKILL)
                assert process.stdout.readline() == "dead\n"
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    before, step = step, restored_step(store)
                assert step > before
        finally:
            process.stdin.close()
            process.kill()
    save_steps(store, step + 1)
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.slow
def test_two_processes_save_and_restore_what_they_share(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    code = LIGHT_IMPORT + textwrap.dedent(f"""
        import os, shutil, warnings
        import jax, jax.numpy as jnp, numpy as np
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        rank = int(sys.argv[1])
        jax.distributed.initialize("localhost:{port}", 2, rank)
        assert jax.process_count() == 2 and len(jax.local_devices()) == 1
        folder = {os.fspath(tmp_path)!r} + "/run"
        store = CheckpointStore(folder, keep=2)
        mesh = jax.make_mesh((2,), ("data",))
        rows, whole = (
            jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*names)) for names in (("data",), ())
        )

        def make(array, sharding):
            return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

        def state_of(step):
            return {{
                "rows": make(np.arange(6, dtype=np.float32).reshape(2, 3) + step, rows),
                "whole": make(np.full(3, step, np.int32), whole),
                "local": jnp.full(2, step),
                "key": jax.jit(jax.random.key, static_argnums=0, out_shardings=whole)(step),
            }}

        def same(a, b):
            if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
                a, b = jax.random.key_data(a), jax.random.key_data(b)
            assert a.sharding == b.sharding and a.dtype == b.dtype
            for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
                assert np.array_equal(x.data, y.data)

        assert store.restore(state_of(0), {{}}) is None
        for step in (1, 2, 3):
            assert store.save(step, state_of(step), {{"loss": np.arange(step)}}, {{"a": 1}}) is True
        assert store.steps() == [2, 3]
        step, state, history = store.restore(state_of(0), {{"a": 1}})
        assert step == 3 and history["loss"].tolist() == [0, 1, 2]
        jax.tree.map(same, state, state_of(3))
        try:
            store.restore(state_of(0), {{"a": 2}})
            raise AssertionError("another description was taken")
        except ValueError as error:
            assert "a was 1, is 2 now" in str(error)

        if rank == 0:
            os.remove(folder + "/0000000003/history.npz")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step, state, history = store.restore(state_of(0), {{"a": 1}})
        jax.tree.map(same, state, state_of(2))
        assert step == 2 and len(caught) == 1, [str(w.message) for w in caught]

        jax.experimental.multihost_utils.sync_global_devices("read")
        if rank == 0:
            shutil.rmtree(folder)
        warnings.simplefilter("ignore")
        assert store.save(4, state_of(4), {{}}, {{}}) is False
        print("done", rank)
    """)
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        for rank, process in enumerate(processes):
            output = process.communicate(timeout=120)[0]
            assert process.returncode == 0 and f"done {rank}" in output, output
    finally:
        for process in processes:
            process.kill()


def test_one_run_at_a_time_writes_to_a_folder(tmp_path):
    first, second = CheckpointStore(tmp_path), CheckpointStore(tmp_path)
    with first.held():
        message = "is being written to by another run: wait for its end, or take another"
        with pytest.raises(ValueError, match=message), second.held():
            pass
        assert second.steps() == []  # reading is free
    with second.held():
        pass
