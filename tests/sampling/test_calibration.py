"""TeaCache's polynomial: from a run to a file beside it, and back."""

import json

import jax
import numpy as np
import pytest

from dit_moe.commands.calibrate import main
from dit_moe.models.parameters import functional
from dit_moe.runs.loading import load_run
from dit_moe.sampling.calibration import changes
from dit_moe.sampling.request import build_request
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.training.loop import train
from tests.tiny import DIT_MOE, tiny


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    train(tiny(DIT_MOE, steps=3, learning_rate=0.05, log_every=3), workdir)
    return workdir


def test_a_run_is_calibrated_and_then_sampled(run, capsys):
    settings = {"ema": False, "batch_size": 4, "num_samples": 4, "integration": {"steps": 12}}
    with pytest.raises(ValueError, match="'teacache' without its calibration"):
        RunSampler(run, cache="teacache", **settings)
    line = ["--workdir", str(run), "--parameters=raw", "--images=4"]
    assert main([*line, "--steps=4"]) == 2
    assert "steps is 4, which gives 3 changes; allowed: more than 5" in capsys.readouterr().err
    assert main([*line, "--steps=12", "--step_cache=fora"]) == 2
    assert "step_cache is 'fora' for a calibration; allowed: none" in capsys.readouterr().err
    assert not (run / "teacache.json").exists()
    assert main([*line, "--steps=12"]) == 0
    assert "teacache.json; the polynomial explains " in capsys.readouterr().out
    known = json.loads((run / "teacache.json").read_text())
    assert (known["solver"], known["steps"], known["step"]) == ("euler", 12, 3)
    sampler = RunSampler(run, cache="teacache:threshold=0.2", **settings)
    assert sampler.request.cache.coefficients == tuple(known["coefficients"])
    assert "is of step 3 (raw parameters), euler with 12 steps" in capsys.readouterr().out
    assert sampler.identity["computed"]["full_evaluations"] is None
    (x,) = sampler.batches()
    assert np.isfinite(x).all()


def test_changes_are_those_of_a_plain_loop(run):
    config, _, parameters, _ = load_run(run, False)
    request = build_request(config, num_samples=3, integration={"steps": 4})
    seen, predicted = changes(config, parameters, request)
    model, before, expected = functional(config.model)(parameters), None, []
    from dit_moe.diffusion.integrate import start_noise
    from dit_moe.sampling.sampler import image_keys

    y_N = request.labels()
    z = start_noise(image_keys(0, np.arange(3)), config.model.image_shape)
    for t, t_next in zip((1, 0.75, 0.5, 0.25), (0.75, 0.5, 0.25, 0), strict=True):
        t_N = np.full(3, t * config.objective.time_scale, np.float32)
        value = np.asarray(jax.jit(lambda z, t_N: model(z, t_N, y_N).value)(z, t_N))
        if before is not None:
            expected.append(np.abs(value - before).sum() / np.abs(before).sum())
        z, before = z + (t_next - t) * value, value
    np.testing.assert_allclose(predicted, expected, rtol=1e-3)
    assert (seen > 0).all()
