from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from safetensors.numpy import save_file

from flowmatch_jax.networks.convert.sources import metadata_of, opened_weights
from flowmatch_jax.runtime.errors import UserError
from tests.networks.convert.torch_files import as_zip, tensor


def numbered(n, *shape):
    return np.full(shape, n, np.float32)


def read(path, which=None):
    with opened_weights(path, which) as weights:
        return {name: tensor.read() for name, tensor in weights.items()}


class SourcesTest(parameterized.TestCase):
    def path(self, name):
        return Path(self.create_tempdir().full_path) / name

    def checkpoint(self, parts, name="weights.pt"):
        """A checkpoint with these state dicts, or numbers."""
        storages, held = {}, {}

        def entry(x):
            if isinstance(x, dict):
                return {name: entry(value) for name, value in x.items()}
            if not isinstance(x, np.ndarray):
                return x
            storages[str(len(storages))] = x
            return tensor(x, str(len(storages) - 1))

        held = entry(parts)
        path = self.path(name)
        path.write_bytes(as_zip(held, storages))
        return path

    def test_a_checkpoint_gives_the_averaged_weights(self):
        state = {"net_model": {"a": numbered(1, 2)}, "ema_model": {"a": numbered(2, 2)}}
        optimizer = {"state": {0: {"step": numbered(1)}}, "param_groups": [{"lr": 0.1}]}
        path = self.checkpoint(state | {"optim": optimizer, "step": 5})
        for which, value in ((None, 2), ("net_model", 1), ("ema_model", 2)):
            np.testing.assert_array_equal(read(path, which)["a"], numbered(value, 2))
        with self.assertRaisesRegex(UserError, "--weights: got 'net'; the file holds: net_model, "):
            read(path, "net")
        with self.assertRaisesRegex(UserError, "--weights: got None; give one of .* g, d"):
            read(self.checkpoint({"g": state["net_model"], "d": {"b": numbered(1)}}))

    @parameterized.parameters("module.", "model.module.", "_orig_mod.")
    def test_what_wrappers_add_to_names_is_left_out(self, prefix):
        path = self.checkpoint({"ema": {f"{prefix}a.weight": numbered(1, 2)}})
        self.assertEqual(list(read(path)), ["a.weight"])

    def test_averages_in_the_order_of_the_parameters(self):
        model = {"model.b": numbered(1, 2), "model.a": numbered(2, 3), "num_updates": np.array(4)}
        shadows = {"shadow_params.0": numbered(3, 2), "shadow_params.1": numbered(4, 3)}
        path = self.checkpoint({"model": model | shadows})
        for which, values in ((None, (3, 4)), ("raw", (1, 2))):
            weights = read(path, which)
            self.assertEqual(list(weights), ["b", "a"])
            np.testing.assert_array_equal(weights["b"], numbered(values[0], 2))
            np.testing.assert_array_equal(weights["a"], numbered(values[1], 3))

    def test_safetensors(self):
        path = self.path("weights.safetensors")
        state = {"a": numbered(1, 2, 3), "b": np.asarray(jnp.array([1.5], jnp.bfloat16))}
        save_file(state, path, {"format": "pt"})
        self.assertEqual(metadata_of(path), {"format": "pt"})
        with opened_weights(path) as weights:
            for name, array in state.items():
                self.assertEqual(weights[name].shape, array.shape)
                np.testing.assert_array_equal(weights[name].read(), array, strict=True)

    def test_files_that_cannot_be_read(self):
        whole = self.path("weights.safetensors")
        save_file({"a": numbered(1, 2, 3)}, whole)
        for data in (b"", b"no weights", whole.read_bytes()[:-1]):
            whole.write_bytes(data)
            with self.assertRaisesRegex(UserError, "SOURCE: .* whole file of safetensors"):
                read(whole)
        for path, message in (
            (whole.with_name("none.safetensors"), "No such file"),
            (whole.with_name("none.pt"), "No such file"),
            (whole.with_name("weights.h5"), "give a file that ends in .safetensors, .pt"),
            (self.checkpoint({"step": 1}), "it holds no state dict"),
        ):
            with self.assertRaisesRegex(UserError, message), opened_weights(path):
                pass


if __name__ == "__main__":
    absltest.main()
