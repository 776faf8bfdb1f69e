// From the JSON of /memory to what the map draws. The only file that knows the names of its keys.

const OWN_PARTS = ["weights", "workspace", "overhead"];

export function readMemory(raw) {
  const limitBytes = raw.limits.ram;
  const ledger = raw.ledger.map((row) => ({
    owner: row.owner,
    kind: row.kind,
    tier: row.tier,
    bytes: row.num_bytes,
    why: row.why,
    ageS: raw.now_s - row.since_s,
    depth: row.depth,
  }));
  const kv = {
    total: raw.kv_bytes.total_bytes,
    used: raw.kv_bytes.used_bytes,
    cached: raw.kv_bytes.cached_bytes,
    free: raw.kv_bytes.free_bytes,
    // Blocks that several requests hold belong to none of them alone.
    shared: Math.max(0, raw.kv_bytes.used_bytes - raw.sequences.reduce((sum, row) => sum + row.own_bytes, 0)),
  };
  return {
    model: raw.model,
    phase: raw.phase,
    uptimeS: raw.uptime_s,
    baselineBytes: raw.baseline_bytes,
    limitBytes,
    // What the process adds over its baseline: this is what the budget limits.
    usedBytes: Math.max(0, raw.process.above_baseline_bytes),
    processBytes: raw.process.charged_bytes,
    measure: raw.process.has_pss ? "Pss, mapped files in full" : "RSS",
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

// The large kinds of top-level leases by themselves and the small ones together, the KV pool split in three, and what nobody has taken.
function readParts(ledger, kv, limitBytes) {
  const sums = new Map();
  for (const row of ledger) {
    if (row.depth === 0 && row.tier === "ram") sums.set(row.kind, (sums.get(row.kind) ?? 0) + row.bytes);
  }
  const taken = [...sums.values()].reduce((sum, count) => sum + count, 0);
  const pool = sums.get("kv") ?? 0;
  const reserve = sums.get("reserve") ?? 0;
  const others = [...sums.keys()].filter((kind) => ![...OWN_PARTS, "kv", "reserve"].includes(kind));
  return [
    ...OWN_PARTS.filter((kind) => sums.has(kind)).map((kind) => ({ style: kind, label: kind, bytes: sums.get(kind) })),
    ...(others.length ? [{ style: "other", label: "bookkeeping", title: others.join(", "), bytes: others.reduce((sum, kind) => sum + sums.get(kind), 0) }] : []),
    { style: "kv", label: "KV: requests", bytes: kv.used },
    { style: "prefix", label: "KV: prefix cache", bytes: kv.cached },
    { style: "poolfree", label: "KV: free", bytes: Math.max(0, pool - kv.used - kv.cached) },
    { style: "reserve", label: "reserve", bytes: reserve + Math.max(0, limitBytes - taken) },
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
