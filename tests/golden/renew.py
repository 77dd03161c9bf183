"""Writes the golden losses anew; CONTRIBUTING.md says when that is right.

Usage: PYTHONPATH=tests/support python tests/golden/renew.py [NAME ...]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from golden_losses import HERE, RECIPES, trained_text


def main() -> None:
    for name in sys.argv[1:] or RECIPES:
        with tempfile.TemporaryDirectory() as folder:
            text = trained_text(name, Path(folder))
        path = HERE / f"{name}.txt"
        same = path.exists() and path.read_text() == text
        path.write_text(text)
        print(f"{path}: {'as it was' if same else 'changed'}")


if __name__ == "__main__":
    main()
