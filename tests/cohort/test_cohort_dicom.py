"""DICOM: the arithmetic of the display against a plain one, compressed files, headers without names, a whole folder."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_toys import run_as_command
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, RLELossless, generate_uid

from cohort.dicom.header import Header, is_dicom, read_header
from cohort.dicom.pixels import read_display
from cohort.errors import TailfillError
from cohort.pixels import read_grey
from cohort.prepare import main
from cohort.stage import read_stamp
from cohort.tables import load_cohort

RNG = np.random.default_rng(0)


def write(file: Path, pixels: np.ndarray, *, bits: int = 12, **tags: object) -> Path:
    """A DX image of unsigned ``pixels`` with a patient whose name and birth date must never be seen."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.1"
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", generate_uid()
    dataset.StudyInstanceUID, dataset.Modality = generate_uid(), "DX"
    dataset.PatientName, dataset.PatientBirthDate, dataset.PatientID = "Secret^Name", "19500101", "MRN-123"
    dataset.PatientSex, dataset.PatientAge, dataset.ViewPosition = "F", "063Y", "PA"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8 * pixels.itemsize, bits, bits - 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    file.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(file, enforce_file_format=True)
    return file


def ramp(top: int = 4095) -> np.ndarray:
    return np.linspace(0, top, 32 * 32).reshape(32, 32).astype(np.uint16)


@pytest.mark.parametrize("bits", [12, 14, 16])
def test_without_a_window_the_stored_bits_are_the_range(tmp_path: Path, bits: int) -> None:
    stored = ramp(2**bits // 2)
    shown = read_display(write(tmp_path / "a.dcm", stored, bits=bits))
    np.testing.assert_allclose(shown, stored / (2**bits - 1) * 255, atol=1e-3)


def test_rescale_then_window_then_inversion(tmp_path: Path) -> None:
    stored, slope, intercept, centre, width = ramp(), 2.0, -1000.0, 2500.0, 3000.0
    tags = {"RescaleSlope": slope, "RescaleIntercept": intercept, "WindowCenter": centre, "WindowWidth": width}
    values = stored * slope + intercept
    wanted = np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1) * 255  # DICOM PS3.3 C.11.2.1.2.1
    shown = read_display(write(tmp_path / "a.dcm", stored, **tags))
    np.testing.assert_allclose(shown, wanted, atol=0.01)
    negative = read_display(write(tmp_path / "b.dcm", stored, PhotometricInterpretation="MONOCHROME1", **tags))
    np.testing.assert_allclose(negative, 255 - wanted, atol=0.01)


