"""Typed readers of environment variables; a wrong value names its variable and stops the start."""

from __future__ import annotations

import os
from pathlib import Path

from django.core.exceptions import ImproperlyConfigured

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off", ""}


def text(name: str, default: str) -> str:
    """Return the variable's text."""
    return os.environ.get(name, default)


def secret(name: str, default: str = "") -> str:
    """Return a secret from ``NAME``, else from the file that ``NAME_FILE`` names."""
    # An empty variable, as an `.env` file leaves it, must not hide the file.
    if value := os.environ.get(name):
        return value
    path = os.environ.get(f"{name}_FILE")
    if path is None:
        return default
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError as error:
        message = f"{name}_FILE names {path!r}, which cannot be read: {error.strerror}."
        raise ImproperlyConfigured(message) from error


def flag(name: str, *, default: bool) -> bool:
    """Return a yes-or-no variable."""
    value = os.environ.get(name)
    if value is None:
        return default
    if value.lower() in _TRUE:
        return True
    if value.lower() in _FALSE:
        return False
    message = f"{name} is {value!r}; it takes true or false."
    raise ImproperlyConfigured(message)


def integer(name: str, default: int, *, minimum: int = 0, maximum: int = 2**53) -> int:
    """Return a whole number within its bounds."""
    value = os.environ.get(name)
    if value is None:
        return default
    try:
        number = int(value)
    except ValueError as error:
        message = f"{name} is {value!r}; it takes a whole number."
        raise ImproperlyConfigured(message) from error
    if not minimum <= number <= maximum:
        message = f"{name} is {number}; it takes {minimum} to {maximum}."
        raise ImproperlyConfigured(message)
    return number


def choice(name: str, default: str, allowed: tuple[str, ...]) -> str:
    """Return one of the allowed words."""
    value = os.environ.get(name, default)
    if value not in allowed:
        message = f"{name} is {value!r}; it takes one of {', '.join(allowed)}."
        raise ImproperlyConfigured(message)
    return value


def words(name: str, default: str = "") -> list[str]:
    """Return a comma-separated list without blanks."""
    return [word.strip() for word in os.environ.get(name, default).split(",") if word.strip()]


def folder(name: str, default: Path) -> Path:
    """Return a folder's absolute path; it need not exist yet."""
    return Path(os.environ.get(name) or default).expanduser().resolve()


def clock_time(name: str, default: str) -> str:
    """Return a time of day as ``HH:MM``."""
    value = os.environ.get(name, default)
    hours, _, minutes = value.partition(":")
    if hours.isdecimal() and minutes.isdecimal() and int(hours) < 24 and int(minutes) < 60:  # noqa: PLR2004
        return f"{int(hours):02d}:{int(minutes):02d}"
    message = f"{name} is {value!r}; it takes a time of day such as 02:30."
    raise ImproperlyConfigured(message)
