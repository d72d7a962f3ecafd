import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.flow_maps import along_flow
from flowmatch_jax.networks import pure_apply
from flowmatch_jax.networks.unet import UNet
from flowmatch_jax.runtime.errors import UserError

TINY = {
    "out_channels": 2,
    "channels": 8,
    "multipliers": (1, 2),
    "depth": 1,
    "attention_sides": (4,),
}
PEERS = {
    "torchcfm_cifar10": (
        35_746_307,
        32,
        {
            "out_channels": 3,
            "channels": 128,
            "multipliers": (1, 2, 2, 2),
            "depth": 2,
            "attention_sides": (16,),
            "head_channels": 64,
            "scale_shift_norm": False,
        },
    ),
    "facebookresearch_cifar10": (
        55_676_419,
        32,
        {
            "out_channels": 3,
            "channels": 128,
            "multipliers": (2, 2, 2),
            "depth": 4,
            "attention_sides": (16,),
            "heads": 1,
            "conv_resampling": False,
        },
    ),
    "adm_imagenet64": (
        295_904_454,
        64,
        {
            "out_channels": 6,
            "channels": 192,
            "multipliers": (1, 2, 3, 4),
            "depth": 3,
            "attention_sides": (32, 16, 8),
            "head_channels": 64,
            "residual_resampling": True,
            "num_classes": 1000,
        },
    ),
}
# Every option that changes the structure, on a tiny network.
VARIANTS = {
    "plain": {},
    "added_embedding": {"scale_shift_norm": False},
    "plain_resampling": {"conv_resampling": False},
    "residual_resampling": {"residual_resampling": True},
    "head_channels": {"head_channels": 4},
    "attention_everywhere": {"attention_sides": (8, 4), "heads": 2},
    "one_level": {"multipliers": (1,), "attention_sides": ()},
}
EACH_VARIANT = [{"testcase_name": name, "options": options} for name, options in VARIANTS.items()]


def images(key=0, channels=2):
    return jax.random.normal(jax.random.key(key), (3, 8, 8, channels))


TIMES = jnp.array([0.1, 0.5, 0.9])


