"""What a decoder says goes on within our messages; and threads may be the first to decode into a type."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from behemoth.base.decoding import UNDECODABLE, told


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{]", "JSON is malformed: "),
        (b"[]", "expected `object`, got `array`"),
        (b'{"a": "x"}', "expected `int`, got `str` - at `$[...]`"),
        (b"", "input data was truncated"),
        (b'{"\xff": 1}', "'utf-8' codec can't decode"),
    ],
)
def test_a_decoders_first_word_is_small_unless_it_is_an_abbreviation(data: bytes, words: str) -> None:
    with pytest.raises(UNDECODABLE) as caught:
        msgspec.json.decode(data, type=dict[str, int])
    assert told(caught.value).startswith(words)


ROOT = Path(__file__).parents[2]


def test_threads_that_are_the_first_to_decode_into_a_type_do_so_together() -> None:
    """By msgspec's own functions two such threads end the process with a segmentation fault."""
    program = Path(__file__).with_name("first_decodes.py")
    subprocess.run([sys.executable, str(program)], check=True, timeout=120, cwd=ROOT)


def test_nobody_decodes_into_a_type_past_these_functions() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for folder in ("orchestrator/behemoth", "cli/behemoth_cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if path.name != "decoding.py"
        for call in ast.walk(ast.parse(path.read_bytes()))
        if isinstance(call, ast.Call) and _is_msgspecs(call)
    ]
    assert found == []


def _is_msgspecs(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    has_type = len(call.args) > 1 or any(word.arg == "type" for word in call.keywords)
    return name == "msgspec.convert" or (name in {"msgspec.json.decode", "msgspec.msgpack.decode"} and has_type)
