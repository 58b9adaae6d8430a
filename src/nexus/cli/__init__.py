"""The ``nexus`` command line. Layer: cli, over the sdk alone; see docs/cli.md.

Needs the extra ``cli`` (typer and rich); :mod:`nexus.cli.__main__` says so where it is missing.
"""
