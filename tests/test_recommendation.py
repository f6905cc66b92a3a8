"""recommendation: what is recommended to whom, and what comes of unknown users, items and broken files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

import converters
import infer
from bench import zoo
from bench.zoo import movielens, ncf
from converters.original import original_task
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate_task, read_dataset
from infer.npz import save_npz
from infer.signature import Signature, TensorSpec
from infer.tasks import Setting
from infer.tasks import recommendation as module
from infer.tasks.recommendation import Recommendation, best
from tests.command import infer_command

USERS, ITEMS = 5, 30
SEEN = [[0, 1, 2], [], [29], [3, 5, 3], list(range(30))]

VECTORS = np.random.default_rng(0).standard_normal((USERS + 1, 4)).astype(np.float32)
TASTES = np.random.default_rng(1).standard_normal((ITEMS, 4)).astype(np.float32)
SCORES = VECTORS.astype(np.float64) @ TASTES.astype(np.float64).T


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of a recommender: users u0 …, items i0 …, popularity falling from the last item."""
    (tmp_path / "items.csv").write_text(
        "id,title,popularity,price\n"
        + "".join(f'i{i},"Item, {i}",{i * 10},{i / 10}\n' for i in range(ITEMS))
    )
    (tmp_path / "users.csv").write_text("id,age\n" + "".join(f"u{i},{20 + i}\n" for i in range(USERS)))
    write_seen(
        tmp_path, [0, *np.cumsum([len(items) for items in SEEN])], np.concatenate(SEEN).astype(np.int64)
    )
    return tmp_path


def write_seen(folder: Path, offsets: Any, items: Any) -> None:
    save_npz(folder / "seen.npz", {"offsets": np.asarray(offsets), "items": np.asarray(items)})


USER = TensorSpec("user", "int64", ("batch",))
ITEM = TensorSpec("item", "int64", ("pairs", 1))
FILES = {"items": "items.csv", "users": "users.csv", "seen": "seen.npz"}


def of_all(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The graph that scores all items for a user."""
    return {"y": VECTORS[feeds["user"]] @ TASTES.T}


def of_pairs(feeds: Mapping[str, Any]) -> dict[str, Any]:
    """The graph that scores pairs."""
    return {"y": (VECTORS[feeds["user"]] * TASTES[feeds["item"][:, 0]]).sum(axis=1, keepdims=True)}


def recommender(
    folder: Path,
    inputs: tuple[TensorSpec, ...] = (USER,),
    run: Callable[[Any], Any] = of_all,
    output: tuple[int | str, ...] = ("batch", ITEMS),
    **spec: Any,
) -> Recommendation:
    """The task on the files in `folder`."""
    signature = Signature(inputs, (TensorSpec("y", "float32", output),))
    spec = {"output": "y", "user_input": "user", "top_k": 3, **FILES, **spec}
    return Recommendation(Setting("recommendation", spec, signature, "y", lambda name: folder / name, run))


def pairs(folder: Path, **spec: Any) -> Recommendation:
    """The same of a graph that scores pairs."""
    given = {"inputs": (USER, ITEM), "run": of_pairs, "output": ("pairs", 1), "item_input": "item"}
    return recommender(folder, **{**given, **spec})


def ids(result: Any) -> list[str]:
    return [item.id for item in result.items]


def expected(user: int, *seen: int, count: int = 3) -> list[str]:
    """The best items by the closed form in float64."""
    left = [i for i in range(ITEMS) if i not in seen and i not in (SEEN[user] if user < USERS else ())]
    return [f"i{i}" for i in sorted(left, key=lambda i: -SCORES[user, i])[:count]]


@pytest.mark.parametrize("shape", [recommender, pairs])
def test_the_best_unseen_items_come_with_their_scores(folder: Path, shape: Any) -> None:
    """For graphs of both shapes: the order and the scores of the closed form, to 1e-6, with titles."""
    task = shape(folder)
    results = task([f"u{i}" for i in range(USERS)])
    for user, result in enumerate(results):
        assert result.by == "model"
        assert ids(result) == expected(user)
        for item in result.items:
            assert item.title == f"Item, {item.index}"
            assert item.score == pytest.approx(SCORES[user, item.index], abs=1e-6)
    assert results[4].items == ()  # has seen everything
    assert task("u0") == results[0]
    assert ids(shape(folder, top_k=100)("u2")) == expected(2, count=ITEMS - 1)
    assert "nothing is left" in task.describe(results[4])
    assert task.describe(results[0]).splitlines()[0].endswith(results[0].items[0].title)


def test_pairs_are_cut_to_what_a_run_may_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More items than a run takes, several users in a part, and a fixed batch answer alike."""
    everyone = [f"u{i}" for i in range(USERS)]
    results = pairs(folder)(everyone)
    sizes: list[int] = []

    def counted(feeds: Any) -> Any:
        sizes.append(len(feeds["user"]))
        return of_pairs(feeds)

    assert pairs(folder, run=counted)(everyone) == results
    assert sizes == [USERS * ITEMS]
    for limit in (7, 65):
        sizes.clear()
        monkeypatch.setattr(module, "_PAIRS_PER_RUN", limit)
        assert pairs(folder, run=counted)(everyone) == results
        assert max(sizes) <= limit
    sizes.clear()
    fixed = (TensorSpec("user", "int64", (8,)), TensorSpec("item", "int64", (8, 1)))
    assert pairs(folder, inputs=fixed, output=(8, 1), run=counted)(everyone) == results
    assert max(sizes) <= 8


def test_an_id_has_several_forms_and_what_is_none_is_refused(folder: Path) -> None:
    """Text, integers and mappings; anything else is an error that counts from 1."""
    text = (folder / "users.csv").read_text().replace("u", "1")
    (folder / "users.csv").write_text(text)  # 10, 11, …
    task = recommender(folder)
    for form in (
        "12",
        " 12 ",
        12,
        np.int32(12),
        {"user": 12},
        {"user": "12", "seen": []},
        pd.Series({"user": 12}),
    ):
        assert ids(task(form)) == expected(2), form
    assert task(pd.DataFrame({"user": [12, 13]})) == task(["12", "13"])
    for form in (None, 12.0, True, b"12", ("12",), {1}, np.array([12]), {"user": [12]}, object()):
        with pytest.raises(
            InputError, match="row 2: a user must be an id, or a mapping with 'user', but a"
        ):
            task(["12", form])
    with pytest.raises(InputError, match="row 1 lacks 'user', the id of the user; it has name"):
        task({"name": 12})
    assert task([]) == []


ANYTHING = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4), st.binary(max_size=3),
        st.sampled_from(["u0", "u1", "i3", "i3|i4", "user", "seen"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner),
        st.dictionaries(st.sampled_from(["user", "seen", "x"]), inner, max_size=3),
    ),
    max_leaves=6,
)  # fmt: skip


