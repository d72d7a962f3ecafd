from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.sampling import fitted
from flowmatch_jax.sampling.linear import of_method


class FileTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        self.path = Path(self.create_tempdir().full_path) / "solvers" / "5_calls.json"

    def test_what_is_written_is_read(self):
        wanted = of_method("ab2", np.linspace(0, 1, 6) ** 1.3)
        fitted.write(self.path, wanted, {"step": 7})
        got, facts = fitted.read(self.path)
        jax.tree.map(np.testing.assert_array_equal, got, wanted)
        self.assertEqual(facts, {"step": 7})
        self.assertEqual(fitted.content_hash(got), fitted.content_hash(wanted))
        other = of_method("ab2", np.linspace(0, 1, 6) ** 1.31)
        self.assertNotEqual(fitted.content_hash(other), fitted.content_hash(wanted))

    @parameterized.parameters(
        "",
        "[]",
        "{}",
        '{"calls": 1, "t": [0.0], "a": [1.0], "b": [["x"]]}',
        '{"calls": 2, "t": [0.0], "a": [1.0], "b": [[1.0]]}',
        '{"calls": 1, "t": [0.0], "a": [1.0], "b": [[1.0, 2.0]]}',
    )
    def test_what_is_no_solver_is_told(self, text):
        self.path.parent.mkdir()
        self.path.write_text(text)
        with self.assertRaisesRegex(UserError, "file.*5_calls.json.*no fitted solver"):
            fitted.read(self.path)

    def test_missing(self):
        with self.assertRaisesRegex(UserError, "--mode=fit_solver"):
            fitted.read(self.path)


if __name__ == "__main__":
    absltest.main()
