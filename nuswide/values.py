"""Values of configuration fields: conversion from text or YAML, and ranges.

Raises ValueError with a message that names the field, the value and what is allowed.
"""

from collections.abc import Callable, Mapping
from typing import Any


def convert(name: str, value: Any, kind: Any) -> Any:
    """Convert a value from YAML or the command line to the type of its field.

    Texts are converted too, because YAML reads `1e-4` as one. A bool or a fraction is not an int.
    Channels may be a list.
    """
    if name in ("mean", "std") and isinstance(value, list):
        value = ",".join(map(str, value))
    converter: Callable[[Any], Any] = _CONVERTERS.get(kind, _text)
    try:
        return converter(value)
    except (ValueError, TypeError, OverflowError):
        wanted = {int: "a whole number", float: "a number", bool: "true or false"}
        raise ValueError(f"{name}={value!r} is not {wanted.get(kind, 'text')}") from None


def _text(value: Any) -> str:
    if value is None or isinstance(value, bool | list | dict):
        raise ValueError
    return str(value)


def _truth(value: Any) -> bool:
    truths = {"true": True, "false": False}
    if str(value).lower() not in truths:
        raise ValueError
    return truths[str(value).lower()]


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: lambda value: int(_text(value)),
    float: lambda value: float(_text(value)),
    bool: _truth,
}


def read_channels(name: str, value: str) -> tuple[float, float, float]:
    """Read a number for each of red, green and blue, as in `0.485,0.456,0.406`.

    Raises ValueError, as for a mean outside of [0, 1] or a standard deviation below 0.001, by which
    normalized images could overflow.
    """
    try:
        red, green, blue = (float(part) for part in value.split(","))
    except ValueError:
        red = green = blue = float("nan")
    low = 0.001 if name == "std" else 0
    if not all(low <= channel <= 1 for channel in (red, green, blue)):
        raise ValueError(
            f"{name}={value!r} is not auto or three numbers from {low} to 1, as in "
            "0.485,0.456,0.406"
        )
    return red, green, blue


def check_range(name: str, value: Any, meta: Mapping[str, Any], choices: tuple[Any, ...]) -> None:
    """Check a value against a field's `low`, `high` and `open_low`, or its choices, if any."""
    if choices and value not in choices:
        raise ValueError(f"{name}={value!r} is not one of {', '.join(map(str, choices))}")
    low, high = meta["low"], meta["high"]
    # `not (a <= b)` rather than `a > b`: NaN must fail too.
    too_low = low is not None and not (low < value if meta["open_low"] else low <= value)
    too_high = high is not None and not value <= high
    infinite = isinstance(value, float) and value in (float("inf"), float("-inf"))
    if too_low or too_high or infinite:
        above = f"{'above' if meta['open_low'] else 'at least'} {low}" if low is not None else ""
        below = f"at most {high}" if high is not None else ""
        allowed = " and ".join(filter(None, [above, below, "finite" if infinite else ""]))
        raise ValueError(f"{name}={value} is out of range; it must be {allowed}")


def check_goal(goal: str) -> None:
    """Check that a threshold_goal is an F-beta, such as `f2`, or a precision, `precision:0.9`."""
    name, value = goal[:1], goal[1:]
    if goal.startswith("precision:"):
        name, _, value = goal.partition(":")
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    highest = {"f": 10.0, "precision": 1.0}.get(name, 0.0)
    if not 0 < number <= highest:
        raise ValueError(
            f"threshold_goal={goal!r} is neither an F-beta nor a precision; give e.g. f1, f2, f0.5 "
            "or precision:0.9"
        )


def check_start_size(start_px: int, full_px: int) -> None:
    """Check that images can grow from start_size_px to image_size_px, which may be 0 so far."""
    if start_px % 32 or start_px > full_px > 0:
        raise ValueError(
            f"start_size_px={start_px} is no multiple of 32 up to image_size_px={full_px}; give "
            f"e.g. {max(32, full_px // 64 * 32)}, or 0 to use image_size_px throughout"
        )
