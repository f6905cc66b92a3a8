"""The classic image classifiers at their published size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos

import converters
import infer
from bench.zoo import convert, densenet121, inception_v3, resnet18, resnet50, source, vgg16
from converters.original import original_task
from infer.evaluation import evaluate_task
from tests.conftest import TrainFor


@pytest.mark.parametrize(
    ("module", "architecture", "parameters"),
    [
        (resnet50, lambda: resnet50.ResNet((3, 4, 6, 3), True, 64, 1000), 25_557_032),
        (densenet121, densenet121.DenseNet121, 7_978_856),
        (inception_v3, inception_v3.InceptionV3, 27_161_264),
        (vgg16, vgg16.VGG16, 138_357_544),
    ],
)
def test_architectures_have_their_published_size(module, architecture, parameters) -> None:  # type: ignore[no-untyped-def]
    """As many parameters as torchvision documents for its networks of these names."""
    with torch.device("meta"):
        model = architecture()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert module.WEIGHTS == "random"


@pytest.mark.slow
@pytest.mark.long
def test_inception_in_training_mode_converts_without_its_auxiliary_head(tmp_path: Path) -> None:
    """A model left in training mode, which then gives auxiliary logits too, converts to the graph of eval
    mode: logits only, and the five best of a real photo are PyTorch's in eval mode."""
    model, example = inception_v3.build()
    model.train()
    assert set(model(**example)) == {"logits", "aux_logits"}
    model, _ = inception_v3.build()
    model.train()
    artifact = converters.convert(
        model, tmp_path / "v3.infer", example_inputs=example, task=inception_v3.task()
    )
    assert [spec.name for spec in artifact.manifest.outputs] == ["logits"]
    picture = Image.fromarray(photos.cat())
    short = min(picture.size)
    edge = 299 * 8 // 7
    picture = picture.resize(
        tuple(edge if n == short else int(edge * n / short) for n in picture.size),
        Image.Resampling.BILINEAR,
    )
    left, top = ((n - 299) // 2 for n in picture.size)
    x = torch.from_numpy(np.array(picture.crop((left, top, left + 299, top + 299)))).permute(2, 0, 1)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        scores = model.eval()((x / 255 - mean[:, None, None])[None] / std[:, None, None])["logits"]
    best = scores[0].softmax(0).topk(5)
    with infer.load(artifact.path) as session:
        result = session(photos.cat())
    assert [item.index for item in result] == best.indices.tolist()
    np.testing.assert_allclose([item.score for item in result], best.values, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.long
def test_a_trained_resnet_is_as_good_as_in_pytorch(tmp_path: Path, train_for: TrainFor) -> None:
    """ResNet-18 on Fashion-MNIST, trained for one of its three epochs: accuracy above 0.8 on pictures it
    has not seen, as in PyTorch."""
    train_for(resnet18, epochs=1)
    artifact = convert("resnet18", tmp_path / "resnet18.infer")
    data = resnet18.dataset()
    with infer.load(artifact.path) as session, original_task(source("resnet18"), artifact) as original:
        ours, theirs = evaluate_task(session.task, data), evaluate_task(original, data)
    assert ours.metrics["accuracy"] > 0.8
    for name, value in theirs.metrics.items():
        assert ours.metrics[name] == pytest.approx(value, abs=1e-5)
