"""TorchServe's contract: what its users' scripts, dashboards and settings rely on."""
