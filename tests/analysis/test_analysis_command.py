"""Networks with hand-set weights, every router, and the command."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from dit_moe.analysis import experts, pictures
from dit_moe.analysis.analyse import (
    build_settings,
    class_names,
    count_sampling,
    count_training,
    open_source,
)
from dit_moe.analysis.findings import DEPTH, EARLY, PREFERENCE, findings
from dit_moe.analysis.record import FILE, Analysis, Information, Inputs, Layer, Paths
from dit_moe.analysis.summary import summarize
from dit_moe.analysis.visits import euler_step, part_of_range
from dit_moe.commands.analysis import main
from dit_moe.config import (
    DataConfig,
    DDPMConfig,
    GuidanceConfig,
    MeshConfig,
    RectifiedFlowConfig,
    SampleConfig,
)
from dit_moe.config.files import to_json
from dit_moe.data.classes import model_classes
from dit_moe.devices.mesh import build_mesh, replicated
from dit_moe.diffusion.denoiser import unit_variance
from dit_moe.diffusion.integrate import build_objective
from dit_moe.models.parameters import init_parameters
from dit_moe.models.prediction import Prediction
from dit_moe.sampling import guides
from dit_moe.sampling.guides import guided
from dit_moe.storage.records import read_record
from tests.analysis.fresh_run import write_fresh_run
from tests.tiny import ADAMOE, DIFFMOE, DIT_MOE, EC_DIT, PROMOE_EC, tiny

WIDTH = 16


@pytest.fixture(scope="module")
def mesh():
    return build_mesh(MeshConfig())


def config_of(moe, objective=None):
    return dataclasses.replace(tiny(moe), objective=objective or RectifiedFlowConfig(time_scale=20))


def fresh(config, mesh) -> dict[str, jax.Array]:
    return jax.device_put(init_parameters(config.model, jax.random.key(0)), replicated(mesh))


@pytest.mark.parametrize("cause", ["position", "time", "label"])
def test_a_network_that_depends_on_one_thing(cause, mesh):
    """adaLN makes the router's tokens: of positions alone, or of what shifts them alone."""
    config = config_of(DIT_MOE)
    parameters = fresh(config, mesh)
    for name in ("patch_in.kernel", "patch_in.bias"):
        parameters[name] = jnp.zeros_like(parameters[name])
    if cause != "position":
        # Shift, scale and gate of the feed-forward are the last three: the scale -1 takes the
        # token away, and the shift is a random map of the condition.
        modulation = "trunk.segments.0.blocks.0.modulation."
        bias, kernel = (np.array(parameters[modulation + n]) for n in ("bias", "kernel"))
        bias[:, 4 * WIDTH : 5 * WIDTH] = -1
        shift = np.random.default_rng(0).standard_normal((*kernel.shape[:2], WIDTH))
        kernel[:, :, 3 * WIDTH : 4 * WIDTH] = shift
        parameters |= {modulation + "bias": jnp.asarray(bias)}
        parameters |= {modulation + "kernel": jnp.asarray(kernel, jnp.float32)}
        off = {"time": "label.table", "label": "timestep.dense_out.kernel"}[cause]
        parameters[off] = jnp.zeros_like(parameters[off])
        for name in ("timestep.dense_in.kernel", "timestep.dense_out.kernel"):
            parameters[name] = 20 * parameters[name]
    parameters = jax.device_put(parameters, replicated(mesh))
    settings = build_settings(config, inputs="training", num_images=60, time_bins=4)
    source = open_source(config.data, config.model, settings)
    counts = count_training(config, parameters, source, settings, 64, mesh)
    inputs = summarize(counts, config.model, seed=0)
    for layer in inputs.layers:
        for factor in ("position", "time", "label"):
            information: Information = getattr(layer, factor)
            if factor == cause:
                # Times within a bin differ; position and class say all there is to say.
                assert information.share > (0.1 if cause == "time" else 0.3)
                assert information.p_value == 0.01
            else:
                assert abs(information.share) < 0.02, factor
                assert information.p_value > 0.05, factor


class Latents:
    """Random 8x8x4 latents of three classes."""

    shape = (8, 8, 4)
    label = np.repeat(np.arange(3, dtype=np.int32), 5)

    def __getitem__(self, index):
        return {"mean": np.random.default_rng(index).standard_normal(self.shape, np.float32)}

    def draw(self, record, mirrored, rng):
        return record["mean"]


