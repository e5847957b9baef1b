"""Classes are compared by what they are, not by their places in two lists."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from dit_moe.config import DataConfig, SampleConfig
from dit_moe.data.classes import Classes, ModelClasses, model_classes, write_classes
from dit_moe.sampling.run_sampler import RunSampler
from dit_moe.sampling.sample_set import write_sample_set
from eval.evaluate import evaluate
from eval.image_set import ImageSetError
from eval.image_sets import open_set
from eval.labels import Labels, of_places, shared_classes
from eval.references import open_reference
from eval.run_samples import open_run
from tests.analysis.fresh_run import write_fresh_run
from tests.prepared_sets import write_pictures
from tests.tiny import tiny

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 3, 8, 8, 3)).astype(np.uint8)


class Pixels:
    name, description = "digits", {"network": "pixels"}

    def __call__(self, image_NxHxWxC):
        return {"pool": image_NxHxWxC.reshape(len(image_NxHxWxC), -1)[:, :16].astype(np.float32)}


def write_folders(folder, names):
    """A class folder for every name, with the images of the class at its place."""
    for name, images in zip(names, IMAGES, strict=False):
        if name is not None:
            (folder / name).mkdir(parents=True)
            for i, image in enumerate(images):
                Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def write_npz(path, classes, **arrays):
    """The images of these classes, labelled 0, 1, ..."""
    label_N = np.repeat(np.arange(len(classes)), IMAGES.shape[1])
    np.savez(path, arr_0=np.concatenate(IMAGES[classes]), arr_1=label_N, **arrays)
    return path


def by_class(tmp_path, samples, reference):
    sets = open_set(samples), open_reference(reference)
    result = evaluate(*sets, Pixels(), ["per_class"], cache=tmp_path / "cache")
    return result["metrics"]["per_class"]["by_class"], result["notes"]


def test_folders_called_by_numbers_are_these_classes(tmp_path):
    folder = write_folders(tmp_path / "folder", [f"{i:02}" if i < 2 else str(i) for i in range(12)])
    npz = write_npz(tmp_path / "reference.npz", list(range(12)))
    distances, _ = by_class(tmp_path, folder, npz)
    assert distances == {str(i): pytest.approx(0, abs=1e-6) for i in range(12)}


def test_folders_are_matched_by_name(tmp_path):
    samples = write_folders(tmp_path / "samples", [None, "cat", "dog"])
    reference = write_folders(tmp_path / "reference", ["ant", "cat", "dog"])
    distances, notes = by_class(tmp_path, samples, reference)
    assert distances == {name: pytest.approx(0, abs=1e-6) for name in ("cat", "dog")}
    assert notes[0].startswith("per_class leaves 1 classes of the reference out")


def test_names_and_numbers_are_not_matched(tmp_path):
    folder = write_folders(tmp_path / "folder", ["ant", "cat"])
    numbers = write_npz(tmp_path / "numbers.npz", [0, 1])
    for sets in ((folder, numbers), (numbers, folder)):
        with pytest.raises(
            ImageSetError, match=r"those of .*folder have names, those of .*npz num"
        ):
            by_class(tmp_path, *sets)
    named = write_npz(tmp_path / "named.npz", [1, 0], class_names=np.array(["cat", "ant"]))
    distances, _ = by_class(tmp_path, named, folder)
    assert distances == {name: pytest.approx(0, abs=1e-6) for name in ("ant", "cat")}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"class_numbers": np.array([3])}, r"class_numbers is of 1 classes, but .* 0 to 1"),
        ({"class_numbers": np.array([3, 3])}, "class_numbers must be a list of different"),
        ({"class_numbers": np.array([0.5, 1])}, "class_numbers are float64, but must be integers"),
        ({"class_numbers": np.array([1, 2**63], np.uint64)}, "but must be integers of 64 bits"),
        ({"class_names": np.array(["a", "\udcff"])}, "class_names.1 is .* allowed: text in UTF-8"),
        ({"class_names": np.array([1, 2])}, "class_names is int64, but must be text"),
        ({"class_names": np.array([["a", "b"]])}, "class_names must be a list of different"),
        (
            {"class_numbers": np.arange(3), "class_names": np.array(["a", "b"])},
            "but class_names of",
        ),
    ],
)
def test_wrong_tables_of_classes_are_refused(tmp_path, arrays, message):
    with pytest.raises(ImageSetError, match=message):
        open_set(write_npz(tmp_path / "wrong.npz", [0, 1], **arrays))


def test_stored_names_that_are_other_numbers():
    """Folders 0 to 10, sorted as text: label 2 is the class 10."""
    stored = of_places(np.arange(11), sorted(map(str, range(11))))
    np.testing.assert_array_equal(stored.number, [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9])
    assert shared_classes(stored, of_places(np.array([2]), ["0", "1", "2"])) == {"2": (2, 2)}
    assert shared_classes(stored, Labels(np.array([2]))) is None  # of this list, or the class 2?


def test_prepared_sets_have_names_and_numbers(tmp_path):
    label_N = np.repeat([7, 2], 3)
    write_pictures(tmp_path / "set", np.concatenate(IMAGES[[7, 2]]), label_N)
    names = [None, None, "class 2", *[None] * 4, "class 7"]
    folder = write_folders(tmp_path / "folder", names)
    distances, _ = by_class(tmp_path, folder, tmp_path / "set")
    assert distances == {f"class {i}": pytest.approx(0, abs=1e-6) for i in (2, 7)}
    npz = write_npz(tmp_path / "numbers.npz", [7, 2], class_numbers=np.array([7, 2]))
    distances, _ = by_class(tmp_path, npz, tmp_path / "set")
    assert distances == {str(i): pytest.approx(0, abs=1e-6) for i in (2, 7)}


def of_classes(*classes, **data):
    config = dataclasses.replace(tiny(), data=DataConfig(classes=classes, **data))
    config = dataclasses.replace(config, sample=SampleConfig(steps=1))
    model = dataclasses.replace(config.model, num_classes=len(classes) or 8)
    return dataclasses.replace(config, model=model)


def test_samples_of_a_run_on_some_classes_are_of_these(tmp_path):
    run = write_fresh_run(tmp_path / "run", of_classes(9, 4, 1))
    drawn, _ = open_run(run, batch_size=4, ema=True, num_samples=4)
    np.testing.assert_array_equal(drawn.label, [9, 4, 1, 9])
    sampler = RunSampler(run, batch_size=4, ema=True, num_samples=4)
    npz, _ = write_sample_set(sampler, tmp_path / "samples")
    np.testing.assert_array_equal(open_set(npz).label, [9, 4, 1, 9])
    with np.load(npz) as arrays:  # --classes of sample.py
        np.testing.assert_array_equal(arrays["arr_1"], [0, 1, 2, 0])


def test_classes_of_a_run_have_the_names_that_it_keeps(tmp_path):
    config = of_classes()
    found = model_classes(config.data, config.model, tmp_path)
    assert found == ModelClasses(tuple(range(8)), ())
    config = of_classes(7, 2)
    assert model_classes(config.data, config.model, tmp_path) == ModelClasses((7, 2), ())
    write_classes(tmp_path, Classes(("cat", "dog"), (3, 3)))
    found = model_classes(config.data, config.model, tmp_path)
    assert found == ModelClasses((7, 2), ("cat", "dog"))
    # Names that are the numbers say nothing.
    write_classes(tmp_path, Classes(("7", "2"), (3, 3)))
    assert model_classes(config.data, config.model, tmp_path) == ModelClasses((7, 2), ())
