import signal
import threading
import time
from unittest import mock

import jax
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime import stops
from flowmatch_jax.runtime.errors import RunStopped
from tests.runtime.children import run_two


class StopNoticeTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        # Commands that shells start in the background ignore SIGINT, and under nohup SIGHUP.
        for number, handler in (
            (signal.SIGINT, signal.default_int_handler),
            (signal.SIGHUP, signal.SIG_DFL),
        ):
            self.addCleanup(signal.signal, number, signal.signal(number, handler))

    @parameterized.parameters(*stops.STOPS)
    def test_stops_at_the_next_step(self, number):
        before = signal.getsignal(number)
        with stops.StopNotice() as notice:
            self.assertFalse(notice.reached(1))
            self.assertIsNone(notice.signal)
            signal.raise_signal(number)
            self.assertTrue(notice.reached(7))
            self.assertEqual(notice.signal, signal.Signals(number).name)
        self.assertEqual(signal.getsignal(number), before)

    def test_second_signal_acts_as_before(self):
        with self.assertRaises(KeyboardInterrupt), stops.StopNotice():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    def test_one_signal_of_each_kind_is_two_first_ones(self):
        with stops.StopNotice() as notice:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            self.assertTrue(notice.reached(1))

    def test_signal_that_no_step_answers_acts_after_the_block(self):
        ended = False
        with self.assertRaises(KeyboardInterrupt), stops.StopNotice():
            signal.raise_signal(signal.SIGINT)
            ended = True
        self.assertTrue(ended)

    def test_what_is_ignored_stays_ignored(self):
        """As SIGHUP under nohup."""
        before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self.addCleanup(signal.signal, signal.SIGHUP, before)
        stops.interrupt_on_stops()
        with stops.StopNotice() as notice:
            signal.raise_signal(signal.SIGHUP)
            self.assertFalse(notice.reached(1))
        self.assertEqual(signal.getsignal(signal.SIGHUP), signal.SIG_IGN)

    @parameterized.parameters(signal.SIGTERM, signal.SIGHUP)
    def test_stops_interrupt_by_name(self, number):
        before = signal.signal(number, signal.SIG_DFL)
        self.addCleanup(signal.signal, number, before)
        stops.interrupt_on_stops()
        with self.assertRaisesRegex(KeyboardInterrupt, number.name):
            signal.raise_signal(number)

    def test_exception_passes(self):
        before = [signal.getsignal(number) for number in stops.STOPS]
        with self.assertRaises(RunStopped), stops.StopNotice():
            signal.raise_signal(signal.SIGINT)
            raise RunStopped("because")
        self.assertEqual(before, [signal.getsignal(number) for number in stops.STOPS])

    def test_silent_outside_the_main_thread(self):
        before = signal.getsignal(signal.SIGINT)
        seen = []

        def train():
            with stops.StopNotice() as notice:
                seen.extend([signal.getsignal(signal.SIGINT), notice.reached(1)])

        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
        self.assertEqual(seen, [before, False])

    def test_costs_microseconds(self):
        with stops.StopNotice() as notice:
            begin = time.perf_counter()
            for step in range(1000):
                notice.reached(step)
            self.assertLess((time.perf_counter() - begin) / 1000, 1e-4)


class TogetherTest(absltest.TestCase):
    def test_signals_after_the_run_went_back(self):
        """The next check was due at a step that it has not reached again."""

        def far_ahead(name, text):
            return [f"500 {text.split(' ')[1]}"]

        with (
            mock.patch.object(jax.distributed, "is_initialized", return_value=True),
            mock.patch.object(stops, "gather", side_effect=far_ahead) as gather,
            stops.StopNotice() as notice,
        ):
            self.assertFalse(notice.reached(1000))
            self.assertFalse(notice.reached(10))
            self.assertFalse(notice.reached(11))
            self.assertEqual(gather.call_count, 2)
            signal.raise_signal(signal.SIGTERM)
            self.assertTrue(notice.reached(510))

    def test_signals_stop_all_at_the_same_step(self):
        ends = run_two("""
        stops.POLL_INTERVAL = 0.1

        def train(victim, name):
            with stops.StopNotice() as notice:
                for step in range(0, 10**6, 3):
                    if step == 60 and me == victim:
                        os.kill(os.getpid(), getattr(signal, name))
                    if notice.reached(step):
                        return step, notice.signal
                    time.sleep(0.001)

        say(*train(1, "SIGTERM"))
        say(*train(0, "SIGTERM"))
        say(*train(1, "SIGINT"))
        processes.barrier("the end")
        """)
        for code, out, err in ends:
            self.assertEqual(code, 0, err)
            self.assertEqual(out, ends[0][1])
            self.assertEqual([line.split()[1] for line in out], ["SIGTERM", "SIGTERM", "SIGINT"])


if __name__ == "__main__":
    absltest.main()
