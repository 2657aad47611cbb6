"""A terminal of so many columns that wraps anew what is on it when it is resized, as tmux, VTE, kitty and iTerm2 do.

Knows what `out.live` writes: text, newlines, carriage returns, cursor up, erase row, colours, the cursor's visibility.
"""

from __future__ import annotations

import os
import re
from io import StringIO

_TOKENS = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|([\r\n])|([^\x1b\r\n]+)")


class FakeTerminal(StringIO):
    """Lines are kept as they were written, and cut into rows by the present width; nothing scrolls away."""

    def __init__(self, *, columns: int, rows: int = 40) -> None:
        super().__init__()
        self.columns = columns
        self.rows = rows
        self.is_cursor_hidden = False
        self._lines = [""]
        self._at = 0
        self._column = 0

    def size(self) -> os.terminal_size:
        return os.terminal_size((self.columns, self.rows))

    def write(self, text: str) -> int:
        assert _TOKENS.sub("", text) == ""
        for match in _TOKENS.finditer(text):
            argument, command, control, plain = match.groups()
            if plain is not None:
                self._type(plain)
            elif control is not None:
                self._move(control)
            else:
                self._obey(argument, command)
        return len(text)

    @property
    def screen(self) -> list[str]:
        """Rows from top to bottom, without empty ones below."""
        rows = [row for line in self._lines for row in self._rows_of(line)]
        while rows and not rows[-1]:
            rows.pop()
        return rows

    def _rows_of(self, line: str) -> list[str]:
        return [line[at : at + self.columns] for at in range(0, len(line), self.columns)] or [""]

    def _type(self, text: str) -> None:
        line = self._lines[self._at].ljust(self._column)
        self._lines[self._at] = line[: self._column] + text + line[self._column + len(text) :]
        self._column += len(text)

    def _move(self, control: str) -> None:
        if control == "\r":
            self._column -= self._column % self.columns
            return
        self._at, self._column = self._at + 1, 0
        if self._at == len(self._lines):
            self._lines.append("")

    def _obey(self, argument: str, command: str) -> None:
        match argument + command:
            case "A":
                self._up()
            case "2K":
                row = self._column // self.columns
                assert len(self._lines[self._at]) <= (row + 1) * self.columns, "what is below is erased first"
                self._lines[self._at] = self._lines[self._at][: row * self.columns]
            case "?25l" | "?25h":
                self.is_cursor_hidden = command == "l"
            case other:
                assert other.endswith("m"), f"not known here: {other!r}"

    def _up(self) -> None:
        if self._column >= self.columns:
            self._column -= self.columns
        elif self._at > 0:
            self._at -= 1
            self._column += (len(self._rows_of(self._lines[self._at])) - 1) * self.columns
