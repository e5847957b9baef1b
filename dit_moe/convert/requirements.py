"""What a peer's code asks of a network that is to be written for it."""

from dit_moe.config import BiasSettings, GatedSettings, ModelConfig, MoEConfig


class Requirements:
    """Collects what is not as it should be."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def __call__(self, condition: bool, field: str, value: object, allowed: str) -> None:
        if not condition:
            self.problems.append(f"{field} is {value!r} (allowed: {allowed})")

    def one_of(self, field: str, value: object, *allowed: object) -> None:
        """The value is one of those that are allowed."""
        self(value in allowed, field, value, " or ".join(map(str, allowed)))

    def dense(self, model: ModelConfig) -> None:
        """There is no mixture."""
        self(model.moe is None, "model.moe", "a mixture", "none")

    def no_qk_norm(self, model: ModelConfig) -> None:
        """Queries and keys are not normalised."""
        self(not model.qk_norm, "model.qk_norm", model.qk_norm, "false")

    def mixture(
        self, model: ModelConfig, router: str, expert: str, *every: int
    ) -> MoEConfig | None:
        """The network's mixture, if it is of this kind; None if there is none."""
        moe = model.moe
        self(moe is not None, "model.moe", None, "a mixture")
        if moe is None:
            return None
        self.one_of("model.moe.router.name", moe.router.name, router)
        if isinstance(moe.router, GatedSettings):
            self.one_of("model.moe.router.gate", moe.router.gate, "softmax")
        if isinstance(moe.router, BiasSettings):
            published = type(moe.router).__dataclass_fields__["bias"].default
            self.one_of("model.moe.router.bias", moe.router.bias, published)
            capacity = moe.router.capacity_factor
            self.one_of("model.moe.router.capacity_factor", capacity, None)
        self.one_of("model.moe.expert", moe.expert, expert)
        self.one_of("model.moe.every", moe.every, *every)
        self.one_of("model.moe.cheap_experts", moe.cheap_experts, ())
        self.one_of("model.moe.shared_mix", moe.shared_mix, "sum")
        self.one_of("model.moe.unlike", moe.unlike, ())
        self.one_of("model.moe.columns", moe.columns, None)
        self.one_of("model.moe.choose_by", moe.choose_by, "token")
        return moe
