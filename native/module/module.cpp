// SPDX-License-Identifier: Apache-2.0
// The Python module: addresses and sizes in, nothing allocated but a call's index lists (a few bytes per routed row, expert or
// sequence), the GIL released while a kernel runs. Shapes and dtypes are checked by the caller (ziggurat/kernels/native.py), which
// knows the arrays.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/dispatch.h"
#include "base/thread_pool.h"
#include "module/tape.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

constexpr int64_t kExpertTaskWork = 65536;  // multiply-adds of eight lanes: some ten microseconds

template <typename T>
T* at(uintptr_t address) { return reinterpret_cast<T*>(address); }

zg::KVArgs kv_args(uintptr_t base, int format, int64_t block_size, int64_t num_kv_heads, int64_t head_dim, int64_t block_stride,
                   int64_t kv_stride, int64_t head_stride) {
  return {at<char>(base), static_cast<zg::KVFormat>(format), block_size, num_kv_heads, head_dim, block_stride, kv_stride, head_stride};
}

template <typename Item, bool kIsPacking>
void interleave(uintptr_t rows_address, uintptr_t panels_address, int64_t first_row, int64_t num_rows, int64_t k) {
  Item* rows = at<Item>(rows_address);
  Item* panels = at<Item>(panels_address);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t n = first_row + i;
    Item* lane = panels + n / zg::kPanelWidth * k * zg::kPanelWidth + n % zg::kPanelWidth;
    for (int64_t j = 0; j < k; ++j) {
      if (kIsPacking) lane[j * zg::kPanelWidth] = rows[i * k + j];
      else rows[i * k + j] = lane[j * zg::kPanelWidth];
    }
  }
}

template <bool kIsPacking>
void panels(uintptr_t rows, uintptr_t panels_address, int64_t first_row, int64_t num_rows, int64_t k, int dtype) {
  if (static_cast<zg::DType>(dtype) == zg::DType::f32) interleave<uint32_t, kIsPacking>(rows, panels_address, first_row, num_rows, k);
  else interleave<uint16_t, kIsPacking>(rows, panels_address, first_row, num_rows, k);
}

// Rows of ggml's blocks [R][K / 32][scale | quads] to records of sixteen rows' scales and quads (kernels/qlinear/dots.h), and back.
template <bool kIsPacking>
void blocks(uintptr_t rows_address, uintptr_t panels_address, int64_t first_row, int64_t num_rows, int64_t num_groups, int64_t block_bytes) {
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t n = first_row + i, lane = n % zg::kPanelWidth;
    char* block = at<char>(rows_address) + i * num_groups * block_bytes;
    char* record = at<char>(panels_address) + n / zg::kPanelWidth * num_groups * block_bytes * zg::kPanelWidth;
    const auto move = [](char* stored, char* packed, size_t size) {
      if (kIsPacking) std::memcpy(packed, stored, size);
      else std::memcpy(stored, packed, size);
    };
    for (int64_t g = 0; g < num_groups; ++g, block += block_bytes, record += block_bytes * zg::kPanelWidth) {
      move(block, record + lane * 2, 2);
      for (int64_t j = 0; j < (block_bytes - 2) / 4; ++j)
        move(block + 2 + 4 * j, record + zg::kPanelWidth * 2 + (j * zg::kPanelWidth + lane) * 4, 4);
    }
  }
}

void linear(uintptr_t x, int64_t x_stride, uintptr_t panels_address, int dtype, uintptr_t bias, uintptr_t out, int64_t out_stride,
            int64_t num_rows, int64_t k, int64_t n, bool accumulate) {
  zg::kernels().linear({at<float>(x), x_stride, at<void>(panels_address), static_cast<zg::DType>(dtype), at<float>(bias), at<float>(out),
                        out_stride, num_rows, k, n, accumulate});
}

void embed_rows(uintptr_t ids, uintptr_t panels_address, int dtype, uintptr_t out, int64_t out_stride, int64_t num_rows, int64_t k,
                float scale) {
  zg::kernels().embed_rows(
      {at<int64_t>(ids), at<void>(panels_address), static_cast<zg::DType>(dtype), at<float>(out), out_stride, num_rows, k, scale});
}

