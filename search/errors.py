"""What the user did wrong or asked too much of: one line each, and the exit code of the command."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in the user's job, code or command, told in one line: the value, the bound and the mend."""

    exit_code: int = 2

    def __init__(self, message: str) -> None:
        # Messages quote what libraries and users' code say, which may run over several lines.
        super().__init__(" ".join(part for part in (line.strip() for line in message.splitlines()) if part))


class BudgetUnreachable(UserError):
    """No plan within the job's bounds can meet the budget. The message says what the fastest reachable is."""

    exit_code = 3


class AttemptLost(Exception):
    """An attempt at a trial cannot go on, through no fault of the trial: the next one takes it up where it stands."""
