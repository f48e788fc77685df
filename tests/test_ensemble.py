"""Ensembles: their graph, their members, and what clients get."""

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from servekit.batcher import Backlog
from servekit.engines.echo import EchoEngine
from servekit.ensemble import Ensemble, Step, in_order
from servekit.errors import InvalidInput, ModelLoadError, ModelNotFound, NotReady
from servekit.handlers.base import Handler
from servekit.handlers.tensors import TensorsHandler
from servekit.model import Model
from servekit.signature import Signature
from servekit.spec import ModelSpec, TensorSpec
from servekit.tensors import Tensors


def tensor(name: str, *shape: int, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, (-1, *shape))


RAW, ANSWER = (tensor("RAW", 4),), (tensor("ANSWER", 1),)


class Sum:
    """Adds up the last axis of `x`."""

    device = "cpu"

    def __call__(self, tensors: Tensors) -> Tensors:
        return {"sum": tensors["x"].sum(axis=-1, keepdims=True)}


class Picky(TensorsHandler):
    """Refuses requests with a 13 in them."""

    def preprocess(self, tensors: Tensors) -> Tensors:
        if 13 in tensors["x"]:
            raise InvalidInput("No 13, please.")
        return super().preprocess(tensors)


def model(name: str, engine: Any, signature: Signature, handler: type[TensorsHandler] = TensorsHandler) -> Model:
    spec = ModelSpec("h:H", inputs=signature.inputs, outputs=signature.outputs, files={})
    return Model(name, "1", spec, handler(spec, signature), engine, Backlog(1000))


def adder(size: int = 4, **more: Any) -> Model:
    return model("adder", Sum(), Signature((tensor("x", size),), (tensor("sum", 1),), **more), Picky)


def echo(*shape: int, **more: Any) -> Model:
    return model("echo", EchoEngine(), Signature((tensor("x", *shape),), (tensor("x", *shape),), **more))


def ensemble(
    members: Mapping[str, Model],
    steps: list[Step],
    inputs: tuple[TensorSpec, ...] = RAW,
    outputs: tuple[TensorSpec, ...] = ANSWER,
    **more: Any,
) -> Ensemble:
    signature = Signature(inputs, outputs, **more)
    spec = ModelSpec("h:H", inputs=inputs, outputs=outputs, files={})

    def find(name: str, version: str | None) -> Model:
        if name not in members or version not in (None, members[name].version):
            raise ModelNotFound("That model is not loaded.")
        return members[name]

    return Ensemble("chain", "1", spec, signature, steps, find, "chain/config.pbtxt")


# Not in the order in which they run.
CHAIN = [Step("adder", None, {"x": "between"}, {"sum": "ANSWER"}), Step("echo", "1", {"x": "RAW"}, {"x": "between"})]
ROWS = np.arange(8, dtype=np.float32).reshape(2, 4)


def soon() -> float:
    return time.monotonic() + 10


def test_rows_go_through_all_steps() -> None:
    chain = ensemble({"echo": echo(4), "adder": adder()}, CHAIN)
    assert [step.model for step in chain.steps] == ["echo", "adder"]
    assert chain.predict({"RAW": ROWS}, soon())["ANSWER"].tolist() == [[6], [22]]
    assert (chain.device, chain.waiting, chain.config) == ("cpu", 0, None)


def test_members_may_come_later_and_be_replaced() -> None:
    members: dict[str, Model] = {"echo": echo(4)}
    chain = ensemble(members, CHAIN)
    chain.connect()
    for attempt in (chain.require_ready, lambda: chain.predict({"RAW": ROWS}, soon())):
        with pytest.raises(NotReady, match="^This ensemble needs the model adder, which is not loaded.$"):
            attempt()
    members["adder"] = adder()
    chain.require_ready()
    members["adder"] = adder(5)
    with pytest.raises(NotReady, match="cannot answer: the tensor between is float32 .-1, 4., but the input x of the model"):
        chain.predict({"RAW": ROWS}, soon())
    members["adder"] = adder(-1)
    assert chain.predict({"RAW": ROWS}, soon())["ANSWER"].tolist() == [[6], [22]]


