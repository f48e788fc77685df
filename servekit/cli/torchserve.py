"""`servekit torchserve`: TorchServe's flags and settings to a server, in the background unless told otherwise."""

import argparse
import dataclasses
import ipaddress
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import servekit
from servekit.archive import is_archive
from servekit.cli import background
from servekit.cli.serve import become_gunicorn, require_free_addresses, torchserve_options
from servekit.config import PREFIX
from servekit.errors import SettingError, StartupError
from servekit.torchserve.properties import NamedArchive, Properties
from servekit.torchserve.refusals import Refusal
from servekit.torchserve.sources import Sources

CONTRACT = "0.12.0"  # the TorchServe whose answers these are
_DEFAULT_CONFIG = Path("config.properties")
_MOST_NAMED = 5  # archives in a sentence


def torchserve(options: argparse.Namespace) -> int:
    """Start or stop a server, or print the version; return the exit status.

    Raises StartupError if the server cannot start; nothing runs then.
    """
    pid_file = options.pid_file or background.default_pid_file()
    if options.version:
        print(f"servekit {servekit.__version__}, which answers as TorchServe {CONTRACT} does")
        return 0
    if options.stop:
        print(background.stop(pid_file))
        return 0
    return start(options, pid_file)


def start(options: argparse.Namespace, pid_file: Path) -> int:
    """Start the server; return 0 when it answers, or become it with `--foreground`.

    Raises StartupError: an instance runs already, an address is taken, a setting or an archive cannot be used.
    """
    background.require_none(pid_file)
    properties, notes = located(read_properties(options, os.environ))
    for note in filter(None, [properties.warning, exposure_of(properties), *notes]):
        print(f"servekit: {note}", file=sys.stderr)
    environ = environ_of(properties, os.environ)
    os.environ.update({name: value for name, value in environ.items() if name.startswith(PREFIX)})
    gunicorn = torchserve_options(f"--pid={pid_file.absolute()}")
    addresses = require_free_addresses(gunicorn)
    if options.foreground:
        become_gunicorn(gunicorn, environ)
    logs = Path(os.environ.get("LOG_LOCATION") or "logs")
    patience = properties.default_startup_timeout * max(1, len(properties.load_models))
    print(background.start(gunicorn, environ, logs, addresses, patience))
    return 0


def read_properties(options: argparse.Namespace, environ: Mapping[str, str]) -> Properties:
    """Return the settings of the file that applies, of the flags and of `environ`; raise SettingError."""
    file = Path(environ["TS_CONFIG_FILE"]) if environ.get("TS_CONFIG_FILE") else options.ts_config
    if file is None and _DEFAULT_CONFIG.exists():
        file = _DEFAULT_CONFIG
    try:
        content = b"" if file is None else file.read_bytes()
    except OSError as error:
        raise SettingError(f"The file of settings {file} cannot be read: {error.strerror}.") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("latin-1")  # as Java reads it
    try:
        return Properties.parse(text, environ, flags_of(options, environ))
    except SettingError as error:
        raise SettingError(f"{file}: {error}" if file else str(error)) from None


def flags_of(options: argparse.Namespace, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what the flags say, as texts of the settings that they win over."""
    texts = {
        "model_store": options.model_store,
        "load_models": None if options.models is None else ",".join(options.models),
        "disable_token_authorization": "true" if options.disable_token_auth else None,
        "enable_model_api": "true" if options.enable_model_api else None,
        "workflow_store": options.workflow_store,
        "log_config": options.log_config,
        "cpp_log_config": options.cpp_log_config,
        "plugins_path": options.plugins_path,
        "METRICS_LOCATION": environ.get("METRICS_LOCATION"),  # metrics are served and not written
    }
    return {name: text for name, text in texts.items() if text is not None}


def located(properties: Properties) -> tuple[Properties, list[str]]:
    """Return `properties` with the model store and archives where they are, and sentences on those found elsewhere.

    Raises SettingError if the store or an archive is not there.
    """
    if properties.model_store is None:
        raise SettingError("There is no model store; give --model-store, or model_store in the file of --ts-config.")
    if not properties.model_store.is_dir():
        raise SettingError(f"The model store {properties.model_store} is no folder; make it, or name another.")
    store = properties.model_store.resolve()
    notes: list[str] = []
    archives = properties.load_models
    if not properties.loads_all:
        archives = tuple(NamedArchive(name, _locate(source, store, notes)) for name, source in archives)
    return dataclasses.replace(properties, model_store=store, load_models=archives), notes


def exposure_of(properties: Properties) -> str:
    """Return a sentence on who may use the server, if those are more than the owner may have meant; else ""."""
    addresses = dict.fromkeys((properties.inference_address, properties.management_address))
    open_to = [str(address) for address in addresses if not _is_loopback(address.host)]
    if not (open_to and properties.disable_token_authorization):
        return ""
    more = ", and make it load models and run their code" if properties.enable_model_api else ""
    return f"Tokens are off: whoever reaches {' or '.join(open_to)} may use the server{more}."


def environ_of(properties: Properties, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of the server: what `environ` has and the settings allow, and the settings themselves."""
    hidden = re.compile(properties.blacklist_env_vars) if properties.blacklist_env_vars else None
    # servekit's own are never hidden: without its keys the server would ask for none.
    kept = {
        name: value
        for name, value in environ.items()
        if hidden is None or name.startswith(PREFIX) or not hidden.fullmatch(name)
    }
    ours = {f"{PREFIX}TORCHSERVE": properties.to_text(), f"{PREFIX}MODEL_STORE": str(properties.model_store)}
    unless_given = {
        f"{PREFIX}MAX_BODY_BYTES": str(properties.max_request_size),
        "PYTHONUNBUFFERED": "1",  # what handlers print is in the log at once
    }
    if exposure_of(properties):  # the operator has said that everyone is let in
        unless_given[f"{PREFIX}ALLOW_ANONYMOUS"] = "true"
    return unless_given | kept | ours


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _locate(source: str, store: Path, notes: list[str]) -> str:
    """Return `source`, a name in `store`, a URL or a path from the current folder, as the server is to look for it.

    That is in the operator's own words, which descriptions show, unless the server would find another file by them. A
    path whose folder does not exist, or does not hold it, may name an archive that lies in the store.
    """
    if "://" in source:
        return source
    in_store = Path(os.path.normpath(store / source))
    places = [in_store] if in_store.is_relative_to(store) else []
    places += [Path(source), store / Path(source).name]
    found = next((place.resolve() for place in places if place.exists() and place.resolve() != store), None)
    if found is None:
        raise StartupError(f"The archive {source} is neither in the model store {store} nor in this folder; {_advice(store)}")
    if not any(place.exists() for place in places[:-1]):
        notes.append(f"There is no {source}; {found} is loaded in its place.")
    return source if _found_by_server(source, store) == found else str(found)


def _found_by_server(source: str, store: Path) -> Path | None:
    sources = Sources(Properties(model_store=store))
    try:
        sources.check(source)
        return sources.local(source, from_operator=True).resolve()
    except Refusal:
        return None


def _advice(store: Path) -> str:
    """Return what may help someone who has named an archive that is not there."""
    names = sorted(path.name for path in store.iterdir() if is_archive(path))
    if not names:
        return "make it first."
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"the store has {', '.join(names[:_MOST_NAMED])}{more}."