@pytest.mark.parametrize("moe", [EC_DIT, PROMOE_EC, DIFFMOE])
def test_routers_in_which_experts_choose(moe, mesh, monkeypatch):
    """Under DDPM, on latents. An image's S tokens go to E experts, S top_k / E to each."""
    config = config_of(moe, DDPMConfig(timesteps=250))
    model = dataclasses.replace(config.model, channels=4, num_classes=3, label_dropout=0.25)
    config = dataclasses.replace(config, model=model)
    asked = {"num_images": 12, "time_bins": 2, "steps": 4, "guidance_scale": 2.0}
    settings = build_settings(config, **asked)
    parameters = fresh(config, mesh)
    counts = count_training(config, parameters, Latents(), settings, 16, mesh)  # pyright: ignore
    inputs = summarize(counts, model, seed=0)
    tokens, layer = model.num_tokens, inputs.layers[0]
    assert (inputs.images, inputs.null_images, inputs.null_tokens) == (12, 4, 0.25)
    assert inputs.tokens == 12 * 2 * tokens
    assert layer.block == 1
    if moe is DIFFMOE:
        # Its thresholds are 0 as training begins: all experts serve every token.
        assert layer.experts_per_token == moe.num_experts
    else:
        share = 1 / moe.num_experts
        assert layer.load[: moe.num_experts] == (share,) * moe.num_experts
        assert layer.experts_per_token == moe.top_k
        assert layer.unconditional == (0.25 if moe.unconditional_expert else 0)
        assert layer.time.bits == pytest.approx(0, abs=1e-9)
        assert {f.verdict for f in findings("training", inputs, 3)} == {"cannot be told"}
    if moe is PROMOE_EC:
        guidance = GuidanceConfig(schedule="cosine", interval=(0.0, 0.6), rescale=0.5)
        config = dataclasses.replace(config, sample=SampleConfig(guidance=guidance))
        settings, used = build_settings(config, **asked), []
        monkeypatch.setattr(guides, "guided", lambda *a: used.append(a[-1]) or guided(*a))
        found = count_sampling(config, parameters, settings, 16, mesh)
        assert [(g.schedule, g.rescale, g.scale) for g in used] == [("cosine", 0.5, 2.0)]
        np.testing.assert_array_equal(found.visits_B, [24, 24])
        times = build_objective(config.objective).times(4)[:-1]
        assert found.null_visits == 12 * np.sum(times <= 0.6) == 24
        each = found.time_NxVxLxE.sum(axis=(2, 3)) / tokens
        np.testing.assert_array_equal(each, np.full(each.shape, layer.experts_per_token))


def test_a_guide_of_its_own_is_not_counted(mesh):
    """It guides the trajectories, of which every state is shown once."""
    guidance = GuidanceConfig("self_contrast", 2.0)
    config = dataclasses.replace(config_of(DIT_MOE), sample=SampleConfig(guidance=guidance))
    settings = build_settings(config, num_images=10, time_bins=2, steps=2)
    assert settings.guidance == dataclasses.replace(guidance, weak_routing="least_likely")
    found = count_sampling(config, fresh(config, mesh), settings, 16, mesh)
    np.testing.assert_array_equal(found.visits_B, [10, 10])
    assert found.null_visits == 0


@pytest.mark.parametrize("objective", [RectifiedFlowConfig(shift=2.0), DDPMConfig(timesteps=30)])
def test_trajectories_end_at_the_data(objective):
    """The exact network of a single image: every path leads to it, and to it alone."""
    problem = build_objective(objective)
    image = np.random.default_rng(0).standard_normal((4, 4, 1)).astype(np.float32)

    def network(x, t_N, y_N):
        if isinstance(objective, DDPMConfig):
            step = problem.steps().at(t_N[0].astype(int))
            return Prediction(value=(x - step.signal * image) / step.noise, routing=None, losses={})
        return Prediction(value=(x - image) / t_N[0], routing=None, losses={})

    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 4, 4, 1)), jnp.float32)
    times, denoiser = problem.times(6), problem.denoiser(network)
    z = x / unit_variance(times[0])
    for t, t_next in itertools.pairwise(times):
        z = euler_step(denoiser, z, t, t_next, jnp.zeros(2, jnp.int32))
    np.testing.assert_allclose(z, np.stack([image, image]), atol=1e-4)


