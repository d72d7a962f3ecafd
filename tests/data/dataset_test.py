import json
from dataclasses import replace

import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data.dataset import Dataset, RecordedDataset, described
from flowmatch_jax.data.digits import digits
from flowmatch_jax.runtime.errors import UserError

X = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
IMAGES = Dataset("a", "1", "train", X, np.array([0, 1, 2, 2], np.int32), 256, 3)
POINTS = Dataset("b", "1", "train", np.zeros((4, 2), np.float32))


class DatasetTest(parameterized.TestCase):
    def test_what_can_be(self):
        for dataset in (IMAGES, POINTS, digits("train"), replace(IMAGES, label=None)):
            dataset.validate()

    @parameterized.parameters(
        (IMAGES, {"x": X[:0], "label": None}, "it is empty"),
        (IMAGES, {"x": X / 127.5 - 1}, "uint8"),  # would be a constant picture
        (IMAGES, {"x": X[..., 0]}, r"\[N, H, W, C\]"),
        (IMAGES, {"levels": 17}, "17 levels"),
        (IMAGES, {"num_classes": 2}, "num_classes"),
        (IMAGES, {"label": np.zeros(3, np.int32)}, "a label for each item"),
        (IMAGES, {"label": np.zeros(4)}, "labels are an array of integers"),
        (IMAGES, {"label": [0, 1, 2, 2]}, "labels are an array of integers"),
        (IMAGES, {"x": X.tolist()}, "x is an array, or images with a shape"),
        (POINTS, {"x": np.zeros((4, 2))}, "float32"),
        (POINTS, {"x": np.zeros((4, 2, 2), np.float32)}, "images need levels"),
        (POINTS, {"x": np.full((4, 2), np.nan, np.float32)}, "finite"),
    )
    def test_what_cannot_be(self, dataset, fields, message):
        with self.assertRaisesRegex(UserError, f"^name: got '{dataset.name}, train .*{message}"):
            replace(dataset, **fields).validate()

    def test_facts(self):
        facts = IMAGES.facts()
        self.assertEqual((facts["shape"], facts["items"], facts["levels"]), ([2, 2, 3], 4, 256))
        self.assertEqual(facts["label_counts"], [1, 1, 2])
        json.dumps(facts)


class RecordedDatasetTest(absltest.TestCase):
    def test_it_is_opened_when_its_items_are_read(self):
        opened = []

        def open_dataset():
            opened.append(1)
            return IMAGES

        recorded = RecordedDataset(IMAGES.facts(), open_dataset)
        for name in ("name", "shape", "levels", "num_classes", "content_hash", "is_image"):
            self.assertEqual(getattr(recorded, name), getattr(IMAGES, name))
        self.assertLen(recorded, 4)
        zeros, expected = recorded.zeros(2), IMAGES.zeros(2)
        self.assertEqual(
            {k: v.shape for k, v in zeros.items()}, {k: v.shape for k, v in expected.items()}
        )
        self.assertEmpty(opened)
        np.testing.assert_array_equal(recorded.x, X)
        np.testing.assert_array_equal(recorded[1]["x"], X[1])
        self.assertLen(opened, 1)

    def test_described_data_may_be_any_of_their_shape(self):
        facts = described("a", None, "train", IMAGES.shape, IMAGES.num_classes)
        facts["levels"] = IMAGES.levels
        recorded = RecordedDataset(facts, lambda: IMAGES)
        self.assertEqual(recorded.shape, IMAGES.shape)
        self.assertLen(recorded, 4)
        self.assertEqual(recorded.content_hash, IMAGES.content_hash)
        recorded = RecordedDataset(facts | {"shape": [1, 1, 3]}, lambda: IMAGES)
        with self.assertRaisesRegex(UserError, "config.data: .*the run has other a data"):
            _ = recorded.x

    def test_other_data_are_refused(self):
        recorded = RecordedDataset(IMAGES.facts(), lambda: replace(IMAGES, x=X[::-1]))
        with self.assertRaisesRegex(UserError, "config.data: .*the run has other a data"):
            _ = recorded.x


if __name__ == "__main__":
    absltest.main()
