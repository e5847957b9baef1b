import hashlib
import io
import json
import os

import numpy as np
import pytest
from PIL import Image

from dit_moe.data import digits as real_digits
from eval.classes import command, evaluate, judged, judges
from eval.classes.blocks import stratified_blocks
from eval.classes.judged import embedded
from eval.classes.picture import draw
from eval.classes.table import table
from eval.image_set import ImageSetError
from eval.image_sets import open_set
from tests.prepared_sets import write_pictures

DIGITS = embedded("digits")
HELDOUT = real_digits.load("heldout")
TRAIN = real_digits.load("train")


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def samples(tmp_path):
    path = tmp_path / "samples.npz"
    np.savez(path, *HELDOUT)
    return path


class TestEvaluate:
    def test_heldout_gets_exactly_the_ceiling(self):
        result = evaluate.evaluate(*HELDOUT)
        assert result["samples"] == result["heldout"]
        assert result["frechet_ratio_to_heldout"] == 1
        assert result["notes"] == []

    def test_ceiling_is_what_was_published(self):
        ceiling = evaluate.evaluate(*HELDOUT)["heldout"]
        assert ceiling["asked_class_accuracy"] == pytest.approx(0.99, abs=0.005)
        # Libraries differ in rounding, which training of the feature network amplifies.
        assert ceiling["frechet_distance"] == pytest.approx(0.458, rel=0.3)
        assert ceiling["nearest_train_distance"]["median"] == pytest.approx(1.0353, abs=1e-3)
        assert ceiling["close_to_train_share"] == pytest.approx(0.05)
        assert ceiling["copies_of_train"] == 0

    def test_result_is_the_same_twice(self, rng):
        images = rng.integers(0, 256, (50, 8, 8, 1), np.uint8), np.arange(50) % 10
        first = evaluate.evaluate(*images)
        evaluate._real.cache_clear()
        assert evaluate.evaluate(*images) == first

    def test_result_does_not_share_state(self):
        evaluate.evaluate(*HELDOUT)["heldout"]["count_per_class"].clear()
        assert evaluate.evaluate(*HELDOUT)["heldout"]["count_per_class"]["0"] == 40

    def test_result_is_json(self):
        result = evaluate.evaluate(HELDOUT[0][:2], HELDOUT[1][:2])
        assert json.loads(json.dumps(result, allow_nan=False)) == result

    def test_noise_scores_badly(self, rng):
        images = rng.integers(0, 256, (400, 8, 8, 1), np.uint8)
        result = evaluate.evaluate(images, HELDOUT[1])
        assert result["frechet_ratio_to_heldout"] > 50
        assert result["samples"]["asked_class_accuracy"] < 0.3
        assert result["samples"]["nearest_train_distance"]["smallest"] > 2
        assert result["samples"]["copies_of_train"] == 0

    def test_wrong_classes_are_seen(self):
        images, labels = HELDOUT
        swapped = np.where(labels == 3, 4, labels)
        accuracy = evaluate.evaluate(images, swapped)["samples"]["asked_class_accuracy_per_class"]
        assert accuracy["3"] is None
        assert accuracy["4"] == pytest.approx(0.5, abs=0.05)
        assert accuracy["0"] > 0.9

    def test_missing_classes_raise_the_distance_and_are_noted(self):
        few = HELDOUT[1] < 3
        result = evaluate.evaluate(HELDOUT[0][few], HELDOUT[1][few])
        assert result["frechet_ratio_to_heldout"] > 5
        assert any("0 to 40 images per class" in note for note in result["notes"])

    def test_copies_of_training_images_are_flagged(self):
        samples = evaluate.evaluate(TRAIN[0][:400], TRAIN[1][:400])["samples"]
        assert samples["copies_of_train"] == samples["exact_copies_of_train"] == 400
        assert samples["close_to_train_share"] == 1
        assert samples["nearest_train_distance"]["median"] == 0

    def test_near_copies_are_flagged(self, rng):
        noise = rng.integers(-8, 9, (400, 8, 8, 1))
        images = np.clip(TRAIN[0][:400] + noise, 0, 255).astype(np.uint8)
        samples = evaluate.evaluate(images, TRAIN[1][:400])["samples"]
        assert samples["copies_of_train"] == 400
        assert samples["exact_copies_of_train"] == 0

    def test_colour_is_averaged(self):
        images, labels = HELDOUT
        grey = evaluate.evaluate(images, labels)["samples"]
        assert evaluate.evaluate(images.repeat(3, axis=-1), labels)["samples"] == grey

    def test_few_samples_are_noted_as_biased(self):
        result = evaluate.evaluate(HELDOUT[0][::4], HELDOUT[1][::4])
        assert any("biased up" in note for note in result["notes"])
        assert "(biased up)" in table(result)

    def test_many_samples_are_judged_in_sets_of_the_same_size(self):
        images, labels = TRAIN
        result = evaluate.evaluate(images, labels)
        assert result["samples"]["frechet_sets"] == 3
        assert result["samples"]["frechet_images_per_set"] == 400
        assert any("3 disjoint" in note for note in result["notes"])
        of_sets = [
            evaluate.evaluate(images[rows], labels[rows])["samples"]["frechet_distance"]
            for rows in stratified_blocks(labels, 400)
        ]
        assert result["samples"]["frechet_distance"] == pytest.approx(np.mean(of_sets), rel=1e-9)
        # All 1,397 are the reference itself: their distance would be 0 by their number alone.
        assert min(of_sets) > 0.1

    @pytest.mark.parametrize(
        ("images", "labels", "message"),
        [
            (np.zeros((4, 16, 16, 1), np.uint8), np.zeros(4, int), r"\(4, 16, 16, 1\)"),
            (np.zeros((4, 8, 8, 2), np.uint8), np.zeros(4, int), "C of 1 or 3"),
            (np.zeros((4, 8, 8, 1)), np.zeros(4, int), "float64"),
            (np.zeros((1, 8, 8, 1), np.uint8), np.zeros(1, int), "at least 2"),
            (np.zeros((4, 8, 8, 1), np.uint8), np.zeros(3, int), r"must be \(4,\)"),
            (np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, 10]), "A label is 10"),
            (np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, -1]), "A label is -1"),
        ],
    )
    def test_wrong_input_is_refused(self, images, labels, message):
        with pytest.raises(ImageSetError, match=message):
            evaluate.evaluate(images, labels)


