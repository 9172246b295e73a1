"""The model card: what a registered model is, how good it is, and its limits.

Owns the text that travels with a model. Computes no metric.

Source of its parts: Mitchell et al. 2019, Model Cards for Model Reporting, arXiv:1810.03993.
"""

from collections.abc import Sequence

from nuswide import metrics
from nuswide.config import Config
from nuswide.core.wording import counted
from nuswide.data.manifest import SPLITS, Manifest
from nuswide.evaluation.evaluate import Evaluation
from nuswide.reporting.table import make_table, to_markdown

_FEW = 20  # positives in train or in test below which a label is called unreliable
_LABELS = "## Labels"
_FITS = {
    "squash": "Images are resized to a square regardless of their aspect ratio.",
    "crop": "Images are cropped to their central square: the model does not see the rest.",
    "pad": "Images are padded to a square with bars of one color.",
}


def make_card(
    config: Config, manifest: Manifest, evaluations: Sequence[Evaluation], *, choice: str
) -> str:
    """Return the card in Markdown.

    manifest: all splits. evaluations: the last one is on test. choice: how the weights were
    chosen, in words.
    """
    sections = {
        "": _about(config, manifest, choice),
        "## Data": _data(manifest),
        "## Metrics": _metrics(evaluations),
        "## Limits": _limits(config, manifest, evaluations[-1]),
        "## Licence": _LICENCE,
        _LABELS: _labels(manifest, evaluations[-1]),
    }
    return "\n\n".join(f"{title}\n\n{text}".strip() for title, text in sections.items()) + "\n"


def without_labels(card: str) -> str:
    """Return the card without its label table, for fields limited to a few thousand characters."""
    return card.partition(_LABELS)[0].strip()


def _about(config: Config, manifest: Manifest, choice: str) -> str:
    start = f", started from {config.weights}" if config.weights != "none" else ""
    return (
        f"A tagger of photographs: {config.backbone} with the head {config.head} at "
        f"{config.image_size_px} px{start}. It scores {counted(len(manifest.labels), 'label')} "
        f"from 0 to 1 and predicts those at or above their thresholds. {choice.strip()}"
    )


def _data(manifest: Manifest) -> str:
    sizes = ", ".join(f"{len(manifest.indices(split))} {split}" for split in SPLITS)
    return (
        f"{sizes} images; protocol {manifest.protocol}; images without a label: "
        f"{manifest.unlabelled}; unreadable images left out: {manifest.rejected}; digest "
        f"`{manifest.digest}`."
    )


def _metrics(evaluations: Sequence[Evaluation]) -> str:
    pairs = [(e.metrics, e.resampled.intervals()) for e in evaluations]
    rows = (
        [name, *(f"{f[name]:.3f}{_bounds(i.get(name))}" for f, i in pairs)]
        for name in metrics.HEADLINE
    )
    sizes = (f"{e.split}, {counted(len(e.samples), 'image')}" for e in evaluations)
    averaged = (
        (e.split, metrics.labels_averaged(e.metrics, len(e.samples.labels))) for e in evaluations
    )
    return (
        f"{to_markdown(make_table(('metric', *sizes), rows))}\n\n"
        + "".join(f"On {split}, {text} " for split, text in averaged if text)
        + "95 % intervals over images are in brackets; they do not include the variance over "
        "seeds. Nothing was chosen on test unless stated above."
    )


def _bounds(interval: metrics.Interval | None) -> str:
    return "" if interval is None else f" [{interval.low:.3f}, {interval.high:.3f}]"


def _limits(config: Config, manifest: Manifest, test: Evaluation) -> str:
    few = _scarce(manifest, "train"), _scarce(test.samples, test.split)
    scores = (
        f"Scores are calibrated by {config.calibration} scaling, fitted on val."
        if config.calibration != "none"
        else "Scores are not calibrated: do not read them as probabilities."
    )
    return "\n".join(
        f"- {line}"
        for line in (
            *filter(None, few),
            scores,
            _FITS[config.fit],
            "The model knows only the labels below, on photographs like its training images, "
            "whose labels contain mistakes.",
            "Do not use it to identify people or to make decisions about them.",
        )
    )


def _scarce(samples: Manifest, split: str) -> str:
    names = [n for n, p in zip(samples.labels, samples.positives, strict=True) if p < _FEW]
    if not names:
        return ""
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    return f"Labels with fewer than {_FEW} positives in {split}, unreliable: {shown}."


_LICENCE = (
    "The weights have no licence of their own. What is allowed depends on the licences of the "
    "training images (NUS-WIDE's belong to Flickr users, and many exclude commercial use) and of "
    "the weights that training started from, if any (ImageNet's images are for research)."
)


def _labels(manifest: Manifest, test: Evaluation) -> str:
    samples = test.samples
    table = metrics.per_label_table(
        samples.labels, samples.targets, test.scores, test.thresholds, samples.known
    )
    in_train = dict(zip(manifest.labels, manifest.of("train").positives.tolist(), strict=True))
    columns = ("ap", "f1", "precision", "recall", "threshold", "support")
    rows = (
        [label, in_train[label], *(table[name][i] for name in columns)]
        for i, label in enumerate(table["label"])
    )
    return to_markdown(make_table(("label", "in train", *columns[:-1], f"in {test.split}"), rows))
