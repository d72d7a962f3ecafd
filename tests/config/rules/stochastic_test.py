import jax
import jax.numpy as jnp
from absl.testing import absltest, parameterized

from configs import digits_ot
from flowmatch_jax.config.rules import validate
from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.solvers import Solver
from tests.evaluation.experiments import points


class ScoreTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"objective.coupling": "minibatch_ot"}, "the coupling is minibatch_ot"),
        ({"objective.coupling": "paired"}, "the coupling is paired"),
        ({"objective.coupling": "mine:antithetic"}, "the coupling is mine:antithetic"),
        ({"objective.name": "maximum_likelihood"}, "maximum_likelihood has none"),
        ({"source.name": "digits"}, "samples start from a dataset"),
    )
    def test_there_is_none(self, fields, reason):
        config = digits_ot.get_config()
        config.solver.update(method="sea", steps=4)
        validate(config)
        config.update_from_flattened_dict(fields)
        with self.assertRaisesRegex(UserError, f"config.solver.method: got 'sea'; .*{reason}"):
            validate(config)

    def test_a_script_s_solver(self):
        experiment = points(objective__coupling="minibatch_ot")
        draw = lambda solver: experiment.generate(  # noqa: E731
            jnp.ones(()), jnp.ones((2, 2)), jax.random.key(0), {}, solver
        )
        self.assertEqual(draw(Solver("euler", steps=1)).nfe, 1)
        with self.assertRaisesRegex(UserError, "config.solver.method: got 'sea'"):
            draw(Solver("sea", steps=1))


if __name__ == "__main__":
    absltest.main()
