"""Base class of all errors, and the errors that end a process or a job."""

from __future__ import annotations


class CoEError(Exception):
    """Base of all errors raised on purpose. The message names the place, the problem and the remedy."""

    def drop_frames(self) -> None:
        """Release the traceback. A frame that refers to the error forms a cycle with it, which would keep a request's
        body in memory until the garbage collector runs."""
        self.__traceback__ = self.__cause__ = self.__context__ = None


class ConfigError(CoEError):
    """A setting is wrong. `problems` holds one line per problem, each `file:line: problem`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ArtifactError(CoEError):
    """An artifact is missing, damaged, or was made for other categories than the declared ones."""


class DataError(CoEError):
    """A data file is missing, unreadable, or lacks what the job needs."""


class DocumentError(DataError):
    """A file to be indexed is refused, damaged or without text. The message gives the reason, not the file name."""


class FleetError(CoEError):
    """A local expert server could not be started or kept running."""


class WorkerError(CoEError):
    """No worker process of the gateway could start."""


class LogError(CoEError):
    """The routing log could not be opened, read or written."""


class DamagedEntry(LogError):
    """An entry of the log is not a valid record or feedback event."""


class UnknownCursor(LogError):
    """The cursor was not issued by this log."""


class RetrievalError(CoEError):
    """The document store could not be opened, read or written."""


class IndexMismatch(RetrievalError):
    """The vectors in the document store are from another encoder and cannot be compared with queries."""


class ClusterError(CoEError):
    """Ray is not installed, or no cluster answers at the address."""


class JobError(CoEError):
    """A job that must be the only one of its kind has lost its lock, or another job holds it."""
