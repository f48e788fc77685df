"""The command `servekit`: serve, stand in for TorchServe's commands, look at models and archives."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import servekit
from servekit.errors import ServekitError, StartupError

ARCHIVER = "torch-model-archiver"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with `arguments`, without its own name; return the exit status. What fails is one sentence."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == [ARCHIVER]:  # its flags are its own
        from servekit.archiver import main as archive

        return archive(given[1:], f"servekit {ARCHIVER}")
    if given[:1] == ["grpc"]:
        from servekit.cli.grpc import main as grpc

        return grpc(given[1:], "servekit grpc")
    arguments_of = parser()
    options, others = arguments_of.parse_known_args(given)
    if others and options.run is not _serve:
        arguments_of.error(f"unrecognized arguments: {' '.join(others)}")
    options.others = others
    try:
        _require_folder()
        return int(options.run(options))
    except StartupError as error:
        print(f"servekit cannot start: {error}", file=sys.stderr)
    except ServekitError as error:
        print(f"servekit: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        pass
    return 1


def _require_folder() -> None:
    """Raise StartupError if this process stands in a folder that has been removed: nothing could be found or read there."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise StartupError("The current folder is not there any more; change to another one.") from None


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; what it returns has the function to `run`."""
    command = argparse.ArgumentParser(prog="servekit", description="Serves PyTorch models over HTTP.")
    command.add_argument("--version", action="version", version=f"servekit {servekit.__version__}")
    commands = command.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        help="serve the model store on 127.0.0.1:5001",
        description="Serve the model store on 127.0.0.1:5001. All options of gunicorn are taken, too.",
        allow_abbrev=False,
    )
    serve.add_argument("--bind", action="append", default=[], metavar="ADDRESS", help="where to listen, as host:port")
    serve.add_argument("--model-store", type=Path, metavar="DIR", help="the folder of the models; SERVEKIT_MODEL_STORE")
    serve.set_defaults(run=_serve)

    torchserve = commands.add_parser("torchserve", help="serve archives as TorchServe does, with its flags")
    _add_torchserve_flags(torchserve)
    torchserve.set_defaults(run=_torchserve)

    commands.add_parser(ARCHIVER, help="make a model archive, with the flags of the tool of that name", add_help=False)

    commands.add_parser("grpc", help="serve gRPC V2 on 127.0.0.1:8001 in front of a running server", add_help=False)

    models = commands.add_parser("models", help="list what a running server has loaded")
    models.add_argument("--model-store", type=Path, metavar="DIR", help="the store that it serves; else that of the background")
    models.set_defaults(run=_models)

    check = commands.add_parser("check", help="load an archive outside the server and say what is wrong with it")
    check.add_argument("archive", type=Path, help="an archive, or a folder with a model: see docs/cli.md")
    check.add_argument("--install", action="store_true", help="install the archive's requirements into a temporary folder")
    check.set_defaults(run=_check)

    doctor = commands.add_parser("doctor", help="say what a server would find here, and what to change")
    doctor.add_argument("--model-store", type=Path, metavar="DIR", help="the store to look at; SERVEKIT_MODEL_STORE")
    doctor.add_argument("--json", action="store_true", help="for tools: facts, origins and advice as JSON")
    doctor.set_defaults(run=_doctor)
    return command


def _add_torchserve_flags(parser: argparse.ArgumentParser) -> None:
    act = parser.add_mutually_exclusive_group()
    act.add_argument("-v", "--version", action="store_true", help="print the version")
    act.add_argument("--start", action="store_true", help="start the server; so does no flag of these three")
    act.add_argument("--stop", action="store_true", help="stop the server that was started in the background")
    parser.add_argument("--ts-config", type=Path, metavar="FILE", help="config.properties; TS_CONFIG_FILE wins over it")
    parser.add_argument("--model-store", metavar="DIR", help="the folder of the archives; needed here or in the file")
    parser.add_argument("--models", nargs="+", metavar="[NAME=]ARCHIVE", help="what to load at the start, or all")
    parser.add_argument("--foreground", action="store_true", help="do not go to the background; log to the terminal")
    parser.add_argument("--disable-token-auth", "--dt", action="store_true", help="let requests in without a token")
    parser.add_argument("--enable-model-api", action="store_true", help="let requests register and unregister models")
    parser.add_argument("--pid-file", type=Path, metavar="FILE", help="where the process id is kept (in the temporary folder)")
    parser.add_argument("--no-config-snapshots", "--ncs", action="store_true", help="accepted: none are written")
    for flags in (["--workflow-store"], ["--log-config"], ["--cpp-log-config"], ["--plugins-path", "--ppath"]):
        parser.add_argument(*flags, metavar="PATH", help="accepted without effect")


def _serve(options: argparse.Namespace) -> int:
    from servekit.cli.serve import serve

    return serve(options.bind, options.model_store, options.others)


def _torchserve(options: argparse.Namespace) -> int:
    from servekit.cli.torchserve import torchserve

    return torchserve(options)


def _models(options: argparse.Namespace) -> int:
    from servekit.cli.models import models

    return models(options.model_store)


def _check(options: argparse.Namespace) -> int:
    from servekit.cli.check import check

    return check(options.archive, options.install)


def _doctor(options: argparse.Namespace) -> int:
    from servekit.cli.doctor import doctor

    return doctor(options.model_store, options.json)
