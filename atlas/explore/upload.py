"""A file of peaks or a statistic map, from memory: what a reader drops onto the page.

Nothing is written to disk, and no name from outside is opened: a name only tells by its suffix
what the bytes are meant to be.
"""

from __future__ import annotations

import csv
import logging
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import nibabel
import numpy as np

from atlas import space
from atlas.contracts import Study
from atlas.data import clean, repeats
from atlas.data.sources import nimads
from atlas.errors import AtlasError
from atlas.inference import peaks_of_image

Entry = tuple[str, np.ndarray]

MAX_TEXT, MAX_IMAGE = 4 << 20, 32 << 20  # bytes
MAX_VOXELS = 1 << 24  # 256 x 256 x 256; 1 mm templates have 7 million
MAX_ENTRIES, MAX_PEAKS = 50, 5000
_LABELS = ("study_id", "study", "id", "pmid", "label", "contrast")
_SEPARATORS = re.compile(r"[\s,;]+")


def is_image(name: str) -> bool:
    """Whether a file of this name is read as a NIfTI image."""
    return name.lower().endswith((".nii", ".nii.gz"))


def read(name: str, raw: bytes) -> tuple[list[Entry], str]:
    """Read what a file holds.

    Parameters
    ----------
    name : str
        For its suffix: .nii and .nii.gz are images, .json is a NIMADS studyset; other text is
        Sleuth's, a table with columns x, y and z, or three numbers a line.
    raw : bytes
        At most 32 MB of an image, 4 MB of text.

    Returns
    -------
    entries : list of (label, (P, 3) float64 array of MNI mm)
        At most 50, each with at most 5,000 peaks.
    note : str
        What was left out or assumed, "" where nothing was.

    Raises
    ------
    AtlasError
        What cannot be read, and where.
    """
    limit = MAX_IMAGE if is_image(name) else MAX_TEXT
    if len(raw) > limit:
        raise AtlasError(f"the file has more than {limit >> 20} MB")
    if not raw.strip():
        raise AtlasError("the file is empty")
    if is_image(name):
        peaks = peaks_of_image(_image(raw))
        return [("statistic map", peaks)], f"{len(peaks)} local maxima of the map"
    text = _text(raw)
    notes: list[str] = []
    entries = _reader(name, text)(text, notes)
    if not entries:
        raise AtlasError("the file holds no peak")
    entries = _inside(entries, notes)
    if any(len(peaks) > MAX_PEAKS for _, peaks in entries):
        raise AtlasError(f"a study has more than {MAX_PEAKS} peaks")
    return entries, "; ".join(notes)


def _inside(entries: list[Entry], notes: list[str]) -> list[Entry]:
    """Leave out what lies outside the MNI volume, as a dataset does."""
    kept = [(label, peaks[space.load(2).inside(peaks)]) for label, peaks in entries]
    lost = sum(len(peaks) for _, peaks in entries) - sum(len(peaks) for _, peaks in kept)
    if lost:
        notes.append(f"{lost} peaks outside the MNI volume left out")
    kept = [(label, peaks) for label, peaks in kept if len(peaks)]
    if not kept:
        raise AtlasError("no peak lies in the MNI volume; are they in mm?")
    return kept


def _text(raw: bytes) -> str:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AtlasError(f"not UTF-8 text at byte {error.start}; images end in .nii.gz") from None
    if "\0" in text:
        raise AtlasError("the text holds a zero byte")
    return text


def _reader(name: str, text: str) -> Callable[[str, list[str]], list[Entry]]:
    start = text.lstrip()[:1]
    if name.lower().endswith(".json") or start == "{":
        return _from_nimads
    if re.search(r"^\s*//", text, re.M):
        return _from_sleuth
    return _from_rows


# Studysets ---------------------------------------------------------------------------------------


def _from_nimads(text: str, notes: list[str]) -> list[Entry]:
    return _entries(nimads.read_json("the file", text), notes)


def _from_sleuth(text: str, notes: list[str]) -> list[Entry]:
    return _entries(nimads.read_sleuth("the file", text), notes)


def _entries(studies: Sequence[Study], notes: list[str]) -> list[Entry]:
    """Clean studies as a dataset is: repeated peaks go, Talairach is converted."""
    studies = [study for study in studies if len(study.peaks_mm)]
    if len(studies) > MAX_ENTRIES:
        notes.append(f"the first {MAX_ENTRIES} of {len(studies)} studies")
    entries, gone, moved = [], 0, 0
    for study in studies[:MAX_ENTRIES]:
        clean.check_finite(study)
        once, removed = repeats.drop_repeats(study, "study", 0.0)
        in_mni, here = clean.to_mni(once, "label")
        gone, moved = gone + len(removed), moved + here
        entries.append((study.title or study.id, in_mni.peaks_mm))
    if gone:
        notes.append(f"{gone} repeated peaks left out")
    if moved:
        notes.append(f"{moved} peaks converted from Talairach")
    return entries


