"""image-segmentation: masks equal the original's, with and without windows, in two and three dimensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from skimage import data as photos

import converters
import infer
from infer.errors import ArtifactError, InputError
from infer.signature import Signature, TensorSpec
from infer.tasks import Setting
from infer.tasks.image_segmentation import ImageSegmentation
from infer.tasks.interpolation import resized
from infer.tasks.windows import BLENDS, Canvas, Windows, importance, places
from tests.architectures import IMAGE

RESCALE = [{"op": "rescale", "factor": 1 / 255}]


def task(
    answer: Callable[[np.ndarray], np.ndarray],
    spec: dict[str, Any],
    axes: int = 2,
    classes: int | str = "classes",
) -> ImageSegmentation:
    """The task with a function of pixels in the place of a graph."""
    spatial = ("depth", "height", "width")[-axes:]
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", "channels", *spatial)),),
        (TensorSpec("y", "float32", ("batch", classes, *spatial)),),
    )

    def run(feeds: Any) -> dict[str, np.ndarray]:
        return {"y": answer(feeds["x"])}

    def no_file(name: str) -> Path:
        raise AssertionError(name)

    full = {"input": "x", "output": "y", **spec}
    return ImageSegmentation(Setting("image-segmentation", full, signature, None, no_file, run))


def by_brightness(x: np.ndarray) -> np.ndarray:
    """Three classes, by a pixel's own brightness: a model that sees one pixel."""
    grey = x.mean(axis=1, keepdims=True)
    return np.concatenate([-grey, np.full_like(grey, -0.3), grey - 0.8], axis=1).astype(np.float32)


