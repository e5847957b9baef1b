import pytest

from dit_moe.config import ConfigError
from dit_moe.config_io import load_file
from dit_moe.nn.parameters import abstract_parameters
from dit_moe.presets import PRESET_NAMES, preset

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
}


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
        ("configs/digits.py:dit", "digits-dit"),
    ],
)
def test_config_files(spec, name):
    assert load_file(spec).name == name


@pytest.mark.parametrize("name", PRESET_NAMES)
def test_config_file_of_every_preset(name):
    family, _, size = name.rpartition("-") if "MoE-" not in name else name.partition("MoE-")
    file = {"DiT": "dit", "DiT-": "dit_moe", "Pro": "promoe"}[family]
    assert load_file(f"configs/{file}.py:{size}").name == f"{name}@256"


def test_errors():
    with pytest.raises(ConfigError, match="preset is 'DiT-Q/2'; allowed: DiT-S/2, "):
        preset("DiT-Q/2")
    with pytest.raises(ConfigError, match="image_pixels is 100; allowed: multiples of 16"):
        preset("DiT-S/2", 100)
    with pytest.raises(ConfigError, match="image size is 'x'"):
        load_file("configs/dit.py:S/2@x")
    with pytest.raises(ConfigError, match="architecture is 'x'; allowed: promoe, dit-moe, dit"):
        load_file("configs/digits.py:x")
