"""docs/notebooks: their code runs, and what is saved of their last run is whole."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from absl.testing import absltest, parameterized

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"
NAMES = sorted(path.name for path in FOLDER.glob("*.ipynb"))
LARGEST = 700_000  # bytes of a notebook
PICTURE = "image/png"
# A place on the machine that a notebook was run on; it means nothing to who reads it.
MACHINE = re.compile(r"/(?:tmp|home|root|work|Users)/")


def cells(name, kind):
    notebook = json.loads((FOLDER / name).read_text())
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def text(output):
    """What an output shows besides pictures."""
    shown = output.get("text", output.get("data", {}).get("text/plain", ""))
    return "".join(shown)


class NotebooksTest(parameterized.TestCase):
    def test_there_are_some(self):
        self.assertLen(NAMES, 3)

    @parameterized.parameters(*NAMES)
    def test_code_runs(self, name):
        """In a process of its own, trained for a few steps only."""
        with tempfile.TemporaryDirectory() as folder:
            parts = [f"# {cell['id']}\n{''.join(cell['source'])}" for cell in cells(name, "code")]
            script = Path(folder) / f"{Path(name).stem}.py"
            script.write_text("\n\n".join(parts))
            short = {"STEPS": "4", "MPLBACKEND": "agg", "TMPDIR": folder}
            done = subprocess.run(
                [sys.executable, script],
                cwd=FOLDER,
                env=os.environ | short,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=1200,
            )
        self.assertEqual(done.returncode, 0, f"{name}\n{done.stdout[-4000:]}")

    @parameterized.parameters(*NAMES)
    def test_outputs_are_saved(self, name):
        code = cells(name, "code")
        counts = [cell["execution_count"] for cell in code]
        self.assertEqual(counts, list(range(1, len(code) + 1)), "not run once from top to bottom")
        outputs = [output for cell in code for output in cell["outputs"]]
        self.assertNotIn("error", {output["output_type"] for output in outputs})
        pictures = [output for output in outputs if PICTURE in output.get("data", {})]
        self.assertGreaterEqual(len(pictures), 4)
        for output in outputs:
            self.assertNotRegex(text(output), MACHINE)
        self.assertLess((FOLDER / name).stat().st_size, LARGEST)

    @parameterized.parameters(*NAMES)
    def test_links(self, name):
        for cell in cells(name, "markdown"):
            for link in re.findall(r"\]\(([^)\s]*)\)", "".join(cell["source"])):
                if not link.startswith("https://"):
                    target = FOLDER / link.partition("#")[0]
                    self.assertTrue(target.exists(), f"{name}: {link}")


if __name__ == "__main__":
    absltest.main()
