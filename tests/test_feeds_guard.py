"""The feeds guard: every odd array is answered as its native contiguous copy is, or refused."""

from __future__ import annotations

import collections
import enum
from array import array as doubles
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import infer
from infer.errors import FeedError
from infer.signature import DTYPES
from tests.tiny import identity, write

Array = np.ndarray[Any, Any]
RUNS = 3
"""The first run is plain, the second binds buffers to the shapes, the third uses them."""


@pytest.fixture(scope="module")
def sessions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, infer.Session]]:
    """One identity model of two dims for each dtype."""
    folder = tmp_path_factory.mktemp("identity")
    opened = {
        dtype: infer.load(write(folder, identity(dtype), f"{dtype}.onnx"), num_threads=1)
        for dtype in DTYPES
    }
    yield opened
    for session in opened.values():
        session.close()


def answers(session: infer.Session, value: object) -> list[Array]:
    return [session.run({"x": value})["y"] for _ in range(RUNS)]


def base(dtype: str) -> Array:
    """Six different values, negative ones and the extremes where the dtype has them."""
    if dtype == "bool":
        return np.array([[True, False, True], [False, False, True]])
    if DTYPES[dtype].kind == "f":
        return np.array([[0.5, -1.25, 3.0], [-0.0, 1e-3, 6e4]], dtype)
    limits = np.iinfo(dtype)
    return np.array([[0, 1, limits.max], [limits.min, 7, limits.max - 1]], dtype)


def strided(x: Array) -> Array:
    wide = np.zeros((x.shape[0] * 2, x.shape[1] * 3), x.dtype)
    wide[::2, ::3] = x
    return wide[::2, ::3]


def unaligned(x: Array) -> Array:
    raw = np.zeros(x.nbytes + 1, np.uint8)
    view = raw[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


def read_only(x: Array) -> Array:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


class Subclass(np.ndarray):  # type: ignore[type-arg]
    pass


class Foreign:
    """Becomes an array when numpy asks for one, and says nothing else about itself."""

    def __init__(self, array: Array) -> None:
        self._array = array

    def __array__(self, dtype: object = None, copy: object = None) -> Array:
        return self._array


class Row:
    """What numpy takes for a sequence, though it is none to `collections.abc`."""

    def __init__(self, *items: object) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: int) -> object:
        return self._items[place]


MASKED = np.ma.masked_array([1.0, 2.0], [0, 1], np.float32)


LAYOUTS: dict[str, Callable[[Array], Any]] = {
    "native": np.copy,
    "fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.T).T,
    "strided": strided,
    "negative strides": lambda x: np.ascontiguousarray(x[::-1, ::-1])[::-1, ::-1],
    "read-only": read_only,
    "unaligned": unaligned,
    "big-endian": lambda x: x.astype(x.dtype.newbyteorder(">")),
    "big-endian strided": lambda x: strided(x.astype(x.dtype.newbyteorder(">"))),
    "nested lists": lambda x: x.tolist(),
    "tuples of rows": tuple,
    "lists of scalars": lambda x: [list(row) for row in x],
    "masked, nothing masked": lambda x: np.ma.masked_array(x, mask=False),
    "matrix": np.asmatrix,
    "subclass": lambda x: x.view(Subclass),
    "overlapping view": lambda x: np.lib.stride_tricks.sliding_window_view(
        np.concatenate([x[0], x[1][:1]]), 3
    ),
    "broadcast view": lambda x: np.broadcast_to(x[:1], x.shape),
    "zero rows": lambda x: x[:0],
    "zero columns": lambda x: x[:, :0],
    "dtype with metadata": lambda x: x.view(np.dtype(x.dtype, metadata={"unit": "mm"})),
    "__array__ object": Foreign,
    "list of __array__ objects": lambda x: list(map(Foreign, x)),
    "__array__ object, nothing masked": lambda x: Foreign(np.ma.masked_array(x, mask=False)),
    "deque of rows": collections.deque,
    "own sequence of rows": lambda x: Row(*x),
    "UserList of rows": collections.UserList,
    "buffer": lambda x: memoryview(np.ascontiguousarray(x)),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [name for name in DTYPES if name != "string"])
