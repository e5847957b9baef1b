"""From pictures on disk to samples that keep to them."""

import dataclasses
import random
import shutil
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import dit_moe.commands.sample as sample
from dit_moe.config import ConfigError, DataConfig, ModelConfig
from dit_moe.data.classes import ModelClasses
from dit_moe.models.parameters import init_parameters
from dit_moe.sampling import sampler as sampling
from dit_moe.sampling.known_classes import own_labels
from dit_moe.sampling.known_images import SteeringRequest, read_steering
from dit_moe.sampling.request import build_request
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.storage.images import to_uint8
from tests.analysis.fresh_run import write_fresh_run
from tests.damaged_picture import write_damaged_png
from tests.tiny import tiny

RNG = np.random.default_rng(0)
LEFT = np.zeros((8, 8), bool)
LEFT[:, :4] = True
COLOUR = ModelConfig(image_size=4, channels=3, num_classes=3, width=8, depth=1, heads=1)
GREY = tiny(None).model


@pytest.fixture
def files(tmp_path) -> Path:
    """Pictures of both models, whole and measured, and a mask."""
    Image.fromarray(np.where(LEFT, 0, 255).astype(np.uint8)).save(tmp_path / "mask.png")
    write_damaged_png(tmp_path / "damaged.png")
    (tmp_path / "postscript.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    colour, digits = RNG.integers(0, 256, (2, 4, 4, 3)), RNG.integers(0, 256, (3, 8, 8, 1))
    np.savez(tmp_path / "digits.npz", digits.astype(np.uint8), np.array([7, 1, 2]))
    np.savez(tmp_path / "small.npz", digits[:, ::2, ::2, 0].astype(np.uint8))
    np.savez(tmp_path / "colour.npz", colour.astype(np.uint8))
    (tmp_path / "grey").mkdir()
    for i in range(2):
        Image.fromarray(colour[i, ..., 0].astype(np.uint8)).save(tmp_path / f"grey/{i}.png")
    for name, second in (("deep", np.uint16), ("mixed", np.uint8)):
        shutil.copytree(tmp_path / "grey", tmp_path / name)
        picture = colour[1] if name == "mixed" else 257 * colour[1, ..., 0]
        Image.fromarray(picture.astype(second)).save(tmp_path / name / "1.png")
    return tmp_path


def arrays(path: Path) -> np.ndarray:
    with np.load(path, allow_pickle=False) as archive:
        return archive["arr_0"]


def draw(model: ModelConfig, steering, solver=None, **settings) -> np.ndarray:
    config = dataclasses.replace(tiny(None), model=model)
    request = build_request(
        config, num_samples=5, integration={"solver": solver, "steps": 3}, **settings
    )
    sampler = sampling.build_sampler(config, request, steering=steering)
    parameters = jax.jit(lambda key: init_parameters(model, key))(jax.random.key(0))
    rng = np.random.default_rng(1)
    parameters = {p: v + 0.1 * rng.normal(size=v.shape) for p, v in parameters.items()}
    drawn = sampling.generate(sampler, parameters, request, batch_size=4, steering=steering)
    return np.concatenate(list(drawn))


def test_inpainting_keeps_what_is_known_bit_by_bit(files):
    request = SteeringRequest("inpaint", files / "digits.npz", mask=files / "mask.png")
    steering = read_steering(request, GREY)
    np.testing.assert_array_equal(steering.labels, [7, 1, 2])
    x = draw(GREY, steering, solver="heun", guidance={"scale": 2.0})
    original = arrays(files / "digits.npz")[[0, 1, 2, 0, 1]]
    known = original.astype(np.float32) / np.float32(127.5) - 1
    np.testing.assert_array_equal(x[:, LEFT], known[:, LEFT])
    assert (np.abs(x - known)[:, ~LEFT] > 1e-3).mean() > 0.9
    np.testing.assert_array_equal(to_uint8(x)[:, LEFT], original[:, LEFT])
    shown = steering.pictures(np.arange(5))
    np.testing.assert_array_equal(shown[:, LEFT], original[:, LEFT])
    assert (shown[:, ~LEFT] == 128).all()


def test_a_small_picture_is_the_mean_of_its_enlargement(files):
    request = SteeringRequest("super_resolution", files / "small.npz")
    steering = read_steering(request, GREY)
    x = draw(GREY, steering)
    small = arrays(files / "small.npz")[[0, 1, 2, 0, 1]][..., None].astype(float)

    def means(x):
        return x.reshape(5, 4, 2, 4, 2, 1).mean(axis=(2, 4))

    np.testing.assert_allclose(means(x), small / 127.5 - 1, atol=1e-5)
    # Nothing is lost where a picture ends at black and white.
    np.testing.assert_allclose(means(to_uint8(x).astype(float)), small, atol=0.6)


@pytest.mark.parametrize("name", ["grey", "colour.npz"])
def test_colours_have_the_mean_of_the_grey_picture(files, name):
    steering = read_steering(SteeringRequest("colorize", files / name), COLOUR)
    x = draw(COLOUR, steering)
    colour = arrays(files / "colour.npz") / 127.5 - 1
    grey = colour.mean(axis=-1) if name == "colour.npz" else colour[..., 0]
    np.testing.assert_allclose(x.mean(axis=-1), grey[[0, 1, 0, 1, 0]], atol=1e-5)
    assert x.std(axis=-1).min() > 1e-3


def test_sixteen_bits_are_read_as_eight(files):
    known = [
        read_steering(SteeringRequest("colorize", files / name), COLOUR).known
        for name in ("grey", "deep")
    ]
    np.testing.assert_array_equal(*known)


def test_strength_0_is_no_steering(files):
    request = SteeringRequest("super_resolution", files / "small.npz", strength=0.0)
    np.testing.assert_array_equal(draw(GREY, read_steering(request, GREY)), draw(GREY, None))


def test_damaged_files_are_told_in_a_sentence(tmp_path):
    """Bytes of an .npz changed at random, and a header that no parser ends."""
    arrays = {"arr_0": RNG.integers(0, 256, (20, 8, 8, 1)).astype(np.uint8), "arr_1": np.arange(20)}
    np.savez_compressed(tmp_path / "whole.npz", **arrays)
    whole, rng, path = (tmp_path / "whole.npz").read_bytes(), random.Random(0), tmp_path / "x.npz"
    request, refused = SteeringRequest("super_resolution", path), 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(rng.choice([1, 2, 4])):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            read_steering(request, GREY)
        except ConfigError:
            refused += 1
    assert refused > 100
    header = b"(" * 3000 + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        length = len(header).to_bytes(2, "little")
        archive.writestr("arr_0.npy", b"\x93NUMPY\x01\x00" + length + header)
    with pytest.raises(ConfigError, match=r"which cannot be read; allowed: an \.npz with"):
        read_steering(request, GREY)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([2**64 - 1, 1, 2], np.uint64), "has labels from 1 to 18446744073709551615"),
        (np.array([0.5, 1, 2]), "with float64 labels; allowed: whole numbers"),
        (np.array(["a", 1, None], object), "pickled Python objects, which are refused"),
    ],
)
def test_labels_that_are_no_classes(files, labels, message):
    np.savez(files / "bad.npz", arrays(files / "digits.npz"), labels)
    with pytest.raises(ConfigError) as error:
        read_steering(SteeringRequest("super_resolution", files / "bad.npz"), GREY)
    assert message in str(error.value)


