import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest
from flax import nnx

from flowmatch_jax.networks import is_network, pure_apply
from flowmatch_jax.networks.from_nnx import FromNNX

T, X = jnp.full(6, 0.5), jax.random.normal(jax.random.key(9), (6, 2))


class Network(nnx.Module):
    """Two hidden layers with dropout, and random frequencies that are not trained."""

    def __init__(self, width: int = 8, rate: float = 0.5, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(3, width, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(2)])
        self.dropouts = nnx.List([nnx.Dropout(rate, rngs=rngs) for _ in range(2)])
        self.frequencies = nnx.Variable(jax.random.normal(rngs.params(), (width,)))
        self.last = nnx.Linear(width, 2, rngs=rngs)

    def __call__(self, t, x, label=None):
        h = self.first(jnp.concatenate([x, t[:, None]], axis=-1))
        for layer, dropout in zip(self.layers, self.dropouts, strict=True):
            h = dropout(nnx.gelu(layer(h)))
        y = self.last(h * jnp.cos(self.frequencies[...]))
        return y if label is None else y + label[:, None]


class Normed(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.norm = nnx.BatchNorm(2, rngs=rngs)


class FromNNXTest(absltest.TestCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.network = FromNNX(Network)
        cls.params = cls.network.init(jax.random.key(3), T, X)
        cls.apply = staticmethod(pure_apply(cls.network))

    def test_it_computes_what_the_module_computes(self):
        module = Network(rngs=nnx.Rngs(0))
        module.eval()
        params = nnx.to_pure_dict(nnx.state(module, nnx.Param))
        np.testing.assert_array_equal(self.apply(params, T, X), module(T, X))
        label = jnp.arange(6)
        np.testing.assert_array_equal(self.apply(params, T, X, label=label), module(T, X, label))

    def test_parameters_are_a_function_of_the_key(self):
        self.assertTrue(is_network(self.network))
        again = self.network.init(jax.random.key(3), T, X)
        jax.tree.map(np.testing.assert_array_equal, again, self.params)
        other = self.network.init(jax.random.key(4), T, X)
        self.assertGreater(np.abs(other["first"]["kernel"] - again["first"]["kernel"]).max(), 0)
        self.assertEqual(set(self.params), {"first", "layers", "last"})  # no frequencies

    def test_what_is_not_trained_is_the_same_for_all(self):
        """In this and in other processes, for any key of the parameters."""
        np.testing.assert_array_equal(
            FromNNX(Network).apply(self.params, T, X), self.apply(self.params, T, X)
        )

    def test_dropout_is_of_the_key_and_of_training(self):
        first, again, other = (
            self.apply(self.params, T, X, key=jax.random.key(k)) for k in (1, 1, 2)
        )
        np.testing.assert_array_equal(first, again)
        self.assertGreater(jnp.abs(first - other).max(), 0)
        np.testing.assert_array_equal(self.apply(self.params, T, X), self.apply(self.params, T, X))
        none = FromNNX(lambda rngs: Network(rate=0.0, rngs=rngs))
        np.testing.assert_array_equal(
            none.apply(self.params, T, X, key=jax.random.key(1)), none.apply(self.params, T, X)
        )

    def test_layers_drop_different_units(self):
        """Of two dropout layers in a row, a fraction 1/4 of 4,096 units is left: 0.25 +- 0.007."""

        class Twice(nnx.Module):
            def __init__(self, rngs: nnx.Rngs):
                self.scale = nnx.Param(jnp.ones(()))
                self.first, self.second = (nnx.Dropout(0.5, rngs=rngs) for _ in range(2))

            def __call__(self, t, x):
                return self.second(self.first(x * self.scale[...]))

        x = jnp.ones((2048, 2))
        y = FromNNX(Twice).apply({"scale": jnp.ones(())}, T, x, key=jax.random.key(0))
        self.assertAlmostEqual(float((y > 0).mean()), 0.25, delta=4 * 0.007)

    def test_gradients(self):
        gradient = jax.grad(lambda p: jnp.sum(self.apply(p, T, X) ** 2))(self.params)
        jax.tree.map(lambda g, p: self.assertEqual(g.shape, p.shape), gradient, self.params)
        self.assertGreater(jnp.abs(gradient["layers"][1]["kernel"]).max(), 0)

    def test_what_is_refused(self):
        with self.assertRaisesRegex(TypeError, "batch statistics, which are not trained"):
            FromNNX(Normed)
        with self.assertRaisesRegex(TypeError, "makes an NNX module, and it made int"):
            FromNNX(lambda rngs: 3)


if __name__ == "__main__":
    absltest.main()
