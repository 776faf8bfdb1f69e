// SPDX-License-Identifier: Apache-2.0
#include "kernels/table.h"

namespace zg {
#if ZG_ISA_avx512vnni
// Byte products are all that this set adds; the rest is avx512's.
namespace avx512 { const KernelTable& table(); }

namespace avx512vnni {

void quantized_linear(const QuantizedArgs&);

const KernelTable& table() {
  static const KernelTable instance = [] {
    KernelTable base = avx512::table();
    base.isa = ZG_ISA_NAME;
    base.quantized_linear = quantized_linear;
    return base;
  }();
  return instance;
}

}  // namespace avx512vnni
#else
namespace ZG_ISA {

void linear(const LinearArgs&);
void embed_rows(const EmbedArgs&);
void quantized_linear(const QuantizedArgs&);
void quantized_embed(const QuantizedEmbedArgs&);
void rms_norm(const NormArgs&);
void qkv_post(const QKVArgs&);
void paged_attention(const AttentionArgs&);
void gated_activation(const GatedArgs&);
void add(const AddArgs&);
void soft_cap(const SoftCapArgs&);
void route(const RouteArgs&);
void grouped_linear(const GroupedArgs&);
void combine(const CombineArgs&);
void lora(const LoraArgs&);
void pack_kv(const PackArgs&);

const KernelTable& table() {
  static const KernelTable instance = {ZG_ISA_NAME, linear, embed_rows, quantized_linear, quantized_embed, rms_norm, qkv_post,
                                       paged_attention, gated_activation, add, soft_cap, route, grouped_linear, combine, lora, pack_kv};
  return instance;
}

}  // namespace ZG_ISA
#endif
}  // namespace zg
