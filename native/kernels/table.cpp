// SPDX-License-Identifier: Apache-2.0
#include "kernels/table.h"

namespace zg {
namespace ZG_ISA {

void linear(const LinearArgs&);
void embed_rows(const EmbedArgs&);
void rms_norm(const NormArgs&);
void qkv_post(const QKVArgs&);
void paged_attention(const AttentionArgs&);
void gated_activation(const GatedArgs&);
void add(const AddArgs&);
void soft_cap(const SoftCapArgs&);
void route(const RouteArgs&);
void grouped_linear(const GroupedArgs&);
void combine(const CombineArgs&);

const KernelTable& table() {
  static const KernelTable instance = {ZG_ISA_NAME, linear,   embed_rows,     rms_norm, qkv_post, paged_attention, gated_activation,
                                       add,         soft_cap, route, grouped_linear, combine};
  return instance;
}

}  // namespace ZG_ISA
}  // namespace zg
