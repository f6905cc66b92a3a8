"""Peers: their processes, their environments, and what is said of those that fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import psutil
import pytest
from click.testing import CliRunner

from bench.peers import PEERS, Peer, environment
from bench.peers.candidate import PeerError, Remote, started
from bench.peers.environment import INSTALLED, EnvironmentFailedError, place, prepare, python
from bench.peers.lengths import in_turns
from bench.peers.lengths import lines as many_lengths
from bench.peers.material import Material, unfit
from bench.peers.model import Given
from bench.peers.places import ROOT
from bench.peers.side_by_side import Distance, side_by_side
from bench.peers.table import lines, summary
from infer.measure.comparison import Asked
from infer.measure.record import read_record
from infer.measure.rounds import Progress
from infer.npz import save_npz
from infer.optimizer.budget import cosines
from infer.session import open_artifact
from infer.signature import Signature, TensorSpec

DOUBLES = Signature(
    (TensorSpec("x", "float32", ("batch", 3)),), (TensorSpec("y", "float32", ("batch", 3)),)
)
X = np.arange(6, dtype=np.float32).reshape(2, 3)

Start = Callable[..., Remote]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a fake peer in a worker and loads it."""
    with ExitStack() as stack:

        def start(does: str, run_s: float = 60.0) -> Remote:
            module, here = "tests.fake_peer", Path(sys.executable)
            remote = stack.enter_context(started("fake", module, here, DOUBLES, threads=1, run_s=run_s))
            remote.load(Given("", 1, {"does": does}, "", "", str(tmp_path / "made")))
            return remote

        yield start


def test_answers_come_back_from_a_worker(start: Start) -> None:
    """Arrays go there and back, strings among them, and the peer says what it is."""
    remote = start("is fine")
    assert remote.described == "a fake that is fine"
    np.testing.assert_array_equal(remote.run({"x": X})["y"], [[0, 2, 4], [6, 8, 10]])
    assert remote.run({"x": np.array(["ä", "b"], object)})["y"].tolist() == ["ää", "bb"]


def test_latencies_are_those_of_the_call(start: Start) -> None:
    """A turn has a latency for each query, a repeated query takes that many times as long, and one that has
    to wait its turn is charged for it."""
    remote = start("sleeps")
    once = remote.query({"x": X}).turn(7)
    assert once.shape == (7,)
    assert (once >= 5).all()
    assert (remote.query({"x": X}, 3).turn(2) >= 15).all()
    served = remote.query({"x": X}).serve(np.zeros(4))
    assert served.shape == (4,)
    assert (served >= [5, 10, 15, 20]).all()


def test_queries_keep_their_feeds(start: Start) -> None:
    """Several queries of one worker are asked in any order."""
    remote = start("refuses a batch")
    one, two = remote.query({"x": X[:1]}), remote.query({"x": X})
    assert one.turn(2).shape == (2,)
    with pytest.raises(PeerError, match="the batch must be 1"):
        two.turn(1)
    assert one.turn(2).shape == (2,)


def test_what_makes_something_is_not_asked(start: Start, tmp_path: Path) -> None:
    """But another worker, which finds it."""
    remote = start("makes")
    maker = int((tmp_path / "made" / "maker").read_text())
    assert remote._process.pid != maker
    assert remote.query({"x": X}).turn(1).shape == (1,)


def test_queries_go_on_in_a_new_worker(start: Start) -> None:
    """A restart ends the process, and what was loaded and asked before is there again."""
    remote = start("refuses a batch")
    one, two = remote.query({"x": X[:1]}), remote.query({"x": X})
    before = remote._process
    remote.restart()
    assert before.poll() is not None
    assert remote._process.pid != before.pid
    assert one.turn(2).shape == (2,)
    with pytest.raises(PeerError, match="the batch must be 1"):
        two.turn(1)


def test_a_noisy_peer_does_not_disturb_the_protocol(start: Start) -> None:
    """What a library prints, even lines that look like answers, is not taken for one."""
    remote = start("prints")
    np.testing.assert_array_equal(remote.run({"x": X})["y"], 2 * X)
    assert remote.query({"x": X}).turn(3).shape == (3,)


def test_a_peer_that_cannot_take_a_model_says_why(start: Start) -> None:
    """Its own error, with its kind."""
    with pytest.raises(PeerError, match="ValueError: this model has an operator that nobody knows"):
        start("refuses")


