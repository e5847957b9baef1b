"""Statistics of a reference to share (--save_reference), and images of other sizes (--resize)."""

import json

import numpy as np
import pytest
from PIL import Image

from dit_moe.data.prepare.decode import center_crop
from dit_moe.storage.colours import on_white
from eval import fid
from eval import judge as judging
from eval.image_set import ImageSetError
from eval.image_sets import open_set
from eval.references import open_reference
from eval.resize import RULES, parse

DESCRIPTION = {"network": "random projection", "weights_sha256": "0" * 64, "sizes": (1, 2)}
RNG = np.random.default_rng(0)
SAMPLES, REAL = (RNG.integers(0, 256, (n, 4, 4, 3)).astype(np.uint8) for n in (20, 30))


class Projection:
    """A fixed random projection; remembers how many images it saw."""

    name = "inception"
    description = DESCRIPTION
    seen = 0

    def __call__(self, image_NxHxWxC):
        self.seen += len(image_NxHxWxC)
        x_NxP = image_NxHxWxC.reshape(len(image_NxHxWxC), -1) / 255
        rng = np.random.default_rng(1)
        return {
            name: (x_NxP @ rng.normal(size=(x_NxP.shape[1], width))).astype(np.float32)
            for name, width in {"pool": 8, "spatial": 5, "logits": 4}.items()
        }


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command with stand-in features, from any samples and reference; its extractor."""
    np.savez(tmp_path / "samples.npz", SAMPLES)
    np.savez(tmp_path / "real.npz", REAL)

    def run(reference, *flags, samples="samples.npz", extractor=None):
        extractor = extractor or Projection()
        monkeypatch.setattr(judging, "load_extractor", lambda *_, **__: extractor)
        places = ["--reference", tmp_path / reference, "--cache", tmp_path / "cache"]
        if samples is not None:
            output = tmp_path / "result.json"
            places += ["--samples", tmp_path / samples, "--output", output]
        code = fid.main([*map(str, [*places, *flags])])
        run.seen = extractor.seen
        return code

    return run


def result(tmp_path) -> dict:
    return json.loads((tmp_path / "result.json").read_text())


def as_pytorch_fid_reads(path):
    """Its compute_statistics_of_path."""
    with np.load(path) as file:
        return file["mu"][:], file["sigma"][:]


def as_adm_reads(path):
    """Its evaluator's read_statistics."""
    stored = np.load(path)
    assert "mu" in list(stored.keys())
    return (stored["mu"], stored["sigma"]), (stored["mu_s"], stored["sigma_s"])


def test_statistics_are_what_the_others_read(run, tmp_path, capsys):
    path = tmp_path / "new" / "reference.npz"
    assert run("real.npz", "--save_reference", path, samples=None) == 0
    assert f"Statistics of 30 reference images: {path}." in capsys.readouterr().out
    outputs = Projection()(REAL)
    for found, output in zip(as_adm_reads(path), ("pool", "spatial"), strict=True):
        np.testing.assert_allclose(found[0], outputs[output].mean(0), rtol=1e-6)
        np.testing.assert_allclose(found[1], np.cov(outputs[output], rowvar=False), rtol=1e-5)
    mean, covariance = as_pytorch_fid_reads(path)
    assert (mean.dtype, covariance.dtype) == (np.float64, np.float64)
    np.testing.assert_array_equal(mean, as_adm_reads(path)[0][0])


def test_they_stand_for_the_images(run, tmp_path, capsys):
    """Made while samples are judged, at no further pass over the reference."""
    path = tmp_path / "reference.npz"
    assert run("real.npz", "--save_reference", path, "--metrics", "fid,sfid,pr") == 0
    assert run.seen == 50
    expected = result(tmp_path)
    assert f"Statistics of 30 reference images: {path}." in capsys.readouterr().out
    assert run("reference.npz", "--metrics", "fid,sfid") == 0
    found = result(tmp_path)
    assert {n: expected["metrics"][n] for n in ("fid", "sfid")} == found["metrics"]
    # It says by which network they were made; what others write does not.
    assert not any("does not say by which network" in note for note in found["notes"])
    bare = {name: array for name, array in np.load(path).items() if name != "made_by"}
    np.savez(tmp_path / "bare.npz", **bare)
    assert run("bare.npz", "--metrics", "fid,sfid") == 0
    assert result(tmp_path)["metrics"] == found["metrics"]
    assert any("does not say by which network" in note for note in result(tmp_path)["notes"])


def test_statistics_of_other_features_are_refused(run, tmp_path, capsys):
    path = tmp_path / "reference.npz"
    run("real.npz", "--save_reference", path, samples=None)
    other = Projection()
    other.description = {**DESCRIPTION, "weights_sha256": "1" * 64}
    assert run("reference.npz", extractor=other) == 2
    assert "holds statistics of other features than 'inception'" in capsys.readouterr().err
    arrays = dict(np.load(path))
    for made_by in (np.zeros(3), np.array("{"), np.array("[" * 10**5), np.array('{"num": 1}')):
        np.savez(tmp_path / "wrong.npz", **{**arrays, "made_by": made_by})
        with pytest.raises(ImageSetError, match=r"made_by must be what eval\.fid --save_ref"):
            open_reference(tmp_path / "wrong.npz")


