"""Where the files lie that the package ships beside its code: in the checkout, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Path of ``name``, a file or folder given relative to the checkout's root, such as ``containers``.

    The wheel carries these under ``_shipped`` (pyproject.toml, ``force-include``).

    Raises:
        FileNotFoundError: it is in neither place.
    """
    for root in (_PACKAGE / "_shipped", _PACKAGE.parent):
        if (root / name).exists():
            return root / name
    raise FileNotFoundError(f"{name} is neither in the package nor in a checkout around it; install grpo-hpc again")


def checkout() -> Path | None:
    """Root of the checkout that the package runs from; None when it is installed from a wheel."""
    root = _PACKAGE.parent
    return root if (root / "pyproject.toml").is_file() and (root / "containers").is_dir() else None