@pytest.mark.parametrize(
    ("size_in", "size_out"),
    [((5, 7), (20, 28)), ((9, 4), (3, 11)), ((128, 128), (451, 300)), ((1, 3), (4, 4))],
)
def test_interpolation_equals_torch(size_in: tuple[int, int], size_out: tuple[int, int]) -> None:
    """Enlarged and shrunk maps are torch's within 2e-7 of their largest value, in strips and whole."""
    array = np.random.default_rng(0).standard_normal((3, *size_in)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(array)[None], size=size_out, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(resized(array, size_out), theirs[0].numpy(), rtol=0, atol=8e-7)


def test_interpolation_of_volumes_equals_torch() -> None:
    """Three axes are interpolated as torch's trilinear does."""
    array = np.random.default_rng(0).standard_normal((2, 5, 8, 6)).astype(np.float32)
    theirs = torch.nn.functional.interpolate(
        torch.from_numpy(array)[None], size=(9, 13, 4), mode="trilinear", align_corners=False
    )
    np.testing.assert_allclose(resized(array, (9, 13, 4)), theirs[0].numpy(), rtol=0, atol=8e-7)


def test_large_maps_are_interpolated_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few rows a strip has, the map is the same to the last bit."""
    array = np.random.default_rng(0).standard_normal((3, 20, 30)).astype(np.float32)
    whole = resized(array, (77, 41))
    monkeypatch.setattr("infer.tasks.interpolation._STRIP_NUMBERS", 3 * 41 * 2)
    np.testing.assert_array_equal(resized(array, (77, 41)), whole)


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], Windows]:
    size = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=3)))
    shape = tuple(n + draw(st.integers(0, 12)) for n in size)
    return shape, Windows(size, draw(st.floats(0, 0.9)), draw(st.sampled_from(BLENDS)))


@settings(deadline=None, max_examples=150)
@given(grids())
def test_weights_of_windows_sum_to_one(grid: tuple[tuple[int, ...], Windows]) -> None:
    """Windows cover the grid, stay inside it, and blend a constant into itself, in 1 to 3 dimensions: as
    near as sums of so many float32 are."""
    shape, windows = grid
    windows.check(len(shape))
    canvas, summed = Canvas(shape, windows), np.zeros(shape, int)
    for place in places(shape, windows):
        assert all(at.start >= 0 and at.stop <= n for at, n in zip(place, shape, strict=True))
        canvas.lay(place, np.full((2, *windows.size), 3.0, np.float32))
        summed[place] += 1
    rounding = (summed.max() + 4) * np.finfo(np.float32).eps
    np.testing.assert_allclose(canvas.blended(), np.full((2, *shape), 3.0), rtol=rounding)


def test_importance_is_the_published_formula() -> None:
    """Gaussian weights are exp(-x² / 2(n/8)²) along each axis, at least 1e-3 (MONAI's
    compute_importance_map); of a window of four, worked out by hand."""
    line = [np.exp(-(1.5**2) / 0.5), np.exp(-(0.5**2) / 0.5)]
    line = np.array([*line, *line[::-1]])
    np.testing.assert_allclose(importance(Windows((4,))), line, rtol=1e-6)
    np.testing.assert_allclose(
        importance(Windows((4, 4))), np.maximum(np.outer(line, line), 1e-3), rtol=1e-6
    )


def test_blending_equals_monai() -> None:
    """A window's answer that depends on the position in it is blended as MONAI 1.6.1's
    sliding_window_inference does (roi 8 × 6, overlap 0.4, gaussian, picture 13 × 11; its figures)."""
    windows = Windows((8, 6), 0.4)
    ramp = (np.arange(48, dtype=np.float32).reshape(1, 8, 6) / 48) ** 2
    canvas = Canvas((13, 11), windows)
    for place in places((13, 11), windows):
        canvas.lay(place, ramp)
    np.testing.assert_allclose(canvas.blended()[0, [0, 5, 7, 12], [0, 4, 6, 10]], MONAI, rtol=1e-5)


MONAI = [0.0, 0.4005529, 0.163253, 0.9587674]


@pytest.mark.parametrize("blend", BLENDS)
@pytest.mark.parametrize("size", [(64, 64), (100, 30), (600, 600)])
def test_windows_do_not_change_what_does_not_depend_on_place(blend: str, size: tuple[int, int]) -> None:
    """A model of single pixels gives the same mask and scores with windows and without, also with windows
    larger than the picture."""
    photo = photos.coffee()
    spec = {"steps": RESCALE, "keep_scores": True}
    whole = task(by_brightness, spec)(photo)
    tiled = task(by_brightness, {**spec, "windows": {"size": list(size), "blend": blend}})(photo)
    assert whole.mask.shape == photo.shape[:2]
    assert len(np.unique(whole.mask)) == 3
    np.testing.assert_allclose(tiled.scores, whole.scores, atol=1e-6)
    # scores of two classes that differ in the last bit may fall to either
    assert np.mean(tiled.mask == whole.mask) > 0.9999


def test_batches_of_windows_and_pictures_keep_their_order() -> None:
    """Pictures of several sizes, in one call, each get their own mask, as alone."""
    pictures = [photos.coffee()[:90, :120], photos.cat()[:200, :77], photos.coffee()[:90, :120][::-1]]
    for spec in ({"steps": RESCALE}, {"steps": RESCALE, "windows": {"size": [64, 48]}}):
        segment = task(by_brightness, spec)
        for one, result in zip(pictures, segment(list(pictures)), strict=True):
            np.testing.assert_array_equal(result.mask, segment(one).mask)
        assert segment([]) == []


def test_padding_to_a_multiple_is_cut_off_again() -> None:
    """A model that wants multiples of 32 gets them, and the mask has the picture's own size."""
    shapes = []

    def answer(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape[2:])
        return by_brightness(x)

    photo = photos.coffee()[:75, :131]
    mask = task(answer, {"steps": RESCALE, "multiple": 32})(photo).mask
    assert shapes == [(96, 160)]
    np.testing.assert_array_equal(mask, task(by_brightness, {"steps": RESCALE})(photo).mask)


def test_areas_are_counted_and_measured() -> None:
    """Pixels, share, and mm² of every class: a picture a quarter white, of pixels of 0.5 × 2 mm."""
    picture = np.zeros((8, 12, 3), np.uint8)
    picture[:4, :6] = 255
    segment = task(
        by_brightness, {"steps": RESCALE, "labels": ["dark", "grey", "light"], "spacing_mm": [0.5, 2.0]}
    )
    dark, grey, light = segment(picture).areas
    assert (dark.label, dark.pixels, dark.share, dark.size) == ("dark", 72, 0.75, 72.0)
    assert (grey.pixels, grey.size) == (0, 0.0)
    assert (light.pixels, light.share, light.size) == (24, 0.25, 24.0)
    assert (
        segment.describe(segment(picture))
        == " 75.00%  72 pixels  72 mm²  dark\n 25.00%  24 pixels  24 mm²  light"
    )


def test_json_holds_the_mask_as_runs() -> None:
    """Values repeated by lengths give the mask back."""
    segment = task(by_brightness, {"steps": RESCALE})
    result = segment(photos.coffee())
    found = json.loads(json.dumps(segment.to_json(result)))["mask"]
    mask = np.repeat(found["values"], found["lengths"]).reshape(found["shape"])
    np.testing.assert_array_equal(mask, result.mask)


def test_sigmoid_classes_may_overlap() -> None:
    """A mask for each class, where torch's sigmoid is above the threshold; of one class, one mask."""
    logits = np.random.default_rng(0).standard_normal((2, 3, 40, 50)).astype(np.float32)
    picture = np.zeros((40, 50, 3), np.uint8)
    result = task(lambda x: logits[:1], {"mode": "sigmoid", "threshold": 0.3})(picture)
    np.testing.assert_array_equal(result.mask, torch.from_numpy(logits[0]).sigmoid().numpy() > 0.3)
    assert [area.pixels for area in result.areas] == result.mask.sum(axis=(1, 2)).tolist()
    one = task(lambda x: logits[:1, :1], {"mode": "sigmoid", "threshold": 0.3})(picture)
    np.testing.assert_array_equal(one.mask, result.mask[0])


def test_the_mask_lies_over_the_upright_picture(tmp_path: Path) -> None:
    """A photo that a camera says to turn gets the mask of the turned photo."""
    picture = Image.fromarray(photos.coffee())
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    segment = task(by_brightness, {"steps": RESCALE})
    np.testing.assert_array_equal(segment(tmp_path / "turned.png").mask, segment(picture).mask)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"input": "z"}, "the task names the tensor 'z'"),
        ({"output": "x"}, "the task names the tensor 'x'"),
        ({"mode": "softmax"}, "unknown mode 'softmax'"),
        ({"padding": "wrap"}, "unknown padding 'wrap'"),
        ({"multiple": 0}, "multiple must be from 1"),
        ({"threshold": 2.0}, "threshold must be from 0 to 1"),
        ({"spacing_mm": [1.0]}, "spacing_mm must be 2 positive numbers"),
        ({"spacing_mm": [1.0, 0.0]}, "spacing_mm must be 2 positive numbers"),
        ({"windows": {"size": [8]}}, "a window's size must be 2 positive numbers"),
        ({"windows": {"size": [0, 8]}}, "a window's size must be 2 positive numbers"),
        ({"windows": {"size": [2**20, 2**20]}}, "a window's size must be 2 positive numbers"),
        ({"windows": {"size": [8, 8], "overlap": 0.99}}, "windows may overlap by a share from 0 to 0.9"),
        ({"windows": {"size": [8, 8], "blend": "cubic"}}, "unknown blend 'cubic'"),
        ({"labels": ["a"]}, "1 labels, but the model gives 3 classes"),
        ({"steps": [{"op": "center_crop", "height": 2, "width": 2}]}, "leave out 'center_crop'"),
        ({"sharpen": True}, "sharpen"),
    ],
)
def test_specs_that_cannot_be_followed_are_refused(spec: dict[str, Any], said: str) -> None:
    """A manifest from elsewhere is an `ArtifactError` when its task is loaded."""
    with pytest.raises(ArtifactError, match=said):
        task(by_brightness, spec, classes=3)