@pytest.fixture(scope="module")
def some_classes(tmp_path_factory) -> Path:
    """A run on the digits 9, 4 and 1."""
    model = dataclasses.replace(GREY, num_classes=3)
    config = dataclasses.replace(tiny(None), data=DataConfig(classes=(9, 4, 1)), model=model)
    return write_fresh_run(tmp_path_factory.mktemp("run"), config)


def test_labels_of_a_file_are_those_of_the_run_by_its_class_numbers(files, some_classes):
    def classes(label, numbers=None, **settings) -> tuple[int, ...]:
        beside = {} if numbers is None else {"class_numbers": np.array(numbers)}
        np.savez(files / "some.npz", arrays(files / "digits.npz"), np.array(label), **beside)
        steering = SteeringRequest("super_resolution", files / "some.npz")
        how = {"ema": True, "batch_size": 8, "num_samples": 3, **settings}
        return RunSampler(some_classes, steering=steering, **how).request.classes

    assert classes([0, 1, 2], [9, 4, 1]) == (0, 1, 2)
    assert classes([0, 1, 1], [1, 9]) == (2, 0, 0)
    with pytest.raises(ConfigError, match="has pictures of class 7, which the model does not have"):
        classes([0, 1, 2], [9, 4, 7])
    with pytest.raises(ConfigError, match=r"labels without class_numbers, .* 9, 4, 1 of the data"):
        classes([0, 1, 2])
    assert classes([0, 1, 2], classes=(1,)) == (1,)
    with pytest.raises(ConfigError, match=r"some\.npz': class_numbers is of 2 classes, but"):
        classes([0, 1, 2], [9, 4])


