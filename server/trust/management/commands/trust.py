"""``manage.py trust …``: keys, roots and everything else that people decide about trust."""

from __future__ import annotations

import argparse
import getpass
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError, CommandParser

from server.domain.errors import DomainError
from server.trust import actions, queries, roles

if TYPE_CHECKING:
    from securesystemslib.signer import Key

    from server.trust.repository import Plan
    from server.trust.signers import Keyring

_GUIDE = "docs/keys.md tells what each is for and when."
_OFFLINE = "key file of the role, read for this command only (repeat for several)"
_EXPORT = "write what has to be signed here, for `trust sign` on another machine; change nothing"


class Command(BaseCommand):
    help = f"Keys and signed metadata: what devices may install, and who says so. {_GUIDE}"

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")

        def verb(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
            added: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
            added.set_defaults(run=run)
            return added

        verb("status", self._status, "Show every role, until when it holds, and where its key is.")
        _add_init(verb("init", self._init, _INIT))
        refound = verb("refound", self._refound, _REFOUND)
        _add_init(refound)
        refound.add_argument("--signed", type=Path, nargs=2, metavar="FILE", help=_SIGNED)
        keygen = verb("keygen", self._keygen, "Make one key, on any machine; no database is used.")
        keygen.add_argument("kind", choices=roles.KINDS)
        keygen.add_argument("--output", type=Path, required=True, metavar="FOLDER")
        root = verb("root", self._root, "Give out the newest root: the file to put into apps.")
        root.add_argument("--output", type=Path, metavar="FILE", help="default: standard output")
        rotate = verb("rotate", self._rotate, _ROTATE)
        rotate.add_argument("kind", choices=[kind for kind in roles.KINDS if kind != roles.ROOT])
        rotate.add_argument("--public", type=Path, metavar="FILE", help=_PUBLIC)
        delegate = verb("delegate", self._delegate, _DELEGATE)
        delegate.add_argument("model", help="its slug")
        reroot = verb("reroot", self._reroot, _REROOT)
        reroot.add_argument(
            "--public", type=Path, action="append", default=[], metavar="FILE",
            help="public part of a new root key (three times)",
        )  # fmt: skip
        extend = verb("extend", self._extend, _EXTEND)
        extend.add_argument("role", choices=[roles.ROOT, roles.TARGETS])
        for changing in (rotate, delegate, reroot, extend):
            _add_key(changing)
            changing.add_argument("--export", type=Path, metavar="FOLDER", help=_EXPORT)
        sign = verb("sign", self._sign, _SIGN)
        sign.add_argument("file", type=Path)
        _add_key(sign)
        bring = verb("import", self._import, "Bring in what was exported and signed elsewhere.")
        bring.add_argument("files", type=Path, nargs="+")
        verb("ensure", self._ensure, _ENSURE)
        verb("renew", self._renew, "Sign again what is due, as the schedule does every hour.")

    def handle(self, *_: Any, **options: Any) -> None:
        try:
            options["run"](options)
        except DomainError as error:
            raise CommandError(error.detail) from error
        except OSError as error:
            message = f"{error.filename}: {error.strerror}."
            raise CommandError(message) from error

    def _status(self, _: dict[str, Any]) -> None:
        from server.trust import signers

        if not queries.is_initialised():
            self.stdout.write("There is no root yet. The first release makes one, or `trust init`.")
            return
        self.stdout.write(f"{'role':<32} {'version':>7}  {'holds until (UTC)':<17} {'left':>5}")
        for life in queries.role_lives():
            self.stdout.write(
                f"{life.role:<32} {life.version:>7}  {life.expires_at:%Y-%m-%d %H:%M} "
                f" {life.fraction_left:>5.0%}{'  ALARM' if life.is_alarming else ''}"
            )
        self.stdout.write("")
        for kind in roles.KINDS:
            self.stdout.write(f"{kind + ' key':<16} {signers.where(kind)}")
        if archived := queries.count_archived():
            self.stdout.write(f"{archived} files of an earlier repository are kept as a record.")
        for sentence in queries.alarms():
            self.stdout.write(self.style.ERROR(sentence))

    def _ensure(self, _: dict[str, Any]) -> None:
        try:
            if actions.ensure_repository():
                self.stdout.write(actions.first_start_notice())
            actions.require_keys()
        except DomainError as error:
            # What was signed goes on being served meanwhile.
            self.stderr.write(self.style.ERROR(f"\nNothing can be released: {error.detail}\n"))
        self.stdout.flush()

    def _init(self, options: dict[str, Any]) -> None:
        from server.trust import plans, signers

        given, folder = _read_given(options["public"]), options["keys"] or settings.TRUST_KEYS
        _require_room(folder, given)
        keys, files = self._make_missing(folder, given)
        plan = plans.found(keys)
        if options["export"]:
            self._say_exported(actions.export(plan=plan, folder=options["export"]))
            return
        named = [*files, *options["key"]]
        actions.change(plan=plan, keyring=signers.Keyring(named, passphrase=_ask))
        signers.keep_root_copy(queries.first_root())
        self.stdout.write(
            "The repository is made. Now move the keys of root and targets offline, give those of"
            " models, snapshot and timestamp to the workers, and put the root into apps"
            " (`trust root`). docs/keys.md tells how."
        )

    def _refound(self, options: dict[str, Any]) -> None:
        from server.trust import plans, repository

        queries.trusted_root()
        if options["signed"]:
            plan = plans.bring_in([path.read_bytes() for path in options["signed"]])
            self._carry_out_anew(plan, options["key"])
            return
        given = _read_given(options["public"])
        used = [key.keyid for keys in given.values() for key in keys]
        plans.require_other_keys(used, repository.draw(lambda _: None))
        if not options["export"]:
            self._confirm()
        keys, files = self._make_missing(options["keys"] or settings.TRUST_KEYS, given)
        plan = plans.found(keys)
        if options["export"]:
            plan = plans.refound(plan)
            written = actions.export(plan=plan, folder=options["export"], is_anew=True)
            self._say_exported(written, "refound --signed")
            return
        self._carry_out_anew(plan, [*files, *options["key"]], is_confirmed=True)

    def _carry_out_anew(
        self, begin: Plan, keys: Sequence[Path], *, is_confirmed: bool = False
    ) -> None:
        from server.trust import plans, signers

        if not is_confirmed:
            self._confirm()
        keyring = signers.Keyring(keys, passphrase=_ask)
        self._say_changed(actions.refound(plan=plans.refound(begin), keyring=keyring))
        self.stdout.write(_REFOUNDED)

    def _confirm(self) -> None:
        """Have a person type what is about to happen."""
        self.stdout.write(_BEFORE_REFOUNDING)
        try:
            typed = input(f'Type "{_CONFIRMATION}" to go on: ')
        except EOFError:
            typed = ""
        if typed.strip() != _CONFIRMATION:
            message = "Nothing was changed."
            raise CommandError(message)

    def _make_missing(
        self, folder: Path, given: Mapping[str, list[Key]]
    ) -> tuple[dict[str, list[Key]], list[Path]]:
        """Make the keys that were not given; return all public keys, and the files made."""
        from server.trust.signers import make_key, read_public

        made = {
            kind: [make_key(folder, kind) for _ in range(3 if kind == roles.ROOT else 1)]
            for kind in roles.KINDS
            if kind not in given
        }
        files = [path for paths in made.values() for path in paths]
        for path in files:
            self.stdout.write(f"made  {path}")
        keys = {
            kind: [*given.get(kind, []), *map(read_public, made.get(kind, []))]
            for kind in roles.KINDS
        }
        return keys, files

    def _keygen(self, options: dict[str, Any]) -> None:
        from server.trust import signers

        path = signers.make_key(options["output"], options["kind"])
        self.stdout.write(f"private  {path}\npublic   {path.with_suffix('.pub')}")

    def _root(self, options: dict[str, Any]) -> None:
        content = queries.trusted_root()
        if options["output"] is None:
            self.stdout.write(content.decode())
            return
        options["output"].write_bytes(content)
        self.stdout.write(f"{options['output']}: put it into the app as its trusted root.")

    def _rotate(self, options: dict[str, Any]) -> None:
        from server.trust import plans, repository, signers

        kind = options["kind"]
        keyring = _keyring(options)
        delegator = roles.TARGETS if kind == roles.MODELS else roles.ROOT
        if not options["export"]:
            repository.require_at_hand(delegator, keyring)
        key = signers.read_public(options["public"]) if options["public"] else None
        if key is None and signers.configured(kind):
            key = signers.Keyring().public_key(kind)
        if key is None:
            path = signers.make_key(settings.TRUST_KEYS, kind)
            self.stdout.write(f"made  {path}")
            key, keyring = signers.read_public(path), _keyring(options)
        self._carry_out(plans.rotate(kind, key), keyring, options, appoints_keys=True)

    def _delegate(self, options: dict[str, Any]) -> None:
        from server.trust import plans

        queries.trusted_root()
        model = options["model"]
        plan = plans.delegate(roles.role_of(model), roles.paths_of(model))
        self._carry_out(plan, _keyring(options), options)

    def _reroot(self, options: dict[str, Any]) -> None:
        from server.trust import plans, repository, signers

        keyring = _keyring(options)
        keys = [signers.read_public(path) for path in options["public"]]
        if not keys:
            if not options["export"]:
                repository.require_at_hand(roles.ROOT, keyring)
            made = [signers.make_key(settings.TRUST_KEYS, roles.ROOT) for _ in range(3)]
            for path in made:
                self.stdout.write(f"made  {path}")
            keys, keyring = [signers.read_public(path) for path in made], _keyring(options)
        plan = plans.replace_root_keys(keys)
        self._carry_out(plan, keyring, options, appoints_keys=True)

    def _extend(self, options: dict[str, Any]) -> None:
        from server.trust import plans

        queries.trusted_root()
        self._carry_out(plans.extend(options["role"]), _keyring(options), options)

    def _sign(self, options: dict[str, Any]) -> None:
        from server.trust import offline, signers

        if not options["key"]:
            message = "Name the key with --key FILE."
            raise CommandError(message)
        keys = [signers.read_private(path, _ask) for path in options["key"]]
        for line in offline.sign(options["file"], keys):
            self.stdout.write(line)

    def _import(self, options: dict[str, Any]) -> None:
        from server.trust import plans

        plan = plans.bring_in([path.read_bytes() for path in options["files"]])
        self._say_changed(actions.change(plan=plan, appoints_keys=True))

    def _renew(self, _: dict[str, Any]) -> None:
        renewed = actions.renew()
        self._say_changed(renewed.signed)
        for role in renewed.overdue:
            self.stdout.write(
                self.style.ERROR(f"{role} is due, and its key is not here. See docs/keys.md.")
            )

    def _carry_out(
        self, plan: Plan, keyring: Keyring, options: dict[str, Any], *, appoints_keys: bool = False
    ) -> None:
        if options["export"]:
            self._say_exported(actions.export(plan=plan, folder=options["export"]))
            return
        changed = actions.change(plan=plan, keyring=keyring, appoints_keys=appoints_keys)
        self._say_changed(changed)

    def _say_changed(self, changed: Sequence[str]) -> None:
        if not changed:
            self.stdout.write("Nothing had to be signed.")
        versions = queries.current_versions()
        for role in changed:
            self.stdout.write(f"signed  {versions[role]}.{role}.json")

    def _say_exported(self, files: Sequence[Path], verb: str = "import") -> None:
        for path in files:
            self.stdout.write(f"to be signed  {path}")
        names = " ".join(str(path) for path in files)
        self.stdout.write(
            "Sign each where its keys are: `python manage.py trust sign FILE --key KEY`. Then:"
            f" `python manage.py trust {verb} {names}`"
            if files
            else "Nothing has to be signed."
        )


_INIT = (
    "Make the repository: keys and the first root, two of whose three keys sign. Refuses where"
    " there is one already, and never writes over a key."
)
_REFOUND = (
    "Found the repository anew, with other keys and another root, for when you hold less than two"
    " of three root keys, or a thief signed with two. Apps that carry the present root can never"
    " follow: they keep their models. Asks before it does anything."
)
_SIGNED = "root and targets that `refound --export` wrote, signed; the new keys must be in place"
_CONFIRMATION = "leave old apps behind"
_BEFORE_REFOUNDING = (
    "A new repository takes the place of the present one, at the same address.\n"
    "  Apps that carry the present root, or one before it, keep the models that they have and\n"
    "  install nothing more, for ever: whoever holds two of its keys could make them. They need\n"
    "  an update from their store. The two kinds of apps cannot share this server.\n"
    "  Releases, their labels and counters stay, and what channels serve is signed anew.\n"
    "  What was signed so far is archived in the database, and served no more.\n"
    "Back up the database first."
)
_REFOUNDED = (
    "The repository is founded anew. Now:\n"
    "    1. Put the new root into the app and ship it: python manage.py trust root --output FILE\n"
    "    2. Move the new keys of root and targets offline, and delete the old keys.\n"
    "    3. Where keys come from the environment, restart the workers with the new ones.\n"
    "    4. Where a CDN stands before this server, have it forget /api/v1/metadata/1.root.json.\n"
    "    5. Back up the database."
)
_ENSURE = (
    "Make keys and a root where nothing is configured and none was made yet, as the first start"
    " does; say so where keys are missing."
)
_ROTATE = (
    "Appoint another key for a kind of roles. The new one is given by its public part, or"
    " configured, or made in TRUST_KEYS. Models need the key of targets, all others two of root."
)
_DELEGATE = "Delegate a new model's role to the models' key; needs the key of the targets role."
_REROOT = (
    "Replace the keys of the root by three others. Two of the old and two of the new sign it, so"
    " that devices follow."
)
_EXTEND = (
    "Sign root or targets again, unchanged, so that they hold for another 365 or 180 days; for"
    " where their keys are offline."
)
_SIGN = (
    "Sign an exported file, on a machine that needs neither network nor database. Says what is"
    " signed. Several people sign one after another."
)
_PUBLIC = "public part of the new key, where its private part is elsewhere"


def _add_init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--keys", type=Path, metavar="FOLDER", help="where to make keys (default: TRUST_KEYS)"
    )
    parser.add_argument(
        "--public", action="append", default=[], metavar="KIND=FILE",
        help="use this key and make none of its kind: root (three times), targets, models,"
        " snapshot, timestamp",
    )  # fmt: skip
    _add_key(parser)
    parser.add_argument("--export", type=Path, metavar="FOLDER", help=_EXPORT)


