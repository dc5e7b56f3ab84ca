"""The limits of the JSON reader, each on both sides."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from edgellama.artifact.json_reader import (
    DEEPEST,
    LONGEST_NUMBER,
    kind_of,
    parse,
    parse_object,
    read_bytes,
    read_object,
)
from edgellama.errors import UserError
from support.refusals import refusal


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"0123456789")
    assert read_bytes(path, 10) == b"0123456789"
    assert refusal(lambda: read_bytes(path, 9)) == "10 bytes; at most 9 are read"
    assert refusal(lambda: read_bytes(path, 5)) == "10 bytes; at most 5 are read"


def test_an_unreadable_file_has_its_reason_and_remedy(tmp_path: Path) -> None:
    loop = tmp_path / "loop.json"
    loop.symlink_to(loop)
    assert refusal(lambda: read_object(loop, "Do this"), UserError) == (
        f"{loop}: cannot be read (Too many levels of symbolic links). Do this"
    )
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none", "Do this")
    (tmp_path / "x").write_text("[]")
    assert refusal(lambda: read_object(tmp_path / "x", "Do this"), UserError).endswith("needed: an object. Do this")
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        assert refusal(lambda: read_bytes(tmp_path, 9)) == "a folder; needed: a regular file"
        read_bytes(tmp_path / "x", 9)
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def test_kinds_of_files(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("file")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    found = {path.name: kind_of(path.lstat().st_mode) for path in tmp_path.iterdir()}
    assert found == {"file": "a regular file", "fifo": "a fifo", "link": "a link", "socket": "a socket"}
    assert kind_of(Path("/dev/null").stat().st_mode) == "a device" and kind_of(tmp_path.stat().st_mode) == "a folder"
    assert kind_of(stat.S_IFBLK) == "a device"


@pytest.mark.parametrize("opening", ["[", '{"a": '])
def test_nesting_is_bounded(opening: str) -> None:
    closing = {"[": "]", "{": "}"}[opening[0]]

    def nested(depth: int, inner: str = "1") -> str:
        """Returns `depth` levels around `inner`, and a second value in the outermost."""
        beside = "[], " if opening == "[" else '"b": {}, '
        outer = opening[0] + beside + opening[1:]
        return outer + opening * (depth - 1) + inner + closing * depth

    assert refusal(lambda: parse(nested(DEEPEST))) == ""
    deep = f"not valid JSON (nested more than {DEEPEST} levels deep)"
    assert refusal(lambda: parse(nested(DEEPEST + 1))) == deep
    text = json.dumps("]]{{" + '"' + "\\" + "[" * 99 + "\\\\" + '"[' * 50)
    assert refusal(lambda: parse(nested(DEEPEST, text))) == ""
    assert refusal(lambda: parse(nested(DEEPEST + 1, text))) == deep
    assert parse("[" + "[]," * 200 + "[]]") == [[]] * 201  # many, but not deep
    assert refusal(lambda: parse("[" * (DEEPEST + 1))) == deep


def test_numbers_are_bounded() -> None:
    assert parse("9" * LONGEST_NUMBER) == int("9" * LONGEST_NUMBER)
    digits = "0." + "1" * (LONGEST_NUMBER - 2)
    assert parse(digits) == float(digits) and parse("1e308") == 1e308
    for text in ("9" * (LONGEST_NUMBER + 1), digits + "1"):
        assert (
            refusal(lambda text=text: parse(text)) == "not valid JSON (a number has 65 characters, at most 64 are read)"
        )
    assert "the number -1e309 is too large" in refusal(lambda: parse("-1e309"))
    for text in ("NaN", "Infinity", "[-Infinity]"):
        assert "is not a JSON number" in refusal(lambda text=text: parse(text))


def test_half_a_surrogate_pair_is_found_wherever_it_is() -> None:
    for text in (r'"\ud800"', r'["a", "\uDFFF"]', r'{"\udabc": 1}', r'{"a": [{"b": "x\uDBFF"}]}'):
        assert "half a surrogate pair" in refusal(lambda text=text: parse(text)), text
    for text in (r'"\ud83d\ude00"', r'{"\uD83D\uDE00": ["\ud7ff", "\ue000", 1, null]}'):
        assert parse(text) == json.loads(text)


def test_keys_are_unique_and_values_are_objects() -> None:
    assert refusal(lambda: parse('{"a": 1, "b": 2, "b": 2}')) == "not valid JSON (the key 'b' occurs twice)"
    assert parse_object(b'\xef\xbb\xbf{"a": {"a": 1}}') == parse_object('{"a": {"a": 1}}') == {"a": {"a": 1}}
    for text, name in (("[]", "list"), ("1", "int"), ("null", "NoneType"), ('"a"', "str")):
        assert refusal(lambda text=text: parse_object(text)) == f"a JSON {name}; needed: an object"
    assert refusal(lambda: parse(b'"\xc3\xa9\xff"')) == "not valid JSON (byte 3 is not UTF-8)"
