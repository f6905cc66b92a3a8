"""Tabular tasks: how rows and columns are read, and what comes of hostile ones."""

from __future__ import annotations

import dataclasses
import decimal
import re
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import converters
import infer
from bench import zoo
from bench.zoo import german_credit
from converters.original import original_task
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate_task, read_dataset
from infer.manifest import TaskSpec
from infer.signature import Signature, TensorSpec
from infer.tasks import Setting, StreamTask
from infer.tasks.columns import Column, Columns
from infer.tasks.tabular_classification import TabularClassification
from infer.tasks.tabular_regression import TabularRegression
from tests.command import infer_command
from tests.tiny import edit_manifest, make_artifact

PLAIN = (Column("age"), Column("height"))


def setting(
    *inputs: TensorSpec, spec: dict[str, Any] | None = None, run: Callable[..., Any] | None = None
) -> Setting:
    """A setting of a graph with these inputs and the output `y`."""

    def answer(feeds: Any) -> Any:
        (x,) = feeds.values()
        return {"y": np.stack([x.sum(axis=1), -x.sum(axis=1)], axis=1)}

    signature = Signature(inputs, (TensorSpec("y", "float32", ("batch", 2)),))
    return Setting("tabular-classification", spec or {}, signature, "y", Path, run or answer)


def columns_of(*columns: Column, width: int | str = "width", dtype: str = "float32") -> Columns:
    """Columns that all go to the input `x`."""
    return Columns(columns, "x", setting(TensorSpec("x", dtype, ("batch", width))))


def fed(columns: Columns, *rows: Any) -> list[list[float]]:
    """What `x` gets for `rows`."""
    return np.asarray(columns.feeds(rows)["x"]).tolist()


def task(*columns: dict[str, Any], width: int | str = "width") -> TabularClassification:
    """A classifier whose logits are the sum of a row's numbers, and minus that."""
    spec = {"input": "x", "output": "y", "columns": list(columns), "labels": ["up", "down"]}
    return TabularClassification(setting(TensorSpec("x", "float32", ("batch", width)), spec=spec))


Person = namedtuple("Person", ["height", "age"])

AS_ROWS: dict[str, Any] = {
    "mapping": {"height": 2, "age": 1, "name": "x"},
    "list": [1, 2.0],
    "tuple": (np.float32(1), "2"),
    "array": np.array([1, 2]),
    "named tuple, other order": Person(height=2, age=1),
    "Series, other order": pd.Series({"height": 2, "age": 1}),
    "record, other order": np.array([(2, 1)], dtype=[("height", "f4"), ("age", "i4")])[0],
    "decimals": (decimal.Decimal(1), decimal.Decimal("2.0")),
}


@pytest.mark.parametrize("case", AS_ROWS)
def test_what_has_names_is_read_by_name_and_the_rest_in_order(case: str) -> None:
    """Each form of the same row gives the same numbers."""
    assert fed(columns_of(*PLAIN), AS_ROWS[case]) == [[1.0, 2.0]]


@pytest.mark.parametrize(
    "row", ["12", b"12", {1, 2}, (c for c in "12"), None, 5, np.zeros((2, 1)), np.array(3.0), object()]
)
def test_what_is_no_row_is_refused(row: Any) -> None:
    """Text, bytes, sets, generators, None, numbers and other arrays are errors that count from 1."""
    with pytest.raises(InputError, match="row 2 must be a mapping of names to values, or a list of values"):
        columns_of(*PLAIN).feeds([[1, 2], row])
    with pytest.raises(InputError, match="row 1 "):
        task({"name": "age"}, {"name": "height"})(row)


