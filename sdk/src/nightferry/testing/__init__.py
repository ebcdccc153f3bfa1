"""A server that behaves, in this process: for the tests of apps that use the SDK, and of the SDK.

::

    with FakeServer() as server:
        server.publish("recyclables", b"…", labels=["can", "cup"])
        server.inject(Fault("artifact", cut_at=1000))
        client = ModelClient(server.url, trusted_root=server.root, cache_dir=…)

It speaks version 1 of the protocol over real sockets: manifests with ETags, ranged downloads,
signed metadata, events, problem+json. Faults are used up one per request of their route, in order.
"""

from nightferry.testing.server import DEFAULT_PREPROCESSING as DEFAULT_PREPROCESSING
from nightferry.testing.server import Document as Document
from nightferry.testing.server import FakeServer as FakeServer
from nightferry.testing.server import Fault as Fault
from nightferry.testing.server import Request as Request
from nightferry.testing.signing import FakeRepository as FakeRepository
from nightferry.testing.signing import SignedFile as SignedFile
