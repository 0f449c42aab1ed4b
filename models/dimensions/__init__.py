"""The ways to segment customers, one independent file each."""

from models.dimensions.attribute import Attribute
from models.dimensions.bands import Bands
from models.dimensions.base import Dimension
from models.dimensions.cluster import Cluster
from models.dimensions.dominant import Dominant
from models.dimensions.lifecycle import Lifecycle
from models.dimensions.pareto import Pareto
from models.dimensions.rfm import Rfm
from models.dimensions.rules import Rules
from models.engines import (
    AttributePolicy,
    BandsPolicy,
    ClusterPolicy,
    DominantPolicy,
    EnginePolicy,
    LifecyclePolicy,
    ParetoPolicy,
    RfmPolicy,
)
from models.policy import Policy
from models.population import Cutoffs

__all__ = [
    "Attribute",
    "Bands",
    "Cluster",
    "Dimension",
    "Dominant",
    "Lifecycle",
    "Pareto",
    "Rfm",
    "Rules",
    "dimensions_of",
]


def dimensions_of(policy: Policy, cutoffs: Cutoffs | None = None) -> tuple[Dimension, ...]:
    """The policy's dimensions, in its order. Without cut-offs those that need them label nobody."""
    known = cutoffs or Cutoffs()
    return tuple(_dimension(name, each, policy, known) for name, each in policy.dimensions.items())


def _dimension(name: str, engine: EnginePolicy, policy: Policy, cutoffs: Cutoffs) -> Dimension:
    cuts = cutoffs.scores.get(name, {})
    match engine:
        case LifecyclePolicy():
            return Lifecycle(name, engine)
        case AttributePolicy():
            return Attribute(name, engine)
        case BandsPolicy():
            return Bands(name, engine, policy)
        case DominantPolicy():
            return Dominant(name, engine)
        case ParetoPolicy():
            return Pareto(name, engine, policy.converter, cuts)
        case RfmPolicy():
            return Rfm(name, engine, cuts)
        case ClusterPolicy():
            return Cluster(name, engine, policy, cutoffs.clusters.get(name))
        case _:
            return Rules(name, engine, policy)
