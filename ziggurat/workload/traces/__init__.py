# SPDX-License-Identifier: Apache-2.0
"""Files of requests that were really made: readers and writers of the formats in use, and what can be said of a trace."""
