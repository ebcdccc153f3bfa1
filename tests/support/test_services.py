"""The services tests stand on really run, and never outlive the tests."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import boto3
import psycopg
import pytest

from tests.support import services
from tests.support.data import REPOSITORY
from tests.support.processes import listens


def test_a_new_database_answers(postgresql_server: services.PostgreSQL) -> None:
    with psycopg.connect(postgresql_server.create_database()) as connection:
        assert connection.execute("SELECT 6 * 7").fetchone() == (42,)


def test_s3_refuses_what_was_not_signed_with_the_key(s3_server: services.S3) -> None:
    bucket = s3_server.create_bucket()

    def client(secret: str) -> boto3.client:
        return boto3.client(
            "s3",
            endpoint_url=s3_server.endpoint,
            region_name=s3_server.region,
            aws_access_key_id=s3_server.access_key,
            aws_secret_access_key=secret,
        )

    right, wrong = client(s3_server.secret_key), client("not the secret")
    right.put_object(Bucket=bucket, Key="a", Body=b"bytes")
    with pytest.raises(wrong.exceptions.ClientError, match="SignatureDoesNotMatch"):
        wrong.get_object(Bucket=bucket, Key="a")

    def presign(expires_s: int) -> str:
        return right.generate_presigned_url(
            "get_object", Params={"Bucket": bucket, "Key": "a"}, ExpiresIn=expires_s
        )

    with urllib.request.urlopen(presign(60)) as answer:
        assert answer.read() == b"bytes"
    expired = presign(1)
    time.sleep(2)
    for refused in (expired, f"{s3_server.endpoint}/{bucket}/a"):
        with pytest.raises(urllib.error.HTTPError, match="403") as caught:
            urllib.request.urlopen(refused)
        caught.value.close()


def test_a_service_ends_with_the_process_that_started_it() -> None:
    program = (
        "import time; from tests.support import services\n"
        "with services.redis() as server: print(server.port, flush=True); time.sleep(600)"
    )
    starter = subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert starter.stdout is not None
    port = int(starter.stdout.readline())
    assert listens(port)

    starter.send_signal(signal.SIGKILL)
    starter.communicate()

    deadline = time.monotonic() + 20
    while listens(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not listens(port)
