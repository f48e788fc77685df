"""What a contract of the web needs beside its codec: descriptions, statistics and choices; no view, no route."""
