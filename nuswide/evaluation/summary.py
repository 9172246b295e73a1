"""The results of a run, as tables and text.

Owns the record of the trivial baselines and of the report, the run's description and the table in
the terminal. Computes no metric.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from nuswide.config import Config
from nuswide.core.wording import counted
from nuswide.data.dataset import Dataset
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.evaluation.evaluate import SUMMARY, Evaluation, baseline_key
from nuswide.metrics import Metrics, baseline_metrics, labels_averaged
from nuswide.reporting import plots
from nuswide.reporting.report import Part, ReportInputs, make_report, to_html
from nuswide.reporting.table import Column, Table, make_table, to_markdown, to_text
from nuswide.tracking.run import Run

Rows = dict[str, Metrics]  # what, and on which split -> metrics
_OWN = "this model"
_NAMED = 8  # labels in a sentence


def result_rows(evaluations: Sequence[Evaluation]) -> Rows:
    """Return the metrics of this model on each split."""
    return {f"{_OWN}, {e.split}": e.metrics for e in evaluations}


def record_baselines(run: Run, train: Manifest, test: Evaluation) -> Rows:
    """Record the trivial baselines beside the model; return their rows."""
    samples = test.samples
    baselines = baseline_metrics(train.targets, samples.targets, samples.known)
    for name, values in baselines.items():
        run.log_metrics({baseline_key(name, k): values[k] for k in SUMMARY}, step=0)
    rows = {_OWN: test.metrics, **{f"baseline {k}": v for k, v in baselines.items()}}
    columns = {k: [round(v[k], 4) for v in rows.values()] for k in SUMMARY}
    run.log_table({"on test": list(rows)} | columns, "test/baselines.json")
    bars = {name: {k: values[k] for k in SUMMARY} for name, values in rows.items()}
    if not run.is_trial:
        plot = plots.metric_bars(bars, "on test")
        run.log_picture(plots.to_image(plot), "test/baselines.png")
    return {f"{name}, test": values for name, values in rows.items() if name != _OWN}


def record_report(
    run: Run,
    title: str,
    data: Dataset,
    evaluation: Evaluation,
    *,
    held_out: Evaluation | None,
    costs: Mapping[str, float],
    facts: Mapping[str, str],
) -> None:
    """Record the report of an evaluation: its page, its plots and its tables.

    data: all splits. held_out: searched for label errors; None for no search.
    """
    split, train = evaluation.split, data.manifest.of("train")
    samples, positives = evaluation.samples, evaluation.train_positives
    inputs = ReportInputs(
        title=title,
        split=split,
        data=data.of(split),
        scores=evaluation.scores,
        thresholds=np.broadcast_to(np.float32(evaluation.thresholds), len(samples.labels)),
        train_positives=train.positives if positives is None else positives,
        baselines=baseline_metrics(train.targets, samples.targets, samples.known)
        if len(train)
        else {},
        metrics=evaluation.metrics,
        intervals=evaluation.resampled.intervals(),
        held_out=Part(data.of(held_out.split), held_out.scores) if held_out else None,
        costs=costs,
        facts=facts,
    )
    report = make_report(inputs)
    run.log_text(to_html(report), f"{split}/report.html")
    for name, image in report.images.items():
        run.log_picture(image, f"{split}/report/{name}.png")
    for name in ("suspects", "confusions"):
        if name in report.tables:
            run.log_table(report.tables[name].as_dict(), f"{split}/{name}.json")


def choice(config: Config, best_steps: int, best_map: float, *, steps: int, epochs: int) -> str:
    """Describe how the weights were chosen.

    best_map: the mAP that chose them, NaN for none. steps, epochs: those that were taken.
    """
    if config.select_on == "last" or math.isnan(best_map):
        undefined = f", as mAP on {config.select_on} is undefined" * (config.select_on != "last")
        return f"The weights are those after the last of {counted(steps, 'step')}{undefined}. "
    honesty = ", so its test metrics are too good" if config.select_on == "test" else ""
    early = ""
    if epochs < config.epochs:
        early = (
            f"Training stopped after {epochs} of {config.epochs} epochs, "
            f"{config.patience_epochs} of them without a better mAP on val. "
        )
    return (
        f"{early}The weights are those after {best_steps} of {counted(steps, 'step')}, "
        f"chosen by mAP on {config.select_on}{honesty}. "
    )


def unreached(config: Config, labels: Sequence[str], thresholds: NDArray[np.float32]) -> str:
    """Name the labels that have the wanted precision at no threshold; "" if there are none."""
    names = [label for label, t in zip(labels, thresholds.tolist(), strict=True) if t >= 1]
    if not names or not config.threshold_goal.startswith("precision"):
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return (
        f"Not predicted, as no threshold on val reaches {config.threshold_goal}: {len(names)} "
        f"of {counted(len(labels), 'label')}, {', '.join(names[:_NAMED])}{more}. "
    )


def note(
    manifest: Manifest, test: Evaluation, rows: Rows, cost: Mapping[str, float], outcome: str
) -> str:
    """Write the run's description: results, data and cost. MLflow's page shows its start."""
    bound = rows["baseline top_k, test"]
    sizes = ", ".join(f"{len(manifest.indices(s))} {s}" for s in SPLITS)
    return "\n".join([
        f"**On test: {headline(test)}** "
        f"(always the same labels: {bound['map']:.3f} and {bound['micro/f1']:.3f})", "",
        outcome, "", to_markdown(_table(rows)), "",
        f"Data: {sizes} images, {counted(len(manifest.labels), 'label')}, "
        f"protocol {manifest.protocol}, images without a label: {manifest.unlabelled}, "
        f"unreadable images left out: {manifest.rejected}, digest `{manifest.digest}`. "
        f"Trained at {cost['train/images_per_s']:.0f} images/s for {cost['train/seconds']:.0f} s. "
        "95 % intervals are over images, not over seeds. "
        "The last point of a val or test curve is the value of the chosen weights.",
    ])  # fmt: skip


def headline(evaluation: Evaluation, names: Sequence[str] = ("map", "micro/f1")) -> str:
    """Return metrics with their 95 % intervals, and over how many labels means are, in one line."""
    intervals = evaluation.resampled.intervals()
    texts = ((name, intervals[name]) for name in names)
    line = ", ".join(f"{name} {i.value:.3f} [{i.low:.3f}, {i.high:.3f}]" for name, i in texts)
    averaged = labels_averaged(evaluation.metrics, len(evaluation.samples.labels))
    return f"{line}. {averaged}" if averaged else line


def results_text(rows: Rows) -> str:
    """Write the rows as a table for the terminal."""
    return to_text(_table(rows))


def _table(rows: Rows) -> Table:
    columns = (Column(name, ".3f") for name in SUMMARY)
    cells = ((name, *(values[key] for key in SUMMARY)) for name, values in rows.items())
    return make_table(("", *columns), cells)