def test_a_bad_request_fails_alone() -> None:
    chain = ensemble({"echo": echo(4), "adder": adder()}, CHAIN)
    requests = [{"RAW": ROWS}, {"RAW": np.full((1, 4), 13, np.float32)}, {"RAW": ROWS[:1]}]
    shown = [
        str(answer) if isinstance(answer, InvalidInput) else answer["ANSWER"].ravel().tolist()
        for answer in chain.predict_each(requests, soon())
    ]
    assert shown == [[6, 22], "No 13, please.", [6]]
    assert [len(answer["ANSWER"]) for answer in chain.predict_each([requests[0], requests[2]], soon())] == [2, 1]
    odd = [{"RAW": ROWS}, {"OTHER": ROWS}, {"RAW": ROWS.astype(np.int64)}, {"RAW": ROWS[:, :3]}]
    shown = [str(answer) for answer in chain.predict_each(odd, soon())[1:]]
    assert shown == [
        "This model takes the inputs RAW, and no others.",
        "The input RAW must be float32.",
        "The input RAW must have the shape [-1, 4], rows first.",
    ]


def test_axes_of_one_and_texts_find_their_way() -> None:
    encoded = Signature((tensor("x", 2, 2),), (tensor("x", 2, 2),), frozenset(("x",)))

    class Decode(TensorsHandler):
        def preprocess(self, tensors: Tensors) -> Tensors:
            return {"x": np.stack([np.frombuffer(item, np.float32).reshape(2, 2) for item in tensors["x"]])}

    decoder = model("decoder", EchoEngine(), encoded, Decode)
    steps = [
        Step("decoder", None, {"x": "RAW"}, {"x": "pixels"}),
        Step("adder", None, {"x": "pixels"}, {"sum": "sums"}),
        Step("flat", None, {"x": "sums"}, {"x": "ANSWER"}),
    ]
    members = {"decoder": decoder, "adder": adder(2), "flat": echo(1, 2)}
    members["adder"] = model("adder", Sum(), Signature((tensor("x", 2, 2),), (tensor("sum", 2, 1),)), Picky)
    chain = ensemble(members, steps, (tensor("RAW", 1, dtype="bytes"),), (tensor("ANSWER", 2, 1, 1),))
    chain.connect()
    texts = np.empty((1, 1), object)
    texts[0, 0] = np.float32([[1, 2], [3, 4]]).tobytes()
    for given in (texts, texts[0]):  # with the axis of dims [1], and as servekit's own contracts send it
        answer = chain.predict({"RAW": given}, soon())["ANSWER"]
        assert (answer.shape, answer.ravel().tolist()) == ((1, 2, 1, 1), [3, 7])


