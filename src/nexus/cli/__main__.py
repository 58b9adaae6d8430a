"""The entry point of ``nexus`` and of ``python -m nexus.cli``. Layer: cli.

Imports nothing but the standard library until the extra ``cli`` is known to be there.
"""

import sys
from importlib import util
from io import TextIOWrapper


def main() -> None:
    """Run the command line and exit with its code."""
    missing = [name for name in ("typer", "rich") if util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        sys.stderr.write(f"nexus: {names} not installed: pip install 'nexusfs[cli]'\n")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A name that the terminal's encoding lacks is escaped, not an error.
            stream.reconfigure(errors="backslashreplace")
    # Only now: this imports the extra.
    from nexus.cli.app import app

    app(prog_name="nexus")


if __name__ == "__main__":
    main()