void quantized_linear(uintptr_t x, int64_t x_stride, uintptr_t panels_address, int block, uintptr_t bias, uintptr_t out,
                      int64_t out_stride, int64_t num_rows, int64_t k, int64_t n, bool accumulate, uintptr_t scratch) {
  zg::kernels().quantized_linear({at<float>(x), x_stride, at<void>(panels_address), static_cast<zg::Block>(block), at<float>(bias),
                                  at<float>(out), out_stride, num_rows, k, n, accumulate, at<void>(scratch)});
}

void quantized_embed(uintptr_t ids, uintptr_t panels_address, int block, uintptr_t out, int64_t out_stride, int64_t num_rows, int64_t k,
                     float scale) {
  zg::kernels().quantized_embed(
      {at<int64_t>(ids), at<void>(panels_address), static_cast<zg::Block>(block), at<float>(out), out_stride, num_rows, k, scale});
}

void rms_norm(uintptr_t x, int64_t x_stride, uintptr_t delta, int64_t delta_stride, uintptr_t weight, uintptr_t out, int64_t out_stride,
              int64_t num_rows, int64_t k, float eps, float weight_offset) {
  zg::kernels().rms_norm({at<float>(x), x_stride, at<float>(delta), delta_stride, at<float>(weight), at<float>(out), out_stride, num_rows,
                          k, eps, weight_offset});
}

void qkv_post(uintptr_t qkv, int64_t qkv_stride, uintptr_t positions, uintptr_t slot_mapping, uintptr_t cos, uintptr_t sin,
              int64_t num_rows, int64_t num_heads, int64_t rot_dim, uintptr_t q_norm, uintptr_t k_norm, float eps, float weight_offset,
              uintptr_t kv_base, int kv_format, int64_t block_size, int64_t num_kv_heads, int64_t head_dim, int64_t block_stride,
              int64_t kv_stride, int64_t head_stride) {
  zg::kernels().qkv_post({at<float>(qkv), qkv_stride, at<int64_t>(positions), at<int64_t>(slot_mapping), at<float>(cos), at<float>(sin),
                          num_rows, num_heads, rot_dim, at<float>(q_norm), at<float>(k_norm), eps, weight_offset,
                          kv_args(kv_base, kv_format, block_size, num_kv_heads, head_dim, block_stride, kv_stride, head_stride)});
}

void paged_attention(uintptr_t q, int64_t q_stride, uintptr_t out, int64_t out_stride, uintptr_t query_starts, uintptr_t first_positions,
                     uintptr_t block_tables, int64_t table_stride, int64_t num_seqs, int64_t num_heads, float scale, int64_t window,
                     float softcap, uintptr_t kv_base, int kv_format, int64_t block_size, int64_t num_kv_heads, int64_t head_dim, int64_t block_stride,
                     int64_t kv_stride, int64_t head_stride) {
  const int32_t* starts = at<int32_t>(query_starts);
  const int64_t heads = num_heads / num_kv_heads, tile_rows = std::max<int64_t>(1, zg::kAttentionRows / heads);
  std::vector<int64_t> task_starts(static_cast<size_t>(num_seqs) + 1, 0);
  for (int64_t s = 0; s < num_seqs; ++s) {
    const int64_t tiles = (starts[s + 1] - starts[s] + tile_rows - 1) / tile_rows;
    task_starts[static_cast<size_t>(s) + 1] = task_starts[static_cast<size_t>(s)] + tiles * num_kv_heads;
  }
  zg::kernels().paged_attention({at<float>(q), q_stride, at<float>(out), out_stride, starts, at<int32_t>(first_positions),
                                 at<int32_t>(block_tables), table_stride, task_starts.data(), num_seqs, num_heads, tile_rows, scale, window, softcap,
                                 kv_args(kv_base, kv_format, block_size, num_kv_heads, head_dim, block_stride, kv_stride, head_stride)});
}

