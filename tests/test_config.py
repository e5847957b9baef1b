import dataclasses
import json

import pytest
from pydantic.dataclasses import dataclass

from dit_moe.config import (
    Config,
    ConfigError,
    DDPMConfig,
    GuidanceConfig,
    ModelConfig,
    MoEConfig,
    PrototypeRouterConfig,
    SolverConfig,
    divisors,
)
from dit_moe.config.files import (
    FORMAT,
    differences,
    from_dict,
    load_file,
    load_json,
    override,
    to_dict,
    to_json,
)
from dit_moe.config.objective import ObjectiveSettings
from dit_moe.config.rules import RULES
from dit_moe.config.run_flags import GUIDANCE_FLAGS, SOLVER_FLAGS
from dit_moe.convert.constructors import constructor_arguments

MODEL = ModelConfig(width=64, depth=4, heads=4, moe=MoEConfig())
CONFIG = Config(name="test", model=MODEL)


def test_json_round_trip(tmp_path):
    config = dataclasses.replace(
        CONFIG,
        model=dataclasses.replace(MODEL, moe=MoEConfig(router=PrototypeRouterConfig(), top_k=1)),
        objective=DDPMConfig(betas="cosine"),
    )
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert load_json(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train.stepz=3", "config.train.stepz is not a field; allowed: steps, "),
        ("foo.bar=1", "config.foo is not a field; allowed: name, model, "),
        ("model.width.x=1", "config.model.width.x is not a field"),
        ("train.steps=1.5", "config.train.steps is '1.5'; input should be a valid integer"),
        ("train.batch_size=0", "config.train.batch_size is '0'; input should be greater than 0"),
        ("model.heads=5", "config.model.heads is 5; allowed: a divisor of width 64 (1, 2, 4, "),
        ("model.width=66", "config.model.heads is 4; allowed: a divisor of width 66"),
        ("model.moe.top_k=9", "config.model.moe.top_k is 9; allowed: 1 to num_experts (8)"),
        ("model.moe.every=3", "config.model.moe.every is 3; allowed: a divisor of depth 4"),
        ("model.moe.hidden_ratio=0.3", "config.model.moe.hidden_ratio is 0.3; allowed: a ratio "),
        (
            "model.moe.unconditional_expert=true",
            "allowed: true only with router 'prototype' or 'prototype_expert_choice'",
        ),
        (
            "model.moe.router.name=expert_choice --config.model.image_size=4 "
            "--config.model.moe.top_k=1",
            "config.model.moe.num_experts is 8 with router 'expert_choice', top_k 1 and 4 tokens "
            "an image; allowed: 1 to 4",
        ),
        (
            "model.moe.router.name=batch_pool --config.model.moe.router.inference=x",
            "'token' or 'batch'",
        ),
        ("model.patch_size=3", "config.model.patch_size is 3; allowed: a divisor of image_size 32"),
        ("model.dtype=fp8", "config.model.dtype is 'fp8'; input should be 'float32' or 'bfloat16'"),
        ("objective.name=foo", "config.objective.name is 'foo'; allowed: 'ddpm', 'rectified_flow'"),
        ("objective.shift=x", "config.objective.shift is 'x'; input should be a valid number"),
        ("objective.shift=1e8", "config.objective.shift is '1e8'; input should be less than or"),
        ("sample.solver=ancestral", "config.sample.solver is 'ancestral' with objective 'rectifi"),
        ("sample.time_grid=x", "config.sample.time_grid is 'x'; allowed: uniform, quadratic, kar"),
        ("sample.eta=1", "config.sample.eta is 1.0 with solver 'euler'; allowed: only with solver"),
        ("sample.shift=2", "config.sample.shift is 2.0 with time_grid 'uniform'; allowed: only"),
        ("data.source=prepared", "config.data.path is '' with source 'prepared'; allowed: folders"),
        ("data.source=patches --config.data.path=a,b", "config.data.path is 'a, b' with source"),
        ("data.validation_path=x", "config.data.validation_path is 'x' with source 'digits'; al"),
        ("data.source=cats", "config.data.source is 'cats'; allowed: 'digits', 'patches', "),
        (
            "data.source=prepared --config.data.path=a,b --config.data.mix_weights=1",
            "config.data.mix_weights has 1 numbers; allowed: none, or one for each of the 2",
        ),
        ("data.classes=1,2,1", "config.data.classes is 1, 2, 1; allowed: every class once"),
        ("data.classes=1,-2", "config.data.classes.1 is '-2'; input should be greater"),
        ("objective.name=ddpm --config.objective.timesteps=20", "timesteps is 20 with betas"),
        ("objective.name=ddpm --config.sample.steps=1001", "config.sample.steps is 1001; allowed"),
        ("objective.name=ddpm --config.objective.shift=1", "config.objective.shift is not a field"),
        ("train.learning_rate=inf", "config.train.learning_rate is 'inf'; input should be a fin"),
        ("model.mlp_ratio=0.001", "config.model.mlp_ratio is 0.001; allowed: a ratio that gives"),
        ("seed=4294967296", "config.seed is '4294967296'; input should be less than 4294967296"),
        ("train.gradient_clip.x=1", "config.train.gradient_clip.x is not a field; config.train.g"),
        ("mesh.data=0", "config.mesh.data is 0; allowed: -1 or a positive number"),
        ("mesh.fsdp=4294967296", "config.mesh.fsdp is 4294967296; allowed: -1 or a positive"),
        ("model.width=2147483648", "config.model.width is '2147483648'; input should be less than"),
        ("data.classes=2147483648", "config.data.classes.0 is '2147483648'; input should be less"),
        ("model.mlp_ratio=1e300", "config.model.mlp_ratio is 1e+300; allowed: a ratio that gives"),
        ("sample.guidance.interval=nan,1", "config.sample.guidance.interval.0 is 'nan'; input sh"),
        ("sample.guidance.scale=-1", "config.sample.guidance.scale is -1.0; allowed: 0 to 1000"),
        ("sample.guidance.schedule=x", "config.sample.guidance.schedule is 'x'; allowed: const"),
        ("sample.guidance.guide=auto", "config.sample.guidance.guide is 'auto'; allowed: cfg, se"),
        ("sample.eta=nan", "config.sample.eta is 'nan'; input should be a finite number"),
        ("train.ema_decay=nan", "config.train.ema_decay is 'nan'; input should be a finite number"),
        (f"model.width={'9' * 9999}", "...; unable to parse input string as an integer"),
        ("name=\udcff", "config.name is '\\udcff'; allowed: text in UTF-8"),
        ("train.accumulation=3", "config.train.accumulation is 3; allowed: a divisor of batch_siz"),
        ("train.warmup_steps=400000", "config.train.warmup_steps is 400000; allowed: 0 to steps"),
    ],
)
def test_bad_overrides_are_one_sentence(text, message):
    with pytest.raises(ConfigError) as error:
        override(CONFIG, f"--config.{text}".split())
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_divisors():
    for number in (1, 2, 12, 36, 97):
        assert divisors(number) == [d for d in range(1, number + 1) if number % d == 0]
    assert divisors(2**31 - 1) == [1, 2**31 - 1]  # a prime, of which no one waits for the half


