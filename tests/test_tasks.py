"""Tasks reproduce the original pipelines on real inputs, without torch."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data as photos

import converters
import infer
from bench.zoo import efficientnet_lite0, feed_forward, minilm
from infer.errors import ArtifactError, InputError
from infer.tasks.pixels import Step, apply_steps, open_picture

PHOTOS = ("cat", "coffee", "astronaut")
SENTENCES = [
    *minilm.SENTENCES,
    "Naïve café — déjà vu!",
    "日本語のテキスト",
    "",
    "emoji 🙂 and a very long tail " + "word " * 400,
]


@pytest.fixture(scope="module")
def embedder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("minilm") / "minilm.infer"
    converters.convert(minilm.folder(), path)
    return path


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("net") / "efficientnet.infer"
    model, example = efficientnet_lite0.build()
    converters.convert(model, path, example_inputs=example, task=efficientnet_lite0.task())
    return path


def original_vectors(texts: list[str]) -> np.ndarray:
    """The sentence-transformers recipe: transformers' tokenizer and model, mean pooling, unit length."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(minilm.folder())
    model = AutoModel.from_pretrained(minilm.folder()).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        tokens = model(**encoded).last_hidden_state
    mask = encoded["attention_mask"][..., None].float()
    pooled = (tokens * mask).sum(1) / mask.sum(1)
    return np.asarray(torch.nn.functional.normalize(pooled).numpy())


def test_embeddings_equal_the_original(embedder: Path) -> None:
    """Vectors are within 1e-5 of the original's: accents, Japanese, emoji, empty and too long texts."""
    with infer.load(embedder) as session:
        ours = session(SENTENCES)
    theirs = original_vectors(SENTENCES)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    assert float(np.min(np.sum(ours * theirs, axis=1))) >= 0.99999


def test_embedding_order_and_batching_do_not_matter(embedder: Path) -> None:
    """Sorting by length inside gives each text its own vector, equal to that of the text alone."""
    rng = np.random.default_rng(0)
    texts = [" ".join(["fox", "jumps", "over"][i % 3] for i in range(n)) for n in rng.integers(1, 120, 64)]
    with infer.load(embedder) as session:
        together = session(texts)
        for i in (0, 17, 63):
            np.testing.assert_allclose(together[i], session(texts[i]), atol=2e-6)
        assert session([]).shape == (0, 384)


def test_texts_must_be_texts(embedder: Path) -> None:
    """A number or a lone surrogate is an error that says which text."""
    with infer.load(embedder) as session:
        with pytest.raises(InputError, match="text 1 must be a str, but is a int"):
            session(["fine", 5])
        with pytest.raises(InputError, match="Unicode"):
            session("\ud800")


def reference_pixels(photo: np.ndarray) -> np.ndarray:
    """The same preprocessing by transformers' own image transforms."""
    from transformers import image_transforms as t

    height, width = photo.shape[:2]
    short = min(height, width)
    resized = t.resize(
        photo, (256 * height // short, 256 * width // short), resample=Image.Resampling.BICUBIC
    )
    cropped = t.center_crop(resized, (224, 224))
    return np.asarray(t.normalize(cropped.astype(np.float32), [127.0] * 3, [128.0] * 3)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", PHOTOS)
def test_top_five_equals_the_original(classifier: Path, name: str) -> None:
    """On a real photo the artifact's top five are the PyTorch model's, on transformers' own pixels."""
    photo = getattr(photos, name)()
    model, _ = efficientnet_lite0.build()
    with torch.no_grad():
        probabilities = model(torch.from_numpy(reference_pixels(photo))[None])[0].softmax(0)
    best = probabilities.topk(5)
    with infer.load(classifier) as session:
        result = session(photo)
    assert [item.index for item in result] == best.indices.tolist()
    np.testing.assert_allclose([item.score for item in result], best.values, atol=1e-5)


def test_the_coffee_is_an_espresso(classifier: Path) -> None:
    """Labels are those of ImageNet: a sanity check against the world, not against a program."""
    with infer.load(classifier) as session:
        best = session(photos.coffee())[0]
    assert (best.label, best.index) == ("espresso", 967)


def test_all_forms_of_a_picture_are_the_same_picture(classifier: Path, tmp_path: Path) -> None:
    """Path, bytes, pillow image, array, and a rotated file with its EXIF orientation agree."""
    photo = photos.coffee()
    picture = Image.fromarray(photo)
    picture.save(tmp_path / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90° clockwise to view"
    rotated = picture.transpose(Image.Transpose.ROTATE_90)
    rotated.save(tmp_path / "rotated.png", exif=exif)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    paths = [tmp_path / "a.png", str(tmp_path / "a.png"), tmp_path / "rotated.png"]
    forms: list[Any] = [photo, picture, buffer.getvalue(), *paths]
    arrays = [np.asarray(open_picture(form)) for form in forms]
    for array in arrays[1:]:
        np.testing.assert_array_equal(array, arrays[0])
    with infer.load(classifier) as session:
        assert session([photo, tmp_path / "a.png"])[1] == session(photo)


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("ViTImageProcessor", {"size": {"height": 64, "width": 48}}),
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "resample": 3, "do_normalize": False}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 72}, "crop_size": {"height": 64, "width": 64}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 96}}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("BitImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": {"height": 64, "width": 48}}),
]


