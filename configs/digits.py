"""Handwritten digits, 8x8: a few minutes on two CPU cores. Argument: promoe, dit-moe or dit."""

from dit_moe.config import (
    Config,
    ConfigError,
    DataConfig,
    ModelConfig,
    MoEConfig,
    PrototypeRouterConfig,
    RectifiedFlowConfig,
    SampleConfig,
    TopKRouterConfig,
    TrainConfig,
)

# Equal active parameters per token: the dense MLP is 4 widths of hidden units, ProMoE's routed
# and shared expert 2 each.
MOE = {
    "promoe": MoEConfig(
        router=PrototypeRouterConfig(),
        num_experts=8,
        top_k=1,
        expert="gelu",
        hidden_ratio=2,
        shared_hidden_ratio=2,
        unconditional_expert=True,
        every=2,
    ),
    "dit-moe": MoEConfig(
        router=TopKRouterConfig(),
        num_experts=8,
        top_k=2,
        hidden_ratio=1,
        shared_hidden_ratio=1,
    ),
    "dit": None,
}


def get_config(architecture: str = "promoe") -> Config:
    if architecture not in MOE:
        raise ConfigError(f"digits has no {architecture!r}; allowed: {', '.join(MOE)}")
    return Config(
        name=f"digits-{architecture}",
        model=ModelConfig(
            image_size=8,
            channels=1,
            patch_size=2,
            num_classes=10,
            width=128,
            depth=4,
            heads=4,
            moe=MOE[architecture],
        ),
        objective=RectifiedFlowConfig(time_scale=1000),
        data=DataConfig(source="digits"),
        train=TrainConfig(
            steps=1200,
            batch_size=128,
            learning_rate=1e-3,
            warmup_steps=100,
            schedule="cosine",
            gradient_clip=1.0,
            ema_decay=0.995,
            log_every=50,
            checkpoint_every=300,
            sample_every=300,
        ),
        sample=SampleConfig(solver="heun", steps=25, guidance_scale=1.25),
    )
