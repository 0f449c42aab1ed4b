"""ClusterModel: one published version of a learned clustering, as numbers; and which cluster a customer is in by it.

It is immutable and refers to nothing: workers of any number that hold the same version label alike. How it is learned
is models/clustering.py. A customer is a point of measures, each as the logarithm of one more than its absolute value,
with its sign, standardised by the population's mean and deviation.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from models.engines import ClusterPolicy
from models.errors import StateError

Floats = NDArray[np.float64]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]

FORMAT: Final = 1
#: Decimals of a logarithm that count: processors disagree about the last bits.
_DECIMALS: Final = 9


def logged(values: Floats) -> Floats:
    """The logarithms of measures, by which differences between customers are of one kind: sign(v) ln(1 + |v|)."""
    logs: Floats = np.round(np.sign(values) * np.log1p(np.abs(values)), _DECIMALS)
    return logs


def unlogged(logs: Floats) -> Floats:
    """The inverse of ``logged``."""
    values: Floats = np.sign(logs) * np.expm1(np.abs(logs))
    return values


def squares(points: Floats, centres: Floats) -> Floats:
    """The square of each point's distance to each centre.

    One feature after the other, in their order, and no matrix product: the same sum on any machine.
    """
    total = np.zeros((len(points), len(centres)))
    for feature in range(points.shape[1]):
        apart = points[:, feature, None] - centres[:, feature]
        total += apart * apart
    return total


class Stored(BaseModel):
    """JSON of ours: frozen, and a field that is missing, unknown or of another type is damage."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Document(Stored):
    """JSON of ours that stands alone: it says its format, and equal documents have equal texts."""

    #: What an error calls it.
    what: ClassVar[str]

    format: Literal[1] = FORMAT

    def encode(self) -> bytes:
        """The document as it is stored and sent."""
        return self.model_dump_json().encode()

    @classmethod
    def parse(cls, text: bytes) -> Self:
        """Read it. Raises StateError if it is damaged or a newer version wrote it."""
        try:
            found = orjson.loads(text)
            newer = isinstance(found, dict) and isinstance(found.get("format"), int) and found["format"] > FORMAT
            if newer:
                raise StateError(f"{cls.what} was stored in format {found['format']}; run a newer version")
            return cls.model_validate_json(text)
        except orjson.JSONDecodeError as error:
            raise StateError(f"{cls.what} is damaged: it is not JSON ({error})") from None
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"]) or "it"
            raise StateError(f"{cls.what} is damaged: {where}: {first['msg']}") from None


class Settings(Stored):
    """What a clustering is made by; with others it is another clustering."""

    features: Annotated[tuple[str, ...], Field(min_length=1)]
    clusters: Annotated[int, Field(ge=2)]
    sample: Annotated[int, Field(ge=1)]
    seed: int

    @classmethod
    def of(cls, policy: ClusterPolicy) -> Settings:
        """A dimension's."""
        return cls(features=policy.features, clusters=policy.clusters, sample=policy.sample, seed=policy.seed)


class ClusterModel(Document):
    """One version of a clustering.

    ``mean`` and ``scale`` are of the logarithms of ``features``, ``centres`` of the standardised logarithms, by label
    code, like ``titles`` and ``shares``, each cluster's share of the customers drawn at ``as_of`` (microseconds).
    ``samples`` were learned so far and ``drifts`` noticed; ``error`` is the root of the mean squared distance from a
    customer drawn to the nearest centre, ``silhouette`` their mean silhouette, both in standardised units.
    """

    what = "a stored cluster model"

    version: Annotated[int, Field(ge=1)]
    as_of: int
    features: Annotated[tuple[str, ...], Field(min_length=1)]
    mean: tuple[Finite, ...]
    scale: tuple[Annotated[Finite, Field(gt=0)], ...]
    centres: Annotated[tuple[tuple[Finite, ...], ...], Field(min_length=2)]
    titles: tuple[str, ...]
    shares: tuple[Share, ...]
    samples: Count
    drifts: Count
    error: Annotated[Finite, Field(ge=0)]
    silhouette: Annotated[Finite, Field(ge=-1, le=1)]

    @model_validator(mode="after")
    def _consistent(self) -> ClusterModel:
        widths = {len(self.features), len(self.mean), len(self.scale), *(len(centre) for centre in self.centres)}
        if len(widths) > 1:
            raise ValueError("mean, scale and centres must have one number for each feature")
        if len({len(self.centres), len(self.titles), len(self.shares)}) > 1:
            raise ValueError("there must be one title and one share for each centre")
        return self

    def fits(self, policy: ClusterPolicy) -> bool:
        """Whether the model is one of the policy's dimension: the same features, as many clusters."""
        return self.features == policy.features and len(self.centres) == policy.clusters

    def standardised(self, logs: Floats) -> Floats:
        """Points in which distances are measured; a row for each customer, a column for each feature."""
        points: Floats = (logs - np.array(self.mean)) / np.array(self.scale)
        return points

    def distances(self, points: Floats) -> Floats:
        """The square of each standardised point's distance to each centre."""
        return squares(points, np.array(self.centres))

    def nearest(self, points: Floats) -> NDArray[np.int16]:
        """The code of each standardised point's nearest centre, the first of equally near ones."""
        codes: NDArray[np.int16] = self.distances(points).argmin(axis=1).astype(np.int16)
        return codes

    @property
    def units(self) -> Floats:
        """The centres in the features' own units: a row for each cluster, a column for each feature."""
        return unlogged(np.array(self.centres) * np.array(self.scale) + np.array(self.mean))

    @property
    def typical(self) -> Floats:
        """The population's centre in the features' own units."""
        return unlogged(np.array(self.mean))
