"""Every problem of a file at once, each with its line; and no input that ends in a traceback."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from launcher.adapters.local_market import Market, Place
from launcher.adapters.snapshot_prices import load_catalog
from launcher.adapters.yaml_input import MAX_BYTES, load, parse
from launcher.adapters.yaml_spec import json_schema, load_spec, template
from launcher.core.prices.pricing import Discount, Own, Reserved, Terms
from launcher.core.spec import RunSpec
from launcher.errors import InputError, Problem

GOOD = """\
name: digits
run: python train.py
gpus: {H100: 8}
workload:
  steps: 1000
  step_seconds: {H100: 2.5}
"""


def problems(text: str | bytes, tmp_path: Path) -> tuple[Problem, ...]:
    path = tmp_path / "train.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as caught:
        load_spec(path, load_catalog())
    return caught.value.problems


def test_a_good_file_is_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(GOOD + "deadline: 2026-11-22T12:00:00+02:00\nenv: {EPOCHS: 3}\n")

    spec = load_spec(path, load_catalog())

    assert spec.gpus == {"H100": 8}
    assert spec.env == {"EPOCHS": "3"}
    assert str(spec.deadline) == "2026-11-22 10:00:00+00:00"


def test_aliases_of_gpu_types_become_their_canonical_names(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(GOOD.replace("H100", "h100-sxm"))

    spec = load_spec(path, load_catalog())

    assert (spec.gpus, spec.workload.step_seconds) == ({"H100": 8}, {"H100": 2.5})


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = problems("name: Digits\nrunn: x\ngpus: {H100: 0}\nworkload:\n  steps: -1\ndeadline: soon\n", tmp_path)

    assert [(p.code, int(p.where.rpartition(":")[2])) for p in found] == [
        ("L104", 1),
        ("L103", 1),
        ("L102", 2),
        ("L104", 3),
        ("L104", 5),
        ("L104", 6),
    ]


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("steps", "stepps"), 5, "write steps"),
        (("gpus", "gpu"), 3, "write gpus"),
        (("H100", "H10"), 3, "H10 is not a known GPU type"),
        (("1000", "many"), 5, "workload.steps is 'many'"),
        (("2.5", "0"), 6, "workload.step_seconds.H100 is 0: input should be greater than 0"),
        (("name: digits", "name: digits\nname: again"), 2, "duplicate key"),
        (("run: python train.py", "run: [python"), 3, "not valid YAML"),
        (("name: digits", "name: digits\ncost: {cap: lots}"), 2, "write 1200, $1,200 or 1200 USD"),
        (("name: digits", "name: digits\ndeadline: 2026-11-22T12:00"), 2, "has no time zone"),
        (("name: digits", "name: digits\ndata: {uri: http://b}"), 2, "region and size missing: nobody here can ask"),
        (("name: digits", "name: digits\ncheckpoint: {buckets: {aws: /runs}}"), 2, "write a bucket, e.g. s3://ckpts"),
        (("name: digits", "name: digits\nmarket: {seed: 1, file: x}"), 2, "exactly one of file and seed"),
        (("name: digits", "name: digits\ncheckpoint: {keep: 1}"), 2, "greater than or equal to 2"),
        (("name: digits", "name: digits\ncheckpoint: {snapshot: sometimes}"), 2, "'overlap', 'lazy' or 'blocking'"),
        (("name: digits", "name: digits\ncheckpoint: {local: nvme}"), 2, "write a folder of the training machine"),
        (("name: digits", "name: digits\ncheckpoint: {keep_every_steps: 0}"), 2, "greater than 0"),
        (
            ("name: digits", "name: digits\ncheckpoint: {max_loss: $0}"),
            2,
            "checkpoint.max_loss is '$0': input",
        ),
        (("name: digits", "name: digits\ncheckpoint: {max_loss: -$5}"), 2, "'-$5' is not an amount; write 1200"),
        (("name: digits", "name: digits\ncheckpoint: {max_loss: 5 min}"), 2, "'5 min' is not an amount; write 1200"),
        (("name: digits", "name: digits\ncheckpoint:\n  keep_best: {metric: 'a:b'}"), 3, "keep_best.metric"),
        (("name: digits", "name: digits\ncheckpoint:\n  keep_best: {mode: min}"), 3, "keep_best.metric"),
        (("name: digits", "name: digits\ncheckpoint: {keep_best: {metric: a, mode: most}}"), 2, "'min' or 'max'"),
    ],
)
def test_a_problem_stands_at_its_line_with_a_way_out(
    tmp_path: Path, change: tuple[str, str], line: int, words: str
) -> None:
    found = problems(GOOD.replace(*change, 1), tmp_path)

    assert any(f":{line}" in p.where and words in f"{p.message} {p.fix}" for p in found), found


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"- a\n- b\n",
        b"just text",
        b"a: &a [*a]\n",
        b"[" * 1200,
        b"{" * 1200,
        b"? [a]: b\n",
        b"!!python/object/apply:os.system [id]\n",
        b"x" * (MAX_BYTES + 1),
        b"a: 1\n\tb: 2\n",
        b"%YAML 9.9\n---\na: 1\n",
        b"name: !!binary abc\n",
        b"2026-13-45: x\n",
        b"a: 0x\nb: 1_000_\n",
        b"gpus: {1: 8, 1.5: 2, true: 3, null: 4}\n",
    ],
    ids=range(16),
)
def test_a_hostile_file_is_an_input_error(content: bytes, tmp_path: Path) -> None:
    assert problems(content, tmp_path)


def test_a_missing_file_names_the_way_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file") as caught:
        load(tmp_path / "train.yaml", RunSpec)

    assert "launch init" in caught.value.problems[0].fix


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path, RunSpec)


_SIGNS = "{}[]:,-?&*!|>'\"%@#\n\t "
_WORDS = (
    *("name", "gpus", "H100", "workload", "steps", "deadline", "cost", "cap", "market", "8", "1e999", ".nan", "-.inf"),
    *("0o7", "~", "null", "true", "&a", "*a", "<<", "---", "...", "2026-01-01", "!!int"),
)
_TOKENS = st.sampled_from([*_SIGNS, *_WORDS])


@settings(max_examples=60)
@given(st.lists(_TOKENS, max_size=40))
def test_fuzzed_yaml_never_gives_a_traceback(tmp_path_factory: pytest.TempPathFactory, tokens: list[str]) -> None:
    _must_be_spec_or_input_error("".join(tokens).encode(), tmp_path_factory.getbasetemp())


@settings(max_examples=60)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)))
def test_a_damaged_good_file_never_gives_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    content = GOOD.encode()
    _must_be_spec_or_input_error(content[:at] + noise + content[at:], tmp_path_factory.getbasetemp())


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60)
@given(field=st.sampled_from(sorted(RunSpec.model_fields)), value=_VALUES)
def test_any_value_of_any_field_is_accepted_or_refused_with_words(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    import json

    lines = [line for line in GOOD.splitlines() if not line.startswith((field, " "))]
    text = "\n".join([*lines, f"{field}: {json.dumps(value)}"])

    _must_be_spec_or_input_error(text.encode(), tmp_path_factory.getbasetemp())


def _item(model: type[BaseModel]) -> st.SearchStrategy[dict[str, object]]:
    """A dict with some of the model's own keys, and any values."""
    return st.dictionaries(st.sampled_from(sorted(model.model_fields)), _VALUES | st.integers(0, 9).map(str))