def test_many_rows_come_as_a_list_a_frame_records_or_two_dimensions() -> None:
    """Lists of rows, data frames (by name), arrays of records and 2-D arrays give a list of results."""
    up_down = task({"name": "age"}, {"name": "height", "mean": 3})
    expected = up_down([{"age": 1, "height": 2}, {"age": 1, "height": 5}])
    assert [ranked[0].label for ranked in expected] == ["up", "up"]
    assert expected[0] != expected[1]
    frame = pd.DataFrame({"height": [2, 5], "other": [9, 9], "age": [1, 1]})
    assert up_down(frame) == expected
    assert up_down(frame[["height", "age"]].to_records(index=False)) == expected
    assert up_down(np.array([[1, 2], [1, 5]])) == expected
    assert [up_down(row) for row in ([1, 2], np.array([1, 5]))] == expected
    assert [up_down(row) for _, row in frame.iterrows()] == expected
    assert up_down(list(frame.itertuples())) == expected
    assert up_down([]) == []
    with pytest.raises(InputError, match="names a column twice: age, age"):
        up_down(pd.DataFrame([[1, 2]], columns=["age", "age"]))


def test_a_row_number_counts_through_the_whole_input() -> None:
    """A bad cell in the second batch of 4096 rows is named by its place among all rows, from 1."""
    rows: list[Any] = [[1.0]] * 5000
    rows[4998] = ["x"]
    with pytest.raises(InputError, match=r"^row 4999, column 'age' must be a finite number, but is 'x'"):
        task({"name": "age"})(rows)
    rows[4998] = [1e300]
    with pytest.raises(InputError, match=r"^row 4999, column 'age' is 1e\+300 for the model"):
        task({"name": "age"})(rows)


@pytest.mark.parametrize(
    "cell",
    [10**400, 10**5000, float("inf"), "-inf", "1e999", "big", b"5", 1j, [5], np.array([5.0]), object()],
    ids=lambda cell: type(cell).__name__,
)
def test_what_is_no_finite_number_is_refused(cell: Any) -> None:
    """Whatever the cell is, the error names row and column, and nothing else is raised or warned of."""
    with pytest.raises(InputError, match="row 1, column 'age' must be a finite number, but is"):
        columns_of(Column("age")).feeds([{"age": cell}])


@pytest.mark.parametrize(
    ("column", "cell", "dtype"),
    [
        (Column("age"), 1e300, "float32"),
        (Column("age", scale=1e-30), "1e10", "float32"),
        (Column("age", mean=-1.7e308), 1.7e308, "float64"),
        (Column("age"), 70000, "float16"),
        (Column("age"), 1.5, "int64"),
        (Column("age"), 2**60, "int64"),
        (Column("age"), -1, "uint8"),
        (Column("age"), 300, "uint8"),
        (Column("age"), 2, "bool"),
    ],
)
def test_a_number_that_does_not_fit_the_input_is_refused(column: Column, cell: Any, dtype: str) -> None:
    """After scaling, it must be finite in the input's dtype, or an integer the dtype holds."""
    with pytest.raises(InputError, match=f"row 1, column 'age' is .* does not fit {dtype}"):
        columns_of(column, dtype=dtype).feeds([[cell]])


BAD_COLUMNS: dict[str, tuple[tuple[Column, ...], str]] = {
    "scale 0": ((Column("a", scale=0.0),), "mean 0 and scale 0; both must be finite, scale not 0"),
    "scale nan": ((Column("a", scale=float("nan")),), "mean 0 and scale nan"),
    "kind": ((Column("a", kind="date"),), "has the unknown kind 'date'; use one of numeric"),
    "none": ((), "has no columns"),
    "twice": ((Column("a"), Column("a")), "names a column twice: a, a"),
    "no categories": ((Column("a", kind="one-hot"),), "is one-hot, but has no categories"),
    "numeric categories": ((Column("a", categories=("x",)),), "is numeric, and so has no categories"),
    "category twice": ((Column("a", kind="ordinal", categories=("x", "x ")),), "lists a category twice"),
    "unknown": ((Column("a", kind="ordinal", categories=("x",), unknown="zeros"),), "has unknown 'zeros'"),
    "missing": (
        (Column("a", kind="ordinal", categories=("x",), missing="y"),),
        "missing cells that has the unknown category 'y'; known are x",
    ),
    "missing number": ((Column("a", missing="y"),), "missing cells that must be a finite number"),
    "missing several": (
        (Column("a", kind="multi-hot", categories=("x",), missing="x"),),
        "so has no 'missing'",
    ),
    "input": (
        (Column("a", input="z"),),
        "column 'a' goes to the input 'z', which the graph lacks; it takes x",
    ),
    "width": (
        (Column("a"), Column("b"), Column("c")),
        "make 3 numbers a row, which do not fit the input x",
    ),
}


