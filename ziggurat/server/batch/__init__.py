# SPDX-License-Identifier: Apache-2.0
"""OpenAI's batch files, run offline on one engine: read, plan, journal, answer. No HTTP."""
