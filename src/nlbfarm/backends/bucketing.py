"""Bucket functions of a vendor's own: imported by name, in every process that judges packets."""

from __future__ import annotations

import importlib

from nlbfarm.core.judging import BucketFunction
from nlbfarm.errors import UsageError

__all__ = ["load_function", "reference_of"]


def load_function(reference: str) -> BucketFunction:
    """Import a bucket function.

    Args:
        reference: ``"package.module:name"``.

    Raises:
        UsageError: It cannot be imported, or is no function.
    """
    module, _, name = reference.partition(":")
    try:
        found: object = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise UsageError(
            f"the bucket function {reference} cannot be imported: {type(error).__name__}: {error}; its "
            "module has to be installed where nlbfarm is, on every node"
        ) from error
    if not callable(found):
        raise UsageError(f"the bucket function {reference} is a {type(found).__name__}, no function")
    return found


def reference_of(function: BucketFunction) -> str:
    """Return ``"package.module:name"`` of a function, by which another process can import it.

    Raises:
        UsageError: It cannot be imported by name.
    """
    module = getattr(function, "__module__", type(function).__module__)
    reference = f"{module}:{getattr(function, '__qualname__', type(function).__qualname__)}"
    try:
        found = load_function(reference)
    except UsageError:
        found = None
    if found is not function or module == "__main__":
        raise UsageError(
            f"the bucket function {reference} cannot be imported by that name, as other processes must: "
            "define it at the top of a module that is installed"
        )
    return reference
