"""Where a model's package lies. The builders read files out of packages and never import their
code, so that the packages' own dependencies need not be installed.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"


class MissingPackage(SystemExit):
    """Exit code 2 with one line on stderr; the argument of `SystemExit` would give code 1."""

    def __init__(self, message: str) -> None:
        print(f"error: {message}", file=sys.stderr)
        super().__init__(2)


def package_folder(module: str) -> Path:
    """The folder of an installed package, by its import name."""
    spec = find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise MissingPackage(
            f"the package that holds `{module}` is not installed: "
            f"pip install --no-deps -r {REQUIREMENTS}"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def require(*modules: str) -> None:
    """Say at once, and in one line, which of the modules that a builder imports are missing."""
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingPackage(
            f"not installed: {', '.join(missing)}: pip install --no-deps -r {REQUIREMENTS}"
        )


def report(paths: list[Path]) -> None:
    """One line a file: what a builder prints when it is done."""
    for path in paths:
        print(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
