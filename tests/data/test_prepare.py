import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dit_moe.commands.prepare import main
from dit_moe.config import ConfigError, DataConfig
from dit_moe.data import prepared
from dit_moe.data.prepare.input import Input
from dit_moe.data.prepare.job import Job, PrepareError, Settings
from dit_moe.data.prepare.local import make_shards
from dit_moe.data.prepared import Prepared
from dit_moe.data.sources import build_sources
from dit_moe.storage import files
from tests.tiny import tiny

SIZE, GOOD, BAD, PER_SHARD = 32, 500, 40, 64


# 500 crops of real photographs in nine formats, with 40 files among them that cannot be used.

FORMATS = {
    "png": {},
    "jpg": {"quality": 95},
    "webp": {"lossless": True},
    "bmp": {},
    "tiff": {"compression": "tiff_lzw"},
    "gif": {},
    "ppm": {},
    "jp2": {"irreversible": False},
    "16.png": {},
}
EXACT = ("png", "webp", "bmp", "tiff", "ppm", "jp2")
REASONS = {
    "empty": "empty file",
    "text": "not an image",
    "cut_png": "truncated or damaged",
    "cut_jpg": "truncated or damaged",
    "bomb": "too many pixels",
    "thin": "too long and thin",
    "float": "floating-point pixels",
    "link": "link out of the input",
    "broken": "unreadable",
    "pipe": "not a file",
}


def photographs() -> dict[str, np.ndarray]:
    return {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "galaxies": data.hubble_deep_field(),
        "motorcycle": data.stereo_motorcycle()[0],
        "retina": data.retina(),
        "rocket": data.rocket(),
        "tissue": data.immunohistochemistry(),
    }


def write_good(path: Path, crop: np.ndarray, suffix: str) -> None:
    image = Image.fromarray(crop)
    if suffix == "16.png":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.save(path, **FORMATS[suffix])


