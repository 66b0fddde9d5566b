"""Files of peaks and statistic maps from memory: what they hold, and what is refused."""

from __future__ import annotations

import gzip
import json
import os

import numpy as np
import pytest
from nibabel import Nifti1Image, Nifti2Image

from atlas import space
from atlas.errors import AtlasError
from atlas.explore import upload

SOAK = os.environ.get("ATLAS_SOAK") == "1"
SLEUTH = (
    b"//Reference=MNI\n//Fox, 2000: a\n//Subjects=12\n10 20 30\n-4 5 6\n\n//Lee, 2001: b\n1 2 3\n"
)
TALAIRACH = SLEUTH.replace(b"MNI", b"Talairach")
NIMADS = json.dumps(
    {
        "studies": [
            {
                "id": "s1",
                "name": "First",
                "analyses": [{"id": "a", "points": [{"coordinates": [1, 2, 3], "space": "MNI"}]}],
            }
        ]
    }
).encode()
TABLE = b"id\tx\ty\tz\tt\na\t1\t2\t3\t9\na\t4\t5\t6\t9\nb\t-1\t0\t60\t9\n"


def image(kind=Nifti1Image, shape=(46, 55, 46), dtype=np.float32) -> bytes:
    volume = np.zeros(shape, dtype)
    volume[10, 30, 20] = volume[30, 30, 20] = 9
    return kind(volume, space.load(4).affine).to_bytes()


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("f.txt", SLEUTH, {"Fox, 2000": [[10, 20, 30], [-4, 5, 6]], "Lee, 2001": [[1, 2, 3]]}),
        ("", SLEUTH, {"Fox, 2000": [[10, 20, 30], [-4, 5, 6]], "Lee, 2001": [[1, 2, 3]]}),
        ("s.json", NIMADS, {"First": [[1, 2, 3]]}),
        ("pasted", NIMADS, {"First": [[1, 2, 3]]}),
        ("t.tsv", TABLE, {"a": [[1, 2, 3], [4, 5, 6]], "b": [[-1, 0, 60]]}),
        ("t.csv", TABLE.replace(b"\t", b","), {"a": [[1, 2, 3], [4, 5, 6]], "b": [[-1, 0, 60]]}),
        ("t.csv", TABLE.replace(b"\t", b";"), {"a": [[1, 2, 3], [4, 5, 6]], "b": [[-1, 0, 60]]}),
        ("t.csv", b"\xef\xbb\xbfX,Y,Z\r\n1,2,3\r\n", {"table": [[1, 2, 3]]}),
        ("", b"1 2 3\n4, 5, 6\n\n# note\n-1;0;60\n",
         {"pasted peaks": [[1, 2, 3], [4, 5, 6], [-1, 0, 60]]}),
        ("", b"1\t2\t-3.5", {"pasted peaks": [[1, 2, -3.5]]}),
    ],
)  # fmt: skip
def test_what_a_text_holds(name: str, raw: bytes, expected: dict) -> None:
    entries, _ = upload.read(name, raw)
    assert {label: peaks.tolist() for label, peaks in entries} == expected


@pytest.mark.parametrize("kind", [Nifti1Image, Nifti2Image])
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_map_enters_through_its_maxima(kind, pack) -> None:
    suffix = "x.nii" if pack is bytes else "x.NII.gz"
    entries, note = upload.read(suffix, pack(image(kind)))
    ((label, peaks),) = entries
    centres = space.load(4).affine[:3, 3] + 4 * np.array([[30, 30, 20], [10, 30, 20]])
    np.testing.assert_allclose(peaks, centres)
    assert (label, note) == ("statistic map", "2 local maxima of the map")


def test_talairach_is_converted_and_repeats_go() -> None:
    entries, note = upload.read("f.txt", TALAIRACH + b"1 2 3\n")
    assert len(entries[1][1]) == 1
    assert np.abs(entries[0][1] - [[10, 20, 30], [-4, 5, 6]]).max() > 0.5
    assert note == "1 repeated peaks left out; 3 peaks converted from Talairach"


