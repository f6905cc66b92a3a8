"""Pictures of every kind are opened as upright RGB, or refused; steps are held to what they can do."""

from __future__ import annotations

import io
import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data as photos

import converters
import infer
from infer.errors import ArtifactError, InputError
from infer.manifest import TaskSpec
from infer.tasks.pixels import Placement, Step, apply_steps, check_steps, open_picture, prepare
from tests.command import infer_command
from tests.tiny import edit_manifest, write

SPEC = {"input": "x", "output": "y", "steps": [{"op": "rescale", "factor": 1.0}], "activation": "none"}
MEAN = """g (float[batch, 3, height, width] x) => (float[batch, 3] y)
    { mean = GlobalAveragePool(x) y = Flatten(mean) }"""


@pytest.fixture(scope="module")
def means(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier whose scores are the mean of each colour."""
    folder = tmp_path_factory.mktemp("means")
    converters.convert(
        write(folder, MEAN), folder / "means.infer", task=TaskSpec("image-classification", SPEC)
    )
    return folder / "means.infer"


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def coffee() -> Image.Image:
    return Image.fromarray(photos.coffee())


def pixels(source: Any) -> np.ndarray[Any, Any]:
    return np.asarray(open_picture(source))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_each_format_is_read_as_pillow_reads_it(kind: str) -> None:
    """Without a warning, whatever filters the caller has set."""
    data = encoded(coffee(), kind)
    np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    """PNG and TIFF files, and pillow images of either byte order: v / 257, rounded."""
    grey = np.linspace(0, 65_535, 200 * 300).reshape(200, 300).astype(np.uint16)
    expected = np.repeat(np.rint(grey / 257).astype(np.uint8)[..., None], 3, axis=2)
    assert len(np.unique(expected)) == 256
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(grey).save(tmp_path / name)
        np.testing.assert_array_equal(pixels(tmp_path / name), expected)
    np.testing.assert_array_equal(pixels(Image.fromarray(grey)), expected)
    big = Image.frombytes("I;16B", (300, 200), grey.astype(">u2").tobytes())
    np.testing.assert_array_equal(pixels(big), expected)


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_pixels_without_a_known_range_are_refused(mode: str) -> None:
    """32-bit integers and floats may mean anything; Lab needs a profile."""
    picture = Image.new(mode, (4, 4))
    for source in (picture, encoded(picture, "TIFF")):
        with pytest.raises(InputError, match=f"pixels of mode '{mode}'.*0–255"):
            open_picture(source)


def test_cmyk_palette_grey_and_one_bit_pictures_become_rgb() -> None:
    """As the original processors see them: by pillow's own conversion."""
    for picture, kind in (
        (coffee().convert("CMYK"), "JPEG"),
        (coffee().convert("P"), "PNG"),
        (coffee().convert("P"), "GIF"),
        (coffee().convert("L"), "JPEG"),
        (coffee().convert("1"), "PNG"),
    ):
        data = encoded(picture, kind)
        np.testing.assert_array_equal(pixels(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
    assert np.abs(pixels(coffee().convert("CMYK")).astype(int) - photos.coffee()).max() <= 1


def test_alpha_is_dropped() -> None:
    """The colours below it stay, also where a palette has transparent entries."""
    transparent = coffee().convert("RGBA")
    transparent.putalpha(0)
    np.testing.assert_array_equal(pixels(encoded(transparent, "PNG")), photos.coffee())
    palette = coffee().convert("P")
    plain = np.asarray(palette.convert("RGB"))
    data = encoded(palette, "PNG", transparency=bytes(range(256)))
    np.testing.assert_array_equal(pixels(data), plain)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_is_taken(kind: str) -> None:
    """Two frames, red and blue: the picture is red."""
    frames = [Image.new("RGB", (8, 6), colour) for colour in ("#f00", "#00f")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == (255, 0, 0)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_a_camera_is_applied(orientation: int) -> None:
    """For each of EXIF's eight, the upright picture comes out."""
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # the camera was held so that viewing rotates back by 270°
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = coffee().transpose(turns[orientation]) if orientation > 1 else coffee()
    np.testing.assert_array_equal(pixels(encoded(stored, "PNG", exif=exif)), photos.coffee())


def test_the_smallest_and_the_longest_pictures_are_read() -> None:
    """1×1, and 20,000 pixels long."""
    assert pixels(encoded(Image.new("RGB", (1, 1), "#123456"), "PNG")).tolist() == [[[0x12, 0x34, 0x56]]]
    assert pixels(encoded(Image.new("RGB", (20_000, 20)), "PNG")).shape == (20, 20_000, 3)
    step = Step("resize", shortest_edge=64, longest_edge=128)
    assert apply_steps(open_picture(np.zeros((1, 20_000), np.uint8)), (step,)).shape == (3, 1, 128)


def test_pictures_of_too_many_pixels_are_refused_with_the_limit() -> None:
    """20,000×20,000 pixels, from an array, an image that claims them, and after resizing."""
    many = "20000×20000 pixels, and at most 178956970 are decoded"
    with pytest.raises(InputError, match=many):
        open_picture(np.broadcast_to(np.uint8(0), (20_000, 20_000)))
    lazy = Image.new("1", (1, 1))
    lazy._size = (20_000, 20_000)
    with pytest.raises(InputError, match=many):
        open_picture(lazy)
    with pytest.raises(InputError, match="would be resized to 12800000×640"):
        apply_steps(Image.new("RGB", (20_000, 1)), (Step("resize", shortest_edge=640),))
    with pytest.raises(InputError, match="given to the model with 12000×6000 pixels"):
        apply_steps(Image.new("RGB", (12_000, 6_000)), ())


def test_large_pictures_are_opened_without_a_warning_in_every_thread() -> None:
    """pillow warns of 90 million pixels; infer has a limit of its own, and changes no global filter."""
    data = encoded(Image.new("1", (10_000, 9_000)), "PNG")
    filters = list(warnings.filters)
    found: list[object] = []

    def work() -> None:
        try:
            found.append(open_picture(data).size)
        except Exception as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(10_000, 9_000)] * 2
    assert list(warnings.filters) == filters


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP"])
def test_a_truncated_file_is_refused_wherever_it_is_cut(kind: str) -> None:
    """A picture with grey bars in the place of what is missing would be answered, wrongly."""
    data = encoded(coffee().resize((60, 40)), kind)
    for length in (0, 3, 10, 40, len(data) // 2, len(data) - 200):
        with pytest.raises(InputError, match="cannot be read as an image"):
            open_picture(data[:length])


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0, 3), (5, 0, 3)])
def test_pictures_without_pixels_are_refused(shape: tuple[int, ...]) -> None:
    """Arrays and pillow images."""
    with pytest.raises(InputError, match="an image needs one at least"):
        open_picture(np.zeros(shape, np.uint8))
    with pytest.raises(InputError, match="an image needs one at least"):
        open_picture(Image.new("RGB", (shape[1], shape[0])))


def test_arrays_that_are_no_pictures_are_refused() -> None:
    """Masked, of floats, with channels first, of four dimensions, big-endian 16-bit."""
    with pytest.raises(InputError, match="must not be masked"):
        open_picture(np.ma.masked_less(photos.coffee(), 9))
    for array in (
        photos.coffee() / 255,
        photos.coffee().transpose(2, 0, 1),
        photos.coffee()[None],
        photos.coffee().astype(">u2"),
    ):
        with pytest.raises(InputError, match=r"must be uint8 with shape \(H, W, 3\) or \(H, W\)"):
            open_picture(array)
    with pytest.raises(InputError, match="but a float came"):
        open_picture(0.5)


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    """A pipe would be waited for, and a device read without end."""
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", Path("/dev/zero"), tmp_path):
        with pytest.raises(InputError, match="must be a regular file"):
            open_picture(path)
    with pytest.raises(InputError, match="there is no image"):
        open_picture(tmp_path / "none.png")
    with pytest.raises(InputError, match="cannot be read"):
        open_picture("a\0b.png")


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PostScript, which pillow hands to ghostscript, is refused, also under another name."""
    ran = tmp_path / "ran"
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {ran}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "photo.jpg").write_bytes(text)
    for source in (text, tmp_path / "photo.jpg"):
        with pytest.raises(InputError, match="not JPEG, PNG, WebP, BMP, TIFF or GIF"):
            open_picture(source)
    assert not ran.exists()


def test_a_bad_picture_in_a_list_is_named_by_its_place(means: Path) -> None:
    """Unreadable ones, and ones that do not fit the steps."""
    with infer.load(means) as session:
        with pytest.raises(InputError, match="picture 2: the given bytes cannot be read"):
            session([photos.coffee(), coffee(), b"hello"])
        (result,) = session([photos.coffee()])
        np.testing.assert_allclose(
            [item.score for item in sorted(result, key=lambda item: item.index)],
            photos.coffee().mean(axis=(0, 1)),
            rtol=1e-5,
        )


FILES = {
    "no.jpg": (None, "there is no image 'no.jpg'"),
    "empty.jpg": (b"", "'empty.jpg' cannot be read as an image: it is not JPEG, PNG"),
    "text.jpg": (b"hello", "'text.jpg' cannot be read as an image"),
    "cut.png": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "'cut.png' cannot be read as an image"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_picture_is_an_error_of_the_command(
    means: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Exit code 1, one sentence, nothing on stdout."""
    monkeypatch.chdir(tmp_path)
    content, words = FILES[name]
    if content is not None:
        (tmp_path / name).write_bytes(content)
    outcome = infer_command("run", means, name)
    assert (outcome.code, outcome.out) == (1, "")
    assert words in outcome.err
    assert "Traceback" not in outcome.err


HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "shortest_edge 0": ({"op": "resize", "shortest_edge": 0}, "shortest_edge 0; use 1 to 16384"),
    "negative": ({"op": "resize", "height": -4, "width": 4}, "height -4; use 1 to 16384"),
    "no size": ({"op": "resize"}, "needs height and width, or shortest_edge"),
    "two sizes": ({"op": "resize", "height": 4, "width": 4, "shortest_edge": 4}, "needs height and width"),
    "half a size": ({"op": "center_crop", "height": 4}, "needs both height and width"),
    "no crop": ({"op": "center_crop"}, "needs height and width"),
    "huge crop": ({"op": "center_crop", "height": 100_000, "width": 100_000}, "100000; use 1 to 16384"),
    "large crop": ({"op": "center_crop", "height": 16_384, "width": 16_384}, "at most 67108864"),
    "no pad": ({"op": "pad"}, "needs height and width, or multiple_of"),
    "white pad": ({"op": "pad", "multiple_of": 8, "fill": 256.0}, "use 0 to 255"),
    "resample": ({"op": "resize", "shortest_edge": 4, "resample": "best"}, "unknown resample 'best'"),
    "no factor": ({"op": "rescale"}, "needs a factor"),
    "large factor": ({"op": "rescale", "factor": 1e300}, "float32"),
    "std 0": ({"op": "normalize", "mean": [0.0] * 3, "std": [1.0, 0.0, 1.0]}, "not 0, in std"),
    "tiny std": ({"op": "normalize", "mean": [0.0] * 3, "std": [1e-300] * 3}, "not 0, in std"),
    "two means": ({"op": "normalize", "mean": [0.0] * 2, "std": [1.0] * 2}, "three numbers in mean"),
    "other field": ({"op": "rescale", "factor": 1.0, "height": 4}, "'rescale' does not take 'height'"),
    "unknown": ({"op": "sharpen"}, "unknown image step 'sharpen'"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_steps_that_cannot_work_are_refused_when_the_task_is_loaded(
    means: Path, tmp_path: Path, case: str
) -> None:
    """Before any picture is opened, as an `ArtifactError`."""
    step, words = HOSTILE[case]
    with (
        pytest.raises(ArtifactError, match=words),
        infer.load(_changed(means, tmp_path, steps=[step])) as s,
    ):
        _ = s.task


SPECS: dict[str, tuple[dict[str, Any], str]] = {
    "input": ({"input": "pixels"}, "names the input 'pixels', which the graph lacks; it has x"),
    "output": ({"output": "logits"}, "names the output 'logits', which the graph lacks; it has y"),
    "labels": ({"labels": ["a", "b"]}, "2 labels, but the model gives 3 classes"),
    "activation": ({"activation": "relu"}, "unknown activation 'relu'; use one of softmax"),
    "top_k": ({"top_k": 0}, "top_k 0; it must be 1 or more"),
    "order": (
        {"steps": [SPEC["steps"][0], {"op": "resize", "shortest_edge": 4}]},
        "must come before rescale",
    ),  # type: ignore[index]
    "many": ({"steps": [SPEC["steps"][0]] * 17}, "at most 16"),  # type: ignore[index]
}


@pytest.mark.parametrize("case", SPECS)
def test_a_spec_that_does_not_fit_the_model_is_refused_when_the_task_is_loaded(
    means: Path, tmp_path: Path, case: str
) -> None:
    """Tensors the model lacks, a wrong number of labels, unknown activations."""
    changes, words = SPECS[case]
    with pytest.raises(ArtifactError, match=words), infer.load(_changed(means, tmp_path, **changes)) as s:
        _ = s.task


def _changed(artifact: Path, folder: Path, **changes: Any) -> Path:
    import shutil

    shutil.copytree(artifact, folder / "changed.infer")
    edit_manifest(folder / "changed.infer", lambda data: data["task"]["spec"].update(changes))
    return folder / "changed.infer"


def test_a_size_the_model_does_not_take_is_refused_when_the_task_is_loaded(tmp_path: Path) -> None:
    """Steps that make 8×8 of every picture, for a graph of 16×16."""
    graph = write(tmp_path, MEAN.replace("height, width", "16, 16"))
    task = TaskSpec("image-classification", {**SPEC, "steps": [{"op": "resize", "height": 8, "width": 8}]})
    with pytest.raises(ArtifactError, match=r"make \(8, 8\) of every picture"):
        converters.convert(graph, tmp_path / "fixed.infer", task=task)
    assert not (tmp_path / "fixed.infer").exists()


@pytest.mark.parametrize("centered", [False, True])
def test_padding_keeps_the_picture_and_says_where_it_lies(centered: bool) -> None:
    """To a size before rescale and to a multiple after it; fill is in the numbers of its place."""
    picture = Image.new("RGB", (10, 7), "white")
    before = Step("pad", height=12, width=16, fill=51.0, centered=centered)
    after = Step("pad", multiple_of=8, fill=-1.0, centered=centered)
    found = prepare(picture, (before, Step("rescale", factor=1 / 255), after))
    expected = np.full((16, 16), -1.0)
    top = 2 if centered else 0
    expected[top : top + 12] = 0.2
    left, inside = (3, top + 2) if centered else (0, 0)
    expected[inside : inside + 7, left : left + 10] = 1.0
    np.testing.assert_allclose(found.pixels, np.broadcast_to(expected, (3, 16, 16)), atol=1e-6)
    assert found.placement == Placement((10, 7), (16, 16), left, inside, 10, 7)
    with pytest.raises(InputError, match="is 10×7 pixels after resizing, but is padded to 8×8"):
        prepare(picture, (Step("pad", height=8, width=8),))


@pytest.mark.parametrize("multiple_of", [None, 16])
def test_two_edges_are_resized_to_as_transformers_does(multiple_of: int | None) -> None:
    """Sizes of 200 pictures equal those of DETR's rule and of YOLOS' multiples of 16, which leaves nothing
    of narrow pictures where infer leaves one multiple."""
    from transformers.image_transforms import get_size_with_aspect_ratio
    from transformers.models.yolos.image_processing_pil_yolos import get_size_with_aspect_ratio_yolos

    rng = np.random.default_rng(0)
    for short, long in ((800, 1333), (64, 96), (48, 48), (100, 171)):
        step = Step("resize", shortest_edge=short, longest_edge=long, multiple_of=multiple_of)
        check_steps((step,))
        for width, height in [*rng.integers(20, 400, (48, 2)).tolist(), (short, 90), (90, short)]:
            rule = get_size_with_aspect_ratio_yolos if multiple_of else get_size_with_aspect_ratio
            found = prepare(Image.new("RGB", (width, height)), (step,))
            expected = tuple(max(n, multiple_of or 1) for n in rule((height, width), short, long))
            assert found.pixels.shape[1:] == expected, (width, height)
            assert (found.placement.width, found.placement.height) == pytest.approx(found.placement.fed)
