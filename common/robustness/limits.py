"""How many lying sites an aggregation can bear: what a configuration may ask for."""

ROBUST = ("trimmedmean", "median", "geometricmedian", "krum", "multikrum", "bulyan", "centredclipping")


def most_liars(aggregation: str, sites: int) -> int:
    """The largest f among n sites; below 0: not even n sites that tell the truth suffice."""
    if aggregation in ("krum", "multikrum"):
        return (sites - 3) // 2
    if aggregation == "bulyan":
        return (sites - 3) // 4
    return (sites - 1) // 2


def default_liars(aggregation: str, sites: int) -> int:
    """One in five, or as many as the aggregation can bear."""
    return max(0, min(max(1, sites // 5), most_liars(aggregation, sites)))
