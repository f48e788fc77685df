"""TorchServe's config.properties: what of it is understood, what wins over what, and what is refused."""

import subprocess
import sys
from pathlib import Path

import pytest

from servekit.errors import SettingError
from servekit.torchserve import java
from servekit.torchserve.properties import Address, NamedArchive, Properties
from tests.server import ROOT

CHAPTER = """\
# what a tutorial has its readers write
inference_address=http://0.0.0.0:8080
management_address=http://0.0.0.0:8081
metrics_address=http://0.0.0.0:8082
number_of_netty_threads=32
job_queue_size=1000
model_store=model_store
default_response_timeout=120
default_workers_per_model=1
log_level=DEBUG
"""


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a=1", {"a": "1"}),
        ("a = 1 \n\n  b:2\nc 3\nd", {"a": "1 ", "b": "2", "c": "3", "d": ""}),
        ("# a=1\n ! b=2\r\nc=3 # not a comment", {"c": "3 # not a comment"}),
        ("a=1\na=2", {"a": "2"}),
        ("a=one,\\\n    two,\\\r\n\tthree\nb=4", {"a": "one,two,three", "b": "4"}),
        ("a=ends in a pair \\\\\nb=1", {"a": "ends in a pair \\", "b": "1"}),
        ("a=goes on\\", {"a": "goes on"}),
        ("# a comment does not go on \\\na=1", {"a": "1"}),
        ("a\\=b\\:c\\ d=x=y", {"a=b:c d": "x=y"}),
        ("a=\\t\\n\\q\\u00e9\\uD83D\\uDE00", {"a": "\t\nqé😀"}),
        ("a=\\  two", {"a": "  two"}),
        ("", {}),
    ],
)
def test_the_syntax_is_that_of_java(text: str, values: dict[str, str]) -> None:
    assert java.parse(text) == values


def test_a_character_code_that_is_none_is_refused() -> None:
    with pytest.raises(SettingError, match="four hexadecimal digits"):
        java.parse("path=C:\\users")


@pytest.mark.parametrize("value", ["", " ", " two  ", "a=b:c#d!", "back\\slash\\", "line\nbreak\ttab", "é😀", "$$HOME$$"])
def test_a_line_reads_back_as_it_was(value: str) -> None:
    line = java.line_of("name", value)
    assert line.isascii() and "\n" not in line
    assert java.parse(line) == {"name": value}


def test_the_settings_of_a_tutorial_are_understood() -> None:
    properties = Properties.parse(CHAPTER)
    assert properties.inference_address == Address("0.0.0.0", 8080)
    assert properties.management_address == ("0.0.0.0", 8081)
    assert properties.metrics_address == ("0.0.0.0", 8082)
    assert properties.job_queue_size == 1000
    assert properties.model_store == Path("model_store")
    assert properties.default_response_timeout == 120
    assert properties.default_workers_per_model == 1
    assert properties.log_level == "debug"
    assert properties.warning == "These settings have no effect: number_of_netty_threads (not supported)."


def test_without_a_file_everything_listens_on_loopback_and_is_locked() -> None:
    properties = Properties.parse("")
    assert [str(address) for address in properties.addresses] == [f"http://127.0.0.1:{port}" for port in (8080, 8081, 8082)]
    assert not properties.disable_token_authorization and not properties.enable_model_api
    assert not properties.install_py_dep_per_model
    assert properties.load_models == () and properties.warning == ""


def test_all_that_has_no_effect_is_named_in_one_sentence() -> None:
    properties = Properties.parse("batch_size=32\nvmargs=-Xmx4g\nload_model=all\nio_ratio=50")
    assert properties.ignored == ("batch_size", "io_ratio", "load_model", "vmargs")
    assert properties.warning == (
        "These settings have no effect: io_ratio, vmargs (not supported); batch_size, load_model (not known)."
    )


def test_equal_addresses_are_listened_on_once_and_metrics_only_if_wanted() -> None:
    text = "inference_address=http://127.0.0.1:8080\nmanagement_address=http://127.0.0.1:8080\n"
    assert [address.port for address in Properties.parse(text).addresses] == [8080, 8082]
    assert [address.port for address in Properties.parse(text + "enable_metrics_api=false").addresses] == [8080]


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("http://0.0.0.0:8080", "0.0.0.0:8080"),
        ("http://localhost", "localhost:80"),
        ("http://127.0.0.1:8080/", "127.0.0.1:8080"),
        ("http://[::1]:8080", "[::1]:8080"),
    ],
)
def test_an_address_is_one_for_gunicorn(text: str, address: str) -> None:
    assert Properties.parse(f"inference_address={text}").inference_address.bind == address


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("inference_address=https://127.0.0.1:8443", "an http address, and put a proxy that speaks TLS before it"),
        ("management_address=unix:/tmp/ts.sock", "an address such as http://127.0.0.1:8080"),
        ("metrics_address=127.0.0.1:8082", "an address such as http://127.0.0.1:8080"),
        ("metrics_address=http://127.0.0.1:80820", "an address such as http://127.0.0.1:8080"),
        ("metrics_address=http://[::1:8082", "an address such as http://127.0.0.1:8080"),
        ("job_queue_size=0", "a whole number from 1 on"),
        ("job_queue_size=many", "a whole number from 1 on"),
        ("default_workers_per_model=-1", "a whole number from 0 on"),
        ("default_workers_per_model=", "a whole number from 0 on"),
        ("enable_model_api=yes", "true or false"),
        ("token_expiration_min=nan", "a number of minutes above 0"),
        ("token_expiration_min=an hour", "a number of minutes above 0"),
        ("metrics_mode=all", "one of: log, prometheus, legacy"),
        ("log_level=LOUD", "one of: debug, info"),
        ("allowed_urls=https://(.*", "regular expressions"),
        ("blacklist_env_vars=(", "a regular expression"),
        ("load_models=a=", "all, none, or a list such as a=a.mar,b.mar"),
        ("models={noop}", "JSON; this is none"),
        ("models=[]", "a JSON object"),
        ('models={"noop": {"1.0": 3}}', 'JSON such as {"noop": {"1.0": {"marName": "noop.mar"'),
        ('model_snapshot={"models": {"noop": []}}', "JSON such as"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_in_one_sentence(line: str, words: str) -> None:
    with pytest.raises(SettingError) as refusal:
        Properties.parse(line)
    assert str(refusal.value).startswith(f"{line} cannot be used; give ") and words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "archives"),
    [
        ("", []),
        ("none", []),
        ("a=a.mar,b.mar", [("a", "a.mar"), (None, "b.mar")]),
        (" a = a.mar , ", [("a", "a.mar")]),
        ("a=https://host/a.mar?key=1", [("a", "https://host/a.mar?key=1")]),
        ("https://host/b.mar?x=y", [(None, "https://host/b.mar?x=y")]),
        ("folder/x=1.mar", [(None, "folder/x=1.mar")]),
    ],
)
def test_the_models_to_load_are_named_or_not(text: str, archives: list[tuple[str | None, str]]) -> None:
    properties = Properties.parse(f"load_models={text}")
    assert list(properties.load_models) == archives
    assert not properties.loads_all


