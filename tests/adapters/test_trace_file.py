"""Records of capacity as files: what is read, and one clear error for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.adapters.trace_file import load_trace
from launcher.core.replays.traces import Trace
from launcher.errors import InputError, Problem

HEAD = "place,since_hours,up\n"


def read(tmp_path: Path, text: str, name: str = "t.csv") -> Trace:
    path = tmp_path / name
    path.write_text(text)
    return load_trace(path)


def problem(tmp_path: Path, text: str, name: str = "t.csv") -> Problem:
    with pytest.raises(InputError) as met:
        read(tmp_path, text, name)
    (found,) = met.value.problems
    return found


def test_rows_are_states_from_an_hour_on_and_the_end_is_for_all(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD + "a,0,1\na,3.5,0\na,7,1\nb,0,0\nb,2,1\n*,336,end\n")

    assert found.records == {"a": (True, (3.5, 7.0, 336.0)), "b": (False, (2.0, 336.0))}
    assert (found.hours, found.name) == (336.0, "t.csv")


def test_looks_that_say_the_same_again_are_no_changes(tmp_path: Path) -> None:
    looks = "".join(f"a,{n},{'up' if n < 3 else 'down'}\n" for n in range(9))

    assert read(tmp_path, HEAD + looks + "a,9,end\n").records == {"a": (True, (3.0, 9.0))}


def test_a_place_may_end_before_the_others(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD + "a,0,1\na,10,end\nb,0,1\n*,20,end\n")

    assert found.records == {"a": (True, (10.0,)), "b": (True, (20.0,))}
    assert found.hours == 10.0


def test_without_an_end_the_last_state_stays(tmp_path: Path) -> None:
    found = read(tmp_path, HEAD + "a,0,1\na,3,0\n")

    assert found.hours == float("inf")
    begins_up, (change, end) = found.records["a"]
    assert (begins_up, change) == (True, 3.0)
    assert end > 1e6


def test_comments_spaces_words_and_empty_lines_are_read(tmp_path: Path) -> None:
    text = "# from the probes of May\n\n" + HEAD + "# a zone\n a , 0 , TRUE\n\na,1,no\n"

    assert read(tmp_path, text).records["a"][0] is True
    assert read(tmp_path, text).records["a"][1][0] == 1.0


def test_json_says_the_same(tmp_path: Path) -> None:
    whole = {"end_hours": 336, "places": {"a": [[0, True], [3.5, False]], "b": [[0, 0]]}}

    found = read(tmp_path, json.dumps(whole), "t.json")

    assert found.records == {"a": (True, (3.5, 336.0)), "b": (False, (336.0,))}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("", 1, "begins with nothing, not with place,since_hours,up"),
        ("a,0,1\n", 1, "begins with a,0,1, not with place,since_hours,up"),
        (HEAD + "a,0\n", 2, "a,0 has 2 columns, not 3"),
        (HEAD + "a,0,1\na,soon,0\n", 3, "since_hours is soon, not hours since the record's beginning"),
        (HEAD + "a,-1,1\n", 2, "since_hours is -1, not hours since the record's beginning"),
        (HEAD + "a,nan,1\n", 2, "since_hours is nan, not hours since the record's beginning"),
        (HEAD + "a,0,maybe\n", 2, "up is maybe"),
        (HEAD + ",0,1\n", 2, "place is empty"),
        (HEAD + "a,2,1\n", 2, "a begins at 2 h"),
        (HEAD + "a,0,1\na,3,0\na,2,1\n", 4, "a goes from 3 h back to 2 h"),
        (HEAD + "a,0,1\na,3,0\n*,3,end\n", 3, "a has a state at 3 h, and ends at 3 h"),
        (HEAD + "a,0,1\nb,9,end\n", 3, "b ends without a state before"),
    ],
)
def test_a_bad_line_is_one_error_with_its_number_and_a_fix(tmp_path: Path, text: str, line: int, message: str) -> None:
    found = problem(tmp_path, text)

    assert (found.code, found.where, found.message) == ("L160", f"{tmp_path / 't.csv'}:{line}", message)
    assert found.fix


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"places":\n{"a": [[0, tru]]}}', ":2"),
        ('{"places": [], "end_hours": 3}', ""),
        ('{"places": {}, "end": 3}', ""),
        ('{"places": {"a": 3}}', ""),
        ('{"places": {"a": [[0, true], [1]]}}', " places.a[1]"),
        ('{"places": {"a": [[0, true], ["x", false]]}}', " places.a[1]"),
        ('{"places": {"a": [[0, true]]}, "end_hours": "late"}', " end_hours"),
        ("[" * 100_000, ""),
    ],
)
def test_bad_json_is_one_error_with_its_place(tmp_path: Path, text: str, where: str) -> None:
    found = problem(tmp_path, text, "t.json")

    assert (found.code, found.where) == ("L160", f"{tmp_path / 't.json'}{where}")
    assert found.fix


def test_a_file_without_a_state_is_an_error(tmp_path: Path) -> None:
    assert problem(tmp_path, HEAD).message == "holds no state of a place"
    assert problem(tmp_path, '{"places": {}}', "t.json").message == "holds no state of a place"


def test_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_trace(tmp_path / "none.csv")
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_trace(tmp_path / "bytes.csv")
