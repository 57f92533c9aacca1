"""How ops become PrimFuncs where TVM's way is wrong for symbolic shapes, or slow."""

from collections.abc import Callable
from typing import Any

LEGALIZATIONS: dict[str, Callable[[Any, Any], Any]] = {}
