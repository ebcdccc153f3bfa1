"""The images and the compose file, as far as they can be checked without a container engine."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from server.jobs.names import QUEUES
from tests.support import services
from tests.support.data import REPOSITORY, require_program
from tests.support.processes import answers_http, free_port, running

COMPOSE = REPOSITORY / "docker-compose.yml"
DOCKERFILE = REPOSITORY / "Dockerfile"
NGINX = REPOSITORY / "deploy" / "nginx"
# Where the compose file means something else than the embedded default.
OTHER_DEFAULTS = {
    "LOG_FORMAT", "NIGHTFERRY_WEIGHTS", "TRUSTED_PROXIES", "TRUST_UPLOADED_MODELS",
}  # fmt: skip
# Fixed by the images or by their place in the network; no reason to change them.
FIXED = {
    "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ARTIFACT_DELIVERY", "BLOB_STORE_URL",
    "BROKER_URL", "DATABASE_URL", "DEBUG", "HOST", "NIGHTFERRY_DATA", "SECRET_KEY", "STATIC_ROOT",
    "TRUST_KEYS", "TRUST_MODELS_KEY", "TRUST_SNAPSHOT_KEY", "TRUST_TARGETS_KEY",
    "TRUST_TIMESTAMP_KEY", "TRUST_ATTESTATION_KEY",
}  # fmt: skip
# Another value for an empty variable, or for one that is not.
_REFERENCE = re.compile(
    r"\$\{(?P<name>[A-Z_0-9]+)(?::-(?P<default>[^}]*)|:\+(?P<replacement>[^}]*))\}"
)


def compose() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())


def interpolate(value: object) -> str:
    """Return what compose makes of a value where `.env` sets nothing."""
    return _REFERENCE.sub(lambda match: match["default"] or "", str(value))


def application_services() -> dict[str, dict[str, Any]]:
    """Return the services that run our own images."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


def sample() -> dict[str, str]:
    """Return the settings of dotenv-sample with their defaults."""
    lines = (REPOSITORY / "dotenv-sample").read_text().splitlines()
    pairs = [line.partition("#")[0].strip().partition("=") for line in lines if "=" in line]
    return {name: value for name, _, value in pairs if name.isupper()}


def copies() -> list[tuple[str, str]]:
    """Return stage and source of everything the Dockerfile takes from the repository."""
    stage, found = "", []
    for line in DOCKERFILE.read_text().replace("\\\n", " ").splitlines():
        words = line.split()
        if words[:1] == ["FROM"]:
            stage = words[-1]
        if words[:1] == ["COPY"] and not words[1].startswith("--from"):
            found += [(stage, source) for source in words[1:-1]]
    return found


def test_the_compose_file_follows_the_specification() -> None:
    checker = [sys.executable, "-m", "check_jsonschema"]
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*checker, *schema, COMPOSE], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_follows_good_practice() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("trusted_proxies", ["1", "2"])
def test_nginx_accepts_its_configuration(tmp_path: Path, trusted_proxies: str) -> None:
    program = require_program("nginx", package="nginx-light")
    shutil.copytree(NGINX, tmp_path, dirs_exist_ok=True)
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "forwarding.conf").write_text(_forwarding(trusted_proxies))
    command = [program, "-t", "-q", "-c", tmp_path / "nginx.conf"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_variable_of_the_compose_file_is_a_setting() -> None:
    settings = sample()
    given = {
        name.removesuffix("_FILE")
        for service in application_services().values()
        for name in service["environment"]
    }
    assert given <= settings.keys()
    assert settings.keys() - FIXED <= given | {"PORT"}

    text = COMPOSE.read_text()
    references = _REFERENCE.findall(text)
    assert len(references) == text.count("${")
    assert {name for name, *_ in references} <= settings.keys()
    differing = {name for name, default, _ in references if default != settings[name]}
    assert differing <= OTHER_DEFAULTS


def test_every_mounted_secret_and_file_exists(tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "deploy" / "make-secrets", tmp_path)
    said = [subprocess.check_output([tmp_path / "make-secrets"], text=True) for _ in range(2)]
    assert said[1] == ""
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}

    services_ = compose()["services"]
    declared = compose()["secrets"]
    assert {Path(secret["file"]).name for secret in declared.values()} == made.keys()
    used = {name for service in services_.values() for name in service.get("secrets", [])}
    assert used == declared.keys()
    assert all(content.strip() == content != "" for content in made.values())
    assert made["postgres_password"] in made["database_url"]
    (identity,) = json.loads(made["s3_identities"])["identities"]
    assert identity["credentials"] == [
        {"accessKey": made["s3_access_key"], "secretKey": made["s3_secret_key"]}
    ]
    for service in services_.values():
        for mount in service.get("volumes", []):
            source = interpolate(mount).partition(":")[0]
            assert source in compose()["volumes"] or (REPOSITORY / source).is_file()