@pytest.mark.parametrize("case", BAD_COLUMNS)
def test_a_spec_that_makes_no_sense_is_refused(case: str) -> None:
    """When the artifact is loaded, and with the column's name."""
    columns, words = BAD_COLUMNS[case]
    with pytest.raises(ArtifactError, match=words):
        columns_of(*columns, width=2)


def test_a_task_without_all_inputs_or_with_a_wrong_output_is_refused() -> None:
    """Every input of the graph needs a column, and the output must be the graph's."""
    specs = [TensorSpec(name, "float32", ("batch", 1)) for name in ("x", "z")]
    spec = {"input": "x", "output": "y", "columns": [{"name": "age"}]}
    with pytest.raises(ArtifactError, match="no column goes to the input 'z'"):
        TabularClassification(setting(*specs, spec=spec))
    with pytest.raises(ArtifactError, match=r"the output 'p', which the graph lacks; it has y"):
        TabularClassification(setting(specs[0], spec={**spec, "output": "p"}))


def test_missing_cells_count_as_the_spec_says_or_are_refused() -> None:
    """None, NaN, an empty cell and pandas' NA are missing in every kind of column."""
    filled = columns_of(
        Column("age", mean=10, scale=2, missing=30),
        Column("job", kind="one-hot", categories=("nurse", "none"), missing="none"),
        Column("owner", kind="boolean", missing=True),
        Column("size", kind="ordinal", categories=("s", "m"), missing="m"),
        Column("genres", kind="multi-hot", categories=("a", "b")),
    )
    refused = columns_of(Column("age"))
    for missing in (None, float("nan"), np.float32("nan"), "", "  ", "NaN", pd.NA, pd.NaT):
        row = dict.fromkeys(filled.names, missing)
        assert fed(filled, row) == [[10.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0]]
        with pytest.raises(InputError, match=r"row 1, column 'age' is empty .* no value for missing cells"):
            refused.feeds([{"age": missing}])
    with pytest.raises(InputError, match="row 1 lacks 'age'"):  # a name left out may be misspelt
        filled.feeds([dict.fromkeys(filled.names[1:])])


def test_unknown_categories_are_refused_or_have_a_place() -> None:
    """Refused with the known ones listed, the slot after the last, or nowhere."""
    known = ("red", "green", "blue")
    hot, ordinal = (
        Column("c", kind="one-hot", categories=known),
        Column("c", kind="ordinal", categories=known),
    )
    for column in (hot, ordinal):
        with pytest.raises(
            InputError, match="column 'c' has the unknown category 'pink'; known are red, gr"
        ):
            columns_of(column).feeds([["pink"]])
    assert fed(columns_of(dataclasses.replace(hot, unknown="other")), ["pink"], ["red"]) == [
        [0, 0, 0, 1],
        [1, 0, 0, 0],
    ]
    assert fed(columns_of(dataclasses.replace(hot, unknown="zeros")), ["pink"], ["blue"]) == [
        [0, 0, 0],
        [0, 0, 1],
    ]
    assert fed(columns_of(dataclasses.replace(ordinal, unknown="other")), ["pink"], [" green "]) == [
        [3],
        [1],
    ]
    many = Column("c", kind="ordinal", categories=tuple(map(str, range(50))))
    with pytest.raises(InputError, match=r"known are 0, 1, .*, 19 and 30 more"):
        columns_of(many).feeds([["x"]])
    assert fed(columns_of(many), [7], [7.0], ["7"], [np.int8(7)]) == [[7]] * 4
    for cell in (b"red", ["red"], ("red",)):
        with pytest.raises(InputError, match="unknown category"):
            columns_of(dataclasses.replace(ordinal, unknown="other")).feeds([{"c": cell}])


