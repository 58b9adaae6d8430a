"""Conformance suites and fakes, for this repository and for authors of drivers elsewhere.

A driver's own test subclasses a suite and hands it a fixture that makes the driver.
"""
