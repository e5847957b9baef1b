"""A row of the table: what a config takes, counted otherwise, and what a log tells."""

import math

import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.plan.flops import image_flops
from dit_moe.sweep.measure import facts, from_log
from tests.tiny import DIT_MOE, tiny


def test_facts():
    config = tiny(DIT_MOE, steps=6, batch_size=16)
    row = facts(config)
    assert row["images"] == 6 * 16
    assert row["tokens"] == 6 * 16 * 16
    assert row["tokens_per_parameter"] == row["tokens"] / row["parameters_total"]
    assert row["flops"] == 6 * 16 * image_flops(config.model).training


LOG = """\
step,loss,loss_t0,loss_t3,moe/busiest/layer00,moe/busiest/layer01,moe/load/layer00/expert00,\
moe/load/layer00/expert01,moe/load/layer01/expert00,moe/load/layer01/expert01,images_per_second,\
validation/loss,validation/loss_t0
1,9,9,9,0.9,0.9,0.5,0.5,0.5,0.5,,,
10,5,5,5,0.9,0.9,0.5,0.5,0.5,0.5,16,0.7,0.8
19,3,,2,0.5,0.6,0.5,0.5,1,0,32,,
20,1,,,0.6,0.7,0.5,0.5,0.999,0.001,16,0.5,0.6
"""


def test_what_a_log_tells(tmp_path):
    (tmp_path / "metrics.csv").write_text(LOG)
    row = from_log(tiny(DIT_MOE, batch_size=16), tmp_path)
    assert row == {
        "loss": 2,  # the last tenth of the steps: 19 and 20
        "loss_t0": None,
        "loss_t3": 2,
        "validation_loss": 0.5,
        "validation_loss_t0": 0.6,
        "busiest": pytest.approx(0.6),
        "dead_experts": 1,
        # 9 steps of a second, 9 of half one, 1 of one; the step that was compiled as the others
        "seconds": pytest.approx((9 + 4.5 + 1) * 20 / 19),
    }
    assert all(value is None or math.isfinite(value) for value in row.values())


def test_a_run_that_diverged_has_no_loss(tmp_path):
    """Not that of before."""
    log = "step,loss,images_per_second,validation/loss\n10,1,16,0.5\n19,1,16,\n20,,16,\n"
    (tmp_path / "metrics.csv").write_text(log)
    row = from_log(tiny(None, batch_size=16), tmp_path)
    assert row == {"loss": None, "validation_loss": None, "seconds": 20}


def test_a_run_without_a_log_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"metrics\.csv is missing or has no row"):
        from_log(tiny(), tmp_path)


def test_dense_models_have_no_experts_to_be_dead(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,loss,images_per_second\n2,0.5,\n")
    assert from_log(tiny(None), tmp_path) == {"loss": 0.5, "seconds": None}
    np.testing.assert_equal(facts(tiny(None))["sparsity"], 0)
