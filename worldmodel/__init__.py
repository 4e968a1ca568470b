"""What happens next: environments, recorded experience, and learned worlds."""

__version__ = "0.1.0"