def test_everything_the_images_copy_is_there_and_reaches_the_build() -> None:
    let_through = {
        line[1:]
        for line in (REPOSITORY / ".dockerignore").read_text().splitlines()
        if line[0] == "!"
    }
    for _, source in copies():
        assert (REPOSITORY / source).exists(), source
        assert source in let_through, source


def test_the_web_image_has_no_machine_learning() -> None:
    packages = {
        line.partition("==")[0]
        for name in ("requirements-web.lock", "deploy/requirements-gunicorn.lock")
        for line in (REPOSITORY / name).read_text().splitlines()
        if "==" in line
    }
    assert {"django", "gunicorn"} <= packages
    assert not {p for p in packages if re.match(r"tensorflow|keras|coremltools|scikit|ai-edge", p)}
    assert "worker" not in {source for stage, source in copies() if stage == "web"}


def test_the_image_serves_with_the_versions_that_are_tested() -> None:
    tested = (REPOSITORY / "requirements-dev.lock").read_text()
    lines = (REPOSITORY / "deploy" / "requirements-gunicorn.lock").read_text().splitlines()
    entries = "\n".join(line for line in lines if not line.startswith("#"))
    for entry in re.split(r"\n(?=\S)", entries):
        assert entry in tested


def test_one_service_has_the_signing_keys_and_signs_one_thing_at_a_time() -> None:
    (signer,) = [
        service
        for service in application_services().values()
        if "--queues=signing" in str(service.get("command"))
    ]
    assert "--concurrency=1" in signer["command"]
    own = {mount.partition(":")[0] for mount in signer["volumes"]}
    for service in application_services().values():
        if service != signer:
            mounts = {mount.partition(":")[0] for mount in service.get("volumes", [])}
            assert not mounts & own
            given = {name for name in service["environment"] if name.startswith("TRUST_")}
            assert given <= {"TRUST_ATTESTATION_KEY_FILE"}


def test_only_what_trains_and_what_signs_has_the_attestation_key() -> None:
    for service in application_services().values():
        queues = re.findall(r"--queues=(\S+)", str(service.get("command")))
        has_key = "attestation_key" in service["secrets"]
        assert has_key == bool({"ml", "signing"} & set(queues))
        assert has_key == ("TRUST_ATTESTATION_KEY_FILE" in service["environment"])


def test_every_queue_has_a_worker() -> None:
    commands = [str(service.get("command")) for service in application_services().values()]
    served = re.findall(r"--queues=(\S+)", " ".join(commands))
    assert sorted(served) == sorted(QUEUES)
    assert sum(" beat " in command for command in commands) == 1


# The web image without the image: its files in a folder of their own, its command and the compose
# file's environment, with real PostgreSQL, Redis and S3 behind it and nginx before it.


