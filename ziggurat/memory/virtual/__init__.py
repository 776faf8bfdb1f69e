# SPDX-License-Identifier: Apache-2.0
"""KV that is contiguous in virtual address space, its pages mapped on demand (vAttention)."""
