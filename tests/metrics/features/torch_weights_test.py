import hashlib
import pickle
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.metrics.features.torch_weights import checked_sha256, folded_params, read_torch
from flowmatch_jax.runtime.errors import UserError
from tests.metrics.features.torch_files import Call, Global, as_legacy, as_zip, saved, tensor

FORMATS = {"zip": as_zip, "legacy": as_legacy}
STATE = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.count": np.array(7),
    "half": np.array([0.5, -2], np.float16),
    "double": np.array([[0.1]]),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


class FileTestCase(parameterized.TestCase):
    def file(self, data):
        path = Path(self.create_tempdir().full_path) / "weights.pth"
        path.write_bytes(data)
        return path


class ReadTorchTest(FileTestCase):
    @parameterized.parameters(*FORMATS)
    def test_names_shapes_and_values(self, file_format):
        read = read_torch(self.file(saved(STATE, FORMATS[file_format])))
        self.assertEqual(list(read), list(STATE))
        for name, array in STATE.items():
            np.testing.assert_array_equal(read[name], array, strict=True)

    @parameterized.parameters(*FORMATS)
    def test_views_of_one_storage_and_parameters(self, file_format):
        storage = np.arange(12, dtype=np.float32)
        matrix = storage.reshape(3, 4)
        state = {
            "whole": tensor(storage, "0"),
            "transposed": tensor(storage, "0", shape=(4, 3), strides=(1, 4)),
            "row": tensor(storage, "0", shape=(4,), strides=(1,), offset=4),
        }
        rebuild = Global("torch._utils", "_rebuild_parameter")
        state["parameter"] = Call(rebuild, state["row"], True, {})
        read = read_torch(self.file(FORMATS[file_format](state, {"0": storage})))
        np.testing.assert_array_equal(read["whole"], storage)
        np.testing.assert_array_equal(read["transposed"], matrix.T)
        np.testing.assert_array_equal(read["row"], matrix[1])
        np.testing.assert_array_equal(read["parameter"], matrix[1])

    @parameterized.parameters(*FORMATS)
    def test_truncated_files(self, file_format):
        data = saved(STATE, FORMATS[file_format])
        for length in (0, 1, 3, 10, len(data) // 4, len(data) // 2, len(data) - 1):
            with self.assertRaisesRegex(UserError, "it must be a whole file of torch.save"):
                read_torch(self.file(data[:length]))

    @parameterized.parameters(*FORMATS)
    def test_other_classes_are_not_called(self, file_format):
        for module, name in (("os", "system"), ("builtins", "eval"), ("torch.nn", "Linear")):
            state = {"weight": Call(Global(module, name), "exit(1)")}
            with self.assertRaisesRegex(UserError, f"{module}.{name} is not allowed"):
                read_torch(self.file(FORMATS[file_format](state, {})))

    @parameterized.parameters(*FORMATS)
    def test_tensors_beyond_their_storage(self, file_format):
        storage = np.arange(6, dtype=np.float32)
        for layout in (
            {"shape": (3, 3), "strides": (3, 1)},
            {"shape": (6,), "strides": (1,), "offset": 1},
            {"shape": (2,), "strides": (-1,), "offset": 1},
            {"shape": (), "strides": (), "offset": 6},
        ):
            state = {"weight": tensor(storage, "0", **layout)}
            with self.assertRaisesRegex(UserError, "beyond its storage"):
                read_torch(self.file(FORMATS[file_format](state, {"0": storage})))

    @parameterized.parameters(*FORMATS)
    def test_storages_of_another_length(self, file_format):
        state = {"weight": tensor(np.zeros(3, np.float32), "0")}
        for length in (1, 2, 4):
            storages = {"0": np.zeros(length, np.float32)}
            with self.assertRaisesRegex(UserError, "it must be a whole file"):
                read_torch(self.file(FORMATS[file_format](state, storages)))
        state = {"weight": tensor(np.broadcast_to(np.float32(0), 10**15), "0", strides=(0,))}
        with self.assertRaisesRegex(UserError, "larger than the file"):
            read_torch(self.file(FORMATS[file_format](state, {})))

    @parameterized.named_parameters(
        ("text", b"these are no weights at all"),
        ("a pickle", pickle.dumps({"weight": 1.0})),
        ("another state", as_zip({"epoch": 3, "state_dict": {}}, {})),
        ("a list", as_zip((1, 2), {})),
        ("big endian", as_legacy({}, {}, little_endian=False)),
    )
    def test_other_files(self, data):
        with self.assertRaisesRegex(UserError, "it must be a whole file of torch.save"):
            read_torch(self.file(data))

    def test_no_file(self):
        path = Path(self.create_tempdir().full_path) / "none.pth"
        with self.assertRaisesRegex(UserError, "No such file"):
            read_torch(path)
        with self.assertRaisesRegex(UserError, "No such file"):
            checked_sha256(path, None)


class Sha256Test(FileTestCase):
    def test_both_hashes_are_told(self):
        path, expected = self.file(b"abc"), "0" * 64
        found = hashlib.sha256(b"abc").hexdigest()
        self.assertEqual(checked_sha256(path, found), found)
        self.assertEqual(checked_sha256(path, None), found)
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
