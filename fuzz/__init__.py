"""Coverage-guided fuzzing of whatever parses stored bytes; ``make fuzz`` runs it.

``rust/nexus_kernel/fuzz`` has the targets of the crate, :mod:`fuzz.targets` those in Python, and
:mod:`fuzz.seeds` the stored forms that they start from, written by the real encoders.
"""