// Attention over packed blocks and the tails that are not full yet; the tail's entries are fp32 and as many per block.
void packed_attention(uintptr_t q, int64_t q_stride, uintptr_t out, int64_t out_stride, uintptr_t query_starts, uintptr_t first_positions,
                      uintptr_t block_tables, int64_t table_stride, uintptr_t tail_tables, int64_t tail_stride, int64_t num_seqs, int64_t num_heads,
                      float scale, float softcap, uintptr_t kv_base, int kv_format, int64_t block_size, int64_t num_kv_heads, int64_t head_dim,
                      int64_t block_stride, int64_t kv_stride, int64_t head_stride, uintptr_t tail_base, int64_t tail_block_stride,
                      int64_t tail_kv_stride, int64_t tail_head_stride) {
  const int32_t* starts = at<int32_t>(query_starts);
  const int64_t tile_rows = std::max<int64_t>(1, zg::kAttentionRows * num_kv_heads / num_heads);
  std::vector<int64_t> task_starts(static_cast<size_t>(num_seqs) + 1, 0);
  for (int64_t s = 0; s < num_seqs; ++s)
    task_starts[static_cast<size_t>(s) + 1] =
        task_starts[static_cast<size_t>(s)] + (starts[s + 1] - starts[s] + tile_rows - 1) / tile_rows * num_kv_heads;
  zg::kernels().paged_attention({at<float>(q), q_stride, at<float>(out), out_stride, starts, at<int32_t>(first_positions),
                                 at<int32_t>(block_tables), table_stride, task_starts.data(), num_seqs, num_heads, tile_rows, scale, 0, softcap,
                                 kv_args(kv_base, kv_format, block_size, num_kv_heads, head_dim, block_stride, kv_stride, head_stride),
                                 kv_args(tail_base, 0, block_size, num_kv_heads, head_dim, tail_block_stride, tail_kv_stride, tail_head_stride),
                                 at<int32_t>(tail_tables), tail_stride});
}

void pack_kv(uintptr_t query_starts, uintptr_t first_positions, uintptr_t block_tables, int64_t table_stride, uintptr_t tail_tables,
             int64_t tail_stride, int64_t num_seqs, uintptr_t kv_base, int kv_format, int64_t block_size, int64_t num_kv_heads, int64_t head_dim,
             int64_t block_stride, int64_t kv_stride, int64_t head_stride, uintptr_t tail_base, int64_t tail_block_stride, int64_t tail_kv_stride,
             int64_t tail_head_stride) {
  zg::kernels().pack_kv({at<int32_t>(query_starts), at<int32_t>(first_positions), at<int32_t>(block_tables), table_stride,
                         at<int32_t>(tail_tables), tail_stride, num_seqs,
                         kv_args(kv_base, kv_format, block_size, num_kv_heads, head_dim, block_stride, kv_stride, head_stride),
                         kv_args(tail_base, 0, block_size, num_kv_heads, head_dim, tail_block_stride, tail_kv_stride, tail_head_stride)});
}

void gated_activation(uintptr_t gate_up, int64_t gate_up_stride, uintptr_t out, int64_t out_stride, int64_t num_rows, int64_t f, int kind) {
  zg::kernels().gated_activation(
      {at<float>(gate_up), gate_up_stride, at<float>(out), out_stride, num_rows, f, static_cast<zg::Activation>(kind)});
}

void add(uintptr_t x, int64_t x_stride, uintptr_t delta, int64_t delta_stride, int64_t num_rows, int64_t k) {
  zg::kernels().add({at<float>(x), x_stride, at<float>(delta), delta_stride, num_rows, k});
}

void soft_cap(uintptr_t x, int64_t x_stride, int64_t num_rows, int64_t k, float cap) {
  zg::kernels().soft_cap({at<float>(x), x_stride, num_rows, k, cap});
}

void route(uintptr_t logits, int64_t logits_stride, uintptr_t out, int64_t out_stride, int64_t num_rows, int64_t num_experts, int64_t top_k,
           bool is_normalized) {
  zg::kernels().route({at<float>(logits), logits_stride, at<float>(out), out_stride, num_rows, num_experts, top_k, is_normalized});
}

