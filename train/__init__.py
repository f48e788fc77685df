"""How the models are made: data, loop, one recipe a model; each run writes one version of a model store."""