class TestStratifiedBlocks:
    def test_balanced_sets_give_balanced_disjoint_blocks(self, rng):
        labels = rng.permutation(np.repeat(np.arange(10), 100))
        blocks = stratified_blocks(labels, 400)
        assert [np.bincount(labels[rows]).tolist() for rows in blocks] == [[40] * 10] * 2
        assert len(np.unique(np.concatenate(blocks))) == 800

    def test_shares_of_the_whole_are_kept(self):
        labels = np.repeat([0, 1], [900, 300])
        for rows in stratified_blocks(labels, 400):
            assert np.bincount(labels[rows]).tolist() == [300, 100]

    def test_small_sets_stay_whole_and_in_order(self):
        (rows,) = stratified_blocks(np.zeros(7, int), 7)
        assert rows.tolist() == list(range(7))


class TestCommand:
    def run(self, samples, output, *more):
        return command.main(["--samples", str(samples), "--output", str(output), *map(str, more)])

    def test_writes_result_and_picture_and_prints_a_table(self, samples, tmp_path, capsys):
        output, picture = tmp_path / "new" / "result.json", tmp_path / "new" / "digits.png"
        assert self.run(samples, output, "--picture", picture) == 0
        printed = capsys.readouterr()
        assert "held-out real images (ceiling)" in printed.out
        assert "FID" not in printed.out
        assert printed.err == ""

        result = json.loads(output.read_text())
        expected = hashlib.sha256(samples.read_bytes()).hexdigest()
        assert result["samples_file"]["sha256"] == expected
        assert result["samples"] == result["heldout"]
        assert {"numpy", "scikit-learn"} <= result["versions"].keys()
        with Image.open(picture) as image:
            assert image.format == "PNG"
        assert sorted(p.name for p in output.parent.iterdir()) == ["digits.png", "result.json"]

    @pytest.mark.parametrize("content", [None, b"", b"PK\x03\x04 cut"])
    def test_bad_samples_end_with_one_sentence(self, tmp_path, capsys, content):
        samples, output = tmp_path / "samples.npz", tmp_path / "result.json"
        if content is not None:
            samples.write_bytes(content)
        assert self.run(samples, output) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert str(samples) in error
        assert not output.exists()

    def test_wrong_size_ends_with_one_sentence(self, tmp_path, capsys):
        samples, output = tmp_path / "samples.npz", tmp_path / "result.json"
        np.savez(samples, np.zeros((4, 32, 32, 3), np.uint8), np.zeros(4, int))
        assert self.run(samples, output) == 2
        assert capsys.readouterr().err.count("\n") == 1
        assert not output.exists()

    def test_unusable_targets_end_with_one_sentence(self, samples, tmp_path, capsys):
        output = tmp_path / "result.json"
        occupied = tmp_path / "file"
        occupied.write_text("kept")
        assert self.run(samples, tmp_path) == 2
        assert self.run(samples, samples) == 2
        assert self.run(samples, occupied / "result.json") == 2
        assert self.run(samples, output, "--picture", tmp_path / "digits.jpg") == 2
        assert self.run(samples, output, "--picture", output) == 2
        assert capsys.readouterr().err.count("\n") == 5
        assert not output.exists()
        assert occupied.read_text() == "kept"

    def test_names_that_are_no_text(self, samples, tmp_path, capsys):
        strange = tmp_path / os.fsdecode(b"\xff.npz")
        samples.rename(strange)
        assert self.run(strange, tmp_path / "result.json") == 0
        result = json.loads((tmp_path / "result.json").read_text())
        assert result["samples_file"]["path"].endswith("?.npz")
        (tmp_path / "loop").symlink_to("loop")
        assert self.run(tmp_path / "loop", tmp_path / "result.json") == 2
        assert capsys.readouterr().err.count("\n") == 1

    def test_wrong_arguments_end_with_two(self):
        with pytest.raises(SystemExit) as info:
            command.main(["--samples", "x.npz"])
        assert info.value.code == 2

    def test_help_teaches(self, capsys):
        with pytest.raises(SystemExit) as info:
            command.main(["--help"])
        assert info.value.code == 0
        text = capsys.readouterr().out
        assert "memorisation" in text
        assert "example:" in text


