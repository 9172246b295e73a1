"""What is recorded of a sweep: its plan, the table of trials, plots and the best experiment.

Owns their content; tracking.sweep_run writes them. Of a trial it knows the mAP on val alone.
"""

import time
from collections.abc import Sequence

import optuna
import yaml
from PIL import Image

from nuswide.core.wording import counted
from nuswide.reporting import plots
from nuswide.tracking.sweep_run import SweepRun
from nuswide.training.sweep.plan import Dimension, Plan
from nuswide.training.sweep.trials import Trial, best_of, columns, to_text

VALUE = "val/map"  # the metric that a sweep maximises


def record_plan(run: SweepRun, plan: Plan, storage: str) -> None:
    """Record what is searched, how, and on top of what."""
    run.log_params({"storage": storage, "trials": str(plan.trials), **plan.describe()})


def record_progress(run: SweepRun, plan: Plan, trials: Sequence[Trial]) -> None:
    """Record the table of trials, and the best value so far."""
    run.log_table(columns(plan, trials), "trials.json")
    run.set_note(f"```\n{to_text(plan, trials)}\n```")
    if best := best_of(trials):
        done = len([trial for trial in trials if trial.is_done])
        assert best.value is not None
        run.log_metric(f"best/{VALUE}", best.value, step=done)


def record_outcome(
    run: SweepRun, plan: Plan, trials: Sequence[Trial], study: optuna.Study, to_train: str
) -> None:
    """Record the plots, and the best trial as an experiment file; to_train: as in best_yaml."""
    for name, image in draw(plan, trials, study).items():
        run.log_picture(image, f"{name}.png")
    if best := best_of(trials):
        run.log_text(best_yaml(plan, best, trials, study.study_name, to_train), "best.yaml")


def draw(plan: Plan, trials: Sequence[Trial], study: optuna.Study) -> dict[str, Image.Image]:
    """Return the plots that the trials so far allow, by name."""
    measured = [trial for trial in trials if trial.value is not None]
    if not measured:
        return {}
    values = [float(trial.value) for trial in measured if trial.value is not None]
    figures = {
        "history": plots.search_history(
            [trial.index + 1 for trial in measured], values, [t.state == "pruned" for t in measured]
        )
    }
    complete = [trial for trial in measured if trial.state == "complete"]
    if len(complete) > 1:
        axes = [_axis(dimension, complete) for dimension in plan.search]
        figures["parallel_coordinates"] = plots.parallel_coordinates(
            axes, [trial.value or 0.0 for trial in complete], "mAP on val"
        )
        if shares := importances(study):
            figures["importance"] = plots.importance_bars(shares)
    return {name: plots.to_image(figure) for name, figure in figures.items()}


def importances(study: optuna.Study) -> dict[str, float]:
    """Return each field's share of the variance of mAP between trials; {} if mAP does not vary.

    Source: Hutter et al. 2014, fANOVA.
    """
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    complete = study.get_trials(states=[optuna.trial.TrialState.COMPLETE])
    if len({trial.value for trial in complete}) < 2:
        return {}
    return dict(optuna.importance.get_param_importances(study, evaluator=evaluator))


def _axis(dimension: Dimension, trials: Sequence[Trial]) -> plots.SearchAxis:
    """Return the trials' positions on the axis of a dimension, with its ticks."""
    shown = dimension.values or tuple(
        dimension.low * (dimension.high / dimension.low) ** share if dimension.log
        else dimension.low + share * (dimension.high - dimension.low)
        for share in (0, 0.25, 0.5, 0.75, 1)
    )  # fmt: skip
    texts = [f"{v:.3g}" if isinstance(v, float) else str(v) for v in shown]
    ticks = dict(zip(texts, map(dimension.share_of, shown), strict=True))
    indices = [dimension.share_of(trial.params[dimension.name]) for trial in trials]
    return plots.SearchAxis(dimension.name, indices, ticks)


def best_yaml(plan: Plan, best: Trial, trials: Sequence[Trial], name: str, to_train: str) -> str:
    """Return the best trial as the text of an experiment file. to_train: its command."""
    n_complete = len([trial for trial in trials if trial.state == "complete"])
    header = (
        f"# The best of {counted(n_complete, 'complete trial')} of the sweep {name}: "
        f"trial {best.index + 1}, run {best.run}.\n# mAP {best.value:.4f} on val. "
        "It was chosen by this value, which is therefore optimistic.\n#\n"
        f"#   {to_train}\n#\n"
        f"# Written {time.strftime('%Y-%m-%d')}.\n"
    )
    return header + yaml.safe_dump(plan.changed(best.params), sort_keys=False)
