"""Experiment files: YAML of `field: value` lines, which may build on one other file.

Owns their reading. Knows no field.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


def build_on(own: Mapping[str, Any], path: Path, builders: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Complete the fields of a file by those of the experiment file that its `experiment` names.

    own: fields as read; they take precedence. path: their file, which the name is relative to.
    builders: resolved paths of the files that build on it. Raises click.UsageError if a named file
    cannot be read, or builds on itself.
    """
    if "experiment" not in own:
        return dict(own)
    base, builders = path.parent / str(own["experiment"]), (*builders, path.resolve())
    if base.resolve() in builders:
        raise click.UsageError(f"{path} builds on {base}, which builds on itself; remove one")
    try:
        fields = build_on(read_yaml(base), base, builders)
    except click.UsageError as error:
        raise click.UsageError(f"{path} builds on {base}: {error.message}") from error
    return fields | {name: value for name, value in own.items() if name != "experiment"}


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of `key: value` lines; raises click.UsageError if it cannot be read."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise click.UsageError(f"cannot read the experiment file {path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date of month 13
        reason = " ".join(str(error).split())
        raise click.UsageError(f"{path} is not valid YAML: {reason}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise click.UsageError(f"{path} must hold `field: value` lines")
    return content