@pytest.mark.parametrize(("kind", "settings"), PROCESSORS, ids=lambda v: v if isinstance(v, str) else "")
def test_image_steps_equal_transformers_processors(
    tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    """Steps made from a processor's config give its pixels on real photos."""
    from transformers import AutoImageProcessor

    from converters.sources.image_processor import image_steps

    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": kind, **settings})
    )
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    steps, problem = image_steps(tmp_path)
    assert problem is None
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")
    for name in PHOTOS:
        picture = Image.fromarray(getattr(photos, name)())
        theirs = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(apply_steps(picture, steps), theirs, atol=1e-5)


@pytest.mark.parametrize("problem_type", ["multi_label_classification", None])
def test_image_classifier_folders_score_as_the_pipeline(tmp_path: Path, problem_type: str | None) -> None:
    """Labels that do not exclude each other have scores of their own; others share a sum of 1."""
    from transformers import ViTConfig, ViTForImageClassification, pipeline

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32,
        patch_size=8, id2label={0: "cat", 1: "cup", 2: "moon"}, problem_type=problem_type,
        initializer_range=0.5,
    )  # fmt: skip
    folder = tmp_path / "model"
    ViTForImageClassification(config).save_pretrained(folder)
    settings = {"image_processor_type": "ViTImageProcessorPil", "size": {"height": 32, "width": 32}}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    converters.convert(folder, tmp_path / "vit.infer")
    picture = Image.fromarray(photos.coffee())
    theirs = pipeline("image-classification", model=str(folder))(picture, top_k=3)
    with infer.load(tmp_path / "vit.infer") as session:
        ours = session(picture)
    assert [item.label for item in ours] == [item["label"] for item in theirs]
    np.testing.assert_allclose([i.score for i in ours], [i["score"] for i in theirs], atol=1e-5)


def test_unknown_steps_are_named() -> None:
    """A manifest from a later release may name steps this one lacks."""
    with pytest.raises(ArtifactError, match="unknown image step 'sharpen'"):
        apply_steps(Image.new("RGB", (4, 4)), (Step("sharpen"),))


def test_tabular_classification_equals_torch(tmp_path: Path) -> None:
    """Rows as mappings, sequences and CSV text give torch's classes and probabilities."""
    model, example = feed_forward.build()
    path = tmp_path / "ff.infer"
    converters.convert(model, path, example_inputs=example, task=feed_forward.task())
    found = feed_forward.data()
    x = torch.from_numpy((found.test_x - found.mean) / found.scale).float()
    with torch.no_grad():
        truth = model(x)["logits"].softmax(1).numpy()
    with infer.load(path) as session:
        results = session([dict(zip(found.columns, row, strict=True)) for row in found.test_x])
        np.testing.assert_allclose(
            [{r.index: r.score for r in ranked}[1] for ranked in results], truth[:, 1], atol=1e-6
        )
        assert session(list(found.test_x[0])) == results[0]
        line = ",".join(map(str, found.test_x[0]))
        assert session(session.task.parse(line)) == results[0]
        row = dict(zip(found.columns, found.test_x[0], strict=True))
        with pytest.raises(
            InputError, match="row 1, column 'mean area' must be a finite number, but is 'big'"
        ):
            session({**row, "mean area": "big"})
        del row["mean radius"]
        with pytest.raises(InputError, match="row 1 lacks 'mean radius'"):
            session(row)


def test_text_classification_equals_transformers(tmp_path: Path) -> None:
    """A classifier folder converts with its task; scores are those of transformers' own pipeline."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, pipeline

    torch.manual_seed(0)
    folder = tmp_path / "model"
    config = BertConfig(
        vocab_size=30522,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        id2label={0: "bad", 1: "so so", 2: "good"},
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(minilm.folder() / name, folder)
    artifact = converters.convert(folder, tmp_path / "sentiment.infer")
    assert artifact.manifest.task is not None
    assert artifact.manifest.task.name == "text-classification"
    model = BertForSequenceClassification.from_pretrained(folder)
    classify = pipeline(
        "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(folder), top_k=None
    )
    texts = ["What a lovely film.", "Dreadful, and far too long.", "It was fine"]
    with infer.load(artifact.path) as session:
        for ours, theirs in zip(session(texts), classify(texts), strict=True):
            assert [item.label for item in ours] == [item["label"] for item in theirs]
            np.testing.assert_allclose(
                [item.score for item in ours], [item["score"] for item in theirs], atol=1e-5
            )
