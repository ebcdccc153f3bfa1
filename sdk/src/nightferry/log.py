"""The SDK's log, the logger ``nightferry``; ``logging`` is loaded when there is news."""

from __future__ import annotations

TYPE_CHECKING = False  # as in ``typing``, without its import
if TYPE_CHECKING:
    from logging import Logger

_CALLER = 2  # frames up: who called the function below


def debug(message: str, *values: object) -> None:
    """Log what only a developer wants to know."""
    _logger().debug(message, *values, stacklevel=_CALLER)


def info(message: str, *values: object) -> None:
    """Log what happened as it should."""
    _logger().info(message, *values, stacklevel=_CALLER)


def warning(message: str, *values: object) -> None:
    """Log what an operator should know."""
    _logger().warning(message, *values, stacklevel=_CALLER)


def exception(message: str, *values: object) -> None:
    """Log an unexpected exception with its traceback; call it while handling one."""
    _logger().exception(message, *values, stacklevel=_CALLER)


def _logger() -> Logger:
    import logging

    return logging.getLogger("nightferry")