// Rows sorted by expert (a counting sort, so each expert's rows rise), and the tasks that each expert's panels are cut into.
struct ExpertLists {
  ExpertLists(const float* routing, int64_t stride, int64_t num_tokens, int64_t num_experts, int64_t top_k, int64_t k, int64_t num_panels)
      : rows(static_cast<size_t>(num_tokens * top_k)), row_starts(static_cast<size_t>(num_experts) + 1),
        task_starts(static_cast<size_t>(num_experts) + 1), task_panels(static_cast<size_t>(num_experts)) {
    for (int64_t t = 0; t < num_tokens; ++t)
      for (int64_t j = 0; j < top_k; ++j) {
        const float expert = routing[t * stride + j];
        if (!(expert >= 0.0f && expert < static_cast<float>(num_experts)))
          throw std::invalid_argument("routing: a row names an expert that does not exist");
        ++row_starts[static_cast<size_t>(expert) + 1];
      }
    for (size_t e = 0; e < task_panels.size(); ++e) {
      const int64_t num_rows = row_starts[e + 1], work = std::max<int64_t>(1, k * 2 * num_rows);
      int64_t panels = std::max<int64_t>(1, kExpertTaskWork / work);
      const int64_t step = num_rows <= 2 ? 8 : num_rows <= 6 ? 4 : 2;  // whole tiles of every instruction set (linear/tile.h)
      panels = (panels + step - 1) / step * step;
      task_panels[e] = static_cast<int32_t>(panels);
      task_starts[e + 1] = task_starts[e] + (num_rows > 0 ? static_cast<int32_t>((num_panels + panels - 1) / panels) : 0);
      row_starts[e + 1] += row_starts[e];
    }
    // row_starts[e] walks through expert e's span while its rows are placed, and is then where e + 1 begins.
    for (int64_t t = 0; t < num_tokens; ++t)
      for (int64_t j = 0; j < top_k; ++j)
        rows[static_cast<size_t>(row_starts[static_cast<size_t>(routing[t * stride + j])]++)] = static_cast<int32_t>(t * top_k + j);
    std::rotate(row_starts.begin(), row_starts.end() - 1, row_starts.end());
    row_starts[0] = 0;
  }

  std::vector<int32_t> rows, row_starts, task_starts, task_panels;
};

void grouped_linear(uintptr_t x, int64_t x_stride, int64_t x_divisor, uintptr_t panels_address, int dtype, uintptr_t routing,
                    int64_t routing_stride, uintptr_t out, int64_t out_stride, int64_t num_tokens, int64_t num_experts, int64_t top_k,
                    int64_t k, int64_t n) {
  const ExpertLists lists(at<float>(routing), routing_stride, num_tokens, num_experts, top_k, k, n / zg::kPanelWidth);
  zg::kernels().grouped_linear({at<float>(x), x_stride, x_divisor, at<void>(panels_address), static_cast<zg::DType>(dtype), at<float>(out),
                                out_stride, num_experts, k, n, lists.rows.data(), lists.row_starts.data(), lists.task_starts.data(),
                                lists.task_panels.data()});
}

void combine(uintptr_t x, int64_t x_stride, uintptr_t routing, int64_t routing_stride, uintptr_t out, int64_t out_stride, int64_t num_rows,
             int64_t k, int64_t top_k, bool accumulate) {
  zg::kernels().combine(
      {at<float>(x), x_stride, at<float>(routing), routing_stride, at<float>(out), out_stride, num_rows, k, top_k, accumulate});
}

void select_rows(uintptr_t x, int64_t x_stride, uintptr_t rows, uintptr_t out, int64_t out_stride, int64_t num_rows, int64_t k) {
  for (int64_t i = 0; i < num_rows; ++i)
    std::memcpy(at<float>(out) + i * out_stride, at<float>(x) + at<int64_t>(rows)[i] * x_stride, static_cast<size_t>(k) * sizeof(float));
}

// Entries as int64 [E, 12]: first row, rows, address of A, address of B, rank, column, n, dtype, addresses of A's and B's index (0: none),
// shards per row of A and of B; scales fp32 [E].
void lora(uintptr_t x, int64_t x_stride, uintptr_t out, int64_t out_stride, int64_t k, uintptr_t entries_address, uintptr_t scales_address,
          int64_t num_entries) {
  const int64_t* numbers = at<int64_t>(entries_address);
  const float* scales = at<float>(scales_address);
  std::vector<zg::LoraEntry> entries(static_cast<size_t>(num_entries));
  std::vector<int64_t> task_starts(static_cast<size_t>(num_entries) + 1, 0);
  for (size_t e = 0; e < entries.size(); ++e, numbers += 12) {
    entries[e] = {numbers[0], numbers[1], at<void>(static_cast<uintptr_t>(numbers[2])), at<void>(static_cast<uintptr_t>(numbers[3])),
                  numbers[4], numbers[5], numbers[6], static_cast<zg::DType>(numbers[7]), scales[e],
                  at<int32_t>(static_cast<uintptr_t>(numbers[8])), at<int32_t>(static_cast<uintptr_t>(numbers[9])),
                  numbers[10], numbers[11]};
    task_starts[e + 1] = task_starts[e] + (numbers[1] + zg::kLoraRowsPerTask - 1) / zg::kLoraRowsPerTask;
  }
  zg::kernels().lora({at<float>(x), x_stride, at<float>(out), out_stride, k, entries.data(), task_starts.data(), num_entries});
}

