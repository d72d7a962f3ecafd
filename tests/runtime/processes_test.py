import os
import signal
import socket

import jax
from absl.testing import absltest, parameterized

from flowmatch_jax.runtime import processes
from flowmatch_jax.runtime.errors import UserError
from tests.runtime.children import LAUNCHERS, end, free_port, run_two, start


class FlagsTest(parameterized.TestCase):
    @parameterized.named_parameters(
        ("one", ("h:1", None, None), "--processes"),
        ("other", (None, 2, None), "--coordinator"),
        ("two", ("h:1", 2, None), "--process"),
        ("no_port", ("h", 2, 1), "--coordinator"),
        ("no_number", ("h:x", 2, 1), "--coordinator"),
        ("no_host", (":1", 2, 1), "--coordinator"),
        ("none", ("h:1", 0, 0), "--processes"),
        ("too_high", ("h:1", 2, 2), "--process"),
        ("negative", ("h:1", 2, -1), "--process"),
    )
    def test_mistake(self, given, field):
        with self.assertRaises(UserError) as caught:
            processes.initialize(*given)
        self.assertEqual(caught.exception.field, field)
        self.assertFalse(jax.distributed.is_initialized())

    def test_port_that_is_taken(self):
        with (
            socket.create_server(("", 0)) as server,
            self.assertRaisesRegex(UserError, "--coordinator.*cannot listen"),
        ):
            processes.initialize(f"127.0.0.1:{server.getsockname()[1]}", 2, 0)

    def test_port_that_is_none(self):
        with self.assertRaisesRegex(UserError, "--coordinator.*cannot listen"):
            processes.initialize("127.0.0.1:99999", 2, 0)


class AloneTest(parameterized.TestCase):
    """A process without others: nothing happens, and every function returns at once."""

    @parameterized.named_parameters(
        ("workstation", {}),
        ("one_host_of_tpus", {"TPU_ML_PLATFORM": "JAX", "TPU_SKIP_MDS_QUERY": "1"}),
        ("shell_of_salloc", {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}),
        (
            "shell_of_sbatch",
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_JOB_NODELIST": "node[1-2]",
            },
        ),
        (
            "interactive_step_of_salloc",
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "4",
                "SLURM_STEP_NUM_TASKS": "1",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "node1",
            },
        ),
        (
            "one_task",
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "1",
                "SLURM_PROCID": "0",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_NODELIST": "node1",
            },
        ),
        (
            "one_rank",
            {"OMPI_MCA_orte_hnp_uri": "4096.0;tcp://1.1.1.1:1", "OMPI_COMM_WORLD_SIZE": "1"},
        ),
    )
    def test_stays_alone(self, variables):
        others = {n: v for n, v in os.environ.items() if not n.startswith(LAUNCHERS)}
        with absltest.mock.patch.dict(os.environ, others | variables, clear=True):
            processes.initialize(None, None, None)
        self.assertFalse(jax.distributed.is_initialized())

    def test_nobody_to_wait_for(self):
        processes.barrier("here", seconds=0)
        processes.same_everywhere("--config", "{}")
        self.assertTrue(processes.everywhere(True))
        self.assertFalse(processes.everywhere(False))

    def test_leaves_with_its_code(self):
        with self.assertRaises(SystemExit) as caught:
            processes.leave(3)
        self.assertEqual(caught.exception.code, 3)