def test_a_model_that_gives_no_maps_is_refused() -> None:
    """An output of another rank, or with one class for argmax, is named."""
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ArtifactError, match="the output 'y' must be floats of shape"):
        task(lambda x: x[:, 0], {})(picture)
    with pytest.raises(ArtifactError, match="use mode 'sigmoid'"):
        task(lambda x: x[:, :1], {})(picture)


def test_more_scores_than_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scores of windows are bounded before they are allocated."""
    monkeypatch.setattr("infer.tasks.image_segmentation._MAX_SCORES", 1000)
    segment = task(by_brightness, {"steps": RESCALE, "windows": {"size": [16, 16]}})
    with pytest.raises(InputError, match="3 scores for each of 40 × 40 points are more than 1000"):
        segment(np.zeros((40, 40, 3), np.uint8))


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small SegFormer with its processor, as a folder. Random weights, stirred so that classes differ."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    folder = tmp_path_factory.mktemp("segformer") / "model"
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=[16, 24, 32, 48],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 2, 2, 4],
        decoder_hidden_size=32,
        id2label={i: f"class {i}" for i in range(7)},
    )
    model = SegformerForSemanticSegmentation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor = {"image_processor_type": "SegformerImageProcessor", "size": {"height": 128, "width": 192}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.slow
def test_segformer_equals_transformers(segformer: Path, tmp_path: Path) -> None:
    """A SegFormer folder converts with its task; masks of real photos are those of transformers' own
    post_process_semantic_segmentation wherever the two best
    classes are more than 1e-4 apart: at more than 99.9 % of pixels."""
    from transformers import AutoImageProcessor, SegformerForSemanticSegmentation

    artifact = converters.convert(segformer, tmp_path / "segformer.infer")
    assert artifact.manifest.task is not None
    assert artifact.manifest.task.name == "image-segmentation"
    assert artifact.manifest.parity is not None
    assert artifact.manifest.parity.passed
    assert artifact.manifest.signature.dims == IMAGE
    processor = AutoImageProcessor.from_pretrained(segformer, backend="pil")
    model = SegformerForSemanticSegmentation.from_pretrained(segformer).eval()
    with infer.load(artifact.path) as session:
        for name in ("coffee", "cat", "astronaut"):
            photo = getattr(photos, name)()
            with torch.no_grad():
                outputs = model(**processor(Image.fromarray(photo), return_tensors="pt"))
            (found,) = processor.post_process_semantic_segmentation(
                outputs, target_sizes=[photo.shape[:2]], return_segmentation_scores=True
            )
            theirs = found["segmentation"].numpy()
            ours = session(photo)
            assert len(np.unique(theirs)) > 2
            best = found["segmentation_scores"].topk(2, dim=0).values
            clear = (best[0] - best[1]).numpy() > 1e-4
            assert clear.mean() > 0.999
            np.testing.assert_array_equal(ours.mask[clear], theirs[clear])
            counts = np.bincount(ours.mask.ravel(), minlength=7)
            assert [area.pixels for area in ours.areas] == counts.tolist()
            assert ours.areas[3].label == "class 3"
