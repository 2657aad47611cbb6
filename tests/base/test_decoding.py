"""What a decoder says goes on within our messages."""

from __future__ import annotations

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
