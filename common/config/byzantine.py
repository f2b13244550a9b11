"""How many lying sites an aggregation can bear: what a configuration may ask for."""

ROBUST = ("trimmedmean", "median", "geometricmedian", "krum", "multikrum", "bulyan", "centredclipping")


def most_liars(aggregation: str, sites: int) -> int:
    """The largest f among n sites; below 0: not even n sites that tell the truth suffice."""
    if aggregation in ("krum", "multikrum"):
        return (sites - 3) // 2
    if aggregation == "bulyan":
        return (sites - 3) // 4
    return (sites - 1) // 2


def most_left_out(aggregation: str, sites: int, liars: int) -> int:
    """Of f suspects among n sites, how many can be left out so that the aggregation bears f liars among the rest."""
    return next((count for count in range(liars, 0, -1) if most_liars(aggregation, sites - count) >= liars), 0)


def default_liars(aggregation: str, sites: int) -> int:
    """One in five, or as many as the aggregation can bear."""
    return max(0, min(max(1, sites // 5), most_liars(aggregation, sites)))
