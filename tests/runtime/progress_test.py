import io
import sys
from unittest import mock

import jax
from absl.testing import absltest

from flowmatch_jax.runtime.progress import progress_bar
from tests.runtime.terminal import Terminal


class ProgressTest(absltest.TestCase):
    def setUp(self):
        super().setUp()
        self.terminal, self.file = Terminal(), io.StringIO()

    def see(self, stderr):
        return mock.patch.object(sys, "stderr", stderr)

    def test_time_left_and_measurements(self):
        with self.see(self.terminal), progress_bar(total=8, desc="training") as bar:
            for _ in range(8):
                bar.set_postfix_str("loss 0.5, 70 images/s", refresh=False)
                bar.update(1)
        line, rest = self.terminal.screen()
        self.assertStartsWith(line, "training: 100%|")
        self.assertRegex(line, r"\| 8/8 \[00:\d\d, 00:00 left, loss 0.5, 70 images/s\]$")
        self.assertEqual(rest, "")

    def test_resumed(self):
        """The time that is left is by the steps of this start alone."""
        with self.see(self.terminal), progress_bar(total=100, initial=60, desc="training") as bar:
            bar.start_t -= 60
            bar.last_print_t -= 60
            bar.update(10)
            self.assertRegex(str(bar), r"^training:  70%\|.*\| 70/100 \[01:0\d, 0[23]:\d\d left\]")

    def test_few_lines_in_a_file(self):
        with self.see(self.file):
            with progress_bar(range(1000), desc="samples") as bar:
                for _ in bar:
                    pass
            self.assertEqual((bar.mininterval, bar.maxinterval), (30, 30))
        self.assertRegex(self.file.getvalue(), r"^samples: 1000/1000 \[00:\d\d, 00:00 left\]\n$")

    def test_lines_in_a_file_are_whole(self):
        with self.see(self.file), progress_bar(total=9, desc="samples") as bar:
            for _ in range(3):
                bar.last_print_t -= 31
                bar.update(3)
        lines = self.file.getvalue().splitlines()
        self.assertEqual(
            [line.split(" [")[0] for line in lines], [f"samples: {n}/9" for n in "369"]
        )

    def test_an_error_in_the_loop_ends_the_line(self):
        self.enter_context(self.see(self.terminal))
        with self.assertRaises(ZeroDivisionError), progress_bar(range(3), desc="samples") as bar:
            for i in bar:
                _ = 1 / (1 - i)
        self.assertEndsWith(self.terminal.getvalue(), "\n")

    def test_silence(self):
        with self.see(self.terminal):
            for _ in progress_bar(range(3), hidden=True):
                pass
            with mock.patch.object(jax, "process_index", return_value=1):
                for _ in progress_bar(range(3)):
                    pass
        self.assertEqual(self.terminal.getvalue(), "")


if __name__ == "__main__":
    absltest.main()
