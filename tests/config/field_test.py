from absl.testing import absltest
from ml_collections import ConfigDict

from flowmatch_jax.config.checks import least
from flowmatch_jax.config.field import (
    EVERYTHING,
    Field,
    Of,
    at,
    check,
    copied,
    defaults,
    flat,
    select,
)
from flowmatch_jax.config.fields import FIELDS, default_config
from flowmatch_jax.config.methods import METHODS
from flowmatch_jax.runtime.errors import UserError

SECTION = {
    "seed": Field(0, "The seed.", of=Of.RUN),
    "path": {
        "name": Field("ot", "Which.", of=EVERYTHING),
        "ot": {"width": Field(1.0, "A width.", least(0), EVERYTHING)},
        "vp": {"beta": Field(2.0, "A rate.", least(0), EVERYTHING)},
    },
    "size": Field(None, "A size.", least(1), Of.ROW, kind=int, before=4),
}


class FieldTest(absltest.TestCase):
    def test_defaults(self):
        config = defaults(SECTION)
        self.assertEqual((config.seed, config.path.ot.width, config.size), (0, 1.0, None))
        config.size = 3
        with self.assertRaises(TypeError):
            config.size = "three"

    def test_values_out_of_their_range_are_named_by_their_path(self):
        config = defaults(SECTION)
        check(SECTION, config)
        config.path.vp.beta = -1.0
        with self.assertRaisesRegex(UserError, "config.path.vp.beta: got -1.0; it must be 0"):
            check(SECTION, config)

    def test_what_values_identify(self):
        config = defaults(SECTION)
        wanted = {"seed": 0, "path": {"name": "ot", "ot": {"width": 1.0}}}
        self.assertEqual(select(SECTION, config, Of.RUN), wanted)
        flattened = {"seed": 0, "path.name": "ot", "path.ot.width": 1.0}
        self.assertEqual(dict(flat(select(SECTION, config, Of.RUN))), flattened)

    def test_free_form_fields(self):
        section = {"path": SECTION["path"] | {"options": Field({}, "Any.", of=EVERYTHING)}}
        config = defaults(section)
        self.assertEqual(
            select(section, config, Of.RUN), {"path": {"name": "ot", "ot": {"width": 1}}}
        )
        config.path.update(name="mine:make", options={"powers": (1, 2)})
        chosen = {"path": {"name": "mine:make", "options": {"powers": [1, 2]}}}
        self.assertEqual(select(section, config, Of.RUN), chosen)
        flattened = {"path.name": "mine:make", "path.options": {"powers": [1, 2]}}
        self.assertEqual(dict(flat(chosen)), flattened)
        self.assertEqual(defaults(section).path.options.to_dict(), {})  # and are no one else's

    def test_a_record_that_is_older_than_a_field(self):
        record = {"path": {"name": "vp", "vp": {"beta": 3.0}}}
        wanted = {"path": {"name": "vp", "vp": {"beta": 3.0}}, "size": 4}
        self.assertEqual(select(SECTION, record, Of.ROW), wanted)


class DeclarationsTest(absltest.TestCase):
    def test_every_field_says_what_it_means(self):
        paths = [path for path, _ in flat(default_config().to_dict())]
        self.assertGreater(len(paths), 100)
        for path in paths:
            self.assertRegex(at(FIELDS, path).help, r"\w.*\w", path)

    def test_the_defaults_are_in_range(self):
        check(FIELDS, default_config())

    def test_a_method_changes_no_more_than_it_says(self):
        """Path, objective, condition and name; some methods also what they are about."""
        of_maps = ("network.two_times", "network.unet.time_scale", "figures.nfe")
        further = {
            "tuned": ("network.unet.dropout", "optimizer.clip_norm"),
            "mean_flow": of_maps,
            "alpha_flow": of_maps,
            "reflow": ("figures.nfe",),
            "likelihood": ("data.dequantisation", "network.level_octaves"),
        }
        may_change = ("method", "path.name", "objective.", "condition.labels")
        for name, method in METHODS.items():
            before, after = (
                dict(flat(c.to_dict())) for c in (default_config(), method(default_config()))
            )
            changed = [path for path in before if before[path] != after[path]]
            self.assertNotEmpty(changed)
            allowed = (*may_change, *further.get(name, ()))
            for path in changed:
                self.assertTrue(path.startswith(allowed), f"{name}: {path}")

    def test_a_copy_shares_no_section(self):
        config = default_config()
        copied(config).evaluate.extractor = "inception"
        self.assertIsNone(config.evaluate.extractor)

    def test_config_dicts_and_records_select_alike(self):
        config = default_config()
        record = ConfigDict(config.to_dict()).to_dict()
        for of in (Of.RUN, Of.ROW, Of.SCORES, Of.FIGURES):
            self.assertEqual(select(FIELDS, config, of), select(FIELDS, record, of))


if __name__ == "__main__":
    absltest.main()
