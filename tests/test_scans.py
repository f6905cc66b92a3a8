"""Scans are read as the formats say, normalized as data says, and answered in windows of three axes."""

from __future__ import annotations

import contextlib
import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    RLELossless,
    generate_uid,
)

from infer.errors import ArtifactError, InputError
from infer.tasks.intensities import IntensityStep, ScanSpec, prepare
from infer.tasks.scans import Scan, open_scan
from tests.test_segmentation import task


def slice_file(path: Path, stored: np.ndarray, **tags: Any) -> Path:
    """A CT slice as scanners write it; `tags` replace or add elements."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    found = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    found.SOPClassUID, found.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    found.SeriesInstanceUID = "1.2.3"
    found.Rows, found.Columns = stored.shape[-2:]
    found.SamplesPerPixel, found.PhotometricInterpretation = 1, "MONOCHROME2"
    found.BitsAllocated, found.BitsStored, found.HighBit = 16, 12, 11
    found.PixelRepresentation = int(stored.dtype.kind == "i")
    found.PixelSpacing = [0.7, 0.5]
    found.PixelData = stored.tobytes()
    for name, value in tags.items():
        setattr(found, name, value)
    pydicom.dcmwrite(path, found, enforce_file_format=True)
    return path


def stored(seed: int, shape: tuple[int, ...] = (6, 5)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4096, shape, dtype=np.uint16)


def test_dicom_values_are_in_the_modalitys_unit(tmp_path: Path) -> None:
    """stored · slope + intercept, in Hounsfield units for a CT; the spacing is that of rows and columns."""
    values = stored(0)
    scan = open_scan(slice_file(tmp_path / "a.dcm", values, RescaleSlope=2, RescaleIntercept=-1024), 2)
    np.testing.assert_array_equal(scan.array, values.astype(np.float32) * 2 - 1024)
    assert scan.spacing_mm == (0.7, 0.5)


def test_monochrome1_is_turned_over(tmp_path: Path) -> None:
    """Where low means white, 12 stored bits become 4095 - value before the rescaling;
    signed ones become -1 - value."""
    values = stored(0)
    tags = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": 1}
    scan = open_scan(slice_file(tmp_path / "a.dcm", values, **tags), 2)
    np.testing.assert_array_equal(scan.array, (4095 - values.astype(np.float32)) * 2 + 1)
    signed = values.astype(np.int16) - 2048
    scan = open_scan(slice_file(tmp_path / "b.dcm", signed, PhotometricInterpretation="MONOCHROME1"), 2)
    np.testing.assert_array_equal(scan.array, -1 - signed.astype(np.float32))


def series(folder: Path, at_mm: list[float], **tags: Any) -> np.ndarray:
    """Slices at these places, in files named in another order; the volume by place."""
    folder.mkdir()
    slices = {mm: stored(i) for i, mm in enumerate(at_mm)}
    for i, (mm, values) in enumerate(slices.items()):
        slice_file(
            folder / f"{(7 * i) % 10}.dcm",
            values,
            ImagePositionPatient=[10.0, -5.0, mm],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0],
            InstanceNumber=len(at_mm) - i,
            **tags,
        )
    return np.stack([slices[mm] for mm in sorted(slices)])


def test_a_dicom_series_is_ordered_by_position(tmp_path: Path) -> None:
    """Neither file names nor instance numbers, but places along the normal order slices, and space them."""
    volume = series(tmp_path / "ct", [2.5, 0.0, 7.5, 5.0])
    scan = open_scan(tmp_path / "ct", 3)
    np.testing.assert_array_equal(scan.array, volume)
    assert scan.spacing_mm == (2.5, 0.7, 0.5)


def test_a_series_with_a_gap_or_a_stranger_is_refused(tmp_path: Path) -> None:
    """A missing slice, one there twice, and a slice of another series are named, not stacked."""
    series(tmp_path / "gap", [0.0, 2.5, 7.5, 10.0])
    with pytest.raises(InputError, match=r"lie 2\.5 to 5 mm apart: some are missing"):
        open_scan(tmp_path / "gap", 3)
    series(tmp_path / "mixed", [0.0, 2.5])
    slice_file(tmp_path / "mixed" / "z.dcm", stored(9), SeriesInstanceUID="1.2.4")
    with pytest.raises(InputError, match=r"not one series: their SeriesInstanceUID is 1\.2\.3, 1\.2\.4"):
        open_scan(tmp_path / "mixed", 3)
    (tmp_path / "none").mkdir()
    with pytest.raises(InputError, match="holds no DICOM files"):
        open_scan(tmp_path / "none", 3)


def test_frames_and_compression_of_dicom(tmp_path: Path) -> None:
    """A file of several frames is a volume; RLE is decoded, and a colour picture refused."""
    volume = stored(0, (4, 6, 5))
    path = slice_file(tmp_path / "a.dcm", volume, NumberOfFrames=4, SpacingBetweenSlices=3)
    scan = open_scan(path, 3)
    np.testing.assert_array_equal(scan.array, volume)
    assert scan.spacing_mm == (3.0, 0.7, 0.5)
    found = pydicom.dcmread(path)
    found.compress(RLELossless)
    found.save_as(tmp_path / "b.dcm")
    np.testing.assert_array_equal(open_scan(tmp_path / "b.dcm", 3).array, volume)
    rgb = slice_file(tmp_path / "c.dcm", stored(0), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    with pytest.raises(InputError, match="has 3 channels, but a scan must have one"):
        open_scan(rgb, 2)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti_is_read_as_nibabel_says(tmp_path: Path, name: str) -> None:
    """int16 with slope and intercept, anisotropic spacing in micrometres, a fourth axis of one."""
    values = np.random.default_rng(0).integers(-900, 900, (5, 4, 3, 1), dtype=np.int16)
    image = nibabel.Nifti1Image(values, np.diag([500.0, 500.0, 2500.0, 1.0]))
    image.header.set_slope_inter(0.5, 10)
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / name)
    scan = open_scan(tmp_path / name, 3)
    raw = np.asarray(nibabel.load(tmp_path / name).dataobj)[..., 0]
    np.testing.assert_allclose(scan.array, raw, rtol=1e-6)
    assert len(np.unique(raw)) > 30
    assert scan.spacing_mm == (0.5, 0.5, 2.5)


def test_tiff_stacks_keep_16_bits_and_imagejs_spacing(tmp_path: Path) -> None:
    """Pages are slices; ImageJ's micrometres become mm; a screen's resolution does not."""
    values = stored(0, (4, 6, 5))
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        imagej=True,
        resolution=(2.0, 4.0),
        metadata={"spacing": 3.0, "unit": "um"},
    )
    scan = open_scan(tmp_path / "a.tif", 3)
    np.testing.assert_array_equal(scan.array, values)
    np.testing.assert_allclose(scan.spacing_mm, (3e-3, 0.25e-3, 0.5e-3))
    tifffile.imwrite(tmp_path / "b.tiff", values[0], resolution=(72, 72), resolutionunit="INCH")
    scan = open_scan(tmp_path / "b.tiff", 2)
    np.testing.assert_array_equal(scan.array, values[0])
    assert scan.spacing_mm == ()


def test_grey_png_and_npz_keep_their_values(tmp_path: Path) -> None:
    """16-bit PNG, and an array with its spacing."""
    values = stored(0)
    Image.fromarray(values * 16).save(tmp_path / "a.png")
    np.testing.assert_array_equal(open_scan(tmp_path / "a.png", 2).array, values * 16)
    np.savez(tmp_path / "a.npz", array=values, spacing_mm=[2.0, 1.0])
    scan = open_scan(str(tmp_path / "a.npz"), 2)
    np.testing.assert_array_equal(scan.array, values)
    assert scan.spacing_mm == (2.0, 1.0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (np.zeros((3, 4, 5)), r"has shape \[3, 4, 5\], but the model takes scans of 2 axes"),
        (np.zeros((0, 4)), r"has shape \[0, 4\]"),
        (np.zeros((4, 4), complex), "must hold real numbers, but holds complex128"),
        (np.full((4, 4), np.nan), "voxels that are not finite"),
        (np.full((4, 4), 1e300), "voxels that are not finite"),
        (Scan(np.zeros((4, 4)), (1.0,)), r"2 positive spacings in mm, but has \[1.0\]"),
        (Scan(np.zeros((4, 4)), (1.0, 0.0)), "2 positive spacings in mm"),
        (np.broadcast_to(np.float32(0), (2**15, 2**15)), "32768 × 32768 voxels, more than"),
        (7, "a scan must be a path, an array or a Scan, but a int came"),
        ("nowhere.nii", "there is no scan 'nowhere.nii'"),
        (__file__, "is no scan that can be read; expected a file that ends with .nii"),
    ],
)
def test_what_is_no_scan_is_refused(source: Any, said: str) -> None:
    """Wrong axes, complex, infinite, absurdly large, of an unknown kind: each says what and why."""
    with pytest.raises(InputError, match=said):
        open_scan(source, 2)


def test_colours_are_refused(tmp_path: Path) -> None:
    """A colour picture is not made grey by a guess."""
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="has the mode RGB, but one channel is expected"):
        open_scan(tmp_path / "a.png", 2)
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 4, 3), np.uint8), photometric="rgb")
    with pytest.raises(InputError, match="must have pages of one channel"):
        open_scan(tmp_path / "a.tif", 2)


def test_scans_that_claim_gigabytes_are_refused_by_their_header(tmp_path: Path) -> None:
    """A few hundred bytes that claim 2^40 voxels are refused before anything is decoded."""
    header = nibabel.Nifti1Header()
    header.set_data_shape((16384, 16384, 4096))
    header["magic"], header["vox_offset"] = b"n+1\0", 352
    with gzip.open(tmp_path / "a.nii.gz", "wb") as file:
        file.write(header.binaryblock + b"\0" * 400)
    with pytest.raises(InputError, match="16384 × 16384 × 4096 voxels, more than"):
        open_scan(tmp_path / "a.nii.gz", 3)
    path = slice_file(tmp_path / "a.dcm", stored(0), Rows=65000, Columns=65000)
    with pytest.raises(InputError, match="1 × 65000 × 65000 voxels, more than"):
        open_scan(path, 2)


def test_a_tiff_cannot_name_other_files(tmp_path: Path) -> None:
    """OME metadata may say that slices are in other files; they are not looked for."""
    values = stored(0, (4, 6, 5))
    for i in range(2):
        tifffile.imwrite(tmp_path / f"part{i}.tif", values[2 * i : 2 * i + 2])
    planes = "".join(
        f'<TiffData FirstZ="{2 * i}" IFD="0" PlaneCount="2"><UUID FileName="part{i}.tif">'
        f"urn:uuid:{i}</UUID></TiffData>"
        for i in range(2)
    )
    ome = (
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0">'
        '<Pixels ID="Pixels:0" DimensionOrder="XYZCT" Type="uint16"'
        ' SizeX="5" SizeY="6" SizeZ="4" SizeC="1" SizeT="1">'
        f"{planes}</Pixels></Image></OME>"
    )
    tifffile.imwrite(tmp_path / "part0.tif", values[:2], description=ome, metadata=None)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "part0.tif"), values)  # the library looks
    np.testing.assert_array_equal(open_scan(tmp_path / "part0.tif", 3).array, values[:2])


def test_deflated_dicom_is_refused(tmp_path: Path) -> None:
    """A header that is compressed may inflate without end, so it is not inflated."""
    found = pydicom.dcmread(slice_file(tmp_path / "a.dcm", stored(0)))
    found.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    found.save_as(tmp_path / "b.dcm")
    with pytest.raises(InputError, match="is deflated as a whole"):
        open_scan(tmp_path / "b.dcm", 2)


def whole_files(folder: Path) -> list[Path]:
    volume = stored(0, (4, 6, 5))
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), folder / "a.nii.gz")
    nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), folder / "a.nii")
    tifffile.imwrite(folder / "a.tif", volume, compression="zlib")
    slice_file(folder / "a.dcm", volume, NumberOfFrames=4)
    Image.fromarray(volume[0]).save(folder / "a.png")
    return [folder / name for name in ("a.nii.gz", "a.nii", "a.tif", "a.dcm", "a.png")]


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
@pytest.mark.filterwarnings("ignore")  # of the readers, about what is damaged
def test_damaged_scans_give_an_input_error_or_a_scan(tmp_path: Path, data: st.DataObject) -> None:
    """Files that are cut, or with bytes changed, never raise anything but an `InputError`."""
    whole = [f for f in tmp_path.iterdir() if f.name.startswith("a.")] or whole_files(tmp_path)
    path = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(0, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    bad = tmp_path / f"bad{path.name[1:]}"
    bad.write_bytes(content)
    with contextlib.suppress(InputError):
        assert np.isfinite(open_scan(bad, 2 if path.suffix == ".png" else 3).array).all()


def test_intensity_steps_are_their_formulas() -> None:
    """A window of 40 ± 200, percentiles, z-scores of the scan and of given numbers, in closed form."""
    values = np.random.default_rng(0).normal(100, 300, (7, 9)).astype(np.float32)

    def after(*steps: IntensityStep) -> np.ndarray:
        return prepare(Scan(values), ScanSpec(steps))[0]

    np.testing.assert_allclose(
        after(IntensityStep("window", center=40, width=400)), np.clip((values + 160) / 400, 0, 1), atol=1e-6
    )
    low, high = np.sort(values.ravel())[[0, -1]]
    np.testing.assert_allclose(
        after(IntensityStep("percentile", low=0, high=100)), (values - low) / (high - low), atol=1e-6
    )
    scored = after(IntensityStep("z_score"))
    assert abs(float(scored.mean())) < 1e-6
    assert abs(float(scored.std()) - 1) < 1e-6
    np.testing.assert_allclose(
        after(IntensityStep("clip", low=0, high=200), IntensityStep("z_score", mean=100, std=50)),
        (np.clip(values, 0, 200) - 100) / 50,
        atol=1e-6,
    )
    even = prepare(Scan(np.full((3, 3), 7.0)), ScanSpec((IntensityStep("z_score"),)))
    np.testing.assert_array_equal(even, 0.0)


@pytest.mark.parametrize(
    ("scan", "said"),
    [
        ({"steps": [{"op": "sharpen"}]}, "unknown intensity step 'sharpen'"),
        ({"steps": [{"op": "window", "center": 1.0}]}, "lacks a number"),
        ({"steps": [{"op": "window", "center": 1.0, "width": 0.0}]}, "out of range"),
        ({"steps": [{"op": "percentile", "low": 50.0, "high": 1.0}]}, "out of range"),
        ({"steps": [{"op": "percentile", "low": -1.0, "high": 50.0}]}, "out of range"),
        ({"steps": [{"op": "z_score", "mean": 1.0}]}, "lacks a number"),
        ({"steps": [{"op": "z_score", "mean": 1.0, "std": 0.0}]}, "out of range"),
        ({"spacing_mm": [1.0]}, "scan.spacing_mm must be 3 positive numbers"),
    ],
)
def test_scan_specs_that_cannot_be_followed_are_refused(scan: dict[str, Any], said: str) -> None:
    """A manifest from elsewhere is an `ArtifactError` when its task is loaded."""
    with pytest.raises(ArtifactError, match=said):
        task(lambda x: x, {"scan": scan, "mode": "sigmoid"}, axes=3)


def ball(shape: tuple[int, ...], radius_mm: float, spacing_mm: tuple[float, ...]) -> np.ndarray:
    """A ball of 1000 in the middle of -1000."""
    axes = [(np.arange(n) - (n - 1) / 2) * mm for n, mm in zip(shape, spacing_mm, strict=True)]
    squared = sum(x**2 for x in np.meshgrid(*axes, indexing="ij"))
    return np.where(squared <= radius_mm**2, 1000, -1000).astype(np.int16)


def bright(x: np.ndarray) -> np.ndarray:
    return (x - 0.5) * 20


def test_the_volume_of_a_ball_in_mm3() -> None:
    """Windows over a volume of anisotropic voxels, resampled and back: within 3 % of 4/3 π r³, and the mask
    has the scan's own grid."""
    spacing = (2.5, 0.8, 0.8)
    volume = ball((32, 80, 90), 25.0, spacing)
    spec = {
        "mode": "sigmoid",
        "labels": ["ball"],
        "scan": {"steps": [{"op": "window", "center": 0.0, "width": 400.0}], "spacing_mm": [1.6, 1.6, 1.6]},
        "windows": {"size": [24, 24, 24], "overlap": 0.5},
    }
    segment = task(bright, spec, axes=3)
    result = segment(Scan(volume, spacing))
    assert result.mask.shape == volume.shape
    assert np.mean(result.mask == (volume > 0)) > 0.99
    assert result.areas[0].size == pytest.approx(4 / 3 * np.pi * 25.0**3, rel=0.03)
    assert segment.describe(result).endswith("mm³  ball")
    with pytest.raises(InputError, match="this one does not say its own"):
        segment(volume)


def test_windows_over_a_volume_change_nothing_for_a_model_of_single_voxels() -> None:
    """Three axes, odd sizes, a window larger than the volume along one of them."""
    volume = np.random.default_rng(0).normal(size=(9, 21, 34)).astype(np.float32)
    spec = {"mode": "sigmoid", "scan": {}, "keep_scores": True}
    whole = task(bright, spec, axes=3)(volume)
    tiled = task(bright, {**spec, "windows": {"size": [16, 8, 12]}}, axes=3)(volume)
    np.testing.assert_allclose(tiled.scores, whole.scores, atol=1e-6)
    np.testing.assert_array_equal(whole.mask, volume > 0.5)
