"""Answers with what the context says of the model and the request."""

import os


class Told:
    def initialize(self, context):
        self.started_with = {
            "model_name": context.model_name,
            "manifest": context.manifest,
            "yaml": context.model_yaml_config,
            "batch_size": context.system_properties["batch_size"],
            "gpu_id": context.system_properties["gpu_id"],
            "server_name": context.system_properties["server_name"],
            "server_version": context.system_properties["server_version"],
            "limit_max_image_pixels": context.system_properties["limit_max_image_pixels"],
        }
        folder = context.system_properties["model_dir"]
        self.files = {
            "folder is the current one": os.path.realpath(folder) == os.path.realpath(os.getcwd()),
            "files": sorted(set(os.listdir(folder)) - {"__pycache__"}),
        }

    def handle(self, data, context):
        request = {
            "ids": [context.get_request_id(index) for index in range(len(data))],
            "ids by place": context.request_ids,
            "status": context.get_response_status(0),
            "content type": context.get_response_content_type(0),
            "response headers": context.get_response_headers(0),
            "missing header": context.get_request_header(0, "x-none"),
            "properties": sorted(context.request_processor[0].get_request_properties()),
        }
        return [self.started_with | self.files | request for _ in data]