def _add_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--key", type=Path, action="append", default=[], metavar="FILE", help=_OFFLINE
    )


def _keyring(options: Mapping[str, Any]) -> Keyring:
    from server.trust.signers import Keyring

    return Keyring(options["key"], passphrase=_ask)


def _ask(path: Path) -> bytes:
    return getpass.getpass(f"Passphrase of {path}: ").encode()


def _read_given(pairs: Sequence[str]) -> dict[str, list[Key]]:
    from server.trust import signers

    given: dict[str, list[Key]] = {}
    for pair in pairs:
        kind, _, name = pair.partition("=")
        if kind not in roles.KINDS or not name:
            message = f"--public {pair}: it takes KIND=FILE, KIND being {', '.join(roles.KINDS)}."
            raise CommandError(message)
        given.setdefault(kind, []).append(signers.read_public(Path(name)))
    for kind, keys in given.items():
        wanted = roles.ROOT_KEYS if kind == roles.ROOT else 1
        if len({key.keyid for key in keys}) != wanted:
            message = f"--public {kind}=…: {wanted} different keys are needed, not {len(keys)}."
            raise CommandError(message)
    for kind in roles.KINDS:
        if kind not in given and signers.service(kind):
            message = f"TRUST_{kind.upper()}_URI is set: give its public key, --public {kind}=FILE."
            raise CommandError(message)
        if kind not in given and signers.configured(kind):
            given[kind] = [key for key in [signers.Keyring().public_key(kind)] if key is not None]
    return given


def _require_room(folder: Path, given: Mapping[str, Any]) -> None:
    """Refuse a second repository, and a folder where somebody's keys lie."""
    if queries.is_initialised():
        message = (
            "There is a repository already; a second root would lock every device out. Where two of"
            " its root keys are lost or stolen, see `trust refound`."
        )
        raise CommandError(message)
    if len(given) < len(roles.KINDS) and folder.exists() and any(folder.glob("*.pem")):
        message = f"{folder} holds keys already. Name an empty folder with --keys."
        raise CommandError(message)
