"""JSON that is deep, wide, huge, or no JSON: refused by every contract with a sentence, before it takes memory."""

import json
from functools import partial
from typing import Any

import numpy as np
import pytest

from servekit.app import create_app
from servekit.config import Settings
from tests.security.apps import Address, Apps
from tests.security.hostile import FORM, JSON, v2

DEEP = {
    "120 lists": b"[" * 120 + b"]" * 120,
    "120 lists in a member": b'{"instances": ' + b"[" * 120 + b"1" + b"]" * 120 + b"}",
    "120 lists in inputs": b'{"inputs": ' + b"[" * 120 + b"1" + b"]" * 120 + b"}",
    "120 objects": b'{"a":' * 120 + b"1" + b"}" * 120,
    "100 000 lists that do not end": b"[" * 100_000,
    "100 000 objects that do not end": b'{"a":' * 100_000,
    "lists and objects by turns": b'[{"a":' * 50_000,
    "behind a text with brackets": b'{"a": "\\"[[[[", "instances": ' + b"[" * 5000 + b"]" * 5000 + b"}",
    "in a tensor": v2(data=None).replace(b"null", b"[" * 200 + b"1" + b"]" * 200),
    "wide": b"[" + b"[]," * 700_000 + b"[]]",
}
WORDS = ("predict", "infer", "invocations", "score", "classify", "regress", "/load", "/index", "/models")


def readers(apps: Apps) -> list[Address]:
    """Return the addresses that read JSON themselves; what TorchServe's handlers read is theirs."""
    names = ("none", "sagemaker", "mlflow", "vertex", "azure", "multi_model", "management")
    found = [each for each in apps.addresses(*names, method="POST") if any(word in each.path for word in WORDS)]
    others = ("not_", "other_repository", "explain", "anything", "trace", "generate", "set-default", "unload")
    return [each for each in found if not any(word in each.endpoint + each.path for word in others)]


@pytest.mark.parametrize("case", DEEP)
def test_cve_2024_27454_json_that_is_too_deep_is_refused_everywhere(apps: Apps, case: str) -> None:
    """orjson (CVE-2025-67221) recursed without end; Triton (CVE-2025-23310) put what clients send on its stack."""
    addresses = readers(apps)
    assert len(addresses) > 20
    for address in addresses:
        answer = apps.ask(address.app, "POST", address.path, DEEP[case], JSON)
        assert 400 <= answer.status_code < 500, (str(address), answer.status_code, answer.data[:200])


@pytest.mark.parametrize("path", ["/v1/models/echo_float64:predict", "/predictions/echo_float64"])
def test_json_of_a_hundred_levels_is_read(apps: Apps, path: str) -> None:
    deep, deeper = (b'{"instances": ' + b"[" * depth + b"1" + b"]" * depth + b"}" for depth in (99, 100))
    assert "nested too deep" not in apps.ask("none", "POST", path, deep, JSON).get_data(as_text=True)
    assert "nested too deep" in apps.ask("none", "POST", path, deeper, JSON).get_data(as_text=True)


HUGE = {
    "a shape of 2**80 elements": v2(shape=[2**40, 2**40], data=[1.0]),
    "a shape that wraps": v2(shape=[2**62, 4], data=[1.0]),
    "a shape of 2**63": v2(shape=[2**63], data=[1.0]),
    "a negative shape": v2(shape=[-1, -1], data=[1.0]),
    "a shape of a float": v2(shape=[1.0, 1], data=[1.0]),
    "a shape of true": v2(shape=[True, 1], data=[1.0]),
    "no rows, endless columns": v2(shape=[0, 2**60], data=[]),
    "endless rows of nothing": v2(shape=[2**40, 0], data=[]),
    "a thousand axes": v2(shape=[1] * 1000, data=[1.0]),
    "another datatype": v2(datatype="INT64", data=[1]),
    "an unknown datatype": v2(datatype="FP128", data=[1.0]),
    "bytes for numbers": v2(datatype="BYTES", data=["x"]),
    "a binary size of 2**63": v2(parameters={"binary_data_size": 2**63}),
    "a negative binary size": v2(parameters={"binary_data_size": -4}),
    "a binary size beyond the body": v2(parameters={"binary_data_size": 2**40}),
    "a binary size that is a text": v2(parameters={"binary_data_size": "4"}),
    "data and a binary size": v2(data=[1.0], parameters={"binary_data_size": 4}),
    "more classes than there are": v2(data=[1.0])[:-1]
    + b', "outputs": [{"name": "prediction", "parameters": {"classification": 18446744073709551616}}]}',
}


