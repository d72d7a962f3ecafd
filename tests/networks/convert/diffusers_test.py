"""Names, shapes and outputs are compared in `kinds_test`."""

from absl.testing import absltest, parameterized

from flowmatch_jax.networks.convert.diffusers import OLDER
from flowmatch_jax.runtime.errors import UserError
from tests.networks.convert.kinds_test import converted, state_of


class SettingsTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"downsample_padding": 0}, "its settings are {'downsample_padding': 0, 'freq_shift': 0"),
        ({"norm_eps": 1e-6}, "its settings are .* instead of {'downsample_padding': 1"),
        ({"act_fn": "gelu"}, "its act_fn is 'gelu' instead of 'silu' or 'swish'"),
        ({"down_block_types": ["SkipDownBlock2D"]}, "it has a SkipDownBlock2D"),
    )
    def test_settings_that_are_not_ours(self, settings, message):
        with self.assertRaisesRegex(UserError, f"another network: {message}"):
            converted("diffusers", settings=settings)

    def test_older_names_of_attention(self):
        state = state_of("diffusers")
        for new, old in OLDER.items():
            state = {name.replace(f".{new}.", f".{old}."): x for name, x in state.items()}
        self.assertIn("mid_block.attentions.0.query.weight", state)
        before, after = converted("diffusers").params, converted("diffusers", state).params
        for block, layers in before.items():
            for name in layers:
                self.assertIn(name, after[block])
        qkv = [params["middle_attention"]["qkv"]["kernel"] for params in (before, after)]
        self.assertTrue((qkv[0] == qkv[1]).all())


if __name__ == "__main__":
    absltest.main()
