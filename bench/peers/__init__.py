"""The servers that servekit is measured beside; nothing here is needed to use servekit."""
