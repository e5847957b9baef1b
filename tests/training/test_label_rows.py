"""Which row of the old label table each class starts from."""

import jax.numpy as jnp
import numpy as np
import pytest

from dit_moe.config import ConfigError
from dit_moe.data.classes import ModelClasses
from dit_moe.training.label_rows import LabelRows, find_rows, sentence

PETS = ModelClasses((0, 1, 2), ("cat", "dog", "fish"))
NUMBERED = ModelClasses((5, 6, 7), ())


def named(*names: str) -> ModelClasses:
    return ModelClasses(tuple(range(len(names))), names)


@pytest.mark.parametrize(
    ("old", "new", "rows", "said"),
    [
        (PETS, PETS, (0, 1, 2), None),
        (PETS, named("fish", "dog"), (2, 1), "fish, dog kept"),
        (PETS, named("ant", "dog"), (None, 1), "dog kept; ant from the mean of 3 classes"),
        # As many, of other names: their order means nothing.
        (PETS, named("a", "b", "c"), (None,) * 3, "a, b, c from the mean of 3 classes"),
        # Names on one side: as many are taken for the same, in order.
        (NUMBERED, PETS, (0, 1, 2), "cat from 5, dog from 6, fish from 7"),
        (NUMBERED, named("a", "b"), (None, None), "a, b from the mean of 3 classes"),
        (PETS, ModelClasses((0, 1), ()), (None, None), "0, 1 from the mean of 3 classes"),
        # The name of several classes tells none, unless nothing has changed.
        (named("ox", "ox"), named("ox", "ox"), (0, 1), None),
        (
            named("ox", "ox", "ant"),
            named("ant", "ox"),
            (2, None),
            "ant kept; ox from the mean of 3 classes",
        ),
        # No names: by number in the data.
        (NUMBERED, ModelClasses((7, 2), ()), (2, None), "7 kept; 2 from the mean of 3 classes"),
    ],
)
def test_what_is_kept(old, new, rows, said):
    found = find_rows(old, (), new, {})
    assert found == LabelRows(rows, tuple(range(len(old.numbers))))
    assert sentence(found, old, new) == (said and f"Label embeddings: {said}.")


def test_what_is_chosen_goes_before():
    new = named("cat", "fox", "ant")
    found = find_rows(PETS, (0, 2), new, {"fox": "dog", "0": "2"})
    assert found == LabelRows((2, 1, None), (0, 2))
    said = "Label embeddings: cat from fish, fox from dog; ant from the mean of 2 classes."
    assert sentence(found, PETS, new) == said


def test_names_that_look_like_numbers_are_names():
    old = named("1", "2", "10")
    assert find_rows(old, (), named("a"), {"a": "2"}).rows == (1,)
    with pytest.raises(ConfigError, match="init_classes has '0', which is no class of the model"):
        find_rows(old, (), named("a"), {"a": "0"})


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"ox": "dog"}, "init_classes has 'ox', which is no class of the run; allowed: fox, ant"),
        ({"fox": "cow"}, "'cow', which is no class of the model to start from; allowed: cat, dog"),
        ({"fox": "3"}, "'3', which is no class of the model to start from"),
        ({"fox": "9" * 5000}, "which is no class of the model to start from"),
        ({"fox": "dog", "0": "cat"}, "init_classes has 'fox' and '0', which are one class"),
    ],
)
def test_what_cannot_be_chosen(chosen, message):
    with pytest.raises(ConfigError, match=message):
        find_rows(PETS, (), named("fox", "ant"), chosen)


def test_a_name_of_several_classes():
    with pytest.raises(ConfigError, match="'crane', which is the name of several classes of the"):
        find_rows(named("crane", "crane"), (), named("fox"), {"fox": "crane"})


def test_the_table():
    table = np.random.default_rng(0).normal(size=(4, 5)).astype(np.float32)
    new = np.asarray(LabelRows((2, None, 0), (0, 2)).take(jnp.asarray(table)))
    assert (new[[0, 2, 3]] == table[[2, 0, 3]]).all()
    np.testing.assert_allclose(new[1], (table[0] + table[2]) / 2, rtol=1e-6)
