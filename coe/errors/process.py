"""What ends a process or a job."""

from __future__ import annotations


class CoEError(Exception):
    """Base of every error raised on purpose. `str(error)` names the place, what is wrong and the remedy."""

    def drop_frames(self) -> None:
        """Release the frames of its traceback. A frame that holds the error forms a cycle with it, which would keep
        the body of a request until the garbage collector runs."""
        self.__traceback__ = self.__cause__ = self.__context__ = None


class ConfigError(CoEError):
    """A declared setting is wrong. `problems` holds one line per mistake, each `file:line: what`."""

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class ArtifactError(CoEError):
    """An artifact is missing, damaged, or was made for other categories than the ones declared."""


class DataError(CoEError):
    """A data file is missing, unreadable, or lacks what the job needs."""


class DocumentError(DataError):
    """A file to be indexed is refused, broken or without text. The message says why and does not name it."""


class FleetError(CoEError):
    """A local expert server could not be started or kept running."""


class WorkerError(CoEError):
    """No worker process of the gateway could start."""


class LogError(CoEError):
    """The routing log could not be opened, read or written."""


class DamagedEntry(LogError):
    """An entry of the log is no record, or no event of feedback."""


class UnknownCursor(LogError):
    """A cursor that this log never gave."""


class RetrievalError(CoEError):
    """The document store could not be opened, read or written."""


class IndexMismatch(RetrievalError):
    """The vectors in the document store are another encoder's, so questions cannot be compared with them."""


class ClusterError(CoEError):
    """Ray is not installed, or no cluster answers where it should be."""


class JobError(CoEError):
    """A job that must be the only one of its kind is not, or cannot tell any longer."""
