import logging
import sys
import time
import warnings
from types import SimpleNamespace
from unittest import mock

import absl.logging
from absl.testing import absltest, flagsaver, parameterized

from flowmatch_jax.runtime import messages
from flowmatch_jax.runtime.progress import progress_bar
from tests.runtime.terminal import Terminal

ours = logging.getLogger("flowmatch_jax.somewhere")
theirs = logging.getLogger("jax._src.somewhere")


class MessagesTest(parameterized.TestCase):
    def setUp(self):
        super().setUp()
        package = logging.getLogger(messages.OURS)
        for logger in (logging.root, package):
            self.addCleanup(logger.setLevel, logger.level)
        self.addCleanup(setattr, logging.root, "handlers", logging.root.handlers)
        self.addCleanup(logging.captureWarnings, False)
        self.enter_context(flagsaver.flagsaver())
        self.terminal = Terminal()
        self.enter_context(mock.patch.object(sys, "stderr", self.terminal))
        absl.logging.use_absl_handler()  # as absl's app does

    def set_up(self):
        messages.set_up()
        messages.say_infos()

    def said(self):
        return self.terminal.getvalue()

    def test_short_lines(self):
        self.set_up()
        ours.debug("nobody asks")
        ours.info("Training on %d chips.", 8)
        ours.warning("A file is gone.")
        ours.error("All files are gone.")
        expected = "Training on 8 chips.\nwarning: A file is gone.\nerror: All files are gone.\n"
        self.assertEqual(self.said(), expected)

    def test_of_libraries_warnings_alone_with_their_name(self):
        self.set_up()
        theirs.info("thinking")
        theirs.warning("no GPU")
        self.assertEqual(self.said(), "warning: jax._src.somewhere: no GPU\n")

    def test_writes_of_a_checkpoint_that_was_given_up_are_not_reported(self):
        """At a full disk they are hundreds; the full disk itself is reported."""
        self.addCleanup(setattr, sys, "unraisablehook", sys.unraisablehook)
        self.set_up()
        default = self.enter_context(mock.patch.object(sys, "__unraisablehook__"))
        for text in ("Event loop is closed", "another one"):
            sys.unraisablehook(SimpleNamespace(exc_value=RuntimeError(text)))
        for kind in ("Task", "Future", "_GatheringFuture"):
            logging.getLogger("asyncio").error(f"{kind} exception was never retrieved")
        (reported,) = default.call_args.args
        self.assertEqual((str(reported.exc_value), default.call_count), ("another one", 1))
        self.assertEqual(self.said(), "")

    def test_processes_that_say_no_infos_say_warnings(self):
        messages.set_up()
        ours.info("Training.")
        ours.warning("A file is gone.")
        self.assertEqual(self.said(), "warning: A file is gone.\n")

    @parameterized.parameters(("-1", [1]), ("-2", []), ("0", [0, 1, 2]), ("1", [0, 1, 2]))
    def test_verbosity(self, verbosity, expected):
        lines = ["Training.", "warning: A file is gone.", "jax._src.somewhere: thinking"]
        with flagsaver.as_parsed(verbosity=verbosity):
            self.set_up()
            ours.info("Training.")
            ours.warning("A file is gone.")
            theirs.info("thinking")
        self.assertEqual(self.said().splitlines(), [lines[i] for i in expected])

    def test_clear_of_progress_bars(self):
        self.set_up()
        with progress_bar(total=4, desc="training") as bar:
            bar.update(2)
            ours.info("Saved.")
            bar.update(2)
        first, second, rest = self.terminal.screen()
        self.assertEqual((first, rest), ("Saved.", ""))
        self.assertStartsWith(second, "training: 100%|")

    def test_warnings_of_python(self):
        self.set_up()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a loss of precision", UserWarning, stacklevel=1)
        self.assertRegex(self.said(), r"^warning: .*messages_test.py:\d+: UserWarning: a loss of")

    def test_tracebacks_stay(self):
        self.set_up()
        try:
            _ = 1 / 0
        except ZeroDivisionError:
            theirs.exception("it failed")
        self.assertStartsWith(self.said(), "error: jax._src.somewhere: it failed\nTraceback")
        self.assertIn("ZeroDivisionError", self.said())

    @parameterized.parameters(("-1", 1), ("1", 5))
    def test_what_orbax_says_in_vain(self, verbosity, expected):
        """Its warning at each reading, and errors that it raises again elsewhere."""
        where = "[process=0][thread=MainThread][step=110][wait_until_finished]"
        with flagsaver.as_parsed(verbosity=verbosity):
            self.set_up()
            absl.logging.warning("Given directory is read only=%s", "/runs/a")
            absl.logging.error("%s Save Finalize thread (%s) failed.", where, "save_finalize")
            absl.logging.error("%s _SignalingThread.run() raised an exception: full", where)
            absl.logging.error("%s Failed to run 5 Handler Commit operations", where)
            absl.logging.error("A checkpoint is gone.")
        self.assertLen(self.said().splitlines(), expected)
        self.assertEndsWith(self.said(), "error: absl: A checkpoint is gone.\n")


class CompilingTest(absltest.TestCase):
    def test_long(self):
        logs = self.enter_context(self.assertLogs(messages.__name__, "INFO"))
        with messages.compiling("the sampler", patience=0.02):
            while not logs.records:  # it is said while it compiles
                time.sleep(0.01)
        first, last = (record.getMessage() for record in logs.records)
        self.assertEqual(first, "Compiling the sampler...")
        self.assertRegex(last, r"^Compiled the sampler in \d+\.\d s\.$")

    def test_short(self):
        with self.assertNoLogs(messages.__name__, "INFO"), messages.compiling("the sampler"):
            pass

    def test_failure(self):
        logs = self.enter_context(self.assertLogs(messages.__name__, "INFO"))
        with self.assertRaises(ZeroDivisionError), messages.compiling("it", patience=0.02):
            while not logs.records:
                time.sleep(0.01)
            _ = 1 / 0
        self.assertLen(logs.records, 1)


if __name__ == "__main__":
    absltest.main()