@pytest.mark.parametrize(
    ("reference", "flags", "message"),
    [
        ("real.npz", ["--save_reference", "{}/a.npy"], "but must end in .npz"),
        ("real.npz", ["--save_reference", "{}/real.npz"], "must not be the samples or the"),
        ("stored.npz", ["--save_reference", "{}/a.npz"], "holds statistics already"),
        ("one.npz", ["--save_reference", "{}/a.npz"], "holds 1 image, but 2 are needed"),
    ],
)
def test_references_that_cannot_be_saved(run, tmp_path, capsys, reference, flags, message):
    np.savez(tmp_path / "stored.npz", mu=np.zeros(8), sigma=np.eye(8))
    np.savez(tmp_path / "one.npz", REAL[:1])
    before = sorted(tmp_path.iterdir())
    assert run(reference, *(flag.format(tmp_path) for flag in flags), samples=None) == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "one of the arguments --samples --workdir --save_reference is required"),
        (["--samples", "a"], "--output is needed with --samples or --workdir"),
        (["--save_reference", "a.npz", "--output", "b.json"], "--output is given without"),
        (["--save_reference", "a.npz", "--seed", "1"], "--workdir, which is not given"),
    ],
)
def test_flags_that_do_not_fit(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        fid.main(["--reference", "a", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


# Sizes.


def test_rules():
    photograph = RNG.integers(0, 256, (40, 60, 3)).astype(np.uint8)
    image = Image.fromarray(photograph)
    middle = image.crop((10, 0, 50, 40))
    for rule in RULES:
        small = parse(f"{rule}:10")(photograph)
        assert small.shape == (10, 10, 3)
        method = getattr(Image.Resampling, rule.upper(), None)
        expected = center_crop(image, 10) if rule == "adm" else middle.resize((10, 10), method)
        np.testing.assert_array_equal(small, np.asarray(expected))
    # Antialiased: the mean of all pixels, not one of them.
    box = parse("box:10")(photograph).astype(float)
    means = photograph[:, 10:50].reshape(10, 4, 10, 4, 3).mean(axis=(1, 3))
    assert np.abs(box - means).max() <= 1
    for rule in RULES:
        assert parse(f"{rule}:20x25")(photograph).shape == (20, 25, 3)
    same = parse("lanczos:40x60")
    assert same(photograph) is photograph
    assert parse("bicubic:8")(photograph[..., :1]).shape == (8, 8, 1)


@pytest.mark.parametrize(
    "text", ["256", "lanczos", "nearest:8", "adm:0", "box:8x0", "box:-8", "box:8x8x8", "adm:999999"]
)
def test_rules_that_are_none(text):
    with pytest.raises(ImageSetError, match=r"--resize is .* adm, box, bilinear, bicubic, lanczos"):
        parse(text)


def test_sets_of_several_sizes(tmp_path):
    for i, size in enumerate([(8, 8), (20, 12), (9, 30)]):
        pixels = RNG.integers(0, 256, (*size, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    with pytest.raises(ImageSetError, match="all images must be of one size: name a rule by"):
        open_set(tmp_path).read()
    image_set = open_set(tmp_path, resize=parse("adm:8"))
    assert image_set.shape == (8, 8, 3)
    found = image_set.read()
    expected = [np.asarray(center_crop(Image.open(tmp_path / f"{i}.png"), 8)) for i in range(3)]
    np.testing.assert_array_equal(found, expected)
    digests = {open_set(tmp_path, resize=parse(r)).sha256 for r in ("adm:8", "box:8", "box:9")}
    assert len(digests) == 3


def test_what_is_transparent_is_white_before_it_is_resized(tmp_path):
    pixels = RNG.integers(0, 256, (3, 8, 8, 4)).astype(np.uint8)
    np.savez(tmp_path / "a.npz", pixels)
    found = open_set(tmp_path / "a.npz", resize=parse("bicubic:5"))
    assert found.shape == (5, 5, 3)
    expected = [parse("bicubic:5")(image) for image in on_white(pixels)]
    np.testing.assert_array_equal(found.read(), expected)


def test_samples_and_reference_of_other_sizes(run, tmp_path, capsys):
    np.savez(tmp_path / "large.npz", REAL.repeat(2, 1).repeat(2, 2))
    assert run("large.npz", "--metrics", "fid") == 2
    assert "name a rule for both, such as --resize adm:8" in capsys.readouterr().err
    assert run("large.npz", "--metrics", "fid", "--resize", "box:4") == 0
    resized = result(tmp_path)
    assert run("real.npz", "--metrics", "fid") == 0
    plain = result(tmp_path)
    assert resized["metrics"] == plain["metrics"]
    assert resized["resize"] == "box:4x4"
    assert "Images of another size were resized by box:4x4." in resized["notes"]
    assert "resize" not in plain
