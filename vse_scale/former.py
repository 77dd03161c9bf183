"""Former places of modules, kept until 1.0."""

import importlib
import sys
from collections.abc import Mapping


def hand_on(package: str, moved: Mapping[str, str]) -> None:
    """Make former modules of a package importable, each as the module that it became.

    A module that is known by two names is one module: isinstance and patches agree.

    Args:
        package: the former package, ``vse_scale.evaluation``.
        moved: present name of each former module, without ``vse_scale.``.
    """
    for old, new in moved.items():
        module = importlib.import_module(f"vse_scale.{new}")
        sys.modules[f"{package}.{old}"] = module
        setattr(sys.modules[package], old, module)
