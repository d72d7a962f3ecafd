import hashlib

import flax.linen as nn
import jax
import numpy as np
from absl.testing import absltest

from flowmatch_jax.metrics.features.torch_weights import checked_sha256, folded_params
from flowmatch_jax.runtime.errors import UserError
from tests.networks.convert.torch_files import FileTestCase, saved


class Sha256Test(FileTestCase):
    def test_both_hashes_are_told(self):
        path, expected = self.file(b"abc"), "0" * 64
        found = hashlib.sha256(b"abc").hexdigest()
        self.assertEqual(checked_sha256(path, found), found)
        self.assertEqual(checked_sha256(path, None), found)
        with self.assertRaisesRegex(UserError, "No such file"):
            checked_sha256(path.with_name("none"), None)
        with self.assertRaisesRegex(UserError, f"must be {expected}, and is {found}"):
            checked_sha256(path, expected)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 2), name="conv")(x)
        return nn.Dense(5, name="fc")(x.mean(axis=(1, 2)))


class FoldedParamsTest(FileTestCase):
    def setUp(self):
        super().setUp()
        self.rng = np.random.RandomState(0)
        self.x = self.rng.randn(2, 6, 5, 3).astype(np.float32)
        self.shapes = jax.eval_shape(Net().init, jax.random.key(0), self.x)["params"]
        sizes = {"conv.weight": (4, 3, 3, 2), "fc.weight": (5, 4), "fc.bias": (5,)}
        sizes |= {f"norm.{name}": (4,) for name in ("weight", "bias", "running_mean")}
        self.state = {name: self.rng.randn(*shape) for name, shape in sizes.items()}
        self.state["norm.running_var"] = self.rng.uniform(0.1, 2, 4)
        self.state["norm.num_batches_tracked"] = np.array(1)

    def fold(self, state):
        names = {"conv": ("conv", "norm"), "fc": ("fc", None)}
        return folded_params(self.file(saved(state)), self.shapes, names.get, epsilon=1e-3)

    def test_a_convolution_and_its_norm(self):
        state = self.state
        kernel = state["conv.weight"].transpose(2, 3, 1, 0)
        h = nn.Conv(4, (3, 2), use_bias=False).apply({"params": {"kernel": kernel}}, self.x)
        norm = nn.BatchNorm(use_running_average=True, epsilon=1e-3)
        h = norm.apply(
            {
                "params": {"scale": state["norm.weight"], "bias": state["norm.bias"]},
                "batch_stats": {
                    "mean": state["norm.running_mean"],
                    "var": state["norm.running_var"],
                },
            },
            h,
        )
        expected = h.mean(axis=(1, 2)) @ state["fc.weight"].T + state["fc.bias"]
        folded = Net().apply({"params": self.fold(state)}, self.x)
        np.testing.assert_allclose(folded, expected, rtol=1e-5, atol=1e-5)

    def test_another_net(self):
        with self.assertRaisesRegex(UserError, r"another net: norm\.bias is missing"):
            self.fold({name: a for name, a in self.state.items() if name != "norm.bias"})
        with self.assertRaisesRegex(UserError, r"another net: aux\.bias is superfluous"):
            self.fold(self.state | {"aux.weight": np.zeros(1), "aux.bias": np.zeros(1)})
        for name, shape in (("fc.weight", (6, 4)), ("conv.weight", (4,)), ("norm.weight", ())):
            with self.assertRaisesRegex(UserError, f"another net: {name} has shape"):
                self.fold(self.state | {name: np.zeros(shape)})


if __name__ == "__main__":
    absltest.main()
