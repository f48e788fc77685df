"""Which compression a client accepts (RFC 9110, section 12.5.3)."""

from functools import lru_cache

_OURS = ("gzip", "deflate")  # in the order of preference


@lru_cache(maxsize=100)  # a client sends the same text each time
def accepted_encoding(header: str) -> str:
    """Return gzip, deflate or "", whichever `header`, an Accept-Encoding, prefers; of equals the first."""
    weights: dict[str, float] = {}
    for item in header.lower().split(","):
        name, _, parameter = item.partition(";")
        weights[name.strip()] = _weight(parameter)
    others = weights.get("*", 0.0)
    best = max(_OURS, key=lambda name: weights.get(name, others))
    weight = weights.get(best, others)
    return best if weight > 0 and weight >= weights.get("identity", 0.0) else ""


def _weight(parameter: str) -> float:
    name, _, value = parameter.strip().partition("=")
    if not parameter.strip():
        return 1.0
    try:
        return float(value) if name.strip() == "q" and 0 <= float(value) <= 1 else 0.0
    except ValueError:
        return 0.0
