"""README, WORKSPACE, BENCHMARKS and docs/: their links, commands and examples."""

import importlib.util
import re
import shlex
from pathlib import Path

from absl.testing import absltest, parameterized

from flowmatch_jax.config.command_line import load_config, split_overrides

ROOT = Path(__file__).parents[1]
TOP = ("README.md", "WORKSPACE.md", "BENCHMARKS.md")
PAGES = sorted([*TOP, *(str(path.relative_to(ROOT)) for path in (ROOT / "docs").glob("*.md"))])
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def read(page):
    return (ROOT / page).read_text()


def anchors(text):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    kept = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in kept}


def commands(text):
    """Lines of indented code, and the inline code that begins as a command."""
    inline = re.findall(r"`(python [^`]*)`", FENCED.sub("", text))
    indented = re.findall(r"^    (.*)$", FENCED.sub("", text), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in (*indented, *inline) if "python" in line]


class DocsTest(parameterized.TestCase):
    @parameterized.parameters(*PAGES)
    def test_links(self, page):
        for link in re.findall(r"\]\(([^)\s]*)\)", FENCED.sub("", read(page))):
            if link.startswith(("http://", "https://")):
                continue
            name, _, anchor = link.partition("#")
            target = (ROOT / page).parent / name if name else ROOT / page
            self.assertTrue(target.exists(), f"{page}: {link}")
            if anchor:
                self.assertIn(anchor, anchors(target.read_text()), f"{page}: {link}")

    @parameterized.parameters(*PAGES)
    def test_tables_are_whole(self, page):
        """Each has a rule under its head and rows of as many cells: no blank line splits one."""
        for table in re.findall(r"(?:^\|.*\n?)+", FENCED.sub("", read(page)), re.MULTILINE):
            head, *rows = table.splitlines()
            self.assertRegex(rows[0] if rows else "", r"^\|[\s:|-]+$", f"{page}: {head}")
            cells = {re.sub(r"\\\||`[^`]*`", "", row).count("|") for row in (head, *rows)}
            self.assertLen(cells, 1, f"{page}: {head}")

    @parameterized.parameters(*PAGES)
    def test_configs_of_commands_load(self, page):
        for words in commands(read(page)):
            overrides, others = split_overrides(words)
            for word in others:
                name, _, value = word.partition("=")
                if name == "--config" and "<" not in value:
                    load_config(value, overrides)

    @parameterized.parameters(*PAGES)
    def test_modules_of_commands_exist(self, page):
        for words in commands(read(page)):
            if words[:2] == ["python", "-m"]:
                self.assertIsNotNone(importlib.util.find_spec(words[2]), f"{page}: {words}")

    @parameterized.parameters(*PAGES)
    def test_test_files_exist(self, page):
        for name in re.findall(r"`(?:tests/)?([\w/]+_test\.py)`", read(page)):
            self.assertTrue((ROOT / "tests" / name).exists(), f"{page}: {name}")

    @parameterized.parameters(*PAGES)
    def test_examples_run(self, page):
        for block in re.findall(r"^```python\n(.*?)^```$", read(page), re.MULTILINE | re.DOTALL):
            short = re.sub(r"\b2000\)", "20)", block)  # steps of a training
            exec(compile(short, page, "exec"), {"__name__": page})

    def test_the_readme_is_short(self):
        self.assertLessEqual(len(read("README.md").splitlines()), 150)


if __name__ == "__main__":
    absltest.main()
