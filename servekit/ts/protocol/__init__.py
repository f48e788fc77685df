"""Where handlers written for older versions of TorchServe look for some functions."""