def parameters(module, *inputs):
    """Parameters away from the initial ones, where the network is not zero.

    NumPy draws them: compiling a random initialisation takes longer than compiling the network.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    rng = np.random.RandomState(0)
    return jax.tree.map(lambda p: jnp.asarray(0.3 * rng.randn(*p.shape), p.dtype), shapes)


class PeersTest(parameterized.TestCase):
    @parameterized.named_parameters((name, *peer) for name, peer in PEERS.items())
    def test_parameter_count(self, count, side, options):
        x = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        t = jax.ShapeDtypeStruct((1,), jnp.float32)
        variables = jax.eval_shape(UNet(**options).init, jax.random.key(0), t, x)
        self.assertEqual(sum(p.size for p in jax.tree.leaves(variables)), count)


class StructureTest(parameterized.TestCase):
    def test_zero_at_the_start(self):
        """So is each residual and attention branch."""
        module = UNet(**TINY)
        variables = jax.jit(module.init)(jax.random.key(0), TIMES, images())
        np.testing.assert_array_equal(jax.jit(module.apply)(variables, TIMES, images()), 0)
        blocks = [block for block in variables["params"].values() if "norm_out" in block]
        attentions = [block["proj"] for block in variables["params"].values() if "proj" in block]
        self.assertEqual((len(blocks), len(attentions)), (8, 4))
        for last in [block["conv_out"] for block in blocks] + attentions:
            np.testing.assert_array_equal(last["kernel"], 0)

    @parameterized.named_parameters(EACH_VARIANT)
    def test_equivariances(self, options):
        """Order of the batch; transposed kernels on transposed images; and where the side is
        halved by averaging, flipped kernels on flipped images."""
        module = UNet(**TINY | options)
        params = parameters(module, TIMES, images())
        apply = jax.jit(lambda params, t, x: module.apply({"params": params}, t, x))
        v = apply(params, TIMES, images())
        self.assertGreater(float(jnp.abs(v).max()), 0.1)

        order = jnp.array([2, 0, 1])
        permuted = apply(params, TIMES[order], images()[order])
        np.testing.assert_allclose(permuted, v[order], rtol=1e-4, atol=1e-4)

        def each_kernel(change):
            return jax.tree.map(lambda p: change(p) if p.ndim == 4 else p, params)

        transposed = each_kernel(lambda kernel: kernel.swapaxes(0, 1))
        np.testing.assert_allclose(
            apply(transposed, TIMES, images().swapaxes(1, 2)), v.swapaxes(1, 2), atol=1e-3
        )
        if "conv_resampling" in options or "residual_resampling" in options:
            flipped = each_kernel(lambda kernel: kernel[:, ::-1])
            np.testing.assert_allclose(
                apply(flipped, TIMES, images()[:, :, ::-1]), v[:, :, ::-1], atol=1e-3
            )

    def test_time(self):
        """A scalar is that time for each sample; and it matters."""
        module = UNet(**TINY)
        params = {"params": parameters(module, TIMES, images())}
        apply = jax.jit(module.apply)
        early, late = (apply(params, jnp.float32(t), images()) for t in (0.1, 0.9))
        each = apply(params, jnp.full(3, 0.1), images())
        np.testing.assert_allclose(early, each, rtol=1e-5)
        self.assertGreater(float(jnp.abs(early - late).max()), 1e-2)


class OptionsTest(parameterized.TestCase):
    def test_labels(self):
        module = UNet(**TINY, num_classes=5)
        label = jnp.array([0, 4, -1])
        params = {"params": parameters(module, TIMES, images(), label)}
        apply = jax.jit(module.apply)
        with_labels = apply(params, TIMES, images(), label)
        without = apply(params, TIMES, images())
        different = jnp.abs(with_labels - without).max(axis=(1, 2, 3)) > 1e-3
        np.testing.assert_array_equal(different, [True, True, False])

    def test_condition(self):
        module = UNet(**TINY, condition_channels=3)
        condition = images(1, channels=3)
        params = {"params": parameters(module, TIMES, images(), None, condition)}
        apply = jax.jit(module.apply)
        one, other = (apply(params, TIMES, images(), None, c) for c in (condition, 0 * condition))
        self.assertEqual(one.shape, images().shape)
        self.assertGreater(float(jnp.abs(one - other).max()), 1e-2)

    def test_dropout_in_training_only(self):
        module = UNet(**TINY, dropout=0.5)
        params = parameters(module, TIMES, images())
        apply = jax.jit(pure_apply(module))
        calm = [apply(params, TIMES, images()) for _ in range(2)]
        np.testing.assert_array_equal(*calm)
        first, again, second = (
            apply(params, TIMES, images(), key=jax.random.key(seed)) for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first, again)
        self.assertGreater(float(jnp.abs(first - second).max()), 1e-2)
        self.assertGreater(float(jnp.abs(first - calm[0]).max()), 1e-2)

    @parameterized.parameters(1.0, 1000.0)
    def test_bfloat16_tells_times_apart_as_float32_does(self, time_scale):
        """Rounded to bfloat16, a thousand times in [0.999, 1] have 15 different embeddings."""
        module = UNet(**TINY, time_scale=time_scale)
        t = jnp.linspace(0.999, 1, 1000)
        x = jnp.zeros((1000, *images().shape[1:]))
        params = {"params": parameters(module, TIMES, images())}
        embeddings = []
        for dtype in (None, jnp.bfloat16):
            network = module.clone(dtype=dtype)

            @jax.jit  # which leaves out what these do not depend on
            def embedding(network=network):
                is_last = lambda layer, _: layer.name == "time_1"  # noqa: E731
                _, seen = network.apply(params, t, x, capture_intermediates=is_last)
                return seen["intermediates"]["time_1"]["__call__"]

            embeddings += embedding()
        np.testing.assert_array_equal(*embeddings)
        self.assertEqual(embeddings[1].dtype, jnp.float32)
        self.assertGreater(len(np.unique(np.asarray(embeddings[1]), axis=0)), 900)

    def test_bfloat16_stays_inside(self):
        module = UNet(**TINY)
        params = {"params": parameters(module, TIMES, images())}
        full = jax.jit(module.apply)(params, TIMES, images())
        half = module.clone(dtype=jnp.bfloat16)
        low = jax.jit(half.apply)(params, TIMES, images())
        self.assertEqual(low.dtype, jnp.float32)
        error = float(jnp.sqrt(jnp.mean((low - full) ** 2) / jnp.mean(full**2)))
        self.assertBetween(error, 1e-5, 0.05)
        fresh = jax.eval_shape(half.init, jax.random.key(0), TIMES, images())
        self.assertEqual({p.dtype for p in jax.tree.leaves(fresh)}, {jnp.dtype("float32")})

    def test_float64_is_kept(self):
        with jax.enable_x64(True):
            module = UNet(**TINY)
            x = images().astype(jnp.float64)
            params = {"params": parameters(module, TIMES, images())}
            self.assertEqual(jax.eval_shape(module.apply, params, TIMES, x).dtype, jnp.float64)

    def test_rematerialisation_changes_nothing_but_memory(self):
        def gradient(remat):
            apply = pure_apply(UNet(**small, dropout=0.1, remat=remat))
            loss = lambda params: jnp.mean(  # noqa: E731
                apply(params, TIMES, images(), key=jax.random.key(5)) ** 2
            )
            return jax.jit(jax.grad(loss))(params)

        small = TINY | {"multipliers": (1,), "attention_sides": ()}  # it is in the middle, too
        params = parameters(UNet(**small), TIMES, images())
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            gradient(False),
            gradient(True),
        )


class TwoTimesTest(absltest.TestCase):
    """With a second time, for flow maps: attention, dropout and a label are there, too."""

    OPTIONS = TINY | {"num_classes": 4, "dropout": 0.3, "time_scale": 3.0}
    END = jnp.array([0.4, 0.6, 1.0])
    LABEL = jnp.array([1, -1, 3])

    def test_one_more_embedding_and_nothing_else(self):
        one, two = (UNet(**self.OPTIONS, two_times=two) for two in (False, True))
        before, after = (
            jax.eval_shape(module.init, jax.random.key(0), TIMES, images())["params"]
            for module in (one, two)
        )
        self.assertEqual(set(after) - set(before), {"duration_0", "duration_1"})
        for tower in (after.pop("duration_0"), after.pop("duration_1")):
            self.assertEqual(tower["bias"].shape, (32,))
        self.assertEqual(jax.tree.map(jnp.shape, before), jax.tree.map(jnp.shape, after))

    def test_without_an_end_it_is_at_t(self):
        module = UNet(**self.OPTIONS, two_times=True)
        params = {"params": parameters(module, TIMES, images())}
        apply = jax.jit(module.apply)
        at_t = apply(params, TIMES, images())
        np.testing.assert_array_equal(apply(params, TIMES, images(), end=TIMES), at_t)
        later = apply(params, TIMES, images(), end=self.END)
        self.assertGreater(float(jnp.abs(later - at_t).max()), 1e-2)
        with self.assertRaisesRegex(UserError, "end: .* takes one time"):
            UNet(**self.OPTIONS).apply(params, TIMES, images(), end=TIMES)

    def test_mean_flow_s_gradient_in_float64(self):
        """With du/dt by finite differences it is the same: forward and reverse mode are right."""
        with jax.enable_x64(True):
            # One level: convolutions_test.py has these derivatives of the steps between levels.
            one_level = self.OPTIONS | {"multipliers": (1,), "attention_sides": ()}
            module = UNet(**one_level, two_times=True)
            network = pure_apply(module)
            x, v = (images(key).astype(jnp.float64) for key in (0, 1))
            t, end = TIMES.astype(jnp.float64), self.END.astype(jnp.float64)
            params = parameters(module, t, x)
            params = jax.tree.map(lambda p: p.astype(jnp.float64), params)

            def gradient(derivative):
                def loss(params):
                    u = lambda t, s, x: network(  # noqa: E731
                        params, t, x, self.LABEL, end=s, key=jax.random.key(5)
                    )
                    value, du = derivative(u)
                    target = jax.lax.stop_gradient(v + (end - t)[:, None, None, None] * du)
                    return jnp.mean((value - target) ** 2)

                return jax.jit(jax.grad(loss))(params)

            def differences(u, h=1e-5):
                at = lambda sign: u(t + sign * h, end, x + sign * h * v)  # noqa: E731
                value, ahead, behind = jax.lax.map(at, jnp.array([0.0, 1.0, -1.0]))
                return value, (ahead - behind) / (2 * h)

            found = gradient(lambda u: along_flow(u, v, t, end, x))
            expected = gradient(differences)
            largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(expected))
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8 * largest),
                found,
                expected,
            )


class ErrorsTest(parameterized.TestCase):
    @parameterized.parameters(
        ({"multipliers": (1, 2, 2, 2, 2)}, "multipliers"),
        ({"multipliers": ()}, "multipliers"),
        ({"multipliers": (1, 0)}, "multipliers"),
        ({"multipliers": ("1", "x")}, "multipliers"),
        ({"depth": 0}, "depth"),
        ({"channels": 0}, "channels"),
        ({"heads": 3}, "heads"),
        ({"heads": 0}, "heads"),
        ({"head_channels": 0}, "head_channels"),
        ({"dropout": 1.0}, "dropout"),
        ({"attention_sides": (5,)}, "attention_sides"),
        ({"head_channels": 3}, "head_channels"),
    )
    def test_networks_that_cannot_be(self, options, field):
        with self.assertRaises(UserError) as caught:
            UNet(**TINY | options).validate((8, 8))
        self.assertEqual(caught.exception.field, field)

    def test_sides_that_cannot_be_halved_say_what_fits(self):
        with self.assertRaisesRegex(UserError, r"images are 28x28; give at most 3 multipliers"):
            UNet(out_channels=1, multipliers=(1, 2, 2, 2)).validate((28, 28))
        UNet(out_channels=1, multipliers=(1, 2, 2), attention_sides=(7,)).validate((28, 28))

    @parameterized.parameters(
        ({}, {"label": jnp.zeros(3, jnp.int32)}, "label"),
        ({}, {"condition": images()}, "condition"),
        ({"condition_channels": 3}, {}, "condition"),
        ({"condition_channels": 3}, {"condition": images(channels=2)}, "condition"),
    )
    def test_inputs_it_has_no_place_for(self, options, inputs, field):
        with self.assertRaises(UserError) as caught:
            UNet(**TINY | options).init(jax.random.key(0), TIMES, images(), **inputs)
        self.assertEqual(caught.exception.field, field)


if __name__ == "__main__":
    absltest.main()