def test_a_lookup_table_wins_over_the_window(tmp_path: Path) -> None:
    table = Dataset()
    table.LUTDescriptor, table.LUTData = [4096, 0, 16], (np.arange(4096) ** 2 // 256).astype(np.uint16).tobytes()
    file = write(tmp_path / "a.dcm", ramp(), VOILUTSequence=[table], WindowCenter=2000, WindowWidth=100)
    wanted = (ramp().astype(np.int64) ** 2 // 256) / 65535 * 255
    np.testing.assert_allclose(read_display(file), wanted, atol=0.01)


def test_compressed_files_show_the_same(tmp_path: Path) -> None:
    import pydicom

    file = write(tmp_path / "raw.dcm", ramp())
    raw = read_display(file)
    dataset = pydicom.dcmread(file)
    dataset.compress(RLELossless)
    dataset.save_as(tmp_path / "rle.dcm")
    np.testing.assert_array_equal(read_display(tmp_path / "rle.dcm"), raw)
    for syntax, kind, pixels, options in (
        (JPEG2000Lossless, "JPEG2000", ramp(), {"irreversible": False}),
        (JPEGBaseline8Bit, "JPEG", (ramp() // 16).astype(np.uint8), {"quality": 100}),
    ):
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, format=kind, **({"no_jp2": True} if kind == "JPEG2000" else {}), **options)
        bits = 12 if pixels.itemsize == 2 else 8
        whole = pydicom.dcmread(write(tmp_path / f"{kind}.dcm", pixels, bits=bits if kind == "JPEG" else 16))
        whole.file_meta.TransferSyntaxUID = syntax
        whole.PixelData = encapsulate([buffer.getvalue()])
        whole["PixelData"].is_undefined_length = True
        whole.save_as(tmp_path / f"{kind}.dcm")
        wanted = pixels / (65535 if kind == "JPEG2000" else 255) * 255
        assert np.abs(read_display(tmp_path / f"{kind}.dcm") - wanted).max() <= (0.01 if kind == "JPEG2000" else 2)


def test_a_header_holds_no_name_no_birth_date_and_no_hospital_number(tmp_path: Path) -> None:
    header = read_header(write(tmp_path / "a.dcm", ramp()))
    assert (header.sex, header.age, header.view) == ("F", "063Y", "PA")
    for secret in ("Secret", "Name", "1950", "MRN", "123"):
        assert secret not in f"{header.patient_id} {header.sex} {header.age} {header.view}"
    assert "birth" not in " ".join(Header.__annotations__).lower()
    assert header.patient_id == read_header(write(tmp_path / "b.dcm", ramp())).patient_id


@pytest.mark.parametrize(("tags", "told"), [
    ({"NumberOfFrames": 2}, "frames; wanted: one"), ({"WindowCenter": 100, "WindowWidth": 0}, "cannot be read"),
    ({"RescaleSlope": 0, "RescaleIntercept": 0}, "wanted: more than one"),
])
def test_what_cannot_be_shown_names_the_file(tmp_path: Path, tags: dict[str, object], told: str) -> None:
    file = write(tmp_path / "a.dcm", ramp(), **tags)
    with pytest.raises(TailfillError, match=r"a\.dcm") as caught:
        read_grey(file, 16)
    assert told in str(caught.value)


def test_a_truncated_file_is_an_error_and_a_mark_is_enough(tmp_path: Path) -> None:
    file = write(tmp_path / "1.2.840.113619", ramp())
    assert is_dicom(file)
    assert read_grey(file, 16).shape == (16, 16)
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(TailfillError, match="cannot be read as a DICOM image"):
        read_grey(file, 16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """24 images of 12 patients, labels by path, and one image without a row."""
    lines = ["path,Nodule,Scoliosis"]
    for number in range(24):
        name = f"s{number // 2}/im{number}.{'DCM' if number % 3 else 'dcm'}"
        write(tmp_path / "images" / name, ramp(), PatientID=f"MRN-{number // 2}", PatientAge="061Y",
              BurnedInAnnotation="YES" if number == 4 else "NO")
        lines.append(f"{name},{number % 2},{int(number % 3 == 0)}")
    write(tmp_path / "images" / "more" / "extra.dcm", ramp())
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    return tmp_path


def command(folder: Path, *flags: object) -> list[object]:
    return ["dicom", "--root", folder / "images", "--csv", folder / "labels.csv", "--out", folder / "cohort",
            "--columns.labels", '["Nodule","Scoliosis"]', *flags]


def test_a_folder_becomes_a_cohort_without_a_name(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_as_command(main, *command(folder)) == 0
    assert "1 images say that text is burned into them" in capsys.readouterr().err
    cohort = load_cohort(folder / "cohort")
    frame = cohort.frame
    assert len(frame) == 24
    assert frame["patient_id"].nunique() == 12
    assert set(frame["view"]) == {"PA"}
    assert set(frame["age"]) == {61.0}
    stamp = read_stamp(folder / "cohort") or {}
    assert stamp["counts"]["set_aside"] == 1
    assert stamp["extra"]["burned_in_annotation"] == 1
    for file in (folder / "cohort").iterdir():
        for secret in (b"Secret", b"19500101", b"MRN-"):
            assert secret not in file.read_bytes()
    assert all(path.is_file() for path in cohort.image_paths(frame))


@pytest.mark.parametrize(("without", "kind"), [(0, "given"), (5, "some"), (12, "image")])
def test_images_without_a_patient_stand_for_themselves(folder: Path, without: int, kind: str) -> None:
    for number in range(2 * without):
        file = next((folder / "images" / f"s{number // 2}").glob(f"im{number}.*"))
        write(file, ramp(), PatientID="")
    assert run_as_command(main, *command(folder)) == 0
    assert (read_stamp(folder / "cohort") or {})["extra"]["patient_ids"] == kind
    assert load_cohort(folder / "cohort").frame["patient_id"].nunique() == 12 + without


def test_patients_of_the_label_file_win_and_are_hashed(folder: Path) -> None:
    file = folder / "labels.csv"
    lines = file.read_text().splitlines()
    patients = ["patient_id", *(f"MRN-{number // 3}" for number in range(24))]
    file.write_text("\n".join(f"{line},{patient}" for line, patient in zip(lines, patients, strict=True)) + "\n")
    assert run_as_command(main, *command(folder)) == 0
    frame = load_cohort(folder / "cohort").frame
    assert frame["patient_id"].nunique() == 8
    assert not frame["patient_id"].str.contains("MRN").any()
    headers = {read_header(path).patient_id for path in (folder / "images").glob("s[0-7]/*.*")}
    assert set(frame["patient_id"]) == headers  # the same id has the same hash, wherever it stands


@pytest.mark.parametrize(("kind", "told"), [
    ("no file", "no DICOM image below the root has this path"), ("a CT", "has modality 'CT'"),
    ("climbs", "leaves the root"), ("twice", "is already in row"), ("no pixels", "cannot be read as a DICOM image"),
    ("wrong suffix case", "no DICOM image below the root"),
])
def test_each_bad_row_is_named(folder: Path, capsys: pytest.CaptureFixture[str], kind: str, told: str) -> None:
    labels, first = folder / "labels.csv", folder / "images" / "s0" / "im0.dcm"
    text = labels.read_text()
    if kind == "a CT":
        write(first, ramp(), Modality="CT")
    elif kind == "no pixels":
        first.write_bytes(first.read_bytes()[:900])
    else:
        labels.write_text({"no file": text.replace("s0/im0.dcm", "s0/nothing.dcm"), "twice": text + "s0/im0.dcm,1,1\n",
                           "climbs": text.replace("s0/im0.dcm", "../s0/im0.dcm"),
                           "wrong suffix case": text.replace("s0/im0.dcm", "s0/im0.Dcm")}[kind])
    assert run_as_command(main, *command(folder)) == 2
    assert told in capsys.readouterr().err
    assert not (folder / "cohort").exists()
    assert run_as_command(main, *command(folder, "--on-bad", "skip")) == 0
    assert len(pd.read_parquet(folder / "cohort" / "rejected.parquet")) == 1
