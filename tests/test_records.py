import json

import pytest
from pydantic.dataclasses import dataclass

from dit_moe.config import ConfigError
from dit_moe.config.rules import RULES
from dit_moe.storage.records import read_json, read_record, write_record


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON: Expecting value"),
        (b'{"a": "\xe9"}', "is not valid JSON: 'utf-8' codec"),
        (b"[" * 100_000, "is not valid JSON: it is nested deeper than 50 levels"),
        (b'{"a":' * 100_000, "is not valid JSON: it is nested deeper than 50 levels"),
        (b"[" * 60 + b"]" * 60, "cannot be read: it is nested deeper than 50 levels"),
        (b'{"a": 1, "b": 2, "a": 3}', "is not valid JSON: 'a' is given twice in one object"),
        (b'{"a": [0, NaN]}', "cannot be read: a.1 is nan; allowed: a finite number"),
        (b"1e999", "cannot be read: it is inf; allowed: a finite number"),
        (b"9223372036854775808", "is not valid JSON: it holds the number 9223372036854775808"),
        (b"1" * 5000, "is not valid JSON: it holds the number 11111111111111111111..., which"),
        (b'{"a": {"b": "\\ud800"}}', "cannot be read: a.b is '\\ud800'; allowed: text in UTF-8"),
        (b'["\\u0000"]', "cannot be read: 0 is '\\x00'; allowed: text in UTF-8"),
        (b'{"\\udfff": 1}', "cannot be read: a name is '\\udfff'; allowed: text in UTF-8"),
    ],
)
def test_hostile_json_is_one_sentence(content, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        read_json(path)
    assert str(error.value).startswith(f"{path} {message}")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 200


def test_json(tmp_path):
    values = {"a": [1, -(2**63), 2**63 - 1, 0.5, None, True], "é": {"😀": ""}}
    path = tmp_path / "a.json"
    for text in (json.dumps(values), json.dumps(values, ensure_ascii=False)):
        path.write_text(text, encoding="utf-8-sig")  # as Windows' editor begins it
        assert read_json(path) == values
        path.write_text(text, encoding="utf-8")
        assert read_json(path) == values


@dataclass(frozen=True, config=RULES)
class Thing:
    sizes: tuple[int, ...]
    place: str = "here"
    scale: float = 1.0


def test_records(tmp_path):
    path = tmp_path / "thing.json"
    write_record(path, Thing((1, 2)))
    assert read_record(path, Thing) == Thing((1, 2))
    path.write_text('{"sizes": [1, "x"]}')
    with pytest.raises(ConfigError, match=r"thing\.json cannot be read: sizes\.1: Input should be"):
        read_record(path, Thing)
    path.write_text('{"sizes": [], "scale": Infinity}')
    with pytest.raises(ConfigError, match=r"thing\.json cannot be read: scale is inf"):
        read_record(path, Thing)


def test_a_record_with_a_path_that_is_no_text_is_not_written(tmp_path):
    with pytest.raises(ConfigError, match=r"place is '\\udcff'; allowed: text in UTF-8"):
        write_record(tmp_path / "thing.json", Thing((), "\udcff"))
    assert not [*tmp_path.iterdir()]