@given(given_input=ANYTHING)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_input_is_answered_or_refused(folder: Path, given_input: Any) -> None:
    """Whatever comes: recommendations, or an error that counts the input from 1."""
    task = recommender(folder, unknown_item="ignored")
    problem = "row 1"
    try:
        (result,) = task([given_input])
    except InputError as error:
        problem = str(error)
    else:
        assert result.by == "model"
    assert problem.startswith("row 1")


def test_what_an_input_says_was_seen_is_left_out_too(folder: Path) -> None:
    """As a list or joined, beside what the artifact knows; unknown items are refused or ignored."""
    task = recommender(folder)
    first, second, _ = expected(0)
    more = (int(first[1:]), int(second[1:]))
    for seen in ([first, second], (first, second, first), {first, second}, f"{first}|{second}|"):
        assert ids(task({"user": "u0", "seen": seen})) == expected(0, *more)
    for seen in ([first, "i99"], "i99", [None], [["i1"]], [1.5], [10**400]):
        with pytest.raises(InputError, match=r"row 1: the item .* in 'seen' is not one of the 30 items"):
            task({"user": "u0", "seen": seen})
        kept = ids(recommender(folder, unknown_item="ignored")({"user": "u0", "seen": seen}))
        assert kept == expected(0, *(more[:1] if first in seen else ()))
    with pytest.raises(InputError, match="row 1: 'seen' must be a list of ids of items, or ids joined by"):
        task({"user": "u0", "seen": 5})


