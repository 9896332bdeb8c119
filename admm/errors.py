"""The errors of `admm`: each message names the value, the bound and the mend."""


class PruneError(Exception):
    """Anything that stops one pruning run: the caller files it as that run's failure."""


class PlanError(PruneError, ValueError):
    """A plan that asks for something the definition of sparsity, or this network, does not allow."""


class GroupError(PruneError):
    """A coupled group that cannot be pruned as asked; the message names the group and the reason."""


class DivergedError(PruneError):
    """Training gave a loss or weight that is not finite; the message names the phase and the epoch."""
