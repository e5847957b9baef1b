"""The counts are held to JAX's own: traced networks, residuals of `jax.vjp`, XLA's analyses."""

import dataclasses
import functools
import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from dit_moe.commands.plan import main
from dit_moe.config import (
    Config,
    ConfigError,
    ExpertGroup,
    LowRankConfig,
    ModelConfig,
    MoEConfig,
    PregateConfig,
    TrainConfig,
)
from dit_moe.config.presets import preset
from dit_moe.config.small_models import small_moe
from dit_moe.devices.accelerators import DEVICES, peak_flops
from dit_moe.devices.mesh import AXES, batch_sharding
from dit_moe.models.parameters import abstract_parameters, functional
from dit_moe.models.trunk import SHALLOW
from dit_moe.plan.choose import choose
from dit_moe.plan.estimate import UTILISATION, estimate
from dit_moe.plan.flops import dispatch_in_rounds, image_flops, recomputed_flops
from dit_moe.plan.host import check_host_memory
from dit_moe.plan.memory import abstract_mesh, device_bytes, parameter_bytes, saved_bytes
from dit_moe.runs.state import abstract_state
from dit_moe.training.step import build_step
from tests.tiny import DIT_MOE, PROMOE, tiny

SMALL = ModelConfig(width=256, depth=1, heads=4, image_size=32, num_classes=10)


@pytest.fixture
def accelerator(monkeypatch):
    """Traces the network as for a TPU: unfused attention, ragged dispatch. Nothing can run."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


shapes_of_parameters = functools.cache(abstract_parameters)


def inputs(model: ModelConfig, n: int):
    shape = (n, model.image_size, model.image_size, model.channels)
    return (
        shapes_of_parameters(model),
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.float32),
        jax.ShapeDtypeStruct((n,), jnp.int32),
    )


def forward(model: ModelConfig, *, train: bool = False):
    bind = functional(model)
    return lambda parameters, x, t, y: bind(parameters)(x, t, y, train=train).value


def gradient(model: ModelConfig):
    run = forward(model)
    return jax.grad(lambda parameters, x, t, y: jnp.sum(run(parameters, x, t, y) ** 2))


def traced_flops(jaxpr) -> float:
    """FLOPs of all matrix products in a trace; those in a loop as often as it runs."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            (contract, _), _ = parameters["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[i] for i in contract)
            total += 2 * depth * equation.outvars[0].aval.size
        elif name.startswith("ragged_dot"):
            lhs, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            # Rows by expert: [A, D] x [E, D, G]; the gradient of the weights: [A, D] x [A, G].
            total += 2 * math.prod(lhs) * out[-1]
        times = parameters.get("length", 1) if name == "scan" else 1
        for value in parameters.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += times * traced_flops(inner)
    return total


@pytest.mark.parametrize(
    "name",
    [
        "DiT-XL/2",
        "DiT-MoE-S/2-8E2A",
        "DiT-MoE-G/2-16E2A",
        "ProMoE-S/2",
        "ProMoE-XL/2",
        "ProMoE-EC-L/2",
        "EC-DiT-L/2-E8",
        "DiffMoE-B/2-E8",
        "X-MoE-DiT-L/2-E8",
        "Soft-DiT-L/2-E8",
        "Race-DiT-B/2-4in32",
    ],
)
def test_forward_pass_of_presets(name, accelerator):
    model = preset(name).model
    # In training, where DiffMoE computes a fixed number of tokens.
    run = forward(model, train=True)
    traced = traced_flops(jax.make_jaxpr(run)(*inputs(model, 1)).jaxpr)
    # Their traces include the contrastive and the similarity loss.
    tolerance = 2e-3 if name.startswith(("ProMoE", "Race")) else 1e-9
    assert image_flops(model).total == pytest.approx(traced, rel=tolerance)


# Peebles & Xie 2023, table 4; a multiplication and an addition count as one there.
@pytest.mark.parametrize(
    ("size", "giga"), [("S", 6.06), ("B", 23.01), ("L", 80.71), ("XL", 118.64)]
)
def test_published_counts(size, giga):
    assert image_flops(preset(f"DiT-{size}/2").model).total / 2e9 == pytest.approx(giga, rel=2e-3)