_ITEMS = {Terms: _item(Reserved) | _item(Own) | _item(Discount), Market: _item(Place)}


@pytest.mark.parametrize("model", [Terms, Market], ids=["pricing", "market"])
@settings(max_examples=60)
@given(data=st.data())
def test_other_files_are_accepted_or_refused_with_words_too(
    tmp_path_factory: pytest.TempPathFactory, model: type[BaseModel], data: st.DataObject
) -> None:
    import json

    fields = st.dictionaries(st.sampled_from(sorted(model.model_fields)), st.lists(_ITEMS[model], max_size=2) | _VALUES)
    path = tmp_path_factory.getbasetemp() / "other.yaml"
    path.write_text(json.dumps(data.draw(fields)))

    try:
        load(path, model)
    except InputError as error:
        assert all(p.message and p.where.startswith(str(path)) for p in error.problems)  # noqa: PT017


def _must_be_spec_or_input_error(content: bytes, folder: Path) -> None:
    path = folder / "train.yaml"
    path.write_bytes(content)
    try:
        load_spec(path, load_catalog())
    except InputError as error:
        assert all(p.message and p.where.startswith(str(path)) for p in error.problems)  # noqa: PT017


def test_the_template_is_a_valid_spec(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(template())

    assert load_spec(path, load_catalog()).name == "my-training"


def test_the_template_with_everything_switched_on_is_valid_too(tmp_path: Path) -> None:
    lines = [line.replace("# ", "", 1) if _is_switched_off(line) else line for line in template().splitlines()]
    path = tmp_path / "train.yaml"
    path.write_text("\n".join(lines))

    spec = load_spec(path, load_catalog())

    assert spec.data is not None
    assert spec.workload.model is not None
    assert spec.cost.cap == 1200


def _is_switched_off(line: str) -> bool:
    """A commented line that holds a key, not prose."""
    return (
        line.lstrip().startswith("# ") and ": " in line.split("#")[1] + " " and "launch" not in line and "$" not in line
    )


def test_the_schema_knows_what_the_model_knows() -> None:
    import jsonschema

    schema = json_schema()
    good = {"name": "a", "run": "x", "gpus": {"H100": 8}, "workload": {"steps": 1}}

    jsonschema.validate(good, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(good | {"gpu": 1}, schema)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_worked_example_is_valid(path: Path) -> None:
    from launcher.adapters.local_market import load_market
    from launcher.core.prices.pricing import Terms

    if path.name.endswith("market.yaml"):
        load_market(path)
    elif path.name == "pricing.yaml":
        load(path, Terms)
    else:
        load_spec(path, load_catalog())
        assert path.read_text().startswith("# yaml-language-server: $schema=train.schema.json")


def test_the_schema_beside_the_examples_is_the_current_one() -> None:
    import json

    kept = json.loads(Path("configs/train.schema.json").read_text())
    assert (kept == json.loads(json.dumps(json_schema()))) is True, "launch schema > configs/train.schema.json"


@pytest.mark.parametrize(
    "path", [p for p in sorted(Path("configs").glob("*.yaml")) if "$schema" in p.read_text()], ids=lambda p: p.name
)
def test_an_editor_with_the_schema_accepts_every_worked_example(path: Path) -> None:
    import jsonschema

    jsonschema.validate(parse(path)[0], json_schema())


def test_a_spec_survives_its_way_through_the_ledger(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text(
        GOOD + "deadline: 36 h\ncost:\n  cap: $1,200\ndata: {uri: s3://b, region: aws/us-east-2, size: 1.2 TB}\n"
        "checkpoint: {size: 0.1 MB, save_seconds: 2 min, keep_best: {metric: loss}, local: /mnt/nvme, snapshot: lazy}\n"
    )
    spec = load_spec(path, load_catalog())

    assert RunSpec.model_validate(spec.model_dump(mode="json")) == spec
