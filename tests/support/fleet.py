"""The names that let several fleets share one broker and one Redis."""

INPUTS = ("signups", "purchases", "erasures")
OUTPUTS = ("changes", "snapshots", "dead_letters")


def fleet(name: str) -> dict[str, str]:
    """Settings of a fleet with topics, group and namespace of its own."""
    topics = {f"SEGMENTER_{role.upper()}_TOPIC": f"{name}.{role}" for role in (*INPUTS, *OUTPUTS)}
    return {**topics, "SEGMENTER_GROUP": name, "SEGMENTER_NAMESPACE": name}
