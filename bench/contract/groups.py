"""Every group of cases, in the order in which they are run."""

from bench.contract import inference

GROUPS = (
    inference.group_without_models(),
    inference.group_api_description(),
    inference.group_bodies(),
    inference.group_not_decoded(),
    inference.group_routes(),
)
