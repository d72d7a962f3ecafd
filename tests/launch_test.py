import io
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml
from absl.testing import absltest, parameterized

from flowmatch_jax import command as entry
from flowmatch_jax import launch
from flowmatch_jax.config.command_line import load_config, split_overrides
from flowmatch_jax.runtime.errors import UserError

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs" / "launch"
LIMIT = 120  # seconds after which a launcher hangs
# What scripts begin with: main.py's flags as a dictionary.
BEGIN = """
import os, signal, sys
given = dict(argument.lstrip("-").split("=", 1) for argument in sys.argv[1:])
me = int(given["process"])
"""


class ScriptsTest(parameterized.TestCase):
    def start(self, body, *flags, arguments=(), **variables):
        script = self.create_tempfile("script.py", BEGIN + body).full_path
        return subprocess.Popen(
            [sys.executable, "-m", "flowmatch_jax.launch", *flags, script, *arguments],
            cwd=ROOT,
            env=os.environ | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Tests that are run under nohup ignore it, and so would what they start.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )

    def run_script(self, body, *flags, **options):
        """Exit code, stdout's lines sorted, stderr."""
        with self.start(body, *flags, **options) as launcher:
            try:
                out, err = launcher.communicate(timeout=LIMIT)
            finally:
                launcher.kill()
        return launcher.returncode, sorted(out.splitlines()), err

    def test_lines_begin_with_the_process(self):
        body = r"""
print("hello", given["rate"])
print()
sys.stderr.write("\r 50%|#\r100%|##\n")
print("no end of the line", end="")
"""
        code, out, err = self.run_script(body, "--processes=2", arguments=["--rate=3"])
        self.assertEqual(code, 0, err)
        expected = [f"[{i}] {said}" for i in range(2) for said in ("hello 3", "no end of the line")]
        self.assertEqual(out, expected)
        expected = [f"[{i}] {bar}" for i in range(2) for bar in ("100%|##", " 50%|#")]
        self.assertCountEqual(err.splitlines(), expected)

    def test_processes_find_each_other(self):
        body = """
from flowmatch_jax.runtime import processes
processes.initialize(given["coordinator"], int(given["processes"]), me)
import jax
print(jax.default_backend(), jax.process_index(), jax.local_device_count(), jax.device_count())
processes.barrier("the end")
"""
        code, out, err = self.run_script(
            body,
            "--processes=2",
            "--devices=3",
            XLA_FLAGS="--xla_force_host_platform_device_count=8",
            PYTHONPATH=str(ROOT),
        )
        self.assertEqual(code, 0, err)
        self.assertEqual(out, ["[0] cpu 0 3 6", "[1] cpu 1 3 6"])

    def run_impatiently(self, body, *flags):
        """The exit code of a launcher that waits a second where it waits long otherwise."""
        script = self.create_tempfile("script.py", BEGIN + body).full_path
        launcher = (
            "from flowmatch_jax import launch; launch.FOLLOW = launch.END = 1.0;"
            f"raise SystemExit(launch.main({[*flags, script]}))"
        )
        child = subprocess.run(
            [sys.executable, "-c", launcher],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        return child.returncode, child.stderr

    def test_failure_ends_the_others(self):
        """The first exit code counts, not those of the processes that are ended after it."""
        body = """
if me == 1:
    sys.exit(7)
signal.pause()
"""
        code, err = self.run_impatiently(body, "--processes=3")
        self.assertEqual(code, 7)
        said = "launch: process 1 failed with exit code 7; the others are ended\n"
        self.assertEqual(err, said)

    def test_what_does_not_end_is_killed(self):
        body = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if me == 1:
    os.kill(os.getpid(), signal.SIGKILL)
while True:
    signal.pause()
"""
        code, err = self.run_impatiently(body, "--processes=2")
        self.assertEqual(code, 128 + signal.SIGKILL)
        self.assertEqual(err, "launch: process 1 was ended by SIGKILL; the others are ended\n")

    def test_processes_end_with_a_launcher_that_is_killed(self):
        body = "print(os.getpid(), flush=True)\nsignal.pause()\n"
        with self.start(body, "--processes=2") as launcher:
            pids = [int(launcher.stdout.readline().split()[1]) for _ in range(2)]
            launcher.kill()
        deadline = time.monotonic() + LIMIT
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            self.assertLess(time.monotonic(), deadline)
            time.sleep(0.05)

    def test_processes_end_when_nobody_reads_them(self):
        """As after ``| head -1``: they would fill the pipe and wait."""
        body = "while True:\n    print('x' * 1000, flush=True)\n"
        with self.start(body, "--processes=2") as launcher:
            self.assertStartsWith(launcher.stdout.readline(), "[")
            launcher.stdout.close()
            self.assertEqual(launcher.wait(timeout=LIMIT), 128 + signal.SIGTERM)
            launcher.stderr.close()

    def stop(self, body, number):
        """Signal a launcher whose processes say "ready"; the lines after it, and the exit code."""
        with self.start(body, "--processes=2", PYTHONPATH=str(ROOT)) as launcher:
            try:
                ready = [launcher.stdout.readline() for _ in range(2)]
                launcher.send_signal(number)
                out, err = launcher.communicate(timeout=LIMIT)
            finally:
                launcher.kill()
        self.assertEqual((sorted(ready), err), (["[0] ready\n", "[1] ready\n"], ""))
        return sorted(out.splitlines()), launcher.returncode

    @parameterized.parameters(*launch.STOPS)
    def test_signal_is_handed_on_once(self, number):
        """To all, and all may end in their own time."""
        body = """
stops = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
signal.pthread_sigmask(signal.SIG_BLOCK, stops)
print("ready", flush=True)
print(signal.sigwait(stops), signal.sigtimedwait(stops, 0.5), flush=True)
sys.exit(1)
"""
        out, code = self.stop(body, number)
        self.assertEqual((out, code), ([f"[{i}] {number:d} None" for i in range(2)], 1))

    def test_run_stops_at_the_same_step(self):
        body = """
import itertools, time
from flowmatch_jax.runtime import processes, stops
stops.POLL_INTERVAL = 0.1
processes.initialize(given["coordinator"], int(given["processes"]), me)
with stops.StopNotice() as notice:
    for step in itertools.count():
        if step == 10:
            print("ready", flush=True)
        if notice.reached(step):
            break
        time.sleep(0.001)
print(step, notice.signal)
processes.leave(1)
"""
        out, code = self.stop(body, signal.SIGTERM)
        self.assertEqual(code, 1)
        self.assertEndsWith(out[0], " SIGTERM")
        self.assertEqual([line.split("] ")[1] for line in out], [out[0].split("] ")[1]] * 2)

    def test_children_have_sessions_of_their_own(self):
        """A terminal's Ctrl-C reaches the launcher alone."""
        code, out, err = self.run_script("print(os.getsid(0) == os.getpid())", "--processes=2")
        self.assertEqual((code, out), (0, ["[0] True", "[1] True"]), err)

    @parameterized.named_parameters(
        ("no_processes", ("main.py",), "--processes"),
        ("not_a_number", ("--processes=two", "main.py"), "'two'"),
        ("none", ("--processes=0", "main.py"), "--processes: got 0"),
        ("no_devices", ("--processes=1", "--devices=0", "main.py"), "--devices: got 0"),
        ("no_script", ("--processes=2",), "script"),
        ("no_such_script", ("--processes=2", "mian.py"), "'mian.py'; there is no such file"),
        ("no_such_flag", ("--process=2", "main.py"), "--process"),
    )
    def test_mistake(self, arguments, said):
        with absltest.mock.patch.object(sys, "stderr", io.StringIO()) as stderr:
            self.assertEqual(launch.main(arguments), 2)
        self.assertStartsWith(stderr.getvalue(), "error: ")
        self.assertEqual(stderr.getvalue().count("\n"), 1)
        self.assertIn(said, stderr.getvalue())


class EnvironmentsTest(parameterized.TestCase):
    def gpus(self, processes, **variables):
        of_each = launch.environments(processes, None, variables)
        return [environment.get("CUDA_VISIBLE_DEVICES") for environment in of_each]

    def test_gpus_are_shared_out(self):
        self.assertEqual(self.gpus(2, CUDA_VISIBLE_DEVICES="0,1,2,3"), ["0,1", "2,3"])
        self.assertEqual(self.gpus(2, CUDA_VISIBLE_DEVICES="GPU-a, GPU-b"), ["GPU-a", "GPU-b"])

    def test_no_gpus(self):
        self.assertEqual(self.gpus(2, CUDA_VISIBLE_DEVICES=""), ["", ""])
        self.assertEqual(self.gpus(3, CUDA_VISIBLE_DEVICES="0,1", JAX_PLATFORMS="cpu"), ["0,1"] * 3)

    def test_gpus_that_processes_do_not_divide(self):
        with self.assertRaisesRegex(UserError, "--processes: got 3.*visible GPUs, 4"):
            self.gpus(3, CUDA_VISIBLE_DEVICES="0,1,2,3")

    def test_simulated_devices(self):
        for environment in launch.environments(2, 4, {"CUDA_VISIBLE_DEVICES": "0", "A": "b"}):
            self.assertEqual(environment["JAX_PLATFORMS"], "cpu")
            self.assertEqual(environment["JAX_NUM_CPU_DEVICES"], "4")
            self.assertEqual(environment["A"], "b")


class RecipesTest(parameterized.TestCase):
    @parameterized.parameters("slurm.sh", "tpu_pod.sh")
    def test_shell(self, name):
        checked = subprocess.run(
            ["bash", "-n", str(RECIPES / name)], capture_output=True, text=True, check=False
        )
        self.assertEqual((checked.returncode, checked.stderr), (0, ""))

    def test_job_set(self):
        """Numbers and names that must fit each other do."""
        recipe = yaml.safe_load((RECIPES / "jobset.yaml").read_text())
        (jobs,) = recipe["spec"]["replicatedJobs"]
        job = jobs["template"]["spec"]
        self.assertEqual(job["parallelism"], job["completions"])
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        flags = dict(flag[2:].split("=", 1) for flag in container["command"][2:])
        name = recipe["metadata"]["name"]
        self.assertEqual(flags["coordinator"], f"{name}-{jobs['name']}-0-0.{name}:8476")
        self.assertEqual(flags["processes"], str(job["parallelism"]))
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        self.assertEqual(mounted, {volume["name"] for volume in pod["volumes"]})

    @parameterized.parameters("slurm.sh", "tpu_pod.sh", "jobset.yaml")
    def test_flags_are_of_main(self, name):
        overrides, others = split_overrides(self.flags_of_main((RECIPES / name).read_text()))
        self.assertNotEmpty(overrides)
        given = dict(flag[2:].split("=", 1) for flag in others)
        self.assertContainsSubset({"config", "workdir"}, given)
        defined = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', Path(entry.__file__).read_text())
        self.assertContainsSubset(given, defined)
        load_config(str(ROOT / given["config"]), overrides)

    def flags_of_main(self, text):
        """Of the command, which goes on over several lines, or of the list of YAML."""
        lines = text.replace("\\\n", " ").partition("main.py")[2].splitlines()
        return re.findall(r"--\w\S*=\S+", lines[0]) or [
            line.split("- ")[1] for line in itertools.takewhile(lambda x: "- --" in x, lines[1:])
        ]


if __name__ == "__main__":
    absltest.main()
