"""``python -m fleet``: a simulated fleet against a server; ``manage.py simulate_fleet`` calls it.

A staff token is read from NIGHTFERRY_STAFF_TOKEN, an application key from NIGHTFERRY_APP_KEY.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any

from fleet.report import describe, render
from fleet.scenario import Scenario, ScenarioError, read_scenario
from fleet.simulation import Plan, simulate, with_devices
from fleet.staff import Operator, OperatorError

_USAGE, _FAILED_CHECK, _OTHER_OUTCOME = 2, 3, 4


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m fleet", description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server's address")
    parser.add_argument("--root", type=Path, required=True, help="the root.json apps carry")
    add_arguments(parser)
    return parser


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what the management command takes as well."""
    parser.add_argument("--model", default="recyclables")
    parser.add_argument("--channel", default="production")
    parser.add_argument("--runtime", default="tflite", choices=["tflite", "coreml"])
    parser.add_argument("--scenario", type=Path, metavar="FILE", help="TOML or JSON")
    parser.add_argument("--devices", type=int, help="instead of the scenario's number")
    parser.add_argument("--day-seconds", type=float, help="real seconds per simulated day")
    parser.add_argument("--candidate", type=int, default=0, metavar="VERSION", help="roll it out")
    parser.add_argument("--plain", action="store_true", help="release it to everybody instead")
    parser.add_argument("--seed", help="the same seed draws the same fleet; default: at random")
    parser.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 1) // 2))
    parser.add_argument("--threads", type=int, default=8, help="per process")
    parser.add_argument(
        "--download-each", action="store_true", help="every installation fetches every file"
    )
    parser.add_argument(
        "--check", action="store_true", help="count what arrived; fail if it differs"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report there")


def main(argv: list[str] | None = None) -> int:
    """Simulate; return 0, or what went wrong (2 usage, 3 a check, 4 another outcome)."""
    arguments = build_parser().parse_args(argv)
    try:
        plan = _plan(arguments)
        run = simulate(plan, _say)
    except (ScenarioError, OperatorError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return _USAGE
    report = describe(run)
    if arguments.json:
        report["last_words"] = _last_words(run)
        arguments.json.write_text(json.dumps(report, indent=1), encoding="utf-8")
    _say(render(report))
    if not all(run.checks.values()):
        return _FAILED_CHECK
    rollout = report["rollout"]
    return _OTHER_OUTCOME if rollout and not rollout["as_expected"] else 0


def _plan(arguments: argparse.Namespace) -> Plan:
    token = os.environ.get("NIGHTFERRY_STAFF_TOKEN", "")
    if not token:
        raise OperatorError("NIGHTFERRY_STAFF_TOKEN holds no staff token; see create_staff_token.")
    scenario = read_scenario(arguments.scenario) if arguments.scenario else Scenario(name="plain")
    return Plan(
        scenario=with_devices(scenario, arguments.devices, arguments.day_seconds),
        operator=Operator(arguments.url.rstrip("/"), token),
        root=arguments.root.read_bytes(),
        model=arguments.model,
        channel=arguments.channel,
        runtime=arguments.runtime,
        app_key=os.environ.get("NIGHTFERRY_APP_KEY") or None,
        candidate=arguments.candidate,
        is_plain=arguments.plain,
        seed=arguments.seed or secrets.token_hex(8),
        processes=max(1, arguments.processes),
        threads=max(1, arguments.threads),
        shares_files=not arguments.download_each,
        checks=arguments.check,
    )


def _last_words(run: Any) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(word) for share in run.shares for word in share.last_words]


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
