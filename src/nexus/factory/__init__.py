"""The init process: read a configuration, build drivers and kernel, link, start."""
