"""Pictures that are no squares, from a folder to judged samples; here grey ones of 8x12."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from dit_moe.analysis import pictures
from dit_moe.commands import prepare, preview
from dit_moe.config import ConfigError, DataConfig, ModelConfig, SampleConfig
from dit_moe.config.files import from_dict, load_file, override, to_json
from dit_moe.config.sizes import parse_size
from dit_moe.convert.constructors import constructor_arguments
from dit_moe.data.prepare.decode import center_crop
from dit_moe.data.prepared import Prepared
from dit_moe.data.sources import build_sources
from dit_moe.sampling.known_images import SteeringRequest, read_steering
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from dit_moe.storage import images
from dit_moe.training.loop import train
from eval.classes import command as judge
from eval.fid import main as fid
from tests.prepared_sets import write_pictures
from tests.tiny import tiny

WIDE = ModelConfig(image_size=(8, 12), channels=1, num_classes=2, width=16, depth=2, heads=2)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """24 crops of a photograph in two classes, as 8x12 grey."""
    root = tmp_path_factory.mktemp("rectangles")
    rng = np.random.default_rng(0)
    for i in range(24):
        path = root / "in" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(exist_ok=True, parents=True)
        top, left = rng.integers(450, size=2)
        Image.fromarray(data.astronaut()[top : top + 20, left : left + 30]).save(path)
    flags = {"input": root / "in", "output": root / "out", "autoencoder": "none", "workers": 1}
    flags |= {"image_size": "8x12", "channels": 1, "validation_share": 0.4}
    assert prepare.main([f"--{name}={value}" for name, value in flags.items()]) == 0
    return root / "out"


@pytest.fixture(scope="module")
def run(prepared, tmp_path_factory):
    workdir, config = tmp_path_factory.mktemp("run"), tiny(None, steps=1, sample_every=1)
    source = DataConfig(source="prepared", path=(str(prepared),), flip=True)
    config = dataclasses.replace(
        config, model=WIDE, data=source, sample=SampleConfig(solver="euler", steps=2)
    )
    assert train(config, workdir) is None
    return workdir


def test_sizes_as_they_are_given():
    for given in ("8x12", "8,12", "8 x 12", [8, 12], (8, 12)):
        assert parse_size(given) == (8, 12)
    for given in ("8", 8, "8x8", [8, 8]):
        assert parse_size(given) == 8
    config = dataclasses.replace(tiny(None), model=WIDE)
    assert config.model.grid == (4, 6)
    assert config.model.num_tokens == 24
    values = json.loads(to_json(config))
    values.pop("format")
    assert from_dict(values) == config
    assert override(config, ["--config.model.image_size=6x4"]).model.image_shape == (6, 4, 1)
    for wrong in ("8x", "x", "1.5", "0", "8x12x2", "-8", "70000"):
        message = r"config.model.image_size is .*; allowed: a side from 1 to 65536, or height and"
        with pytest.raises(ConfigError, match=message):
            override(config, [f"--config.model.image_size={wrong}"])
    message = (
        r"patch_size is 8; allowed: a divisor of image_size 8x12 \(1, 2, 4\), or an image_size "
        "that it divides, such as 8x16$"
    )
    with pytest.raises(ConfigError, match=message):
        override(config, ["--config.model.patch_size=8"])


@pytest.mark.parametrize("size", [(30, 60), (100, 40), (64, 64), (300, 451), (400, 500)])
def test_the_crop_is_the_largest_of_its_shape(size):
    """Scaled as little as covers it: the same as the square's rule for the side that fits."""
    photograph = Image.fromarray(data.chelsea())  # 451 x 300
    crop = center_crop(photograph, size)
    assert (crop.height, crop.width) == size
    image, (height, width) = photograph, size
    while image.height >= 2 * height and image.width >= 2 * width:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(height / image.height, width / image.width)
    image = image.resize(
        (round(scale * image.width), round(scale * image.height)), Image.Resampling.BICUBIC
    )
    assert image.height == height or image.width == width
    top, left = (image.height - height) // 2, (image.width - width) // 2
    pixels = np.asarray(image)[top : top + height, left : left + width]
    np.testing.assert_array_equal(np.asarray(crop), pixels)


def test_a_prepared_set_and_its_preview(prepared, tmp_path):
    card = Prepared(prepared).card
    assert (card.image_size, card.shape) == ((8, 12), (8, 12, 1))
    assert json.loads((prepared / "job.json").read_text())["image_size"] == "8x12"
    assert preview.main([f"--input={prepared}", f"--output={tmp_path / 'seen.png'}"]) == 0
    config = load_file(f"configs/prepared.py:{prepared}")
    assert config.model.image_size == (8, 12)
    assert config.model.patch_size == 2
    assert config.model.grid == (4, 6)


