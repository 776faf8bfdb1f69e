# SPDX-License-Identifier: Apache-2.0
"""/openapi.json with the request bodies, which FastAPI does not see because we read and check them ourselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from ziggurat.server.budget import BudgetRequest
from ziggurat.server.embeddings import EmbeddingRequest
from ziggurat.server.lora import LoadLoraRequest, UnloadLoraRequest
from ziggurat.server.schemas import ChatRequest, CompletionRequest
from ziggurat.server.tokens import DetokenizeRequest, TokenizeRequest

BODIES: Mapping[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/embeddings": EmbeddingRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
    "/memory": BudgetRequest,
    "/v1/load_lora_adapter": LoadLoraRequest,
    "/v1/unload_lora_adapter": UnloadLoraRequest,
}
PUT_PATHS = ("/memory",)


def with_bodies(make: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """FastAPI's ``openapi`` method, completed."""

    def openapi() -> dict[str, Any]:
        document = make()
        components = document.setdefault("components", {}).setdefault("schemas", {})
        for path, model in BODIES.items():
            schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
            components.update(schema.pop("$defs", {}))
            components[model.__name__] = schema
            content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
            operation = document["paths"][path]["put" if path in PUT_PATHS else "post"]
            operation["requestBody"] = {"required": True, "content": content}
        return document

    return openapi
