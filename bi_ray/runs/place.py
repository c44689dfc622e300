"""Where a run is: a directory, or a URI with a working copy in a directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from bi_ray.files.errors import RunError
from bi_ray.files.uri import parses, public_name
from bi_ray.runs.directory import RunDirectory, begin_directory
from bi_ray.runs.foreign_uris import mark_as_run, refuse_foreign_uri
from bi_ray.runs.layout import REPORT
from bi_ray.runs.mirror import MirroredRun
from bi_ray.runs.process import absolute
from bi_ray.runs.remote import Remote

LOCAL_VARIABLE = "BI_RAY_LOCAL"


@dataclass(frozen=True, slots=True)
class RunPlace:
    """A run directory as a user names it.

    Attributes:
        path: the directory, or the working copy of the URI; absolute.
        uri: None for a directory.
    """

    path: Path
    uri: str | None = field(default=None, repr=False)  # it may have credentials

    @classmethod
    def of(cls, text: str, local: Path | None = None) -> RunPlace:
        """The place that ``text``, a path or a URI, names.

        Args:
            text: the value of ``--run``.
            local: the folder of the working copies of URIs; None: ``$BI_RAY_LOCAL``, else the
                user's cache. On a cluster of several nodes every node has to see it.

        Raises:
            RunError: the path is relative inside a Ray job, whose folder is thrown away; or the URI
                does not parse.
        """
        if "://" not in text:
            return cls(absolute(text))
        if not parses(text):
            raise RunError(
                f"the credentials in the URI of {public_name(text)} cannot be read: write / as "
                "%2F, ? as %3F and # as %23, or leave them out and set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY"
            )
        uri = text.rstrip("/")
        name = public_name(uri)
        digest = blake2b(name.encode(), digest_size=4).hexdigest()
        copies = absolute(local or _default_copies())
        return cls(copies / f"{name.rpartition('/')[2]}-{digest}", uri)

    @property
    def name(self) -> str:
        """The path, or the URI without its query and credentials."""
        return public_name(self.uri) if self.uri else str(self.path)

    def __truediv__(self, child: str) -> RunPlace:
        if self.uri is None:
            return RunPlace(self.path / child)
        parts = urlsplit(self.uri)
        uri = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{child}"))
        return RunPlace(self.path / child, uri)

    def directory(self) -> RunDirectory:
        """The run directory there; a context manager that holds its lock."""
        return MirroredRun(self.uri, self.path) if self.uri else RunDirectory(self.path)

    def begin(self) -> None:
        """Mark the place of a study as ours, in the directory and at the URI.

        Raises:
            RunError: one of them has files and is not of a run or study; nothing was touched there.
        """
        if self.uri is None:
            begin_directory(self.path)
            return
        remote = Remote(self.uri)
        refuse_foreign_uri(remote)
        begin_directory(self.path)
        mark_as_run(remote)

    def publish_report(self) -> None:
        """Send the report to the URI; nothing to do for a directory."""
        if self.uri:
            Remote(self.uri).replace_report(self.path / REPORT)

    def publish_file(self, name: str) -> None:
        """Send a text file to the URI; nothing to do for a directory."""
        if self.uri:
            Remote(self.uri).write(name, (self.path / name).read_text())


def _default_copies() -> Path:
    folder = os.environ.get(LOCAL_VARIABLE)
    if folder:
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bi_ray"
