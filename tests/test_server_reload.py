"""A server takes up artifacts that changed while it answers, and keeps what it has if they are no good."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from infer.errors import InputError
from infer.server.models import Models, named
from infer.server.options import ServerOptions
from tests import waiting
from tests.serving import Served, ready_lines, serving, wait_for_workers, workers
from tests.tiny import classifier, classify, make_artifact

until = functools.partial(waiting.until, wait_s=30.0)

X = np.random.default_rng(0).standard_normal((3, 10)).astype(np.float32)
ASKED = {"inputs": [{"name": "x", "shape": [3, 10], "datatype": "FP32", "data": X.ravel().tolist()}]}
SEEDS = (7, 8)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts of one net with other weights, named after their seeds, and one that is damaged."""
    folder = tmp_path_factory.mktemp("releases")
    for seed in SEEDS:
        make_artifact(folder / f"{seed}.infer", classifier(seed))
    shutil.copytree(folder / "8.infer", folder / "damaged.infer")
    with next((folder / "damaged.infer" / "graphs").glob("*.onnx")).open("r+b") as graph:
        graph.seek(100)
        graph.write(b"\0" * 8)
    manifest = folder / "damaged.infer" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + "\n", encoding="utf-8")  # another digest
    return folder


def lead(link: Path, to: Path) -> None:
    """Let `link` lead to another release, in one step."""
    draft = link.with_suffix(".draft")
    draft.symlink_to(to)
    draft.replace(link)


def seed_of(answer: Any) -> int:
    """Which release gave it, wholly."""
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    found = np.array(output["data"], np.float32).reshape(output["shape"])
    (seed,) = [seed for seed in SEEDS if np.allclose(found, classify(classifier(seed), X), atol=1e-5)]
    return seed


def count(served: Served, outcome: str) -> float:
    """How often reloading ended so."""
    name = f'infer_reloads_total{{model="net",outcome="{outcome}",version="1"}} '
    lines = served.get("/metrics").text.splitlines()
    return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_release_is_rolled_out_and_a_damaged_one_is_not(
    releases: Path, tmp_path: Path, workers: int
) -> None:
    """Under load: no request fails, each is answered by one release, and after it all by the new one. The
    one that is damaged changes nothing, and the log says why."""
    link = tmp_path / "current"
    lead(link, releases / "7.infer")
    with serving(tmp_path, f"net={link}", "--workers", workers, "--json-logs") as served:
        ended, seen = threading.Event(), []

        def ask() -> None:
            while not ended.is_set():
                seen.append(seed_of(served.post("/v2/models/net/infer", json=ASKED)))

        def tell() -> None:
            os.kill(served.process.pid, signal.SIGHUP)

        askers = [threading.Thread(target=ask) for _ in range(2)]
        for asker in askers:
            asker.start()
        try:
            tell()
            until(lambda: count(served, "unchanged") == workers)
            lead(link, releases / "damaged.infer")
            tell()
            until(lambda: count(served, "kept") == workers)
            until(lambda: len(seen) > 20)
            assert set(seen) == {7}
            lead(link, releases / "8.infer")
            tell()
            until(lambda: count(served, "swapped") == workers)
            after = len(seen) + len(askers)  # those may be under way
            until(lambda: len(seen) > after + 20)
        finally:
            ended.set()
            for asker in askers:
                asker.join()
        assert set(seen[:after]) <= {7, 8}
        assert set(seen[after:]) == {8}
        errors = [line["message"] for line in served.lines() if line["level"] == "error"]
        assert len(errors) == workers
        assert all("net version 1 stays as it is: " in said and "damaged.infer" in said for said in errors)
        assert served.stop() == 0


