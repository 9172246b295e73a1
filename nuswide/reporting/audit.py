"""The audit of a data set.

Owns the checks: label counts, co-occurrence, labels missing by implication, duplicate images, and
whether the first rows are distributed like the rest. Changes nothing.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nuswide.core.wording import counted
from nuswide.data.dataset import Dataset
from nuswide.data.duplicates import DuplicatePair, find_duplicates
from nuswide.data.label_names import look_alikes, with_separators
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.reporting import html, plots
from nuswide.reporting.audit_checks import Bias, Gap, find_bias, find_gaps
from nuswide.reporting.table import Column, Table, make_table, to_csv
from nuswide.reporting.table import to_html as table_html
from nuswide.reporting.table import to_text as table_text

_PAGE = "audit.html"
_SHOWN_PAIRS, _SHOWN_EXAMPLES = 12, 3
_MOST_ROWS = 5000  # of a table on the page; the CSV files have all


@dataclass(frozen=True)
class Audit:
    """The results. together: (C, C) images that have both labels. pairs: None without images."""

    manifest: Manifest
    together: NDArray[np.int64]
    gaps: tuple[Gap, ...]
    bias: Bias | None
    pairs: tuple[DuplicatePair, ...] | None
    pictures: Dataset | None

    @cached_property
    def images(self) -> dict[str, Image.Image]:
        """The plots, each drawn once for the page and the files; name -> picture."""
        return _plots(self)


def make_audit(
    manifest: Manifest, pictures: Dataset | None = None, *, first_rows: int = 5000
) -> Audit:
    """Audit a data set, without its images if there are none.

    pictures: the manifest's samples, decoded. first_rows: how many rows of train are compared with
    the others.
    """
    targets = manifest.targets.astype(np.float32)
    return Audit(
        manifest=manifest,
        together=(targets.T @ targets).round().astype(np.int64),
        gaps=find_gaps(manifest),
        bias=find_bias(manifest, first_rows),
        pairs=tuple(find_duplicates(pictures)) if pictures else None,
        pictures=pictures,
    )


# What is shown of it


def splits_table(audit: Audit) -> Table:
    """Return the counts of each split."""
    columns = ("split", "images", Column("labels an image", ".2f"), "most", "without a label",
               "unknown entries")  # fmt: skip
    groups = {s: audit.manifest.of(s) for s in SPLITS} | {"all": audit.manifest}
    return make_table(columns, [_split_row(name, m) for name, m in groups.items() if len(m)])


def _split_row(name: str, samples: Manifest) -> tuple[str | float, ...]:
    per_image = samples.targets.sum(axis=1, dtype=np.int64)
    bare = int((per_image == 0).sum())
    unknown = 0 if samples.known is None else int((~samples.known).sum())
    return (
        name, len(samples), float(per_image.mean()), int(per_image.max()),
        f"{bare:,} ({bare / len(samples):.1%})", unknown,
    )  # fmt: skip


def labels_table(audit: Audit) -> Table:
    """Return each label's images and their share in each split, most frequent first."""
    manifest = audit.manifest
    parts = {s: manifest.of(s) for s in SPLITS if len(manifest.indices(s))}
    order = np.argsort(-sum(part.positives for part in parts.values()), kind="stable")
    columns: list[Column] = [Column("label")]
    values: list[list[Any]] = [[manifest.labels[i] for i in order]]
    for split, part in parts.items():
        positives = part.positives[order]
        columns += [Column(split), Column(f"{split} share", ".4f")]
        values += [positives.tolist(), (positives / len(part)).tolist()]
    return make_table(columns, zip(*values, strict=True))


def gaps_table(audit: Audit) -> Table:
    """Return the labels that are missing by implication."""
    columns = ("label", "implies", "images", "missing", Column("share", ".1%"), "why", "examples")
    rows = [
        (
            gap.label, gap.implied, gap.images, gap.missing, gap.missing / gap.images,
            "meaning" if gap.by_meaning else "habit", " ".join(gap.examples),
        )
        for gap in audit.gaps
    ]  # fmt: skip
    return make_table(columns, rows)


def bias_table(audit: Audit) -> Table:
    """Return each label's share in the first rows and in the rest, furthest apart first."""
    bias = audit.bias
    if bias is None:
        return make_table((), ())
    difference = bias.first - bias.rest
    order = np.argsort(-np.abs(difference) / np.maximum(bias.margin, 1e-12), kind="stable")
    columns = ("label", Column(f"first {bias.n_first}", ".4f"), Column("rest", ".4f"),
               Column("difference", "+.4f"), Column("margin", ".4f"), "beyond chance")  # fmt: skip
    rows = [
        (
            audit.manifest.labels[i], float(bias.first[i]), float(bias.rest[i]),
            float(difference[i]), float(bias.margin[i]), "yes" if bias.is_off[i] else "no",
        )
        for i in order
    ]  # fmt: skip
    return make_table(columns, rows)


