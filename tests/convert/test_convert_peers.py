"""PyTorch's own files, and networks of other sizes than the fixtures'."""

import argparse
import json
import shlex

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import dit_moe
from dit_moe.commands import convert as command
from tests.convert.converted import answer, relative_error

pytestmark = pytest.mark.peers

DENSE = {"input_size": 8, "hidden_size": 32, "num_heads": 2, "depth": 3, "num_classes": 5}
PROMOE = {
    "num_routed_experts": 3,
    "moe_intermediate_size": 48,
    "shared_expert_intermediate_size": 40,
    "top_k": 2,
    "use_shared_expert": True,
    "use_uncond_expert": True,
    "router_weight_mode": "sigmoid",
    "interleave": True,
}
NETWORKS = {
    "dit_patch_4_of_rgb": ("dit", {**DENSE, "patch_size": 4, "in_channels": 3}),
    "dit_no_sigma": ("dit", {**DENSE, "patch_size": 2, "learn_sigma": False, "mlp_ratio": 3}),
    "sit": ("sit", {**DENSE, "patch_size": 2, "hidden_size": 48}),
    "dit_moe_top_3": (
        "dit-moe",
        {**DENSE, "patch_size": 2, "mlp_ratio": 2, "num_experts": 5, "num_experts_per_tok": 3},
    ),
    "promoe_sigmoid": (
        "promoe",
        {**DENSE, "patch_size": 2, "depth": 4, "num_classes": 1000, "MoE_config": PROMOE},
    ),
    "promoe_bare_everywhere": (
        "promoe",
        {
            **DENSE,
            "patch_size": 2,
            "qk_norm": True,
            "learn_sigma": False,
            "MoE_config": {
                **PROMOE,
                "router_weight_mode": "softmax",
                "use_shared_expert": False,
                "use_uncond_expert": False,
                "interleave": False,
            },
        },
    ),
    "promoe_ec_softmax": (
        "promoe-ec",
        {
            **DENSE,
            "patch_size": 2,
            "depth": 2,
            "num_classes": 1000,
            "MoE_config": {**PROMOE, "router_weight_mode": "softmax"},
        },
    ),
    "tc_dit_top_2": (
        "tc-dit",
        {
            **DENSE,
            "patch_size": 2,
            "depth": 4,
            "MoE_config": {"num_experts": 3, "capacity": 2, "interleave": True},
        },
    ),
    "ec_dit_everywhere": (
        "ec-dit",
        {
            **DENSE,
            "patch_size": 2,
            "mlp_ratio": 1.5,
            "MoE_config": {"num_experts": 6, "capacity": 1, "interleave": False},
        },
    ),
    "diffmoe_rgb": (
        "diffmoe",
        {
            **DENSE,
            "patch_size": 2,
            "in_channels": 3,
            "depth": 2,
            "qk_norm": True,
            "MoE_config": {"num_experts": 3, "capacity": 2, "interleave": True},
        },
    ),
}


def build(case):
    import torch

    from benchmarks.torch_nets import Net

    family, arguments = NETWORKS[case]
    torch.manual_seed(0)
    return family, arguments, Net(family, arguments).eval()


def convert(folder, family, arguments, checkpoint, *flags):
    (folder / "model.json").write_text(json.dumps(arguments))
    needed = [f"--family={family}", f"--checkpoint={checkpoint}", f"--output={folder / 'run'}"]
    return command.main([*needed, f"--model_json={folder / 'model.json'}", *flags])


@pytest.mark.parametrize("case", NETWORKS)
def test_other_sizes(case, tmp_path):
    import torch

    family, arguments, net = build(case)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    assert convert(tmp_path, family, arguments, tmp_path / "net.pt") == 0

    channels = arguments.get("in_channels", 4)
    x = torch.randn(4, channels, 8, 8)
    t, y = torch.rand(4), torch.tensor([0, 3, 1, arguments["num_classes"]])
    with torch.no_grad():
        theirs = net(x, t, y).permute(0, 2, 3, 1).numpy()
    ours = answer(
        dit_moe.load(tmp_path / "run"),
        jnp.asarray(x.permute(0, 2, 3, 1).numpy()),
        jnp.asarray((1 - t if family == "sit" else t).numpy()),
        jnp.asarray(y.numpy(), jnp.int32),
    )
    assert relative_error(-ours if family == "sit" else ours, theirs) < 1e-5

    back = tmp_path / "back.pt"
    exporting = [f"--workdir={tmp_path / 'run'}", f"--format={family}", f"--output={back}"]
    assert command.main(exporting) == 0
    state = torch.load(back, weights_only=True)
    for key, tensor in net.state_dict().items():
        rounding = 1e-7 if (family, key) == ("sit", "t_embedder.mlp.0.weight") else 0
        if key == "pos_embed":  # made anew, to the last rounding
            rounding = 1e-6
        np.testing.assert_allclose(state[key], tensor, rtol=0, atol=rounding, err_msg=key)
    _, _, fresh = build(case)
    fresh.load_state_dict(state, strict=True)