def test_unknown_argument():
    with pytest.raises(ConfigError, match="unknown argument '--steps=3'"):
        override(CONFIG, ["--steps=3"])


def test_overrides():
    config = override(
        CONFIG,
        [
            "--config.train.steps=7",
            "--config.train.gradient_clip=0.5",
            "--config.model.qk_norm=true",
            "--config.model.remat=none",
            "--config.model.moe.router.name=prototype",
            "--config.model.moe.router.contrastive_temperature=0.1",
            "--config.data.source=prepared",
            "--config.data.path=somewhere, elsewhere",
            "--config.data.classes=4,2",
        ],
    )
    assert config.train.steps == 7
    assert config.data.path == ("somewhere", "elsewhere")
    assert config.data.classes == (4, 2)
    assert config.train.gradient_clip == 0.5
    assert config.model.qk_norm is True
    assert config.model.remat == "none"
    assert config.model.moe is not None
    assert config.model.moe.router == PrototypeRouterConfig(contrastive_temperature=0.1)
    assert override(config, ["--config.train.gradient_clip=none"]).train.gradient_clip is None
    assert override(config, ["--config.model.moe=none"]).model.moe is None
    assert CONFIG.train.steps == 400_000


def test_one_line_swaps_the_objective():
    heun = override(CONFIG, ["--config.sample.solver=heun"])
    config = override(heun, ["--config.objective.name=ddpm"])
    assert config.objective == DDPMConfig()
    assert config.sample.solver == "auto"
    config = override(heun, ["--config.sample.solver=ddim", "--config.objective.name=ddpm"])
    assert config.sample.solver == "ddim"