def test_parts_of_the_range():
    np.testing.assert_array_equal(
        part_of_range(np.linspace(1, 0, 11), 5), [4, 4, 3, 3, 2, 2, 1, 1, 0, 0, 0]
    )


def test_similarity_of_experts(mesh):
    config = config_of(DIT_MOE)
    parameters = fresh(config, mesh)
    prefix = "trunk.segments.0.blocks.0.feed_forward.experts."
    for name in ("w_in", "w_out"):
        w = np.array(parameters[prefix + name])
        w[0, 1], w[0, 2] = 2 * w[0, 0], -w[0, 0]
        parameters[prefix + name] = jnp.asarray(w)
    found = np.asarray(experts.expert_similarity(config.model, parameters))
    flat = [np.asarray(parameters[prefix + n]).reshape(2, 4, -1) for n in ("w_in", "w_out")]
    expected = [np.corrcoef(w) for w in np.concatenate(flat, axis=-1)]  # their means are near 0
    np.testing.assert_allclose(found, expected, atol=0.02)
    np.testing.assert_allclose(found[0, 0, :3], [1, 1, -1], atol=1e-6)
    assert experts.prototype_classes(config.model, parameters, np.zeros((2, 3, WIDTH))) is None


def test_names_of_classes_are_no_formulas():
    cosine = np.eye(2)[None]
    names = ["$a_{$", "b"]
    assert pictures._matrices(cosine, ["block 0"], "class", "expert", "RdBu_r", (-1, 1), names)


def layer(block, position=0.2, time=0.1, label=0.0, balance=0.9, concentration=(0.1,) * 4):
    information = (Information(share, 0, share, share, 0.01) for share in (position, time, label))
    zeros = dict.fromkeys(
        ("entropy_bits", "effective_experts", "busiest", "experts_per_token", "unconditional"), 0.0
    )
    p, t, c = information
    return Layer(
        block=block,
        load=(1.0,),
        balance=balance,
        position=p,
        time=t,
        label=c,
        concentration_by_time=concentration,
        position_share_by_time=(0.0,) * 4,
        **zeros,
    )


def verdicts(*layers: Layer, num_classes: int = 2) -> dict[str, str]:
    paths = Paths(1, 1, 0, 1, 0, 0)
    inputs = Inputs(1, 0, 1, 0.0, layers, (), (), paths)
    return {f.claim: f.verdict for f in findings("training", inputs, num_classes)}


def test_verdicts():
    early = (0.1, 0.1, 0.2, 0.4)
    claimed = [layer(i, 0.5 - 0.1 * i, 0.1, 0.01, 0.5 + 0.1 * i, early) for i in range(4)]
    assert set(verdicts(*claimed).values()) == {"holds"}
    assert verdicts(*claimed, num_classes=1)[PREFERENCE] == "cannot be told"
    opposite = [layer(i, 0.1 + 0.1 * i, 0, 0.3, 0.9 - 0.1 * i, early[::-1]) for i in range(4)]
    assert verdicts(*opposite) == {
        PREFERENCE: "holds in part",
        DEPTH: "does not hold",
        EARLY: "does not hold",
    }
    indifferent = [layer(i, 0.001, 0.002, 0.3) for i in range(2)]
    assert verdicts(*indifferent)[PREFERENCE] == "does not hold"
    assert verdicts(*indifferent)[DEPTH] == "cannot be told"
    unseen = layer(0, concentration=(0.1, None, None, 0.2))
    assert verdicts(unseen)[EARLY] == "cannot be told"
    assert verdicts(unseen, *claimed)[EARLY] == "holds"  # no expert was chosen in the first layer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_fresh_run(tmp_path_factory.mktemp("runs") / "run", tiny())


FEW = ["--num_images", "20", "--time_bins", "2", "--steps", "2", "--guidance_scale", "1.5"]


