"""External tables joined by a key column: ``--join sample_sizes.csv:pmid:n``."""

from __future__ import annotations

import csv
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas.contracts import Study
from atlas.errors import AtlasError, OptionError
from atlas.metadata import FieldTable, Value


@dataclass(frozen=True)
class Join:
    """A column of a CSV or TSV file that fills a field.

    Attributes
    ----------
    path : Path
    key : str
        Column with the studies' identifiers.
    field : str
        Row of FIELDS to fill; a value that the source gave is replaced.
    column : str
        Column with the values.
    """

    path: Path
    key: str
    field: str
    column: str

    @classmethod
    def parse(cls, text: str) -> Join:
        """Read ``FILE:KEY:FIELD`` or, where the column has another name, ``FILE:KEY:FIELD=COLUMN``.

        Raises
        ------
        OptionError
            Another form, or an unknown field.
        """
        parts = text.rsplit(":", 2)
        if len(parts) != 3 or not all(parts):
            raise OptionError(f"--join {text!r}: expected FILE:KEY:FIELD or FILE:KEY:FIELD=COLUMN")
        field, _, column = parts[2].partition("=")
        try:
            FieldTable()[field]
        except AtlasError as error:
            raise OptionError(f"--join {text!r}: {error}") from None
        return cls(Path(parts[0]), parts[1], field, column or field)


def apply(studies: Sequence[Study], join: Join) -> tuple[list[Study], dict[str, int]]:
    """Fill a field from a file.

    An empty cell says nothing. Where a key stands more than once, its last row holds, so that
    better labels go to the end of the file.

    Returns
    -------
    studies : list of Study
    counts : dict
        rows, keys, keys_with_several_values, studies_filled.
    """
    values, counts = _values(join)
    out = [
        dataclasses.replace(s, metadata={**s.metadata, join.field: values[s.id]})
        if s.id in values
        else s
        for s in studies
    ]
    counts["studies_filled"] = sum(s.id in values for s in studies)
    return out, counts


def _values(join: Join) -> tuple[dict[str, Value], dict[str, int]]:
    field = FieldTable()[join.field]
    values: dict[str, Value] = {}
    several: set[str] = set()
    rows = 0
    try:
        with join.path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = "\t" if ".tsv" in join.path.name else ","
            table = csv.DictReader(file, delimiter=delimiter)
            for name in (join.key, join.column):
                if name not in (table.fieldnames or ()):
                    there = ", ".join(table.fieldnames or ()) or "nothing"
                    raise AtlasError(f"{join.path}: has no column {name!r}; it has {there}")
            for row in table:
                rows += 1
                text, study_id = (row[join.column] or "").strip(), (row[join.key] or "").strip()
                if not text:
                    continue
                try:
                    value = field.parse(text)
                except AtlasError as error:
                    raise AtlasError(f"{join.path}, row {table.line_num}: {error}") from None
                if values.get(study_id, value) != value:
                    several.add(study_id)
                values[study_id] = value
    except OSError as error:
        raise AtlasError(f"{join.path}: cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise AtlasError(f"{join.path}: is no UTF-8 table ({error})") from None
    return values, {"rows": rows, "keys": len(values), "keys_with_several_values": len(several)}