class TestAnotherSet:
    """Bright and dark pictures in files, numbered and named otherwise than by place."""

    @pytest.fixture
    def sets(self, tmp_path, rng):
        for name, number in (("train", 40), ("heldout", 20)):
            label = np.arange(number) % 2
            image = rng.integers(0, 100, (number, 8, 8, 3)) + 150 * label[:, None, None, None]
            write_pictures(tmp_path / name, image.astype(np.uint8), label, classes=3)
        return tmp_path

    def judge(self, sets, labels, *more, **arrays):
        images = open_set(sets / "heldout").read()
        np.savez(sets / "samples.npz", images, labels, **arrays)
        command_line = ["--samples", str(sets / "samples.npz"), "--output", str(sets / "out.json")]
        code = command.main([*command_line, "--data", str(sets / "train"), *map(str, more)])
        return json.loads((sets / "out.json").read_text()) if code == 0 else code

    def test_real_images_get_the_ceiling(self, sets):
        own = "--heldout", sets / "heldout", "--picture", sets / "seen.png"
        result = self.judge(sets, np.arange(20) % 2, *own)
        assert result["samples"] == result["heldout"]
        assert result["samples"]["asked_class_accuracy"] == 1
        assert result["samples"]["count_per_class"] == {"class 0": 10, "class 1": 10}
        assert "RBF kernel, C=10" in result["protocol"]["asked_class_classifier"]
        with Image.open(sets / "seen.png") as picture:
            assert picture.width > picture.height

    def test_classes_are_matched_by_name(self, sets):
        swapped = np.array(["class 1", "class 0"])
        result = self.judge(
            sets, np.arange(20) % 2, "--heldout", sets / "heldout", class_names=swapped
        )
        assert result["samples"]["asked_class_accuracy"] == 0
        assert result["heldout"]["asked_class_accuracy"] == 1

    def test_many_images_take_a_machine_that_is_not_exact(self, sets, monkeypatch):
        monkeypatch.setattr(judges, "_EXACT", 39)
        monkeypatch.setattr(judges, "_CENTRES", 10)
        result = self.judge(sets, np.arange(20) % 2, "--heldout", sets / "heldout")
        assert result["samples"]["asked_class_accuracy"] == 1
        assert "Nystroem's 10 images" in result["protocol"]["asked_class_classifier"]

    def test_sets_that_do_not_fit_end_with_one_sentence(self, sets, capsys, monkeypatch):
        heldout = "--heldout", sets / "heldout"
        labels = np.arange(20) % 2
        assert self.judge(sets, labels) == 2
        assert "has no split 'validation'" in capsys.readouterr().err
        assert self.judge(sets, labels, "--heldout", "patches") == 2
        assert "of (8, 8, 3), but patches (held-out) of (32, 32, 3)" in capsys.readouterr().err
        assert self.judge(sets, labels, *heldout, class_names=np.array(["class 0", "dog"])) == 2
        assert "a label is dog, but the data have the classes class 0" in capsys.readouterr().err
        assert self.judge(sets, labels, *heldout, "--data", "digits") == 2
        assert "the digits have held-out images" in capsys.readouterr().err
        assert self.judge(sets, labels, "--data", sets / "samples.npz") == 2
        assert "allowed: --heldout with images that nothing" in capsys.readouterr().err
        assert self.judge(sets, labels, "--heldout", sets / "train") == 2
        assert "All 40 held-out images are training images" in capsys.readouterr().err
        monkeypatch.setattr(judged, "MAX_VALUES", 100)
        assert self.judge(sets, labels, *heldout) == 2
        assert "is too large for these judges (40 images of (8, 8, 3))" in capsys.readouterr().err


class TestPicture:
    def test_shows_a_sample_in_the_row_of_its_class(self):
        ink = np.full((1, 8, 8, 3), 255, np.uint8)
        heights = []
        empty = _pixels(draw(ink[:0], np.zeros(0, int), DIGITS))
        for label in range(10):
            drawn = _pixels(draw(ink, np.array([label]), DIGITS))
            heights.append(np.flatnonzero((empty - drawn > 100).any(1)).mean())
        steps = np.diff(heights)
        assert steps[0] > 0
        np.testing.assert_allclose(steps, steps[0], atol=1)


def _pixels(png):
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image.convert("L"), float)
