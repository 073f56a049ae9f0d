"""Calling a webhook: which URLs and addresses are called at all, and what a receiver can do to its caller."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
import time
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from store.webhook_urls import RefusedUrl, WebhookPolicy
from tests.api.webhook_receiver import LOCAL, receiving
from worker.pinned_http import post


@pytest.mark.parametrize(
    "address",
    [
        "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "0.0.0.0", "169.254.169.254", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1", "168.63.129.16", "::1", "::", "fe80::1", "fe80::1%eth0",
        "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:10.0.0.1", "::ffff:8.8.8.8", "::8.8.8.8",
        "2002:0a00:0001::1", "64:ff9b::a00:1", "64:ff9b:1::1", "2001:0:4136:e378::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_no_address_that_is_not_public_is_called(address):
    policy = WebhookPolicy()
    target = policy.target("https://hooks.example.org/x")
    with pytest.raises(RefusedUrl):
        policy.check(target, ["93.184.215.14", address])
    outcome = post("https://hooks.example.org/x", b"", {}, policy=policy, resolver=lambda *_: ["1.1.1.1", address])
    assert outcome.status is None and (outcome.error or "").startswith("Not sent")


def test_public_addresses_are_called_and_listed_networks_too():
    policy = WebhookPolicy(allow=(ipaddress.ip_network("10.1.0.0/16"), ipaddress.ip_network("fd00::/8")))
    policy.check(policy.target("https://a.example"), ["93.184.215.14", "2606:4700::1111", "10.1.2.3", "fd00::1"])
    policy.check(policy.target("http://a.example:8080"), ["10.1.2.3"])
    for url, address in (
        ("https://a.example", "10.2.0.1"),
        ("http://a.example", "93.184.215.14"),
        ("https://a.example:8443", "93.184.215.14"),
    ):
        with pytest.raises(RefusedUrl):
            policy.check(policy.target(url), [address])


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "ftp://example.org/", "https://", "https:///x", "https://user@example.org/",
        "https://u:p@example.org/", "https://example.org/#x", "https://example.org:99999/", "https://example.org:8443/",
        "https://127.0.0.1/", "https://[::1]/", "https://169.254.169.254/latest", "https://ex\u00e4mple.org/",
        "https://example.org/a b", "https://example.org/\r\nX: y", "https://[", "x" * 2049, "//example.org", "",
    ],
)  # fmt: skip
def test_urls_that_are_never_called_are_refused_when_they_are_given(url):
    with pytest.raises(RefusedUrl):
        WebhookPolicy().target(url)


def test_name_that_resolves_elsewhere_after_the_check_is_called_where_it_was_checked(receiver):
    """DNS rebinding: the first answer is the receiver, the second one would be another machine."""
    answers = iter([["127.0.0.1"], ["10.9.9.9"]])
    port = int(receiver.url.split(":")[2].split("/")[0])
    outcome = post(f"http://rebound.example:{port}/", b"{}", {}, policy=LOCAL, resolver=lambda *_: next(answers))
    assert outcome.status == 204
    assert receiver.seen[0][0]["host"] == f"rebound.example:{port}"
    assert next(answers) == ["10.9.9.9"]  # nobody asked again
    assert "10.9.9.9" in (
        post("http://rebound.example/", b"", {}, policy=LOCAL, resolver=lambda *_: ["10.9.9.9"]).error or ""
    )


def test_proxies_of_the_environment_and_redirects_are_ignored(receiver, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    receiver.statuses, receiver.headers = [307], {"Location": receiver.url}
    outcome = post(receiver.url, b"{}", {}, policy=LOCAL)
    assert (outcome.status, outcome.delivered, len(receiver.seen)) == (307, False, 1)
    assert "redirects are not followed" in (outcome.error or "")


def test_receiver_that_is_slow_endless_or_absent_costs_a_bounded_time(receiver):
    quick = partial(post, body=b"{}", headers={}, policy=LOCAL, timeout_s=0.5)
    receiver.pause_s = 2
    assert quick(receiver.url).error == "No answer within 0.5 s."
    receiver.pause_s, receiver.drip, started = 0, True, time.monotonic()
    quick(receiver.url)
    assert time.monotonic() - started < 10
    assert "failed" in (quick("http://127.0.0.1:9/").error or "")
    gone = post("https://name.invalid/", b"", {}, policy=WebhookPolicy())
    assert gone.error == "Not sent: the name has no address."


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for hooks.example.test, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "hooks.example.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("hooks.example.test")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


def test_tls_is_checked_against_the_name_though_the_connection_goes_to_the_address(authority):
    certificate, key = authority
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(certificate, key)
    names: list[str | None] = []
    serving.sni_callback = lambda _socket, name, _context: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate))
    with receiving(serving) as receiver:
        port = receiver.url.split(":")[2].split("/")[0]
        call = partial(post, body=b"{}", headers={}, policy=LOCAL, resolver=lambda *_: ["127.0.0.1"])
        assert call(f"https://hooks.example.test:{port}/", tls=trusting).status == 204
        assert names == ["hooks.example.test"]
        assert receiver.seen[0][0]["host"] == f"hooks.example.test:{port}"
        assert "TLS failed" in (call(f"https://other.example.test:{port}/", tls=trusting).error or "")
        assert "TLS failed" in (call(f"https://hooks.example.test:{port}/").error or "")
        assert len(receiver.seen) == 1