def test_an_unknown_user_is_refused_or_gets_what_is_popular(folder: Path) -> None:
    """As the spec says; popular items leave out what the input says was seen, and are marked."""
    with pytest.raises(InputError, match="row 2: 'u9' is not one of the 5 users that the model knows"):
        recommender(folder)(["u0", "u9"])
    for shape in (recommender, pairs):
        task = shape(folder, unknown_user="popularity")
        known, cold, nobody = task(["u0", {"user": "u9", "seen": ["i28"]}, {"seen": []}])
        assert ids(known) == expected(0)
        assert (cold.by, ids(cold)) == ("popularity", ["i29", "i27", "i26"])
        assert [item.score for item in cold.items] == [290, 270, 260]
        assert ids(nobody) == ["i29", "i28", "i27"]
        assert "the user is unknown" in task.describe(cold)
        assert task.to_json(cold)["by"] == "popularity"
    other = recommender(folder, unknown_user="other")(["u9", "u1"])
    assert [(result.by, ids(result)) for result in other] == [
        ("model", expected(5)),
        ("model", expected(1)),
    ]


def test_users_may_be_known_by_their_columns(folder: Path) -> None:
    """A known id brings its columns from the file; a row may bring its own, which go first."""

    def by_age(feeds: Any) -> Any:
        return {"y": -np.abs(feeds["age"] + feeds["price"] * 100)[:, 0]}

    numbers = (TensorSpec("age", "float32", ("pairs", 1)), TensorSpec("price", "float32", ("pairs", 1)))
    spec: dict[str, Any] = {
        "user_input": None,
        "user_columns": [{"name": "age", "mean": 35, "input": "age"}],
        "item_columns": [{"name": "price", "input": "price"}],
        "seen": None,
    }
    task = recommender(folder, numbers, by_age, ("pairs",), **spec)
    assert ids(task({"age": 25})) == ["i1", "i0", "i2"]  # a price of 0.1 is nearest to (35 - 25) / 100
    assert ids(task("u4")) == ids(task({"age": 24})) == ["i1", "i2", "i0"]
    assert (
        ids(task({"user": "u4", "age": "15"}))
        == ids(task({"user": "new", "age": 15}))
        == ["i2", "i1", "i3"]
    )
    with pytest.raises(InputError, match="row 2, column 'age' must be a finite number, but is 'old'"):
        task([{"age": 25}, {"age": "old"}])
    with pytest.raises(InputError, match="row 1: 'new' is not one of the 5 users"):
        task("new")
    without = recommender(folder, numbers, by_age, ("pairs",), **{**spec, "users": None})
    assert without({"age": 25}) == task({"age": 25})
    with pytest.raises(InputError, match="row 1 lacks 'age'"):
        without("u4")


def test_ties_go_by_place_and_what_is_no_score_is_left_out() -> None:
    """Equal scores keep the items' order, also where the last of them is cut off; -inf never wins."""
    scores = np.array([1.0, 3.0, 3.0, -np.inf, 3.0, 1.0])
    assert best(scores, 2).tolist() == [1, 2]
    assert best(scores, 4).tolist() == [1, 2, 4, 0]
    assert best(scores, 9).tolist() == [1, 2, 4, 0, 5]
    assert best(scores[3:4], 9).tolist() == []


def test_an_item_without_a_score_is_not_recommended(folder: Path) -> None:
    """NaN of the model is not the best score."""

    def broken(feeds: Any) -> Any:
        scores = of_all(feeds)["y"]
        scores[:, 7:] = np.nan
        return {"y": scores}

    assert ids(recommender(folder, run=broken, top_k=9)("u1")) == [
        f"i{i}" for i in sorted(range(7), key=lambda i: -SCORES[1, i])
    ]


BAD_SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "activation": (
        {"activation": "relu"},
        "activation is 'relu', but must be one of softmax, sigmoid, none",
    ),
    "unknown user": ({"unknown_user": "guess"}, "unknown_user is 'guess', but must be one of refused, pop"),
    "unknown item": ({"unknown_item": "guess"}, "unknown_item is 'guess'"),
    "top_k": ({"top_k": 0}, "top_k is 0, but must be at least 1"),
    "no user": ({"user_input": None}, "neither user_input nor user_columns"),
    "no users": ({"users": None, "seen": None}, "user_input, .* need a file of users"),
    "input": ({"user_input": "person"}, "'person', which must be int64 .* is not in the graph"),
    "unfed": ({"inputs": (USER, ITEM)}, "it feeds user, but the graph takes user, item, each once"),
    "twice": ({"item_input": "user"}, "it feeds user, user, but the graph takes user, each once"),
    "float": ({"inputs": (TensorSpec("user", "float32", ("batch",)),)}, "must be int64 or int32"),
    "wide": (
        {"inputs": (TensorSpec("user", "int64", ("batch", 2)),)},
        "must be int64 or int32 of one number",
    ),
    "output": ({"output": ("batch", 31)}, "so it must have a score for each item"),
    "rank": ({"output": ("batch", 1, ITEMS)}, "so it must have a score for each item"),
    "column": ({"user_columns": [{"name": "seen", "input": "x"}]}, "may not be called 'seen'"),
    "column input": ({"user_columns": [{"name": "age"}]}, "which input column 'age' goes to"),
    "one score": (
        {"inputs": (USER, ITEM), "item_input": "item", "output": ("pairs", 2)},
        "one score for each pair",
    ),
}


