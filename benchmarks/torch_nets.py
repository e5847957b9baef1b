"""The networks in plain PyTorch with the peers' names and equations, of any size. Needs PyTorch.

Written from the papers' equations: tests compare with them, benchmarks/train_step.py times them.
The experts run as the peers run theirs, in a loop. The peers' own outputs are in tests/fixtures.
"""

import torch
from torch import nn
from torch.nn import functional


class Mlp(nn.Module):
    def __init__(self, width: int, hidden: int, names: tuple[str, str] = ("fc1", "fc2")):
        super().__init__()
        self.names = names
        self.add_module(names[0], nn.Linear(width, hidden))
        self.add_module(names[1], nn.Linear(hidden, width))

    def forward(self, x):
        up, down = (self.get_submodule(name) for name in self.names)
        return down(functional.gelu(up(x), approximate="tanh"))


class SwiGLU(nn.Module):
    def __init__(self, width: int, hidden: int):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Gate(nn.Module):
    def __init__(self, width: int, experts: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(experts, width))


def weighted(experts: nn.ModuleList, x_TxD, weight_TxE):
    """Each expert over the tokens that have a weight for it."""
    y_TxD = torch.zeros_like(x_TxD)
    for expert, weight_T in zip(experts, weight_TxE.T, strict=True):
        (token_B,) = torch.where(weight_T != 0)
        y_TxD = y_TxD.index_add(0, token_B, expert(x_TxD[token_B]) * weight_T[token_B, None])
    return y_TxD


def only_top(scores, k: int, axis: int = -1):
    """The k largest along the axis, and 0 elsewhere."""
    value, index = scores.topk(k, dim=axis)
    return torch.zeros_like(scores).scatter(axis, index, value)


def only_top_of_images(scores_TxE, images: int, k: int):
    """Each expert keeps so many of every image's tokens that a token has k experts on average."""
    scores = scores_TxE.unflatten(0, (images, -1))
    return only_top(scores, int(scores.shape[1] / scores.shape[2] * k), axis=1).flatten(0, 1)


class DiTMoELayer(nn.Module):
    def __init__(self, width: int, ratio: int, experts: int, top_k: int):
        super().__init__()
        self.top_k = top_k
        self.gate = Gate(width, experts)
        self.experts = nn.ModuleList(SwiGLU(width, ratio * width) for _ in range(experts))
        self.shared_experts = SwiGLU(width, 2 * width)

    def forward(self, x_TxD, null_N):
        scores = (x_TxD @ self.gate.weight.T).softmax(-1)
        weight = only_top(scores, self.top_k)
        share_E = (weight != 0).float().mean(0) * len(self.experts) / self.top_k
        self.auxiliary = 0.01 * (share_E * scores.mean(0)).sum()
        return weighted(self.experts, x_TxD, weight) + self.shared_experts(x_TxD)