@dataclass(frozen=True)
class Deployment:
    """A running server as nginx shows it."""

    url: str
    folder: Path
    environment: Mapping[str, str]


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory,
    postgresql_server: services.PostgreSQL,
    redis_server: services.Redis,
    s3_server: services.S3,
) -> Iterator[Deployment]:
    folder = tmp_path_factory.mktemp("image")
    for stage, source in copies():
        if stage == "web":
            _copy(REPOSITORY / source, folder / source)
    bucket = s3_server.url("nightferry-compose")
    secrets = {
        "SECRET_KEY": "of-this-test-only",
        "DATABASE_URL": postgresql_server.create_database(),
        "AWS_ACCESS_KEY_ID": s3_server.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.secret_key,
    }
    environment = _environment(folder, secrets)
    environment |= {"BROKER_URL": redis_server.url(), "BLOB_STORE_URL": bucket}
    with contextlib.ExitStack() as stack:
        for command in ("manage.py collectstatic --noinput", "manage.py migrate --noinput",
                        "-m server.blobs"):  # fmt: skip
            run_python(shlex.split(command), folder, environment)
        web = stack.enter_context(_web(folder, environment))
        nginx = stack.enter_context(services.nginx(_site(web=web, s3=s3_server.endpoint)))
        yield Deployment(nginx.url, folder, environment)


@contextlib.contextmanager
def _web(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run the web image's processes; yield their address."""
    port = free_port()
    with running(
        _web_command(port),
        log=folder / f"gunicorn-{port}.log",
        ready=lambda: answers_http(port, "/healthz"),
        env=dict(environment),
        cwd=folder,
    ):
        yield f"http://127.0.0.1:{port}"


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def _environment(folder: Path, secrets: Mapping[str, str]) -> dict[str, str]:
    """Return what the compose file gives to the web service, with this test's secrets in files."""
    given = application_services()["web"]["environment"]
    environment = {name: interpolate(value) for name, value in given.items()}
    for name, text in secrets.items():
        path = folder / "secrets" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"{text}\n")
        assert f"{name}_FILE" in environment
        environment[f"{name}_FILE"] = str(path)
    return {
        **environment,
        "PATH": os.environ["PATH"],
        "NIGHTFERRY_DATA": str(folder / "data"),
        "STATIC_ROOT": str(folder / "staticfiles"),
    }


def _web_command(port: int) -> list[str]:
    """Return the web image's command, on this test's port."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    (command,) = [
        json.loads(line.removeprefix("CMD "))
        for line in text.splitlines()
        if line.startswith("CMD") and "gunicorn" in line
    ]
    assert "--bind=0.0.0.0:8000" in command
    command = [word.replace("0.0.0.0:8000", f"127.0.0.1:{port}") for word in command]
    return [sys.executable, "-m", *command]


def _forwarding(trusted_proxies: str) -> str:
    """Return what the image of nginx makes of the template."""
    template = (NGINX / "forwarding.conf.template").read_text()
    assert "${TRUSTED_PROXIES}" in template
    return template.replace("${TRUSTED_PROXIES}", trusted_proxies)


def _site(*, web: str, s3: str, trusted_proxies: str = "1") -> str:
    """Return nginx's site with this test's addresses in place of the containers' names."""
    site = (NGINX / "site.conf").read_text()
    for name in ("blobs.conf", "proxy.conf"):
        assert f"include {name};" in site
        site = site.replace(f"include {name};", f"include {NGINX / name};")
    for there, here in (
        ("listen 8080;", "listen 127.0.0.1:{port};"),
        ("http://web:8000", web),
        ("http://s3:8333", s3),
    ):
        assert there in site
        site = site.replace(there, here)
    return _forwarding(trusted_proxies) + site


def run_python(arguments: list[str], folder: Path, environment: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=dict(environment),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ask(
    deployment: Deployment, path: str, *, body: bytes | None = None, **headers: str
) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(deployment.url).netloc, timeout=60)
    try:
        method = "GET" if body is None else "POST"
        connection.request(method, path, body, {n.replace("_", "-"): v for n, v in headers.items()})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def test_the_deployment_is_ready(deployment: Deployment) -> None:
    status, _, body = ask(deployment, "/readyz")
    assert (status, json.loads(body)["status"]) == (200, "ok"), body
    status, _, page = ask(deployment, "/admin/login/")
    assert status == 200
    styles = re.search(rb'href="(/static/[^"]+\.css)"', page)
    assert styles is not None
    assert ask(deployment, styles[1].decode())[0] == 200


