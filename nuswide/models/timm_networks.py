"""timm's networks by name: their settings, and their building with pooling and classifier.

Owns the names NAME and NAME.TAG, and the download of timm's weights.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import click

from nuswide.config import Config, unknown_name
from nuswide.models.drop_path import no_drop_path

TIMM = "timm/"
IMAGENET, IMAGENET_V2 = "imagenet", "imagenet_v2"  # the weights that are downloaded
_PATIENCE_S = 10.0  # for the first answer of the hub that timm loads weights from


def timm_settings(backbone: str) -> tuple[str, Any]:
    """Return the name of timm/NAME, and timm's PretrainedCfg or None.

    NAME may end in a tag of pretrained weights, as in resnet50.a1_in1k. Raises click.UsageError for
    an unknown name or tag, click.ClickException if timm is not installed.
    """
    name = backbone.removeprefix(TIMM)
    try:
        import timm
    except ImportError as error:
        raise click.ClickException(
            f"backbone={backbone} needs timm; install it with pip install 'nuswide[timm]'"
        ) from error
    network, is_tagged, tag = name.partition(".")
    if not timm.is_model(network):
        known = {known: None for known in timm.list_models()}
        raise click.UsageError(unknown_name("timm backbone", name, known))
    if is_tagged and name not in (there := timm.list_pretrained(f"{network}.*")):
        tags = ", ".join(one.partition(".")[2] for one in there) or "none"
        raise click.UsageError(
            f"timm has no weights {tag!r} for backbone={TIMM}{network}; its tags: {tags}"
        )
    return name, timm.get_pretrained_cfg(name)


def timm_names() -> list[str]:
    """Return the names of timm's networks; none if timm is not installed."""
    try:
        import timm
    except ImportError:
        return []
    return list(timm.list_models())


def untrained(name: str) -> Any:
    """Return timm's network of this name at its own size, without classifier and weights."""
    import timm

    return remove_classifier(timm.create_model(name))


def remove_classifier(network: Any) -> Any:
    """Remove a network's classifier, and its pooling if it can be turned off; return the network.

    Networks are built with both: without, timm gives those that normalize after pooling another,
    untrained norm.
    """
    if not hasattr(network, "reset_classifier"):  # an encoder
        return network
    try:
        network.reset_classifier(0, "")
    except AssertionError:
        network.reset_classifier(0)
    return network


def native_size_px(name: str) -> int:
    """Return the image size that timm's network of this name was made for."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    return int(settings.input_size[-1]) if settings else 224


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def build_timm(name: str, config: Config) -> Any:
    """Build a network with pooling and classifier, for images of image_size_px."""
    import timm

    settings = timm.get_pretrained_cfg(name)
    options: dict[str, Any] = {}
    if settings and settings.fixed_input_size and config.image_size_px != native_size_px(name):
        options["img_size"] = config.image_size_px
    if config.drop_path > 0:
        options["drop_path_rate"] = config.drop_path
    is_pretrained = config.weights == IMAGENET
    try:
        with _without_retries() if is_pretrained else nullcontext():
            return timm.create_model(name, pretrained=is_pretrained, **options)
    except Exception as error:  # many types, of the hub and of each network
        if "unexpected keyword argument 'img_size'" in str(error):
            raise click.ClickException(
                f"backbone={config.backbone} takes image_size_px={native_size_px(name)} alone, not "
                f"{config.image_size_px}; give this, or another backbone"
            ) from error
        if "unexpected keyword" in str(error) and "drop_path_rate" in str(error):
            raise click.UsageError(no_drop_path(config)) from error
        way_out = "; fetch the weights elsewhere and use weights=FILE" if is_pretrained else ""
        raise click.ClickException(
            f"cannot build backbone={config.backbone} with weights={config.weights} at "
            f"image_size_px={config.image_size_px} ({first_line(error)}){way_out}"
        ) from error


@contextmanager
def _without_retries() -> Iterator[None]:
    """Take weights from the hub's local cache alone while the hub cannot be reached.

    timm's client would try again for a minute, with a line for each time.
    """
    from huggingface_hub import constants

    was_offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = was_offline or not _answers(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = was_offline


def _answers(url: str) -> bool:
    try:
        urlopen(url, timeout=_PATIENCE_S).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True
