"""A terminal, or a file in its place, that tests look at."""

import io


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self):
        return True

    def screen(self):
        """The lines as they stand in the end, each overwritten from its start after a return."""
        lines = []
        for line in self.getvalue().split("\n"):
            shown = []
            for part in line.split("\r"):
                shown[: len(part)] = part
            lines.append("".join(shown).rstrip())
        return lines
