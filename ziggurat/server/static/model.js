// From the JSON of /memory to what the map draws. The only file that knows the names of its keys.

const STYLES = { weights: "weights", workspace: "workspace", overhead: "overhead", staging: "workspace" };

export function readMemory(raw) {
  const limitBytes = raw.limits.ram;
  const ledger = [
    { owner: "process", kind: "baseline", bytes: raw.baseline_bytes, why: "imports, thread pools and one warm-up step", ageS: raw.uptime_s, depth: 0 },
    ...raw.ledger.map((row) => ({
      owner: row.owner,
      kind: row.kind,
      bytes: row.num_bytes,
      why: row.why,
      ageS: raw.now_s - row.since_s,
      depth: row.depth,
    })),
  ];
  const kv = {
    total: raw.kv_bytes.total_bytes,
    used: raw.kv_bytes.used_bytes,
    cached: raw.kv_bytes.cached_bytes,
    free: raw.kv_bytes.free_bytes,
  };
  return {
    model: raw.model,
    phase: raw.phase,
    uptimeS: raw.uptime_s,
    baselineBytes: raw.baseline_bytes,
    limitBytes,
    totalBytes: raw.baseline_bytes + limitBytes,
    pssBytes: raw.measured.pss_bytes,
    hasPss: raw.measured.has_pss,
    parts: readParts(ledger, kv, limitBytes),
    kv,
    sequences: raw.sequences.map(readSequence(raw.now_s)),
    counts: {
      running: raw.requests.num_running,
      waiting: raw.requests.num_waiting,
      generated: raw.requests.generation_tokens,
      queried: raw.requests.prefix_query_tokens,
      hit: raw.requests.prefix_hit_tokens,
    },
    ledger,
  };
}

// One part per kind of top-level lease, the KV pool split in three, and what nobody has taken.
function readParts(ledger, kv, limitBytes) {
  const sums = new Map();
  for (const row of ledger) {
    if (row.depth === 0) sums.set(row.kind, (sums.get(row.kind) ?? 0) + row.bytes);
  }
  const baseline = sums.get("baseline");
  const pool = sums.get("kv") ?? 0;
  const taken = [...sums.values()].reduce((sum, count) => sum + count, 0) - baseline;
  sums.delete("baseline");
  sums.delete("kv");
  return [
    { style: "baseline", label: "baseline", bytes: baseline },
    ...[...sums].map(([kind, count]) => ({ style: STYLES[kind] ?? "other", label: kind, bytes: count })),
    { style: "kv", label: "KV: requests", bytes: kv.used },
    { style: "prefix", label: "KV: prefix cache", bytes: kv.cached },
    { style: "poolfree", label: "KV: free", bytes: Math.max(0, pool - kv.used - kv.cached) },
    { style: "free", label: "not taken", bytes: Math.max(0, limitBytes - taken) },
  ];
}

function readSequence(nowS) {
  return (row) => ({
    id: row.seq_id,
    isRunning: row.state === "running",
    bytes: row.own_bytes,
    numPrompt: row.num_prompt_tokens,
    numOutput: row.num_output_tokens,
    ageS: nowS - row.since_s,
  });
}
