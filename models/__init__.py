"""What the networks are: one module a network, `nn.Module` and nothing else."""
