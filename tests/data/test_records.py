import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from dit_moe.data import array_records as records
from dit_moe.data.array_records import RecordError, Records
from dit_moe.data.prepared import features, finish, shard_name, write_shard
from dit_moe.data.tfds_folder import TfdsFolder

FILES, EACH = 7, 3


@pytest.fixture
def folder(tmp_path) -> Path:
    """Records 0, 1, ... of one grey picture each, in seven files."""
    fields = features((2, 2, 3), ["a"], latents=False)
    shards = []
    for index in range(FILES):
        examples = [
            {"image": np.full((2, 2, 3), number, np.uint8), "label": 0, "key": str(number)}
            for number in range(EACH * index, EACH * (index + 1))
        ]
        path = tmp_path / shard_name("many", index, FILES)
        shards.append(write_shard(path, fields, examples))
    finish(
        tmp_path,
        name="many",
        image_size=2,
        shape=(2, 2, 3),
        classes=["a"],
        autoencoder=None,
        shards=shards,
        description="a test",
    )
    return tmp_path


def values(found: Records) -> list[int]:
    return [int(found[index]["image"].max()) for index in range(len(found))]


def open_files(folder: Path) -> int:
    links = (Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd"))
    return sum(str(folder) in os.readlink(link) for link in links if link.is_symlink())


def test_parts_of_a_split(folder):
    found = TfdsFolder(folder)
    assert values(found.records("train")) == list(range(FILES * EACH))
    assert values(found.records("train[4:11]")) == list(range(4, 11))
    assert set(found.records("train", ["label"])[0]) == {"label"}
    with pytest.raises(IndexError):
        found.records("train")[FILES * EACH]
    with pytest.raises(IndexError):
        found.records("train")[-1]


def test_few_files_stay_open(folder, monkeypatch):
    monkeypatch.setattr(records, "_files_that_may_stay_open", lambda: 2)
    found = TfdsFolder(folder).records("train")
    order = np.random.default_rng(0).permutation(200) % (FILES * EACH)
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda index: found[index]["image"].max(), order.tolist()))
    np.testing.assert_array_equal(drawn, order)
    assert open_files(folder) == 2


def test_a_damaged_record_names_its_file(folder):
    (damaged,) = folder.glob("*-00003-of-*")
    content = bytearray(damaged.read_bytes())
    content[64:-64] = bytes(len(content) - 128)
    damaged.write_bytes(content)
    with pytest.raises(
        RecordError, match=r"many-train\.array_record-00003-of-00007 cannot be read"
    ):
        TfdsFolder(folder).records("train")[3 * EACH]


LIMIT = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
from dit_moe.data.array_records import _files_that_may_stay_open
print(_files_that_may_stay_open(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("hard", [64, 400])
def test_the_limit_of_open_files_is_raised_as_far_as_it_goes(hard):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 400
    command = [sys.executable, "-c", LIMIT.format(hard=hard)]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert found.split() == [str(hard // 4), str(hard), str(hard)]
