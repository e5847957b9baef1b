"""Data sets that TFDS itself wrote."""

import io

import numpy as np
import pytest
from PIL import Image

from eval.image_set import ImageSetError
from eval.image_sets import open_set

pytestmark = pytest.mark.peers

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 8, 6, 3), np.uint8)


def write(folder, images, labels, file_format="array_record"):
    import tensorflow_datasets as tfds

    features = {"image": tfds.features.Image(shape=(None, None, 3), encoding_format="png")}
    if labels is not None:
        features["label"] = tfds.features.ClassLabel(num_classes=3)

    def examples():
        for i, image in enumerate(images):
            file = io.BytesIO()  # encoded here: TFDS would do it by TensorFlow
            Image.fromarray(image).save(file, "PNG")
            file.seek(0)
            yield i, {"image": file} | ({} if labels is None else {"label": labels[i]})

    class Toy(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        url_infos = None  # nothing is downloaded

        def _info(self):
            of = tfds.features.FeaturesDict(features)
            return tfds.core.DatasetInfo(builder=self, features=of)

        def _split_generators(self, dl_manager):
            return {"train": examples()}

        def _generate_examples(self):
            raise NotImplementedError

    Toy(data_dir=folder, file_format=file_format).download_and_prepare()
    return folder / "toy" / "1.0.0"


def test_reads_what_tfds_wrote(tmp_path):
    path = write(tmp_path, IMAGES, np.arange(10) % 3)
    image_set = open_set(path)
    assert (image_set.num, image_set.shape) == (10, (8, 6, 3))
    images = image_set.read()
    # TFDS shuffles by key; labels go with their images.
    order = [int(np.flatnonzero((image == IMAGES).all((1, 2, 3)))[0]) for image in images]
    assert sorted(order) == list(range(10))
    np.testing.assert_array_equal(image_set.label, np.array(order) % 3)
    assert [len(batch) for batch in image_set.batches(4, start=3)] == [4, 3]
    np.testing.assert_array_equal(next(image_set.batches(4, start=3)), images[3:7])
    assert image_set.sha256 == open_set(path).sha256


def test_labels_may_be_absent(tmp_path):
    assert open_set(write(tmp_path, IMAGES, None)).label is None


def test_what_cannot_be_read_is_named(tmp_path):
    path = write(tmp_path / "a", [*IMAGES, np.zeros((9, 6, 3), np.uint8)], None)
    with pytest.raises(ImageSetError, match="has no split 'test'; allowed: 'train'"):
        open_set(path, "test")
    with pytest.raises(ImageSetError, match="all images must be of one size"):
        open_set(path).read()
    for file in path.glob("*.array_record*"):
        file.write_bytes(b"damaged")
    with pytest.raises(ImageSetError, match="cannot be read") as info:
        open_set(path)
    assert "\n" not in str(info.value)