def test_cells_with_several_categories_come_as_a_list_or_joined() -> None:
    """Every named category is set; an unknown one is treated as in the other kinds."""
    column = Column("g", kind="multi-hot", categories=("drama", "war", "sci-fi"), unknown="other")
    rows = [{"g": "war|drama"}, {"g": ["war", "drama"]}, {"g": "war| opera"}, {"g": []}]
    assert fed(columns_of(column), *rows) == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    with pytest.raises(InputError, match="row 1, column 'g' has the unknown category 'opera'"):
        columns_of(dataclasses.replace(column, unknown="refused")).feeds([{"g": "opera"}])


def test_truth_values_have_many_spellings_and_nothing_else_passes() -> None:
    """Bools, 1 and 0, and the words for them; 2, 0.5 and other words are refused."""
    owner = columns_of(Column("owner", kind="boolean"))
    for yes, no in (
        (True, False),
        (1, 0),
        ("TRUE", "false"),
        ("yes", " no"),
        ("1", "0.0"),
        (np.True_, 0.0),
    ):
        assert fed(owner, [yes], [no]) == [[1], [0]]
    for cell in (2, 0.5, "maybe", b"1", 10**400):
        with pytest.raises(InputError, match="row 1, column 'owner' must be true or false"):
            owner.feeds([[cell]])


def test_columns_go_to_the_inputs_they_name() -> None:
    """Numbers to a float32 input, places to an int64 one, one column alone to an input without columns."""
    given = setting(
        TensorSpec("numbers", "float32", ("batch", 2)),
        TensorSpec("places", "int64", ("batch", 2)),
        TensorSpec("flag", "bool", ("batch",)),
    )
    columns = Columns(
        (
            Column("size", kind="ordinal", categories=("s", "m", "l"), input="places"),
            Column("age", mean=40, scale=10),
            Column("owner", kind="boolean", input="flag"),
            Column("color", kind="ordinal", categories=("red",), unknown="other", input="places"),
            Column("height", missing=0),
        ),
        "numbers",
        given,
    )
    feeds = columns.feeds([["l", 50, "yes", "pink", None], ["s", 30, "no", "red", 3]])
    assert {name: (a.dtype.name, a.tolist()) for name, a in feeds.items()} == {
        "places": ("int64", [[2, 1], [0, 0]]),
        "numbers": ("float32", [[1.0, 0.0], [-1.0, 3.0]]),
        "flag": ("bool", [True, False]),
    }


CSV: dict[str, tuple[str, list[Any]]] = {
    "header": ("age,height\n1,2\n", [{"age": "1", "height": "2"}]),
    "blanks around names": (" age ,height \n1,2\n", [{"age": "1", "height": "2"}]),
    "other order, more columns": ("id,height,age\na,2,1\n", [{"id": "a", "height": "2", "age": "1"}]),
    "byte order mark": ("\ufeffage,height\n1,2\n", [{"age": "1", "height": "2"}]),
    "no header": ("1,2\n3,4\n", [["1", "2"], ["3", "4"]]),
    "a cell that is a name": ("age,2\n3,4\n", [["age", "2"], ["3", "4"]]),
    "no names": ("a,b\n3,4\n", [["a", "b"], ["3", "4"]]),
    "blank lines": ("\nage,height\n\n1,2\n ,\n", [{"age": "1", "height": "2"}]),
    "line within quotes": ('age,height\n"1\n\n",2\n', [{"age": "1\n\n", "height": "2"}]),
    "Windows line ends": ("age,height\r\n1,2\r\n", [{"age": "1", "height": "2"}]),
    "header alone": ("age,height\n", []),
}