def test_facts_of_an_objective_have_no_default():
    @dataclass(frozen=True, config=RULES)
    class Bare(ObjectiveSettings):
        name: str = "bare"

    with pytest.raises(ConfigError, match="'bare' does not tell its sampled_timesteps"):
        SolverConfig().resolve(Bare())
    with pytest.raises(ConfigError, match="'bare' does not tell whether it learns_variance"):
        _ = Bare().learns_variance
    with pytest.raises(ConfigError, match="'bare' does not tell its flow_time_scale"):
        constructor_arguments("sit", MODEL, Bare())


def test_another_solver_leaves_the_options_of_the_old_one_behind():
    texts = ["solver=ddim", "eta=0.5", "time_grid=shifted", "shift=2"]
    config = override(CONFIG, [f"--config.sample.{text}" for text in texts])
    ddim = SolverConfig("ddim", 250, time_grid="shifted", eta=0.5, shift=2.0)
    assert config.sample.updated(config.objective) == ddim
    for given, expected in (
        ({"solver": "heun"}, SolverConfig("heun", 250, time_grid="shifted", shift=2.0)),
        ({"solver": "dopri5"}, SolverConfig("dopri5", 250, tolerance=1e-3)),
        ({"time_grid": "karras", "steps": 9}, SolverConfig("ddim", 9, time_grid="karras", eta=0.5)),
        ({"solver": "auto"}, SolverConfig("euler", 250, time_grid="shifted", shift=2.0)),
    ):
        assert config.sample.updated(config.objective, **given) == expected
    ddpm = override(config, ["--config.objective.name=ddpm"])
    assert ddpm.sample.resolve(ddpm.objective) == SolverConfig("ancestral", 250)


def test_another_guide_leaves_the_weak_routing_behind():
    texts = ["guide=self_contrast", "weak_routing=top_1", "scale=2", "interval=0.2,0.7"]
    config = override(CONFIG, [f"--config.sample.guidance.{text}" for text in texts])
    guidance = config.sample.guidance
    interval = (0.2, 0.7)
    assert guidance == GuidanceConfig("self_contrast", 2, interval=interval, weak_routing="top_1")
    assert guidance.updated(guide="cfg", scale=3.0) == GuidanceConfig(scale=3, interval=interval)
    assert guidance.updated(guide=None, scale=None) == guidance
    with pytest.raises(ConfigError, match=r"guidance\.weight is not a field of the config"):
        guidance.updated(weight=1)


def test_solvers_and_guidance_have_a_flag_for_each_field():
    fields = {field.name for field in dataclasses.fields(GuidanceConfig)}
    assert set(GUIDANCE_FLAGS.values()) == fields
    assert set(SOLVER_FLAGS) == {field.name for field in dataclasses.fields(SolverConfig)}


def test_many_fields_of_a_variant_in_any_order():
    config = override(
        override(CONFIG, ["--config.model.moe=none"]),
        [
            "--config.model.moe.router.activation=sigmoid",
            "--config.model.moe.router.contrastive_coef=2",
            "--config.model.moe.num_experts=3",
            "--config.model.moe.top_k=1",
            "--config.model.moe.router.name=prototype",
            "--config.model.moe.router.contrastive_temperature=0.1",
        ],
    )
    assert config.model.moe == MoEConfig(
        router=PrototypeRouterConfig(
            activation="sigmoid", contrastive_coef=2, contrastive_temperature=0.1
        ),
        num_experts=3,
        top_k=1,
    )


