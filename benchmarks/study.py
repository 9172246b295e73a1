"""Claim: the strong recipe beats the article's on Corel5k in less time; and what the others do.

    python benchmarks/study.py --data DIR [--seeds 0,1,2] [--only strong,asl] [-- FIELD=VALUE ...]
    python benchmarks/study.py --docs

Trains each recipe of experiments/ that has a place in the study, with each seed, into the MLflow
experiment `study`, or that of another --name, such as `study_images`: from scratch, with resnet18
at 64 px and in few epochs, which two cores can do in an hour, unless FIELD=VALUE says otherwise.
`study_probe` trains heads on the feature maps of EfficientNet-Lite0 at 128 px, whose ImageNet
weights it fetches as pretrained.py does.
What differs from the files is in the params. What is there already is not trained again, so that
the study can be interrupted, and be done by several processes with different --seeds.

--docs compares all recorded runs with the study's first recipe (`nuswide compare --out`), writes
the result to experiments/study (or --name), and the table between the comments of that name in
docs/results.md.
"""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import mlflow
from pretrained import NAME, fetch

from nuswide.config import load_config
from nuswide.evaluation.compare import compare_runs
from nuswide.training.pipeline import train_and_register

ROOT = Path(__file__).resolve().parent.parent
EXPERIMENTS, RESULTS = ROOT / "experiments", ROOT / "docs" / "results.md"
SMALL = {
    "backbone": "resnet18", "weights": "none", "image_size_px": "64", "epochs": "8",
    "precision": "bf16",
}  # fmt: skip
OWN = {
    # The article's recipe gets more passes, so that no other is better by more steps.
    "article_val": {"epochs": "10"},
    "growing_sizes": {"start_size_px": "32"},  # half of the size, as in its file
    "native_size": {"image_size_px": "0"},
}
LITE0 = Path("data/efficientnet_lite0.safetensors")
PLACES = {
    "study": ("article_val.yaml", "strong.yaml", "losses/*.yaml", "heads/*.yaml",
              "combination.yaml"),
    "study_images": ("strong.yaml", "images/*.yaml"),
    "study_probe": ("probe.yaml", "probe/*.yaml"),
}  # fmt: skip


def recipes(study: str) -> dict[str, Path]:
    """The recipes of a study by name, with their files; the first is the baseline."""
    places = PLACES.get(study, PLACES["study"])
    found = (path for place in places for path in sorted(EXPERIMENTS.glob(place)))
    return {path.stem: path for path in found}


def shared_fields(study: str) -> dict[str, str]:
    """The fields of all recipes of a study."""
    if study != "study_probe":
        return SMALL
    if not LITE0.exists():
        LITE0.parent.mkdir(parents=True, exist_ok=True)
        fetch(LITE0)
    return {"backbone": f"timm/{NAME}", "weights": str(LITE0), "image_size_px": "128"}


def left_to_do(study: str, names: list[str], seeds: list[str]) -> Iterator[tuple[str, str]]:
    """Each recipe with each seed that no run has ended well with, looked up when its turn comes."""
    for seed in seeds:
        for name in names:
            query = f"tags.`study.recipe` = '{name}' and params.seed = '{seed}'"
            runs = mlflow.search_runs(
                experiment_names=[study],
                filter_string=f"{query} and attributes.status = 'FINISHED'",
                output_format="list",
            )
            if not runs:
                yield name, seed


def train(
    study: str, data: Path, names: list[str], seeds: list[str], changes: dict[str, str]
) -> None:
    """Train what is not in the record yet."""
    mlflow.set_experiment(study)
    shared = shared_fields(study)
    for name, seed in left_to_do(study, names, seeds):
        fields = {**shared, **OWN.get(name, {}), **changes}
        fields |= {"data": str(data), "seed": seed, "registered_model": "none"}
        config = load_config(recipes(study)[name], fields)
        tags = {"study.recipe": name}
        train_and_register(config, name=f"{name} seed={seed}", tags=tags, is_trial=True)


def update_docs(study: str) -> None:
    """Compare the recorded runs, and write the table to docs/results.md."""
    out = EXPERIMENTS / study
    compare_runs(study, baseline=next(iter(recipes(study))), out=out)
    table = (out / "comparison.md").read_text(encoding="utf-8").strip()
    text = RESULTS.read_text(encoding="utf-8")
    begin, end = f"<!-- {study} -->", f"<!-- /{study} -->"
    block = f"{begin}\n{table}\n{end}"
    text = re.sub(f"{begin}.*{end}", lambda _: block, text, flags=re.DOTALL)
    RESULTS.write_text(text, encoding="utf-8")


def main() -> None:
    """Train, or write down what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--name", default="study")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", help="recipes, parted by commas; else all of the study")
    parser.add_argument("--docs", action="store_true")
    parser.add_argument("changes", nargs="*", metavar="FIELD=VALUE")
    options = parser.parse_args()
    if options.docs:
        update_docs(options.name)
    elif options.data:
        changes = dict(change.split("=", 1) for change in options.changes)
        names = options.only.split(",") if options.only else list(recipes(options.name))
        train(options.name, options.data, names, options.seeds.split(","), changes)
    else:
        parser.error("give --data DIR, or --docs")


if __name__ == "__main__":
    main()
