"""The names are those of the record of the projects' own code; see `kinds_test`."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.networks.convert.adm import torch_arguments, torch_tensors
from tests.networks.convert import peers
from tests.networks.convert.kinds_test import converted, state_of

TORCHCFM = [name for name, case in peers.CASES.items() if case.project == "torchcfm"]


class ExportTest(parameterized.TestCase):
    @parameterized.parameters(*TORCHCFM)
    def test_a_round_trip_has_the_same_bits(self, name):
        # A file does not tell the order of q, k and v, and exported ones have the older.
        legacy = {"order": "legacy"}
        network = converted(name, **legacy)
        params = jax.tree.map(np.asarray, network.params)
        exported, state = torch_tensors(network.network, peers.SIDE, params), state_of(name)
        self.assertEqual({n: x.shape for n, x in exported.items()}, shapes(state))
        for tensor_name, array in state.items():
            np.testing.assert_array_equal(exported[tensor_name], array, strict=True)
        again = converted(name, exported, **legacy)
        jax.tree.map(np.testing.assert_array_equal, again.params, network.params)

    @parameterized.parameters(*TORCHCFM)
    def test_arguments(self, name):
        arguments = peers.CASES[name].arguments
        exported = torch_arguments(converted(name).network, peers.SIDE)
        for argument, value in arguments.items():
            if argument != "use_new_attention_order" and (value, argument) != (4, "num_heads"):
                same = jnp.array_equal(jnp.array(exported[argument]), jnp.array(value))
                self.assertTrue(same, argument)


def shapes(state):
    return {name: array.shape for name, array in state.items()}


if __name__ == "__main__":
    absltest.main()
