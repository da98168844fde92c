// When a pod's turn in the queue for GPUs comes, by the leases that are known.

/** For each entry of the queue the time (ms since 1970) by which it has its GPUs, if no lease is
 * extended and each lasts its whole time; null where that cannot be known. `gpus` are the values of
 * gpu/*, `now` is podyd's clock. */
export function turns(queue, gpus, now) {
  const free = new Map(gpus.map((gpu) => [gpu.index, freeFrom(gpu, now)]));
  return queue.map((entry) => {
    const wanted = pick(entry.gpus, gpus, free);
    if (wanted === null) return null;
    const turn = Math.max(now, ...wanted.map((index) => free.get(index)));
    for (const index of wanted) free.set(index, turn + entry.hours * 3_600_000);
    return turn;
  });
}

function freeFrom(gpu, now) {
  const ends = gpu.pods.filter((holder) => holder.until).map((holder) => Date.parse(holder.until));
  return Math.max(now, ...ends);
}

/** The GPUs that a choice ("2", "0,1", "all", UUIDs) would take: those that are free first. */
function pick(choice, gpus, free) {
  const usable = gpus.filter((gpu) => !gpu.problem).map((gpu) => gpu.index);
  if (choice === "all") return gpus.map((gpu) => gpu.index);
  if (/^\d+$/.test(choice)) {
    const first = [...usable].sort((a, b) => free.get(a) - free.get(b) || a - b).slice(0, Number(choice));
    return first.length === Number(choice) ? first : null;
  }
  const named = choice.split(",").filter(Boolean).map((name) =>
    gpus.find((gpu) => [String(gpu.index), gpu.uuid, gpu.pci].includes(name))?.index);
  return named.includes(undefined) ? null : named;
}
