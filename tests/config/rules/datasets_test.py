from absl.testing import absltest, parameterized

from configs import digits_3_to_8_ot, digits_ot, two_moons_to_gaussians_ot
from flowmatch_jax.config import rules
from flowmatch_jax.config.rules.datasets import check_source, data_options, source_options
from flowmatch_jax.runtime.errors import UserError


class OptionsTest(absltest.TestCase):
    def test_data_and_source_share_folder_and_patience(self):
        config = digits_3_to_8_ot.get_config()
        config.data.update(data_dir="/data", max_corrupt=3, storage="device")
        data, source = data_options(config.data), source_options(config)
        self.assertEqual((data.classes, source.classes), ((8,), (3,)))
        self.assertEqual((data.storage, source.storage), ("device", "memory"))
        for options in (data, source):
            self.assertEqual(
                (options.name, options.data_dir, options.max_corrupt), ("digits", "/data", 3)
            )


class SourceTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"objective.name": "ddpm"}, "objective.name: got 'ddpm'; .*use flow_matching or mean"),
        ({"objective.name": "maximum_likelihood"}, "objective.name"),
        ({"objective.name": "mean_flow", "source.noise": 0.5}, "objective.name: .*flow_matching$"),
        ({"objective.predicts": "score"}, "objective.predicts: got 'score'; .*use velocity"),
        ({"objective.coupling": "paired"}, "objective.coupling: got 'paired'; .*minibatch_ot"),
        (
            {"objective.coupling": "minibatch_ot", "source.paired": True},
            "objective.coupling: got 'minibatch_ot'; .*use independent",
        ),
        ({"path.name": "vp"}, "path.name: got 'vp'; .*use ot"),
        ({"data.dequantisation": "truncated_normal"}, "data.dequantisation: .*use uniform"),
        ({"condition.low_resolution": 4}, "condition.low_resolution: got 4; .*use None"),
        ({"solver.path": "vp"}, "solver.path: got 'vp'; .*use None"),
        ({"source.version": "old"}, "source.version: got 'old'; digits has one"),
        ({"source.name": "folder"}, "source.folder.path: got None"),
        ({"source.name": "cifar10", "source.paired": True}, "source.paired: .*max_corrupt to 0"),
    )
    def test_refused(self, fields, error):
        config = digits_3_to_8_ot.get_config()
        config.update_from_flattened_dict(fields)
        with self.assertRaisesRegex(UserError, f"^config.{error}"):
            check_source(config)

    @parameterized.parameters(
        ("paired", True),
        ("noise", 0.5),
        ("classes", (3,)),
        ("size", 8),
        ("version", "old"),
        ("folder.path", "pictures"),
        ("arrays.train", "images.npy"),
    )
    def test_only_with_a_source(self, name, value):
        config = digits_ot.get_config()
        config.source.update_from_flattened_dict({name: value})
        with self.assertRaisesRegex(UserError, f"config.source.{name}: .*config.source.name"):
            check_source(config)

    def test_options_only_with_a_source_of_one_s_own(self):
        config = digits_ot.get_config()
        config.source.options.side = 8
        with self.assertRaisesRegex(UserError, "config.source.options: .*a part of your own"):
            rules.validate(config)

    def test_allowed(self):
        config = two_moons_to_gaussians_ot.get_config()
        config.objective.coupling = "minibatch_ot"
        check_source(config)
        config.source.noise = 0.3
        check_source(config)
        config.source.noise, config.objective.name = 0.0, "alpha_flow"
        check_source(config)


if __name__ == "__main__":
    absltest.main()
