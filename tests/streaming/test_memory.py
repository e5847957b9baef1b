"""What a process holds that draws from a store, beside what it may."""

import dataclasses
import re
import sys

import pytest

from benchmarks.timing import watched
from dit_moe.streaming.making import make_store
from tests.streaming.stores import packed, write_model
from tests.tiny import DIT_MOE, tiny


@pytest.mark.slow
@pytest.mark.parametrize("config", [tiny(DIT_MOE), packed(DIT_MOE)], ids=["whole", "packed"])
def test_the_peak_of_a_command_is_within_its_memory(config, tmp_path):
    """In the least memory that it says to be enough, and in somewhat more, which it uses."""
    moe = dataclasses.replace(DIT_MOE, num_experts=8, hidden_ratio=4)
    model = dataclasses.replace(config.model, width=384, depth=12, moe=moe)
    config = dataclasses.replace(config, model=model)
    write_model(tmp_path / "model", config)
    store = make_store(tmp_path / "model", tmp_path / "store", ema=False)
    layer = store.layers[0].bytes

    def drawn(memory: float, output: str) -> tuple[str, int]:
        command = [sys.executable, "sample.py", "--parameters=raw", "--num_samples=4"]
        command += ["--batch_size=2", "--steps=2", f"--workdir={tmp_path / 'store'}"]
        command += [f"--memory={memory:.2f}GB"]
        found = watched([*command, f"--output={tmp_path / output}"])
        return found.said, found.peak

    refused, _ = drawn(0.1, "none")
    found = re.search(r"allowed: ([\d.]+) GB or more", refused)
    assert found is not None, refused
    least = float(found[1]) + 0.04
    for memory, pinned in ((least, range(4)), (least + 6 * layer / 1e9, range(5, 10))):
        said, peak = drawn(memory, f"{memory:.2f}")
        told = re.search(r"(\d+) of 12 layers of experts stay in memory", said)
        assert told is not None, said
        assert int(told[1]) in pinned
        assert peak < memory * 1e9