def duplicates_table(audit: Audit) -> Table:
    """Return the pairs of images that are equal or nearly so."""
    manifest = audit.manifest
    rows = [
        (
            manifest.names[p.first], str(manifest.splits[p.first]),
            manifest.names[p.second], str(manifest.splits[p.second]),
            "exact" if p.is_exact else "near", p.bits, _agreement(manifest, p),
        )
        for p in audit.pairs or ()
    ]  # fmt: skip
    return make_table(("first", "split", "second", "split", "kind", "bits", "labels"), rows)


def look_alikes_table(audit: Audit) -> Table:
    """Return look-alike labels, each with the most frequent one; a label map for `prepare`."""
    counts = dict(zip(audit.manifest.labels, audit.manifest.positives.tolist(), strict=True))
    rows = []
    for group in look_alikes(audit.manifest.labels):
        to = max(group, key=lambda label: counts[label])
        name = to.strip()  # as a label map is read
        rows += [(one, name, counts[one], counts[to]) for one in group if one != name]
    return make_table(("from", "to", "images", "images of to"), rows)


def absent_table(audit: Audit) -> Table:
    """Return the labels without a positive in a split, and the splits."""
    manifest = audit.manifest
    parts = {s: manifest.of(s).positives for s in SPLITS if len(manifest.indices(s))}
    rows = [
        (label, " ".join(split for split, positives in parts.items() if not positives[i]))
        for i, label in enumerate(manifest.labels)
    ]
    return make_table(("label", "absent from"), [row for row in rows if row[1]])


def rejected_table(audit: Audit) -> Table:
    """Return the images that were left out because they are missing or cannot be decoded."""
    return make_table(("image", "reason"), audit.pictures.rejected if audit.pictures else ())


def _agreement(manifest: Manifest, pair: DuplicatePair) -> str:
    first, second = manifest.targets[[pair.first, pair.second]]
    return "same" if np.array_equal(first, second) else "differ"


def _is_across(audit: Audit, pair: DuplicatePair) -> bool:
    splits = audit.manifest.splits
    return bool(splits[pair.first] != splits[pair.second])


def findings(audit: Audit) -> list[str]:
    """Return the main findings, a sentence each."""
    n = len(audit.manifest)
    bare = int((~audit.manifest.targets.any(axis=1)).sum())
    bare_images = counted(bare, f"of {n:,} images has", f"of {n:,} images have")
    said = [f"{bare_images} no label ({bare / n:.1%})."]
    if audit.pictures and (n_rejected := len(audit.pictures.rejected)):
        left_out = counted(n_rejected, "further image", "further images")
        said.append(f"Left out: {left_out}, missing or not decodable, listed in rejected.csv.")
    said += _label_findings(audit)
    if audit.gaps:
        worst = max(audit.gaps, key=lambda gap: gap.missing / math.sqrt(gap.images))
        said.append(
            f"{counted(len(audit.gaps), 'implication has', 'implications have')} gaps, such as "
            f"{worst.label} without "
            f"{worst.implied} in {worst.missing:,} of {worst.images:,} images "
            f"({worst.missing / worst.images:.0%})."
        )
    if audit.bias is not None:
        off = int(audit.bias.is_off.sum())
        said.append(
            f"In the first {audit.bias.n_first:,} rows of train {off} of "
            f"{len(audit.manifest.labels)} labels are rarer or commoner than in the rest, beyond "
            "chance."
        )
    if audit.pairs is None:
        said.append("Its images were not looked at, so duplicates were not searched for.")
    else:
        exact = sum(pair.is_exact for pair in audit.pairs)
        across = sum(_is_across(audit, pair) for pair in audit.pairs)
        said.append(
            f"{counted(exact, 'pair of images is', 'pairs of images are')} equal and "
            f"{len(audit.pairs) - exact} nearly so; {across} of these across splits, which "
            "flatters every metric on test."
        )
    return said


def _label_findings(audit: Audit) -> list[str]:
    """Return what is odd about the names of the labels, or about where they occur."""
    said, labels = [], audit.manifest.labels
    if alike := look_alikes(labels):
        shown = "; ".join(" and ".join(map(repr, group)) for group in alike[:_SHOWN_EXAMPLES])
        said.append(
            f"{counted(len(alike), 'group of labels looks', 'groups of labels look')} alike, such "
            f"as {shown}; if they mean the same, "
            "`nuswide prepare SOURCE OUT --label_map FILE` merges them, by the look_alikes.csv of "
            "`nuswide audit`."
        )
    if odd := with_separators(labels):
        said.append(
            f"{counted(len(odd), 'label contains', 'labels contain')} a separator, such as "
            f"{odd[0]!r}: several labels may have been read as one."
        )
    if absent := absent_table(audit).rows:
        of_all = f"of {len(labels)} labels"
        said.append(
            f"{counted(len(absent), f'{of_all} has', f'{of_all} have')} no image in some split, "
            f"such as {absent[0][0]!r} in {absent[0][1].replace(' ', ' and ')}."
        )
    return said