def test_count_of_the_compiler():
    model = dataclasses.replace(SMALL, remat="none")
    compiled = jax.jit(forward(model)).lower(*inputs(model, 2)).compile()
    assert 2 * image_flops(model).total == pytest.approx(
        compiled.cost_analysis()["flops"], rel=0.02
    )


def test_active_experts_cost_what_a_dense_layer_of_their_width_does():
    moe = MoEConfig(num_experts=16, top_k=3, expert="gelu", hidden_ratio=1, shared_hidden_ratio=2)
    sparse = image_flops(dataclasses.replace(SMALL, moe=moe))
    dense = image_flops(dataclasses.replace(SMALL, mlp_ratio=3 * 1 + 2))
    assert sparse.experts + sparse.shared == dense.feed_forward
    assert sparse.router == 2 * 256 * 256 * 16  # tokens x width x experts
    assert sparse.attention == dense.attention


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
@pytest.mark.parametrize("name", ["DiT-B/2", "DiT-MoE-S/2-8E2A", "Soft-DiT-L/2-E8"])
def test_training_with_recomputation(name, remat, accelerator):
    model = dataclasses.replace(preset(name).model, remat=remat)
    traced = traced_flops(jax.make_jaxpr(gradient(model))(*inputs(model, 1)).jaxpr)
    counted = image_flops(model).training + recomputed_flops(
        model, fused_attention=False, expert_parallel=False
    )
    assert counted == pytest.approx(traced, rel=0.01)


@pytest.mark.parametrize(
    ("name", "remat", "dtype"),
    [
        ("DiT-S/2", "none", "bfloat16"),
        ("DiT-S/2", "dots", "float32"),
        ("DiT-S/2", "full", "bfloat16"),
        ("DiT-MoE-S/2-8E2A", "none", "float32"),
        ("DiT-MoE-S/2-8E2A", "dots", "bfloat16"),
        ("ProMoE-S/2", "none", "bfloat16"),
        ("ProMoE-S/2", "dots", "bfloat16"),
        ("EC-DiT-L/2-E8", "dots", "bfloat16"),
        ("ProMoE-EC-L/2", "none", "float32"),
        ("DiffMoE-B/2-E8", "none", "bfloat16"),
        ("DiffMoE-B/2-E8", "dots", "bfloat16"),
        ("DSMoE-S/2-E16", "none", "bfloat16"),
        ("Soft-DiT-L/2-E8", "dots", "bfloat16"),
        ("Race-DiT-B/2-4in32", "dots", "bfloat16"),
    ],
)
def test_saved_activations(name, remat, dtype, accelerator):
    model = dataclasses.replace(preset(name).model, remat=remat, dtype=dtype)
    counted = saved_bytes(model, fused_attention=False, expert_parallel=False)
    assert counted == pytest.approx(kept_bytes(model), rel=0.01)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["Soft-DiT-L/2-E8", "Race-DiT-B/2-4in32"])
def test_saved_activations_without_recomputation(name, dtype, accelerator):
    """To 5%: what differs by the type of the activations, these routers do not tell."""
    model = dataclasses.replace(preset(name).model, remat="none", dtype=dtype)
    counted = saved_bytes(model, fused_attention=False, expert_parallel=False)
    assert counted == pytest.approx(kept_bytes(model), rel=0.05)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize("architecture", ["adamoe", "moe-plus-plus"])
def test_saved_activations_beside_cheap_experts(architecture, remat, dtype, accelerator):
    """Rows that go to none of the experts with weights are kept all the same."""
    moe = small_moe(architecture)
    assert moe is not None
    model = ModelConfig(width=384, depth=2, heads=6, remat=remat, dtype=dtype, moe=moe)
    plain = dataclasses.replace(model, moe=dataclasses.replace(moe, cheap_experts=()))
    assert_counted_difference(model, plain)