def test_checkpoint_of_a_training_script(tmp_path):
    """Average, parameters, optimiser and command line in one file, in bfloat16."""
    import torch

    family, arguments, net = build("dit_no_sigma")
    net = net.to(torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters())
    sum(p.sum() for p in net.parameters()).backward()
    optimizer.step()
    average = {key: 2 * x for key, x in net.state_dict().items()}
    average["pos_embed"] = net.state_dict()["pos_embed"]
    content = {
        "ema": average,
        "model": {f"module.{key}": x for key, x in net.state_dict().items()},
        "opt": optimizer.state_dict(),
        "args": argparse.Namespace(model="DiT-XL/2", lr=1e-4),
        "step": 7,
    }
    torch.save(content, tmp_path / "0000007.pt")
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for number, (name, flags, wanted) in enumerate(
        [
            ("0000007.pt", [], average),
            ("old.pt", ["--parameters=ema"], average),
            ("0000007.pt", ["--parameters=raw"], net.state_dict()),
        ]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        assert convert(folder, family, arguments, tmp_path / name, *flags) == 0
        back = folder / "back.safetensors"
        command.main([f"--workdir={folder / 'run'}", "--format=dit", f"--output={back}"])
        tensors = load_file(back)
        for key in wanted.keys() - {"pos_embed"}:
            np.testing.assert_array_equal(tensors[key], wanted[key].float().numpy())


def test_only_a_moving_average(tmp_path, capsys):
    import torch

    family, arguments, net = build("dit_no_sigma")
    torch.save({"ema": net.state_dict()}, tmp_path / "a.pt")
    assert convert(tmp_path, family, arguments, tmp_path / "a.pt", "--parameters=raw") == 2
    assert "holds no raw parameters: its networks are 'ema'" in capsys.readouterr().err


def test_an_average_as_a_list(tmp_path, capsys):
    """As torch-ema and diffusers' EMAModel keep it: all parameters, or those that are trained."""
    import torch

    family, arguments, net = build("dit_no_sigma")
    trained = [p for p in net.parameters() if p.requires_grad]
    for number, parameters in enumerate((list(net.parameters()), trained)):
        ema = {"decay": 0.9, "shadow_params": [2 * p.detach() for p in parameters]}
        if parameters[0].shape == net.pos_embed.shape:
            ema["shadow_params"][0] = net.pos_embed
        folder = tmp_path / str(number)
        folder.mkdir()
        torch.save({"model": net.state_dict(), "ema": ema}, folder / "a.pt")
        assert convert(folder, family, arguments, folder / "a.pt") == 0
        assert "Took the moving average (ema) under 'ema.shadow_params'" in capsys.readouterr().out
        back = folder / "back.safetensors"
        command.main([f"--workdir={folder / 'run'}", "--format=dit", f"--output={back}"])
        tensors = load_file(back)
        for key, tensor in net.state_dict().items():
            if key != "pos_embed":
                np.testing.assert_array_equal(tensors[key], 2 * tensor.numpy(), err_msg=key)
    ema["shadow_params"].pop()
    torch.save({"model": net.state_dict(), "ema": ema}, tmp_path / "short.pt")
    assert convert(tmp_path, family, arguments, tmp_path / "short.pt") == 2
    assert "which does not follow the names of a network" in capsys.readouterr().err


def test_shards_of_pickles(tmp_path):
    import torch

    family, arguments, net = build("dit_no_sigma")
    shards = {}
    for i, (key, tensor) in enumerate(net.state_dict().items()):
        shards.setdefault(f"pytorch_model-0000{i % 2 + 1}-of-00002.bin", {})[key] = tensor
    for name, tensors in shards.items():
        torch.save(tensors, tmp_path / name)
    index = {"weight_map": {key: name for name, tensors in shards.items() for key in tensors}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert convert(tmp_path, family, arguments, tmp_path) == 0


def test_what_lies_beside_the_tensors_is_named(tmp_path, capsys):
    import torch

    family, arguments, net = build("dit_no_sigma")
    torch.save({"ema": net.state_dict(), "best": np.float64(0.3)}, tmp_path / "a.pt")
    assert convert(tmp_path, family, arguments, tmp_path / "a.pt") == 2
    error = capsys.readouterr().err
    assert "multiarray.scalar beside its tensors" in error
    assert error.count("\n") == 1
    # The command that it tells leaves what can be read.
    _, _, code = shlex.split(error[error.index("python -c") :])
    exec(code, {})
    assert convert(tmp_path, family, arguments, tmp_path / "a-weights.pt") == 0


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("place", ["extra", "ema"])
def test_code_is_not_executed(place, tmp_path, capsys):
    import torch

    family, arguments, net = build("dit_no_sigma")
    content = {"model": net.state_dict(), place: Malicious(tmp_path / "executed")}
    torch.save(content, tmp_path / "a.pt")
    assert convert(tmp_path, family, arguments, tmp_path / "a.pt") == 2
    error = capsys.readouterr().err
    assert "refused because reading it can execute code" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "executed").exists()
    assert not (tmp_path / "run").exists()
    # The file would have done it.
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "executed").exists()
