import dataclasses
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.data.dataset import Dataset
from flowmatch_jax.data.pairs import PairFolder, PairOptions, open_pairs
from flowmatch_jax.data.pipeline import items_at, train_batches
from flowmatch_jax.runtime.errors import UserError

CHUNK, COUNT = 8, 20
DATA = Dataset("points", "1", "train", np.ones((3, 2), np.float32), np.arange(3), num_classes=3)


def facts(labels=True, data=DATA, **others):
    about = {"name": data.name, "version": data.version, "sha256": data.content_hash}
    kind = {"shape": list(data.shape), "labels": labels, "chunk": CHUNK}
    return {"data": about} | kind | others


def chunk(n, labels=True):
    """Pairs number i have x_0 = (i, -i) and x_1 = x_0 + (3, 4) i: their distance is 5 i."""
    i = np.arange(n * CHUNK, (n + 1) * CHUNK, dtype=np.float32)[:, None]
    x0 = np.concatenate([i, -i], axis=1)
    return x0, x0 + i * np.float32([3, 4]), (i[:, 0] % 3).astype(int) if labels else None


class PairsTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path) / "pairs"

    def write(self, chunks=3, labels=True, count=COUNT, **others):
        place = PairFolder(self.folder, facts(labels, **others), count)
        for n in range(place.done, chunks):
            place.append(*chunk(n, labels))

    def open(self, data=DATA, labels=True, **options):
        return open_pairs(PairOptions(str(self.folder), **options), data, labels)

    def test_each_sample_comes_with_its_noise_and_label(self):
        self.write()
        pairs, _ = self.open(held_out=0.0)
        self.assertLen(pairs, COUNT)
        self.assertEqual((pairs.shape, pairs.levels), ((2,), None))
        self.assertEqual({k: v.shape for k, v in pairs.zeros(4).items()}["x0"], (4, 2))
        batches = train_batches(pairs, 5, seed=0)
        seen = [next(batches) for _ in range(COUNT // 5)]
        x0, x, label = (np.concatenate([b[name] for b in seen]) for name in ("x0", "x", "label"))
        i = x0[:, 0]
        np.testing.assert_array_equal(np.sort(i), np.arange(COUNT))
        np.testing.assert_array_equal(x, x0 + i[:, None] * np.float32([3, 4]))
        np.testing.assert_array_equal(label, i % 3)

    def test_the_most_distant_are_dropped_and_some_held_out(self):
        self.write()
        train, test = self.open(drop_most_distant=0.25, held_out=0.2)
        numbers = [items_at(d, np.arange(len(d)))["x0"][:, 0] for d in (train, test)]
        np.testing.assert_array_equal(numbers[0], np.arange(3, 15))
        np.testing.assert_array_equal(numbers[1], np.arange(3))
        self.assertNotEqual(train.content_hash, self.open().train.content_hash)
        with self.assertRaisesRegex(UserError, "held_out: got 0.01; of 20 pairs it holds out 0"):
            self.open(held_out=0.01)

    def test_a_folder_is_completed_and_extended(self):
        self.write(chunks=1)
        with self.assertRaisesRegex(UserError, "folder: got .*; 8 of 20 pairs are there"):
            self.open()
        self.write()
        whole = (self.folder / "pairs.bin").read_bytes()
        self.assertEqual(PairFolder(self.folder, facts(), 2 * CHUNK).done, 3)
        self.assertLen(self.open(held_out=0.0).train, 2 * CHUNK)
        self.write(chunks=4, count=30)
        self.assertTrue((self.folder / "pairs.bin").read_bytes().startswith(whole))
        self.assertLen(self.open(held_out=0.0).train, 30)

    def test_a_chunk_that_has_changed(self):
        self.write()
        records = bytearray((self.folder / "pairs.bin").read_bytes())
        whole = bytes(records)
        records[len(records) // 2] ^= 1
        (self.folder / "pairs.bin").write_bytes(records)
        with self.assertRaisesRegex(UserError, "folder: got .*; chunk 1 of pairs.bin is not what"):
            self.open()
        self.assertEqual(PairFolder(self.folder, facts(), COUNT).done, 1)
        self.write()  # from the changed chunk on
        self.assertEqual((self.folder / "pairs.bin").read_bytes(), whole)
        (self.folder / "pairs.bin").write_bytes(whole[:-1])
        with self.assertRaisesRegex(UserError, "chunk 2 of pairs.bin"):
            self.open()

    def test_other_settings_are_not_mixed(self):
        self.write(chunks=1, step=100)
        with self.assertRaisesRegex(UserError, "--mode: got 'generate_pairs'.*another step"):
            self.write(step=200)

    def test_pairs_that_do_not_fit(self):
        with self.assertRaisesRegex(UserError, "folder: .*pairs.json cannot be read there"):
            self.open()
        self.write(labels=False)
        with self.assertRaisesRegex(UserError, "folder: .*no labels: leave config.condition"):
            self.open()
        self.assertIsNone(self.open(labels=False).train.label)
        larger = dataclasses.replace(DATA, x=np.ones((3, 5), np.float32))
        with self.assertRaisesRegex(UserError, r"items of shape \(2,\)'; points has .* \(5,\)"):
            self.open(data=larger)
        other = dataclasses.replace(DATA, name="other", x=np.zeros((3, 2), np.float32))
        with self.assertRaisesRegex(UserError, "folder: .*of points 1'; the run has other 1"):
            self.open(data=other)
        (self.folder / "pairs.json").write_text('{"count": 3}')
        with self.assertRaisesRegex(UserError, "folder: .*its pairs.json is damaged"):
            self.open()

    @parameterized.parameters({"drop_most_distant": 1.0}, {"held_out": -0.1})
    def test_shares(self, **options):
        with self.assertRaisesRegex(UserError, f"{next(iter(options))}: got .*in .0, 1"):
            PairOptions("here", **options).validate()


if __name__ == "__main__":
    absltest.main()
