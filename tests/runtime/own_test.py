import contextlib
import sys
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from flowmatch_jax.runtime.errors import UserError
from flowmatch_jax.runtime.own import add_folder, blamed, is_own, one_of_or_own, resolve

MODULE = """
def double(x, times=2):
    return times * x

def broken(x):
    return 1 / x

number = 3
"""
BROKEN = {
    "own_syntax": ("def make(:\n", r"SyntaxError: .* \(own_syntax.py, line 1\)"),
    "own_import": (
        "\nimport no_such_thing\n",
        r"ModuleNotFoundError: No module named 'no_such_thing' \(own_import.py, line 2\)",
    ),
    "own_raises": ("1 / 0", r"ZeroDivisionError: division by zero \(own_raises.py, line 1\)"),
    "own_exits": ("raise SystemExit('bye')", r"SystemExit: bye \(own_exits.py, line 1\)"),
}


class OwnTestCase(parameterized.TestCase):
    """In an empty folder; what is imported and where from is as before afterwards."""

    def setUp(self):
        super().setUp()
        self.folder = Path(self.create_tempdir().full_path)
        self.enterContext(mock.patch.object(sys, "path", list(sys.path)))
        self.enterContext(mock.patch.dict(sys.modules))
        self.enterContext(contextlib.chdir(self.folder))

    def write(self, name, text=MODULE):
        (self.folder / f"{name}.py").write_text(text)


class NamesTest(parameterized.TestCase):
    def test_names(self):
        self.assertTrue(is_own("mine:make"))
        self.assertFalse(is_own("unet"))
        for name in ("a", "mine:make", "package.module:make"):
            one_of_or_own("name", name, ("a", "b"))

    @parameterized.parameters(
        ("c", "it may be one of: a, b, or your own: module:function"),
        ("mine:", "your own is module:function, such as mine:make"),
        (":make", "module:function"),
        ("a:b:c", "module:function"),
        ("mine.py:make", "module:function"),
        ("folder/mine:make", "module:function"),
    )
    def test_what_is_no_name(self, name, message):
        with self.assertRaisesRegex(UserError, f"name: got '{name}'; .*{message}"):
            one_of_or_own("name", name, ("a", "b"))


class ResolveTest(OwnTestCase):
    def test_a_name_of_the_table(self):
        self.assertIs(resolve("name", "max", {"max": max}), max)

    def test_a_function_of_the_current_folder_with_its_options(self):
        self.write("own_here")
        double = resolve("name", "own_here:double", {})
        self.assertEqual(double(4), 8)
        self.assertEqual(resolve("name", "own_here:double", {}, {"times": 3})(4), 12)

    def test_a_function_of_another_folder_that_was_added(self):
        self.write("own_there")
        with contextlib.chdir("/"):
            with self.assertRaisesRegex(UserError, "there is no module own_there in /, beside"):
                resolve("name", "own_there:double", {})
            add_folder(self.folder)
            self.assertEqual(resolve("name", "own_there:double", {})(1), 2)

    def test_installed_modules_come_first(self):
        self.write("types")
        with self.assertRaisesRegex(UserError, "there is no function double in .*/types.py"):
            resolve("name", "types:double", {})

    @parameterized.parameters("absent", "number")
    def test_no_such_function(self, name):
        self.write("own_numbers")
        with self.assertRaisesRegex(UserError, f"no function {name} in {self.folder}/own_numbers"):
            resolve("name", f"own_numbers:{name}", {})

    @parameterized.parameters(*BROKEN)
    def test_modules_that_cannot_be_imported(self, name):
        text, message = BROKEN[name]
        self.write(name, text)
        with self.assertRaisesRegex(
            UserError, f"^name: got '{name}:make'; its module cannot be imported: {message}$"
        ):
            resolve("name", f"{name}:make", {})

    def test_no_such_module_of_a_package(self):
        with self.assertRaisesRegex(UserError, "there is no module own_package in .*PYTHONPATH"):
            resolve("name", "own_package.parts:make", {})


class BlamedTest(OwnTestCase):
    def test_the_line_of_the_user_s_file(self):
        self.write("own_broken")
        broken = resolve("name", "own_broken:broken", {})
        message = (
            r"^name: got 'own_broken:broken'; it raised ZeroDivisionError: .*\(own_broken.py, "
        )
        with (
            self.assertRaisesRegex(UserError, message + r"line 6\)$"),
            blamed("name", "own_broken:broken"),
        ):
            broken(0)

    def test_in_one_line(self):
        with self.assertRaisesRegex(UserError, "^name: .*KeyError: 'a b'$"), blamed("name", "a:b"):
            raise KeyError("a b")
        with self.assertRaisesRegex(UserError, "ValueError: one two"), blamed("name", "a:b"):
            raise ValueError("one\n  two")

    def test_parts_of_this_package_are_not_blamed(self):
        with self.assertRaises(ZeroDivisionError), blamed("name", "unet"):
            _ = 1 / 0


if __name__ == "__main__":
    absltest.main()
