"""What a member of staff does in a simulation: release, start a rollout, watch; over REST."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Mapping

_TIMEOUT_S = 60


class OperatorError(Exception):
    """The server refused what an operator asked; the sentence says what and why."""


@dataclass(frozen=True)
class Operator:
    """Calls as a member of staff."""

    url: str
    token: str = field(repr=False)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """Return the JSON of an answer. Raises OperatorError."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, method=method)  # noqa: S310
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response:  # noqa: S310
                content = response.read()
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")[:500]
            raise OperatorError(f"{method} {path} was answered {error.code}: {detail}") from error
        except OSError as error:
            raise OperatorError(f"{self.url} does not answer: {error}") from error
        return json.loads(content) if content else None

    def releases(self, model: str, channel: str) -> list[dict[str, Any]]:
        """Return a channel's releases, the newest first."""
        page = self.call("GET", f"/models/{model}/channels/{channel}/releases")
        return cast("list[dict[str, Any]]", page["results"])

    def release(self, model: str, channel: str, version: int) -> str:
        """Release a version to everybody; return the label."""
        body = {"version": version, "reason": "simulated fleet"}
        answer = self.call("POST", f"/models/{model}/channels/{channel}/releases", body)
        return str(answer["label"])

    def start_rollout(
        self, model: str, channel: str, version: int, policy: Mapping[str, object]
    ) -> dict[str, Any]:
        """Draft a rollout of a version and start it; return it."""
        body = {
            "model": model, "channel": channel, "version": version, "policy": dict(policy),
            "reason": "simulated fleet",
        }  # fmt: skip
        drafted = self.call("POST", "/rollouts", body)
        return cast("dict[str, Any]", self.call("POST", f"/rollouts/{drafted['id']}/start", {}))

    def rollout(self, rollout_id: int) -> dict[str, Any]:
        """Return a rollout."""
        return cast("dict[str, Any]", self.call("GET", f"/rollouts/{rollout_id}"))

    def newest_decision(self, rollout_id: int) -> dict[str, Any] | None:
        """Return the latest look or verb, with its sentence."""
        found = self.call("GET", f"/rollouts/{rollout_id}/decisions")["results"]
        return cast("dict[str, Any]", found[0]) if found else None

    def telemetry(self, model: str, channel: str, label: str) -> dict[str, Any]:
        """Return what was reported of a release."""
        path = f"/models/{model}/telemetry?channel={channel}&label={label}"
        return cast("dict[str, Any]", self.call("GET", path))

    def wait_until_announced(self, model: str, channel: str, label: str, within_s: float) -> None:
        """Wait until a release is signed and offered. Raises OperatorError."""
        deadline = time.monotonic() + within_s
        while True:
            found = next(r for r in self.releases(model, channel) if r["label"] == label)
            if found["announced_at"] is not None:
                return
            if time.monotonic() > deadline:
                raise OperatorError(f"{label} was not signed within {within_s:.0f} s.")
            time.sleep(0.5)
