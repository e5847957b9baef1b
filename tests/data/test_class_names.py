"""Classes by name, from what the data call them to what samples are asked for."""

import numpy as np
import pytest

from dit_moe.config import ConfigError, DataConfig
from dit_moe.data.classes import Classes, ModelClasses, model_classes, read_classes, write_classes
from dit_moe.storage import images
from tests.tiny import tiny

PETS = ModelClasses((0, 1, 2), ("cat", "dog", "red fox"))


def test_names_and_numbers(capsys):
    assert PETS.labels(["dog", "0", "red fox"]) == [1, 0, 2]
    assert PETS.labels([]) == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("classes", "text", "told"),
    [
        (PETS, "cow", "such as 0,1,2, or names: cat, dog, red fox"),
        (PETS, "1.5", "such as 0,1,2, or names: cat, dog, red fox"),
        (ModelClasses((0, 1), ()), "cat", r"such as 0,1,2 \(no names are known\)"),
        (ModelClasses((0, 1), ("cat", "cat")), "cat", "such as 0,1,2, or names: cat, cat"),
    ],
)
def test_names_that_tell_no_class(classes, text, told):
    with pytest.raises(ConfigError, match=f"classes has '{text}'; allowed: numbers .*{told}$"):
        classes.labels([text])


def test_names_that_are_numbers_are_labels_and_said_so(capsys):
    """Folders 1, 2 and 10 are sorted as text."""
    folders = ModelClasses((0, 1, 2), ("1", "10", "2"))
    assert folders.labels(["1", "2", "10"]) == [1, 2, 10]  # the last is refused with the request
    said = capsys.readouterr().out
    assert said == "Class 1 is the label 1, called '10'; the class called '1' is 0.\n"


def test_titles():
    assert PETS.titles(np.array([2, 0])) == ["red fox", "cat"]
    assert ModelClasses((7, 9), ()).titles(np.array([1])) == ["1"]
    # Rows of a grid are told apart by their titles.
    assert ModelClasses((0, 1, 2), ("a", "a", "b")).titles(np.arange(3)) == ["0", "1", "b"]


def test_names_of_a_choice_of_classes(tmp_path):
    write_classes(tmp_path, Classes(("dog", "cat"), (3, 4)))
    config = tiny(None)
    known = model_classes(DataConfig(classes=(5, 3)), config.model, tmp_path)
    assert known.labels(["cat"]) == [1]


@pytest.mark.parametrize("images", ["[]", "[0, 0]"])
def test_classes_without_an_image_are_no_record_of_a_run(images, tmp_path):
    (tmp_path / "classes.json").write_text(f'{{"names": ["cat", "dog"], "images": {images}}}')
    with pytest.raises(ConfigError, match=r"classes.json.*no class with an image"):
        read_classes(tmp_path)


def test_a_grid_takes_any_name():
    pictures = np.zeros((2, 8, 8, 1), np.uint8)
    short = images.grid(pictures, ["a", "b" * 24])
    assert images.grid(pictures, ["two\nlines", "b" * 200]).size == short.size
