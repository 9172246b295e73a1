"""A comparison as tables and texts.

Owns the columns and the words for numbers. Computes no statistic.
"""

import math
import textwrap
from collections.abc import Sequence

import numpy as np

from nuswide.core.wording import counted
from nuswide.evaluation.compare.entrants import COSTS, Entrant, as_number
from nuswide.evaluation.compare.paired import ALPHA, COMPARED, Compared, Comparison, Estimate
from nuswide.evaluation.evaluate import SUMMARY, baseline_key
from nuswide.reporting import table
from nuswide.reporting.table import Cell, Column, Table, make_table

MARKS = {"better": "▲", "worse": "▼", "tie": "=", "unknown": "?"}
LEGEND = (
    "▲ better, ▼ worse than the baseline, = no difference shown (p, corrected for all comparisons "
    f"by Holm's method, is above {ALPHA:g}), ? too few positives to say."
)
TRIVIAL = {"all_labels": "always all labels", "top_k": "always the same few"}
_MOST_LABELS = 20


def overview(comparison: Comparison) -> Table:
    """Return a column for each entrant: differing params, metrics with intervals, costs."""
    rows: list[tuple] = [
        ("runs", *(" ".join(r.info.run_id[:8] for r in e.runs) for e in comparison.entrants)),
        ("n", *(len(e.runs) for e in comparison.entrants)),
        *params(comparison.entrants).rows,
    ]
    for name in COMPARED:
        found = [result.estimates.get(name) for result in comparison.results]
        for part in Estimate._fields:
            cells = [_finite(getattr(e, part)) if e else None for e in found]
            suffix = "" if part == "value" else f" {part}"
            if any(cell is not None for cell in cells):
                rows.append((f"test/{name}{suffix}", *cells))
    for key in ("test/macro/f1_with_positives", "val/map", *COSTS):
        means = [entrant.mean(key) for entrant in comparison.entrants]
        if any(mean is not None for mean in means):
            rows.append((key, *means))
    return make_table(("", *(e.name for e in comparison.entrants)), rows)


def params(entrants: Sequence[Entrant]) -> Table:
    """Return the params and data in which the entrants differ; a column for each entrant."""
    found = [
        {**e.params, "protocol": _tag(e, "data.protocol"), "test digest": e.digest}
        for e in entrants
    ]
    keys = sorted({key for own in found for key in own})
    rows = [(key, *(own.get(key, "") for own in found)) for key in keys]
    kept = [row for row in rows if len({as_number(cell) for cell in row[1:]}) > 1]
    return make_table(("param", *(entrant.name for entrant in entrants)), kept)


def _tag(entrant: Entrant, key: str) -> str:
    return str(entrant.runs[0].data.tags.get(key, ""))


def differences(comparison: Comparison) -> Table:
    """Return a row for each metric of each entrant that is paired with the baseline."""
    rows = [
        (entrant.name, comparison.baseline, name, *map(_finite, compared), compared.verdict)
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        for name, compared in (result.differences or {}).items()
    ]
    head = ("entrant", "baseline", "figure", "difference", "low", "high", "p_value", "p_holm")
    return make_table((*head, "verdict"), rows)


def labels(comparison: Comparison) -> Table:
    """Return a row for each label of each paired entrant: the difference in AP."""
    rows = [
        (entrant.name, comparison.baseline, label, positives, *map(_finite, compared),
         compared.verdict)
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        for label, positives, compared in zip(
            comparison.labels, comparison.positives.tolist(), result.labels or (), strict=False
        )
    ]  # fmt: skip
    head = ("entrant", "baseline", "label", "positives", "difference", "low", "high", "p_value")
    return make_table((*head, "p_holm", "verdict"), rows)


def trivial(comparison: Comparison) -> dict[str, dict[str, float]]:
    """Return the metrics of the trivial taggers on the same images: name -> metric -> value."""
    if len({entrant.digest for entrant in comparison.entrants}) > 1:
        return {}
    metrics = [run.data.metrics for entrant in comparison.entrants for run in entrant.runs]
    found = {}
    for key, name in TRIVIAL.items():
        own = {f: next((m[k] for m in metrics if (k := baseline_key(key, f)) in m), None)
               for f in COMPARED}  # fmt: skip
        if values := {f: value for f, value in own.items() if value is not None}:
            found[name] = values
    return found


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _estimate_cell(estimate: Estimate | None) -> Cell | None:
    """`0.512 [0.490, 0.534]`, with ± and the deviation between seeds where there are several."""
    if estimate is None:
        return None
    deviation = f" ±{estimate.deviation:.3f}" if math.isfinite(estimate.deviation) else ""
    return Cell(f"{estimate.value:.3f}{deviation}", _interval(estimate.low, estimate.high, ".3f"))


def _difference_cell(compared: Compared, *, with_p: bool = True) -> Cell:
    """`▲ +0.012 [+0.003, +0.021]`, noted with its p-value, and of the class of its verdict."""
    mark, value = MARKS[compared.verdict], _minus(f"{compared.value:+.3f}")
    p = p_text(compared.corrected)
    note = f"p {p}" if p and with_p else ""
    interval = _interval(compared.low, compared.high, "+.3f")
    return Cell(f"{mark} {value}", interval, note, compared.verdict)


