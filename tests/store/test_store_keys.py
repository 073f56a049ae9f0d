"""API keys, the catalogue and the settings."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from sqlalchemy import text, update

from store.catalogue import CatalogueRepository
from store.contract import ArchitectureInfo, Catalogue, MethodInfo
from store.errors import NotFound
from store.keys import KeyRepository, any_valid_key, key_holders
from store.settings import Settings
from store.tables import LOCAL_TENANT, Worker
from tests.store.house import OTHER_TENANT, House

# --- Keys ------------------------------------------------------------------------------------------------------------


def test_a_key_opens_its_tenant_until_it_is_revoked(house: House) -> None:
    with house.database.transaction() as session:
        assert not any_valid_key(session)
        key, secret = KeyRepository(session, OTHER_TENANT).create("laptop")
    assert re.fullmatch(r"pw_live_[A-Za-z0-9_-]{32}", secret)
    with house.database.read() as session:
        assert key_holders(session, [secret, "pw_live_x"])[secret].tenant_id == OTHER_TENANT
        assert any_valid_key(session)
        wrong = (secret[:-1], secret + "x", secret.swapcase(), "", key.sha256, key.prefix, "pw_live_é")
        assert key_holders(session, wrong) == {}
    with house.database.transaction() as session:
        keys = KeyRepository(session, OTHER_TENANT)
        assert keys.revoke(key.id).revoked_at == keys.revoke(key.id).revoked_at is not None
    with house.database.read() as session:
        assert key_holders(session, [secret]) == {}
        assert not any_valid_key(session)
        assert [row.name for row in KeyRepository(session, OTHER_TENANT).list()] == ["laptop"]


def test_a_secret_is_nowhere_in_the_database(house: House) -> None:
    with house.database.transaction() as session:
        key, secret = KeyRepository(session, LOCAL_TENANT).create("laptop")
    with house.database.read() as session:
        [row] = session.execute(text("SELECT * FROM api_keys")).all()
    assert key.prefix == secret[:12]
    assert not any(secret[12:] in str(value) for value in row)


def test_a_foreign_key_can_be_neither_seen_nor_revoked(house: House) -> None:
    with house.database.transaction() as session:
        key, secret = KeyRepository(session, LOCAL_TENANT).create("laptop")
        foreign = KeyRepository(session, OTHER_TENANT)
        assert foreign.list() == []
        with pytest.raises(NotFound):
            foreign.revoke(key.id)
        assert key_holders(session, [secret])[secret].key_id == key.id


# --- Catalogue -------------------------------------------------------------------------------------------------------


def _catalogue(version: str, *methods: str, devices: tuple[str, ...] = ("cpu",)) -> Catalogue:
    return Catalogue(
        version=version,
        methods=[MethodInfo(type=m, title=m, description=version, schema={"type": "object"}) for m in methods],
        architectures=[ArchitectureInfo(name="cifar_resnet", title="t", input_shape=[3, 32, 32], args_schema={})],
        devices=list(devices),
        versions={"torch": "2"},
    )


def test_there_is_no_catalogue_before_the_first_worker(house: House) -> None:
    with house.database.read() as session:
        assert CatalogueRepository(session).current() is None


def test_workers_of_one_version_add_up_and_an_older_version_is_left_out(house: House) -> None:
    with house.database.transaction() as session:
        catalogues = CatalogueRepository(session)
        catalogues.publish("old", _catalogue("0.9", "gone", devices=("tpu",)))
        catalogues.publish("a", _catalogue("1.0", "magnitude", "auto"))
        _backdate(session, "old", "a")
        catalogues.publish("b", _catalogue("1.0", "magnitude", "penni", devices=("cuda:0", "cpu")))
    with house.database.read() as session:
        current = CatalogueRepository(session).current()
    assert current.version == "1.0"
    assert [method.type for method in current.methods] == ["magnitude", "penni", "auto"]
    assert current.methods[0].options_schema == {"type": "object"}
    assert current.devices == ["cuda:0", "cpu"]
    assert len(current.architectures) == 1


def test_a_restarted_worker_replaces_its_catalogue(house: House) -> None:
    with house.database.transaction() as session:
        CatalogueRepository(session).publish("a", _catalogue("1.0", "magnitude", "gone"))
    with house.database.transaction() as session:
        CatalogueRepository(session).publish("a", _catalogue("1.0", "magnitude"))
        assert [method.type for method in CatalogueRepository(session).current().methods] == ["magnitude"]


def test_a_worker_that_has_long_been_silent_is_forgotten_when_another_publishes(house: House) -> None:
    with house.database.transaction() as session:
        catalogues = CatalogueRepository(session)
        catalogues.publish("old", _catalogue("1.0", "gone"))
        _backdate(session, "old", days=31)
        catalogues.publish("new", _catalogue("1.0", "magnitude"))
        assert [method.type for method in catalogues.current().methods] == ["magnitude"]


def test_a_worker_is_heard_of_when_it_publishes_and_whenever_it_says_so(house: House) -> None:
    with house.database.transaction() as session:
        catalogues = CatalogueRepository(session)
        assert catalogues.silent_for_s() is None
        catalogues.seen("a")
        assert catalogues.silent_for_s() is None
        catalogues.publish("a", _catalogue("1.0", "magnitude"))
        assert catalogues.silent_for_s() < 5
        _backdate(session, "a", days=31)
        assert catalogues.silent_for_s() == pytest.approx(31 * 86400, abs=60)
        catalogues.seen("a")
        assert catalogues.silent_for_s() < 5
        catalogues.publish("b", _catalogue("1.0", "penni"))
        assert len(catalogues.current().methods) == 2


def _backdate(session: Any, *workers: str, days: int = 1) -> None:
    past = datetime.now(UTC) - timedelta(days=days)
    session.execute(update(Worker).where(Worker.id.in_(workers)).values(published_at=past, seen_at=past))


# --- Settings --------------------------------------------------------------------------------------------------------


def test_everything_lies_in_the_data_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PENNYWEIGHT_DATA_DIR", "somewhere")
    settings = Settings()
    monkeypatch.chdir("/")
    assert settings.data_dir == tmp_path / "somewhere"
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/somewhere/pennyweight.db"
    assert settings.resolved_storage_url == f"file://{tmp_path}/somewhere/objects"
    assert settings.max_upload_bytes == 4 * 1024**3


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNYWEIGHT_DATABASE_URL", "postgresql+psycopg://db/pw")
    monkeypatch.setenv("PENNYWEIGHT_STORAGE_URL", "file:///srv/objects")
    monkeypatch.setenv("PENNYWEIGHT_ALLOWED_HOSTS", "pw.example.org, pw.internal")
    monkeypatch.setenv("PENNYWEIGHT_MAX_UPLOAD_BYTES", "1000")
    settings = Settings()
    assert settings.resolved_database_url == "postgresql+psycopg://db/pw"
    assert settings.resolved_storage_url == "file:///srv/objects"
    assert settings.allowed_hosts == ["pw.example.org", "pw.internal"]
    assert settings.max_upload_bytes == 1000


def test_a_heartbeat_too_slow_for_the_lease_is_refused_by_name() -> None:
    with pytest.raises(ValidationError, match=r"PENNYWEIGHT_HEARTBEAT_S \(10\).*PENNYWEIGHT_LEASE_S \(15\)"):
        Settings(lease_s=15, heartbeat_s=10)
