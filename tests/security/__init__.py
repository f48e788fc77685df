"""A test for every published hole of a model server, and of what servekit is built on, that could be one here, too."""