def write_bad(path: Path, kind: str, outside: Path) -> None:
    def cut(image: Image.Image, file_format: str) -> bytes:
        file = io.BytesIO()
        image.save(file, file_format)
        return file.getvalue()[: len(file.getvalue()) // 2]

    photograph = Image.fromarray(data.chelsea()).resize((90, 60))
    match kind:
        case "empty":
            path.touch()
        case "text":
            path.write_text("a text about a picture")
        case "cut_png":
            path.write_bytes(cut(photograph, "PNG"))
        case "cut_jpg":
            path.write_bytes(cut(photograph, "JPEG"))
        case "bomb":
            Image.new("1", (9000, 9000)).save(path, "PNG")
        case "thin":
            Image.new("1", (2, 200_000)).save(path, "TIFF")
        case "float":
            Image.fromarray(np.ones((40, 40), np.float32)).save(path, "TIFF")
        case "link":
            path.symlink_to(outside)
        case "broken":
            path.symlink_to(path.with_name("nothing"))
        case "pipe":
            os.mkfifo(path)


@dataclasses.dataclass
class Pictures:
    folder: Path
    crops: dict[str, np.ndarray]
    rejected: list[tuple[str, str]]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Pictures:
    root = tmp_path_factory.mktemp("pictures")
    outside = root / "outside.png"
    write_good(outside, np.zeros((40, 40, 3), np.uint8), "png")
    folder, rng = root / "in", np.random.default_rng(0)
    kinds = [name for name in REASONS for _ in range(BAD // len(REASONS))]
    number = GOOD + BAD
    bad_at = dict(zip(rng.permutation(number)[:BAD].tolist(), kinds, strict=True))
    crops, rejected = {}, []
    photos = list(photographs().items())
    for index in range(number):
        name, photo = photos[index % len(photos)]
        (folder / name).mkdir(parents=True, exist_ok=True)
        if index in bad_at:
            # The content decides, not the name.
            key = f"{name}/{index:03d}.png"
            write_bad(folder / key, bad_at[index], outside)
            rejected.append((key, REASONS[bad_at[index]]))
            continue
        top, left = (int(rng.integers(side - SIZE)) for side in photo.shape[:2])
        suffix = list(FORMATS)[index % len(FORMATS)]
        key = f"{name}/{index:03d}.{suffix}"
        crops[key] = photo[top : top + SIZE, left : left + SIZE]
        write_good(folder / key, crops[key], suffix)
    return Pictures(folder, crops, sorted(rejected))


def flags(pictures: Pictures | None, output: Path, **more: object) -> list[str]:
    values = {
        "input": pictures and pictures.folder,
        "output": output,
        "autoencoder": "none",
        "image_size": SIZE,
        "images_per_shard": PER_SHARD,
        "name": "pictures",
        "max_rejected": 0.1,
        "workers": 1,
        **more,
    }
    return [f"--{name}={value}" for name, value in values.items()]


# The same command, ended by a signal at a given moment of the work on a given shard.
ENDED = """
import multiprocessing, os, signal, sys
from dit_moe.commands import prepare as command
from dit_moe.data.prepare import job, shard

index, moment, number = int(sys.argv[1]), sys.argv[2], getattr(signal, sys.argv[3])
write_shard, write_record = shard.write_shard, job.Job.write_record
# Ignored in what a shell starts in the background.
signal.signal(signal.SIGINT, signal.default_int_handler)

def end():
    print("workers", *[child.pid for child in multiprocessing.active_children()], flush=True)
    os.killpg(0, number) if number == signal.SIGINT else os.kill(os.getpid(), number)

def ended_write_shard(path, fields, examples):
    def some():
        for place, example in enumerate(examples):
            if place == 20 and moment == "half" and f"-{index:05d}-of-" in path.name:
                end()
            yield example
    return write_shard(path, fields, some())

def ended_write_record(job, place, record):
    if moment == "written" and place == index:
        end()
    write_record(job, place, record)

shard.write_shard = ended_write_shard
job.Job.write_record = ended_write_record
sys.exit(command.main(sys.argv[4:]))
"""


def ended_run(index: int, moment: str, signal_name: str, arguments: list[str]):
    command = [sys.executable, "-c", ENDED, str(index), moment, signal_name, *arguments]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=120, start_new_session=True, check=False
    )
    (line,) = (line for line in result.stdout.splitlines() if line.startswith("workers"))
    return result, [int(word) for word in line.split()[1:]]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def wait_for_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in pids):
        assert time.monotonic() < deadline, "worker processes outlive the command"
        time.sleep(0.02)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory) -> Path:
    """A set made without disturbance; not to be changed."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert main(flags(pictures, output)) == 0
    return output


def test_every_good_picture_is_there_and_every_bad_one_is_listed(pictures, finished):
    records = Prepared(finished)
    found = {}
    for index in range(len(records)):
        record = records[index]
        key = bytes(record["key"]).decode()
        found[key] = record["image"]
        assert records.card.classes[record["label"]] == key.partition("/")[0]
        assert record["label"] == records.label[index]
    assert list(found) == sorted(pictures.crops)
    assert records.card.classes == tuple(photographs())
    assert (records.card.num_examples, records.card.image_size) == (GOOD, SIZE)
    assert records.card.autoencoder is None
    for key, crop in pictures.crops.items():
        suffix = key.partition(".")[2]
        if suffix in EXACT:
            np.testing.assert_array_equal(found[key], crop, err_msg=key)
        elif suffix == "16.png":
            grey = np.asarray(Image.fromarray(crop).convert("L"))
            np.testing.assert_array_equal(found[key], np.repeat(grey[..., None], 3, -1))
        else:
            error = np.abs(found[key].astype(float) - crop)
            assert error.mean() < 12, key  # JPEG and a palette of 256
    with (finished / "rejected.csv").open(newline="") as file:
        rows = [tuple(row) for row in csv.reader(file)]
    assert rows == [("key", "reason"), *pictures.rejected]
    assert len(pictures.rejected) == BAD
    assert not (finished / ".progress").exists()


def test_killed_twice_it_makes_the_same_bytes(pictures, finished, tmp_path):
    output = tmp_path / "out"
    again = flags(pictures, output, workers=2)
    for index, moment, done in [(2, "half", 2), (5, "written", 5)]:
        result, workers = ended_run(index, moment, "SIGKILL", again)
        assert result.returncode == -9
        assert len(workers) == 2
        wait_for_end(workers)
        assert sorted(path.name for path in (output / ".progress").glob("0*")) == [
            f"{number:05d}.json" for number in range(done)
        ]
        assert not (output / prepared.CARD).exists()
        # What was half written is there until the next run.
        assert len(list(output.glob(".pictures-train.*"))) == (moment == "half")
    command = [sys.executable, "-m", "dit_moe.data.prepare", *flags(pictures, output, workers=3)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert "Resuming: 5 of 9 shards are done." in result.stdout
    assert "python train.py --config configs/prepared.py:" in result.stdout
    assert contents(output) == contents(finished)


def test_interrupted_it_stops_cleanly(pictures, finished, tmp_path, capsys):
    output = tmp_path / "out"
    result, workers = ended_run(1, "half", "SIGINT", flags(pictures, output, workers=2))
    assert result.returncode == 130
    assert "Give the same command again to go on" in result.stderr
    assert "Traceback" not in result.stderr
    wait_for_end(workers)
    left = sorted(path.name for path in output.iterdir())
    assert left == [".lock", ".progress", "job.json", "pictures-train.array_record-00000-of-00009"]
    assert main(flags(pictures, output)) == 0
    assert "Resuming: 1 of 9" in capsys.readouterr().out
    assert contents(output) == contents(finished)


def test_too_many_rejected(pictures, finished, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(flags(pictures, output, max_rejected=0.05)) == 2
    captured = capsys.readouterr()
    assert "7.41% of the pictures were rejected; allowed by max_rejected: 5.00%" in captured.err
    assert "Rejected 40 of 540 pictures:" in captured.out
    assert "8  truncated or damaged (such as " in captured.out
    assert not (output / prepared.CARD).exists()

    # A shard that changes meanwhile is found, and made again.
    shard = output / prepared.shard_name("pictures", 4, 9)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    assert main(flags(pictures, output)) == 2
    assert f"{shard.name} is not as it was written" in capsys.readouterr().err
    shard.with_name(prepared.shard_name("pictures", 7, 9)).unlink()
    assert main(flags(pictures, output)) == 0
    assert "Resuming: 7 of 9" in capsys.readouterr().out
    assert contents(output) == contents(finished)


def test_again_on_a_finished_set(pictures, finished, tmp_path, capsys):
    before = contents(finished)
    assert main(flags(pictures, finished)) == 0
    out = capsys.readouterr().out
    assert "was finished before; every file is as it was written" in out
    assert "500 examples of 32x32x3 in 8 classes; 40 rejected" in out
    assert contents(finished) == before

    assert main(flags(pictures, finished, image_size=16, name="other")) == 2
    assert "belongs to another job; it differs in image_size, name" in capsys.readouterr().err

    damaged = tmp_path / "damaged"
    shutil.copytree(finished, damaged)
    names = [prepared.shard_name("pictures", index, 9) for index in (3, 8)]
    (damaged / names[0]).write_bytes((damaged / names[0]).read_bytes()[:-1])
    (damaged / names[1]).unlink()
    labels = np.load(damaged / "labels.npy")
    np.save(damaged / "labels.npy", labels[::-1])
    (damaged / "features.json").write_text("{")
    assert main(flags(pictures, damaged)) == 2
    err = capsys.readouterr().err
    assert f"{names[0]} has changed since it was written; {names[1]} is missing" in err
    assert "missing; labels.npy has changed since it was written; features.json has changed" in err


def test_a_zip_gives_the_same_pictures(pictures, finished, tmp_path):
    path = tmp_path / "pictures.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for key in pictures.crops:
            archive.write(pictures.folder / key, key)
    output = tmp_path / "out"
    assert main(flags(pictures, output, input=path, images_per_shard=200)) == 0
    ours, theirs = Prepared(output), Prepared(finished)
    np.testing.assert_array_equal(ours.label, theirs.label)
    for index in range(0, GOOD, 7):
        for field, value in ours[index].items():
            np.testing.assert_array_equal(value, theirs[index][field])


def test_a_prepared_set_is_a_tfds_input(finished, tmp_path):
    output = tmp_path / "out"
    arguments = [f"--input={finished}", f"--output={output}", "--autoencoder=none", "--workers=1"]
    assert main([*arguments, "--image_size=16", "--split=train[10%:20%]"]) == 0
    ours, theirs = Prepared(output), Prepared(finished)
    assert len(ours) == 50
    np.testing.assert_array_equal(ours.label, theirs.label[50:100])
    means = theirs[57]["image"].reshape(16, 2, 16, 2, 3).mean(axis=(1, 3))
    assert np.abs(ours[7]["image"] - means).max() <= 1
    assert ours.card.classes == theirs.card.classes


# What is refused.


def test_outputs_that_are_not_ours(pictures, tmp_path, capsys):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    for output, message in [
        (foreign, "holds files that this command did not write"),
        (foreign / "thesis.tex", "is a file"),
        (pictures.folder / "out", "lies inside of the input"),
    ]:
        assert main(flags(pictures, output)) == 2
        assert message in capsys.readouterr().err
    assert [path.name for path in foreign.iterdir()] == ["thesis.tex"]
    assert not (pictures.folder / "out").exists()
    broken = tmp_path / "broken"
    broken.mkdir()
    for content in ("{", "[]", "[" * 100_000):
        (broken / "job.json").write_text(content)
        assert main(flags(pictures, broken)) == 2
        assert "cannot be read" in capsys.readouterr().err


def test_one_run_at_a_time(pictures, tmp_path, capsys):
    output = tmp_path / "out"
    with files.lock(output / ".lock", RuntimeError()):
        assert main(flags(pictures, output)) == 2
    assert "is in use by another run" in capsys.readouterr().err
    assert not (output / "job.json").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_size": 0}, "image_size is 0; allowed: a side from 1 to 65536, or height"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"images_per_shard": 0}, "images_per_shard is 0"),
        ({"workers": 0}, "workers is 0; allowed: 1 to 4096"),
        ({"workers": 10**12}, "workers is 1000000000000; allowed: 1 to 4096"),
        ({"max_rejected": 1.5}, "max_rejected is 1.5; allowed: 0 to 1"),
        ({"max_rejected": "nan"}, "max_rejected is nan"),
        ({"name": "My set"}, "name is 'My set'"),
        ({"input": "/no/such"}, "does not exist"),
        ({"output": os.fsdecode(b"caf\xe9")}, "allowed: a name in UTF-8"),
    ],
)
def test_wrong_flags(pictures, tmp_path, capsys, changed, message):
    assert main(flags(pictures, **{"output": tmp_path / "out", **changed})) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_classes_without_pictures_are_told(tmp_path, capsys):
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
    write_good(tmp_path / "in/cat/a.png", np.zeros((8, 8, 3), np.uint8), "png")
    (tmp_path / "in/dog/notes.txt").write_text("none")
    arguments = flags(None, tmp_path / "out", input=tmp_path / "in", max_rejected=0.5)
    assert main(arguments) == 0
    assert (
        "1 of 2 classes have no picture that can be used (such as dog)" in capsys.readouterr().out
    )


def test_none_usable(tmp_path, capsys):
    (tmp_path / "in/cat").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "in/cat" / name).touch()
    arguments = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "7 Sets")]
    more = ["--autoencoder", "none", "--image_size", "8", "--max_rejected", "1", "--workers", "1"]
    assert main([*arguments, *more]) == 2
    assert "none of the pictures can be used" in capsys.readouterr().err
    # The name comes from the folder.
    assert json.loads((tmp_path / "7 Sets/job.json").read_text())["name"] == "set_7_sets"


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_worker_that_dies_is_reported(pictures, tmp_path):
    settings = Settings("auto", str(pictures.folder), "", tmp_path, "a", None, "float32", 8, 1, 64)
    job = Job(settings)
    job.input = dataclasses.replace(job.input, reader=Deadly())
    with pytest.raises(PrepareError, match="a worker process died"):
        make_shards(job, [0, 1], 1)


def test_a_share_is_held_out_by_name(pictures, finished, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(flags(pictures, output, validation_share=0.3)) == 0
    train, heldout = Prepared(output), Prepared(output, "validation")
    assert f"{len(train)} examples" in (said := capsys.readouterr().out)
    assert f"and {len(heldout)} held out" in said
    keys = [[bytes(s[i]["key"]).decode() for i in range(len(s))] for s in (train, heldout)]
    assert sorted(keys[0] + keys[1]) == sorted(pictures.crops)
    assert GOOD / 8 < len(heldout) < GOOD / 2
    for index, key in enumerate(keys[1]):
        assert heldout.card.classes[heldout.label[index]] == key.partition("/")[0]
    reference = Prepared(finished)
    records = [reference[index] for index in range(GOOD)]
    whole = {bytes(record["key"]).decode(): record["image"] for record in records}
    for part, names in zip((train, heldout), keys, strict=True):
        for index, key in enumerate(names):
            np.testing.assert_array_equal(part[index]["image"], whole[key])
    # Training finds both.
    config, classes = tiny(None), len(photographs())
    model = dataclasses.replace(
        config.model, image_size=SIZE, channels=3, num_classes=classes, patch_size=1
    )
    where = DataConfig(source="prepared", path=(str(output),))
    config = dataclasses.replace(config, model=model, data=where)
    for split, part in (("train", train), ("validation", heldout)):
        (source,) = build_sources(config.data, config.model, split)  # pyright: ignore[reportArgumentType]
        assert (len(source), source.digest) == (len(part), part.digest)
    # As TFDS itself reads it; and what is to be trained on has a digest of its own.
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(output))
    assert builder.info.splits["validation"].num_examples == len(heldout)
    assert len({train.digest, heldout.digest, reference.digest}) == 3
    # The name alone decides, in whatever set the picture is; and the share is part of the job.
    few = ("auto", str(pictures.folder), "", output, "a", None, "float32", 8, 1, 3, 0.3)
    job = Job(Settings(*few))
    shards = range(job.num_train_shards, job.num_shards)
    assert set(keys[1]) <= {entry.key for index in shards for entry in job.entries(index)}
    assert main(flags(pictures, output)) == 2
    assert "it differs in validation_share" in capsys.readouterr().err
    for share, message in (
        (1.0, "is 1.0; allowed: 0 to less than 1"),
        (1e-9, "which holds out none of"),
    ):
        assert main(flags(pictures, tmp_path / "other", validation_share=share)) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_entries_of_shards_are_all_entries(pictures):
    settings = Settings("auto", str(pictures.folder), "", Path("x"), "a", None, "float32", 8, 1, 7)
    job = Job(settings)
    parts = [entry for index in range(job.num_shards) for entry in job.entries(index)]
    assert parts == list(job.input.entries)
    assert isinstance(job.input, Input)
    with pytest.raises(ConfigError, match="is 0"):
        dataclasses.replace(settings, images_per_shard=0)