def test_a_layout_is_answered_as_its_native_contiguous_copy_is(
    sessions: dict[str, infer.Session], dtype: str, layout: str
) -> None:
    """Whatever the memory layout, three runs give the bits of the native contiguous copy."""
    odd = LAYOUTS[layout](base(dtype))
    expected = np.array(odd, dtype=dtype, order="C")
    for answer in answers(sessions[dtype], odd):
        assert answer.dtype == DTYPES[dtype]
        assert answer.shape == expected.shape
        assert answer.tobytes() == expected.tobytes()


@pytest.mark.parametrize("layout", ["strided", "native", "read-only", "unaligned"])
def test_bool_bytes_other_than_0_and_1_mean_true(sessions: dict[str, infer.Session], layout: str) -> None:
    """A bool array that holds the bytes 2 and 255 is answered with clean bytes of 1."""
    raw = LAYOUTS[layout](np.array([[2, 0, 255], [1, 128, 0]], np.uint8))
    for answer in answers(sessions["bool"], raw.view(np.bool_)):
        assert answer.view(np.uint8).tolist() == [[1, 0, 1], [1, 1, 0]]


def test_a_memmap_is_answered_and_left_alone(sessions: dict[str, infer.Session], tmp_path: Path) -> None:
    """A read-only file mapping is read in place; an offset that unaligns it is no obstacle."""
    values = base("float32")
    (tmp_path / "x.bin").write_bytes(b"!" + values.tobytes())
    mapped = np.memmap(tmp_path / "x.bin", np.float32, mode="r", offset=1, shape=(2, 3))
    for answer in answers(sessions["float32"], mapped):
        assert answer.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "code", ["b", "h", "i", "l", "q", "B", "H", "I", "L", "Q", "p", "P", "f", "d", "e"]
)
def test_every_c_type_of_a_size_is_the_same_dtype(sessions: dict[str, infer.Session], code: str) -> None:
    """`long` and `long long` are both int64 to the guard, and both are answered."""
    values = np.array([[1, 2, 3]], dtype=code)
    for answer in answers(sessions[values.dtype.name], values):
        assert answer.tolist() == [[1, 2, 3]]


def test_strings_come_back_as_they_were(sessions: dict[str, infer.Session]) -> None:
    """Empty strings, embedded NUL, long text and every plane of Unicode survive."""
    rows = [["", "a\0b", "trailing\0"], ["é" * 1000, "😀", " \n\t"]]
    for given_value in (rows, np.array(rows, dtype=object), np.array(rows, np.dtypes.StringDType())):
        for answer in answers(sessions["string"], given_value):
            assert answer.tolist() == rows


class Color(str, enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.array([["a", "bc"]]), [["a", "bc"]]),
        (np.array([["a", "bé"]]).astype(">U2"), [["a", "bé"]]),
        (np.array([[b"a", "é".encode()]]), [["a", "é"]]),
        ([[b"a", np.str_("b")]], [["a", "b"]]),
        ([[Color.RED]], [["red"]]),
        (np.asfortranarray(np.array([["a", "b"], ["c", "d"]], object)), [["a", "b"], ["c", "d"]]),
        (np.ma.masked_array([["a"]], mask=[[False]]), [["a"]]),
    ],
    ids=["U", "big-endian U", "S as UTF-8", "bytes and str_", "str enum", "fortran", "masked, none"],
)
def test_every_kind_of_text_is_read_as_text(
    sessions: dict[str, infer.Session], value: object, expected: list[list[str]]
) -> None:
    """numpy's fixed-width text, bytes of UTF-8 and subclasses of str mean their text."""
    for answer in answers(sessions["string"], value):
        assert answer.tolist() == expected


