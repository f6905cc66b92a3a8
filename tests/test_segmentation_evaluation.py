"""`infer eval` on masks: Dice and IoU as scikit-learn counts them, and real nuclei found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from skimage import data as photos
from sklearn.metrics import f1_score, jaccard_score

import infer
from bench.zoo import convert, source, unet_nuclei, unet_nuclei_3d
from converters.original import original_task
from infer.errors import InputError
from infer.evaluation import Dataset, evaluate_task, read_dataset
from tests.test_segmentation import RESCALE, by_brightness, task


def pictures() -> list[np.ndarray]:
    photo = photos.coffee()
    return [photo[:60, :80], photo[100:200, 200:250], photo[250:300, 300:370]]


def noisy(masks: list[np.ndarray], classes: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.where(rng.random(m.shape) < 0.3, rng.integers(0, classes, m.shape), m) for m in masks]


def test_overlap_of_classes_is_scikit_learns() -> None:
    """Dice and IoU per class and on average are f1_score and jaccard_score of all pixels that count."""
    segment = task(by_brightness, {"steps": RESCALE, "labels": ["dark", "grey", "light"]})
    masks = [segment(picture).mask for picture in pictures()]
    truths = noisy(masks, 3)
    truths[0][:5] = 255
    found = evaluate_task(segment, Dataset("noisy", pictures(), truths))
    truth, called = np.concatenate([t.ravel() for t in truths]), np.concatenate([m.ravel() for m in masks])
    counted = truth != 255
    truth, called = truth[counted], called[counted]
    np.testing.assert_allclose([row.f1 for row in found.classes], f1_score(truth, called, average=None))
    np.testing.assert_allclose(
        [row.iou for row in found.classes], jaccard_score(truth, called, average=None)
    )
    assert found.metrics["dice"] == pytest.approx(f1_score(truth, called, average="macro"))
    assert found.metrics["iou"] == pytest.approx(jaccard_score(truth, called, average="macro"))
    assert found.metrics["pixel_accuracy"] == pytest.approx(np.mean(truth == called))
    each = [f1_score(t[t != 255], m[t != 255], average="macro") for t, m in zip(truths, masks, strict=True)]
    assert found.metrics["dice_per_input"] == pytest.approx(np.mean(each))
    assert found.classes[0].label == "dark"
    assert found.count == 3


def test_windows_count_each_input_once() -> None:
    """An input of several windows is one example, told as one."""
    segment = task(by_brightness, {"steps": RESCALE, "windows": {"size": [32, 32]}})
    said: list[str] = []
    data = Dataset("same", pictures(), [segment(picture).mask for picture in pictures()])
    found = evaluate_task(segment, data, said.append)
    assert (found.count, found.metrics["dice"], found.metrics["iou"]) == (3, 1.0, 1.0)
    assert said[-1] == "3 of 3 answered"


def bright(x: np.ndarray) -> np.ndarray:
    return (x[:, :1] - 0.5) * 9


def test_instances_are_one_class() -> None:
    """Of a model with one class, every number but 0 in a mask is inside: also 255."""
    segment = task(bright, {"steps": RESCALE, "mode": "sigmoid", "labels": ["cup"]})
    masks = [segment(picture).mask for picture in pictures()]
    truths = noisy(masks, 2)
    numbers = np.random.default_rng(1).integers(200, 300, masks[0].shape)
    numbers[0] = 255
    found = evaluate_task(segment, Dataset("a", pictures(), [truths[0] * numbers, *truths[1:]]))
    truth, called = (np.concatenate([m.ravel() for m in many]) for many in (truths, masks))
    assert found.metrics["dice"] == pytest.approx(f1_score(truth, called))
    assert found.metrics["iou"] == pytest.approx(jaccard_score(truth, called))


def test_classes_that_overlap() -> None:
    """Of independent classes, i + 1 in a mask is class i, or a mask for each class is given."""

    def two(x: np.ndarray) -> np.ndarray:
        return np.concatenate([bright(x), 2 - bright(x)], axis=1)

    segment = task(two, {"steps": RESCALE, "mode": "sigmoid"})
    masks = [segment(picture).mask for picture in pictures()]
    truths = noisy(masks, 2)
    found = evaluate_task(segment, Dataset("a", pictures(), truths))
    for i in range(2):
        truth, called = (np.concatenate([m[i].ravel() for m in many]) for many in (truths, masks))
        assert found.classes[i].iou == pytest.approx(jaccard_score(truth, called))
    numbered = [np.where(truth[0], 1, 2 * truth[1]) for truth in truths]
    apart = [np.stack([mask == 1, mask == 2]) for mask in numbered]
    assert evaluate_task(segment, Dataset("a", pictures(), numbered)) == evaluate_task(
        segment, Dataset("a", pictures(), apart)
    )


def test_images_and_masks_of_a_folder(tmp_path: Path) -> None:
    """PNG with a palette, TIFF and .npz masks belong to the images of the same stem."""
    segment = task(by_brightness, {"steps": RESCALE})
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    masks = [segment(picture).mask.astype(np.uint8) for picture in pictures()]
    for i, picture in enumerate(pictures()):
        Image.fromarray(picture).save(tmp_path / "images" / f"{i}.v1.png")
    colours = Image.frombytes("P", masks[0].shape[::-1], masks[0].tobytes())
    colours.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    colours.save(tmp_path / "masks" / "0.v1.png")
    tifffile.imwrite(tmp_path / "masks" / "1.v1.tif", masks[1])
    np.savez(tmp_path / "masks" / "2.v1.npz", masks[2])
    found = evaluate_task(segment, read_dataset(segment, tmp_path))
    assert (found.count, found.metrics["iou"]) == (3, 1.0)


@pytest.mark.parametrize(
    ("mask", "said"),
    [
        (np.zeros((9, 9), int), r"a mask has shape \[9, 9\], but the answer has \[60, 80\]"),
        (np.full((60, 80), 3), "has the values 3 to 3, but the model's classes are 0 to 2"),
        (np.full((60, 80), -1), "has the values -1 to -1"),
        (np.full((60, 80), 0.5), "must hold whole numbers"),
        (Path("nowhere.png"), "there is no scan 'nowhere.png'"),
    ],
)
def test_masks_that_do_not_fit_are_refused(mask: Any, said: str) -> None:
    """Another size, an unknown class, fractions, a missing file: each says which mask and why."""
    with pytest.raises(InputError, match=said):
        evaluate_task(task(by_brightness, {"steps": RESCALE}), Dataset("bad", pictures()[:1], [mask]))


def test_folders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    """No images/, or an image without a mask, is named."""
    segment = task(by_brightness, {"steps": RESCALE})
    with pytest.raises(InputError, match="expected images/ and masks/"):
        read_dataset(segment, tmp_path)
    for name in ("images/a.png", "images/b.png", "masks/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="1 images without a mask, or masks without an image: b"):
        read_dataset(segment, tmp_path)
    (tmp_path / "masks/b.png").touch()
    (tmp_path / "masks/b.tif").touch()
    with pytest.raises(InputError, match=r"two files called 'b': b\.png, b\.tif"):
        read_dataset(segment, tmp_path)


@pytest.mark.slow
def test_nuclei_are_found_as_by_the_original(tmp_path: Path) -> None:
    """The U-Net reaches a Dice of 0.9 on tiles it has not seen, the same as in PyTorch; and its masks
    of a larger 16-bit image, in windows, are the original's at all but 1 in 10,000 pixels."""
    artifact = convert("unet-nuclei", tmp_path / "unet.infer")
    data = unet_nuclei.dataset()
    image = unet_nuclei.tiles().pictures[:2].reshape(256, 128)
    with infer.load(artifact.path) as session, original_task(source("unet-nuclei"), artifact) as original:
        ours, theirs = evaluate_task(session.task, data), evaluate_task(original, data)
        assert ours.metrics["dice"] > 0.9
        for name, value in theirs.metrics.items():
            assert ours.metrics[name] == pytest.approx(value, abs=1e-4)
        found = session(image)
        assert found.mask.shape == image.shape
        assert np.mean(found.mask != original(image).mask) < 1e-4


@pytest.mark.slow
def test_nuclei_in_a_volume_are_found_as_by_the_original(tmp_path: Path) -> None:
    """The 3-D U-Net, whose graph takes 16 × 16 × 16 voxels only, answers 31 × 20 × 57 in windows: Dice
    above 0.8 on what it has not seen, the mask of the original, and its volume in mm³."""
    artifact = convert("unet-nuclei-3d", tmp_path / "unet.infer")
    (volume,) = unet_nuclei_3d.samples()
    name = source("unet-nuclei-3d")
    with infer.load(artifact.path) as session, original_task(name, artifact) as original:
        found = evaluate_task(session.task, unet_nuclei_3d.dataset())
        assert found.metrics["dice"] > 0.8
        result = session(volume)
        assert result.mask.shape == (31, 20, 57)
        assert np.mean(result.mask != original(volume).mask) < 1e-4
        voxel = 0.002 * 0.001 * 0.001
        assert result.areas[0].size == pytest.approx(result.mask.sum() * voxel)
