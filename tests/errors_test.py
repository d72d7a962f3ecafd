from absl.testing import absltest

from flowmatch_jax.errors import UserError, at_least, one_of, section


class ErrorsTest(absltest.TestCase):
    def test_field_value_and_remedy_in_one_line(self):
        with self.assertRaises(UserError) as caught:
            one_of("method", "rk5", {"euler": 1, "dopri5": 2})
        self.assertEqual(
            str(caught.exception), "method: got 'rk5'; it may be one of: dopri5, euler"
        )
        one_of("method", "euler", ["euler"])

    def test_sections_give_the_full_path(self):
        with (
            self.assertRaises(UserError) as caught,
            section("config.network"),
            section("unet"),
        ):
            at_least("depth", 0, 1)
        self.assertEqual(caught.exception.field, "config.network.unet.depth")

    def test_not_a_number_is_not_enough(self):
        with self.assertRaises(UserError):
            at_least("rtol", float("nan"), 0)


if __name__ == "__main__":
    absltest.main()
