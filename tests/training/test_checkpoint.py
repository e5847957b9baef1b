"""Checkpoints by themselves: fingerprints, meshes, damage, failed saves, several processes."""

import json
import logging
import os
import resource
import shutil
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import absl.logging
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dit_moe.config import ConfigError
from dit_moe.config.quiet import quiet
from dit_moe.runs.about import LAYOUT
from dit_moe.runs.checkpoints import Checkpoints, DamageError, on_one_device
from dit_moe.runs.fingerprint import fingerprints
from dit_moe.runs.state import TrainState
from tests.processes import free_port, run_together
from tests.xla import with_devices


def make_state(step: int) -> TrainState:
    """Arrays of all dtypes of a state; the large ones do not fit into Orbax's index files."""
    key = jax.random.key(step)
    parameters = {"large": jax.random.normal(key, (64, 64)), "small": jnp.arange(8.0) + step}
    return TrainState(
        step=jnp.int32(step),
        parameters=parameters,
        ema=jax.tree.map(lambda p: p / 3, parameters),
        optimizer=(  # pyright: ignore[reportArgumentType]
            {"large": parameters["large"].astype(jnp.bfloat16)},
            jnp.int32(step + 1),
        ),
    )


def assert_equal(actual: TrainState | None, expected: TrainState) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def spread(state: TrainState, shape: dict[str, int]) -> TrainState:
    """On a mesh of these axes, of which an array's dimensions are split over the first ones."""
    size = int(np.prod(list(shape.values())))
    mesh = Mesh(np.array(jax.devices()[:size]).reshape(*shape.values()), tuple(shape))
    return jax.tree.map(
        lambda a: jax.device_put(
            a,
            NamedSharding(mesh, PartitionSpec(*[n for n, _ in zip(shape, a.shape, strict=False)])),
        ),
        state,
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("saved")
    with Checkpoints(workdir, keep=3) as checkpoints:
        for step in (2, 4, 6):
            checkpoints.save(make_state(step))
    return workdir


@pytest.fixture
def run(tmp_path, saved) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


# Fingerprints


def by_hand(x: np.ndarray) -> int:
    """As the docstring says, in Python's integers."""
    total = 0
    for i, bits in enumerate(x.reshape(-1).view(f"uint{8 * x.itemsize}").tolist()):
        h = (bits + 0x9E3779B9 * i) % 2**32
        h = (h ^ h >> 16) * 0x7FEB352D % 2**32
        h = (h ^ h >> 15) * 0x846CA68B % 2**32
        total += h ^ h >> 16
    return total % 2**32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_fingerprints_are_the_same_on_any_mesh(dtype):
    x = (100 * jax.random.normal(jax.random.key(0), (8, 4, 6))).astype(dtype)
    expected = by_hand(np.asarray(x))
    for shape in ({"a": 1}, {"a": 8}, {"a": 2, "b": 4}, {"a": 2, "b": 2, "c": 2}):
        assert fingerprints(spread(x, shape)) == {"": expected}, shape
    assert fingerprints({"n": [x[0, 0, 0]]}) == {"n/0": by_hand(np.asarray(x[0, 0, :1]))}


def test_fingerprints_notice_flips_swaps_and_lost_parts():
    x = np.random.default_rng(0).standard_normal(256).astype(np.float32)
    x[7], x[100] = 1.5, -1.5
    changed = [x[::-1], np.concatenate([x[:128], np.zeros(128, np.float32)]), np.roll(x, 1)]
    for i, bit in ((0, 0), (100, 31), (255, 12)):
        flipped = x.copy()
        flipped.view(np.uint32)[i] ^= np.uint32(1 << bit)
        changed.append(flipped)
    for i, j in ((0, 1), (7, 100)):  # the latter differ in the sign bit only
        swapped = x.copy()
        swapped[[i, j]] = x[[j, i]]
        changed.append(swapped)
    found = [fingerprints(a)[""] for a in [x, *changed]]
    assert len(set(found)) == len(found)


# Reading back


@pytest.mark.parametrize("shape", [{"a": 1}, {"b": 2}, {"a": 4}, {"b": 2, "a": 2}])
def test_a_checkpoint_of_one_mesh_on_another(shape, tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(spread(state, {"data": 2, "fsdp": 2, "expert": 2}))
        checkpoints.wait()
        restored = checkpoints.restore(3, spread(make_state(0), shape))
    assert_equal(restored, state)
    assert len(restored.parameters["large"].sharding.device_set) == np.prod(list(shape.values()))


def test_what_a_checkpoint_says_of_itself(saved):
    about = json.loads((saved / "checkpoints" / "6" / "about" / "about.json").read_text())
    assert about["layout"] == LAYOUT
    assert about["jax"] == jax.__version__
    assert (about["devices"], about["processes"]) == (8, 1)
    assert about["time"].endswith("+00:00")
    assert {"version", "commit"} <= about.keys()
    state = make_state(6)
    assert about["arrays"]["optimizer/0/large"] == {
        "shape": [64, 64],
        "dtype": "bfloat16",
        "fingerprint": by_hand(np.asarray(state.parameters["large"].astype("bfloat16"))),
    }
    assert len(about["arrays"]) == 7


def test_multiples_of_keep_every_stay(tmp_path):
    with Checkpoints(tmp_path, keep=2, keep_every=4) as checkpoints:
        for step in range(1, 10):
            checkpoints.save(make_state(step))
    assert names(tmp_path) == ["4", "8", "9"]
    with Checkpoints(tmp_path, keep=1) as checkpoints:  # nor are they the newest forever
        checkpoints.save(make_state(10))
    assert names(tmp_path) == ["10"]


def test_addresses_and_relative_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(epath.Path("run"), keep=1) as checkpoints:
        assert checkpoints.folder == epath.Path(tmp_path) / "run" / "checkpoints"
        checkpoints.save(make_state(2))
    assert names(tmp_path / "run") == ["2"]
    monkeypatch.setattr(ocp, "CheckpointManager", lambda folder, **_: folder)
    address = Checkpoints(epath.Path("gs://bucket/run")).folder
    assert str(address) == "gs://bucket/run/checkpoints"


# Damage


def damages(path: Path) -> Iterator[str]:
    """Damages a file in one way after another, and mends it."""
    whole = path.read_bytes()
    path.unlink()
    yield "deleted"
    path.write_bytes(whole[: len(whole) // 2])
    yield "truncated"
    for place in (len(whole) // 7, len(whole) // 2, len(whole) - 3):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        yield f"flipped at {place}"
    path.write_bytes(whole)


def test_damage_to_any_file_is_refused_or_harmless(run, capfd):
    folder = run / "checkpoints" / "6"
    state = make_state(6)
    refused: dict[str, list[str]] = {}
    with Checkpoints(run) as checkpoints:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            name = str(path.relative_to(folder))
            for damage in damages(path):
                try:
                    assert_equal(checkpoints.restore(6, state), state)
                except DamageError as error:
                    refused.setdefault(name, []).append(f"{damage}: {error}")
        assert_equal(checkpoints.restore(6, state), state)
    assert "Traceback" not in capfd.readouterr().err
    for message in [message for messages in refused.values() for message in messages]:
        assert f": checkpoint 6 in {folder.parent} cannot be " in message
        assert "\n" not in message
    assert len(refused["about/about.json"]) == 5
    # Orbax itself notices no flip in the data of large arrays.
    data = [n for n, why in refused.items() if sum("not what was saved" in w for w in why) >= 2]
    assert {name.split("/")[0] for name in data} == {"parameters", "ema", "optimizer"}


def test_a_description_of_a_checkpoint_is_read_as_any_json(run):
    path = run / "checkpoints" / "6" / "about" / "about.json"
    whole = path.read_text()
    twice, deep = whole.replace("{", '{"crc32": 0, ', 1), "[" * 100_000
    with Checkpoints(run) as checkpoints:
        for damage, why in ((twice, "'crc32' is given twice"), (deep, "nested deeper")):
            path.write_text(damage)
            message = rf"^checkpoint 6 in .* cannot be read, perhaps it is damaged \(.*{why}"
            with pytest.raises(DamageError, match=message):
                checkpoints.restore(6, make_state(6))


def test_a_reader_checks_only_what_it_reads(run):
    like = on_one_device(jax.eval_shape(lambda: make_state(6).parameters))
    (run / "checkpoints" / "6" / "ema" / "manifest.ocdbt").unlink()
    with Checkpoints(run) as checkpoints:
        parameters = checkpoints.restore_parameters(6, like, ema=False)
        np.testing.assert_array_equal(parameters["large"], make_state(6).parameters["large"])
        with pytest.raises(DamageError, match=r"^checkpoint 6 in .* cannot be read"):
            checkpoints.restore_parameters(6, like, ema=True)


def rewrite(checkpoint: Path, **changes: object) -> None:
    """As another version would have written it."""
    path = checkpoint / "about" / "about.json"
    about = {**json.loads(path.read_text()), **changes}
    del about["crc32"]
    crc32 = zlib.crc32(json.dumps(about, sort_keys=True).encode())
    path.write_text(json.dumps({**about, "crc32": crc32}))


def test_another_layout_is_no_damage(run):
    rewrite(run / "checkpoints" / "6", layout=LAYOUT + 1, version="9.9")
    message = rf"^checkpoint 6 in .* has layout {LAYOUT + 1}, written by dit_moe 9\.9; allowed: "
    with Checkpoints(run, keep=3) as checkpoints, pytest.raises(ConfigError, match=message) as info:
        checkpoints.restore_newest(make_state(0))
    assert not isinstance(info.value, DamageError)
    assert names(run) == ["2", "4", "6"]


def test_other_arrays_are_no_damage(run):
    like = make_state(0)
    like.parameters["large"] = jnp.zeros((64, 32))
    message = r"does not fit config\.json: parameters/large and 0 more arrays differ in shape"
    with Checkpoints(run, keep=3) as checkpoints, pytest.raises(ConfigError, match=message):
        checkpoints.restore_newest(like)
    assert names(run) == ["2", "4", "6"]


def truncate(checkpoint: Path) -> None:
    for path in [p for p in checkpoint.rglob("d/*") if p.is_file()]:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove_item(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint / "ema")


def remove_all(checkpoint: Path) -> None:
    shutil.rmtree(checkpoint)
    checkpoint.mkdir()


@pytest.mark.parametrize("damage", [truncate, remove_item, remove_all])
def test_a_damaged_newest_checkpoint_is_moved_aside(damage, run, capfd):
    (run / "checkpoints" / "damaged-6").mkdir()  # from another time
    damage(run / "checkpoints" / "6")
    remains = sorted(p.name for p in (run / "checkpoints" / "6").rglob("*"))
    with Checkpoints(run, keep=3) as checkpoints:
        assert_equal(checkpoints.restore_newest(make_state(0)), make_state(4))
        assert checkpoints.latest_step() == 4
        checkpoints.save(make_state(6))
        checkpoints.wait()
        assert_equal(checkpoints.restore_newest(make_state(0)), make_state(6))
    assert names(run) == ["2", "4", "6", "damaged-6", "damaged-6-2"]
    moved = run / "checkpoints" / "damaged-6-2"
    assert sorted(p.name for p in moved.rglob("*")) == remains
    out, err = capfd.readouterr()
    assert out.startswith("checkpoint 6 in ")
    assert out.endswith(f"it is now {moved}.\n")
    assert "Traceback" not in err


def test_nothing_is_moved_when_no_checkpoint_is_good(run):
    for step, damage in ((2, truncate), (4, remove_item), (6, remove_all)):
        damage(run / "checkpoints" / str(step))
    before = sorted((run / "checkpoints").rglob("*"))
    message = r"^checkpoint 6 in .* cannot be read, .*; nor can 4, 2 be read$"
    with Checkpoints(run, keep=3) as checkpoints, pytest.raises(ConfigError, match=message) as info:
        checkpoints.restore_newest(make_state(0))
    assert "\n" not in str(info.value)
    assert sorted((run / "checkpoints").rglob("*")) == before


def test_saving_and_reading_change_nothing_of_the_process(run):
    def process() -> tuple:
        levels = absl.logging.get_verbosity(), logging.getLogger("asyncio").level
        return *levels, sys.unraisablehook, sys.excepthook, list(warnings.filters)

    before = process()
    with Checkpoints(run, keep=3) as checkpoints:
        checkpoints.save(make_state(8))
        checkpoints.wait()
        checkpoints.restore_newest(make_state(0))
    assert process() == before


# Failed saves


@pytest.fixture
def in_a_command(monkeypatch):
    """What else libraries would say is muted, as in the process of a command."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    verbosity, level = absl.logging.get_verbosity(), logging.getLogger("asyncio").level
    with warnings.catch_warnings():
        quiet()
        yield
    absl.logging.set_verbosity(verbosity)
    logging.getLogger("asyncio").setLevel(level)


@pytest.mark.usefixtures("in_a_command")
@pytest.mark.parametrize("largest_file", [0, 1_000, 10_000])
def test_a_save_that_fails_in_the_background(largest_file, run, capsys):
    """The system refuses larger files, as it refuses all on a full disk."""
    with Checkpoints(run, keep=3) as checkpoints:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
        try:
            checkpoints.save(make_state(8))
            checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert checkpoints.latest_step() == 6
        assert {"2", "4", "6"} <= set(names(run))
        out, err = capsys.readouterr()  # not the files, which are limited too
        assert out.startswith("checkpoint 8 could not be saved in ")
        assert "File too large" in out
        assert "Traceback" not in err
        checkpoints.save(make_state(10))
        checkpoints.wait()
        assert [name for name in names(run) if name.isdigit()] == ["10", "4", "6"]


# Several processes

PROCESS = """
import sys
from pathlib import Path

import jax

process, port, workdir = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
jax.distributed.initialize(f"localhost:{port}", 2, process)
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from dit_moe.runs.checkpoints import Checkpoints
from dit_moe.runs.state import TrainState

mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "fsdp"))

def state(step):
    def put(x, *spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
    large = np.random.default_rng(step).standard_normal((64, 64), np.float32)
    w = {"w": put(large, "data", "fsdp")}
    return TrainState(put(np.int32(step)), w, w, (w, put(np.int32(0))))

def restored(checkpoints):
    found = checkpoints.restore_newest(state(0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(
        *[np.asarray(s.data) for s in (a.addressable_shards[0], b.addressable_shards[0])]
    ), found, state(int(found.step)))
    return int(found.step)

with Checkpoints(workdir, keep=3) as checkpoints:
    for step in (1, 2, 3, 4):
        checkpoints.save(state(step))
    checkpoints.wait()
    assert restored(checkpoints) == 4
    if process == 1:  # a file of process 1
        files = (workdir / "checkpoints" / "4" / "ema" / "ocdbt.process_1").glob("d/*")
        path = max(files, key=lambda path: path.stat().st_size)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    multihost_utils.sync_global_devices("damaged")
    assert restored(checkpoints) == 3
    # What only one of them sees.
    read = ocp.StandardCheckpointHandler.restore
    def restore(self, directory, **arguments):
        if process == 1 and directory.parent.name == "3":
            raise OSError("unreadable")
        return read(self, directory, **arguments)
    ocp.StandardCheckpointHandler.restore = restore
    assert restored(checkpoints) == 2
    assert checkpoints.latest_step() == 2
    checkpoints.save(state(5))
"""


def test_two_processes_take_one_decision(tmp_path):
    port = free_port()
    results = run_together(
        2,
        lambda process_id: [sys.executable, "-c", PROCESS, process_id, port, tmp_path],
        {**os.environ, "XLA_FLAGS": with_devices(2)},
        timeout=120,
    )
    assert [code for code, _, _ in results] == [0, 0], results
    assert names(tmp_path) == ["2", "5", "damaged-3", "damaged-4"]
    (_, lead, _), (_, other, _) = results
    # Depending on where the bit falls, one process cannot read or all find another number.
    (line,) = [line for line in lead.splitlines() if line.endswith("damaged-4.")]
    assert line.startswith("checkpoint 4 in ")
    assert "checkpoints cannot be read by another process; it is now" in lead
    assert "checkpoint" not in other


@pytest.mark.slow
def test_kills_lose_nothing():
    environment = {key: v for key, v in os.environ.items() if key != "XLA_FLAGS"}
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.kill", "--kills", "4"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stdout + result.stderr