# Rows --------------------------------------------------------------------------------------------


def _from_rows(text: str, notes: list[str]) -> list[Entry]:
    """Read a table with a header, or three numbers a line."""
    lines = [(k, line.strip()) for k, line in enumerate(text.splitlines(), 1)]
    lines = [(k, line) for k, line in lines if line and not line.startswith("#")]
    header = [cell.lower() for cell in _cells(lines[0][1])] if lines else []
    if {"x", "y", "z"} <= set(header):
        return _from_table(header, lines[1:], notes)
    notes.append("taken as MNI mm")
    rows = [_numbers(_SEPARATORS.split(line.strip(",;")), k) for k, line in lines]
    return [("pasted peaks", np.array(rows, dtype=float).reshape(-1, 3))] if rows else []


def _from_table(header: list[str], lines: list[tuple[int, str]], notes: list[str]) -> list[Entry]:
    label = next((name for name in _LABELS if name in header), None)
    places = [header.index(axis) for axis in "xyz"]
    space = header.index("space") if "space" in header else None
    rows: dict[str, list[list[float]]] = {}
    spaces: dict[str, list[str]] = {}
    for k, line in lines:
        cells = _cells(line)
        if len(cells) < len(header):
            raise AtlasError(f"line {k}: has {len(cells)} columns, the header {len(header)}")
        of = cells[header.index(label)] if label else "table"
        rows.setdefault(of, []).append(_numbers([cells[p] for p in places], k))
        said = cells[space].upper() if space is not None else "MNI"
        spaces.setdefault(of, []).append("TAL" if said.startswith("TAL") else "MNI")
    studies = [Study(of, of, np.array(xyz), tuple(spaces[of])) for of, xyz in rows.items()]
    return _entries(studies, notes)


def _cells(line: str) -> list[str]:
    for mark in ("\t", ",", ";"):
        if mark in line:
            return [cell.strip() for cell in next(csv.reader([line], delimiter=mark))]
    return line.split()


def _numbers(cells: Sequence[str], line: int) -> list[float]:
    try:
        x, y, z = (float(cell.replace("_", "?")) for cell in cells)  # 1_0 is no number here
    except ValueError:
        shown = " ".join(cells)[:60]
        raise AtlasError(f"line {line}: expected three numbers x y z, got {shown!r}") from None
    if not np.isfinite([x, y, z]).all():
        raise AtlasError(f"line {line}: {x:g} {y:g} {z:g} is not finite")
    return [x, y, z]


# Images ------------------------------------------------------------------------------------------


def _image(raw: bytes) -> Any:
    """Read a NIfTI image of bounded size, with finite numbers in it."""
    most = MAX_VOXELS * 8 + 4096
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # it prints what it mends
    try:
        if raw[:2] == b"\x1f\x8b":
            unpack = zlib.decompressobj(31)
            raw = unpack.decompress(raw, most)
            if unpack.unconsumed_tail or not unpack.eof:
                raise AtlasError("the image is cut short, or too large unpacked")
        image = (nibabel.Nifti2Image if _is_nifti2(raw) else nibabel.Nifti1Image).from_bytes(raw)
        shape = tuple(int(n) for n in image.shape)
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        if len(shape) != 3 or min(shape) < 2:
            raise AtlasError(f"expected an image of three dimensions, got shape {image.shape}")
        if np.prod(shape, dtype=float) > MAX_VOXELS:
            raise AtlasError(f"the image has more than {MAX_VOXELS} voxels")
        if image.get_data_dtype().kind not in "iuf":
            raise AtlasError(f"expected real numbers, got {image.get_data_dtype()}")
        data = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
        affine = np.asarray(image.affine, dtype=float)
    except AtlasError:
        raise
    except (
        nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError,
        nibabel.wrapstruct.WrapStructError,
        ValueError, TypeError, KeyError, IndexError, OSError, EOFError, ArithmeticError,
        struct.error, zlib.error,
    ) as error:  # fmt: skip
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise AtlasError(f"not a readable NIfTI image: {why}") from None
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-6:
        raise AtlasError("the image does not say where its voxels lie (its affine is singular)")
    return nibabel.Nifti1Image(data, affine)


def _is_nifti2(raw: bytes) -> bool:
    """Whether the header says that it has the 540 bytes of NIfTI-2."""
    return struct.pack("<i", 540) == raw[:4] or struct.pack(">i", 540) == raw[:4]
