"""A web process knows no key, and loads nothing that could sign."""

from __future__ import annotations

from pathlib import Path

from tests.architecture import probe

_WEB = """
import django, os, sys
os.environ["DJANGO_SETTINGS_MODULE"] = "server.settings"
from django.conf import settings

LIBRARIES = {"tuf", "securesystemslib"}
opened = []

def watch(event, arguments):
    if event in {"open", "os.scandir", "os.listdir"}:
        opened.append(str(arguments[0]))

sys.addaudithook(watch)
from server.wsgi import application
from django.test import Client
from server.trust import queries

lives = [life.role for life in queries.role_lives()]
names = ["timestamp.json", "1.root.json", "nothing.json"]
client = Client(headers={"host": "localhost"})
answer = {
    "files": [queries.metadata_file(name) is not None for name in names],
    "lives": lives,
    "metrics": "nightferry_metadata_expires_seconds" in client.get("/metrics").content.decode(),
    "signing": sorted({name.partition(".")[0] for name in sys.modules} & LIBRARIES),
    "keys": [path for path in opened if path.startswith(str(settings.TRUST_KEYS))],
}
"""
_SIGNER = """
import django, os
os.environ["DJANGO_SETTINGS_MODULE"] = "server.settings"
django.setup()
from django.core.management import call_command
call_command("migrate", interactive=False, verbosity=0)
from server.trust import actions
answer = {"made": actions.ensure_repository()}
"""


def test_a_web_process_serves_metadata_and_touches_no_key(tmp_path: Path) -> None:
    assert probe.run(_SIGNER, data=tmp_path)["made"] is True
    assert len(list((tmp_path / "keys").glob("*.pem"))) == 7

    answer = probe.run(_WEB, data=tmp_path, frameworks=False)

    assert answer["files"] == [True, True, False]
    assert sorted(answer["lives"]) == ["root", "snapshot", "targets", "timestamp"]
    assert answer["metrics"]
    assert answer["signing"] == []
    assert answer["keys"] == []
