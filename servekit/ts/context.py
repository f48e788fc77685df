"""What a handler is told beside the data: of its model when it is initialised, of the requests with each batch."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

CONTENT_TYPE = "content-type"


class Headers(dict[str, Any]):
    """Header fields whose names are looked up without regard to case, and kept as they were sent."""

    def __init__(self, fields: Mapping[str, Any] | None = None) -> None:
        """Take over `fields`."""
        super().__init__(fields or {})
        self._names = {name.lower(): name for name in self}

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(self._names.get(name.lower(), name))

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(self._names.setdefault(name.lower(), name), value)

    def __delitem__(self, name: str) -> None:
        super().__delitem__(self._names.pop(name.lower(), name))

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.lower() in self._names

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of the field `name` in whatever case, or `default`."""
        return self[name] if name in self else default

    def update(self, *fields: Any, **more: Any) -> None:
        """Set all of `fields`."""
        for name, value in dict(*fields, **more).items():
            self[name] = value

    def setdefault(self, name: str, default: Any = None) -> Any:
        """Return the value of the field `name`, which is set to `default` if there is none."""
        if name not in self:
            self[name] = default
        return self[name]

    def pop(self, name: str, default: Any = None) -> Any:
        """Take the field `name` out and return its value, or `default`."""
        value = self.get(name, default)
        if name in self:
            del self[name]
        return value


class RequestProcessor:
    """The header of one request, and the status and header of its answer."""

    def __init__(self, request_header: Mapping[str, Any]) -> None:
        """Begin with status 200 and no header fields."""
        self._request_header = Headers(request_header)
        self._status_code = 200
        self._reason_phrase: str | None = None
        self._response_header = Headers()

    def get_request_property(self, key: str) -> Any:
        """Return a header field of the request, or None; for a form's part, a dict with its content type."""
        return self._request_header.get(key)

    def get_request_properties(self) -> dict[str, Any]:
        """Return the header of the request."""
        return self._request_header

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the status of the answer."""
        self._status_code = code
        self._reason_phrase = reason_phrase

    def get_response_status_code(self) -> int:
        """Return the status of the answer."""
        return self._status_code

    def get_response_status_phrase(self) -> str | None:
        """Return the words that go with the status."""
        return self._reason_phrase

    def add_response_property(self, key: str, value: str) -> None:
        """Set a header field of the answer."""
        self._response_header[key] = value

    def get_response_headers(self) -> dict[str, Any]:
        """Return the header of the answer."""
        return self._response_header

    def get_response_header(self, key: str) -> Any:
        """Return a header field of the answer, or None."""
        return self._response_header.get(key)


class Context:
    """One a handler: what it says of the model stays, what it says of the requests changes with every batch."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: Any,
        batch_size: int | None,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        """Describe the model; there are no requests yet."""
        self.model_name = model_name
        self.manifest = manifest
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.metrics = metrics
        self.model_yaml_config = model_yaml_config
        self.request_ids: dict[int, str] | None = None
        self.request_processor: Sequence[RequestProcessor] | None = None
        self.stopping_criteria: Any = None
        self.cl_socket: Any = None
        # Takes the parts of answers that a handler sends before it returns: the row's number, its bytes.
        self.send_part: Callable[[int, bytes], None] | None = None
        self.header_key_sequence_id = os.getenv("TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id")
        self.header_key_sequence_start = os.getenv("TS_REQUEST_SEQUENCE_START", "ts_request_sequence_start")
        self.header_key_sequence_end = os.getenv("TS_REQUEST_SEQUENCE_END", "ts_request_sequence_end")

    def _request(self, idx: int) -> RequestProcessor:
        if self.request_processor is None:
            raise RuntimeError("The context has no requests before the first batch.")
        return self.request_processor[idx]

    def get_request_id(self, idx: int = 0) -> str | None:
        """Return the id of row `idx` of the batch."""
        return None if self.request_ids is None else self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """Return a header field of row `idx`, in whatever case, or None."""
        return self._request(idx).get_request_property(key)

    def get_all_request_header(self, idx: int) -> dict[str, Any]:
        """Return the header of row `idx`."""
        return self._request(idx).get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """Set the content type of the answer to row `idx`."""
        self.set_response_header(idx, CONTENT_TYPE, value)

    def get_response_content_type(self, idx: int) -> Any:
        """Return the content type of the answer to row `idx`, if the handler has set one."""
        return self.get_response_headers(idx).get(CONTENT_TYPE)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        """Return status and phrase of the answer to row `idx`."""
        request = self._request(idx)
        return request.get_response_status_code(), request.get_response_status_phrase()

    def set_response_status(self, code: int = 200, phrase: str = "", idx: int = 0) -> None:
        """Set status and phrase of the answer to row `idx`."""
        if self.request_processor is not None:
            self._request(idx).report_status(code, reason_phrase=phrase)

    def set_all_response_status(self, code: int = 200, phrase: str = "") -> None:
        """Set status and phrase of every answer of the batch."""
        for request in self.request_processor or ():
            request.report_status(code, reason_phrase=phrase)

    def get_response_headers(self, idx: int) -> dict[str, Any]:
        """Return the header of the answer to row `idx`."""
        return self._request(idx).get_response_headers()

    def set_response_header(self, idx: int, key: str, value: str) -> None:
        """Set a header field of the answer to row `idx`."""
        self._request(idx).add_response_property(key, value)

    def get_sequence_id(self, idx: int) -> Any:
        """Return the id of the sequence that row `idx` belongs to, or None."""
        return self.get_request_header(idx, self.header_key_sequence_id)