def assert_counted_difference(model: ModelConfig, plain: ModelConfig, share: float = 0.005):
    """What is counted for the one more than for the other is what JAX keeps more, to a share of
    all."""
    kept, counted = (
        [count(m) for m in (model, plain)]
        for count in (
            kept_bytes,
            functools.partial(saved_bytes, fused_attention=False, expert_parallel=False),
        )
    )
    assert counted[0] - counted[1] == pytest.approx(kept[0] - kept[1], abs=share * kept[0])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "dots"])
def test_saved_activations_of_a_learnt_mix(remat, dtype, accelerator):
    moe = small_moe("pyramid-mix")
    assert moe is not None
    model = ModelConfig(width=384, depth=2, heads=6, remat=remat, dtype=dtype, moe=moe)
    plain = dataclasses.replace(model, moe=dataclasses.replace(moe, shared_mix="sum"))
    assert_counted_difference(model, plain)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "dots"])
@pytest.mark.parametrize(
    "change",
    [
        {"unlike": (ExpertGroup("gru", 1, 0.5),)},
        {"unlike": (ExpertGroup("swiglu", 1, 0.5), ExpertGroup("bigru", 2, 0.5))},
        {"choose_by": "image"},
    ],
    ids=["recurrent", "two groups", "by image"],
)
def test_saved_activations_of_unlike_experts(change, remat, dtype, accelerator):
    moe = MoEConfig(num_experts=4, top_k=2, expert="gelu", hidden_ratio=1, shared_hidden_ratio=0)
    plain = ModelConfig(width=384, depth=12, heads=6, remat=remat, dtype=dtype, moe=moe)
    model = dataclasses.replace(plain, moe=dataclasses.replace(moe, **change))
    # A second group of rows is counted as the first, which is a model to some percent.
    assert_counted_difference(model, plain, 0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_saved_activations_of_a_router_before_the_trunk(remat, dtype, accelerator):
    moe = MoEConfig(num_experts=4, top_k=1, expert="gelu", hidden_ratio=1, shared_hidden_ratio=0)
    plain = ModelConfig(width=384, depth=2, heads=6, remat=remat, dtype=dtype, moe=moe)
    model = dataclasses.replace(plain, pregate=PregateConfig())
    # Most of it are scores of attention; what else its block keeps is a model to some percent.
    assert_counted_difference(model, plain, 0.02)


def test_training_with_a_router_before_the_trunk(accelerator):
    moe = MoEConfig(num_experts=4, top_k=1, expert="gelu", hidden_ratio=1, shared_hidden_ratio=0)
    model = dataclasses.replace(SMALL, moe=moe, pregate=PregateConfig(heads=2), remat="none")
    traced = traced_flops(jax.make_jaxpr(gradient(model))(*inputs(model, 1)).jaxpr)
    assert image_flops(model).training == pytest.approx(traced, rel=0.01)


def test_training_with_recurrent_experts(accelerator):
    """Products with the states are computed again, as they are not kept; rows are of a fixed number
    in the trace, those of a recurrent expert too, which the plan leaves out."""
    moe = MoEConfig(num_experts=4, top_k=1, expert="gelu", hidden_ratio=1, shared_hidden_ratio=0)
    plain = dataclasses.replace(SMALL, moe=moe)
    group = ExpertGroup("bigru", 2, 0.5)
    model = dataclasses.replace(plain, moe=dataclasses.replace(moe, unlike=(group,)))
    traced, counted = (
        count(model) - count(plain)
        for count in (
            lambda m: traced_flops(jax.make_jaxpr(gradient(m))(*inputs(m, 1)).jaxpr),
            lambda m: (
                image_flops(m).training
                - 3 * image_flops(m).experts
                + recomputed_flops(m, fused_attention=False, expert_parallel=False)
            ),
        )
    )
    assert counted == pytest.approx(traced, rel=0.01)


def kept_bytes(model: ModelConfig) -> int:
    """What JAX keeps of an image for the backward pass."""

    def saved(n: int) -> int:
        def residuals(parameters, x, t, y):
            def run(parameters):
                prediction = functional(model)(parameters)(x, t, y, train=True)
                # Of the auxiliary losses, these alone keep matrix products of their own.
                losses = [prediction.losses.get(name) for name in ("capacity", "similarity")]
                return prediction.value, losses, prediction.guesses

            return jax.vjp(run, parameters)[1]

        leaves = jax.tree.leaves(jax.eval_shape(residuals, *inputs(model, n)))
        return sum(a.size * a.dtype.itemsize for a in leaves)

    # Between two batch sizes, what does not depend on the batch (casts of parameters) drops out.
    return saved(3) - saved(2)


def test_cheaper_settings_keep_less():
    model = dataclasses.replace(preset("DiT-MoE-S/2-8E2A").model, dtype="bfloat16")
    plain, fused, spread = (
        saved_bytes(model, fused_attention=f, expert_parallel=e)
        for f, e in [(False, False), (True, False), (False, True)]
    )
    assert plain == fused  # the scores are not kept anyway
    # 2 experts a token: 2 x 1536 hidden units and 384 results, but for the sum.
    assert plain - spread == 12 * 256 * (2 * (3072 + 384) * 2 - 384 * 2)


def test_experts_that_choose_from_the_batch_work_in_rounds():
    """On several devices, whose shares of the assignments are not known beforehand."""
    for name, shape, rounds in [
        ("DiffMoE-B/2-E8", {"data": 1}, False),
        ("DiffMoE-B/2-E8", {"data": 2}, True),
        ("EC-DiT-L/2-E8", {"data": 2}, False),
        ("EC-DiT-L/2-E8", {"expert": 2}, True),
    ]:
        assert dispatch_in_rounds(preset(name).model, abstract_mesh(shape).shape) == rounds


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (8, 1, 1, 1), (2, 2, 2, 1), (1, 1, 2, 2)])
@pytest.mark.parametrize("moe", [None, DIT_MOE, PROMOE])
def test_state_is_exact(moe, shape):
    first_moment = "bfloat16" if moe is PROMOE else "float32"
    averages = {"post_hoc_ema": (0.05, 0.1)}
    freeze = ("trunk.*.attention.*",) if moe is DIT_MOE else ()
    config = tiny(moe, **averages, first_moment_dtype=first_moment, freeze=freeze)
    mesh = abstract_mesh(dict(zip(AXES, shape, strict=True)))
    state = abstract_state(config.model, config.train, mesh)  # pyright: ignore
    real = sum(
        math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize
        for a in jax.tree.leaves(state)
    )
    parts = device_bytes(config.model, config.train, mesh, fused_attention=False)
    host = tiny(moe, **averages, averages_on_host=True)
    assert device_bytes(host.model, host.train, mesh, fused_attention=False)["EMA"] == 0
    counters = 3 * 4  # the step's number and two of the optimiser
    assert parts["parameters"] + parts["EMA"] + parts["optimizer"] + counters == real