@pytest.mark.parametrize("case", BAD_SPECS)
def test_a_spec_that_does_not_fit_is_refused(folder: Path, case: str) -> None:
    """When the artifact is loaded."""
    spec, words = BAD_SPECS[case]
    with pytest.raises(ArtifactError, match=words):
        recommender(folder, **spec)


BAD_FILES: dict[str, tuple[str, bytes, str]] = {
    "items without id": ("items.csv", b"name\nx\n", "has no column 'id' for its items; it has name"),
    "no items": ("items.csv", b"id,title\n", "lists no items"),
    "empty items": ("items.csv", b"", "lists no items"),
    "id twice": ("items.csv", b"id\na\nb\n a\n", "lists the id 'a' twice, in rows 1 and 3"),
    "no id": ("items.csv", b"id,title\na,b\n,c\n", "has no id in row 2"),
    "items ragged": ("items.csv", b"id,title\na\n", "row 1 of .* has 1 fields"),
    "items not text": ("items.csv", b"id\n\xff\n", "not a UTF-8 CSV file"),
    "items no CSV": ("items.csv", b'id\n"a', "is not CSV"),
    "fewer items": ("items.csv", b"id\na\nb\n", "must name items from 0 to 1, but names 2"),
    "popularity": ("items.csv", b"id,popularity\na,much\n", "'popularity' of .* must hold numbers"),
    "popularity nan": ("items.csv", b"id,popularity\na,nan\n", "must hold finite numbers"),
    "fewer users": ("users.csv", b"id\nu0\n", "has 6 offsets; for 1 users it must have 2"),
    "seen no npz": ("seen.npz", b"PK", "is not a readable .npz file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_files_that_do_not_fit_are_refused(folder: Path, case: str) -> None:
    """An artifact whose items, users or seen items are broken, or of another length, does not load."""
    name, content, words = BAD_FILES[case]
    (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=words):
        recommender(folder)


@pytest.mark.parametrize(
    ("offsets", "items", "words"),
    [
        ([0, 1, 1, 1, 1], [1], "has 5 offsets; for 5 users it must have 6"),
        ([0, 1, 0, 1, 1, 1], [1], "must rise from 0 to its 1 items"),
        ([0, 1, 1, 1, 1, 2], [1], "must rise from 0 to its 1 items"),
        ([1, 1, 1, 1, 1, 1], [1], "must rise from 0"),
        ([0, 1, 1, 1, 1, 1], [30], "must name items from 0 to 29, but names 30"),
        ([0, 2, 2, 2, 2, 2], [4, -1], "must name items from 0 to 29, but names -1"),
        ([0.0, 1, 1, 1, 1, 1], [1], "must hold integers"),
        ([[0, 1, 1, 1, 1, 1]], [1], "each with one axis"),
    ],
)
def test_seen_items_that_do_not_fit_are_refused(folder: Path, offsets: Any, items: Any, words: str) -> None:
    """Offsets for every user, rising, and places that exist."""
    write_seen(folder, offsets, items)
    with pytest.raises(ArtifactError, match=words):
        recommender(folder)


def test_popular_items_need_a_popularity_and_columns_of_items_must_fit(folder: Path) -> None:
    """A spec may ask for more than the files hold."""
    (folder / "items.csv").write_text("id,price\n" + "".join(f"i{i},x\n" for i in range(ITEMS)))
    with pytest.raises(ArtifactError, match="'popularity', but the items have no column 'popularity'"):
        recommender(folder, unknown_user="popularity")
    for name, words in (
        ("price", "row 1, column 'price' must be a finite"),
        ("size", "row 1 lacks 'size'"),
    ):
        with pytest.raises(ArtifactError, match=words):
            pairs(
                folder,
                inputs=(USER, TensorSpec("price", "float32", ("pairs", 1))),
                item_input=None,
                item_columns=[{"name": name, "input": "price"}],
            )


def test_a_model_that_scores_other_items_is_refused(folder: Path) -> None:
    """The number of scores is known only when the graph runs, if its dim has a name."""
    task = recommender(
        folder, run=lambda feeds: {"y": of_all(feeds)["y"][:, :9]}, output=("batch", "items")
    )
    with pytest.raises(ArtifactError, match=r"shape \[1, 9\] for 1 users, but the artifact lists 30 items"):
        task("u0")


def test_hit_rate_and_ndcg_are_those_of_their_definitions(folder: Path, tmp_path: Path) -> None:
    """With one or several held-out items: scikit-learn's ndcg_score of unseen items, and counting; the same
    of what is popular, if the artifact knows."""
    task = recommender(folder)
    held_out = {
        0: [expected(0)[2]],
        1: [expected(1)[0], expected(1, count=12)[11]],
        2: ["i4", "i24"],
        3: ["i8"],
    }
    gains, hits, popular_gains, popular_hits = [], [], [], []
    for user, items in held_out.items():
        left = [i for i in range(ITEMS) if i not in SEEN[user]]
        truth = [[float(f"i{i}" in items) for i in left]]
        gains.append(ndcg_score(truth, [[SCORES[user, i] for i in left]], k=10))
        hits.append(any(item in expected(user, count=10) for item in items))
        popular_gains.append(ndcg_score(truth, [left], k=10))  # popularity rises with the place
        popular_hits.append(any(f"i{i}" in items for i in left[-10:]))
    assert 0 < sum(hits) < len(hits)
    found = evaluate_task(task, Dataset("x", [f"u{i}" for i in held_out], list(held_out.values())))
    assert found.count == 4
    assert found.metrics["hit_rate_at_10"] == pytest.approx(np.mean(hits))
    assert found.metrics["ndcg_at_10"] == pytest.approx(np.mean(gains), rel=1e-12)
    assert 0 < sum(popular_hits) < len(popular_hits)
    assert found.metrics["popularity_hit_rate_at_10"] == pytest.approx(np.mean(popular_hits))
    assert found.metrics["popularity_ndcg_at_10"] == pytest.approx(np.mean(popular_gains), rel=1e-12)
    rows = [(f"u{user}", item) for user, items in held_out.items() for item in items]
    pd.DataFrame(rows, columns=["user_id", "film"]).to_csv(tmp_path / "x.csv", index=False)
    users, items = (np.array(side, object) for side in zip(*rows, strict=True))
    save_npz(tmp_path / "x.npz", {"users": users, "items": items})
    for data in (
        read_dataset(task, tmp_path / "x.csv", {"item": "film"}),
        read_dataset(task, tmp_path / "x.npz"),
    ):
        assert evaluate_task(task, data).metrics == found.metrics


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (["i5", "i1"], "row 2 holds out the item 'i1', which the user has seen"),
        (["i5", "i99"], "row 2 holds out 'i99', which is no item of the model"),
        (["i5", []], "row 2 holds out nothing"),
        (["i5", [{}]], "row 2 holds out {}, which is no item"),
        (["i5"], "the data 'x' has 2 inputs, but answers for 1"),
    ],
)
def test_held_out_items_must_be_items_that_can_be_recommended(
    folder: Path, held_out: list[Any], words: str
) -> None:
    """An evaluation that could only fail is refused."""
    with pytest.raises(InputError, match=words):
        evaluate_task(recommender(folder), Dataset("x", ["u1", "u0"], held_out))


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.nn.Module]:
    """NeuMF of MovieLens' size with random weights, and its artifact."""
    path = tmp_path_factory.mktemp("ncf") / "ncf.infer"
    found = movielens.data()
    torch.manual_seed(0)
    model = ncf.NeuMF(len(found.users), len(found.films)).eval()
    converters.convert(
        model,
        path,
        example_inputs={"user": torch.tensor([0, 7])},
        task=ncf.task(),
        files=movielens.files(),
    )
    return path, model


