"""From a finished run to a model that ships: smaller, explained, described, served.

Everything here reads public text only: the run's test set, or what the user names. `runtime` needs neither torch nor
transformers.
"""
