"""The device mesh."""

from pydantic.dataclasses import dataclass

from dit_moe.config.rules import MAX_SIZE, RULES, require


@dataclass(frozen=True, config=RULES)
class MeshConfig:
    """Device mesh; -1 means what is left."""

    data: int = -1
    """Copies of the parameters, each with its share of the batch."""
    fsdp: int = 1
    """Parts of every parameter's width; devices gather a layer when they compute it."""
    expert: int = 1
    """Parts of every layer's experts; tokens travel to them. A divisor of model.moe.num_experts."""
    tensor: int = 1
    """Parts of every expert's hidden units; tokens go to all of them. A divisor of these."""

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("data", "fsdp", "expert", "tensor")}
        for name, size in sizes.items():
            require(
                size == -1 or 0 < size <= MAX_SIZE,
                f"{name} is {size}; allowed: -1 or a positive number up to {MAX_SIZE}",
            )
        free = [name for name, size in sizes.items() if size == -1]
        require(
            len(free) <= 1,
            f"{', '.join(free)} are all -1; allowed: -1 for one of them",
        )
