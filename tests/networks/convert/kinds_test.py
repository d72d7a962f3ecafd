from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.networks.convert.kinds import Told, convert
from flowmatch_jax.networks.convert.tensors import Tensor
from flowmatch_jax.runtime.errors import UserError
from tests.networks.convert import peers

EACH_CASE = [{"testcase_name": name, "name": name} for name in peers.CASES]
SOURCE = Path("weights.pt")


def tensors(state):
    return {name: Tensor(x.shape, x.dtype, lambda x=x: x) for name, x in state.items()}


def state_of(name):
    """The state dict of a case, as the project's own code had it for the record."""
    shapes, *_ = peers.recorded()[name]
    state = peers.weights({name: tuple(shape) for name, shape in shapes.items()})
    if name == "flow_matching_classes":
        state["label_emb.weight"][-1] = 0
    return state


def converted(name, state=None, **told):
    case = peers.CASES[name]
    told = Told(**{"side": peers.SIDE} | case.told | told)
    return convert(case.project, SOURCE, tensors(state_of(name) if state is None else state), told)


def computed(name, dtype=None):
    """What a converted network computes, for the inputs of the record."""
    case, network = peers.CASES[name], converted(name)
    x, given = peers.inputs(case)
    # Compiled for one call, so without optimisations.
    apply = jax.jit(
        network.network.clone(dtype=dtype).apply,
        compiler_options={"xla_backend_optimization_level": 0},
    )
    return np.asarray(apply({"params": network.params}, case.times, x, **given))


class OutputsTest(parameterized.TestCase):
    @parameterized.named_parameters(EACH_CASE)
    def test_outputs_are_those_of_the_projects_own_code(self, name):
        _, expected, _ = peers.recorded()[name]
        output = computed(name)
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    @parameterized.parameters("torchcfm", "adm_classes", "flow_matching")
    def test_rounding_errors_of_bfloat16_are_as_large_as_theirs(self, name):
        _, expected, error_of_theirs = peers.recorded()[name]
        error = peers.relative_error(computed(name, jnp.bfloat16), expected)
        self.assertLess(error, 2 * error_of_theirs)
        self.assertGreater(error, 1e-4)

    @parameterized.named_parameters(EACH_CASE)
    def test_the_record_is_of_the_installed_code(self, name):
        try:
            shapes, output = peers.computed(peers.CASES[name])
        except ImportError as absent:
            self.skipTest(f"{peers.CASES[name].project}'s code is not here: {absent}")
        recorded, expected, _ = peers.recorded()[name]
        self.assertEqual({n: list(shape) for n, shape in shapes.items()}, recorded)
        np.testing.assert_allclose(output, expected, atol=1e-4)


class RefusalsTest(parameterized.TestCase):
    def test_the_first_name_that_does_not_fit(self):
        state = state_of("torchcfm")
        for name, message in (
            ("time_embed.0.weight", "time_embed.0.weight is missing"),
            ("middle_block.1.qkv.bias", "middle_block.1.qkv.bias is missing"),
        ):
            rest = {n: x for n, x in state.items() if n != name}
            with self.assertRaisesRegex(UserError, f"another network: {message}"):
                converted("torchcfm", rest)
        with self.assertRaisesRegex(UserError, "another network: lora.weight is superfluous"):
            converted("torchcfm", state | {"lora.weight": np.zeros((2, 2), np.float32)})
        wrong = state | {"out.0.bias": np.zeros(5, np.float32)}
        with self.assertRaisesRegex(UserError, r"out.0.bias has shape \(5,\) instead of \(32,\)"):
            converted("torchcfm", wrong)
        integers = state | {"out.0.bias": np.zeros(32, np.int64)}
        with self.assertRaisesRegex(UserError, "out.0.bias has the dtype int64"):
            converted("torchcfm", integers)
        with self.assertRaisesRegex(UserError, "another network: time_embed.0.weight is missing"):
            converted("torchcfm", {"weight": np.zeros((2, 2), np.float32)})

    def test_what_a_file_does_not_tell_is_asked_for(self):
        with self.assertRaisesRegex(UserError, "--heads: got None; .* or --head_channels"):
            converted("torchcfm", heads=None)
        with self.assertRaisesRegex(UserError, "--heads: got 5; they must divide"):
            converted("torchcfm", heads=5)
        with self.assertRaisesRegex(UserError, "6 channels in and 6 out.*--low_resolution"):
            converted("adm_upsampler", is_conditional=False)

    def test_a_velocity_has_no_variance(self):
        case = peers.CASES["adm"]
        told = Told(side=peers.SIDE, **case.told)
        with self.assertRaisesRegex(UserError, "3 channels in and 6 out"):
            convert("torchcfm", SOURCE, tensors(state_of("adm")), told)

    def test_a_null_row_is_zero(self):
        state = state_of("flow_matching_classes")
        state["label_emb.weight"][-1] = 1
        with self.assertRaisesRegex(UserError, "last row of the class embedding.* must be zero"):
            converted("flow_matching_classes", state)


if __name__ == "__main__":
    absltest.main()