def test_all_models_may_be_asked_for() -> None:
    assert Properties.parse("load_models=ALL").loads_all
    assert Properties.parse("", flags={"load_models": "all"}).load_models == (NamedArchive(None, "all"),)


def test_models_may_be_described_in_json_over_many_lines() -> None:
    text = 'models={\\\n  "noop": {\\\n    "1.0": {"defaultVersion": true, "marName": "noop.mar", "minWorkers": 2}\\\n  }\\\n}'
    assert Properties.parse(text).models["noop"]["1.0"]["minWorkers"] == 2


def test_variables_of_the_environment_are_put_in_where_the_file_names_them() -> None:
    properties = Properties.parse("inference_address=http://$$HOST$$:$$PORT$$", {"HOST": "::1".join("[]"), "PORT": "81"})
    assert properties.inference_address == ("::1", 81)
    with pytest.raises(SettingError, match="model_store names the environment variable STORE, which is not set; set it."):
        Properties.parse("model_store=$$STORE$$", {})


def test_the_environment_wins_over_flags_and_those_over_the_file() -> None:
    flags = {"disable_token_authorization": "true", "model_store": "from-flag"}
    environ = {"TS_DISABLE_TOKEN_AUTHORIZATION": "false", "TS_JOB_QUEUE_SIZE": "7", "TS_CONFIG_FILE": "x", "TS_UNKNOWN": "y"}
    text = "model_store=from-file\njob_queue_size=5\n"
    closed = Properties.parse(text, environ, flags)
    assert (closed.disable_token_authorization, closed.model_store, closed.job_queue_size) == (True, Path("from-flag"), 5)
    opened = Properties.parse(text + "enable_envvars_config=true", environ, flags)
    assert (opened.disable_token_authorization, opened.model_store, opened.job_queue_size) == (False, Path("from-flag"), 7)
    assert opened.ignored == ()


def test_the_environment_sets_allowed_urls_only_where_the_file_says_so() -> None:
    environ = {"TS_ALLOWED_URLS": "https://a/.*, https://b/.*", "TS_USE_ENV_ALLOWED_URLS": "true"}
    text = "enable_envvars_config=true\nallowed_urls=https://c/.*\n"
    assert Properties.parse(text, environ).allowed_urls == ("https://c/.*",)
    allowed = Properties.parse(text + "use_env_allowed_urls=true", environ).allowed_urls
    assert allowed == ("https://a/.*", "https://b/.*")


def test_what_is_written_reads_back_as_it_was() -> None:
    text = CHAPTER + (
        "load_models=a=a.mar,b.mar\nmodels={\"a\": {\"1.0\": {\"batchSize\": 4}}}\nnumber_of_gpu=0\nenable_metrics_api=false\n"
        "token_expiration_min=0.5\nallowed_urls=https://h/[^/]\\\\.mar,file://.*\ncors_allowed_origin=*\n"
        "metrics_config=\\u00e9.yaml\ninference_address=http://[::1]:80\nmetrics_mode=log"
    )
    properties = Properties.parse(text)
    again = Properties.parse(properties.to_text())
    assert again.ignored == () and properties.ignored == ("number_of_netty_threads",)
    assert again.to_text() == properties.to_text()
    for name in ("load_models", "models", "number_of_gpu", "enable_metrics_api", "allowed_urls", "addresses", "log_level"):
        assert getattr(again, name) == getattr(properties, name)
    assert Properties().to_text() == ""


def test_it_needs_the_standard_library_only() -> None:
    code = (
        "import sys, servekit.torchserve.properties\n"
        "tops = {name.split('.')[0] for name, module in sys.modules.items() if getattr(module, '__file__', None)}\n"
        "print(sorted(tops - set(sys.stdlib_module_names) - {'servekit', 'sitecustomize', '_virtualenv'}))"
    )
    ended = subprocess.run([sys.executable, "-S", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.stdout.strip() == "[]", ended.stderr
