"""GingerALE's Sleuth text, as one NIMADS document."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from atlas.errors import AtlasError

from ._values import SPACES, number, show, text

_SLEUTH_KEY = re.compile(
    r"(reference|subjects|doi|pubmedid|authors|publication|year|affiliations)\s*=\s*(.*)", re.I
)
_YEAR = re.compile(r"\b((?:19|20)[0-9]{2})[a-z]?(?=\s*(?:$|[),.;:]))")


@dataclass
class _Experiment:
    """One block of Sleuth text: its header lines, then its rows."""

    space: str
    labels: list[str] = field(default_factory=list)
    keys: dict[str, str] = field(default_factory=dict)
    points: list[dict[str, Any]] = field(default_factory=list)


def document(texts: dict[str, str]) -> dict[str, Any]:
    """Return a NIMADS document of Sleuth files, the contrasts of one publication together."""
    studies: dict[str, dict[str, Any]] = {}
    for where, content in texts.items():
        for experiment in _experiments(where, content):
            keys = experiment.keys
            publication, contrast = _split_label(experiment.labels[0])
            study_id = keys.get("pubmedid") or keys.get("doi") or publication
            authors, year = _author_year(publication)
            study: dict[str, Any] = {
                "id": study_id,
                "name": publication,
                "authors": keys.get("authors") or authors,
                "year": keys.get("year") or year,
                "pmid": keys.get("pubmedid"),
                "doi": keys.get("doi"),
                "publication": keys.get("publication"),
                "analyses": [],
            }
            analysis = {
                "id": " / ".join(filter(None, [contrast, *experiment.labels[1:]])),
                "metadata": {"sample_size": keys.get("subjects")},
                "points": experiment.points,
            }
            studies.setdefault(study_id, study)["analyses"].append(analysis)
    return {"studies": list(studies.values())}


def _experiments(where: str, content: str) -> list[_Experiment]:
    """Split one Sleuth file into its experiments."""
    current = _Experiment(space="")
    found: list[_Experiment] = []
    for row, line in enumerate(re.split("\r\n|\r|\n", content), 1):
        at, line = f"{where}, line {row}", line.strip()
        if line.startswith("//"):
            current = _header(current, text(line.lstrip("/")), at)
            if current.labels and (not found or found[-1] is not current):
                found.append(current)
        elif line:
            if not current.space:
                raise AtlasError(f"{at}: //Reference=MNI or //Reference=Talairach must stand above")
            if not current.labels:
                raise AtlasError(f"{at}: no //Author, year: contrast line stands above")
            current.points.append({"coordinates": _row(line, at), "space": current.space})
    return found


def _header(current: _Experiment, header: str, at: str) -> _Experiment:
    """Add a header line to the experiment, or begin the next one with it."""
    pair = _SLEUTH_KEY.fullmatch(header)
    if not header:
        return current
    # A title after //Subjects begins one too: the experiment before had no peaks.
    if current.points or (not pair and current.labels and current.keys):
        current = _Experiment(current.space)
    if not pair:
        current.labels.append(header)
        return current
    key, value, n = pair[1].lower(), text(pair[2]), number(pair[2])
    if key == "subjects" and (n is None or n < 0):
        raise AtlasError(f"{at}: //Subjects must be a number, got {show(value)}")
    if key == "reference":
        current.space = _reference(value, at)
    else:
        current.keys[key] = value
    return current


def _row(line: str, at: str) -> list[float]:
    try:
        x, y, z = (float(part) for part in line.replace("_", "?").split())  # 1_0 is no number here
    except ValueError:
        raise AtlasError(f"{at}: expected three numbers x y z, got {show(line.strip())}") from None
    return [x, y, z]


def _reference(value: str, at: str) -> str:
    space = SPACES.get(value.upper(), "")
    if space not in {"MNI", "TAL"}:
        raise AtlasError(f"{at}: //Reference must be MNI or Talairach, got {show(value)}")
    return space


def _split_label(label: str) -> tuple[str, str]:
    """Split "Author, 2010: contrast" at the colon or semicolon that ends the citation.

    That is the first one after the year, or after "Author (title)" as NiMARE writes it, or the
    first of all; never one in parentheses, which may hold a title with a colon.
    """
    outside = label
    for _ in range(2):  # parentheses in parentheses
        outside = re.sub(r"\([^()]*\)", lambda m: "\0" * len(m[0]), outside)
    for citation in (r"\b(?:19|20)[0-9]{2}[^:;]*", "\0", ""):
        if (cut := re.search(f"{citation}[:;]", outside)) and outside[: cut.end() - 1].strip():
            return label[: cut.end() - 1].strip(), label[cut.end() :].strip()
    return label, ""


def _author_year(publication: str) -> tuple[str, str]:
    """Return authors and year of "Fox et al., 2000" or "Fox (2000b)", else nothing.

    A year further on belongs to a title.
    """
    year = _YEAR.search(publication)
    authors = publication[: year.start()].rstrip(" ,(") if year else ""
    return (authors, year[1]) if year and not re.search("[0-9(]", authors) else ("", "")
