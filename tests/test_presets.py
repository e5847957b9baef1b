import pytest

from dit_moe.config import ConfigError
from dit_moe.config.files import load_file
from dit_moe.config.presets import PRESET_NAMES, preset
from dit_moe.models.parameters import abstract_parameters

# Counted in the peers' public code, position table excluded.
PARAMETERS = {
    "DiT-S/2": 32_865_056,
    "DiT-B/2": 130_315_808,
    "DiT-L/2": 457_840_672,
    "DiT-XL/2": 674_834_720,
    "DiT-MoE-S/2-8E2A": 199_209_248,
    "DiT-MoE-S/2-16E2A": 369_115_424,
    "DiT-MoE-B/2-8E2A": 795_664_928,
    "DiT-MoE-B/2-16E2A": 1_475_215_904,
    "DiT-MoE-L/2-8E2A": 2_823_501_856,
    "DiT-MoE-L/2-16E2A": 5_239_617_568,
    "DiT-MoE-XL/2-8E2A": 4_167_869_216,
    "DiT-MoE-XL/2-16E2A": 7_735_382_816,
    "DiT-MoE-G/2-8E2A": 8_890_244_384,
    "DiT-MoE-G/2-16E2A": 16_503_356_704,
    "ProMoE-S/2": 75_439_120,
    "ProMoE-B/2": 300_398_608,
    "ProMoE-L/2": 1_062_406_160,
    "ProMoE-XL/2": 1_567_420_432,
    "DSMoE-S/2-E16": 96_870_640,  # biases of the routers included
    "DSMoE-B/2-E16": 386_318_704,
    "DSMoE-L/2-E16": 1_368_056_000,
    "DSMoE-3B/2-E16": 3_101_669_264,
    "DSMoE-S/2-E48": 69_238_592,
    "DSMoE-B/2-E48": 275_610_944,
    "DSMoE-L/2-E48": 1_166_944_864,
}


def closed_form(width: int, depth: int, router: int, experts: int) -> int:
    """Parameters of a model of which nobody has published the number.

    Every block has attention and modulation, the even ones a feed-forward of 4 widths, the odd
    ones a router and experts; around them are patches in and out, times, classes and modulation.
    """
    d = width
    linear = lambda a, b: a * b + b  # noqa: E731
    block = linear(d, 3 * d) + linear(d, d) + linear(d, 6 * d)
    feed_forward = linear(d, 4 * d) + linear(4 * d, d)
    ends = linear(16, d) + linear(256, d) + linear(d, d) + 1001 * d + linear(d, 2 * d)
    return depth * block + depth // 2 * (feed_forward + router + experts) + ends + linear(d, 16)


def eight_experts(width: int, depth: int, router: int) -> int:
    feed_forward = 8 * width**2 + 5 * width
    return closed_form(width, depth, router, 8 * feed_forward)


def diffmoe(width: int, depth: int) -> int:
    predictor = width**2 + width + 8 * width + 8
    return eight_experts(width, depth, 8 * width + predictor + 8)  # the last are thresholds


PARAMETERS |= {
    "TC-DiT-L/2-E8": eight_experts(1024, 24, 8 * 1024),
    "EC-DiT-L/2-E8": eight_experts(1024, 24, 8 * 1024),
    "DiffMoE-B/2-E8": diffmoe(768, 12),
    "DiffMoE-L/2-E8": diffmoe(1024, 24),
    "DiffMoE-XL/2-E8": diffmoe(1152, 28),
    "ProMoE-EC-L/2": PARAMETERS["ProMoE-L/2"],  # another rule over the same parameters
}

L_HALVES = 8 * (4 * 1024**2 + 3 * 1024)
PARAMETERS |= {
    "Noisy-DiT-L/2-E8": closed_form(1024, 24, 16 * 1024 + 1, L_HALVES),
    "X-MoE-DiT-L/2-E8": eight_experts(1024, 24, 1025 * 256 + 256 * 8 + 1),
    "AdaMoE-DiT-L/2-E8": closed_form(1024, 24, 16 * 1024 + 1, L_HALVES),
    # 12 columns; two constants of three vectors.
    "MoEPP-DiT-L/2-E8": closed_form(
        1024, 24, 12 * 1024 + 144, 8 * (6.5 * 1024**2 + 4.25 * 1024) + 6 * 1024
    ),
    "Soft-DiT-L/2-E8": eight_experts(1024, 24, 256 * 1024 + 1),
}