def test_tokens_are_read_again(releases: Path, tmp_path: Path) -> None:
    """Who has one of the new file is let in, who has one of the old no more; a file without any opens no
    door, and changes nothing."""
    names = ("an-old-token-of-mine", "a-newer-token-of-mine")
    file = tmp_path / "tokens"
    file.write_text(names[0], encoding="utf-8")
    net = f"net={releases / '7.infer'}"
    with serving(tmp_path, net, "--token-file", file, "--json-logs") as served:

        def statuses() -> list[int]:
            heads = [{}, *({"authorization": f"Bearer {name}"} for name in names)]
            return [served.get("/v2", headers=head).status_code for head in heads]

        assert statuses() == [401, 200, 401]
        file.write_text("# none\n", encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        until(lambda: any("tokens stay as they are" in line["message"] for line in served.lines()))
        assert statuses() == [401, 200, 401]
        file.write_text(names[1], encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        until(lambda: statuses() == [401, 401, 200])
        assert not any(name in served.log.read_text(encoding="utf-8") for name in names)


@pytest.mark.slow
def test_a_worker_that_takes_anothers_place_has_the_new_tokens(releases: Path, tmp_path: Path) -> None:
    """Also where the file is no good any more by then."""
    names = ("an-old-token-of-mine", "a-newer-token-of-mine")
    file = tmp_path / "tokens"
    file.write_text(names[0], encoding="utf-8")
    net = f"net={releases / '7.infer'}"
    with serving(tmp_path, net, "--token-file", file, "--workers", "2", "--json-logs") as served:

        def statuses(times: int = 8) -> set[tuple[int, ...]]:
            heads = [{"authorization": f"Bearer {name}"} for name in names]
            return {
                tuple(served.get("/v2", headers=head).status_code for head in heads) for _ in range(times)
            }

        wait_for_workers(served, 2)
        assert statuses() == {(200, 401)}
        file.write_text(names[1], encoding="utf-8")
        served.process.send_signal(signal.SIGHUP)
        until(lambda: statuses() == {(401, 200)})
        file.write_text("", encoding="utf-8")
        for pid in workers(psutil.Process(served.process.pid)):
            os.kill(pid, signal.SIGKILL)
        until(lambda: len(ready_lines(served)) == 4)
        assert statuses() == {(401, 200)}


def test_a_model_that_is_not_loaded_takes_the_new_release_when_it_is(
    releases: Path, tmp_path: Path
) -> None:
    """Nothing is opened for it before."""
    link = tmp_path / "net"
    lead(link, releases / "7.infer")
    models = Models([Path(f"net={link}")], ServerOptions(lazy=True))
    (model,) = models
    lead(link, releases / "8.infer")
    assert models.reload() == [(model, "swapped")]
    assert model.state == "UNLOADED"
    held = models.hold(model)
    assert np.allclose(held.session.run({"x": X})["logits"], classify(classifier(8), X), atol=1e-5)
    held.leave()
    models.close()
    assert models.reload() == []


def test_releases_share_the_memory_budget(
    releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one takes another's place both are there: idle models make room, and without room, or if it is
    too large at all, the old one stays."""
    monkeypatch.setattr("infer.server.models.own_bytes", lambda: 0)
    links = [tmp_path / name for name in "ab"]
    for link in links:
        lead(link, releases / "7.infer")
    size = next(iter(Models([releases / "7.infer"], ServerOptions()))).weights_bytes
    models = Models(
        [Path(f"{link.name}={link}") for link in links], ServerOptions(memory_budget_bytes=2 * size)
    )
    a, b = models
    held = models.hold(a)
    models.hold(b).leave()
    lead(links[0], releases / "8.infer")
    assert models.reload() == [(a, "swapped"), (b, "unchanged")]
    assert (a.state, b.state) == ("READY", "UNLOADED")
    held.leave()
    busy = models.hold(b)
    lead(links[0], releases / "7.infer")
    assert models.reload() == [(a, "kept"), (b, "unchanged")]
    busy.leave()
    models.close()


def test_a_release_is_not_refused_for_what_loading_the_one_before_took(
    releases: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a server with one model that would be for good."""
    own = iter(range(0, 10**9, 10**6))
    monkeypatch.setattr("infer.server.models.own_bytes", lambda: next(own))
    lead(link := tmp_path / "a", releases / "7.infer")
    size = next(iter(Models([releases / "7.infer"], ServerOptions()))).weights_bytes
    models = Models([Path(f"a={link}")], ServerOptions(memory_budget_bytes=2 * size))
    (a,) = models
    models.hold(a).leave()
    assert a.memory_bytes == 10**6 > 2 * size
    lead(link, releases / "8.infer")
    assert models.reload() == [(a, "swapped")]
    models.close()


def test_a_model_has_the_name_that_it_is_given(tmp_path: Path) -> None:
    """NAME=PATH; a path that is there is one, whatever is in it."""
    odd = tmp_path / "a=b.infer"
    odd.mkdir()
    assert named(Path("net=/models/1")) == ("net", Path("/models/1"))
    assert named(Path("net=a=b")) == ("net", Path("a=b"))
    assert named(Path("/models/net.infer")) == ("net", Path("/models/net.infer"))
    for path, cure in ((odd, "NAME="), (Path("x/y=z"), "NAME="), (Path("..=z"), "letters")):
        with pytest.raises(InputError, match=cure):
            named(path)
