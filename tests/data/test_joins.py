"""External tables joined by a key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from atlas.contracts import Study
from atlas.data.joins import Join, apply
from atlas.errors import AtlasError, OptionError

STUDIES = [Study(k, "", np.zeros((0, 3)), (), {"n": 5.0 if k == "3" else None}) for k in "123"]


def test_values_fill_the_field_and_the_last_row_of_a_key_holds(tmp_path: Path) -> None:
    path = tmp_path / "n.csv"
    path.write_text("pmid,n,source\n1,20,auto\n1,22,manual\n3,,\n9,4,manual\n")
    filled, counts = apply(STUDIES, Join.parse(f"{path}:pmid:n"))
    assert [s.metadata["n"] for s in filled] == [22, None, 5]
    assert counts == {"rows": 4, "keys": 2, "keys_with_several_values": 1, "studies_filled": 1}


def test_a_column_of_another_name_and_a_tsv(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text("pmid\ttesla\tkind\n2\t1.5\tlanguage:2,memory:2\n")
    filled, _ = apply(STUDIES, Join.parse(f"{path}:pmid:field_strength=tesla"))
    assert filled[1].metadata["field_strength"] == 1.5
    filled, _ = apply(STUDIES, Join.parse(f"{path}:pmid:task=kind"))
    assert filled[1].metadata["task"] == {"language": 0.5, "memory": 0.5}


@pytest.mark.parametrize("text", ["n.csv", "n.csv:pmid", "n.csv:pmid:", "n.csv:pmid:sex"])
def test_a_malformed_option(text: str) -> None:
    with pytest.raises(OptionError, match="--join"):
        Join.parse(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"id,n\n1,2\n", "has no column 'pmid'; it has id, n"),
        (b"pmid,size\n1,2\n", "has no column 'n'"),
        (b"", "has no column 'pmid'; it has nothing"),
        (b"pmid,n\n1,2\n2,many\n", "row 3: n: expected a number, got 'many'"),
        (b"pmid,n\n1,0\n", "row 2: n: 0 is outside its range"),
        (b"pmid,n\n1,nan\n", "row 2: n: nan is outside its range"),
        (b"pmid,n\n\xff\xfe,3\n", "is no UTF-8 table"),
    ],
)
def test_a_damaged_table_names_file_and_row(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "n.csv"
    path.write_bytes(content)
    with pytest.raises(AtlasError, match=message) as raised:
        apply(STUDIES, Join.parse(f"{path}:pmid:n"))
    assert str(path) in str(raised.value)


def test_a_missing_table() -> None:
    with pytest.raises(AtlasError, match="none.csv: cannot be read"):
        apply(STUDIES, Join.parse("none.csv:pmid:n"))