def difference_text(compared: Compared) -> str:
    """`+0.012 [+0.003, +0.021]`."""
    return str(_difference_cell(compared)).partition(" ")[2]


def _interval(low: float, high: float, form: str) -> str:
    return _minus(f"[{low:{form}}, {high:{form}}]") if math.isfinite(low) else ""


def _minus(text: str) -> str:
    """Replace hyphens by minus signs, which are as wide as a plus."""
    return text.replace("-", "−")


def p_text(p_value: float) -> str:
    """`0.013`, `<0.001`."""
    if math.isnan(p_value):
        return ""
    return "<0.001" if p_value < 0.001 else f"{p_value:.3f}"


def shown_results(comparison: Comparison, names: Sequence[str] = COMPARED) -> Table:
    """Return a row for each entrant and trivial tagger: its runs, its metrics with intervals."""
    rows: list[tuple] = [
        (
            Cell(entrant.name, note="(baseline)" if entrant.name == comparison.baseline else ""),
            len(entrant.runs), *(_estimate_cell(result.estimates.get(name)) for name in names),
        )
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
    ]  # fmt: skip
    for name, values in trivial(comparison).items():
        rows.append((name, None, *(values.get(metric) for metric in names)))
    return make_table(("on test", "runs", *(Column(name, ".3f") for name in names)), rows)


def shown_differences(comparison: Comparison) -> Table:
    """Return a row for each paired entrant: the differences of its metrics."""
    rows = [
        (entrant.name, *map(_difference_cell, result.differences.values()))
        for entrant, result in zip(comparison.entrants, comparison.results, strict=True)
        if result.differences
    ]
    return make_table(("difference", *COMPARED), rows)


def top_labels(
    comparison: Comparison, found: Sequence[Compared], most: int = _MOST_LABELS
) -> list[tuple[str, int, Compared]]:
    """Return the labels of the greatest differences with their positives, highest first."""
    rows = list(zip(comparison.labels, comparison.positives.tolist(), found, strict=True))
    known = [row for row in rows if np.isfinite(row[2].low)]
    chosen = sorted(known, key=lambda row: -abs(row[2].value))[:most]
    return sorted(chosen, key=lambda row: -row[2].value)


def shown_labels(comparison: Comparison, found: Sequence[Compared], most: int) -> Table:
    """Return a row for each of the labels of the greatest differences."""
    rows = [
        (label, positives, _difference_cell(c, with_p=False), p_text(c.p_value),
         p_text(c.corrected))
        for label, positives, c in top_labels(comparison, found, most)
    ]  # fmt: skip
    return make_table(("label", "positives", "difference", "p", "p by Holm"), rows)


def shown_costs(keys: Sequence[str], entrants: Sequence[Entrant]) -> Table:
    """Return a row for each entrant: its mean costs."""
    rows = [(entrant.name, *map(entrant.mean, keys)) for entrant in entrants]
    return make_table(("cost", *(Column(key, ",.0f") for key in keys)), rows)


def introduction(comparison: Comparison) -> str:
    """Describe the test set and the baseline."""
    if comparison.baseline is None:
        return f"Nothing is paired: {comparison.why_baseline}."
    n_labels, n_with = len(comparison.labels), int((comparison.positives > 0).sum())
    averaged = (
        f"map is over the {n_with} that have a positive, macro/f1 over all. "
        if n_with < n_labels
        else ""
    )
    return (
        f"On {counted(comparison.n_images, 'test image')}, {counted(n_labels, 'label')}. "
        f"{averaged}Baseline: {comparison.baseline} ({comparison.why_baseline})."
    )


def to_text(comparison: Comparison, width: int) -> str:
    """Write metrics and differences for a terminal `width` characters wide."""
    parts = [introduction(comparison), table.to_text(shown_results(comparison), width)]
    if (differing := shown_differences(comparison)).rows:
        parts += [f"{table.to_text(differing, width)}\n{_wrapped(LEGEND, width)}"]
    if (unlike := params(comparison.entrants)).rows:
        keys, *columns = zip(*unlike.rows, strict=True)
        names = [entrant.name for entrant in comparison.entrants]
        rows = [(name, *column) for name, column in zip(names, columns, strict=True)]
        parts.append(table.to_text(make_table(("params", *keys), rows), width))
    parts[0] = _wrapped(parts[0], width)
    return "\n\n".join([*parts, *(_wrapped(remark, width) for remark in comparison.remarks)])


def _wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def to_markdown(comparison: Comparison) -> str:
    """Write the headline metrics, and mAP's difference from the baseline, for a README."""
    shown = shown_results(comparison, SUMMARY)
    compared = [(result.differences or {}).get("map") for result in comparison.results]
    cells = [_difference_cell(found) if found else None for found in compared]
    cells += [None] * (len(shown.rows) - len(cells))
    rows = [(*row, cell) for row, cell in zip(shown.rows, cells, strict=True)]
    whole = make_table((*shown.columns, "map less the baseline's"), rows)
    legend = f"In brackets 95 % intervals. {LEGEND}"
    return f"{introduction(comparison)} {legend}\n\n{table.to_markdown(whole)}\n"
