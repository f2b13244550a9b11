"""How many Byzantine sites an aggregation can tolerate: what a configuration may ask for."""

ROBUST = ("trimmedmean", "median", "geometricmedian", "krum", "multikrum", "bulyan", "centredclipping")


def most_byzantine(aggregation: str, sites: int) -> int:
    """The largest f among n sites; below 0: not even n sites that tell the truth suffice."""
    if aggregation in ("krum", "multikrum"):
        return (sites - 3) // 2
    if aggregation == "bulyan":
        return (sites - 3) // 4
    return (sites - 1) // 2


def most_left_out(aggregation: str, sites: int, byzantine: int) -> int:
    """How many of f suspects can be left out of n sites, so that f Byzantine ones among the rest are tolerated."""
    return next(
        (count for count in range(byzantine, 0, -1) if most_byzantine(aggregation, sites - count) >= byzantine), 0
    )


def default_byzantine(aggregation: str, sites: int) -> int:
    """One in five, or as many as the aggregation can tolerate."""
    return max(0, min(max(1, sites // 5), most_byzantine(aggregation, sites)))
