"""The log of the service."""

import logging
from typing import Any

from ditlab.core.printable import printable


class LogLines(logging.Formatter):
    """Formats messages and tracebacks, with escapes in place of control characters from names and requests."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_config() -> dict[str, Any]:
    """The logging settings of the HTTP server: all messages on standard error."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"lines": {"()": LogLines, "format": "%(levelname)s: %(message)s"}},
        "handlers": {"lines": {"class": "logging.StreamHandler", "formatter": "lines", "stream": "ext://sys.stderr"}},
        "loggers": {"uvicorn": {"handlers": ["lines"], "level": "INFO", "propagate": False}},
    }