def block(width: int) -> int:
    """Attention and modulation."""
    d = width
    return 10 * d**2 + 10 * d


def hecto(width: int, depth: int) -> int:
    """A feed-forward of 4 widths and a GRU of 5/8 of the width in both directions."""
    d, h = width, 5 * width // 8
    directions = 2 * (3 * h * (d + h) + 4 * h + h * d)
    return closed_form(d, depth, 2 * d, 8 * d**2 + 5 * d + directions + d)


def pregated(width: int, depth: int, heads: int) -> int:
    """One router, of 8 columns, on a block of four heads, in place of those of all MoE layers."""
    w = 4 * width // heads
    own = block(w) + 2 * w**2 + 2 * w + 2 * (w**2 + w) + 8 * w
    return eight_experts(width, depth, 0) + 2 * (width * w + w) + own


PARAMETERS |= {
    "Hecto-DiT-S/2": hecto(384, 12),
    "Hecto-DiT-B/2": hecto(768, 12),
    "Hecto-DiT-L/2": hecto(1024, 24),
    "Hecto-DiT-XL/2": hecto(1152, 28),
    # Five experts as wide as a dense feed-forward, two half and one twice as wide.
    "Unlike-DiT-L/2-E8": closed_form(
        1024, 24, 8 * 1024, 64 * 1024**2 + 8 * 1024 + 4096 * (5 + 2 / 2 + 2)
    ),
    # 448 routed networks with a column each, and in 12 layers a fixed one beside them.
    "PR-MoE-DiT-L/2-E32-64": closed_form(1024, 24, 0, 0)
    + 448 * 1024
    + (448 + 12) * (8 * 1024**2 + 5 * 1024),
    "Pregated-DiT-S/2-E8": pregated(384, 12, 6),
    "Pregated-DiT-B/2-E8": pregated(768, 12, 12),
    "Pregated-DiT-L/2-E8": pregated(1024, 24, 16),
    "Pregated-DiT-XL/2-E8": pregated(1152, 28, 16),
}


def test_pr_moe_is_as_large_as_it_was_published():
    """4 billion, as the paper says of its model of 350 million with 32 and 64 experts."""
    assert PARAMETERS["PR-MoE-DiT-L/2-E32-64"] == pytest.approx(4e9, rel=0.1)


def race(width: int, depth: int) -> int:
    """Every block has 32 experts of one width, a hidden layer before the scores, and a guess."""
    d = width
    router, guess = d * (d + 1) + 32 * d + 1, 16 * d + 16
    dense_and_moe = closed_form(d, 2 * depth, router + guess, 32 * (2 * d**2 + 2 * d))
    dense = 10 * d**2 + 10 * d + 8 * d**2 + 5 * d
    return dense_and_moe - depth * dense


PARAMETERS |= {
    "Race-DiT-B/2-4in32": race(768, 12),
    "Race-DiT-M/2-4in32": race(960, 16),
    "Race-DiT-L/2-4in32": race(1024, 24),
    "Race-DiT-XL/2-4in32": race(1152, 28),
}


def test_race_is_as_large_as_it_was_published():
    assert PARAMETERS["Race-DiT-XL/2-4in32"] == pytest.approx(2.788e9, rel=0.004)


def test_closed_form_on_a_published_number():
    # ProMoE's 14 experts have 2 widths; 12 prototypes.
    assert closed_form(1024, 24, 12 * 1024, 14 * (4 * 1024**2 + 3 * 1024)) == 1_062_406_160


def test_every_preset_is_counted():
    assert set(PARAMETERS) == set(PRESET_NAMES)