def test_the_films_of_real_users_are_torchs(untrained: tuple[Path, torch.nn.Module]) -> None:
    """Of 943 users: torch's own top ten without the watched films, scores to 1e-5; also from the shell."""
    path, model = untrained
    found = movielens.data()
    with torch.no_grad():
        scores = model(torch.arange(len(found.users)))["scores"]
    scores = scores.masked_fill(torch.from_numpy(found.watched(with_validation=True)), float("-inf"))
    values, places = scores.topk(10, dim=1)
    with infer.load(path) as session:
        results = session(movielens.samples())
        np.testing.assert_allclose(
            [[item.score for item in result.items] for result in results], values.numpy(), atol=1e-5
        )
        ours = np.array([[item.index for item in result.items] for result in results])
        np.testing.assert_allclose(
            scores.gather(1, torch.from_numpy(ours)).numpy(), values.numpy(), atol=1e-5
        )
        assert (ours == places.numpy()).mean() > 0.99  # what is as good to float32 may change places
        assert session("nobody").by == "popularity"
        liked = [found.films[i].title for i in np.argsort(-found.popularity, kind="stable")[:2]]
        assert [item.title for item in session("nobody").items[:2]] == liked
        assert liked[0] == "Star Wars"
    stdin = b'1\n{"user": "nobody", "seen": ["50"]}\n'
    shown = json.loads(infer_command("run", path, "--json", stdin=stdin).out)["results"]
    assert [item["id"] for item in shown[0]["items"]] == [item.id for item in results[0].items]
    assert (shown[1]["by"], shown[1]["items"][0]["title"]) == ("popularity", liked[1])


