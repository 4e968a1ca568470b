"""The error's former name; see `failures`."""

from .failures import EnvFailed as EnvProcessError

__all__ = ["EnvProcessError"]
