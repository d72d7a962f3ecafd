import numpy as np
from absl.testing import absltest, parameterized

from configs import digits_3_to_8_ot, digits_ot, two_moons_to_gaussians_ot
from flowmatch_jax.data.dataset import RecordedDataset
from flowmatch_jax.data.pipeline import train_batches
from flowmatch_jax.experiment import build
from flowmatch_jax.parts.data import make_data, make_pairing, make_source, with_starts
from flowmatch_jax.runtime.errors import UserError


class SourceTest(parameterized.TestCase):
    def test_noise(self):
        config = digits_ot.get_config()
        self.assertIsNone(make_source(config, make_data(config.data, None), None))

    def test_classes(self):
        config = digits_3_to_8_ot.get_config()
        data = make_data(config.data, None)
        source = make_source(config, data, None)
        for splits, label in ((source, 3), (data, 8)):
            for split in splits:
                self.assertEqual(set(split.label.tolist()), {label})
        self.assertNotEqual(source.train.content_hash, data.train.content_hash)

    @parameterized.parameters(
        ({"name": "checkerboard", "classes": ()}, r"items of shape \(2,\)'; those of digits"),
        ({"paired": True}, "digits has .*, and items are paired by their numbers"),
        ({"classes": (11,)}, "classes: got 11; no item of the train split of digits has it"),
        ({"name": "two_moons"}, "classes: .*two_moons has none"),
    )
    def test_refused(self, fields, error):
        config = digits_3_to_8_ot.get_config()
        config.source.update(fields)
        with self.assertRaisesRegex(UserError, f"^config.source.*{error}"):
            build(config)

    def test_pairs_by_number(self):
        """Item n of the source comes with item n of the data, whatever the order."""
        config = digits_ot.get_config()
        config.source.update(name="digits", paired=True)
        experiment = build(config)
        trained_on = experiment.trained_on.train
        self.assertIsNone(make_pairing(config, 17, 0, experiment.source.train))
        for batch, _ in zip(train_batches(trained_on, 8, seed=0), range(3), strict=False):
            np.testing.assert_array_equal(batch["x0"], batch["x"])
        self.assertEqual(trained_on.zeros(3)["x0"].dtype, np.uint8)
        self.assertEqual(experiment.source_levels, 17)
        starts = with_starts(experiment.trained_on, experiment.source)
        self.assertIs(starts.test.x0, experiment.source.test.x)

    def test_drawn_independently(self):
        config = two_moons_to_gaussians_ot.get_config()
        experiment = build(config)
        pairing = make_pairing(config, None, 7, experiment.source.train)
        self.assertIsNone(pairing.transport)
        self.assertIs(pairing.source, experiment.source.train)
        self.assertIsNone(experiment.trained_on.train.x0)

    def test_recorded_sources_are_not_opened(self):
        config = digits_3_to_8_ot.get_config()
        data = make_data(config.data, None)
        source = make_source(config, data, None)
        facts = {name: split.facts() for name, split in source._asdict().items()}
        config.source.classes = (4,)
        recorded = make_source(config, data, {"source": facts})
        self.assertIsInstance(recorded.test, RecordedDataset)
        self.assertEqual(recorded.test.shape, (8, 8, 1))
        with self.assertRaisesRegex(UserError, "config.source: .*the run has other digits data"):
            _ = recorded.test.x


if __name__ == "__main__":
    absltest.main()