class ProMoELayer(nn.Module):
    def __init__(self, width: int, settings: dict, expert_choice: bool):
        super().__init__()
        self.settings, self.expert_choice = settings, expert_choice
        experts, hidden = settings["num_routed_experts"], settings["moe_intermediate_size"]
        names = ("up_proj", "down_proj")
        self.cluster_centers = nn.Parameter(torch.empty(experts, width))
        total = experts + settings["use_uncond_expert"]
        self.experts = nn.ModuleList(Mlp(width, hidden, names) for _ in range(total))
        if settings["use_shared_expert"]:
            shared = settings["shared_expert_intermediate_size"]
            self.shared_expert = Mlp(width, shared, names)

    def forward(self, x_TxD, null_N):
        images = len(null_N)
        cosine = (
            functional.normalize(x_TxD, dim=-1)
            @ functional.normalize(self.cluster_centers, dim=-1).T
        )
        mode = self.settings["router_weight_mode"]
        softmax = cosine.softmax(-1)
        if self.expert_choice:
            softmax = cosine.unflatten(0, (images, -1)).softmax(1).flatten(0, 1)
        scores = {"identity": cosine, "softmax": softmax, "sigmoid": cosine.sigmoid()}
        if self.expert_choice:
            weight_TxE = only_top_of_images(scores[mode], images, self.settings["top_k"])
        else:
            weight_TxE = only_top(scores[mode], self.settings["top_k"])
        if self.settings["use_uncond_expert"]:
            null = null_N.repeat_interleave(len(x_TxD) // images)[:, None].float()
            weight_TxE = torch.cat([weight_TxE * (1 - null), null], dim=-1)
        if not self.expert_choice:
            self.auxiliary = self.contrastive_loss(x_TxD, weight_TxE)
        y = weighted(self.experts, x_TxD, weight_TxE)
        return y + self.shared_expert(x_TxD) if self.settings["use_shared_expert"] else y

    def contrastive_loss(self, x_TxD, weight_TxE):
        """Cross-entropy of each prototype with its own tokens' mean (ProMoE, eq. 7)."""
        member_TxE = (weight_TxE[:, : len(self.cluster_centers)] != 0).float()
        valid = member_TxE.sum(0) > 0
        mean = functional.normalize(member_TxE.T @ x_TxD, dim=-1)[valid]
        logits = functional.normalize(self.cluster_centers, dim=-1)[valid] @ mean.T / 0.07
        return functional.cross_entropy(logits, torch.arange(len(logits)))


class BaselineLayer(nn.Module):
    """The MoE layer of TC-DiT, EC-DiT and DiffMoE, as they sample."""

    def __init__(self, width: int, hidden: int, settings: dict, family: str):
        super().__init__()
        self.family, self.capacity = family, settings["capacity"]
        experts = settings["num_experts"]
        self.experts = nn.ModuleList(Mlp(width, hidden) for _ in range(experts))
        if family == "tc-dit":
            self.gate = Gate(width, experts)
        else:
            self.gate_weight = nn.Parameter(torch.empty(experts, width))
        if family == "diffmoe":
            layers = (nn.Linear(width, width), nn.SiLU(), nn.Linear(width, experts))
            self.capacity_predictor = nn.Sequential(*layers)
            self.register_buffer("expert_threshold", 0.4 + 0.2 * torch.rand(experts))
            self.register_buffer("ema_decay", torch.tensor([0.95]))

    def forward(self, x_TxD, null_N):
        gate = self.gate.weight if self.family == "tc-dit" else self.gate_weight
        scores = (x_TxD @ gate.T).softmax(-1)
        if self.family == "tc-dit":
            weight = only_top(scores, self.capacity)
        elif self.family == "ec-dit":
            weight = only_top_of_images(scores, len(null_N), self.capacity)
        else:
            passes = self.capacity_predictor(x_TxD).sigmoid() > self.expert_threshold
            columns = zip(scores.T, passes.sum(0), strict=True)
            weight = torch.stack([only_top(s_T, int(k)) for s_T, k in columns], dim=-1)
        return weighted(self.experts, x_TxD, weight)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, qk_norm: bool):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        make = (lambda: nn.LayerNorm(width // heads)) if qk_norm else nn.Identity
        self.q_norm, self.k_norm = make(), make()

    def forward(self, x):
        n, s, d = x.shape
        q, k, v = self.qkv(x).view(n, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(y.transpose(1, 2).reshape(n, s, d))


def modulated(x, shift, scale):
    return functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    def __init__(self, number: int, family: str, arguments: dict):
        super().__init__()
        width, ratio = arguments["hidden_size"], arguments.get("mlp_ratio", 4)
        self.attn = Attention(width, arguments["num_heads"], arguments.get("qk_norm", False))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))
        self.sparse = "moe" if family == "dit-moe" else "mlp"
        if family == "dit-moe":
            experts, top_k = arguments["num_experts"], arguments["num_experts_per_tok"]
            self.moe = DiTMoELayer(width, ratio, experts, top_k)
        elif "MoE_config" in arguments and (
            number % 2 or not arguments["MoE_config"]["interleave"]
        ):
            settings = arguments["MoE_config"]
            if family.startswith("promoe"):
                self.mlp = ProMoELayer(width, settings, family == "promoe-ec")
            else:
                self.mlp = BaselineLayer(width, int(ratio * width), settings, family)
        else:
            self.mlp = Mlp(width, int(ratio * width))

    def forward(self, x, c, null_N):
        parts = self.adaLN_modulation(c).chunk(6, dim=1)
        x = x + parts[2][:, None] * self.attn(modulated(x, *parts[:2]))
        h = modulated(x, *parts[3:5])
        layer = self.get_submodule(self.sparse)
        sparse = not isinstance(layer, Mlp)
        h = layer(h.flatten(0, 1), null_N).view_as(h) if sparse else layer(h)
        return x + parts[5][:, None] * h


class Table(nn.Module):
    def __init__(self, rows: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)


class Net(nn.Module):
    """The network of a family, from the arguments of the peer's constructor."""

    def __init__(self, family: str, arguments: dict):
        super().__init__()
        width, p = arguments["hidden_size"], arguments["patch_size"]
        channels = arguments.get("in_channels", 4)
        self.patch, self.null = p, arguments["num_classes"]
        self.out = channels * (2 if arguments.get("learn_sigma", True) else 1)
        self.x_embedder = nn.ModuleDict({"proj": nn.Conv2d(channels, width, p, p)})
        mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))
        self.t_embedder = nn.ModuleDict({"mlp": mlp})
        self.y_embedder = Table(self.null + 1, width)
        side = arguments["input_size"] // p
        self.pos_embed = nn.Parameter(positions(side, width)[None], requires_grad=False)
        self.blocks = nn.ModuleList(Block(i, family, arguments) for i in range(arguments["depth"]))
        final = nn.Module()
        final.linear = nn.Linear(width, p * p * self.out)
        final.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.final_layer = final
        for name, parameter in self.named_parameters():
            if name != "pos_embed":
                nn.init.normal_(parameter, std=0.3 if parameter.ndim == 1 else 0.1)

    def forward(self, x, t, y):
        """[N, C, H, W] as the peers."""
        n, _, height, _ = x.shape
        frequency = torch.exp(-torch.log(torch.tensor(1e4)) * torch.arange(128) / 128)
        angle = t[:, None] * frequency
        c = self.t_embedder["mlp"](torch.cat([angle.cos(), angle.sin()], dim=-1))
        c = c + self.y_embedder.embedding_table(y)
        x = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            x = block(x, c, y == self.null)
        shift, scale = self.final_layer.adaLN_modulation(c).chunk(2, dim=1)
        x = self.final_layer.linear(modulated(x, shift, scale))
        p, side = self.patch, height // self.patch
        x = x.view(n, side, side, p, p, self.out)
        return x.permute(0, 5, 1, 3, 2, 4).reshape(n, self.out, height, height)


def positions(side: int, width: int) -> torch.Tensor:
    omega = 1 / 10000.0 ** (torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * omega
    axis = torch.cat([angle.sin(), angle.cos()], dim=1)
    return torch.cat([axis.repeat(side, 1), axis.repeat_interleave(side, 0)], dim=1).float()
