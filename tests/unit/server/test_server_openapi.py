# SPDX-License-Identifier: Apache-2.0
"""/openapi.json names every route and every field, and its references lead somewhere."""

from __future__ import annotations

import re

from tests.server_client import CHAT, COMPLETIONS, EMBEDDINGS, get
from ziggurat.server.openapi import BODIES


def test_the_document() -> None:
    response = get("/openapi.json")
    document = response.json()
    routes = {
        CHAT,
        COMPLETIONS,
        EMBEDDINGS,
        "/tokenize",
        "/detokenize",
        "/reset_prefix_cache",
        "/v1/models",
        "/v1/models/{name}",
        "/health",
        "/ready",
        "/version",
        "/metrics",
        "/memory",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/v1/sessions",
        "/v1/sessions/{session_id}",
        "/v1/sessions/{session_id}/save",
        "/v1/sessions/{session_id}/restore",
    }
    assert set(document["paths"]) == routes
    schemas = document["components"]["schemas"]
    for path, model in BODIES.items():
        body = document["paths"][path]["put" if path == "/memory" else "post"]["requestBody"]["content"][
            "application/json"
        ]["schema"]
        assert body == {"$ref": f"#/components/schemas/{model.__name__}"}
        assert set(schemas[model.__name__]["properties"]) == set(model.model_fields)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', response.text))
    assert references <= set(schemas)
    assert {"type": "string"} in schemas["CompletionRequest"]["properties"]["prompt"]["anyOf"]