def test_classes_are_the_same_by_name_where_both_have_names():
    pets = ModelClasses((0, 1), ("cat", "dog"))
    label_M = np.array([1, 0, 1])
    assert own_labels(label_M, ModelClasses((0, 1), ("dog", "cat")), pets) == (0, 1, 0)
    assert own_labels(label_M, ModelClasses((0, 1), ()), pets) == (1, 0, 1)
    assert own_labels(label_M, None, pets) == (1, 0, 1)
    with pytest.raises(ConfigError, match="class 'fox', which the model does not have; allowed: c"):
        own_labels(label_M, ModelClasses((0, 1), ("cat", "fox")), pets)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (GREY, {"steer": "x"}, "steer is 'x'; allowed: inpaint, super_resolution, colorize"),
        (GREY, {"strength": 2.0}, "steer_strength is 2.0; allowed: 0 to 1"),
        (GREY, {"factor": 2}, "factor is '2' with steer 'inpaint'; allowed: only with steer"),
        (GREY, {}, "steer is 'inpaint' without mask; allowed"),
        (GREY, {"mask": "digits.npz"}, "which is no picture; allowed: a PNG"),
        (GREY, {"mask": "damaged.png"}, "which is no picture; allowed: a PNG"),
        (GREY, {"mask": "grey/0.png"}, "of 4x4; allowed: 8x8"),
        (GREY, {"mask": "mask.png", "images": None}, "without steer_images; allowed: with an"),
        (GREY, {"mask": "mask.png", "images": "none.npz"}, "which cannot be read; allowed"),
        (GREY, {"mask": "mask.png", "images": "mask.png"}, "which cannot be read; allowed"),
        (GREY, {"mask": "mask.png", "images": "small.npz"}, "images of 4x4x1; allowed: 8x8x1"),
        (GREY, {"steer": "super_resolution", "factor": 3}, "factor is 3; allowed: a divisor of"),
        (GREY, {"steer": "colorize"}, "the model has 1 channel; allowed: a model with 3"),
        (COLOUR, {"steer": "colorize"}, "images of 8x8x1; allowed: 4x4x1 or 4x4x3"),
        (GREY, {"mask": "postscript.png"}, "which is no picture; allowed: a PNG (not an image)"),
        (COLOUR, {"steer": "colorize", "images": "mixed"}, "2 images of 2 sizes or kinds; allowed"),
        (
            dataclasses.replace(GREY, num_classes=5),
            {"mask": "mask.png"},
            "has labels from 1 to 7; allowed: 0 to 4",
        ),
    ],
)
def test_errors(files, model, settings, message):
    settings = {"steer": "inpaint", "images": "digits.npz", **settings}
    for name in ("images", "mask"):
        if settings.get(name):
            settings[name] = files / settings[name]
    with pytest.raises(ConfigError) as error:
        read_steering(SteeringRequest(**settings), model)
    assert message in str(error.value)


def test_flags_that_need_another(tmp_path, capsys):
    code = sample.main(["--workdir", "w", "--output", str(tmp_path / "out"), "--factor", "2"])
    assert code == 2
    assert capsys.readouterr().err == "error: factor is '2' without steer; allowed: with --steer\n"
