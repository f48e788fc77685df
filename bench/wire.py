"""Reading an HTTP/1 response out of the bytes that have arrived, as much as a load generator needs."""


class Malformed(Exception):
    """What arrived is no response that a client on a kept-alive connection could read."""


def parse(data: bytes) -> tuple[int, bool] | None:
    """Return the status of the response in `data` and whether its connection is kept; None while it is incomplete.

    Raises Malformed for what is no HTTP, has no length, or goes on after its end.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = data[:end].lower()
    if head[:7] != b"http/1." or not head[9:12].isdigit():
        raise Malformed
    size = _size(data, head, end + 4)
    if size is None or size > len(data):
        return None
    if size < len(data):
        raise Malformed
    wanted = b"\r\nconnection: keep-alive" in head if head[7:8] == b"0" else b"\r\nconnection: close" not in head
    return int(head[9:12]), wanted


def _size(data: bytes, head: bytes, body: int) -> int | None:
    """Return how long the whole response is, or None while that is unknown."""
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        stop = head.find(b"\r\n", at + 17)
        digits = head[at + 17 : stop if stop >= 0 else len(head)].strip()
        if not digits.isdigit():
            raise Malformed
        return body + int(digits)
    if b"\r\ntransfer-encoding: chunked" in head:
        return _end_of_chunks(data, body)
    raise Malformed


def _end_of_chunks(data: bytes, at: int) -> int | None:
    while True:
        stop = data.find(b"\r\n", at)
        if stop < 0:
            return None
        try:
            length = int(data[at:stop].partition(b";")[0], 16)
        except ValueError:
            raise Malformed from None
        at = stop + 2 + length + 2
        if length == 0:  # no server here sends trailers
            return at
