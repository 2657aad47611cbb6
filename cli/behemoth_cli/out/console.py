"""The two streams of a command: data to stdout, everything else to stderr.

Decides once what a terminal is and whether colour is wanted. Rich is imported only when stdout is a terminal: piped
output is plain and never cut. A reader that left (`| head`) is no error; what is left to say is dropped. A full
disk is one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Literal, TextIO, assert_never

from behemoth_cli.errors import unwritable
from behemoth_cli.out.document import document, encoded
from behemoth_cli.out.table import Listing, Page, page_lines, table_lines

ColorChoice = Literal["auto", "always", "never"]
Format = Literal["", "wide", "json", "yaml", "name"]
FORMATS: tuple[Format, ...] = ("wide", "json", "yaml", "name")
"""Values of `-o`; each verb accepts some of them."""


class Console:
    """Used by one thread at a time. `color` is the value of --color; `environment` (NO_COLOR, ...) decides for
    `auto`."""

    def __init__(
        self, stdout: TextIO, stderr: TextIO, *, color: ColorChoice = "auto", environment: Mapping[str, str]
    ) -> None:
        self._stdout = stdout
        self._stderr = stderr
        self._color: ColorChoice = color
        self._environment = environment
        self.is_reader_gone = False
        """Whether whoever read stdout has left, or it can take no more: nobody waits for the rest."""

    @property
    def is_terminal(self) -> bool:
        """Whether stdout is a terminal that can do more than lines."""
        return self._is_able(self._stdout)

    @property
    def is_error_terminal(self) -> bool:
        """Whether stderr is one: live views and progress go there."""
        return self._is_able(self._stderr)

    @property
    def has_color(self) -> bool:
        return self._wants_color(self._stdout)

    @property
    def has_error_color(self) -> bool:
        return self._wants_color(self._stderr)

    @property
    def stderr(self) -> TextIO:
        """The raw stderr stream, for the live view."""
        return self._stderr

    @property
    def width(self) -> int:
        """Columns of the terminal; COLUMNS overrules."""
        return shutil.get_terminal_size().columns

    def show(self, shown: Listing | Page, form: Format) -> None:
        """Print the result of a command in its output format."""
        match form:
            case "json" | "yaml":
                self.write(encoded(document(shown.kind, _body(shown)), form))
            case "name":
                names = shown.names if isinstance(shown, Listing) else (shown.name,)
                self.lines(names)
            case "" | "wide":
                self._show_text(shown, is_wide=form == "wide")
            case _:
                assert_never(form)

    def lines(self, lines: Iterable[str]) -> None:
        """Plain lines to stdout."""
        self.write("".join(f"{line}\n" for line in lines))

    def write(self, text: str) -> None:
        """Text to stdout, as it is, at once. Raises Unavailable when it cannot be written."""
        self._guard(lambda: self._put(text))

    def note(self, line: str) -> None:
        """A line for people to stderr: progress, hints, warnings. Never fails."""
        with suppress(OSError, ValueError):
            self._stderr.write(f"{line}\n")
            self._stderr.flush()

    def draw(self, text: str) -> None:
        """Like `note`, without a newline."""
        with suppress(OSError, ValueError):
            self._stderr.write(text)
            self._stderr.flush()

    def paint(self, text: str, code: str) -> str:
        """`text` for stderr in an SGR colour such as `31`, if colour is wanted there."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_error_color else text

    def close(self) -> None:
        """Flushes; a reader that left must not cost a traceback at exit."""
        self._guard(self._stdout.flush)

    def _show_text(self, shown: Listing | Page, *, is_wide: bool) -> None:
        if isinstance(shown, Listing) and not shown.rows:
            self.note(shown.empty)
        elif self.is_terminal or self.has_color:
            from behemoth_cli.out.terminal import print_rich  # 60 ms that only a terminal needs

            width = self.width if self.is_terminal else None
            self._guard(lambda: print_rich(self._stdout, shown, is_wide=is_wide, color=self.has_color, width=width))
        else:
            self.lines(page_lines(shown) if isinstance(shown, Page) else table_lines(shown, is_wide=is_wide))

    def _put(self, text: str) -> None:
        self._stdout.write(text)
        self._stdout.flush()

    def _guard(self, write: Callable[[], object]) -> None:
        if self.is_reader_gone:
            return
        try:
            write()
        except BrokenPipeError:
            self._give_up()
        except OSError as error:
            self._give_up()
            raise unwritable(error.strerror or str(error)) from error

    def _give_up(self) -> None:
        self.is_reader_gone = True
        send_to_nowhere(self._stdout)

    def _is_able(self, stream: TextIO) -> bool:
        return stream.isatty() and self._environment.get("TERM") != "dumb"

    def _wants_color(self, stream: TextIO) -> bool:
        match self._color:
            case "always":
                return True
            case "never":
                return False
            case "auto":
                return self._is_able(stream) and not self._environment.get("NO_COLOR")
            case _:
                assert_never(self._color)


def _body(shown: Listing | Page) -> Mapping[str, object]:
    return {"items": list(shown.items)} if isinstance(shown, Listing) else shown.body


def send_to_nowhere(stream: TextIO) -> None:
    """Redirect a broken stream to /dev/null: its buffered text would raise again when Python closes it."""
    nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    with suppress(OSError, ValueError):
        os.dup2(nowhere, stream.fileno())
    os.close(nowhere)
