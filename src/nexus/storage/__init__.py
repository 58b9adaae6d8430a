"""Drivers, one folder for each pillar. They import contracts and lib, never the kernel."""