def test_of_many_studies_the_first_fifty_are_taken() -> None:
    table = b"id,x,y,z\n" + b"".join(b"s%d,1,2,%d\n" % (k, k % 50) for k in range(60))
    entries, note = upload.read("t.csv", table)
    assert [label for label, _ in entries] == [f"s{k}" for k in range(50)]
    assert note == "the first 50 of 60 studies"


def test_what_lies_outside_the_volume_goes() -> None:
    entries, note = upload.read("", b"1 2 3\n1 2 4e40\n1 2 -300\n")
    assert entries[0][1].tolist() == [[1, 2, 3]]
    assert note == "taken as MNI mm; 2 peaks outside the MNI volume left out"


def test_a_table_with_talairach_rows() -> None:
    _, note = upload.read("t.csv", b"x,y,z,space\n1,2,3,MNI\n10,20,30,Talairach\n")
    assert note == "1 peaks converted from Talairach"


def cut(raw: bytes, share: float) -> bytes:
    return raw[: int(len(raw) * share)]


def four_dimensions() -> bytes:
    return Nifti1Image(np.ones((5, 5, 5, 2), np.float32), np.eye(4)).to_bytes()


def bomb() -> bytes:
    """Hundreds of MB of zeros in a few hundred kB."""
    return gzip.compress(image()[:352] + bytes(200 << 20), 9)


@pytest.mark.parametrize(
    ("name", "raw", "line"),
    [
        ("", b"", "the file is empty"),
        ("", b" \n ", "the file is empty"),
        ("", b"# nothing\n", "holds no peak"),
        ("", b"1 2\n", "line 1: expected three numbers x y z, got '1 2'"),
        ("", b"1 2 3\n1 2 three\n", "line 2: expected three numbers"),
        ("", b"1 2 nan\n", "line 1: 1 2 nan is not finite"),
        ("", b"1 2 1_0\n", "line 1: expected three numbers"),
        ("", b"\xff\xfe1", "not UTF-8 text at byte 0"),
        ("", b"1 2 3\0", "zero byte"),
        ("", b"1 2 4e40\n9 9 900\n", "no peak lies in the MNI volume"),
        ("t.csv", b"x,y,z\n1,2\n", "line 2: has 2 columns, the header 3"),
        ("f.txt", b"//Fox\n1 2 3\n", "//Reference=MNI or //Reference=Talairach"),
        ("s.json", b"{", "not JSON"),
        ("s.json", b'{"studies": 3}', "no list of studies"),
        ("s.json", b"[" * 100_000, "not JSON"),
        ("x.nii", b"no image at all", "not a readable NIfTI image"),
        ("x.nii.gz", cut(gzip.compress(image()), 0.5), "cut short"),
        ("x.nii.gz", b"\x1f\x8b garbage", "not a readable NIfTI image"),
        ("x.nii", cut(image(), 0.5), "not a readable NIfTI image"),
        ("x.nii", four_dimensions(), "three dimensions, got shape (5, 5, 5, 2)"),
        ("x.nii", image(dtype=np.complex64), "expected real numbers"),
        ("x.nii.gz", bomb(), "too large unpacked"),
        ("", b"1 2 3\n" * 800_000, "more than 4 MB"),
        ("t.csv", b"x,y,z\n" + b"".join(b"%d,%d,0\n" % (k % 90, k // 90) for k in range(5001)),
         "more than 5000 peaks"),
    ],
)  # fmt: skip
def test_what_is_refused(name: str, raw: bytes, line: str) -> None:
    with pytest.raises(AtlasError) as refused:
        upload.read(name, raw)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_image_that_says_it_is_huge_is_refused() -> None:
    raw = bytearray(image())
    raw[42:48] = np.array([2000, 2000, 2000], "<i2").tobytes()
    with pytest.raises(AtlasError, match="voxels"):
        upload.read("x.nii", bytes(raw))