def test_users_are_read_from_files_and_lines(folder: Path) -> None:
    """CSV with a header and JSON Lines by name, other files a user a line."""
    task = recommender(folder)
    (folder / "x.csv").write_text("user,seen\nu1,i1|i2\n")
    (folder / "x.jsonl").write_text('{"user": "u1", "seen": ["i1", "i2"]}\n')
    (folder / "x.txt").write_text('u1\n\n{"user": "u1", "seen": ["i1", "i2"]}\r\n')
    (wanted,) = task([{"user": "u1", "seen": ["i1", "i2"]}])
    assert task(list(task.read(folder / "x.csv"))) == [wanted]
    assert task(list(task.read(folder / "x.jsonl"))) == [wanted]
    assert task(list(task.read(folder / "x.txt"))) == [task("u1"), wanted]
    with pytest.raises(InputError, match="is neither a user's id nor a JSON object"):
        task.parse('{"user": ')
    with pytest.raises(InputError, match="there is no file"):
        task.read(folder / "y.txt")


def test_movielens_is_split_by_time() -> None:
    """Nobody's held-out films are among the earlier ones, and all 100,000 ratings are there."""
    found = movielens.data()
    everyone = np.arange(len(found.users))
    assert (len(found.users), len(found.films), len(found.train)) == (943, 1682, 100_000 - 2 * 943)
    assert not found.watched(with_validation=False)[everyone, found.validation].any()
    assert not found.watched(with_validation=True)[everyone, found.test].any()


def popular(found: movielens.Data) -> dict[str, float]:
    """HitRate@10 and NDCG@10 of recommending what is popular and unseen."""
    scores = np.where(found.watched(with_validation=True), -1.0, found.popularity.astype(float))
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = (order == found.test[:, None]).argmax(axis=1)
    gains = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0.0)
    return {"hit_rate_at_10": float((ranks < 10).mean()), "ndcg_at_10": float(gains.mean())}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ncf", "dlrm"])
def test_trained_recommenders_beat_popularity(name: str, tmp_path: Path) -> None:
    """On every user's last film, both metrics are better by a tenth, and are the PyTorch model's."""
    artifact = zoo.convert(name, tmp_path / "x.infer")
    family = zoo.family(name)
    dataset = family.dataset()
    few = Dataset(dataset.name, dataset.inputs[:100], dataset.expected[:100])
    with infer.load(artifact.path) as session, original_task(zoo.source(name), artifact) as original:
        found = evaluate_task(session.task, dataset).metrics
        assert evaluate_task(session.task, few).metrics == pytest.approx(
            evaluate_task(original, few).metrics, abs=1e-6
        )
        baseline = popular(movielens.data())
        assert baseline == pytest.approx({"hit_rate_at_10": 0.086, "ndcg_at_10": 0.045}, abs=0.003)
        for metric, value in baseline.items():
            assert found[f"popularity_{metric}"] == pytest.approx(value, rel=1e-9)
            assert found[metric] > 1.1 * value
        stranger = {"age": 9, "gender": "F", "occupation": "student"}
        if name == "dlrm":  # knows users by their columns, too
            young, old = session([stranger, {**stranger, "age": 70}])
            assert young.by == old.by == "model"
            assert young != old
            with pytest.raises(
                InputError, match="row 1, column 'occupation' has the unknown category 'duke'"
            ):
                session({**stranger, "occupation": "duke"})
            with pytest.raises(InputError, match="row 1 lacks 'age', 'gender', 'occupation'"):
                session("nobody")
