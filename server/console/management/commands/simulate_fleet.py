"""``manage.py simulate_fleet``: thousands of simulated installations against the running server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management.base import BaseCommand, CommandError, CommandParser

from server import env
from server.console import actions
from server.delivery import decision_set
from server.domain.decision import decide, read_poll
from server.trust import queries as trust

_PROGRAM = "fleet"
_SCENARIOS = "scenarios"


class Command(BaseCommand):
    help = (
        "Simulate a fleet on the SDK's own code against the running server, as a scenario file"
        f" says ({_SCENARIOS}/ holds some), and report what the server did. What it makes stays:"
        " point it at a server for trying things out. Raise THROTTLE_EVENTS there: all"
        " installations call from one address."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        port = env.integer("PORT", 8000)
        parser.add_argument("--url", default=f"http://127.0.0.1:{port}", help="where it runs")
        parser.add_argument("--model", default="recyclables")
        parser.add_argument("--channel", default="production")
        parser.add_argument("--scenario", metavar="FILE|NAME", help="TOML or JSON")
        parser.add_argument("--devices", type=int, help="instead of the scenario's number")
        parser.add_argument("--day-seconds", type=float, help="real seconds per simulated day")
        parser.add_argument(
            "--candidate", type=int, metavar="VERSION", help="roll this version out"
        )
        parser.add_argument("--plain", action="store_true", help="release it to everybody instead")
        parser.add_argument("--seed", help="the same seed draws the same fleet")
        parser.add_argument("--processes", type=int)
        parser.add_argument("--threads", type=int, help="per process")
        parser.add_argument("--download-each", action="store_true", help="fetch every file each")
        parser.add_argument(
            "--check", action="store_true",
            help="compare what installations recorded and were told with the database",
        )  # fmt: skip
        parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")

    def handle(self, *args: Any, **options: Any) -> None:  # noqa: ARG002
        if not (Path(settings.BASE_DIR) / _PROGRAM).is_dir():
            raise CommandError(
                "The simulator is part of the source tree and of no image; run this in a checkout,"
                " with DATABASE_URL set to the server's."
            )
        user = get_user_model().objects.filter(is_superuser=True, is_active=True).first()
        if user is None:
            raise CommandError("There is no superuser yet to act for; run createsuperuser.")
        token, text = actions.create_staff_token(user=user, days=1)
        try:
            with tempfile.TemporaryDirectory(prefix="nightferry-fleet-") as folder:
                self._simulate(Path(folder), text, options)
        finally:
            actions.sign_out(token=token)

    def _simulate(self, folder: Path, token: str, options: dict[str, Any]) -> None:
        root, report = folder / "root.json", folder / "report.json"
        root.write_bytes(trust.trusted_root())
        # The simulator uses the SDK, which the server does not know, so it is a process of its own.
        command = [sys.executable, "-m", _PROGRAM, "--root", str(root), "--json", str(report)]
        done = subprocess.run(
            [*command, *_passed_on(options)],
            cwd=settings.BASE_DIR,
            env=_environment(token),
            check=False,
        )
        if report.exists():
            self._conclude(json.loads(report.read_text(encoding="utf-8")), options)
        if done.returncode:
            raise CommandError("The simulation did not end as it should; see above.")

    def _conclude(self, report: dict[str, Any], options: dict[str, Any]) -> None:
        """Compare decisions where that is asked for, and keep the report."""
        strays: list[str] = []
        if options["check"]:
            strays = _strays(report.pop("last_words"), options["model"], options["channel"])
            what = "every installation has the release and arm that the pure function says"
            report["checks"][what] = not strays
            report["findings"] += strays
            self.stdout.write("\n".join([f"  {'✗' if strays else '✓'} {what}", *strays[:20]]))
        if options["json"]:
            options["json"].write_text(json.dumps(report, indent=1), encoding="utf-8")
        if strays:
            raise CommandError(f"{len(strays)} installations were told something else.")


def _environment(token: str) -> dict[str, str]:
    """Return the simulator's environment, where the SDK of this checkout is found."""
    paths = [str(Path(settings.BASE_DIR) / "sdk" / "src"), *filter(None, sys.path)]
    return os.environ | {
        "NIGHTFERRY_STAFF_TOKEN": token,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _passed_on(options: dict[str, Any]) -> list[str]:
    """Return the options of the simulator's own command line."""
    words: list[str] = []
    for name in ("url", "model", "channel", "devices", "day_seconds", "candidate", "seed",
                 "processes", "threads"):  # fmt: skip
        if options[name] is not None:
            words += [f"--{name.replace('_', '-')}", str(options[name])]
    words += [f"--{n.replace('_', '-')}" for n in ("plain", "download_each", "check") if options[n]]
    if options["scenario"]:
        words += ["--scenario", str(_find(options["scenario"]))]
    return words


def _find(name: str) -> Path:
    """Return the path of a scenario file, or of a shipped one by its name."""
    given, shipped = Path(name), Path(settings.BASE_DIR) / _SCENARIOS / f"{name}.toml"
    if not given.is_file() and shipped.is_file():
        return shipped
    return given.resolve()


def _strays(last_words: list[dict[str, Any]], model: str, channel: str) -> list[str]:
    """Say who was told something else than what is decided here, from the database.

    Who has a wrong clock takes no answer at all.
    """
    facts = decision_set.load().models[model].channels.get(channel)
    strays = []
    for word in last_words:
        stated = {**word["attributes"], "channel": channel, "enrolled": word["enrolment"]}
        due = decide(facts, read_poll({**stated, "device": word["device"]}))
        label = due.release.label if due.release else ""
        enrolment = f"{due.rollout}:{due.arm}" if due.arm else ""
        if word["has_right_clock"] and (word["label"], word["enrolment"]) != (label, enrolment):
            told = f"{word['label']} {word['enrolment']}".strip() or "nothing"
            wanted = f"{label} {enrolment}".strip() or "nothing"
            strays.append(f"{word['device']} was told {told}, due was {wanted}: {due.reason}")
    return strays
