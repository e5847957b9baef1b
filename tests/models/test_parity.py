"""The networks against outputs, losses and gradients of the peers' own PyTorch code."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from dit_moe.config import (
    BatchPoolRouterConfig,
    ExpertChoiceRouterConfig,
    ModelConfig,
    MoEConfig,
    PrototypeExpertChoiceRouterConfig,
    PrototypeRouterConfig,
    SigmoidTopKRouterConfig,
    TopKRouterConfig,
)
from dit_moe.convert import peers
from dit_moe.models.dit import DiT
from dit_moe.models.parameters import Parameters, functional, get_parameters

FIXTURES = Path(__file__).parent.parent / "fixtures"

BASELINE = MoEConfig(
    num_experts=5, top_k=2, expert="gelu", hidden_ratio=2, shared_hidden_ratio=0, every=2
)
PROMOE = MoEConfig(
    router=PrototypeRouterConfig(),
    num_experts=4,
    top_k=1,
    expert="gelu",
    hidden_ratio=64 / 48,
    shared_hidden_ratio=64 / 48,
    unconditional_expert=True,
    every=2,
)
MOE = {
    "dit_tiny": None,
    "dit_moe_tiny": MoEConfig(num_experts=4, top_k=2),
    "promoe_tiny": PROMOE,
    "promoe_ec_tiny": dataclasses.replace(
        PROMOE,
        router=PrototypeExpertChoiceRouterConfig(),
        num_experts=5,
        top_k=2,
        hidden_ratio=24 / 16,
        shared_hidden_ratio=32 / 16,
    ),
    "tcdit_tiny": dataclasses.replace(BASELINE, router=TopKRouterConfig()),
    "ecdit_tiny": dataclasses.replace(BASELINE, router=ExpertChoiceRouterConfig()),
    "diffmoe_tiny": dataclasses.replace(
        BASELINE, router=BatchPoolRouterConfig(capacity_coef=0.03, inference="batch"), top_k=1
    ),
    "dsmoe_tiny": MoEConfig(
        router=SigmoidTopKRouterConfig(scale=2.0, bias_rate=0),
        num_experts=6,
        hidden_ratio=24 / 16,
        shared_hidden_ratio=24 / 16,
        every=2,
    ),
}
MODEL = {"dsmoe_tiny": {"position": "rope", "mlp_activation": "silu"}}
WITH_LOSSES = [name for name in MOE if name not in ("dit_tiny", "ecdit_tiny", "dsmoe_tiny")]


def load(name: str) -> tuple[DiT, dict[str, np.ndarray]]:
    arguments = json.loads((FIXTURES / f"{name}.json").read_text())
    config = ModelConfig(
        image_size=arguments["input_size"],
        width=arguments["hidden_size"],
        depth=arguments["depth"],
        heads=arguments["num_heads"],
        num_classes=arguments["num_classes"],
        learn_sigma=arguments.get("learn_sigma", True),
        mlp_ratio=arguments.get("mlp_ratio", 4),
        moe=MOE[name],
        **MODEL.get(name, {}),
    )
    tensors = load_file(FIXTURES / f"{name}.safetensors")
    model = functional(config)(jax.tree.map(jnp.asarray, peers.from_peer(config, tensors)))
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return model, dict(arrays)


def inputs(arrays: dict[str, np.ndarray]) -> tuple[jax.Array, jax.Array, jax.Array]:
    x_NxHxWxC = jnp.asarray(arrays["x"].transpose(0, 2, 3, 1))
    return x_NxHxWxC, jnp.asarray(arrays["t"]), jnp.asarray(arrays["y"], jnp.int32)


def to_peer(config: ModelConfig, parameters: Parameters) -> dict[str, np.ndarray]:
    return peers.to_peer(config, {path: np.asarray(value) for path, value in parameters.items()})


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(np.asarray(actual) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("name", MOE)
def test_output(name):
    model, arrays = load(name)
    for train in (False, True):
        run = nnx.jit(lambda model, *args, train=train: model(*args, train=train).value)
        value = np.asarray(run(model, *inputs(arrays))).transpose(0, 3, 1, 2)
        assert relative_error(value, arrays["train_out" if train else "out"]) < 1e-5


@pytest.mark.parametrize("name", WITH_LOSSES)
def test_auxiliary_losses(name):
    model, arrays = load(name)
    prediction = model(*inputs(arrays), train=True)
    (per_layer,) = prediction.routing[0].losses.values()
    np.testing.assert_allclose(per_layer, arrays["aux_losses"], rtol=1e-5)
    (total,) = prediction.losses.values()
    np.testing.assert_allclose(total, arrays["aux_losses"].sum(), rtol=1e-5)
    if name == "diffmoe_tiny":
        threshold_LxE = prediction.routing[0].next_state["threshold"]
        np.testing.assert_allclose(threshold_LxE, arrays["next_threshold"], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "remat"),
    [(name, "dots") for name in MOE]
    + [(name, remat) for name in ("dit_moe_tiny", "promoe_tiny") for remat in ("none", "full")],
)
def test_gradients(name, remat):
    model, arrays = load(name)

    def loss(model):
        prediction = model(*inputs(arrays), train=True)
        return jnp.mean(prediction.value**2) + sum(prediction.losses.values())

    bind = functional(dataclasses.replace(model.config, remat=remat))
    gradients = jax.jit(jax.grad(lambda parameters: loss(bind(parameters))))(get_parameters(model))
    tensors = to_peer(model.config, gradients)
    keys = [key for key in arrays if key.startswith("grad/")]
    assert keys
    for key in keys:
        assert relative_error(tensors[key.removeprefix("grad/")], arrays[key]) < 1e-4, key


@pytest.mark.parametrize("name", MOE)
def test_round_trip_is_exact(name):
    model, _ = load(name)
    tensors = to_peer(model.config, get_parameters(model))
    expected = load_file(FIXTURES / f"{name}.safetensors")
    assert tensors.keys() == expected.keys()
    for key in expected:
        if key == "pos_embed":  # made anew, to the last rounding
            np.testing.assert_allclose(tensors[key], expected[key], atol=1e-6)
        else:
            np.testing.assert_array_equal(tensors[key], expected[key])


def test_mismatches_are_listed():
    model, _ = load("dit_tiny")
    tensors = load_file(FIXTURES / "dit_tiny.safetensors")
    del tensors["blocks.0.attn.qkv.bias"]
    tensors["extra"] = np.zeros(3)
    tensors["final_layer.linear.weight"] = tensors["final_layer.linear.weight"][:5]
    with pytest.raises(peers.MismatchError) as error:
        peers.from_peer(model.config, tensors)
    assert "missing: blocks.0.attn.qkv.bias" in str(error.value)
    assert "unexpected: extra" in str(error.value)
    assert "shape of final_layer.linear.weight: (5, 48)" in str(error.value)
