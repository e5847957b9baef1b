"""Files that went wrong: bytes, JSON values and members of zips, changed as hypothesis draws."""

import io
import json
import math
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

Mutation = Callable[[bytes], bytes]

HOSTILE_JSON = st.sampled_from(
    [
        *(None, True, 0, -1, 1, 2**31, 2**63, 10**30, 0.5, -0.0, 1e308, math.nan, math.inf),
        *("", "a", "\0", "\ud800", "../..", "/", "x" * 300, "1", "nan", "ü"),
        *([], [1], {}, {"a": 1}, [[]], [None], {"": None}),
    ]
)


def _cut(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    return data[: draw(_place(data))]


def _delete(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    start = draw(_place(data))
    return data[:start] + data[start + draw(st.integers(1, 64)) :]


def _insert(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    start = draw(_place(data))
    return data[:start] + draw(_BYTES) + data[start:]


def _replace(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    start, new = draw(_place(data)), draw(_BYTES)
    return data[:start] + new + data[start + len(new) :]


def _flip(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    place = min(draw(_place(data)), max(len(data) - 1, 0))
    return data[:place] + bytes([data[place] ^ 1 << draw(st.integers(0, 7))]) + data[place + 1 :]


_BYTES = st.one_of(
    st.binary(min_size=1, max_size=8),
    st.sampled_from([b"\0", b"\xff" * 8, b"\n", b'"', b",", b"{", b"[" * 200, b"9" * 40, b"-"]),
)


def _place(data: bytes) -> st.SearchStrategy[int]:
    """Headers are what programs read first."""
    last = len(data)
    return st.one_of(st.integers(0, min(last, 200)), st.integers(0, last))


def any_bytes(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    """Cut, flipped, and so on, in one or two places."""
    for _ in range(draw(st.integers(1, 2))):
        change = draw(st.sampled_from([_cut, _delete, _insert, _replace, _flip]))
        data = change(data, draw) if data else draw(_BYTES)
    return data


def any_json(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    """One value changed for another, taken away or joined by a new one."""
    root = {"": json.loads(data)}
    node: Any = root
    key: Any = ""
    while isinstance(node[key], dict | list) and node[key] and draw(st.integers(0, 4)):
        node = node[key]
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw(st.sampled_from(keys))
    match draw(st.sampled_from(["change", "change", "add", "remove"])):
        case "remove":
            del node[key]
        case "add" if isinstance(node, dict):
            node[draw(st.sampled_from(["a", "", "\0", "0", "value"]))] = draw(HOSTILE_JSON)
        case _:
            node[key] = draw(HOSTILE_JSON)
    return json.dumps(root.get("")).encode()


def any_zip(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    """A whole zip with one member changed, renamed, doubled or taken away."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    number = draw(st.integers(0, len(members) - 1))
    name, content = members[number]
    match draw(st.sampled_from(["change", "rename", "double", "remove"])):
        case "change":
            members[number] = name, any_content(name, content, draw)
        case "rename":
            names = ["a", "", "../a.png", "/a.png", "a/", "a\\b.png", "\udce9.png", "arr_0.npy"]
            members[number] = draw(st.sampled_from(names)), content
        case "double":
            members.append((f"b/{name}", content))
        case "remove":
            del members[number]
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name.encode(errors="replace").decode()), content)
    return file.getvalue()


def any_safetensors(data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    """A header that says something else, of the right length."""
    (length,) = struct.unpack("<Q", data[:8])
    header = any_json(data[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def any_content(name: str, data: bytes, draw: Callable[[st.SearchStrategy], Any]) -> bytes:
    """Changed as the kind of the file allows, or anyhow."""
    kinds = {
        ".json": any_json,
        ".zip": any_zip,
        ".npz": any_zip,
        ".safetensors": any_safetensors,
    }
    kind = kinds.get(Path(name).suffix, any_bytes)
    return draw(st.sampled_from([kind, kind, any_bytes]))(data, draw)


def spoil(path: Path, draw: Callable[[st.SearchStrategy], Any]) -> str:
    """Changes a file, or puts something else in its place; returns what was done, in short."""
    data = path.read_bytes()
    what = draw(st.sampled_from(["content"] * 12 + ["gone", "folder", "link", "empty", "other"]))
    if what == "content":
        new = any_content(path.name, data, draw)
        path.write_bytes(new)
        return f"{path.name} is {new[:2000]!r}"
    path.unlink()
    match what:
        case "folder":
            path.mkdir()
        case "link":
            os.symlink(path.name, path)
        case "empty":
            path.write_bytes(b"")
        case "other":
            path.write_bytes(draw(st.binary(max_size=64)))
    return f"{path.name} is {what}"
