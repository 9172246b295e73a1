"""A comparison as tables: for a terminal, as CSV, and for MLflow.

Owns the columns and the words for numbers. Computes no statistic.

    print(to_text(comparison, width=100))
    csv = to_csv(differences(comparison))
"""

import csv
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nuswide.evaluation.compare.entrants import COSTS, Entrant, as_number
from nuswide.evaluation.compare.paired import ALPHA, FIGURES, Compared, Comparison, Estimate
from nuswide.evaluation.evaluate import HEADLINE, baseline_key

MARKS = {"better": "▲", "worse": "▼", "tie": "=", "unknown": "?"}
LEGEND = (
    "▲ better, ▼ worse than the baseline, = no difference shown (p, corrected for all comparisons "
    f"by Holm's method, is above {ALPHA:g}), ? too few positives to say."
)
TRIVIAL = {"all_labels": "always all labels", "top_k": "always the same few"}
_NAME_WIDTH, _LEAST_NAME = 32, 12
Cell = str | float | int | None


@dataclass(frozen=True)
class Table:
    """Named columns and rows of cells."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def overview(comparison: Comparison) -> Table:
    """A column an entrant; what differs in params, figures with intervals, costs."""
    rows: list[tuple[Cell, ...]] = [
        ("runs", *(" ".join(r.info.run_id[:8] for r in e.runs) for e in comparison.entrants)),
        ("n", *(len(e.runs) for e in comparison.entrants)),
        *(row for row in params(comparison.entrants).rows),
    ]
    for name in FIGURES:
        found = [result.estimates.get(name) for result in comparison.results]
        for part in Estimate._fields:
            cells = [_finite(getattr(e, part)) if e else None for e in found]
            suffix = "" if part == "value" else f" {part}"
            if any(cell is not None for cell in cells):
                rows.append((f"test/{name}{suffix}", *cells))
    for key in ("val/map", *COSTS):
        means = [entrant.mean(key) for entrant in comparison.entrants]
        if any(mean is not None for mean in means):
            rows.append((key, *means))
    return Table(("", *(e.name for e in comparison.entrants)), tuple(rows))


def params(entrants: Sequence[Entrant]) -> Table:
    """The params and data in which the entrants differ; a column an entrant."""
    found = [
        {**e.params, "protocol": _tag(e, "data.protocol"), "test digest": e.digest}
        for e in entrants
    ]
    keys = sorted({key for own in found for key in own})
    rows = [(key, *(own.get(key, "") for own in found)) for key in keys]
    kept = [row for row in rows if len({as_number(cell) for cell in row[1:]}) > 1]
    return Table(("param", *(entrant.name for entrant in entrants)), tuple(kept))


def _tag(entrant: Entrant, key: str) -> str:
    return str(entrant.runs[0].data.tags.get(key, ""))


def differences(comparison: Comparison) -> Table:
    """A row for each figure of each entrant that is paired with the baseline."""
    rows = [
        (entrant.name, comparison.baseline, name, *map(_finite, compared), compared.verdict)
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        for name, compared in (result.differences or {}).items()
    ]
    head = ("entrant", "baseline", "figure", "difference", "low", "high", "p_value", "p_holm")
    return Table((*head, "verdict"), tuple(rows))


def labels(comparison: Comparison) -> Table:
    """A row for each label of each entrant that is paired: the difference in AP."""
    rows = [
        (entrant.name, comparison.baseline, label, positives, *map(_finite, compared),
         compared.verdict)
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        for label, positives, compared in zip(
            comparison.labels, comparison.positives.tolist(), result.labels or (), strict=False
        )
    ]  # fmt: skip
    head = ("entrant", "baseline", "label", "positives", "difference", "low", "high", "p_value")
    return Table((*head, "p_holm", "verdict"), tuple(rows))


def trivial(comparison: Comparison) -> dict[str, dict[str, float]]:
    """The figures of the trivial taggers on the same images: name -> figure -> value."""
    if len({entrant.digest for entrant in comparison.entrants}) > 1:
        return {}
    metrics = [run.data.metrics for entrant in comparison.entrants for run in entrant.runs]
    found = {}
    for key, name in TRIVIAL.items():
        own = {f: next((m[k] for m in metrics if (k := baseline_key(key, f)) in m), None)
               for f in FIGURES}  # fmt: skip
        if values := {f: value for f, value in own.items() if value is not None}:
            found[name] = values
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def columns_of(table: Table) -> dict[str, list[Any]]:
    """The table's columns, as text where they are mixed."""
    lists = zip(*table.rows, strict=True)
    found = {}
    for name, cells in zip(table.columns, lists, strict=True):
        kinds = {type(cell) for cell in cells if cell is not None}
        mixed = len(kinds) > 1
        found[name or "row"] = [str(c) if mixed and c is not None else c for c in cells]
    return found


