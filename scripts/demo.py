"""The whole loop in view: volunteers upload, the night trains, a device fetches and predicts.

Starts a server with embedded defaults on a data folder of its own, talks to it over HTTP alone,
and fetches the model with the SDK as an app would. What the second and third night make goes to a
simulated fleet in stages: one candidate is promoted, one is rolled back. Environment: ``PORT``
(8000), ``DEMO_EXIT=1`` ends when the loop has closed, ``PHOTOS=DIR`` takes ``DIR/<label>/<file>``
instead of digits.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import io
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data" / "demo"
VOLUNTEERS = 10
FIRST_NIGHT_PER_LABEL = 60
SECOND_NIGHT_PER_LABEL = 6
THIRD_NIGHT_PER_LABEL = 2
HELD_BACK_PER_LABEL = 1
RELEASE_NOTICED_S = 30
SIGNED_WITHIN_S = 120
WIDEST = 120
ENDED = {"succeeded", "failed", "cancelled"}
# A hundred test photos cannot tell two points, the default margin, from chance; and an audience
# does not wait for a whole backbone to be tuned.
POLICY = {
    "auto_accept": "trusted",
    "min_photos_per_label": 5,
    "margin": 0.05,
    "fine_tune_min_photos_per_label": 1000,
}

# The simulated fleet. Everybody calls from one address, and days last seconds.
FLEET_SETTINGS = {"THROTTLE_EVENTS": "1000000/minute", "ROLLOUT_LOOK_S": "1"}
# Real seconds of a simulated day, which is how long a stage lasts at least: three starts of an app,
# which it takes to tell a crash, and counting what was reported. More where signing is slow, since
# a stage's time runs meanwhile.
SHORTEST_DAY_S = 18.0
SIGNINGS_PER_DAY = 4
FLEET = {
    "devices": 160,
    "arrival_days": 0.2,
    "polls_per_day": 8,
    "sessions_per_day": 12,
    "feedback_share": 0.6,
    "feedback_delay_days": 0.1,
    "app_versions": {"1.0.0": 0.2, "1.4.2": 0.8},
}
# Both candidates by the same rules. So few installations cannot compare success to two points.
STAGES: dict[str, Any] = {
    "stages_bp": [2500, 5000],
    "min_hours": 24,
    "min_installations": 15,
    "deadline_days": 30,
    "needs_feedback": False,
}


@dataclass(frozen=True)
class Show:
    """A rollout on a simulated fleet, and how it ought to end."""

    title: str
    outcome: str
    old_phones: dict[str, float]
    told: str


GOOD = Show(
    "A good candidate",
    "promoted",
    {},
    "Simulated: on every phone it does as version 1 does; apps crash on one phone in 500.",
)
BAD = Show(
    "A bad candidate",
    "rolled_back",
    {"crash": 0.95},
    "Simulated: it takes the app down on 95 % of the old phones, which are half of the fleet. The"
    " gate cannot\n    know: it has photos, and no old phone.",
)


class DemoError(Exception):
    """A step that did not work; the sentence says which and what to do."""


@dataclass(frozen=True)
class Picture:
    """One photo to upload, of the label its folder names."""

    label: str
    name: str
    data: bytes


def main() -> int:
    """Run the loop; return the exit status."""
    port = int(os.environ.get("PORT") or 8000)
    try:
        return Demo(port).run()
    except DemoError as error:
        print(f"\n✗ {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


class Demo:
    """One showing."""

    def __init__(self, port: int) -> None:
        """Show it on ``port``."""
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.staff_token = ""
        self.password = secrets.token_urlsafe(9)
        self.environment: dict[str, str] = {}
        self.started = time.monotonic()
        self.signing_s = 0.0

    def run(self) -> int:
        """Go through every step."""
        folder = os.environ.get("PHOTOS")
        pictures = _pictures_of(Path(folder)) if folder else _digits()
        slug = _slug(Path(folder).name) if folder else "digits"
        labels = sorted({picture.label for picture in pictures})
        held, first, second, third = _divide(pictures, labels)
        with self._server() as log:
            root = self._export_root()
            self._make_model(slug, labels)
            tokens = self._register_volunteers()
            self._upload(slug, tokens, first, "Day 1")
            self._night(slug, "Night 1")
            client = self._device(slug, root)
            self._predict(client, slug, held)
            self._release_in_stages(slug)
            self._upload(slug, tokens, second, "Day 2")
            good = self._roll_out(slug, self._night(slug, "Night 2"), GOOD)
            self._poll_again(client, slug)
            self._predict(client, slug, held)
            self._train_quickly(slug)
            self._upload(slug, tokens, third, "Day 3")
            bad = self._roll_out(slug, self._night(slug, "Night 3"), BAD)
            self._poll_again(client, slug)
            client.flush_events()
            self._title("The loop has closed")
            self._show_pages(good, bad)
            print(f"  {time.monotonic() - self.started:.0f} s in all. Server log: {_short(log)}")
            if os.environ.get("DEMO_EXIT") not in (None, "", "0"):
                return 0
            print(f"  The server stays up: {self.url}/admin/ (Ctrl-C ends it)")
            print(f"  Sign in as demo, password {self.password}")
            signal.pause()
        return 0

    @contextlib.contextmanager
    def _server(self) -> Iterator[Path]:
        """Start web, worker and schedule on a fresh folder; stop them at the end."""
        self._title("Starting the server (web, worker, schedule; embedded database and broker)")
        self._require_free_port()
        _require_unused_data()
        shutil.rmtree(DATA, ignore_errors=True)
        DATA.mkdir(parents=True)
        self.environment = env = os.environ | {
            "NIGHTFERRY_DATA": str(DATA),
            "PORT": str(self.port),
            "DJANGO_SUPERUSER_PASSWORD": self.password,
            "DECISION_REFRESH_S": "1",
            **FLEET_SETTINGS,
        }
        _manage(env, "migrate", "--verbosity", "0")
        _manage(env, "createsuperuser", "--noinput", "--username", "demo", "--email", "")
        path = DATA / "server.log"
        with path.open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "manage.py", "quickstart", "--stop-at-eof"],
                cwd=ROOT,
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            self._wait_until_ready(process, path)
            body = {"username": "demo", "password": self.password}
            self.staff_token = self._call("POST", "/auth/token", body)["token"]
            print(f"  ✓ {self.url} answers; its data lie in {_short(DATA)}")
            yield path
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()

    def _require_free_port(self) -> None:
        """Refuse to start beside whatever answers there."""
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", self.port))
            except OSError as error:
                raise DemoError(
                    f"Port {self.port} is taken ({error.strerror}); is another demo running?"
                    " Choose another with PORT=…"
                ) from error

    def _wait_until_ready(self, process: subprocess.Popen[bytes], log: Path) -> None:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError, http.client.HTTPException):
                if urllib.request.urlopen(f"{self.url}/readyz", timeout=2).status == 200:  # noqa: PLR2004, S310
                    return
            time.sleep(0.3)
        tail = log.read_text(errors="replace").strip().splitlines()[-12:]
        raise DemoError("The server did not start. Its last lines:\n    " + "\n    ".join(tail))

    def _make_model(self, slug: str, labels: list[str]) -> None:
        body = {
            "slug": slug,
            "name": slug,
            "labels": labels,
            "is_open": True,
            "training_policy": POLICY,
        }
        self._call("POST", "/models", body, token=self.staff_token)
        print(f"  ✓ model {slug} with {len(labels)} labels: {', '.join(labels)}")

    def _register_volunteers(self) -> list[str]:
        """Register simulated volunteers, whom the operator trusts: their photos need no review."""
        tokens = []
        terms = self._call("GET", "/consent")["consent_version"]
        for number in range(1, VOLUNTEERS + 1):
            body = {
                "nickname": f"simulated-{number}",
                "consent": {"train": True},
                "consent_version": terms,
            }
            answer = self._call("POST", "/volunteers", body)
            self._call("POST", f"/volunteers/{answer['id']}/trust", {}, token=self.staff_token)
            tokens.append(answer["token"])
        print(f"  ✓ {VOLUNTEERS} simulated volunteers registered, trusted by the operator")
        return tokens

    def _upload(
        self, slug: str, tokens: list[str], pictures: Sequence[Picture], title: str
    ) -> None:
        self._title(f"{title}: volunteers upload {len(pictures)} photos over REST")
        begun, outcomes = time.monotonic(), {}
        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs = [
                pool.submit(self._upload_one, slug, tokens[index % len(tokens)], picture)
                for index, picture in enumerate(pictures)
            ]
            for done, job in enumerate(jobs, 1):
                outcome = job.result()
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
                _bar("uploading", done, len(jobs))
        _clear()
        seconds = time.monotonic() - begun
        said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
        print(f"  ✓ {said} in {seconds:.0f} s ({seconds / len(pictures) * 1000:.0f} ms a photo)")
        if not outcomes.get("accepted"):
            raise DemoError("No photo was accepted, so there is nothing to train on.")

    def _upload_one(self, slug: str, token: str, picture: Picture) -> str:
        boundary = uuid.uuid4().hex
        body = _multipart(boundary, {"model": slug, "label": picture.label}, picture)
        request = urllib.request.Request(f"{self.url}/api/v1/photos", body, method="POST")  # noqa: S310
        request.add_header("Content-Type", f"multipart/form-data; boundary={boundary}")
        request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                return str(json.load(response)["state"])
        except urllib.error.HTTPError as error:
            problem = json.load(error)
            if error.code >= 500:  # noqa: PLR2004
                raise DemoError(
                    f"Upload of {picture.name} failed: {problem.get('detail')}"
                ) from error
            return f"refused ({problem['code']})"

    def _night(self, slug: str, title: str) -> int:
        """Train, and wait until what is released is offered; return the version's number."""
        self._title(f"{title}: train, compile, judge")
        run = self._call("POST", f"/models/{slug}/train", {}, token=self.staff_token)
        seen = 0
        while True:
            run = self._call("GET", f"/runs/{run['id']}?after={seen}", token=self.staff_token)
            for line in run["lines"]:
                seen = line["id"]
                if line["message"]:
                    _clear()
                    print(f"    {line['stage'] or 'start':<11} {line['message']}")
            if run["state"] in ENDED:
                break
            figures = run["progress"]
            shown = " ".join(
                f"{name} {value:.3f}" for name, value in figures.items() if isinstance(value, float)
            )
            _bar(run["stage"] or run["state"], run["step"], run["total_steps"], shown)
            time.sleep(0.4)
        _clear()
        if run["state"] != "succeeded":
            raise DemoError(f"The run {run['state']}: {run['outcome']}")
        print(f"  ✓ {run['outcome']}")
        self._show_variants(slug, run["version"])
        self._await_signature(slug)
        return int(run["version"])

    def _await_signature(self, slug: str) -> None:
        """Wait until what was released is signed, which is when devices are offered it."""
        begun = time.monotonic()
        newest = self._newest_release(slug)
        if newest is None or newest["announced_at"] is not None:
            return
        while newest["announced_at"] is None:
            if time.monotonic() - begun > SIGNED_WITHIN_S:
                raise DemoError(
                    f"{newest['label']} was not signed within {SIGNED_WITHIN_S} s; the server's log"
                    " says why."
                )
            _bar("signing", 0, 1)
            time.sleep(0.4)
            newest = self._newest_release(slug)
        _clear()
        self.signing_s = time.monotonic() - begun
        print(f"  ✓ {newest['label']} is signed, read back and offered to devices")

    def _release_in_stages(self, slug: str) -> None:
        """Leave the nights to come to a rollout that starts when the simulated fleet is there."""
        policy = {**POLICY, "auto_release": False}
        self._call("PATCH", f"/models/{slug}", {"training_policy": policy}, token=self.staff_token)
        print(
            "  From now on candidates go out in stages, for this show when a simulated fleet is"
            " there to get them."
        )

    def _train_quickly(self, slug: str) -> None:
        """Compile the one file that always ships, to be quick."""
        policy = {**POLICY, "auto_release": False, "variants": ["tflite:float32"]}
        self._call("PATCH", f"/models/{slug}", {"training_policy": policy}, token=self.staff_token)

    def _roll_out(self, slug: str, version: int, show: Show) -> dict[str, Any]:
        """Let a simulated fleet live through a staged rollout of the version; return its report."""
        day_s = max(SHORTEST_DAY_S, SIGNINGS_PER_DAY * self.signing_s)
        scenario, path = _scenario(show, day_s), DATA / f"fleet-{version}.json"
        self._title(f"{show.title}: version {version} goes to {FLEET['devices']} phones in stages")
        print(f"    {show.told}\n    {_told_of_stages(day_s)}")
        self._warn_of_gate(slug, version)
        self._simulate(slug, version, scenario, path)
        report: dict[str, Any] = json.loads(path.read_text())
        rollout, load = report["rollout"], report["load"]["requests"]
        if rollout is None or rollout["state"] != show.outcome:
            state = rollout["state"] if rollout else "not started"
            raise DemoError(
                f"{show.title} ought to be {show.outcome.replace('_', ' ')}, and is {state}."
                f" {_short(path)} and the server's log say more."
            )
        started, offered = (one["day"] for one in report["timeline"][:2])
        self.signing_s = max(self.signing_s, (offered - started) * day_s)
        asked = sum(row["count"] for row in load.values())
        why = f"  ✓ {show.outcome.replace('_', ' ')} by the server: {rollout['outcome']}"
        print(textwrap.fill(why, 110, subsequent_indent="    "))
        print(
            f"    {report['exposed']} of {FLEET['devices']} phones ever used version {version},"
            f" {report['remaining']} at the end. {asked} requests, {report['events']['accepted']}"
            " events.\n"
            f"    {self._page(report)}"
        )
        return report

    def _warn_of_gate(self, slug: str, version: int) -> None:
        found = self._call("GET", f"/models/{slug}/versions/{version}", token=self.staff_token)
        if not found["metrics"].get("gate", {}).get("passes", True):
            print("    The gate holds it back, so no night would roll it out; this show does.")

    def _simulate(self, slug: str, version: int, scenario: dict[str, Any], report: Path) -> None:
        """Run the simulator; show what the rollout does as it happens."""
        path = DATA / "scenario.json"
        path.write_text(json.dumps(scenario))
        command = [
            sys.executable, "manage.py", "simulate_fleet", "--model", slug, "--url", self.url,
            "--scenario", str(path), "--candidate", str(version), "--json", str(report),
        ]  # fmt: skip
        with subprocess.Popen(
            command,
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            said = [line.rstrip() for line in _shown(process.stdout or ())]
        if not report.exists():
            raise DemoError("simulate_fleet failed:\n    " + "\n    ".join(said[-12:]))

    def _page(self, report: dict[str, Any]) -> str:
        return f"{self.url}/admin/rollouts/rollout/{report['rollout']['id']}/change/"

    def _show_pages(self, good: dict[str, Any], bad: dict[str, Any]) -> None:
        print("  In the browser: every look at a rollout, with what it saw, and why it ended")
        print(f"    {self._page(good)}   promoted")
        print(f"    {self._page(bad)}   rolled back")

    def _newest_release(self, slug: str) -> Any:
        path = f"/models/{slug}/channels/production/releases"
        releases = self._call("GET", path, token=self.staff_token)["results"]
        return releases[0] if releases else None

    def _show_variants(self, slug: str, number: int) -> None:
        version = self._call("GET", f"/models/{slug}/versions/{number}", token=self.staff_token)
        print(f"    {'variant':<18}{'size':>10}{'accuracy':>11}{'ms/photo':>10}  shipped")
        for variant in version["variants"]:
            accuracy, latency = (
                variant["metrics"].get("accuracy"),
                variant["metrics"].get("latency_ms"),
            )
            print(
                f"    {variant['runtime'] + ' ' + variant['precision']:<18}"
                f"{variant['size_bytes'] / 1e6:>7.2f} MB"
                f"{'–' if accuracy is None else f'{accuracy:.1%}':>11}"
                f"{'–' if not latency else format(latency['p50'], '.2f'):>10}"
                f"  {'yes' if variant['is_shipped'] else 'no: ' + variant['refusal']}"
            )
        print("    (Core ML is calculated here by the MIL definitions; no Apple device was asked.)")

    def _export_root(self) -> Path:
        """Write the root that an app carries; the keys stay where the server keeps them."""
        path = DATA / "root.json"
        _manage(self.environment, "trust", "root", "--output", str(path))
        print(f"  ✓ its signing keys are in {_short(DATA)}/keys; apps carry {path.name}")
        return path

    def _device(self, slug: str, root: Path) -> Any:
        from nightferry import ModelClient

        self._title("A device polls with the SDK")
        client = ModelClient(self.url, cache_dir=DATA / "device", trusted_root=root)
        model = self._first_model(client, slug)
        _clear()
        self._describe(client, model)
        return client

    def _first_model(self, client: Any, slug: str) -> Any:
        """Return the first model; web processes notice a release within DECISION_REFRESH_S."""
        import nightferry

        latest, deadline = (
            nightferry.DownloadType.LATEST_MODEL,
            time.monotonic() + RELEASE_NOTICED_S,
        )
        while True:
            try:
                return client.get_model(slug, download_type=latest, progress=_fetched)
            except nightferry.NoModelError as error:
                if time.monotonic() > deadline:
                    raise DemoError(f"The device got no model: {error}") from error
                time.sleep(0.5)

    def _poll_again(self, client: Any, slug: str) -> None:
        self._title("The device polls again")
        before = client.get_model(slug)
        newest = self._newest_release(slug)["label"]
        deadline = time.monotonic() + RELEASE_NOTICED_S
        client.sync(slug)
        # Web processes notice a release within seconds (DECISION_REFRESH_S).
        while client.get_model(slug).label != newest:
            if time.monotonic() > deadline:
                raise DemoError(f"The device was not offered {newest}.")
            time.sleep(0.5)
            client.sync(slug)
        now = client.get_model(slug)
        self._describe(client, now)
        if now.version == before.version:
            again = f", under a new label, {now.label}" if now.label != before.label else ""
            print(f"    The incumbent stayed{again}: the device keeps the file it has.")
            return
        transfer = client.status(slug).last_transfer
        kilobytes = f"{transfer.received_bytes / 1e3:.1f} kB"
        whole = f"{transfer.size_bytes / 1e3:.1f} kB"
        if transfer.received_bytes < transfer.size_bytes:
            print(f"  ✓ the device fetched {kilobytes} instead of {whole}: a patch of what it had")
        else:
            print(f"    The device fetched the whole file, {whole}: no patch was small enough.")

    def _describe(self, client: Any, model: Any) -> None:
        phase = client.status(model.name).phase
        print(
            f"  ✓ the device runs {model.name} {model.label} (version {model.version},"
            f" {model.runtime} {model.precision}, {model.size_bytes / 1e6:.2f} MB; signature"
            f" verified, state: {phase})"
        )

    def _predict(self, client: Any, slug: str, held: Sequence[Picture]) -> None:
        right, predictor = 0, client.load(slug)
        for picture in held:
            with tempfile.NamedTemporaryFile(suffix=Path(picture.name).suffix) as file:
                file.write(picture.data)
                file.flush()
                answers = predictor.predict(file.name)
            label, probability = answers[0]
            right += label == picture.label
            mark = "✓" if label == picture.label else "✗"
            print(f"    {mark} photo of {picture.label!r}: predicted {label!r} ({probability:.0%})")
        print(f"  On the device {right} of {len(held)} photos that no night ever saw are right.")

    def _call(self, method: str, path: str, body: object = None, *, token: str = "") -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/api/v1{path}", data, method=method)  # noqa: S310
        request.add_header("Content-Type", "application/json")
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
                content = response.read()
                return json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            detail = error.read().decode(errors="replace")
            raise DemoError(f"{method} {path} answered {error.code}: {detail}") from error

    def _title(self, text: str) -> None:
        print(f"\n[{time.monotonic() - self.started:5.0f} s] {text}", flush=True)


def _require_unused_data() -> None:
    """Refuse to start over another demo on another port: its data would be deleted under it."""
    lock = DATA / "quickstart.lock"
    if not lock.exists():
        return
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(
                f"Another demo runs on {_short(DATA)}, which this one would delete. End it first."
            ) from error


def _manage(env: dict[str, str], *arguments: str) -> None:
    """Run a management command; its complaint becomes the demo's."""
    done = subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise DemoError(f"manage.py {arguments[0]} failed:\n{done.stderr.strip()[-2000:]}")


def _scenario(show: Show, day_s: float) -> dict[str, Any]:
    """Return what the simulated fleet is told; docs/simulation.md says what the members mean."""
    old = {"name": "old-phone", "share": 0.5, "os_version": "9", "candidate": show.old_phones}
    return {
        "name": show.title,
        "days": 30,
        "days_after": 0.35,
        "day_s": day_s,
        "fleet": {**FLEET, "classes": [old, {"name": "phone", "share": 0.5}]},
        "incumbent": {"crash": 0.002},
        "candidate": {"day": 0.3, "crash": 0.002},
        "expect": {"outcome": show.outcome},
        "policy": STAGES,
    }


def _told_of_stages(day_s: float) -> str:
    shares = ", ".join(f"{stage / 100:g} %" for stage in STAGES["stages_bp"])
    return (
        f"Real: the server, its rules, HTTP, signatures, the SDK's code. A day lasts {day_s:.0f} s;"
        f" stages of\n    {shares} last one each, with as many phones watched beside on the"
        " incumbent."
    )


def _shown(lines: Iterable[str]) -> Iterator[str]:
    """Yield all lines; print those that tell what happens while it does."""
    is_live = True
    for line in lines:
        is_live = is_live and not line.startswith("Scenario")
        if is_live and line.startswith("  day"):
            told = line.rstrip()
            print(f"  {told if len(told) <= WIDEST else told[:WIDEST] + ' …'}", flush=True)
        yield line


def _digits() -> list[Picture]:
    """Return scikit-learn's bundled handwritten digits, each as a PNG file."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits, counts, pictures = load_digits(), {}, []
    nights = FIRST_NIGHT_PER_LABEL + SECOND_NIGHT_PER_LABEL + THIRD_NIGHT_PER_LABEL
    wanted = nights + HELD_BACK_PER_LABEL
    for index, (pixels, target) in enumerate(zip(digits.images, digits.target, strict=True)):
        if counts.get(target, 0) >= wanted:
            continue
        counts[target] = counts.get(target, 0) + 1
        image = Image.fromarray((255 - pixels / 16 * 255).astype("uint8"))
        buffer = io.BytesIO()
        image.resize((128, 128), Image.Resampling.NEAREST).save(buffer, "PNG")
        pictures.append(Picture(str(target), f"digit-{index}.png", buffer.getvalue()))
    return pictures


def _pictures_of(folder: Path) -> list[Picture]:
    """Return the files of ``folder/<label>/``."""
    if not folder.is_dir():
        raise DemoError(f"PHOTOS names {folder}, which is not a folder.")
    pictures = [
        Picture(path.parent.name, path.name, path.read_bytes())
        for path in sorted(folder.glob("*/*"))
        if path.is_file() and not path.name.startswith(".")
    ]
    if len({picture.label for picture in pictures}) < 2:  # noqa: PLR2004
        raise DemoError(
            f"{folder} needs at least two folders, each named as a label, with photos in them."
        )
    return pictures


def _divide(
    pictures: Sequence[Picture], labels: Sequence[str]
) -> tuple[list[Picture], list[Picture], list[Picture], list[Picture]]:
    """Return the photos held back for the device, and those of the three nights."""
    held: list[Picture] = []
    first: list[Picture] = []
    second: list[Picture] = []
    third: list[Picture] = []
    for label in labels:
        own = [picture for picture in pictures if picture.label == label]
        late = max(1, min(SECOND_NIGHT_PER_LABEL, len(own) // 8))
        last = max(1, min(THIRD_NIGHT_PER_LABEL, len(own) // 16))
        held += own[:HELD_BACK_PER_LABEL]
        rest = own[HELD_BACK_PER_LABEL:]
        second += rest[:late]
        third += rest[late : late + last]
        first += rest[late + last :]
    return held, first, second, third


def _slug(name: str) -> str:
    slug = "".join(
        letter if letter.isalnum() and letter.isascii() else "-" for letter in name.lower()
    )
    return slug.strip("-")[:60] or "photos"


def _multipart(boundary: str, fields: dict[str, str], picture: Picture) -> bytes:
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in fields.items()
    ]
    name = picture.name.replace('"', "_")
    head = (
        f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    return b"".join([*parts, head.encode(), picture.data, f"\r\n--{boundary}--\r\n".encode()])


def _bar(title: str, done: int, total: int, more: str = "") -> None:
    """Draw progress on one line of a terminal; say nothing into a file."""
    if not sys.stdout.isatty():
        return
    share = done / total if total else 0
    filled = round(share * 24)
    print(
        f"\r    {title:<11} [{'█' * filled}{'·' * (24 - filled)}] {done}/{total} {more:<40}",
        end="",
        flush=True,
    )


def _clear() -> None:
    if sys.stdout.isatty():
        print("\r" + " " * 100 + "\r", end="")


def _fetched(done_bytes: int, total_bytes: int) -> None:
    _bar("downloading", done_bytes // 1000, total_bytes // 1000, "kB")


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


if __name__ == "__main__":
    sys.exit(main())
