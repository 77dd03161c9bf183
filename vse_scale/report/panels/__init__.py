"""The panels of the report, one a module; every module has a ``PANEL``."""
