"""URIs of runs as messages show them."""

import traceback
from contextlib import suppress

import pytest
from pyarrow import ArrowInvalid
from typer.testing import CliRunner

from bi_ray.cli.jobs import JobRun, job_command
from bi_ray.cli.main import app
from bi_ray.files.errors import RunError
from bi_ray.files.uri import hide_credentials, hide_secrets, parses, public_name
from bi_ray.runs import remote_files
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.place import RunPlace
from bi_ray.runs.status import describe_status

SECRET = "abcdSECRET"


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIAKEY:{SECRET}@bucket/run?region",
        f"s3://AKIAKEY:{SECRET}/{SECRET}@bucket/run",
        f"s3://AKIAKEY:{SECRET}%2F{SECRET}@bucket/run?nonsense",
        f"s3://AKIAKEY:/{SECRET}?{SECRET}@bucket/run",
        f"s3://AKIAKEY:x#{SECRET}@bucket/run",
        f"s3://AKIAKEY:{SECRET}",
        f"s3://AKIAKEY:x/{SECRET}/bucket",
        f"ftp://me:{SECRET}@host/run",
        f"nope://me:{SECRET}@host:99999999/run",
        f"s3://bucket/run?scheme=http&session_token={SECRET}",
        f"gs://bucket/run?access_token={SECRET}",
        f"abfs://run@account/x?account_key={SECRET}",
    ],
)
def test_secrets_of_a_uri_are_in_no_message(uri, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(remote_files, "FileSystem", RefusingFileSystem)
    for attempt in (
        lambda: RunPlace.of(uri, tmp_path).directory(),
        lambda: RunDirectory(uri),
        lambda: describe_status(RunPlace.of(uri, tmp_path)),
        lambda: job_command(JobRun(tmp_path / "x.yaml", uri, working_dir=tmp_path)),
    ):
        with pytest.raises(Exception) as caught:
            attempt()
        shown = "".join(traceback.format_exception(caught.value))
        lines = [line for line in shown.splitlines() if 'f"' not in line]
        assert SECRET not in "\n".join(lines)
    with suppress(RunError):
        assert SECRET not in repr(RunPlace.of(uri, tmp_path))
    assert SECRET not in hide_credentials(f"bi-ray run x.yaml --run '{uri}' --local /x")


class RefusingFileSystem:
    """Says the whole URI in its message, as pyarrow does where it cannot parse one."""

    @staticmethod
    def from_uri(uri):
        raise ArrowInvalid(f"Cannot parse URI: '{uri}'; {uri.partition('://')[2]}")


def test_credentials_are_not_shown():
    place = RunPlace.of("s3://key:secret@bucket/a/run/?region=x")
    assert place.name == "s3://bucket/a/run"
    assert (place / "seed_0").uri == "s3://key:secret@bucket/a/run/seed_0?region=x"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://bucket/run/", "s3://bucket/run"),
        ("s3://bucket/run@2", "s3://bucket/run@2"),  # not credentials
        ("s3://key:secret@bucket/run@2?region=x", "s3://bucket/run@2"),
        ("hdfs://host:8020/of@me/run", "hdfs://host:8020/of@me/run"),
        ("file:///data/a:b@c", "file:///data/a:b@c"),
        ("s3://key:sec/ret@bucket/run", "s3://bucket/run"),
        ("s3://key:sec?r#et@bucket/run", "s3://bucket/run"),
        ("s3://key:sec/ret", "s3://***"),
    ],
)
def test_what_is_shown_of_a_uri(uri, shown):
    assert public_name(uri) == shown
    assert parses(uri) == ("sec/ret" not in uri and "sec?r" not in uri)


def test_a_secret_that_does_not_parse_is_one_line_that_says_how_to_write_it(tmp_path):
    with pytest.raises(RunError, match=r"s3://bucket/run cannot be read: write / as %2F") as caught:
        RunPlace.of("s3://key:sec/ret@bucket/run", tmp_path)
    assert len(str(caught.value).splitlines()) == 1


def test_secrets_of_the_environment_are_not_shown(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    assert "environment" not in hide_secrets("signed by from-the-environment", "s3://bucket/run")


def test_a_job_refuses_credentials_in_its_command(tmp_path):
    with pytest.raises(
        RunError, match="--run s3://bucket/run has credentials, which everyone on the cluster"
    ):
        job_command(JobRun(tmp_path / "x.yaml", "s3://key:secret@bucket/run", working_dir=tmp_path))


@pytest.mark.parametrize("command", ["report", "serve"])
def test_a_command_that_reads_a_directory_does_not_show_the_secret_of_a_uri(command):
    result = CliRunner().invoke(app, [command, f"s3://KEY:{SECRET}/{SECRET}@bucket/run"])
    assert isinstance(result.exception, RunError)
    assert str(result.exception).startswith(
        "s3://bucket/run is a URI: this command reads a directory"
    )
    assert SECRET not in result.output