@pytest.mark.parametrize("pixels", [256, 512])
@pytest.mark.parametrize("name", PRESET_NAMES)
def test_parameter_count(name, pixels):
    config = preset(name, pixels)
    assert config.model.image_size == pixels // 8
    total = sum(p.size for p in abstract_parameters(config.model).values())
    assert total == PARAMETERS[name]


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        ("configs/dit.py:XL/2@512", "DiT-XL/2@512"),
        ("configs/dit_moe.py:G/2-16E2A", "DiT-MoE-G/2-16E2A@256"),
        ("configs/promoe.py:B/2", "ProMoE-B/2@256"),
        ("configs/digits.py", "digits-promoe"),
        ("configs/digits.py:dit-moe", "digits-dit-moe"),
        ("configs/digits.py:promoe-ec", "digits-promoe-ec"),
        ("configs/digits.py:tc-dit", "digits-tc-dit"),
        ("configs/digits.py:tc-sigmoid", "digits-tc-sigmoid"),
        ("configs/digits.py:tc-bias", "digits-tc-bias"),
        ("configs/digits.py:tc-noisy", "digits-tc-noisy"),
        ("configs/digits.py:tc-capacity", "digits-tc-capacity"),
        ("configs/digits.py:x-moe", "digits-x-moe"),
        ("configs/digits.py:soft-moe", "digits-soft-moe"),
        ("configs/patches.py:soft-moe", "patches-soft-moe"),
        ("configs/digits.py:expert-race", "digits-expert-race"),
        ("configs/digits.py:ec-dit", "digits-ec-dit"),
        ("configs/digits.py:diffmoe", "digits-diffmoe"),
        ("configs/digits.py:adamoe", "digits-adamoe"),
        ("configs/digits.py:moe-plus-plus", "digits-moe-plus-plus"),
        ("configs/digits.py:hecto", "digits-hecto"),
        ("configs/digits.py:unlike", "digits-unlike"),
        ("configs/digits.py:pyramid", "digits-pyramid"),
        ("configs/digits.py:pyramid-mix", "digits-pyramid-mix"),
        ("configs/digits.py:pre-gated", "digits-pre-gated"),
        ("configs/digits.py:ds-moe", "digits-ds-moe"),
        ("configs/digits.py:dit", "digits-dit"),
        ("configs/fashion.py:dit-moe", "fashion-dit-moe"),
    ],
)
def test_config_files(spec, name):
    assert load_file(spec).name == name


FILES = {
    "DiT-": "dit.py:",
    "DiT-MoE-": "dit_moe.py:",
    "ProMoE-": "promoe.py:",
    "TC-DiT-": "tc_dit.py:",
    "EC-DiT-": "ec_dit.py:",
    "DiffMoE-": "diffmoe.py:",
    "DSMoE-": "ds_moe.py:",
    "Race-DiT-": "race_dit.py:",
    **{
        f"{name}-DiT-": f"router_dit.py:{name}-DiT-"
        for name in ("Noisy", "X-MoE", "AdaMoE", "MoEPP", "Soft", "Pregated")
    },
    **{f"{name}-DiT-": f"expert_dit.py:{name}-DiT-" for name in ("Hecto", "Unlike", "PR-MoE")},
}


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_config_file_of_every_preset(name):
    # "DiT-" is the beginning of "DiT-MoE-": the longest family is meant.
    family = max((f for f in FILES if name.startswith(f)), key=len)
    spec = f"configs/{FILES[family]}{name.removeprefix(family)}"
    assert load_file(spec).name == f"{name}@256"


def test_errors():
    with pytest.raises(ConfigError, match="preset is 'DiT-Q/2'; allowed: DiT-S/2, "):
        preset("DiT-Q/2")
    with pytest.raises(ConfigError, match="image_pixels is 100; allowed: multiples of 16"):
        preset("DiT-S/2", 100)
    with pytest.raises(ConfigError, match="image size is 'x'"):
        load_file("configs/dit.py:S/2@x")
    with pytest.raises(ConfigError, match="architecture is 'x'; allowed: promoe, promoe-ec"):
        load_file("configs/digits.py:x")


@pytest.mark.parametrize("file", ["digits", "patches"])
def test_slots_are_as_many_as_tokens(file):
    model = load_file(f"configs/{file}.py:soft-moe").model
    assert [moe.rows(model.num_tokens) for moe in model.mixtures] == [1.0] * (model.depth // 2)


def test_published_models_average_as_they_were_published():
    for name in PRESET_NAMES:
        train = preset(name).train
        assert (train.ema_decay, train.ema_warmup) == (0.9999, False)
