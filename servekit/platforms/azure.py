"""Azure ML: its inference server's variables (azureml-inference-server-http)."""

from collections.abc import Mapping
from pathlib import Path

from servekit.errors import SettingError
from servekit.platforms.base import AZURE, BEHIND_FRONT, Platform, any_address, existing, positive, require_named

_ROOT = Path("/var/azureml-app")


def azure(environ: Mapping[str, str]) -> Platform:
    """Return what Azure ML asks for."""
    folder = environ.get("AZUREML_MODEL_DIR", "")
    if scoring_script(environ) is None:  # to which alone it says something, if there is one
        require_named(environ, "AZUREML_MODEL_DIR", folder)
    store = _store_in(existing(folder))
    return Platform(AZURE, any_address(environ, "SERVER_PORT", "5001"), store, _workers(environ), BEHIND_FRONT)


def azure_root(environ: Mapping[str, str]) -> Path:
    """Return the folder that Azure ML's relative paths begin at."""
    if given := environ.get("AML_APP_ROOT"):
        return Path(given).absolute()
    return _ROOT if _ROOT.is_dir() else Path.cwd()


def scoring_script(environ: Mapping[str, str]) -> Path | None:
    """Return the script that Azure ML runs, `main.py` if none is named; None: there is none.

    Raises SettingError for one that is named and is not there.
    """
    root = azure_root(environ)
    if given := environ.get("AZUREML_ENTRY_SCRIPT"):
        script = root / given
        if script.suffix != ".py" or not script.is_file():
            raise SettingError(f"AZUREML_ENTRY_SCRIPT must name a file of Python: {script} is none.")
        return script
    script = root / "main.py"
    is_named = "AML_APP_ROOT" in environ or root == _ROOT  # else it is whoever's folder we were started in
    return script if is_named and script.is_file() else None


def _workers(environ: Mapping[str, str]) -> int | None:
    """Return WORKER_COUNT; a script that somebody wrote takes the memory that it likes, so there is one of it by default."""
    if environ.get("WORKER_COUNT"):
        return positive(environ, "WORKER_COUNT", 1)
    return 1 if scoring_script(environ) else None


def _store_in(folder: Path | None) -> Path | None:
    """Return the model store in `folder`: Azure ML puts the folder that was registered into another one."""
    inner = [] if folder is None else [each for each in folder.iterdir() if each.is_dir() and not each.name.startswith(".")]
    if len(inner) != 1 or any(each.name.isdecimal() for each in inner[0].iterdir()):
        return folder
    return inner[0]
