"""SE-MoE's memory formulas for training."""

import dataclasses

import pytest

from dit_moe.commands import plan as command
from dit_moe.config import ConfigError
from dit_moe.config.presets import preset
from dit_moe.plan.tiers import tiers
from tests.tiny import DIT_MOE, tiny


def test_the_formulas_by_hand():
    """DiT-MoE-XL/2-8E2A: 28 layers of 8 experts, whose three matrices are 1152 x 4608."""
    model = preset("DiT-MoE-XL/2-8E2A").model
    sparse = 28 * 8 * 3 * 1152 * 4608
    one, half = tiers(model, 1.0), tiers(model, 0.5)
    assert one.disks == 12 * sparse
    assert (one.hosts, half.hosts) == (16 * sparse, 8 * sparse)
    # What is left without the experts of a layer is the same for every share.
    assert one.devices - 4 * sparse / 28 == half.devices - 2 * sparse / 28
    dense = tiny(DIT_MOE).model
    wider = dataclasses.replace(dense.moe, num_experts=2 * dense.moe.num_experts)
    both = [tiers(dataclasses.replace(dense, moe=moe), 1.0) for moe in (dense.moe, wider)]
    assert both[1].disks == 2 * both[0].disks


def test_experts_of_all_kinds_count():
    """Five experts of 4, two of 2 and one of 8 times the width, with biases, in each layer."""
    model = preset("Unlike-DiT-L/2-E8").model
    width, hidden = (
        model.width,
        (4 * model.width,) * 5 + (2 * model.width,) * 2 + (8 * model.width,),
    )
    sparse = sum(2 * width * units + units + width for units in hidden)
    assert tiers(model, 1.0).disks == 12 * len(model.mixtures) * sparse


def test_what_it_cannot_tell():
    with pytest.raises(ConfigError, match="without experts"):
        tiers(preset("DiT-S/2").model, 1.0)
    with pytest.raises(ConfigError, match="tiers is 0; allowed: the share"):
        tiers(preset("DiT-MoE-S/2-8E2A").model, 0.0)


def test_the_command(capsys):
    assert command.main(["--preset=DiT-MoE-XL/2-8E2A", "--tiers=1"]) == 0
    sparse = 28 * 8 * 3 * 1152 * 4608
    out = capsys.readouterr().out
    assert f"| hosts | 16 a S | {16 * sparse / 1e9:.2f} |" in out
    assert command.main(["--preset=DiT-MoE-XL/2-8E2A", "--tiers=1", "--fsdp=8"]) == 2
    assert "fsdp is given with --tiers" in capsys.readouterr().err
