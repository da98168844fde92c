// A new pod.

import { get, post } from "../api.js";
import { button, field, isHeldBack, refuse, showRefusal } from "../controls.js";
import { fill, h, refill, setText } from "../dom.js";
import { bytes, moment } from "../format.js";
import { gpuChoice } from "../gpu-choice.js";
import { written } from "../names.js";
import { diskHint, howFar, left, onPods, podsOf, quotaOf, telling } from "../pods.js";
import { texts } from "../texts.js";
import { run } from "../work.js";

const words = texts.newPod;
const NAME = /^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?$/;

export default async function newPod({ live, user, go, signal }) {
  let images = [];
  const image = field(words.image, h("select", { name: "image", required: true }), words.asking);
  const choose = async () => {
    images = await get("host/images", {}, { signal, quiet: true });
    const chosen = image.input.value;
    refill(image.input, images.map((name) => h("option", { value: name }, name)));
    if (images.includes(chosen)) image.input.value = chosen;
    else if (images.length) describe();
    else fill(image.hint, words.noImages);
  };
  const [quota] = await Promise.all([quotaOf({ live, signal }), choose()]);
  const name = field(words.name, h("input", { name: "ins", required: true, maxlength: 63, autocomplete: "off", autocapitalize: "none", spellcheck: "false" }), words.nameHint);
  const gpusLeft = h("span");
  const gpus = gpuChoice({ live, signal, usual: true, hint: gpusLeft });
  const size = (label, key) => field(label, h("input", { name: key, autocomplete: "off", placeholder: words.usual }), "");
  const disk = size(words.disk, "disk");
  const memory = size(words.memory, "memory");
  const cpu = field(words.cpu, h("input", { name: "cpu", type: "number", min: 1, max: 4096, placeholder: words.usual }), words.cpuHint(quota.cpu_limit));
  fill(memory.hint, words.memoryHint(bytes(quota.memory_limit)));
  const error = h("p", { class: "error", role: "alert" });
  const submit = h("button", { type: "submit", class: "primary" }, words.submit);
  const room = h("p", { class: "soft" });
  let isUnderWay = false;

  function update() {
    const mine = podsOf(live, user);
    const rest = left(quota, mine);
    setText(room, words.room(rest.pods, quota.max_pods));
    setText(gpusLeft, words.gpusHint(rest.gpus, quota.gpu_count));
    setText(disk.hint, diskHint(quota, rest));
    refuse(submit, isUnderWay ? words.underWay : rest.pods === 0 ? words.full(quota.max_pods) : images.length ? null : words.noImage);
  }

  async function describe() {
    const asked = image.input.value;
    fill(image.hint, words.asking);
    try {
      const info = await get("image/inspect", { image: asked }, { signal });
      if (image.input.value !== asked) return;
      fill(image.hint, info.description ? h("bdi", {}, written(info.description)) : words.noDescription, " · ",
        words.packed(bytes(info.size)), " · ", moment(info.created));
    } catch (refused) {
      if (refused.name !== "AbortError" && image.input.value === asked) fill(image.hint, refused.message);
    }
  }

  /** The values of the form; null, with the errors beside the fields, if it is not right. */
  function values() {
    const ins = name.input.value.trim();
    fill(error);
    if (!NAME.test(ins)) name.error(words.nameHint);
    else if (podsOf(live, user).some((pod) => pod.ins === ins)) name.error(words.taken(ins));
    else {
      try {
        const text = (which) => which.input.value.trim() || null;
        return { create: { ins, image: image.input.value, gpus: gpus.value(), disk: text(disk) },
          limits: { memory: text(memory), cpu: text(cpu) } };
      } catch (wrong) {
        fill(error, wrong.message);
      }
      return null;
    }
    name.input.focus();
    return null;
  }

  async function create(event) {
    event.preventDefault();
    if (isHeldBack(submit, error)) return;
    const wanted = values();
    if (wanted === null) return;
    const { ins } = wanted.create;
    const isHere = () => !signal.aborted;
    isUnderWay = true;
    update();
    const made = await run(words.making(ins), (progress) => make(wanted, progress), (refused) => {
      if (isHere()) showRefusal(refused, { ins: name, image, disk }, error);
      return isHere();
    });
    isUnderWay = false;
    if (!isHere()) return;
    update();
    if (made) go(`/pods/${ins}`);
  }

  async function make({ create: wanted, limits }, progress) {
    progress({ text: words.starting });
    const pod = await telling(post("pod/create", wanted), () => howFar(wanted.ins, words.starting), progress);
    if (limits.memory || limits.cpu) {
      progress({ text: words.limiting });
      try {
        await post("pod/limits", { ins: pod.ins, ...limits });
      } catch (refused) {
        // The pod is there all the same, and what is wrong is shown until somebody has read it.
        run(words.limitsOf(pod.ins), () => Promise.reject(refused));
      }
    }
    return { log: words.made(pod.ins) };
  }

  image.input.addEventListener("change", describe);
  live.onReturn(() => choose().then(update, () => {}), signal);
  onPods(live, update, signal);
  const element = h("div", {}, h("h1", {}, words.title), room,
    h("form", { class: "panel wide", onsubmit: create, novalidate: true }, name.element, image.element, gpus.element,
      disk.element, h("div", { class: "pair" }, memory.element, cpu.element), error,
      h("div", { class: "buttons" }, submit, button(texts.dialog.cancel, () => go("/pods")))));
  return { title: words.title, element };
}