@pytest.mark.parametrize("case", CSV)
def test_files_and_streams_are_read_alike(case: str, tmp_path: Path) -> None:
    """The first row is a header if it names a column and holds no number."""
    text, rows = CSV[case]
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8", newline="")
    columns = columns_of(*PLAIN)
    assert columns.read(path) == rows
    assert columns.parse_stream(text.splitlines(keepends=True), "stdin") == rows


def test_names_that_are_numbers_make_a_header_only_together() -> None:
    """Columns called 0 and 1: a row that holds both is the header, one that holds one is a row."""
    columns = columns_of(Column("0"), Column("1"))
    assert columns.parse_stream(["0,1\n", "5,6\n"], "stdin") == [{"0": "5", "1": "6"}]
    assert columns.parse_stream(["0,7\n", "5,6\n"], "stdin") == [["0", "7"], ["5", "6"]]


BAD_CSV: dict[str, tuple[str, str]] = {
    "name twice": ("age,height, age\n1,2,3\n", "names a column twice: 'age'"),
    "ragged": ("age,height\n1,2\n1\n", "row 2 of .* has 1 fields, but the header has 2"),
    "long cell": (f"age,height\n1,{'9' * 200_000}\n", "field larger than field limit"),
    "open quote": ('age,height\n1,"2\n', "unexpected end of data"),
    "stray quote": ('age,height\n1,"2"3\n', "expected after"),
}


@pytest.mark.parametrize("case", BAD_CSV)
def test_what_is_no_table_is_refused(case: str, tmp_path: Path) -> None:
    """As a file and as a stream: an error of ours that names where it is."""
    text, words = BAD_CSV[case]
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as error:
        columns_of(*PLAIN).read(path)
    assert "x.csv" in str(error.value)
    with pytest.raises(InputError, match=words) as error:
        columns_of(*PLAIN).parse_stream(text.splitlines(keepends=True), "stdin")
    assert "stdin" in str(error.value)


def test_a_line_of_text_is_one_row() -> None:
    """Never a header, and an error if it is empty or too long to be a row."""
    columns = columns_of(Column("age", kind="ordinal", categories=("age", "x")), Column("height"))
    assert columns.parse(' age,"2"') == [" age", "2"]
    for text, words in (
        ("", "the text is empty"),
        ("9" * 200_000, "field larger"),
        ('"', "unexpected end"),
    ):
        with pytest.raises(InputError, match=words):
            columns.parse(text)


def test_records_are_read_by_name(tmp_path: Path) -> None:
    """A .jsonl file holds an object a line; what is none is named by its line."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"age": 1, "height": null}\n\n{"age": 2, "height": 3, "note": "a\u2028b"}\n')
    rows = columns_of(*PLAIN).read(path)
    assert rows == [{"age": 1, "height": None}, {"age": 2, "height": 3, "note": "a\u2028b"}]
    path.write_text('{"age": 1}\n[2, 3]\n')
    with pytest.raises(InputError, match=r"line 2 of '.*x.jsonl' must be an object, but is \[2, 3\]"):
        columns_of(*PLAIN).read(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not a UTF-8 JSON Lines file"):
        columns_of(*PLAIN).read(path)


def test_stdin_knows_a_header_as_files_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`infer run` answers the same for a file, for its lines on stdin, and for rows without a header."""
    monkeypatch.chdir(tmp_path)
    names = [f"c{i}" for i in range(10)]
    spec = {"input": "x", "output": "logits", "columns": [{"name": name} for name in names]}
    edit_manifest(
        make_artifact(tmp_path / "net.infer"),
        lambda data: data.update(task={"name": "tabular-classification", "spec": spec}),
    )
    rows = np.random.default_rng(0).standard_normal((3, 10)).tolist()
    lines = [",".join(map(str, row)) for row in rows]
    backwards = [",".join(line.split(",")[::-1]) for line in lines]
    table = "\n".join([",".join(names[::-1]), *backwards]) + "\n"
    Path("x.csv").write_text(table)
    expected = infer_command("run", "net.infer", "x.csv", "--json")
    assert expected.code == 0
    assert expected.out.count('"labels"') == 3
    assert infer_command("run", "net.infer", "--json", stdin=table.encode()).out == expected.out
    assert infer_command("run", "net.infer", "--json", stdin="\n".join(lines).encode()).out == expected.out
    texts = [option for line in lines for option in ("--text", line)]
    assert infer_command("run", "net.infer", "--json", *texts).out == expected.out
    failed = infer_command("run", "net.infer", stdin=f"{table}{','.join('123456789x')}\n".encode())
    assert failed.code == 1
    assert "row 4, column 'c0' must be a finite number, but is 'x'" in failed.err