def test_nginx_speaks_the_api_s_language(deployment: Deployment) -> None:
    status, headers, body = ask(deployment, "/api/v1/photos", body=bytes(22 * 2**20))
    assert (status, headers["Content-Type"]) == (413, "application/problem+json")
    assert json.loads(body)["code"] == "too_large"
    assert ask(deployment, "/metrics")[0] == 404

    site = _site(web=f"http://127.0.0.1:{free_port()}", s3="http://127.0.0.1")
    with services.nginx(site) as alone:
        away = Deployment(alone.url, deployment.folder, {})
        assert ask(away, "/_alive")[0] == 204
        status, headers, body = ask(away, "/api/v1/photos")
    assert (status, headers["Content-Type"]) == (503, "application/problem+json")
    assert (headers["Retry-After"], json.loads(body)["status"]) == ("30", 503)


_ECHO = """
server {
    listen 127.0.0.1:{port};
    return 200 "$http_x_forwarded_proto $http_x_forwarded_for";
}
"""


@pytest.mark.parametrize(("trusted_proxies", "scheme", "expected"), [
    ("1", "https", b"http 127.0.0.1"),
    ("2", "https", b"https 203.0.113.5, 127.0.0.1"),
    ("2", "gopher", b"http 203.0.113.5, 127.0.0.1"),
])  # fmt: skip
def test_only_a_trusted_load_balancer_names_scheme_and_caller(
    tmp_path: Path, trusted_proxies: str, scheme: str, expected: bytes
) -> None:
    with services.nginx(_ECHO) as echo:
        site = _site(web=echo.url, s3="http://127.0.0.1", trusted_proxies=trusted_proxies)
        with services.nginx(site) as nginx:
            proxy = Deployment(nginx.url, tmp_path, {})
            _, _, heard = ask(proxy, "/", X_Forwarded_Proto=scheme, X_Forwarded_For="203.0.113.5")
            assert heard == expected


def test_https_at_the_load_balancer_ends_the_redirects(deployment: Deployment) -> None:
    settings = {"HTTPS_ONLY": "true", "TRUSTED_PROXIES": "2"}
    with (
        _web(deployment.folder, {**deployment.environment, **settings}) as web,
        services.nginx(_site(web=web, s3="http://127.0.0.1", trusted_proxies="2")) as nginx,
    ):
        balanced = Deployment(nginx.url, deployment.folder, {})
        assert ask(balanced, "/admin/login/", X_Forwarded_Proto="https")[0] == 200
        status, headers, _ = ask(balanced, "/admin/login/", X_Forwarded_Proto="http")
        assert (status, headers["Location"][:8]) == (301, "https://")


RELEASE = """
import django
django.setup()
from tests.support import factories

factories.release(factories.make_version(factories.make_model()))
"""


def test_a_released_model_goes_out_through_nginx(deployment: Deployment) -> None:
    extra = {"DJANGO_SETTINGS_MODULE": "server.settings", "PYTHONPATH": str(REPOSITORY)}
    run_python(["-c", RELEASE], deployment.folder, {**deployment.environment, **extra})

    poll = "/api/v1/models/recyclables/update?device=d-1&runtime=tflite"
    for _ in range(50):  # the web processes look for news every DECISION_REFRESH_S
        status, headers, body = ask(deployment, poll)
        if status == 200:
            break
        time.sleep(0.2)
    assert status == 200
    assert ask(deployment, poll, If_None_Match=headers["ETag"])[0] == 304

    artifact = json.loads(body)["artifact"]
    status, headers, content = ask(deployment, artifact["path"])
    assert status == 200
    assert hashlib.sha256(content).hexdigest() == artifact["sha256"]
    assert headers["ETag"] == f'"{artifact["sha256"]}"'
    status, headers, part = ask(deployment, artifact["path"], Range="bytes=2-5")
    assert (status, part) == (206, content[2:6])
