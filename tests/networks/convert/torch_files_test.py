import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.networks.convert.torch_files import opened_torch, read_torch
from flowmatch_jax.runtime.errors import UserError
from tests.networks.convert.torch_files import (
    Call,
    FileTestCase,
    Global,
    as_legacy,
    as_zip,
    saved,
    tensor,
)

FORMATS = {"zip": as_zip, "legacy": as_legacy}
STATE = {
    "a.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
    "a.count": np.array(7),
    "half": np.array([0.5, -2], np.float16),
    "double": np.array([[0.1]]),
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


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


class OpenedTorchTest(FileTestCase):
    @parameterized.parameters(*FORMATS)
    def test_a_checkpoint_with_more_than_weights(self, file_format):
        storages = {str(i): array for i, array in enumerate(STATE.values())}
        tensors = {name: tensor(array, str(i)) for i, (name, array) in enumerate(STATE.items())}
        settings = Call(Global("argparse", "Namespace"))
        held = {"net": tensors, "step": 7, "args": settings}
        file = self.file(FORMATS[file_format](held, storages))
        with opened_torch(file) as read:
            self.assertEqual(read["step"], 7)
            self.assertEqual(vars(read["args"]), {})
            for name, array in STATE.items():
                self.assertIsInstance(read["net"][name], Tensor)
                self.assertEqual(read["net"][name].shape, array.shape)
                np.testing.assert_array_equal(read["net"][name].read(), array, strict=True)

    def test_damage_is_found_when_a_tensor_is_read(self):
        data = bytearray(saved({"weight": np.full(100, 3, np.float32)}))
        place = data.index(np.full(100, 3, np.float32).tobytes())
        data[place] ^= 1
        file = self.file(bytes(data))
        with opened_torch(file) as read, self.assertRaisesRegex(UserError, "Bad CRC-32"):
            read["weight"].read()

    @parameterized.parameters(*FORMATS)
    def test_bfloat16(self, file_format):
        array = np.asarray(jnp.array([1.5, -2.0], jnp.bfloat16))
        read = read_torch(self.file(saved({"weight": array}, FORMATS[file_format])))
        np.testing.assert_array_equal(read["weight"], array, strict=True)


if __name__ == "__main__":
    absltest.main()