@pytest.mark.parametrize(
    "lora",
    [None, pytest.param(LowRankConfig(patterns=("trunk.*",)), marks=pytest.mark.slow)],
)
def test_memory_of_the_compiled_step(lora):
    model = dataclasses.replace(SMALL, depth=SHALLOW + 1)
    config = Config(name="small", model=model, train=TrainConfig(batch_size=8, lora=lora))
    device = np.asarray(jax.devices()[:1]).reshape([1] * len(AXES))
    mesh = Mesh(device, AXES, axis_types=(AxisType.Auto,) * len(AXES))
    x = jax.ShapeDtypeStruct((8, 32, 32, 4), jnp.float32, sharding=batch_sharding(mesh))
    y = jax.ShapeDtypeStruct((8,), jnp.int32, sharding=batch_sharding(mesh))
    with jax.set_mesh(mesh):
        state = abstract_state(config.model, config.train, mesh)
        step = jax.jit(
            build_step(config.model, config.objective, config.train, config.seed), donate_argnums=0
        )
        xla = step.lower(state, x, y).compile().memory_analysis()
    parts = device_bytes(config.model, config.train, abstract_mesh({}), fused_attention=False)
    stored = parts["parameters"] + parts["EMA"] + parts["optimizer"]
    assert xla.argument_size_in_bytes == stored + 12 + 8 * 32 * 32 * 4 * 4 + 8 * 4
    made = parts["gradients"] + parts["activations"] + parts["working set"]
    made += parts.get("merged", 0)
    assert made == pytest.approx(xla.temp_size_in_bytes, rel=0.15)