def test_learned_variance_needs_its_channels():
    values = to_dict(CONFIG) | {"objective": {"name": "ddpm", "variance": "learned_range"}}
    with pytest.raises(ConfigError, match=r"config\.objective\.variance is 'learned_range' with"):
        from_dict(values)


def test_differences():
    other = override(CONFIG, ["--config.train.steps=7", "--config.model.heads=8"])
    assert differences(CONFIG, other) == ["model.heads", "train.steps"]
    assert differences(CONFIG, CONFIG) == []


def test_config_json_errors(tmp_path):
    path = tmp_path / "config.json"
    with pytest.raises(ConfigError, match="does not exist"):
        load_json(path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not valid JSON"):
        load_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ConfigError, match="is nested deeper than 50 levels"):
        load_json(path)
    for values in (None, [], "x", {"name": [], "model": 3}, {"objective": {"name": {}}}):
        numbered = {"format": FORMAT, **values} if isinstance(values, dict) else values
        path.write_text(json.dumps(numbered))
        with pytest.raises(ConfigError, match=r"config\.json: config"):
            load_json(path)
    path.write_text(json.dumps({"format": FORMAT, **to_dict(CONFIG), "extra": 1}))
    with pytest.raises(ConfigError, match=r"config\.extra is not a field of the config"):
        load_json(path)
    path.write_text(json.dumps({"format": FORMAT, "name": "x"}))
    with pytest.raises(ConfigError, match=r"config\.model is missing"):
        load_json(path)


def test_runs_of_before_mean_what_they_did(tmp_path):
    path = tmp_path / "config.json"
    values = {"format": FORMAT, **to_dict(CONFIG)}
    assert values["train"].pop("ema_warmup")  # the default of runs that begin
    for older in (
        values,
        {**values, "train": {}},
        {k: v for k, v in values.items() if k != "train"},
    ):
        path.write_text(json.dumps(older))
        assert not load_json(path).train.ema_warmup


@pytest.mark.parametrize(
    ("number", "told"),
    [
        ({}, "of format 1, .* format 2 alone: train again, or read it with dit_moe 0.1.0"),
        ({"format": 1}, "of format 1, .*: train again, or read it with dit_moe 0.1.0"),
        ({"format": 3}, "of format 3, .* format 2 alone: read it with a newer dit_moe"),
        ({"format": 0}, "of format 0, .*: read it with a newer dit_moe"),
        ({"format": True}, "of format True, "),
        ({"format": "2"}, "of format '2', "),
        ({"format": None}, "of format None, "),
    ],
)
def test_another_format_is_refused(tmp_path, number, told):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**to_dict(CONFIG), **number}))
    with pytest.raises(ConfigError, match=rf"^{path} is {told}"):
        load_json(path)


def test_config_files(tmp_path):
    with pytest.raises(ConfigError, match="which is not a file"):
        load_file("configs/nothing.py")
    path = tmp_path / "empty.py"
    path.write_text("")
    with pytest.raises(ConfigError, match="has no attribute 'get_config'; expected a file that"):
        load_file(str(path))
    path.write_text(
        "from dit_moe.config import *\n"
        "def get_config(width='64'):\n"
        "    return Config(name='x', model=ModelConfig(width=int(width), depth=2, heads=3))\n"
    )
    with pytest.raises(ConfigError, match=r"config\.heads is 3; allowed: a divisor of width 64"):
        load_file(str(path))
    assert load_file(f"{path}:96", ["--config.seed=3"]).seed == 3
    path.write_text("def get_config():\n    return 3\n")
    with pytest.raises(ConfigError, match="get_config returned 3; allowed: a Config"):
        load_file(str(path))
    with pytest.raises(ConfigError, match="gives no config: TypeError"):
        load_file(f"{path}:argument")
    path.write_text("def (\n")
    with pytest.raises(ConfigError, match="gives no config: SyntaxError"):
        load_file(str(path))