@pytest.mark.parametrize(
    ("sides", "patch"), [((48, 64), 8), ((64, 48), 8), ((4, 6), 1), ((35, 21), 7), ((90, 160), 0)]
)
def test_patches_of_rectangles(sides, patch, tmp_path):
    write_pictures(tmp_path, np.zeros((2, *sides, 1), np.uint8), np.arange(2), classes=2)
    card = json.loads((tmp_path / "prepared.json").read_text())
    (tmp_path / "prepared.json").write_text(json.dumps({**card, "image_size": sides}))
    spec = f"configs/prepared.py:{tmp_path}"
    if patch:
        assert load_file(spec).model.patch_size == patch
        return
    message = "90x160, which no patch divides into 5 to 8 along the longer side; .* such as 92x161$"
    with pytest.raises(ConfigError, match=message):
        load_file(spec)


def test_from_a_run_to_judged_samples(run, prepared, tmp_path):
    sampler = RunSampler(run, ema=True, batch_size=8, num_samples=6)
    assert sampler.image_shape == (8, 12, 1)
    npz, png = write_sample_set(sampler, tmp_path)
    with np.load(npz) as archive:
        drawn, labels = archive["arr_0"], archive["arr_1"]
    assert drawn.shape == (6, 8, 12, 1)
    titles = ["ab"[label] for label in labels]
    with Image.open(png) as grid:
        np.testing.assert_array_equal(np.asarray(grid), np.asarray(images.grid(drawn, titles)))
        # Three columns of 12x8, six times as large, and two rows.
        assert grid.height == 2 * (6 * 8 + 6)
    command = ["--data", str(prepared), "--samples", str(npz), "--picture", str(tmp_path / "p.png")]
    assert judge.main([*command, "--output", str(tmp_path / "judged.json")]) == 0
    result = json.loads((tmp_path / "judged.json").read_text())
    assert result["samples"]["count_per_class"] == {"a": 3, "b": 3}
    assert result["heldout"]["count"] == Prepared(prepared).card.num_validation


def test_another_size_is_told(run, tmp_path, capsys):
    np.savez(tmp_path / "tall.npz", np.zeros((4, 12, 8, 1), np.uint8))
    command = [
        "--workdir",
        str(run),
        "--num_samples",
        "4",
        "--reference",
        str(tmp_path / "tall.npz"),
    ]
    command += ["--features", "digits", "--output", str(tmp_path / "out.json")]
    assert fid(command) == 2
    error = capsys.readouterr().err
    assert "holds images of 8x12, but" in error
    assert "of 12x8" in error


def test_what_is_known_of_rectangles(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "wide.npz", rng.integers(0, 256, (2, 8, 12, 1)).astype(np.uint8))
    for name, shape in (("mask", (8, 12)), ("turned", (12, 8))):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{name}.png")
    request = SteeringRequest("inpaint", tmp_path / "wide.npz", mask=tmp_path / "mask.png")
    assert read_steering(request, WIDE).known.shape == (2, 8, 12, 1)
    turned = dataclasses.replace(request, mask=tmp_path / "turned.png")
    with pytest.raises(ConfigError, match="of 12x8; allowed: 8x12"):
        read_steering(turned, WIDE)
    small = SteeringRequest("super_resolution", tmp_path / "wide.npz", factor=4)
    assert read_steering(small, WIDE).known.shape == (2, 2, 3, 1)
    with pytest.raises(ConfigError, match=r"a divisor of image_size 8x12 \(2, 4\)"):
        read_steering(dataclasses.replace(small, factor=3), WIDE)


def test_sources_of_rectangles(tmp_path):
    for name, sides in (("wide", (8, 12)), ("tall", (12, 8))):
        write_pictures(tmp_path / name, np.zeros((4, *sides, 1), np.uint8), np.arange(4) % 2)
    paths = [str(tmp_path / name) for name in ("wide", "tall")]
    model = dataclasses.replace(WIDE, num_classes=10)
    assert len(build_sources(DataConfig("prepared", path=(paths[0],)), model)) == 1
    # Shapes that differ are mixed resolutions.
    assert len(build_sources(DataConfig("prepared", path=tuple(paths)), model)) == 2
    message = r"image_size is 8x12 .* examples of 12x8; allowed: 12x8"
    with pytest.raises(ConfigError, match=message):
        build_sources(DataConfig("prepared", path=(paths[1],)), model)


def test_formats_of_squares_refuse():
    config = dataclasses.replace(tiny(None), model=WIDE)
    with pytest.raises(ConfigError, match=r"model.image_size is '?8x12.*allowed: a square"):
        constructor_arguments("dit", config.model, config.objective)


def test_maps_of_positions_have_the_shape_of_the_picture():
    count_LxBxSxE = np.ones((1, 2, 24, 3))
    assert pictures._position(count_LxBxSxE, ["block 1"], (4, 6)).startswith(b"\x89PNG")
