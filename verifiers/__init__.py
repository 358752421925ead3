"""Ways to run the target, one per file."""

from verifiers.full import FullVerifier

__all__ = ["FullVerifier"]
