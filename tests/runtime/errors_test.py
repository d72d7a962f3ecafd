import math

import jax
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime.errors import (
    UserError,
    at_least,
    one_of,
    positive,
    section,
    seed,
    whole_numbers,
)


class ErrorsTest(parameterized.TestCase):
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

    @parameterized.parameters(math.nan, math.inf, -1.0)
    def test_neither_nan_nor_infinity_is_enough(self, value):
        for check in (lambda x: at_least("x", x, 0), lambda x: positive("x", x)):
            with self.assertRaisesRegex(UserError, f"x: got {value}; .*finite"):
                check(value)
        at_least("x", 0, 0)
        positive("x", 1e-30)
        with self.assertRaises(UserError):
            positive("x", 0.0)

    @parameterized.parameters(1.5, "a", True, 0, None)
    def test_elements_that_are_no_whole_numbers(self, element):
        whole_numbers("k", (1, 20), 1)
        with self.assertRaisesRegex(UserError, f"k: got {element!r}; .*whole numbers of 1"):
            whole_numbers("k", (1, element), 1)

    @parameterized.parameters(-1, 2**32, 2**63, 2**80)
    def test_seeds_that_keys_cannot_tell_from_others(self, number):
        with self.assertRaisesRegex(UserError, "seed: got"):
            seed("seed", number)
        for fine in (0, 2**32 - 1):
            seed("seed", fine)
        keys = {jax.random.key_data(jax.random.key(n)).tobytes() for n in (0, 1, 2**32 - 1)}
        self.assertLen(keys, 3)


if __name__ == "__main__":
    absltest.main()
