"""Cases of what is loaded at the start, by which settings, and which part of an archive serves."""

import json

from bench.contract.cases import TEXT, Case, Group, infer, manage

OFF = "disable_token_authorization=true"
CONTROL = (OFF, "enable_model_api=true")
READY = '"READY"'


def predict(model: str, **more: str) -> Case:
    """Return a prediction of `model` with a short text."""
    return infer(f"predict {model}", "POST", f"/predictions/{model}", b"x", TEXT, **more)


def group_entries() -> Group:
    """Return the forms in which a manifest names the handler, and modules with more than one."""
    names = ("entry", "entry_file", "entry_missing", "both", "two", "swapped")
    cases: list[Case] = []
    for name in names:
        url = f"/models?url={name}.mar&initial_workers=1&startup_timeout=20"
        cases += [manage(f"register {name}", "POST", url, seconds=90), predict(name)]
    return Group("entries", tuple(cases), names, config=CONTROL)


def group_context() -> Group:
    """Return what the context of a handler says."""
    cases = (predict("told"), manage("describe told", "GET", "/models/told"))
    return Group("context", cases, ("told",), ("told",), (OFF,))


def group_all() -> Group:
    """Return a store that is loaded whole, with two versions of a model and an archive that is broken."""
    cases = (
        manage("describe version", "GET", "/models/version/all", until="(?s)READY.*READY"),
        manage("describe echo", "GET", "/models/echo", until=READY),
        manage("list", "GET", "/models"),
        predict("version"),
        predict("version/2.0"),
        predict("echo"),
        manage("describe nameless", "GET", "/models/nameless", until=READY),
        manage("describe no_manifest", "GET", "/models/no_manifest", until=READY),
    )
    archives = ("version1", "version2", "echo", "nameless", "no_manifest")
    return Group("startup_all", cases, archives, config=(OFF, "load_models=all", "default_workers_per_model=1"))


def group_named() -> Group:
    """Return a model that gets another name at the start."""
    cases = (
        manage("describe mine", "GET", "/models/mine", until=READY),
        predict("mine"),
        manage("describe the name in the archive", "GET", "/models/echo"),
        manage("list", "GET", "/models"),
    )
    config = (OFF, "load_models=mine=echo.mar", "default_workers_per_model=1")
    return Group("startup_named", cases, ("echo",), config=config)


def group_models() -> Group:
    """Return a model whose settings stand in config.properties under `models`."""
    settings = {
        "defaultVersion": True,
        "marName": "count.mar",
        "minWorkers": 1,
        "maxWorkers": 2,
        "batchSize": 3,
        "maxBatchDelay": 1000,
        "responseTimeout": 33,
    }
    cases = (manage("describe count", "GET", "/models/count"), predict("count"))
    config = (OFF, "models=" + json.dumps({"count": {"1.0": settings}}))
    return Group("startup_models", cases, ("count",), ("count",), config)


def group_variables() -> Group:
    """Return settings that come from the environment, which config.properties allows."""
    cases = (
        manage("register", "POST", "/models?url=echo.mar&initial_workers=1"),
        manage("describe", "GET", "/models/echo"),
        infer("over the limit", "POST", "/predictions/echo", b"x" * 3000, TEXT),
    )
    variables = (
        ("TS_DEFAULT_RESPONSE_TIMEOUT", "44"),
        ("TS_MAX_REQUEST_SIZE", "2000"),
        ("TS_DISABLE_TOKEN_AUTHORIZATION", "true"),
        ("TS_ENABLE_MODEL_API", "true"),
        ("QUEUE", "55"),
    )
    config = ("enable_envvars_config=true", "job_queue_size=$$QUEUE$$")
    return Group("variables", cases, ("echo",), config=config, variables=variables)


def group_hopeless() -> Group:
    """Return a model that is loaded at the start and never gets a worker."""
    cases = (
        infer("ping when it has given up", "GET", "/ping", until="Unhealthy"),
        manage("describe hopeless", "GET", "/models/hopeless"),
        predict("hopeless"),
        manage("list", "GET", "/models"),
        manage("remove", "DELETE", "/models/hopeless"),
        infer("ping without it", "GET", "/ping"),
    )
    config = (*CONTROL, "load_models=hopeless.mar", "default_workers_per_model=1")
    return Group("hopeless", cases, ("hopeless",), config=config)


def groups_requirements() -> tuple[Group, ...]:
    """Return an archive with requirements that cannot be installed, where they are not wanted and where they are."""
    cases = (
        manage("register", "POST", "/models?url=needy.mar&initial_workers=1", seconds=90),
        predict("needy"),
        manage("list", "GET", "/models"),
    )
    wanted = (*CONTROL, "install_py_dep_per_model=true")
    return (
        Group("requirements_off", cases, ("needy",), config=CONTROL),
        Group("requirements_on", cases, ("needy",), config=wanted),
    )


def group_forms() -> Group:
    """Return archives in every form, and what lies in the store beside them."""
    cases = (
        manage("register rolled", "POST", "/models?url=rolled.tar.gz&initial_workers=1"),
        predict("rolled"),
        manage("describe rolled", "GET", "/models/rolled"),
        manage("register unpacked", "POST", "/models?url=unpacked&initial_workers=1"),
        predict("unpacked"),
        manage("describe unpacked", "GET", "/models/unpacked"),
        manage("register with a leading slash", "POST", "/models?url=/version1.mar"),
        manage("register with a dot", "POST", "/models?url=./version1.mar&model_name=dotted"),
        manage("register without its ending", "POST", "/models?url=version1"),
        manage("register in capitals", "POST", "/models?url=VERSION1.MAR"),
        manage("remove rolled", "DELETE", "/models/rolled"),
        manage("register rolled again", "POST", "/models?url=rolled.tar.gz"),
    )
    return Group("forms", cases, ("rolled", "unpacked", "version1"), config=CONTROL)


def group_default_workers() -> Group:
    """Return registrations where config.properties says how many workers and how much queue a model gets."""
    cases = (
        manage("register", "POST", "/models?url=echo.mar"),
        manage("describe", "GET", "/models/echo"),
        manage("register with none", "POST", "/models?url=count.mar&initial_workers=0"),
        manage("describe none", "GET", "/models/count"),
    )
    config = (*CONTROL, "default_workers_per_model=2", "job_queue_size=7", "default_response_timeout=8")
    return Group("default_workers", cases, ("echo", "count"), config=config)