struct CopyJob {
  const char* source;
  char* target;
  const int64_t* pairs;
  int64_t source_stride, target_stride, block_bytes;
};

void copy_blocks(uintptr_t source, uintptr_t target, uintptr_t pairs, int64_t num_pairs, int64_t source_stride, int64_t target_stride,
                 int64_t block_bytes) {
  const CopyJob job{at<char>(source), at<char>(target), at<int64_t>(pairs), source_stride, target_stride, block_bytes};
  zg::parallel_for(
      num_pairs,
      [](const void* context, int64_t i) {
        const CopyJob& copy = *static_cast<const CopyJob*>(context);
        std::memcpy(copy.target + copy.pairs[2 * i + 1] * copy.target_stride, copy.source + copy.pairs[2 * i] * copy.source_stride,
                    static_cast<size_t>(copy.block_bytes));
      },
      &job);
}

}  // namespace

NB_MODULE(_native, m) {
  using release = nb::call_guard<nb::gil_scoped_release>;
  // An engine that is alive when the interpreter ends holds tapes; the process gives everything back.
  nb::set_leak_warnings(false);
  m.attr("ABI") = 5;  // raised with every change of a signature below; ziggurat/kernels/ops.py expects it
  m.attr("PANEL_WIDTH") = zg::kPanelWidth;
  m.attr("GROUP_SCRATCH_BYTES") = zg::kGroupScratchBytes;
  m.attr("KV_TILE") = zg::kKVTile;
  m.attr("MAX_LORA_RANK") = zg::kMaxLoraRank;
  m.def("isa", [] { return std::string(zg::kernels().isa); });
  m.def("select_isa", [](const std::string& name) { return zg::select_isa(name.c_str()); }, "name"_a);
  m.def("supported_isas", [] {
    nb::list names;
    for (const char* name : zg::supported_isas()) names.append(name);
    return names;
  });
  nb::class_<zg::Tape>(m, "Tape")
      .def(nb::init<>())
      .def("__enter__", [](zg::Tape& tape) { tape.start(); })
      .def("__exit__", [](zg::Tape&, nb::args) { zg::Tape::stop(); })
      .def("play", &zg::Tape::play, release())
      .def("__len__", &zg::Tape::size);
  m.def("num_threads", &zg::num_threads);
  m.def("set_num_threads", &zg::set_num_threads, "num_threads"_a, release());
  m.def("pack_panels", &panels<true>, release());
  m.def("unpack_panels", &panels<false>, release());
  m.def("pack_blocks", &blocks<true>, release());
  m.def("unpack_blocks", &blocks<false>, release());
  m.def("linear", &zg::Recorded<&linear>::call, release());
  m.def("embed_rows", &zg::Recorded<&embed_rows>::call, release());
  m.def("quantized_linear", &zg::Recorded<&quantized_linear>::call, release());
  m.def("quantized_embed", &zg::Recorded<&quantized_embed>::call, release());
  m.def("rms_norm", &zg::Recorded<&rms_norm>::call, release());
  m.def("qkv_post", &zg::Recorded<&qkv_post>::call, release());
  m.def("packed_attention", &zg::Recorded<&packed_attention>::call, release());
  m.def("pack_kv", &zg::Recorded<&pack_kv>::call, release());
  m.def("paged_attention", &zg::Recorded<&paged_attention>::call, release());
  m.def("gated_activation", &zg::Recorded<&gated_activation>::call, release());
  m.def("add", &zg::Recorded<&add>::call, release());
  m.def("soft_cap", &zg::Recorded<&soft_cap>::call, release());
  m.def("route", &zg::Recorded<&route>::call, release());
  m.def("grouped_linear", &zg::Recorded<&grouped_linear>::call, release());
  m.def("combine", &zg::Recorded<&combine>::call, release());
  m.def("lora", &lora, release());
  m.def("select_rows", &zg::Recorded<&select_rows>::call, release());
  m.def("copy_blocks", &copy_blocks, release());
}
