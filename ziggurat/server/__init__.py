# SPDX-License-Identifier: Apache-2.0
"""The HTTP edge: OpenAI-compatible routes, metrics, the memory map and the page. FastAPI, uvicorn and pydantic stay in this room."""
