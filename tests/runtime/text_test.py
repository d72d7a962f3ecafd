from absl.testing import absltest

from flowmatch_jax.runtime.text import aligned


class AlignedTest(absltest.TestCase):
    def test_columns(self):
        rows = [("name", "bytes", "where"), ("a", "1,000", ""), ("kernel", "7", "here")]
        expected = "name    bytes  where\na       1,000\nkernel      7  here"
        self.assertEqual(aligned(rows, right=(1,)), expected)

    def test_all_to_the_left(self):
        self.assertEqual(aligned([("a", "b"), ("long", "c")], right=()), "a     b\nlong  c")


if __name__ == "__main__":
    absltest.main()
