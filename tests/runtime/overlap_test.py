import threading
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime import overlap
from flowmatch_jax.runtime.overlap import mean_in_threads, overlapped


def by(threads):
    return mock.patch.object(overlap, "number_of_threads", return_value=threads)


class OverlapTest(parameterized.TestCase):
    @parameterized.parameters(1, 2, 3)
    def test_results_are_those_of_a_map(self, threads):
        function = jax.jit(lambda i: jnp.sin(i) * jnp.ones(3))
        with by(threads):
            found = list(overlapped(function, range(7)))
        np.testing.assert_array_equal(found, [function(i) for i in range(7)])

    @parameterized.parameters(0, 1)
    def test_few_items(self, items):
        with by(3):
            self.assertEqual(list(overlapped(str, range(items))), ["0"][:items])

    def test_two_at_a_time_after_the_first(self):
        """The second and the third wait for each other; the first is alone."""
        both = threading.Barrier(2, timeout=30)

        def function(item):
            if item:
                both.wait()
            return item, threading.get_ident()

        with by(2):
            found = list(overlapped(function, range(5)))
        self.assertEqual([item for item, _ in found], list(range(5)))
        idents = [ident for _, ident in found]
        self.assertEqual(idents[0], threading.get_ident())
        self.assertNotIn(idents[0], idents[1:])

    def test_an_error_and_an_end_before_the_last_one(self):
        called = []

        def function(item):
            called.append(item)
            if item == 2:
                raise ValueError("item 2")
            return item

        with by(2):
            results = overlapped(function, range(100))
            self.assertEqual([next(results), next(results)], [0, 1])
            with self.assertRaisesRegex(ValueError, "item 2"):
                next(results)
            stopped = overlapped(function, range(3, 100))
            next(stopped)
            next(stopped)
            stopped.close()
        self.assertLess(max(called), 10)

    def test_one_thread_for_accelerators_and_for_several_devices(self):
        for name, result in (("default_backend", "gpu"), ("device_count", 2)):
            with mock.patch.object(jax, name, return_value=result):
                self.assertEqual(overlap.number_of_threads(), 1, name)
        with (
            mock.patch.object(overlap.jax, "default_backend", return_value="cpu"),
            mock.patch.object(overlap.jax, "device_count", return_value=1),
            mock.patch.object(overlap.os, "cpu_count", side_effect=[2, 64, None]),
        ):
            self.assertEqual([overlap.number_of_threads() for _ in range(3)], [2, 4, 1])

    @parameterized.parameters((1, 1), (2, 2), (3, 3), (4, 1))
    def test_mean_over_equal_parts(self, threads, parts):
        """Six items are one part if four threads cannot share them equally."""
        batch, sizes = np.arange(6.0), []

        def function(part):
            sizes.append(len(part))
            return {"mean": part.mean(), "rows": np.full(2, part.mean())}

        with by(threads):
            found = mean_in_threads(function, batch)
        self.assertEqual(sizes, [6 // parts] * parts)
        np.testing.assert_allclose(found["mean"], 2.5)
        np.testing.assert_allclose(found["rows"], [2.5, 2.5])


if __name__ == "__main__":
    absltest.main()