def test_tabular_tasks_read_streams() -> None:
    """The command line tells them from tasks that take a line each by their type."""
    assert isinstance(task({"name": "age"}), StreamTask)


CELLS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers().map(lambda exponent: 10 ** abs(exponent % 600)),
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.text(max_size=8),
    st.sampled_from(["red", " red", "green|red", "1", "0", "yes", "1e40", "-1e-50", "nan", "inf", "1_0"]),
    st.binary(max_size=4),
    st.complex_numbers(),
    st.decimals(),
    st.fractions(),
    st.dates(),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
)


@given(
    cells=st.lists(CELLS, min_size=5, max_size=5), dtype=st.sampled_from(["float16", "float32", "float64"])
)
@settings(max_examples=300, deadline=None)
def test_any_cell_is_a_finite_number_or_refused(cells: list[Any], dtype: str) -> None:
    """Whatever comes, in every kind of column: finite numbers, or an error that names row and column."""
    known = ("red", "green")
    columns = columns_of(
        Column("a", mean=1e3, scale=1e-3, missing=0),
        Column("b", kind="boolean"),
        Column("c", kind="ordinal", categories=known, unknown="other"),
        Column("d", kind="one-hot", categories=known, unknown="zeros", missing="red"),
        Column("e", kind="multi-hot", categories=known, unknown="zeros"),
        dtype=dtype,
    )
    array, problem = np.zeros((1, 7)), "row 1, column 'a' "
    try:
        array = columns.feeds([dict(zip(columns.names, cells, strict=True))])["x"]
    except InputError as error:
        problem = str(error)
    assert re.match(r"row 1, column '[a-e]' ", problem)
    assert array.shape == (1, 7)
    assert np.isfinite(array).all()