@pytest.mark.parametrize(
    ("does", "how"),
    [("dies", "exit code 3 at 'run': no memory left"), ("crashes", "signal SIGSEGV at 'run'")],
)
def test_a_peer_that_dies_is_told_with_its_last_words(start: Start, does: str, how: str) -> None:
    """How its process ended and what it printed; asked again, the same."""
    remote = start(does)
    for _ in range(2):
        with pytest.raises(PeerError, match=how):
            remote.run({"x": X})


def test_a_peer_that_hangs_is_ended(start: Start) -> None:
    """After its time, its process is gone, and it is not waited for again."""
    remote = start("hangs", run_s=0.3)
    with pytest.raises(PeerError, match=r"no answer to 'run' within 0\.3 s"):
        remote.run({"x": X})
    assert remote._process.poll() is not None
    before = time.perf_counter()
    with pytest.raises(PeerError, match="no answer"):
        remote.run({"x": X})
    assert time.perf_counter() - before < 0.2


def test_a_worker_ends_with_what_started_it() -> None:
    """Even in the middle of a call, when its parent is killed."""
    program = """
import sys, time, os
from pathlib import Path
from bench.peers.candidate import started
from bench.peers.model import Given
from tests.test_peers import DOUBLES, X
with started("fake", "tests.fake_peer", Path(sys.executable), DOUBLES, 1) as remote:
    remote.load(Given("", 1, {"does": "hangs"}, "", "", ""))
    print(remote._process.pid, flush=True)
    remote.run({"x": X})
"""
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert psutil.pid_exists(worker)
        parent.kill()
    until = time.perf_counter() + 10
    while psutil.pid_exists(worker) and psutil.Process(worker).status() != psutil.STATUS_ZOMBIE:
        assert time.perf_counter() < until, "the worker lives on"
        time.sleep(0.05)


@pytest.fixture
def material(net: Path, tmp_path: Path) -> Material:
    """A small net's artifact, as if it were a family's."""
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.standard_normal((1, 10)).astype(np.float32)} for _ in range(3)]
    (tmp_path / "calibration").mkdir()
    for i, each in enumerate(feeds):
        save_npz(tmp_path / f"calibration/{i}.npz", each)
    return Material(
        name="net",
        folder=tmp_path,
        artifact=net,
        source=str(net),
        graph=None,
        graph_problem="the plain export fails: it was not tried",
        graph_axes="",
        kinds=("source", "graph"),
        signature=open_artifact(net).manifest.signature,
        feeds=feeds[0],
        judged=tuple(feeds),
        calibration=tmp_path / "calibration",
    )


def _fake(does: str, exact: bool = True, takes: str = "source", isa: str | None = None) -> Peer:
    return Peer(does, does, "tests.fake_peer", takes, "", {"does": does}, exact=exact, isa=isa)


def test_those_that_fail_are_excluded_and_the_rest_goes_on(material: Material) -> None:
    """Each with its reason: at loading, at the answers, in the middle of the measurement, or because the
    machine or the model are not what it takes. A peer of other families is no candidate."""
    peers = [
        _fake("is fine"),
        _fake("refuses"),
        _fake("differs"),
        _fake("dies late"),
        _fake("crashes"),
        _fake("approximates", exact=False),
        _fake("gives other shapes", exact=False),
        _fake("needs a graph", takes="graph"),
        _fake("needs another machine", isa="avx99"),
        _fake("takes folders", takes="transformers"),
    ]
    found = side_by_side(material, peers, Asked(seconds=0.1), threads=1)
    excluded = {entry.name: entry.excluded for entry in found.record.candidates}
    assert list(excluded) == ["infer", *(peer.name for peer in peers[:-1])]
    assert "nobody knows" in str(excluded["refuses"])
    assert "logits" in str(excluded["differs"])
    assert "exit code 3 at 'turn'" in str(excluded["dies late"])
    assert "SIGSEGV" in str(excluded["crashes"])
    assert "shape (1, 1), and infer's (1, 2)" in str(excluded["gives other shapes"])
    assert excluded["needs a graph"] == "the plain export fails: it was not tried"
    assert excluded["needs another machine"] == "its settings are for avx99, which this machine lacks"
    measured = {series.candidate: series for series in found.record.series}
    assert list(measured) == ["infer", "is fine", "approximates"]
    assert all(excluded[name] is None for name in measured)
    assert all(0 < series.latency_ms["p50"].value < 1000 for series in measured.values())
    assert measured["infer"].ratio is None
    assert measured["is fine"].ratio is not None
    assert found.answers["is fine"] == "equal"
    assert found.answers["approximates"] == "cos 1.000, min 1.000"
    shown = "\n".join([*lines(found), *summary([found])])
    assert "| approximates |" in shown
    assert "cos 1.000, min 1.000" in shown
    assert "excluded: its process ended with exit code 3" in shown
    assert "| excl. |" in shown


