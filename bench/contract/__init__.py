"""The same requests to TorchServe and to servekit, and every difference between their answers."""
