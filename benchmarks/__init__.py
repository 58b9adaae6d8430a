"""Every number that a document quotes is printed by a file here: ``python -m benchmarks``."""
