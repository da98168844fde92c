// When a pod's turn in the queue for GPUs comes, by what is known.

/** For each entry of the queue {time, before, sharers}: `time` (ms since 1970) by which it has its
 * GPUs, if each lease lasts its whole time, null where that cannot be known; `before`, the entries
 * before it that want some of the same GPUs; `sharers`, the GPUs for which it waits though nobody has
 * leased them: others compute there. */
export function turns(live) {
  const gpus = live.all("gpu/").map(([, gpu]) => gpu);
  const now = live.now();
  // From when a GPU is free, and for whom it is so before.
  const free = new Map(gpus.map((gpu) => [gpu.index, lease(gpu)]));
  const problems = new Set(gpus.filter((gpu) => gpu.problem).map((gpu) => gpu.index));
  const waits = live.get("host")?.ends_sharers === false;
  const isShared = (index, pod) => waits && !free.get(index)
    && (live.get(`use/${index}`)?.processes ?? []).some((process) => process.pod && process.pod !== pod);
  const from = (index, pod) => {
    if (problems.has(index) || isShared(index, pod)) return Infinity;
    const other = free.get(index);
    return other && other.pod !== pod ? other.until : now;
  };
  const served = [];
  return (live.get("queue") ?? []).map((entry) => {
    const { possible, count } = wanted(entry.gpus, gpus);
    const first = served.filter((other) => other.possible.some((index) => possible.includes(index)));
    const before = first.map((other) => other.entry);
    // What the host cannot serve keeps nobody waiting.
    if (possible.length < count || count === 0) return { time: null, before, sharers: [] };
    const taken = [...possible].sort((a, b) => from(a, entry.pod) - from(b, entry.pod) || a - b).slice(0, count);
    const sharers = taken.filter((index) => isShared(index, entry.pod));
    const turn = Math.max(now, ...taken.map((index) => from(index, entry.pod)), ...first.map((other) => other.turn));
    for (const index of taken) free.set(index, { pod: entry.pod, until: turn + entry.hours * 3_600_000 });
    served.push({ entry, possible, turn });
    return { time: Number.isFinite(turn) ? turn : null, before, sharers };
  });
}

function lease(gpu) {
  const holder = gpu.pods.find(({ exclusive }) => exclusive);
  return holder && { pod: holder.pod, until: Date.parse(holder.until) };
}

/** The GPUs that a choice ("2", "0,1", "all", UUIDs) may have, and how many of them it needs. */
function wanted(choice, gpus) {
  const all = gpus.map((gpu) => gpu.index);
  if (choice === "all") return { possible: all, count: all.length };
  if (/^\d+$/.test(choice)) return { possible: all, count: Number(choice) };
  const names = choice.split(",").filter(Boolean);
  const possible = gpus.filter((gpu) => names.some((name) => [String(gpu.index), gpu.uuid, gpu.pci].includes(name)));
  return { possible: possible.map((gpu) => gpu.index), count: names.length };
}