def _plots(audit: Audit) -> dict[str, Image.Image]:
    manifest = audit.manifest
    counts = {s: manifest.of(s).positives for s in SPLITS if len(manifest.indices(s))}
    drawn = {
        "label_distribution": plots.label_distribution(manifest.labels, counts),
        "co_occurrence": plots.co_occurrence(manifest.labels, audit.together),
    }
    if audit.bias is not None and audit.bias.is_off.any():
        off = np.flatnonzero(audit.bias.is_off)
        order = off[np.argsort(-audit.bias.rest[off])]
        drawn["first_rows"] = plots.prevalence_change(
            [manifest.labels[i] for i in order], audit.bias.rest[order],
            audit.bias.first[order], ("the other rows", f"the first {audit.bias.n_first:,}"),
        )  # fmt: skip
    if audit.pairs and audit.pictures:
        # Pairs across splits come first: they do harm.
        worst = sorted(audit.pairs, key=lambda pair: not _is_across(audit, pair))[:_SHOWN_PAIRS]
        rows = np.array([[pair.first, pair.second] for pair in worst])
        captions = [
            f"{'exact' if pair.is_exact else f'{pair.bits} bits apart'}: "
            f"{manifest.splits[pair.first]} and {manifest.splits[pair.second]}\n"
            f"{manifest.names[pair.first]}\n{manifest.names[pair.second]}"
            for pair in worst
        ]
        pictures = audit.pictures.gather(rows.ravel())
        drawn["duplicates"] = plots.pair_sheet(pictures[::2], pictures[1::2], captions)
    return {name: plots.to_image(plot) for name, plot in drawn.items()}


_ALTS = {
    "label_distribution": "Bars of the images with each label, a panel a split",
    "co_occurrence": "Heat map of how often a label is there where another is",
    "first_rows": "Labels' shares in the first rows of train beside those in the rest",
    "duplicates": "Pairs of pictures that are equal or nearly so",
}


def tables(audit: Audit) -> dict[str, Table]:
    """Return the tables that have a row; name -> table."""
    all_tables = {
        "splits": splits_table(audit),
        "labels": labels_table(audit),
        "look_alikes": look_alikes_table(audit),
        "absent": absent_table(audit),
        "gaps": gaps_table(audit),
        "first_rows": bias_table(audit),
        "duplicates": duplicates_table(audit),
        "rejected": rejected_table(audit),
    }
    return {name: table for name, table in all_tables.items() if table.rows}


_TITLES = {
    "splits": "Splits",
    "labels": "Labels",
    "look_alikes": "Labels that look alike",
    "absent": "Labels without an image in a split",
    "gaps": "Labels missing by implication",
    "first_rows": "The first rows of train against the rest",
    "duplicates": "Pictures that are there twice",
    "rejected": "Images that are missing or cannot be decoded",
}
_PLOTS_OF = {
    "labels": ("label_distribution", "co_occurrence"),
    "first_rows": ("first_rows",),
    "duplicates": ("duplicates",),
}


def to_html(audit: Audit) -> str:
    """Write the audit as one page that needs no network."""
    manifest, drawn = audit.manifest, audit.images
    parts = [
        html.paragraph(
            f"{counted(len(manifest), 'image')}, {counted(len(manifest.labels), 'label')}, "
            f"protocol {manifest.protocol}, digest {manifest.digest}."
        ),
        *map(html.paragraph, findings(audit)),
    ]
    for name, table in tables(audit).items():
        parts += [html.heading(_TITLES[name])]
        parts += [html.picture(drawn[p], _ALTS[p]) for p in _PLOTS_OF.get(name, ()) if p in drawn]
        parts += [table_html(table.first(_MOST_ROWS))]
        if len(table.rows) > _MOST_ROWS:
            parts += [html.paragraph(f"The first {_MOST_ROWS:,} of {len(table.rows):,} rows.")]
    return html.page("Audit of a data set", *parts)


def to_text(audit: Audit) -> str:
    """Write the splits and the findings for a terminal."""
    return "\n".join([table_text(splits_table(audit)), "", *findings(audit)])


def write_audit(audit: Audit, folder: Path) -> None:
    """Write audit.html, a CSV file for each table and a PNG file for each plot.

    Those of an earlier audit are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / _PAGE).exists():
        for name in [*(f"{table}.csv" for table in _TITLES), *(f"{plot}.png" for plot in _ALTS)]:
            (folder / name).unlink(missing_ok=True)
    (folder / _PAGE).write_text(to_html(audit), encoding="utf-8")
    for name, table in tables(audit).items():
        (folder / f"{name}.csv").write_text(to_csv(table), encoding="utf-8")
    for name, image in audit.images.items():
        image.save(folder / f"{name}.png")