REFUSED: dict[str, tuple[str, Any, str]] = {
    # what came: (dtype of the input, the value, words of the message)
    "None": ("float32", None, "None came"),
    "None for text": ("string", None, "None came"),
    "None inside": ("float32", [[1.0, None]], "holds objects"),
    "wrong dtype": ("float32", np.zeros((1, 2)), "but float64 came"),
    "wrong dtype, list": ("int64", [[0.5]], "float64 values that do not fit"),
    "ints for bool": ("bool", np.array([[1]]), r"x.astype\(np.bool_\)"),
    "ints for bool, list": ("bool", [[1, 0]], "do not fit"),
    "bools for float": ("float32", [[True]], "do not fit"),
    "numpy scalar": ("float32", np.float32(1), "0 dims"),
    "python number": ("float32", 1.5, "0 dims"),
    "one dim too few": ("float32", np.zeros(3, np.float32), r"add the missing first axis"),
    "one dim too many": ("float32", np.zeros((1, 2, 3), np.float32), "reshape it"),
    "object array": ("float32", np.array([[1.0, 2.0]], dtype=object), "but object came"),
    "structured": ("float32", np.zeros((1, 2), [("a", "f4")]), "came"),
    "masked values": ("float32", np.ma.masked_array([[1, 2]], [[0, 1]], np.float32), "1 masked"),
    "masked structured": ("float32", np.ma.masked_array(np.zeros((1, 1), [("a", "f4")]), True), "'x'"),
    "list of masked rows": ("float32", [np.ma.masked_array([1.0, 2.0], [0, 1])], "masked arrays in it"),
    "masked inside": ("float32", [[np.ma.masked, 1.0]], "masked arrays in it"),
    "deque of masked rows": ("float32", collections.deque([MASKED]), "masked arrays in it"),
    "UserList of masked rows": ("float32", collections.UserList([MASKED]), "masked arrays in it"),
    "own sequence of masked": ("float32", [Row(MASKED, MASKED)], "masked arrays in it"),
    "masked behind __array__": ("float32", Foreign(MASKED.reshape(1, 2)), "1 masked"),
    "list of masked behind it": ("float32", [Foreign(MASKED)], "masked arrays in it"),
    "masked text behind it": ("string", Foreign(np.ma.masked_array([["a"]], [[True]])), "1 masked"),
    "float64 behind __array__": ("float32", Foreign(np.zeros((1, 2))), "but float64 came"),
    "list of float64 rows": ("float32", [np.zeros(2)], r"but float64 came.*np.asarray\(x\).astype"),
    "list of float64 scalars": ("float32", [list(np.zeros(2))], "but float64 came"),
    "deque of numbers": ("float32", collections.deque([[0.5]]), "but float64 came"),
    "array.array of doubles": ("float32", doubles("d", [0.5]), "but float64 came"),
    "masked text": ("string", np.ma.masked_array([["a"]], mask=[[True]]), "1 masked"),
    "ragged": ("float32", [[1.0], [1.0, 2.0]], "cannot be read as one"),
    "ragged text": ("string", [["a"], ["b", "c"]], "must hold only str"),
    "ragged text arrays": ("string", [np.array([["a"]]), np.array([["b", "c"]])], "'x'"),
    "out of range, list": ("uint8", [[256]], "do not fit"),
    "negative for unsigned": ("uint64", [[-1]], "do not fit"),
    "beyond 64 bits": ("int64", [[2**64]], "beyond 64 bits"),
    "beyond float": ("float64", [[10**400]], "beyond 64 bits"),
    "overflow to inf": ("float16", [[70_000.0]], "do not fit"),
    "float64 beyond float32": ("float32", [[1e39]], "do not fit"),
    "complex": ("float32", np.zeros((1, 2), np.complex64), "complex64"),
    "complex list": ("float32", [[1j]], "complex128"),
    "datetime": ("int64", np.zeros((1, 2), "datetime64[ns]"), "datetime64"),
    "timedelta": ("int64", np.zeros((1, 2), "timedelta64[s]"), "timedelta64"),
    "text for numbers": ("float32", [["1.0"]], "'x'"),
    "text array for numbers": ("float32", np.array([["1.0"]]), "'x'"),
    "StringDType for numbers": ("float32", np.array([["1"]], np.dtypes.StringDType()), "StringDType"),
    "bytes for numbers": ("uint8", b"abc", "'x'"),
    "numbers for text": ("string", np.zeros((1, 2), np.float32), "must hold only str"),
    "undecodable bytes": ("string", [[b"\xff"]], "not UTF-8"),
    "lone surrogate": ("string", [["ok", "\ud800"]], "lone surrogate"),
    "missing string": ("string", np.array([["a", None]], np.dtypes.StringDType(na_object=None)), "None"),
    "bfloat16 array": ("float32", np.zeros((1, 2), ml_dtypes.bfloat16), "bfloat16"),
    "float8 array": ("float16", np.zeros((1, 2), ml_dtypes.float8_e4m3fn), "float8"),
    "int4 array": ("int8", np.zeros((1, 2), ml_dtypes.int4), "int4"),
    "float16 for float32": ("float32", np.zeros((1, 2), np.float16), "float16"),
    "longdouble": ("float64", np.zeros((1, 2), np.longdouble), "came"),
    "tensor that requires grad": ("float32", torch.zeros(1, 2, requires_grad=True), "requires grad"),
    "bfloat16 tensor": ("float32", torch.zeros(1, 2, dtype=torch.bfloat16), "Tensor cannot be read"),
    "sparse tensor": ("float32", torch.zeros(1, 2).to_sparse(), "Tensor cannot be read"),
    "dict": ("float32", {"a": 1}, "holds objects"),
    "set": ("float32", {1.0}, "holds objects"),
    "generator": ("float32", (i for i in range(3)), "holds objects"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("default::UserWarning:torch.*")
def test_what_would_change_its_meaning_is_refused_by_name(
    sessions: dict[str, infer.Session], case: str
) -> None:
    """The first run and one after bound runs refuse alike, naming tensor, expectation and cause."""
    dtype, value, words = REFUSED[case]
    session = sessions[dtype]
    for _ in range(2):
        with pytest.raises(FeedError, match=words) as caught:
            session.run({"x": value})
        message = str(caught.value)
        assert "'x'" in message
        assert dtype in message or "dims [N, M]" in message or dtype == "string" or "mask" in message
        good = [["a", "b"]] if dtype == "string" else np.zeros((1, 2), dtype)
        answers(session, good)


def test_a_list_that_holds_itself_is_refused(sessions: dict[str, infer.Session]) -> None:
    """Endless nesting ends in a `FeedError`."""
    endless: list[Any] = []
    endless.append(endless)
    for dtype in ("float32", "string"):
        with pytest.raises(FeedError, match="'x'"):
            sessions[dtype].run({"x": endless})


def test_a_plain_torch_tensor_is_read(sessions: dict[str, infer.Session]) -> None:
    """A CPU tensor is as good as its array, transposed ones too."""
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3).T
    for answer in answers(sessions["float32"], tensor):
        assert answer.tolist() == [[0, 3], [1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("feeds", "words"),
    [
        ({}, r"feeds lack 'x'; the inputs are x: float32\[N, M\]"),
        ({"X": 1}, "lack 'x' and have unknown 'X'"),
        ({"x": [[1.0]], "extra": 1}, "unknown 'extra'"),
        ({1: [[1.0]]}, "unknown '1'"),
        ([("x", [[1.0]])], "a list came"),
        (None, "a NoneType came"),
        (np.zeros((1, 1)), "a ndarray came"),
    ],
)
def test_feeds_must_be_a_mapping_with_exactly_the_input_names(
    sessions: dict[str, infer.Session], feeds: Any, words: str
) -> None:
    """A missing or unknown name is refused with the list of inputs."""
    with pytest.raises(FeedError, match=words):
        sessions["float32"].run(feeds)


def test_nan_and_infinity_pass_unless_refused(tmp_path: Path) -> None:
    """By default they reach the graph bit for bit; with `refuse_nan` the first one is pointed at."""
    path = write(tmp_path, identity("float32"))
    odd = np.array([[1.0, np.nan], [np.inf, -np.inf]], np.float32)
    with infer.load(path) as session:
        for answer in answers(session, odd):
            assert answer.tobytes() == odd.tobytes()
    with infer.load(path, refuse_nan=True) as session:
        answers(session, np.zeros((2, 2), np.float32))
        for column, value in enumerate((np.nan, np.inf, -np.inf)):
            bad = np.zeros((2, 3), np.float32)
            bad[1, column] = value
            with pytest.raises(FeedError, match=rf"'x' holds NaN or infinity, first at \[1, {column}\]"):
                session.run({"x": bad})


def test_sizes_must_fit_and_agree(tmp_path: Path) -> None:
    """A fixed size is demanded; a symbolic dim must be the same everywhere, within one input too."""
    path = write(
        tmp_path,
        "g (float[N, 3] a, float[N, N] b) => (float[N, 3] c) { c = MatMul(b, a) }",
    )
    good = {"a": np.ones((2, 3), np.float32), "b": np.ones((2, 2), np.float32)}
    with infer.load(path) as session:
        for _ in range(RUNS):
            assert session.run(good)["c"].tolist() == [[2.0] * 3] * 2
            with pytest.raises(FeedError, match=r"'a' must have shape \[N, 3\].*axis 1 must be 3, not 4"):
                session.run({**good, "a": np.ones((2, 4), np.float32)})
            with pytest.raises(FeedError, match=r"'b' of shape \[3, 3\] has N = 3.*'a' has N = 2"):
                session.run({**good, "b": np.ones((3, 3), np.float32)})
            with pytest.raises(FeedError, match=r"'b' of shape \[2, 3\] has N = 3 on axis 1"):
                session.run({**good, "b": np.ones((2, 3), np.float32)})


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_dtype_layout_and_shape_is_answered_equal_or_refused(
    sessions: dict[str, infer.Session], data: st.DataObject
) -> None:
    """For every input dtype, a random array of a random dtype and layout is echoed or refused."""
    wanted = data.draw(st.sampled_from([name for name in DTYPES if name != "string"]))
    given_dtype = data.draw(
        st.one_of(st.just(np.dtype(wanted)), hnp.scalar_dtypes(), hnp.unicode_string_dtypes())
    )
    given_dtype = given_dtype.newbyteorder(data.draw(st.sampled_from("<>")))
    array = data.draw(hnp.arrays(given_dtype, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0)))
    axes = data.draw(st.permutations(range(array.ndim)))
    steps = tuple(data.draw(st.sampled_from([1, -1, 2])) for _ in axes)
    odd = np.transpose(array, axes)[tuple(slice(None, None, step) for step in steps)]
    if odd.dtype.newbyteorder("=") == np.dtype(wanted) and odd.ndim == 2:
        expected = np.array(odd, dtype=wanted, order="C").tobytes()
        assert all(answer.tobytes() == expected for answer in answers(sessions[wanted], odd))
    else:
        with pytest.raises(FeedError, match="'x' must"):
            sessions[wanted].run({"x": odd})


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(st.lists(st.integers(-(2**70), 2**70), min_size=2, max_size=2), min_size=1, max_size=3),
    wanted=st.sampled_from([name for name in DTYPES if "int" in name]),
)
def test_python_ints_are_kept_exactly_or_refused(
    sessions: dict[str, infer.Session], rows: list[list[int]], wanted: str
) -> None:
    """A list of ints is answered with the same ints if all fit the dtype, else refused."""
    limits = np.iinfo(wanted)
    if all(limits.min <= number <= limits.max for row in rows for number in row):
        assert all(answer.tolist() == rows for answer in answers(sessions[wanted], rows))
    else:
        with pytest.raises(FeedError, match="'x' must be"):
            sessions[wanted].run({"x": rows})