def test_experts_of_other_devices_are_never_here():
    model = preset("DiT-MoE-S/2-8E2A").model
    one = parameter_bytes(model, abstract_mesh({}))
    spread = parameter_bytes(model, abstract_mesh({"fsdp": 2, "expert": 4}))
    experts = 12 * 8 * 3 * 384 * 1536 * 4
    assert one.stored == one.used == 4 * 199_209_248
    assert spread.used == pytest.approx(one.used - experts * 3 / 4)
    # All but timestep features, routers and the like are split.
    assert spread.stored == pytest.approx(one.stored / 8, rel=0.01)


def test_accumulation_halves_activations_and_adds_gradients():
    config = preset("DiT-S/2")
    parts = estimate(config, {}).parts
    halves = estimate(
        dataclasses.replace(config, train=dataclasses.replace(config.train, accumulation=2)), {}
    ).parts
    assert halves["activations"] == parts["activations"] / 2
    assert halves["gradients"] == 2 * parts["gradients"]


@pytest.mark.parametrize(
    ("kind", "dtype", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bfloat16", 989),
        ("NVIDIA H100 80GB HBM3", "float32", 494),
        ("NVIDIA A100-SXM4-40GB", "bfloat16", 312),
        ("NVIDIA A100 80GB PCIe", "bfloat16", 312),
        ("NVIDIA H200", "bfloat16", 989),
        ("NVIDIA L4", "bfloat16", 121),
        ("TPU v4", "bfloat16", 275),
        ("TPU v5 lite", "bfloat16", 197),
        ("TPU v5p", "bfloat16", 459),
        ("TPU v5", "float32", 459),
        ("TPU v6 lite", "bfloat16", 918),
    ],
)
def test_peak_flops(kind, dtype, tera):
    assert peak_flops(kind, dtype) == tera * 1e12


@pytest.mark.parametrize(
    "kind", ["cpu", "NVIDIA H100 PCIe", "NVIDIA L40S", "TPU v3", "NVIDIA H200 NVL"]
)
def test_peak_flops_of_others_is_not_known(kind):
    assert peak_flops(kind, "bfloat16") is None


def test_step_time():
    config = dataclasses.replace(
        preset("DiT-XL/2"), train=TrainConfig(batch_size=256, accumulation=1)
    )
    h100, state = DEVICES["h100"], 674_834_720 * 4
    e = estimate(config, {"data": 16}, h100)
    compute = 16 * e.hardware_flops_per_image / (UTILISATION * 494e12) + 9 * state / 3350e9
    # Sixteen on two hosts: over NVLink, then each of eight cards carries an eighth.
    reduced = 2 * state * 15 / 16
    links = reduced / 450e9 + reduced / 8 / 50e9
    assert e.seconds == pytest.approx((max(compute, links), compute + links))
    assert e.images_per_second == pytest.approx((256 / e.seconds[1], 256 / e.seconds[0]))
    assert estimate(config, {"data": 8}).seconds is None


def test_tokens_travel_only_over_experts():
    config = preset("DiT-MoE-S/2-8E2A")
    device = dataclasses.replace(DEVICES["h100"], memory_bandwidth=math.inf, float32=math.inf)
    e = estimate(config, {"expert": 8}, device)
    rows = 32 * 256 * 2 * 12  # images, tokens, experts of a token, layers
    tokens = 5 * rows * 384 * 4 * 7 / 8
    mesh = abstract_mesh({"expert": 8})
    parameters = parameter_bytes(config.model, mesh)
    gathered = 3 * (parameters.used - parameters.stored)
    assert e.seconds == pytest.approx(((tokens + gathered) / 450e9,) * 2)