def test_columns_equal_scikit_learn_on_real_rows() -> None:
    """Imputed and scaled numbers, one-hot and ordinal categories of 1,000 credit applications, some of
    whose cells are blank or unknown, are those of scikit-learn's transformers (float32: exact)."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler

    found = german_credit.data()
    frame = pd.DataFrame(list(found.rows))
    rng = np.random.default_rng(0)
    for name in frame.columns:
        frame.loc[rng.random(len(frame)) < 0.1, name] = None if name in found.numeric else "unheard of"
    numeric = found.numeric
    listed = {name: categories for name, categories in found.columns if categories is not None}
    hot, ordered = list(listed)[::2], list(listed)[1::2]
    pipeline = make_pipeline(SimpleImputer(), StandardScaler())
    theirs = ColumnTransformer(
        [
            ("numbers", pipeline, numeric),
            (
                "hot",
                OneHotEncoder(
                    categories=[listed[name] for name in hot], handle_unknown="ignore", sparse_output=False
                ),
                hot,
            ),
            (
                "ordered",
                OrdinalEncoder(
                    categories=[listed[name] for name in ordered],
                    handle_unknown="use_encoded_value",
                    unknown_value=100,
                ),
                ordered,
            ),
        ]
    ).fit_transform(frame)
    other = [len(listed[name]) for name in ordered]  # our place for unknown ones is after the last
    tail = theirs[:, -len(ordered) :]
    tail[:] = np.where(tail == 100, other, tail)
    fill, scaler = pipeline.fit(frame[numeric])
    ours = columns_of(
        *(
            Column(name, mean=float(mean), scale=float(scale), missing=float(value))
            for name, mean, scale, value in zip(
                numeric, scaler.mean_, scaler.scale_, fill.statistics_, strict=True
            )
        ),
        *(Column(name, kind="one-hot", categories=listed[name], unknown="zeros") for name in hot),
        *(Column(name, kind="ordinal", categories=listed[name], unknown="other") for name in ordered),
    )
    np.testing.assert_array_equal(
        ours.feeds(frame.to_dict(orient="records"))["x"], theirs.astype(np.float32)
    )


def test_two_inputs_answer_as_torch(tmp_path: Path) -> None:
    """Numbers and embedded categories of held-out applications: torch's own probabilities, to 1e-6."""
    torch.manual_seed(0)
    found = german_credit.data()
    model = german_credit.Net(len(found.numeric), found.sizes).eval()
    numbers, categories = german_credit.tensors(found.test)
    converters.convert(
        model,
        tmp_path / "credit.infer",
        example_inputs={"numbers": numbers[:4], "categories": categories[:4]},
        task=german_credit.task(),
    )
    with torch.no_grad():
        truth = model(numbers, categories)["logits"].softmax(1).numpy()
    rows = german_credit.samples()
    with infer.load(tmp_path / "credit.infer") as session:
        results = session(rows)
        scores = [{item.label: item.score for item in ranked} for ranked in results]
        np.testing.assert_allclose([[s["good"], s["bad"]] for s in scores], truth, atol=1e-6)
        with pytest.raises(InputError, match="row 1, column 'housing' has the unknown category 'a boat'"):
            session({**rows[0], "housing": "a boat"})


class Slope(torch.nn.Module):
    """Two targets, linear in three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": self.linear(x)}


REGRESSION = {
    "input": "x",
    "output": "y",
    "columns": [{"name": "a", "mean": 2.0, "scale": 4.0}, {"name": "b"}, {"name": "c"}],
    "targets": [{"name": "weight", "mean": 70.0, "scale": 12.0}, {"name": "size", "scale": -0.5}],
}


@pytest.fixture(scope="module")
def regressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slope") / "slope.infer"
    torch.manual_seed(0)
    converters.convert(
        Slope().eval(),
        path,
        example_inputs={"x": torch.randn(4, 3)},
        task=TaskSpec("tabular-regression", REGRESSION),
    )
    return path


def slope_values(rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The closed form of what the regressor predicts, in float64."""
    torch.manual_seed(0)
    linear = Slope().double().linear
    scaled = (rows - [2.0, 0.0, 0.0]) / [4.0, 1.0, 1.0]
    values = scaled @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    return np.asarray(values * [12.0, -0.5] + [70.0, 0.0])


def test_regression_undoes_the_scaling_of_its_targets(regressor: Path) -> None:
    """Values of rows as mappings, sequences and text are those of the closed form, to 1e-5 of 70."""
    rows = np.random.default_rng(0).standard_normal((5, 3))
    truth = slope_values(rows)
    with infer.load(regressor) as session:
        results = session(rows)
        np.testing.assert_allclose([[r["weight"], r["size"]] for r in results], truth, atol=1e-5 * 70)
        assert session(dict(zip("abc", rows[0], strict=True))) == results[0]
        assert session(session.task.parse(",".join(map(str, rows[0])))) == results[0]
        assert session.task.to_json({"weight": 1.0, "size": float("nan")}) == {
            "values": {"weight": 1.0, "size": None}
        }
        with pytest.raises(InputError, match="row 2, column 'c' must be a finite number, but is 'x'"):
            session([[1, 2, 3], [1, 2, "x"]])


