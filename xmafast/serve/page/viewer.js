// One clip, large: it plays from the best moment, and every indexed frame leads to its second.

import { clock, nameOf, percent, picture } from "./card.js";

const $ = (id) => document.getElementById(id);

export class Viewer {
  // list(): the clips of the grid; similar(clip): search by it; left(clip): the dialog was closed
  constructor({ list, similar, left }) {
    Object.assign(this, { list, left, dialog: $("viewer") });
    $("close").addEventListener("click", () => this.dialog.close());
    $("similar").addEventListener("click", () => { const { clip } = this; this.dialog.close(); similar(clip); });
    $("before").addEventListener("click", () => this.step(-1));
    $("after").addEventListener("click", () => this.step(1));
    this.dialog.addEventListener("click", (event) => { if (event.target === this.dialog) this.dialog.close(); });
    this.dialog.addEventListener("close", () => { this.empty(); this.left(this.clip); });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.target.closest("video") || event.altKey || event.ctrlKey || event.metaKey) return;
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); this.step(by); }
    });
  }

  open(clip) {
    this.show(clip);
    if (!this.dialog.open) this.dialog.showModal();
    $("close").focus({ preventScroll: true });
  }

  step(by) {
    const clips = this.list();
    const next = clips[clips.findIndex((clip) => clip.token === this.clip.token) + by];
    if (next) this.show(next);
  }

  show(clip) {
    this.empty();
    this.clip = clip;
    const found = clip.score !== undefined;
    const clips = this.list();
    const at = clips.findIndex((other) => other.token === clip.token);
    $("before").disabled = at <= 0;
    $("after").disabled = at < 0 || at === clips.length - 1;
    $("viewer-title").textContent = nameOf(clip);
    $("viewer-score").textContent = found ? clip.score.toFixed(3) : "";
    $("viewer-path").textContent = clip.split ? `${clip.id} · ${clip.split}` : clip.id;
    $("viewer-path").hidden = $("viewer-path").textContent === nameOf(clip);
    $("viewer-captions").textContent = clip.captions.slice(1, 6).join(" · ");
    $("original").href = clip.file;
    $("moments-title").textContent = !found || clip.kind === "image" ? "Indexed frames" : `What matched, best at ${clock(clip.best_time)}`;
    $("moments").replaceChildren(...clip.times.map((time, i) => this.moment(clip, time, i)));
    $("stage").replaceChildren(clip.kind === "image" ? this.image(clip, clip.file) : this.video(clip));
  }

  video(clip) {
    const video = Object.assign(document.createElement("video"), { controls: true, playsInline: true, loop: true, muted: true, preload: "auto" });
    video.setAttribute("aria-label", nameOf(clip));
    video.poster = clip.thumbnail;
    video.addEventListener("loadedmetadata", () => { video.currentTime = Math.min(clip.best_time ?? 0, video.duration || 0); });
    video.addEventListener("error", () => $("stage").replaceChildren(this.image(clip, clip.thumbnail)));
    video.src = clip.file;
    if (!matchMedia("(prefers-reduced-motion: reduce)").matches) video.play().catch(() => {});
    return video;
  }

  image(clip, source) {
    const image = Object.assign(document.createElement("img"), { alt: nameOf(clip), src: source });
    if (source !== clip.thumbnail) image.addEventListener("error", () => { image.src = clip.thumbnail; }, { once: true });
    return image;
  }

  moment(clip, time, i) {
    const [item, button, image, meter, text] = ["li", "button", "img", "span", "span"].map((tag) => document.createElement(tag));
    const weight = clip.weights?.[i];
    const most = clip.weights ? Math.max(...clip.weights) : 1;
    button.type = "button";
    button.className = "moment";
    button.classList.toggle("best", clip.weights !== undefined && i === clip.frame && clip.times.length > 1);
    Object.assign(image, { alt: "", src: picture(clip, i), loading: "lazy" });
    meter.className = "meter";
    meter.style.setProperty("--share", weight === undefined || most <= 0 ? 0 : weight / most);
    text.textContent = clip.kind === "image" ? "image" : clock(time);
    const share = weight === undefined ? "" : `, ${percent(weight)} of the match`;
    button.setAttribute("aria-label", `${clip.kind === "image" ? "The image" : `Go to ${clock(time)}`}${share}`);
    button.title = weight === undefined ? "" : percent(weight);
    button.append(image, meter, text);
    button.addEventListener("click", () => {
      const video = $("stage").querySelector("video");
      if (video) video.currentTime = time;
      else if (clip.kind !== "image") $("stage").replaceChildren(this.image(clip, picture(clip, i)));
    });
    item.append(button);
    return item;
  }

  empty() {
    const video = $("stage").querySelector("video");
    if (video) { video.pause(); video.removeAttribute("src"); video.load(); }
    $("stage").replaceChildren();
  }
}