def test_answers_are_compared_at_the_sizes_that_are_timed(material: Material) -> None:
    """A peer that takes one row is a candidate for single rows, and excluded where batches are asked."""
    peer = _fake("refuses a batch")
    alone = side_by_side(material, [peer], Asked(seconds=0.05), threads=1)
    assert alone.record.candidates[1].excluded is None
    batches = side_by_side(material, [peer], Asked(("multi-stream",), seconds=0.05), threads=1)
    assert "the batch must be 1" in str(batches.record.candidates[1].excluded)


def test_inputs_of_many_lengths_are_asked_in_turn(material: Material) -> None:
    """All of them in each round; who fails is named with the reason, and the rest goes on."""
    peers = [_fake("is fine"), _fake("refuses"), _fake("dies late"), _fake("approximates", exact=False)]
    found = in_turns(material, peers, threads=1, inputs=2, rounds=30, progress=lambda _: None)
    assert [each.name for each in found] == ["infer", *(peer.name for peer in peers)]
    excluded = {each.name: each.excluded for each in found if each.excluded}
    assert list(excluded) == ["refuses", "dies late"]
    assert "nobody knows" in excluded["refuses"]
    assert "exit code 3" in excluded["dies late"]
    for each in found:
        if not each.excluded:
            assert len(each.round_ms) == 30
            assert each.distance is not None
            assert each.distance.count == 2
    table = list(many_lengths(found, "infer"))
    assert len(table) == 2 + 5
    assert "×1.00 (1.00–1.00) | 1.00000, 1.00000 |" in table[2]


def test_a_query_of_many_inputs_goes_on_where_it_was(start: Start) -> None:
    remote = start("is fine")
    query = remote.query_each([{"x": X}, {"x": X[:1]}])
    assert len(query.turn(3)) == len(query.turn(3)) == 3


def test_cosines_of_vectors_and_of_numbers() -> None:
    """Of vectors one by one; of single numbers all together, where 2 for 1 is no perfect answer."""
    a, b = np.array([1.0, 0.0]), np.array([1.0, 1.0])
    np.testing.assert_allclose(cosines([(a, a), (a, b)]), [1, np.sqrt(0.5)])
    one, two = np.array([1.0]), np.array([2.0])
    np.testing.assert_allclose(cosines([(one, one), (one, two)]), [3 / np.sqrt(10)])
    np.testing.assert_array_equal(cosines([(0 * a, 0 * a), (0 * a, a)]), [1, 0])
    assert str(Distance(0.5, 0.25, 3)) == "cosine to infer 0.5000 mean, 0.2500 min of 3 inputs"


def test_the_table_of_peers() -> None:
    """Names differ, files are there, requirements are pinned, settings come from a page one can read."""
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]+", peer.name) for peer in PEERS)
    for peer in PEERS:
        file = ROOT / f"{peer.module.replace('.', '/')}.py"
        assert "\ndef load(given: Given) -> Loaded:" in file.read_text(encoding="utf-8")
        assert all("==" in requirement for requirement in peer.requirements)
        assert peer.documentation.startswith("https://")
        assert peer.takes in ("source", "graph", "transformers", "sentence-transformers")


