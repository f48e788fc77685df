"""What no line of the code may do: unpickle, run text as code or as a shell's, or read YAML that makes objects."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    *(path for folder in ("servekit", "models", "train") for path in sorted((ROOT / folder).rglob("*.py"))),
    ROOT / "wsgi.py",
    ROOT / "gunicorn.conf.py",
]
# Functions by their last two names; as a method of an object `eval` and `load` are others' words.
BANNED = {
    "builtins": {"eval", "exec", "compile"},
    "pickle": {"load", "loads", "Unpickler"},
    "dill": {"load", "loads"},
    "joblib": {"load"},
    "marshal": {"load", "loads"},
    "shelve": {"open"},
    "yaml": {"load", "load_all", "full_load", "unsafe_load"},
    "os": {"system", "popen"},
    "subprocess": {"getoutput", "getstatusoutput"},
    "np": {"load", "loads"},
    "numpy": {"load", "loads"},
    "pandas": {"read_pickle", "eval"},
}
ALLOWED = re.compile(r"# allowed: (\S+ ){3,}\S+")  # on a line of the call, or alone on the one before: four words or more


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    """Give every call in `tree`."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def is_true(value: ast.expr) -> bool:
    """Return True if `value` is not the word False: what cannot be told from the text counts, too."""
    return not (isinstance(value, ast.Constant) and value.value is False)


def offence(call: ast.Call) -> str:
    """Return what is wrong with `call`, or nothing."""
    words = {word.arg: word.value for word in call.keywords}
    function = call.func
    owner = getattr(getattr(function, "value", None), "id", "") if isinstance(function, ast.Attribute) else "builtins"
    name = getattr(function, "attr", "") or getattr(function, "id", "")
    if name in BANNED.get(owner, ()):
        return f"{owner}.{name}"
    weights_only = words.get("weights_only")
    if (owner, name) == ("torch", "load") and not (isinstance(weights_only, ast.Constant) and weights_only.value is True):
        return "torch.load without weights_only=True"
    return next((f"{word}=True" for word in ("shell", "allow_pickle") if word in words and is_true(words[word])), "")


def offences(text: str) -> Iterator[str]:
    """Give what no code may do in `text`, a module's, unless a comment says why it is allowed there."""
    lines = text.splitlines()
    for call in calls(ast.parse(text)):
        before = lines[call.lineno - 2].strip() if call.lineno > 1 else ""
        reasons = [*lines[call.lineno - 1 : call.end_lineno], before if before.startswith("#") else ""]
        if (found := offence(call)) and not any(map(ALLOWED.search, reasons)):
            yield f"{found} in line {call.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_unpickles_or_runs_text(path: Path) -> None:
    assert not list(offences(path.read_text()))


@pytest.mark.parametrize(
    "line",
    [
        "pickle.loads(body)",
        "eval(text)",
        "exec(text, names)",
        "torch.load(file)",
        "torch.load(file, weights_only=False)",
        "torch.load(file, weights_only=is_trusted)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "format.read_array(file, allow_pickle=True)",
        "np.load(file)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=is_windows)",
        "os.system(command)",
        "eval(text)  # allowed: trust me",
    ],
)
def test_what_is_banned_is_found(line: str) -> None:
    assert len(list(offences(line))) == 1


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "json.loads(body)",
        "yaml.safe_load(text)",
        "torch.load(file, map_location='cpu', weights_only=True)",
        "format.write_array(file, values, allow_pickle=False)",
        "re.compile(pattern)",
        "# allowed: the operator's own file, which is code\neval(text)",
    ],
)
def test_what_is_safe_passes(line: str) -> None:
    assert not list(offences(line))


def test_what_bandit_is_told_to_pass_over_has_its_reason_beside_it() -> None:
    for path in SOURCES:
        for line in path.read_text().splitlines():
            if re.search(r"#\s*nosec", line):
                assert re.search(r"# nosec B\d{3}  # (\S+ ){3,}\S+", line), f"{path}: {line.strip()}"