def test_the_command(run, tmp_path, capsys):
    output = tmp_path / "experts"
    assert main(["--workdir", str(run), "--output", str(output), *FEW]) == 0
    assert "[sampling] Experts are chosen by position" in capsys.readouterr().out
    analysis = read_record(output / FILE, Analysis)
    assert (analysis.name, analysis.step) == ("tiny", 0)
    assert list(analysis.inputs) == ["training", "sampling"]
    assert len(analysis.findings) == 6
    for name, inputs in analysis.inputs.items():
        assert inputs.layers[0].unconditional == pytest.approx(inputs.null_tokens)
        assert inputs.null_tokens == pytest.approx(2 / 22 if name == "training" else 1 / 2)
    assert analysis.prototypes is not None
    assert np.shape(analysis.prototypes.with_class_mean) == (1, 4, 10)
    text = (output / "analysis.md").read_text()
    names = sorted(p.name for p in output.glob("*.png"))
    assert len(names) == 2 * 4 + 2
    for picture in names:
        assert f"({picture})" in text
        with Image.open(output / picture) as image:
            assert min(image.size) > 100
    with np.load(output / "counts.npz", allow_pickle=False) as counts:
        joint = counts["training_position_time_LxBxSxE"]
        assert joint.shape == (1, 2, 16, 5)
        assert joint.sum() == 20 * 2 * 16
        np.testing.assert_array_equal(
            counts["training_label_LxYxE"].sum(axis=2), [[2 * 2 * 16] * 10]
        )

    again = tmp_path / "again"
    assert main(["--workdir", str(run), "--output", str(again), *FEW]) == 0
    assert (again / FILE).read_bytes() == (output / FILE).read_bytes()


@pytest.mark.slow
def test_the_command_with_cheap_experts(tmp_path):
    run, output = write_fresh_run(tmp_path / "run", tiny(ADAMOE)), tmp_path / "experts"
    assert main(["--workdir", str(run), "--output", str(output), *FEW]) == 0
    for inputs in read_record(output / FILE, Analysis).inputs.values():
        for layer in inputs.layers:
            assert layer.experts_per_token == ADAMOE.top_k
            assert layer.true_experts is not None
            assert len(layer.true_experts.by_position) == 16
            mean = np.mean(layer.true_experts.by_position)
            assert mean == pytest.approx(ADAMOE.top_k * sum(layer.load[:4]))
            assert np.mean(layer.true_experts.by_time) == pytest.approx(mean)
            assert 0 < layer.true_experts.null < ADAMOE.top_k
    assert "Experts per token without the cheap ones" in (output / "analysis.md").read_text()
    with Image.open(output / "training_true_experts.png") as image:
        assert min(image.size) > 100


def test_classes_are_called_alike_whatever_is_shown(tmp_path):
    config = dataclasses.replace(tiny(), data=DataConfig(classes=(9, 4, 1)))
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=3))
    settings, known = (
        build_settings(config, classes=[0, 2]),
        model_classes(config.data, config.model, tmp_path),
    )
    source = open_source(config.data, config.model, settings)
    assert class_names(settings, source, known) == class_names(settings, None, known) == ("9", "1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num_images", "5"], "num_images is 5 with 10 classes; allowed: 10 to 100000"),
        (["--num_images", "1000000000000"], "num_images is 1000000000000 with 10 classes; allowed"),
        (["--classes", "3,11"], "classes has 11; allowed: 0 to 9"),
        (["--classes", "x"], "classes has 'x'; allowed: numbers with commas"),
        (["--time_bins", "1"], "time_bins is 1; allowed: 2 to 1000"),
        (["--steps", "0"], "steps is 0; allowed: 1 to 50000"),
        (["--batch_size", "0"], "batch_size is 0; allowed: 1 or more"),
        (["--data", "nowhere"], "--inputs sampling does without)"),
        (["--workdir", "no/such/run"], "workdir is 'no/such/run'"),
    ],
)
def test_user_errors(run, tmp_path, capsys, arguments, message):
    output = tmp_path / "experts"
    assert main(["--workdir", str(run), "--output", str(output), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_experts_and_no_room(run, tmp_path, capsys):
    (tmp_path / "config.json").write_text(to_json(tiny(None)))
    assert main(["--workdir", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "a dense model without experts" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("")
    assert main(["--workdir", str(run), "--output", str(tmp_path / "full")]) == 2
    assert "allowed: a new one" in capsys.readouterr().err
