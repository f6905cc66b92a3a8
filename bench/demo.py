"""The main job on real models and real inputs: convert, prove, run, compare with PyTorch.

    python -m bench.demo [FOLDER]

Artifacts go to FOLDER (default: .demo) and stay there to play with.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import converters
import infer
from bench.zoo import efficientnet_lite0, feed_forward, minilm
from infer.cli.convert import report
from infer.cli.progress import Progress
from infer.measure.queries import Call
from infer.measure.rounds import take_turns
from infer.measure.statistics import paired_ratio


def main(folder: Path) -> None:
    """Convert and run the three models."""
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    torch.set_num_threads(infer.this_machine().cores)
    for show in (show_feed_forward, show_efficientnet, show_minilm):
        show(folder)
    click.echo(f"\nAll three in {time.perf_counter() - start:.0f} s. The artifacts are in '{folder}'; try:")
    click.echo(f'  infer run {folder}/minilm.infer --text "a sentence of yours"')
    click.echo(f"  infer inspect {folder}/efficientnet-lite0.infer")


def show_feed_forward(folder: Path) -> None:
    """The 10-5-2 net on patients it has not seen."""
    title("1. A 10-5-2 feed-forward net, trained here on breast cancer data")
    model, example = feed_forward.build()
    artifact = convert(
        model, folder / "feed-forward.infer", example_inputs=example, task=feed_forward.task()
    )
    data = feed_forward.data()
    with infer.load(artifact.path) as session:
        results = session([dict(zip(data.columns, row, strict=True)) for row in data.test_x])
        correct = np.mean([r[0].index == y for r, y in zip(results, data.test_y, strict=True)])
        click.echo(f"answer    held-out accuracy {correct:.3f} on {len(results)} patients; the first:")
        indent(session.task.describe(results[0]))
        x = example["x"][:1]
        against_torch(session, model, {"x": x})


def show_efficientnet(folder: Path) -> None:
    """Real ImageNet weights on real photos."""
    from skimage import data as photos

    title("2. EfficientNet-Lite0 with its ImageNet weights, on photos")
    model, example = efficientnet_lite0.build()
    artifact = convert(
        model,
        folder / "efficientnet-lite0.infer",
        example_inputs=example,
        task=efficientnet_lite0.task(),
    )
    with infer.load(artifact.path) as session:
        for name in ("cat", "coffee"):
            photo = getattr(photos, name)()
            click.echo(f"answer    {name}.png, {photo.shape[1]}×{photo.shape[0]}")
            indent(session.task.describe(session(photo)[:3]))
        against_torch(session, model, {"inputs": example["inputs"][:1]})


def show_minilm(folder: Path) -> None:
    """A sentence encoder on sentences."""
    title("3. all-MiniLM-L6-v2, a sentence encoder, on sentences")
    artifact = convert(minilm.folder(), folder / "minilm.infer")
    with infer.load(artifact.path) as session:
        vectors = session(minilm.SENTENCES)
        click.echo(f"answer    similarity to {minilm.SENTENCES[0]!r}")
        for sentence, cosine in zip(minilm.SENTENCES[1:], vectors[1:] @ vectors[0], strict=True):
            click.echo(f"          {cosine:6.3f}  {sentence}")
        from converters.sources import SourceRequest, open_source

        original = open_source(SourceRequest(minilm.folder(), "minilm")).module
        ids = torch.randint(1000, 30000, (1, 24), generator=torch.Generator().manual_seed(0))
        feeds = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
        }
        against_torch(session, original, feeds)


def convert(source: Any, output: Path, **options: Any) -> infer.Artifact:
    """Convert with progress, and print what was proved."""
    with Progress() as progress:
        artifact = converters.convert(source, output, overwrite=True, progress=progress, **options)
    report(artifact)
    return artifact


def against_torch(session: infer.Session, model: torch.nn.Module, feeds: dict[str, torch.Tensor]) -> None:
    """Both on the same feeds, in turns, with the same threads; answers are compared first."""
    arrays = {name: tensor.numpy() for name, tensor in feeds.items()}
    ours = session.rebuild(session.run(arrays))
    with torch.inference_mode():
        theirs = model(**feeds)
    if isinstance(theirs, torch.Tensor):
        assert_equal(ours, theirs)
    else:
        for name, tensor in theirs.items():
            assert_equal(ours[name], tensor)

    def run_torch() -> Any:
        with torch.inference_mode():
            return model(**feeds)

    measured = take_turns({"torch": Call(run_torch), "infer": Call(lambda: session.run(arrays))}, 2.0)
    torch_ms, infer_ms = measured.times["torch"].medians, measured.times["infer"].medians
    gain = paired_ratio(torch_ms, infer_ms)
    click.echo(
        f"latency   PyTorch {np.median(torch_ms):.3g} ms, infer {np.median(infer_ms):.3g} ms:"
        f" ×{gain.value:.2f} ({gain.low:.2f}–{gain.high:.2f})"
        f" (medians, batch 1, {session.plan.num_threads} threads each)"
    )


def assert_equal(ours: Any, theirs: torch.Tensor) -> None:
    """A benchmark of different answers would say nothing."""
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-3, atol=1e-4)


def title(text: str) -> None:
    """A heading."""
    click.secho(f"\n{text}", bold=True)


def indent(text: str) -> None:
    """Lines under a label."""
    for line in text.splitlines():
        click.echo(f"          {line.strip()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(".demo"))