def to_csv(table: Table) -> str:
    """Write a table as CSV, numbers with six significant digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.columns)
    for row in table.rows:
        writer.writerow([f"{c:.6g}" if isinstance(c, float) else "" if c is None else c
                         for c in row])  # fmt: skip
    return text.getvalue()


def estimate_text(estimate: Estimate | None) -> str:
    """`0.512 [0.490, 0.534]`, with ± and the deviation between seeds where there are several."""
    if estimate is None:
        return ""
    deviation = f" ±{estimate.deviation:.3f}" if math.isfinite(estimate.deviation) else ""
    return f"{estimate.value:.3f}{deviation}{_interval(estimate.low, estimate.high, '.3f')}"


def difference_text(compared: Compared) -> str:
    """`+0.012 [+0.003, +0.021]`."""
    interval = _interval(compared.low, compared.high, "+.3f")
    return minus(f"{compared.value:+.3f}{interval}")


def _interval(low: float, high: float, form: str) -> str:
    return f" [{low:{form}}, {high:{form}}]" if math.isfinite(low) else ""


def minus(text: str) -> str:
    """Numbers with a minus sign that is as wide as a plus."""
    return text.replace("-", "−")


def p_text(p_value: float) -> str:
    """`0.013`, `<0.001`."""
    if math.isnan(p_value):
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def introduction(comparison: Comparison) -> str:
    """What is compared with what, on what."""
    if comparison.baseline is None:
        return f"Nothing is paired: {comparison.why_baseline}."
    return (
        f"On {comparison.n_images:,} test images, {len(comparison.labels)} labels. Baseline: "
        f"{comparison.baseline} ({comparison.why_baseline})."
    )


def to_text(comparison: Comparison, width: int) -> str:
    """Write the figures and differences for a terminal `width` characters wide, in blocks."""
    names = [_counted(entrant, _most_name(width)) for entrant in comparison.entrants]
    cells = [[estimate_text(result.estimates.get(f)) for f in FIGURES]
             for result in comparison.results]  # fmt: skip
    for name, values in trivial(comparison).items():
        names.append(name)
        cells.append([f"{values[f]:.3f}" if f in values else "" for f in FIGURES])
    lines = [introduction(comparison), "", *_blocks("on test", names, cells, width)]
    paired = [
        (entrant.name, [f"{difference_text(result.differences[f])} "
                        f"{MARKS[result.differences[f].verdict]}" for f in FIGURES])
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        if result.differences
    ]  # fmt: skip
    if paired:
        lines += _blocks("difference", [name for name, _ in paired], [c for _, c in paired], width)
        lines.append(LEGEND)
    if (differing := params(comparison.entrants)).rows:
        heads, *by_entrant = ([str(cell) for cell in c] for c in zip(*differing.rows, strict=True))
        entrants = [entrant.name for entrant in comparison.entrants]
        lines += ["", *_blocks("params", entrants, by_entrant, width, heads)]
    return "\n".join(
        part for line in [*lines, *comparison.remarks] for part in _wrapped(line, width)
    )


def to_markdown(comparison: Comparison) -> str:
    """Write the headline figures, and mAP's difference from the baseline, for a README."""
    rows = []
    for entrant, result in zip(comparison.entrants, comparison.results, strict=True):
        cells = [estimate_text(result.estimates.get(name)) for name in HEADLINE]
        compared = (result.differences or {}).get("map")
        cells.append(f"{MARKS[compared.verdict]} {difference_text(compared)}" if compared else "")
        rows.append([entrant.name, str(len(entrant.runs)), *cells])
    for name, values in trivial(comparison).items():
        rows.append([name, "", *(f"{values[f]:.3f}" if f in values else "" for f in HEADLINE), ""])
    head = ["", "runs", *HEADLINE, "map less the baseline's"]
    lines = [head, ["---"] * len(head), *rows]
    table = "\n".join(f"| {' | '.join(c.replace('|', '/') for c in line)} |" for line in lines)
    return f"{introduction(comparison)} In brackets 95 % intervals. {LEGEND}\n\n{table}\n"


def _counted(entrant: Entrant, width: int) -> str:
    """The name with the number of seeds, which is not lost where the name is cut."""
    count = f" ×{len(entrant.runs)}" if len(entrant.runs) > 1 else ""
    return _cut(entrant.name, width - len(count)) + count


def _most_name(width: int) -> int:
    return max(_LEAST_NAME, min(_NAME_WIDTH, width // 3))


def _blocks(
    title: str, names: Sequence[str], cells: Sequence[Sequence[str]], width: int,
    heads: Sequence[str] = FIGURES,
) -> Iterator[str]:  # fmt: skip
    """Rows of cells under heads, as many columns at once as fit."""
    name_width = min(_most_name(width), max(map(len, [title, *names])))
    room = max(8, width - name_width - 2)
    columns = list(zip(heads, *cells, strict=False))
    widths = [min(room, max(map(len, column))) for column in columns]
    start = 0
    while start < len(columns):
        end, used = start, 0
        while end < len(columns) and (end == start or used + widths[end] + 2 <= room + 2):
            used += widths[end] + 2
            end += 1
        for i, name in enumerate([title, *names]):
            shown = (c[i] if i < len(c) else "" for c in columns[start:end])
            fitted = (f"  {_cut(cell, w):{w}s}" for cell, w in zip(shown, widths[start:end],
                                                                   strict=True))  # fmt: skip
            yield (f"{_cut(name, name_width):{name_width}s}" + "".join(fitted)).rstrip()
        yield ""
        start = end


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _wrapped(line: str, width: int) -> list[str]:
    """Sentences in lines that fit; rows of tables fit already."""
    if len(line) <= width:
        return [line]
    lines, current = [], ""
    for word in line.split(" "):
        if current and len(current) + 1 + len(word) > width:
            lines.append(current)
            current = word
        else:
            current = f"{current} {word}" if current else word
    return [*lines, current]
