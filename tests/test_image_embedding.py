"""image-embedding and face-embedding: vectors of length 1 equal the original's, compared and verified."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos
from sklearn.metrics import roc_auc_score, roc_curve

import infer
from bench.zoo import convert, fashion_embedding, inception_resnet, source
from converters.original import original_task
from infer.errors import ArtifactError, InputError
from infer.evaluation import Dataset, evaluate_task, read_dataset
from infer.signature import Signature, TensorSpec
from infer.tasks import Setting
from infer.tasks.image_embedding import ImageEmbedding

COLOURS = ("crimson", "teal", "gold")


def task(answer: Callable[[np.ndarray], np.ndarray], **spec: Any) -> ImageEmbedding:
    """The task with a function of pixels in the place of a graph."""
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 3, "height", "width")),),
        (TensorSpec("y", "float32", ("batch", "size")),),
    )

    def run(feeds: Any) -> dict[str, np.ndarray]:
        return {"y": answer(feeds["x"]).astype(np.float32)}

    full = {"input": "x", "output": "y", "steps": [], **spec}
    return ImageEmbedding(Setting("image-embedding", full, signature, None, Path, run))


def mean_colour(x: np.ndarray) -> np.ndarray:
    return x.mean(axis=(2, 3))


def test_vectors_have_length_one_and_keep_their_order() -> None:
    """The mean colour, by hand, divided by its length; a list gives rows, no input none."""
    embed = task(mean_colour, steps=[{"op": "resize", "height": 4, "width": 4}])
    pictures = [np.full((5, 7, 3), colour, np.uint8) for colour in ((3, 4, 0), (0, 0, 9), (8, 0, 6))] * 5
    expected = np.array([[0.6, 0.8, 0], [0, 0, 1], [0.8, 0, 0.6]] * 5)
    np.testing.assert_allclose(embed(pictures), expected, atol=1e-6)
    np.testing.assert_allclose(embed(pictures[0]), expected[0], atol=1e-6)
    assert embed([]).shape == (0, 0)


def test_compare_and_verify() -> None:
    """The cosine of two pictures, 0.48 by hand, is the same above the threshold, and else not."""
    first, second = (np.full((2, 2, 3), colour, np.uint8) for colour in ((30, 40, 0), (80, 0, 60)))
    assert task(mean_colour).compare(first, second) == pytest.approx(0.48, abs=1e-6)
    verdict = task(mean_colour, threshold=0.4).verify(first, second)
    assert (verdict.same, verdict.threshold) == (True, 0.4)
    assert not task(mean_colour, threshold=0.5).verify(first, second).same
    with pytest.raises(ArtifactError, match="has no threshold, so it cannot verify"):
        task(mean_colour).verify(first, second)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"input": "z"}, "names the input 'z'"),
        ({"output": "x"}, "names the output 'x'"),
        ({"threshold": 1.5}, "the threshold must be -1 to 1"),
        ({"margin": 0.5}, "margin"),
    ],
)
def test_specs_that_cannot_be_followed_are_refused(spec: dict[str, Any], said: str) -> None:
    """A manifest from elsewhere is an `ArtifactError` when its task is loaded."""
    with pytest.raises(ArtifactError, match=said):
        task(mean_colour, **spec)


def test_a_picture_without_a_vector_is_named() -> None:
    """A vector of zeros, or that is not finite, has no direction to compare."""
    pictures = [np.full((2, 2, 3), 9, np.uint8), np.zeros((2, 2, 3), np.uint8)]
    with pytest.raises(InputError, match="picture 1 has no vector"):
        task(mean_colour)(pictures)
    with pytest.raises(InputError, match="picture 0 has no vector"):
        task(lambda x: mean_colour(x) * np.nan)(pictures[:1])


def test_pairs_of_folders_and_tables(tmp_path: Path) -> None:
    """A folder for each identity gives all its pairs; a table names its own. Both figures are those of
    scikit-learn on cosines worked out by hand."""
    rng = np.random.default_rng(0)
    vectors, kinds, files = [], [], []
    for kind, colour in enumerate(COLOURS):
        (tmp_path / colour).mkdir()
        base = np.array(Image.new("RGB", (1, 1), colour))[0, 0].astype(np.int64)
        for i in range(5):
            pixel = np.clip(base + rng.integers(-90, 90, 3), 1, 255).astype(np.uint8)
            files.append(tmp_path / colour / f"{i}.png")
            Image.fromarray(np.tile(pixel, (3, 3, 1))).save(files[-1])
            vectors.append(pixel / np.linalg.norm(pixel))
            kinds.append(kind)
    first, second = np.triu_indices(len(files), 1)
    cosines = np.sum(np.array(vectors)[first] * np.array(vectors)[second], axis=1)
    same = np.array(kinds)[first] == np.array(kinds)[second]
    embed = task(mean_colour, threshold=0.9)
    found = evaluate_task(embed, read_dataset(embed, tmp_path))
    assert found.count == len(first)
    assert found.metrics["roc_auc"] == pytest.approx(roc_auc_score(same, cosines))
    wrongly, rightly, _ = roc_curve(same, cosines)
    assert found.metrics["tar_at_far_0.1"] == pytest.approx(rightly[wrongly <= 0.1].max())
    assert found.metrics["accuracy"] == pytest.approx(np.mean((cosines >= 0.9) == same))
    rows = [
        f"{files[i].relative_to(tmp_path)},{files[j].relative_to(tmp_path)},{int(s)}"
        for i, j, s in zip(first, second, same, strict=True)
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(["first,second,same", *rows]))
    table = evaluate_task(embed, read_dataset(embed, tmp_path / "pairs.csv"))
    assert table.metrics == found.metrics
    with pytest.raises(InputError, match="pairs of the same and of different ones"):
        evaluate_task(embed, Dataset("same", [(files[0], files[1])], [True]))


@pytest.mark.slow
def test_clothes_of_unseen_kinds_are_told_apart(tmp_path: Path) -> None:
    """An embedding trained on seven kinds tells three others apart (ROC AUC above 0.8), with the figures of
    PyTorch, and vectors within 1e-5."""
    artifact = convert("fashion-embedding", tmp_path / "e.infer")
    name, data = source("fashion-embedding"), fashion_embedding.dataset()
    with infer.load(artifact.path) as session, original_task(name, artifact) as original:
        ours, theirs = evaluate_task(session.task, data), evaluate_task(original, data)
        assert ours.metrics["roc_auc"] > 0.8
        assert ours.metrics["tar_at_far_0.01"] > 0.3
        for metric, value in theirs.metrics.items():
            assert ours.metrics[metric] == pytest.approx(value, abs=2e-4)
        pictures = fashion_embedding.samples()
        np.testing.assert_allclose(session(pictures), original(pictures), atol=1e-5)


@pytest.mark.slow
@pytest.mark.long
def test_a_face_has_the_vector_of_the_original(tmp_path: Path) -> None:
    """Inception-ResNet-v1 at full size: the vector of a real face is PyTorch's on (x - 127.5) / 128 within
    1e-5, and a face is itself."""
    artifact = convert("inception-resnet", tmp_path / "face.infer")
    model, _ = inception_resnet.build()
    assert sum(p.numel() for p in model.parameters()) == 23_482_624  # without the classifier: FaceNet's own
    faces = [inception_resnet.samples()[0], photos.astronaut()[300:500, 100:300]]
    arrays = [
        np.asarray(Image.fromarray(face).resize((160, 160), Image.Resampling.BILINEAR)) for face in faces
    ]
    x = (torch.from_numpy(np.stack(arrays)).float().permute(0, 3, 1, 2) - 127.5) / 128
    with torch.no_grad():
        theirs = model(x)["embedding"].numpy()
    with infer.load(artifact.path) as session:
        ours = session(faces)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert session.task.compare(*faces) == pytest.approx(float(theirs[0] @ theirs[1]), abs=1e-5)
        assert session.task.verify(faces[0], faces[0]).same
