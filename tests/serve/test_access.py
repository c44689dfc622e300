import os

import pytest
from fastapi.testclient import TestClient
from starlette.responses import PlainTextResponse

from serve.access import (
    MAX_HEADER_BYTES,
    MAX_HEADERS,
    Access,
    HeaderGuard,
    check_allowed,
    environment_keys,
    file_keys,
    host_name,
    is_loopback,
    key_digest,
    option_keys,
)
from serve.policies import ServeError

OPEN = Access()
KEYED = Access((key_digest("right"),))


def status(headers, access=OPEN):
    """Of a request that has nothing but these headers."""
    guarded = HeaderGuard(PlainTextResponse("in"), access)
    client = TestClient(guarded, base_url="http://127.0.0.1")
    return client.get("/", headers=headers).status_code


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LocalHost:8000",
        "127.0.0.1:8000",
        "127.8.8.8",
        "[::1]",
        "[::1]:8000",
        "[::ffff:127.0.0.1]",
    ],
)
def test_without_keys_loopback_names_are_accepted(host):
    assert status({"host": host}) == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example.org",
        "evil.example.org:8000",
        "localhost.evil.example.org",
        "127.0.0.1.nip.io",
        "10.0.0.7",
        "0.0.0.0",
        "[::]",
        "2130706433",
        "127.1",
        "gpu7",
    ],
)
def test_without_keys_other_names_are_refused(host):
    assert status({"host": host}) == 403


@pytest.mark.parametrize(
    "host", ["", "a b", "localhost@evil.example.org", "localhost/x", "[::1", "localhost:port", "é"]
)
def test_what_is_not_a_host_is_a_bad_request(host):
    assert status({"host": host.encode()}) == 400
    assert status({"host": host.encode()}, KEYED) == 400


def test_two_hosts_are_a_bad_request():
    assert status([("host", "localhost"), ("host", "localhost")]) == 400


def test_an_allowed_host_is_accepted_and_with_keys_any_is_unless_some_are_named():
    named = Access(allowed_hosts=("GPU7.example.org",))
    assert status({"host": "gpu7.example.org:8000"}, named) == 200
    assert status({"host": "gpu8.example.org"}, named) == 403
    assert status({"host": "gpu8.example.org"}, KEYED) == 200
    both = Access(KEYED.key_digests, ("gpu7.example.org",))
    assert status({"host": "gpu8.example.org"}, both) == 403
    assert status({"host": "gpu7.example.org"}, both) == 200


@pytest.mark.parametrize("access", [OPEN, KEYED])
def test_browsers_may_ask_for_no_other_origin(access):
    def answered(origin):
        return status({"host": "localhost:8000", "origin": origin}, access)

    assert answered("http://localhost:8000") == 200
    for origin in (
        "https://evil.example.org",
        "null",
        "http://localhost:3000",
        "http://localhost",
        "",
        "file://",
    ):
        assert answered(origin) == 403
    for site, expected in (
        ("cross-site", 403),
        ("same-site", 403),
        ("same-origin", 200),
        ("none", 200),
    ):
        assert status({"host": "localhost", "sec-fetch-site": site}, access) == expected


def test_an_allowed_origin_is_accepted():
    access = Access(allowed_origins=("https://app.example.org",))
    assert (
        status({"origin": "https://app.example.org", "sec-fetch-site": "cross-site"}, access) == 200
    )
    assert status({"origin": "https://app.example.org.evil.org"}, access) == 403
    assert status({"origin": "http://app.example.org"}, access) == 403


def test_headers_are_limited_in_number_and_size():
    many = [(f"x-{number}", "a") for number in range(MAX_HEADERS)]
    assert status(many[: MAX_HEADERS // 2]) == 200
    assert status(many) == 431
    assert status({"x": "a" * (MAX_HEADER_BYTES - 500)}) == 200
    assert status({"x": "a" * MAX_HEADER_BYTES}) == 431
    long = TestClient(HeaderGuard(PlainTextResponse("in"), OPEN), base_url="http://127.0.0.1")
    assert long.get("/" + "a" * MAX_HEADER_BYTES).status_code == 431
    assert long.get("/?" + "a" * MAX_HEADER_BYTES).status_code == 431


def test_a_body_has_one_length():
    assert status({"content-length": "5", "transfer-encoding": "chunked"}) == 400


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback(host, is_local):
    assert is_loopback(host) == is_local


def test_the_name_in_a_host_header():
    assert host_name("GPU7:80") == "gpu7"
    assert host_name("[::1]:80") == "::1"
    assert host_name("a\nb") is None


def key_file(tmp_path, content, mode=0o600):
    file = tmp_path / "keys"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    file.chmod(mode)
    return file


def test_a_file_has_a_key_a_line(tmp_path):
    file = key_file(tmp_path, "# of the team\n\n  one \r\ntwo words\n#three\n")
    assert file_keys(file) == ["one", "two words"]
    file.chmod(0o400)
    assert file_keys(file) == ["one", "two words"]


@pytest.mark.parametrize("mode", [0o604, 0o640, 0o660, 0o644, 0o602, 0o610])
def test_a_file_that_others_can_read_is_refused(tmp_path, mode):
    file = key_file(tmp_path, "secret", mode)
    with pytest.raises(ServeError, match=f"chmod 600 {file}"):
        file_keys(file)


@pytest.mark.parametrize(
    "content", ["", "\n", "# only a comment\n", "sécret\n", "sec\tret", b"\xff\xfesecret", "a\x00b"]
)
def test_a_file_without_usable_keys_is_refused_and_no_key_is_shown(tmp_path, content):
    file = key_file(tmp_path, content)
    with pytest.raises(ServeError) as error:
        file_keys(file)
    assert str(file) in str(error.value)
    assert "cret" not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_absent_or_a_folder_is_refused(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(ServeError, match=str(path)):
            file_keys(path)


def test_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv("BI_RAY_API_KEYS", " one, two,,")
    assert environment_keys() == ["one", "two"]
    monkeypatch.delenv("BI_RAY_API_KEYS")
    assert environment_keys() == []


@pytest.mark.parametrize("key", ["", "  ", "sécret", "secret\n2"])
def test_an_unusable_key_is_refused_and_not_shown(key):
    with pytest.raises(ServeError, match="--api-key") as error:
        option_keys([key])
    assert "cret" not in str(error.value)


def test_hosts_and_origins_of_the_command_line_are_checked():
    check_allowed(
        ["gpu7.example.org", "GPU7", "::1", "[::1]"],
        ["https://app.example.org", "http://localhost:3000"],
    )
    for host in ("https://gpu7", "gpu7:8000", "*", "", "gpu7/"):
        with pytest.raises(ServeError, match="--allowed-host"):
            check_allowed([host], [])
    for origin in ("app.example.org", "*", "null", "https://app.example.org/", ""):
        with pytest.raises(ServeError, match="--allowed-origin"):
            check_allowed([], [origin])


def test_the_mode_is_that_of_the_file_that_is_read(tmp_path):
    file = key_file(tmp_path, "secret", 0o644)
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(ServeError, match="chmod 600"):
        file_keys(tmp_path / "link")
    os.chmod(file, 0o600)
    assert file_keys(tmp_path / "link") == ["secret"]
