import queue
import socket
import threading
import time
from unittest import mock

from absl.testing import absltest, parameterized

from flowmatch_jax.runtime import lifeline
from tests.runtime.children import LIMIT, end, free_port, start_all

SOON = 40.0  # seconds in which a process that was killed is named


class KilledTest(parameterized.TestCase):
    def check(self, body, victim, count):
        """The others name it, in one line and with exit code 1."""
        children = start_all(body, count)
        children[victim].wait(timeout=LIMIT)
        begin = time.monotonic()
        others = [child for child in children if child is not children[victim]]
        for code, out, err in end(others):
            self.assertEqual((code, out[-1]), (1, "ready"), err)  # Gloo says something before
            self.assertStartsWith(err, f"error: process {victim} of {count} is gone (it failed, ")
            self.assertEqual(err.count("\n"), 1, err)
        self.assertLess(time.monotonic() - begin, SOON)
        end(children)

    @parameterized.parameters(0, 1)
    def test_in_collectives(self, victim):
        body = f"""
        import itertools
        from jax.experimental import multihost_utils
        try:
            for n in itertools.count():
                multihost_utils.sync_global_devices("again")
                if n == 0:
                    say("ready")
                if (me, n) == ({victim}, 50):
                    os.kill(os.getpid(), signal.SIGKILL)
        except Exception:
            processes.await_news()
            raise
        """
        self.check(body, victim, 2)

    def test_one_of_three(self):
        """Process 0 tells the third one; both are waiting outside Python."""
        body = """
        say("ready")
        processes.barrier("all have said so")
        if me == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.barrier("what 1 never reaches")
        """
        self.check(body, 1, 3)


class WatchTest(absltest.TestCase):
    """What process 0 makes of those that connect to it."""

    def setUp(self):
        super().setUp()
        said, self.ends = {}, queue.SimpleQueue()
        client = mock.Mock(key_value_set=said.__setitem__)
        self.enter_context(mock.patch.object(lifeline, "_end", lambda *end: self.ends.put(end)))
        self.enter_context(mock.patch.object(lifeline, "_leaving", threading.Event()))
        with mock.patch("atexit.register"):
            lifeline.watch(client, 0, 2, "127.0.0.1")
        (where,) = said.values()
        self.port, self.token = where.split()

    def hear(self, text):
        with socket.create_connection(("127.0.0.1", int(self.port))) as connection:
            connection.sendall(text.encode())

    def test_closed_without_a_word(self):
        self.hear(f"{self.token} 1\n")
        self.assertEqual(self.ends.get(timeout=LIMIT), (1, 2))

    def test_process_0_knows_those_that_watch(self):
        """Otherwise, one that is not told of a third's end blames process 0."""
        client = mock.Mock(blocking_key_value_get=lambda *_: f"{self.port} {self.token}")
        pause = lambda _: time.sleep(0.3)  # noqa: E731
        slowly = mock.patch.object(lifeline, "_ask_when_silent", side_effect=pause)
        with slowly, mock.patch("atexit.register") as register:
            lifeline.watch(client, 1, 3, "127.0.0.1")
        (say_bye, connection), _ = register.call_args
        self.hear(f"{self.token} 2\n")
        ends = {self.ends.get(timeout=LIMIT) for _ in range(2)}
        self.assertEqual(ends, {(2, 2), (2, 3)})  # of process 0, which knows of two, and of 1
        say_bye(connection)

    def test_end_in_order_and_strangers(self):
        for text in (f"{self.token} 1\nbye\n", "", "GET / HTTP/1.1\n", "\xff\n"):
            self.hear(text)
        with self.assertRaises(queue.Empty):
            self.ends.get(timeout=0.5)


class DetourTest(absltest.TestCase):
    def connect(self, port):
        host, _, here = lifeline.detour("127.0.0.1", port).rpartition(":")
        connection = socket.create_connection((host, int(here)))
        self.addCleanup(connection.close)
        return connection

    def test_stays_open_when_process_0_is_gone(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = self.connect(server.getsockname()[1])
            far, _ = server.accept()
        near.sendall(b"to")
        self.assertEqual(far.recv(2), b"to")
        far.sendall(b"fro")
        self.assertEqual(near.recv(3), b"fro")
        far.close()
        near.settimeout(0.5)
        with self.assertRaises(TimeoutError):
            near.recv(1)

    def test_closes_when_nobody_spoke(self):
        """JAX tries again until process 0 has started."""
        self.assertEqual(self.connect(free_port()).recv(1), b"")
        with socket.create_server(("127.0.0.1", 0)) as server:
            near = self.connect(server.getsockname()[1])
            server.accept()[0].close()
        self.assertEqual(near.recv(1), b"")


if __name__ == "__main__":
    absltest.main()