class JoinTest(parameterized.TestCase):
    MEET = """
    import jax
    say(jax.process_index(), jax.process_count(), jax.device_count())
    processes.barrier("the end")
    """

    def check(self, children):
        for me, (code, out, err) in enumerate(end(list(children))):
            self.assertEqual(code, 0, err)
            self.assertEqual(out, [f"{me} 2 2"])

    def test_slurm(self):
        common = {
            "SLURM_JOB_ID": "4711",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_TASKS": "2",
            "SLURM_STEP_NODELIST": "localhost",
            "JAX_COORDINATOR_PORT": str(free_port()),
        }
        self.check(
            start(self.MEET, me=me, SLURM_PROCID=str(me), SLURM_LOCALID=str(me), **common)
            for me in range(2)
        )

    def test_open_mpi(self):
        common = {
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://127.0.0.1:34911",
            "OMPI_COMM_WORLD_SIZE": "2",
            "JAX_COORDINATOR_PORT": str(free_port()),
        }
        ranks = ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK")
        self.check(
            start(self.MEET, me=me, **common, **dict.fromkeys(ranks, str(me))) for me in range(2)
        )

    def test_launcher_that_jax_does_not_know(self):
        variables = {"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "0"}
        ((code, _, err),) = end([start("", **variables)])
        self.assertEqual(code, 2, err)
        self.assertIn("--coordinator, --processes and --process", err)

    def test_missing_processes(self):
        """Whoever is there names who is not, and ends in one line with code 1."""
        lonely = free_port()
        joins = (
            (f'["127.0.0.1:{lonely}", 2, 0, 4]', "process 1 of 2 did not join within 4 s"),
            (
                f'["127.0.0.1:{free_port()}", 2, 1, 4]',
                "process 0 of 2 does not answer at 127.0.0.1",
            ),
        )
        ends = end([start("say('joined')", join) for join, _ in joins])
        for (code, out, err), (_, said) in zip(ends, joins, strict=True):
            self.assertEqual((code, out), (1, []), err)
            self.assertStartsWith(err, said)
            self.assertEqual(err.count("\n"), 1, err)

    def test_some_of_three(self):
        port = free_port()
        joins = [f'["127.0.0.1:{port}", 3, {me}, 5]' for me in range(2)]
        for code, _, err in end([start("", join) for join in joins]):
            self.assertEqual(code, 1, err)
            self.assertStartsWith(err, "not all of the 3 processes joined")


class TogetherTest(absltest.TestCase):
    def test_agreement(self):
        ends = run_two("""
        for _ in range(3):
            processes.barrier("again")
        say(processes.everywhere(True), processes.everywhere(me == 0), processes.everywhere(False))
        tell(processes.same_everywhere, "--config", '{"steps": 5}')
        ours = '{"seed": 1, "train": {"batch_size": 16, "steps": %d}}' % (100 + me)
        tell(processes.same_everywhere, "--config", ours)
        tell(processes.same_everywhere, "--config", "same again")
        """)
        for code, out, err in ends:
            self.assertEqual(code, 0, err)
            self.assertEqual(out[:2], ["True False False", "None"])
            self.assertStartsWith(out[2], "UserError --config of process 1 of 2: got '")
            for said in ('"steps": 101', "process 0 has '", '"steps": 100', "same command"):
                self.assertIn(said, out[2])
            self.assertEqual(out[3], "None")

    def test_barrier_names_who_is_missing(self):
        ends = run_two("""
        if me == 0:
            tell(processes.barrier, "checkpoint 500", 2)
        processes.barrier("later")
        if me == 1:
            tell(processes.barrier, "checkpoint 500", 2)
        processes.barrier("the end")
        """)
        for code, out, err in ends:
            self.assertEqual(code, 0, err)
            (line,) = out
            self.assertStartsWith(
                line, "RunStopped process 1 of 2 did not reach 'checkpoint 500' within 2 s; "
            )

    def test_failure_of_one_ends_the_other(self):
        ends = run_two("""
        processes.EXIT_TIMEOUT = 1.0
        if me == 1:
            processes.leave(2)
        processes.barrier("what 1 never reaches")
        """)
        self.assertEqual([code for code, _, _ in ends], [1, 2])
        self.assertStartsWith(ends[0][2], "error: process 1 of 2 is gone (it failed, ")

    def test_failure_of_all(self):
        for code, _, err in run_two("processes.leave(2)"):
            self.assertEqual((code, err), (2, ""))

    def test_between_trainings_a_signal_ends_a_process(self):
        """JAX's own handler of SIGTERM, which swallows it, is gone."""
        ends = run_two("""
        processes.barrier("the beginning")
        if me == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        processes.EXIT_TIMEOUT = 1.0
        processes.leave(1)
        """)
        self.assertEqual([code for code, _, _ in ends], [1, -signal.SIGTERM])


if __name__ == "__main__":
    absltest.main()
