"""The frame of tests that draw into a folder."""

import csv
from pathlib import Path

from absl.testing import absltest
from PIL import Image


class FolderTestCase(absltest.TestCase):
    """A test with a folder of pictures and tables."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)

    def rows(self, name):
        with (self.folder / f"{name}.csv").open() as file:
            return [{k: v for k, v in row.items()} for row in csv.DictReader(file)]

    def pictures(self):
        return {path.stem for path in self.folder.glob("*.png") if Image.open(path).width > 100}
