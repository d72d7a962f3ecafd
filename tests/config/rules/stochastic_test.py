from absl.testing import absltest, parameterized

from configs import digits_ot
from flowmatch_jax.config.rules import validate
from flowmatch_jax.runtime.errors import UserError


class ScoreTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"coupling": "minibatch_ot"}, "the coupling is minibatch_ot"),
        ({"coupling": "paired"}, "the coupling is paired"),
        ({"coupling": "mine:antithetic"}, "the coupling is mine:antithetic"),
        ({"name": "maximum_likelihood"}, "maximum_likelihood has none"),
    )
    def test_there_is_none(self, fields, reason):
        config = digits_ot.get_config()
        config.solver.update(method="sea", steps=4)
        validate(config)
        config.objective.update(fields)
        with self.assertRaisesRegex(UserError, f"config.solver.method: got 'sea'; .*{reason}"):
            validate(config)


if __name__ == "__main__":
    absltest.main()