def test_a_chain_without_rows_runs_members_with_and_without() -> None:
    members = {"echo": echo(2, 4, is_batched=False), "adder": adder()}
    outputs = (tensor("ANSWER", 2, 1),)
    chain = ensemble(members, CHAIN, (tensor("RAW", 2, 4),), outputs, is_batched=False)
    chain.connect()
    assert chain.predict({"RAW": ROWS[np.newaxis]}, soon())["ANSWER"].tolist() == [[[6], [22]]]
    rows_first = ensemble(members, CHAIN)
    with pytest.raises(ModelLoadError, match="it has a max_batch_size, but its step echo, version 1 takes one request"):
        rows_first.connect()


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([], "it has no step"),
        (CHAIN[:1], "no step and no input gives the tensor between"),
        (CHAIN[1:], "no step and no input gives the tensor ANSWER"),
        ([*CHAIN, CHAIN[1]], "the tensor between is given twice"),
        ([Step("echo", None, {}, {"x": "ANSWER"})], "no step takes the input RAW"),
        ([*CHAIN, Step("echo", None, {"x": "a"}, {"x": "a"})], "the step echo waits for its own outputs"),
    ],
)
def test_a_graph_that_cannot_run_is_refused(steps: list[Step], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        in_order(steps, Signature(RAW, ANSWER))
    with pytest.raises(ModelLoadError, match=f"^chain/config.pbtxt: {reason}; correct ensemble_scheduling.$"):
        ensemble({}, steps)


@pytest.mark.parametrize(
    ("member", "step", "reason"),
    [
        (echo(4), {"inputs": {"y": "RAW"}}, "the model echo has no input called y; it has x"),
        (echo(4), {"outputs": {"y": "ANSWER"}}, "the model echo has no output called y; it has x"),
        (echo(5), {}, "the tensor RAW is float32 .-1, 4., but the input x of the model echo is float32 .-1, 5."),
        (echo(4), {}, "its output ANSWER is float32 .-1, 1., but its step gives float32 .-1, 4."),
    ],
)
def test_a_member_that_does_not_fit_is_named(member: Model, step: dict[str, Any], reason: str) -> None:
    steps = [Step("echo", None, **{"inputs": {"x": "RAW"}, "outputs": {"x": "ANSWER"}} | step)]
    with pytest.raises(ModelLoadError, match=f"^chain/config.pbtxt: {reason}"):
        ensemble({"echo": member}, steps).connect()


def test_a_member_needs_all_its_inputs_and_a_signature() -> None:
    two = model("two", EchoEngine(), Signature((tensor("x", 4), tensor("z", 4)), (tensor("x", 4),)))
    steps = [Step("two", None, {"x": "RAW"}, {"x": "ANSWER"})]
    with pytest.raises(ModelLoadError, match="the step two gives its model no input z"):
        ensemble({"two": two}, steps).connect()
    spec = two.spec
    own = Model("own", "1", spec, Handler(spec), EchoEngine(), Backlog(1), takes_requests=True)
    with pytest.raises(ModelLoadError, match="the model two reads requests by itself and cannot be a step"):
        ensemble({"two": own}, steps).connect()


def test_a_chain_in_a_chain_is_a_model_and_no_circle() -> None:
    members: dict[str, Model] = {"echo": echo(4), "adder": adder()}
    inner = ensemble(members, CHAIN)
    around = [Step("inner", None, {"RAW": "RAW"}, {"ANSWER": "ANSWER"})]
    inner.name = "inner"
    outer = ensemble(members | {"inner": inner}, around)
    assert outer.predict({"RAW": ROWS}, soon())["ANSWER"].tolist() == [[6], [22]]
    members["echo"] = outer
    with pytest.raises(ModelLoadError, match="it names itself as a step"):
        ensemble(members, [Step("chain", None, {"RAW": "RAW"}, {"ANSWER": "ANSWER"})])
    circle = ensemble(members, [Step("echo", None, {"RAW": "RAW"}, {"ANSWER": "ANSWER"})])
    with pytest.raises(ModelLoadError, match="it is a part of itself"):
        circle.connect()


@pytest.mark.parametrize("first", ["double-0", "double-29"])
def test_chains_that_double_at_each_level_are_refused_at_once(first: str) -> None:
    members: dict[str, Model] = {"double--1": echo(4)}
    for level in range(30):
        below = f"double-{level - 1}"
        given, taken = ("x", "x") if level == 0 else ("a", "b")
        steps = [Step(below, None, {given: "a"}, {taken: "m"}), Step(below, None, {given: "m"}, {taken: "b"})]
        doubled = ensemble(members, steps, (tensor("a", 4),), (tensor("b", 4),))
        doubled.name = f"double-{level}"
        members[doubled.name] = doubled
    names = [first, *(name for name in members if name.startswith("double-") and name not in (first, "double--1"))]
    refused = []
    for name in names:
        try:
            members[name].connect()
        except ModelLoadError as error:
            refused.append(name)
            assert "passes; at most 1000" in str(error) or "nested more than 20 deep" in str(error)
    assert "double-29" in refused and "double-8" not in refused
    with pytest.raises(NotReady):
        members["double-29"].require_ready()


def test_a_chain_has_so_many_steps_at_most() -> None:
    steps = [Step("echo", None, {"x": f"t{step}"}, {"x": f"t{step + 1}"}) for step in range(1001)]
    with pytest.raises(ModelLoadError, match="it has 1001 steps; at most 1000"):
        ensemble({"echo": echo(4)}, steps, (tensor("t0", 4),), (tensor("t1001", 4),))