@pytest.mark.parametrize("case", HUGE)
def test_cve_2025_23320_shapes_and_sizes_take_no_memory(apps: Apps, case: str) -> None:
    answer = apps.ask("none", "POST", "/v2/models/linear/infer", HUGE[case], JSON)
    assert answer.status_code == 400 and answer.json["error"], answer.data  # type: ignore[index]


@pytest.mark.parametrize("length", ["-1", "+1", "1e3", "0x10", " 2", "2, 2", "9" * 30, "99", "\u0665", "", "2_0"])
def test_cve_2025_23317_the_length_of_the_json_is_one_number_within_the_body(apps: Apps, length: str) -> None:
    headers = {"Inference-Header-Content-Length": length.encode().decode("latin-1")}
    assert apps.ask("none", "POST", "/v2/models/linear/infer", b"{}" * 20, JSON, headers).status_code == 400


def test_strings_of_bytes_that_claim_more_than_there_is(apps: Apps) -> None:
    for content in (b"\xff\xff\xff\xff", b"\x05\0\0\0abc", b"", b"\x01\0\0\0a\0"):
        tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(content)}}
        head = json.dumps({"inputs": [tensor]}).encode()
        headers = {"Inference-Header-Content-Length": str(len(head))}
        answer = apps.ask("none", "POST", "/v2/models/echo_bytes/infer", head + content, JSON, headers)
        assert answer.status_code == 400, answer.data


# Numbers: docs/security.md has this as a table.

OVERFLOWS = ("1e999", "-1e999", "1e400", "9" * 5000, "-" + "9" * 5000)
NO_NUMBERS = ("true", "null", "1_0", "0x10", "1e", "--1", "\u0665", "nan0", "[]", "{}")
WORDS_OF_JSON = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
EXTREMES = ("-0.0", "0.0", "5e-324", "2.2250738585072014e-308", "1.7976931348623157e308", "-1.7976931348623157e308")
BOUNDS = {"9223372036854775807": 200, "-9223372036854775808": 200, "9223372036854775808": 400, "1e19": 400, "1.5": 400}
WRITES: dict[str, tuple[str, str, str, str]] = {
    "V1 rows": ("none", "/v1/models/{model}:predict", '{{"instances": [{value}]}}', JSON),
    "V1 columns": ("none", "/v1/models/{model}:predict", '{{"inputs": [{value}]}}', JSON),
    "V1 version": ("none", "/v1/models/{model}/versions/1:predict", '{{"instances": [{value}]}}', JSON),
    "V2": (
        "none",
        "/v2/models/{model}/infer",
        '{{"inputs": [{{"name": "x", "shape": [1], "datatype": "{datatype}", "data": [{value}]}}]}}',
        JSON,
    ),
    "TorchServe": ("none", "/predictions/{model}", '{{"instances": [{{"x": {value}}}]}}', JSON),
    "SageMaker JSON": ("sagemaker", "/invocations", '{{"instances": [{value}]}}', JSON),
    "SageMaker CSV": ("sagemaker", "/invocations", "{value}\n", "text/csv"),
    "SageMaker lines": ("sagemaker", "/invocations", "{value}\n", "application/jsonlines"),
    "MLflow frame": ("mlflow", "/invocations", '{{"dataframe_split": {{"columns": ["x"], "data": [[{value}]]}}}}', JSON),
    "MLflow CSV": ("mlflow", "/invocations", "x\n{value}\n", "text/csv"),
    "Vertex": ("vertex", "/predict", '{{"instances": [{value}]}}', JSON),
    "Azure": ("azure", "/score", '{{"data": [{value}]}}', JSON),
}
DATATYPES = {"float32": "FP32", "float64": "FP64", "int64": "INT64"}


