"""The floors of WORKSPACE.md: a file imports only from floors below its own.

A `__main__.py` is a command, wherever its folder is.
"""

import ast
from pathlib import Path

from absl.testing import absltest

ROOT = Path(__file__).parents[1]
# From the bottom to the top: a room imports from itself and from rooms of earlier lines.
FLOORS = [
    {"runtime"},
    {"arrays", "runge_kutta"},
    {"couplings", "networks", "paths", "pixels"},
    {"dequantisation", "divergence", "marginals", "multistep", "predictions", "times"},
    {"solvers"},
    {"flow_maps", "likelihood"},
    {"sampling"},
    {"objectives"},
    {"data", "interpolants", "map_objectives"},
    {"metrics"},
    {"config"},
    {"parts", "tracking"},
    {"experiment"},
    {"autoguidance", "launch", "training", "evaluation"},
    {"exchange", "fit_solver", "generate_pairs", "model", "report"},
    {"modes"},
    {"sweep"},
    {"command"},
]
# Tests of the whole, or of what is outside the package.
OF_NO_MODULE = (
    "end_to_end",
    "architecture_test.py",
    "benchmarks_test.py",
    "configs",
    "docs_test.py",
    "main_test.py",
    "notebooks_test.py",
)


def floor(room):
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


def imports(path):
    """Names of the package's rooms that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowmatch_jax"):
            rest = node.module.split(".")[1:]
            yield from [rest[0]] if rest else [alias.name for alias in node.names]


def uses_of_keys(function):
    """(source of a key, what takes it) of each call of a function whose argument is named a key."""
    for node in ast.walk(function):
        if isinstance(node, ast.Call):
            for argument in node.args:
                if ast.unparse(argument).split(".")[-1].endswith("key"):
                    yield ast.unparse(argument), ast.unparse(node.func)


class KeysTest(absltest.TestCase):
    def test_a_key_that_is_folded_is_used_for_nothing_else(self):
        """fold_in(key, n) makes many keys of one, whose own numbers might be those of another."""
        folded = 0
        for path in sorted((ROOT / "flowmatch_jax").rglob("*.py")):
            for function in ast.walk(ast.parse(path.read_text())):
                if not isinstance(function, ast.FunctionDef):
                    continue
                uses = set(uses_of_keys(function))
                for key in {key for key, taker in uses if taker == "jax.random.fold_in"}:
                    folded += 1
                    takers = {taker for other, taker in uses if other == key}
                    self.assertEqual(takers, {"jax.random.fold_in"}, f"{path}: {key}")
        self.assertGreater(folded, 3)


def package_files():
    return sorted((ROOT / "flowmatch_jax").rglob("*.py"))


class SizesTest(absltest.TestCase):
    """What one sees at a glance, and what a file knows of another."""

    def test_files_and_functions_fit(self):
        for path in [*package_files(), ROOT / "main.py"]:
            source = path.read_text()
            self.assertLessEqual(len(source.splitlines()), 300, str(path))
            for node in ast.walk(ast.parse(source)):
                if isinstance(node, ast.FunctionDef):
                    lines = node.end_lineno - node.lineno + 1
                    self.assertLessEqual(lines, 50, f"{path}: {node.name}")

    def test_folders_are_rooms_of_few_files(self):
        for folder in {path.parent for path in package_files()} - {ROOT / "flowmatch_jax"}:
            entries = {path.name for path in folder.iterdir()} - {"__init__.py", "__pycache__"}
            self.assertLessEqual(len(entries), 12, str(folder))

    def test_names_with_an_underscore_stay_in_their_file(self):
        for path in [*package_files(), ROOT / "main.py", *(ROOT / "benchmarks").glob("*.py")]:
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flowmatch"):
                    private = [alias.name for alias in node.names if alias.name.startswith("_")]
                    self.assertEmpty(private, str(path))

    def test_modules_that_load_slowly_are_imported_where_they_are_used(self):
        """Each takes a second or more, which every command would wait for."""
        slow = {"matplotlib", "scipy.optimize", "sklearn", "tensorflow", "tensorflow_datasets"}
        for path in package_files():
            for node in ast.parse(path.read_text()).body:
                names = [alias.name for alias in getattr(node, "names", [])]
                if isinstance(node, ast.ImportFrom):
                    names = [node.module, *(f"{node.module}.{name}" for name in names)]
                for name in names if isinstance(node, ast.Import | ast.ImportFrom) else ():
                    self.assertFalse(any(f"{name}.".startswith(f"{m}.") for m in slow), str(path))

    def test_private_modules_of_jax_are_touched_in_one_place(self):
        users = [path.name for path in package_files() if "jax._src" in path.read_text()]
        self.assertEqual(users, ["processes.py"])


class FloorsTest(absltest.TestCase):
    def test_no_import_upwards(self):
        files = sorted((ROOT / "flowmatch_jax").rglob("*.py"))
        self.assertNotEmpty(files)
        for path in files:
            room = path.relative_to(ROOT / "flowmatch_jax").with_suffix("").parts[0]
            if room == "__init__":
                continue
            height = floor("command" if path.name == "__main__.py" else room)
            for other in imports(path):
                allowed = other == room or floor(other) < height
                self.assertTrue(allowed, f"{path} imports {other}")

    def test_configs_stay_above(self):
        for path in (ROOT / "flowmatch_jax").rglob("*.py"):
            room = path.relative_to(ROOT / "flowmatch_jax").with_suffix("").parts[0]
            is_command = path.name == "__main__.py"
            if room != "__init__" and not is_command and floor(room) < floor("config"):
                self.assertNotIn("ml_collections", path.read_text(), str(path))

    def test_tests_mirror_modules(self):
        for path in (ROOT / "tests").rglob("*_test.py"):
            parts = path.relative_to(ROOT / "tests").parts
            if parts[0] in OF_NO_MODULE:
                continue
            module = ROOT / "flowmatch_jax" / Path(*parts[:-1], parts[-1].replace("_test", ""))
            is_package = (module.with_suffix("") / "__init__.py").exists()
            self.assertTrue(module.exists() or is_package, f"{path} tests nothing")


if __name__ == "__main__":
    absltest.main()
