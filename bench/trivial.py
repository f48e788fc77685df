"""A server that reads nothing of what it is sent and answers `ok`: what the load generator itself can do at most.

    python -m bench.trivial PORT PROCESSES
"""

import os
import select
import socket
import sys

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok"


def main() -> None:
    """Answer whatever arrives on the port with that many processes, until they are ended."""
    for _ in range(int(sys.argv[2]) - 1):
        if os.fork() == 0:
            break
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=1024, reuse_port=True)
    epoll = select.epoll()
    epoll.register(listener.fileno(), select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                client, _ = listener.accept()
                clients[client.fileno()] = client
                epoll.register(client.fileno(), select.EPOLLIN)
                continue
            try:
                data = clients[fd].recv(65536)
            except OSError:
                data = b""
            if data:
                clients[fd].send(ANSWER)
            else:
                clients.pop(fd).close()


if __name__ == "__main__":
    main()