@pytest.fixture(scope="module")
def clients(apps: Apps) -> dict[tuple[str, str], Any]:
    """Clients of the contracts, those of a cloud with the model that echoes numbers of a kind as their only one."""
    made: dict[tuple[str, str], Any] = {("none", dtype): apps.client("none") for dtype in DATATYPES}
    for name in ("sagemaker", "mlflow", "vertex", "azure"):
        for dtype in DATATYPES:
            settings = Settings(model_store=apps.store, platform=name, default_model=f"echo_{dtype}")
            made[name, dtype] = create_app(settings).test_client()
    return made


def sent(clients: dict[tuple[str, str], Any], contract: str, dtype: str, value: str) -> tuple[int, Any]:
    """Send a number to the model that echoes its kind; return the status, and the first number of the answer."""
    name, path, body, kind = WRITES[contract]
    content = body.format(value=value, datatype=DATATYPES[dtype])
    answer = clients[name, dtype].post(path.format(model=f"echo_{dtype}"), data=content.encode(), content_type=kind)
    if answer.status_code != 200:
        return answer.status_code, None
    found = json.loads(answer.data)
    found = found if isinstance(found, list) else found.get("predictions") or found["outputs"]
    return 200, found[0]["data"][0] if isinstance(found[0], dict) else found[0]


@pytest.mark.parametrize("contract", WRITES)
def test_cve_2020_10735_numbers_that_no_type_holds_are_refused(clients: Any, contract: str) -> None:
    """CPython (CVE-2020-10735) took the square of the digits' time."""
    for dtype in DATATYPES:
        for value in (*OVERFLOWS, *NO_NUMBERS):
            assert sent(clients, contract, dtype, value)[0] == 400, (dtype, value[:20])


@pytest.mark.parametrize("contract", WRITES)
def test_what_is_not_finite_has_one_meaning_in_each_contract(clients: Any, contract: str) -> None:
    for word, number in WORDS_OF_JSON.items():
        status, answer = sent(clients, contract, "float64", word)
        assert status == 200
        if contract == "Vertex":
            assert answer is None  # Google's values know no such numbers
        else:
            np.testing.assert_equal(answer, number)
        assert sent(clients, contract, "int64", word)[0] == 400


@pytest.mark.parametrize("contract", WRITES)
def test_the_ends_of_every_type_come_back_as_they_were_sent(clients: Any, contract: str) -> None:
    for value in EXTREMES:
        status, answer = sent(clients, contract, "float64", value)
        assert (status, repr(float(answer))) == (200, repr(float(value)))
    for value, expected in BOUNDS.items():
        status, answer = sent(clients, contract, "int64", value)
        assert status == expected and (status != 200 or answer == int(value))
    assert sent(clients, contract, "float32", "1e39")[0] == 400
    assert sent(clients, contract, "float32", "1e-46") == (200, 0.0)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


strict = partial(json.loads, parse_constant=refuse_constant)


@pytest.mark.parametrize("path", ["/predict", "/linear/predict"])
def test_our_own_routes_neither_read_nor_write_what_is_not_finite(apps: Apps, path: str) -> None:
    for value in (*WORDS_OF_JSON, *OVERFLOWS, "1e39", "-1e39", "3.4028235678e38"):
        for body, kind in ((f'{{"value": {value}}}', JSON), (f"value={value}", FORM), (f'{{"value": "{value}"}}', JSON)):
            answer = apps.ask("none", "POST", path, body, kind)
            assert answer.status_code == 400, (value[:20], answer.data)
            strict(answer.data)
    for value in ("-0.0", "5e-324", "3.4e37", "-3.4e37", "1e-46"):
        answer = apps.ask("none", "POST", path, f'{{"value": {value}}}', JSON)
        assert answer.status_code == 200 and strict(answer.data)["input"] == float(value)


AMBIGUOUS = ('{"value": 1, "value": 2}', '{"value": 1} x', "{'value': 1}", '{"value": 1,}', "\ufeff{}", '{"value"', "// 1")


@pytest.mark.parametrize("body", AMBIGUOUS)
def test_what_other_parsers_read_in_another_way_is_refused(apps: Apps, body: str) -> None:
    assert apps.ask("none", "POST", "/linear/predict", body.encode(), JSON).status_code == 400