def test_the_readme_tells_of_every_peer_and_its_commands_are_ones() -> None:
    """Where settings are documented is said there, and what it shows can be typed."""
    from bench.peers.__main__ import peers

    text = (ROOT / "bench/README.md").read_text(encoding="utf-8")
    assert all(peer.documentation in text for peer in PEERS)
    commands = re.findall(r"^\$ python -m bench\.peers (.*?)(?:#.*)?$", text, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        name, *arguments = command.split()
        peers.commands[name].make_context(name, arguments)  # raises for what it does not know


def test_a_peer_for_another_processor_is_unfit(material: Material) -> None:
    """Presets that name an instruction set are for machines that have it."""
    peer = _fake("is fine", isa="avx2")
    assert unfit(peer, material, ("avx", "avx2")) is None
    assert "lacks" in str(unfit(peer, material, ("avx",)))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("INFER_ZOO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_environments_are_told_apart_by_requirements_and_python(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other versions go elsewhere, the same in another order do not; needing nothing is the project's."""
    first = place(("a==1", "b==2"))
    assert first == place(("b==2", "a==1"))
    assert first != place(("a==1", "b==3"))
    assert first.is_relative_to(cache)
    assert python(()) == Path(sys.executable)
    assert python(("a==1",)) is None
    monkeypatch.setattr(environment.sys, "version", "3.99")
    assert first != place(("a==1", "b==2"))


class _Installer:
    """Stands for pip: writes what it was told, or breaks off in the middle."""

    def __init__(self, breaks: bool = False) -> None:
        self.breaks, self.calls = breaks, 0

    def __call__(self, folder: Path, requirements: Sequence[str], progress: Progress) -> None:
        self.calls += 1
        assert list(folder.iterdir()) == []
        (folder / "bin").mkdir()
        (folder / "bin/python").touch()
        if self.breaks:
            raise EnvironmentFailedError("the network is gone")
        (folder / INSTALLED).write_text("\n".join(requirements), encoding="utf-8")


def test_an_environment_is_made_whole_or_not_at_all(cache: Path) -> None:
    """What broke off leaves nothing behind, and the next attempt is a new one; then it is there."""
    wanted = ("a==1",)
    with pytest.raises(EnvironmentFailedError, match="the network is gone"):
        prepare(wanted, install=_Installer(breaks=True))
    assert python(wanted) is None
    assert [path.suffix for path in place(wanted).parent.iterdir()] == [".lock"]
    install = _Installer()
    assert prepare(wanted, install=install) == place(wanted) / "bin/python"
    assert prepare(wanted, install=install) == python(wanted)
    assert install.calls == 1


def test_a_half_built_environment_is_built_again(cache: Path) -> None:
    """A process that was killed leaves a draft, or a folder without the list: neither is whole."""
    wanted = ("a==1",)
    folder = place(wanted)
    draft = folder.with_name(f".{folder.name}.killed.draft")
    for left in (folder, draft):
        (left / "bin").mkdir(parents=True)
        (left / "bin/python").touch()
    assert python(wanted) is None
    install = _Installer()
    prepare(wanted, install=install)
    assert install.calls == 1
    assert not draft.exists()
    assert (folder / INSTALLED).read_text(encoding="utf-8") == "a==1"


@pytest.mark.slow
def test_pip_installs_what_is_required_and_says_what_it_cannot(cache: Path, tmp_path: Path) -> None:
    """A wheel made here, and one that is not there."""
    wheel = tmp_path / "tiny_peer-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_peer.py", "")
        about = "tiny_peer-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-peer\nVersion: 1.0\n")
        tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{about}/WHEEL", tags)
        archive.writestr(f"{about}/RECORD", "")
    said: list[str] = []
    made = prepare((str(wheel),), said.append)
    assert made.is_file()
    assert any("tiny-peer" in line for line in environment.installed((str(wheel),)))
    assert any(sentence.startswith("Successfully installed") for sentence in said)
    with pytest.raises(EnvironmentFailedError, match="nowhere-1"):
        prepare((str(tmp_path / "nowhere-1.0-py3-none-any.whl"),))


@pytest.mark.slow
def test_a_family_is_compared_with_pytorch_and_plain_onnx_runtime(cache: Path, tmp_path: Path) -> None:
    """From its source to a record and a table, with answers that agree."""
    from bench.peers.__main__ import peers

    arguments = ["compare", "feed-forward", "--peer", "torch-eager", "--peer", "onnxruntime"]
    done = CliRunner().invoke(peers, [*arguments, "--seconds", "0.3", "--json", "-o", str(tmp_path)])
    assert done.exit_code == 0, done.output
    (told,) = json.loads(done.stdout)["records"].values()
    record = read_record(tmp_path / "feed-forward.json")
    assert record.to_data() == told
    assert [entry.name for entry in record.candidates] == ["infer", "torch-eager", "onnxruntime"]
    assert all(entry.excluded is None for entry in record.candidates)
    assert [series.candidate for series in record.series] == ["infer", "torch-eager", "onnxruntime"]
    assert record.conditions.threads >= 1
