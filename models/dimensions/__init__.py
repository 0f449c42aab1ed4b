"""The ways to segment customers, one independent file each."""

from models.dimensions.base import Dimension
from models.dimensions.lifecycle import Lifecycle
from models.policy import Policy

__all__ = ["Dimension", "Lifecycle", "dimensions_of"]


def dimensions_of(policy: Policy) -> tuple[Dimension, ...]:
    """The policy's dimensions, in its order."""
    return tuple(Lifecycle(name, each) for name, each in policy.dimensions.items())