def test_regression_is_evaluated_against_true_values(regressor: Path, tmp_path: Path) -> None:
    """RMSE, MAE and R2 of a table and of arrays are those of their definitions."""
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((40, 3))
    values = slope_values(rows)
    truth = values + rng.standard_normal(values.shape) * [3.0, 0.1]
    error = values - truth
    rmse = np.sqrt((error**2).mean(axis=0))
    expected = {
        "rmse": rmse.mean(),
        "mae": np.abs(error).mean(),
        "r2": (1 - (error**2).sum(axis=0) / ((truth - truth.mean(axis=0)) ** 2).sum(axis=0)).mean(),
        "rmse_weight": rmse[0],
        "rmse_size": rmse[1],
    }
    table = pd.DataFrame(np.hstack([rows, truth]), columns=["a", "b", "c", "weight", "height"])
    table.to_csv(tmp_path / "x.csv", index=False)
    np.savez(tmp_path / "x.npz", inputs=rows, targets=truth)
    with infer.load(regressor) as session:
        found = evaluate_task(session.task, read_dataset(session.task, tmp_path / "x.npz"))
        assert list(found.metrics) == list(expected)
        assert found.count == 40
        np.testing.assert_allclose(list(found.metrics.values()), list(expected.values()), rtol=1e-5)
        renamed = read_dataset(session.task, tmp_path / "x.csv", {"size": "height"})
        again = evaluate_task(session.task, renamed).metrics
        np.testing.assert_allclose(list(again.values()), list(found.metrics.values()), rtol=1e-12)
        with pytest.raises(InputError, match="no column for the size; it has a, b, c, weight, height"):
            read_dataset(session.task, tmp_path / "x.csv")
        for wrong, words in (
            ([[1.0, 2.0], [1.0, "x"]], "row 2, target 'size' must be a finite number, but is 'x'"),
            ([[1.0, 2.0], [1.0]], "row 2 has 1 targets, but the model gives weight, size"),
            ([[1.0, 2.0]], "the data 'x' has 2 inputs, but answers for 1"),
        ):
            with pytest.raises(InputError, match=words):
                evaluate_task(session.task, Dataset("x", [[1, 2, 3]] * 2, wrong))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"targets": []}, "must name its targets"),
        ({"targets": [{"name": "a"}, {"name": "a"}]}, "must name its targets, each once"),
        ({"targets": [{"name": "a"}]}, r"names 1 targets \(a\), but the graph gives y: float32"),
        ({"targets": [{"name": "a", "scale": 0}, {"name": "b"}]}, "target 'a' has mean 0 and scale 0"),
        ({"output": "z"}, "the output 'z', which the graph lacks"),
    ],
)
def test_a_regression_spec_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    """When the artifact is loaded."""
    given = setting(TensorSpec("x", "float32", ("batch", 3)), spec={**REGRESSION, **change})
    with pytest.raises(ArtifactError, match=words):
        TabularRegression(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "metric", "floor"), [("german-credit", "roc_auc", 0.75), ("diabetes", "r2", 0.3)]
)
def test_trained_families_are_as_good_as_their_originals(
    name: str, metric: str, floor: float, tmp_path: Path
) -> None:
    """The artifact's metrics on held-out rows are the PyTorch model's to 1e-6 of each, and worth having."""
    artifact = zoo.convert(name, tmp_path / "x.infer")
    dataset = zoo.family(name).dataset()
    with infer.load(artifact.path) as session, original_task(zoo.source(name), artifact) as original:
        ours, theirs = evaluate_task(session.task, dataset), evaluate_task(original, dataset)
    assert ours.metrics == pytest.approx(theirs.metrics, rel=1e-6)
    assert ours.metrics[metric] > floor