def test_choice_of_a_mesh():
    config = preset("DiT-MoE-XL/2-8E2A")
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="bfloat16"))
    chosen = choose(config, DEVICES["h100"], 8)
    assert chosen.fits
    size = chosen.mesh["fsdp"] * chosen.mesh["expert"]
    for smaller in (s for s in (1, 2, 4) if s < size):
        for expert in (e for e in (1, 2, 4) if smaller % e == 0):
            shape = {"data": 8 // smaller, "fsdp": smaller // expert, "expert": expert}
            assert not estimate(config, shape, DEVICES["h100"]).fits
    lone = choose(config, DEVICES["a100-40"], 1)
    assert not lone.fits
    assert lone.sentence().endswith("does not fit: 30 GB are counted on")


def test_command(capsys):
    arguments = ["--preset", "DiT-MoE-S/2-8E2A", "--devices", "8", "--device", "v5e"]
    for size in (["--expert", "4"], ["--config.mesh.expert=4"]):
        assert main([*arguments, *size, "--config.model.dtype=bfloat16"]) == 0
        out = capsys.readouterr().out
        assert out.startswith(
            "DiT-MoE-S/2-8E2A@256 on 8 x TPU v5e, mesh data 2 x fsdp 1 x expert 4, batch 256: "
        )
    sizes = ["--expert", "4", "--tensor", "2", "--config.train.moments_on_host=true"]
    assert main([*arguments, *sizes]) == 0
    out = capsys.readouterr().out
    assert "mesh data 1 x fsdp 1 x expert 4 x tensor 2, batch 256" in out
    assert "optimizer 0," in out
    assert " GB of its host's memory; " in out
    assert " images/s, without what goes to the host and back" in out
    assert main(["--config", "configs/digits.py", "--batch_size", "64"]) == 0
    assert "batch 64" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "DiT-Q/2"], "preset is 'DiT-Q/2'; allowed: DiT-S/2, "),
        (["--config", "no.py"], "--config is 'no.py', which is not a file"),
        (["--preset", "DiT-S/2", "--device", "abacus"], "device is 'abacus'; allowed: l4, "),
        (["--preset", "DiT-S/2", "--devices", "0"], "devices is 0; allowed: 1 or more"),
        (["--preset", "DiT-S/2", "--devices", "999999999999"], "devices is 999999999999; allowed"),
        (["--preset", "DiT-S/2", "--batch_size", "999999999999"], "batch_size is '999999999999'"),
        (["--preset", "DiT-S/2", "--devices", "2147483647"], "on 2147483647 devices; allowed"),
        (["--preset", "DiT-S/2", "--devices", "8", "--fsdp", "3"], "mesh is fsdp 3 on 8 devices"),
        (["--preset", "DiT-S/2", "--devices", "8", "--data", "4"], "mesh is data 4 on 8 devices"),
        (["--preset", "DiT-S/2", "--fsdp", "0"], "mesh is fsdp 0 on 1 devices; allowed: positive"),
        (["--preset", "DiT-S/2", "--devices", "8", "--expert", "8"], "expert is 8 with a dense"),
        (["--preset", "DiT-S/2", "--devices", "7"], "batch_size is 256 with accumulation 1 on 7"),
        (["--preset", "DiT-S/2", "--config.modl=1"], "config.modl is not a field"),
        (["--table", "--devices", "8"], "devices is given with --table"),
        (["--table", "--costs", "no.json"], "costs is given with --table"),
    ],
)
def test_errors(arguments, message, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_a_model_that_this_machine_cannot_hold():
    config = preset("DiT-S/2")
    check_host_memory(estimate(config, {}))
    wide = dataclasses.replace(config.model, width=2**20, heads=1)
    with pytest.raises(ConfigError, match=r"needs .* GB for parameters.*; allowed: the .* GB that"):
        check_host_memory(estimate(dataclasses.replace(config, model=wide), {}))


def test_mesh_that_does_not_divide():
    with pytest.raises(ConfigError, match=r"config\.mesh\.expert is 3"):
        estimate(preset("DiT-MoE-S/2-8E2A"), {"expert": 3})
    with pytest.raises(ConfigError, match="allowed: a multiple of 512"):
        estimate(preset("DiT-S/2"), {"data": 512})


def test_help_does_not_wait_for_jax():
    code = (
        "import sys, dit_moe.commands.plan as m\ntry: m.main(['--help'])\nexcept SystemExit: pass"
    )
    code += "\nassert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
