"""The logger of a module that seldom logs. Layer: lib.

What is logged goes to the standard library's ``logging``, under the name of the module. Importing
that costs start-up time, which a program with nothing to log need not pay.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging


def log_of(name: str) -> logging.Logger:
    """Return the logger of a module, looked up when there is something to say."""
    import logging  # costs start-up time

    return logging.getLogger(name)
