"""``python -m nightferry.tuf_cli``: the SDK's TUF client, for the public conformance suite.

::

    python -m nightferry.tuf_cli --metadata-dir DIR init ROOT
    python -m nightferry.tuf_cli --metadata-dir DIR --metadata-url URL refresh
    python -m nightferry.tuf_cli --metadata-dir DIR --metadata-url URL --target-name NAME \
        --target-base-url URL --target-dir DIR download

Trusted metadata lie in the folder under names without versions (``timestamp.json``). A target that
is in its folder already, and is what the metadata list, is not fetched again. Exit status: 0 done,
1 refused or failed, with the reason on standard error.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Never

from tuf.api.exceptions import DownloadError, RepositoryError
from tuf.ngclient.config import UpdaterConfig

from nightferry import __version__, environment
from nightferry.errors import NightferryError
from nightferry.metadata import Fetcher, PortableUpdater
from nightferry.timing import Timing
from nightferry.transport import Transport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DONE, FAILED = 0, 1


class _Parser(argparse.ArgumentParser):
    """Ends with 1, the protocol's only status besides 0."""

    def error(self, message: str) -> Never:
        self.exit(FAILED, f"{self.format_usage()}{message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command of the protocol and return its exit status."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except (NightferryError, RepositoryError, DownloadError, OSError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return FAILED
    return DONE


def _init(options: argparse.Namespace) -> None:
    """Trust a root."""
    folder = Path(options.metadata_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _updater(options, bootstrap=Path(options.root).read_bytes())


def _refresh(options: argparse.Namespace) -> None:
    """Bring the metadata of the top-level roles up to date."""
    _updater(options).refresh()


def _download(options: argparse.Namespace) -> None:
    """Bring the metadata up to date, and one target into its folder."""
    updater = _updater(options)
    found = updater.get_targetinfo(options.target_name)
    if found is None:
        raise ValueError(f"the signed metadata do not list {options.target_name!r}")
    if updater.find_cached_target(found) is None:
        updater.download_target(found)


def _updater(options: argparse.Namespace, bootstrap: bytes | None = None) -> PortableUpdater:
    timing = Timing()
    transport = Transport(
        options.metadata_url,
        app_key=None,
        user_agent=f"nightferry/{__version__}",
        request_timeout_s=timing.request_timeout_s,
        stall_timeout_s=timing.stall_timeout_s,
        offline=environment.offline(),
    )
    return PortableUpdater(
        options.metadata_dir,
        options.metadata_url,
        target_dir=options.target_dir,
        target_base_url=options.target_base_url,
        fetcher=Fetcher(transport, timing),
        config=UpdaterConfig(),
        bootstrap=bootstrap,
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m nightferry.tuf_cli", description=__doc__.partition("\n")[0])
    parser.add_argument("--metadata-dir", required=True)
    parser.add_argument("--metadata-url", type=_address, default="http://127.0.0.1")
    parser.add_argument("--target-name")
    parser.add_argument("--target-base-url", type=_address)
    parser.add_argument("--target-dir")
    commands = parser.add_subparsers(required=True)
    init = commands.add_parser("init", help=_init.__doc__)
    init.add_argument("root")
    init.set_defaults(command=_init)
    commands.add_parser("refresh", help=_refresh.__doc__).set_defaults(command=_refresh)
    commands.add_parser("download", help=_download.__doc__).set_defaults(command=_download)
    return parser


def _address(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} is not an address")
    return text


if __name__ == "__main__":
    sys.exit(main())
