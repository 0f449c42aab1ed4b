"""The names that let several fleets share one broker and one Redis."""

_TOPICS = {
    "PURCHASES": "purchases",
    "SIGNUPS": "signups",
    "ERASURES": "erasures",
    "CHANGES": "segment-changes",
    "SNAPSHOTS": "customer-segments",
    "DEAD_LETTERS": "dead-letters",
    "SAMPLES": "cluster-samples",
}


def fleet(name: str) -> dict[str, str]:
    """Settings of a fleet with group and namespace of its own; its topics' names begin with ``name.``"""
    topics = {f"SEGMENTER_{role}_TOPIC": f"{name}.{topic}" for role, topic in _TOPICS.items()}
    return {**topics, "SEGMENTER_GROUP": name, "SEGMENTER_NAMESPACE": name}
