// One clip of the grid: its picture, what of it matched, and a preview that plays from the best moment.

const still = matchMedia("(prefers-reduced-motion: reduce)");
const WAIT = 90; // ms that the pointer rests on a card before its video is asked for
const LEAD = 0.4; // s before the best moment: a moment needs its beginning

export const clock = (seconds) => {
  const s = Math.floor(seconds + 1e-6);
  const rest = `${String(Math.floor(s / 60) % 60)}:${String(s % 60).padStart(2, "0")}`;
  return s < 3600 ? rest : `${Math.floor(s / 3600)}:${rest.padStart(5, "0")}`;
};
export const percent = (share) => `${Math.round(100 * share)} %`;
export const nameOf = (clip) => clip.captions[0] || clip.id.split("/").pop();
export const picture = (clip, frame) => clip.thumbnail.replace(/thumbnails\/\d+/, `thumbnails/${frame}`);

export function strip(weights, best) {
  const most = Math.max(...weights);
  return weights.map((weight, i) => {
    const bar = document.createElement("i");
    bar.style.setProperty("--share", most > 0 ? weight / most : 0);
    bar.classList.toggle("best", i === best);
    return bar;
  });
}

export class Card {
  constructor(template, open) {
    this.root = template.content.firstElementChild.cloneNode(true);
    this.button = this.root.querySelector(".card");
    this.frame = this.root.querySelector(".picture");
    this.image = this.root.querySelector("img");
    this.bars = this.root.querySelector(".strip");
    this.button.addEventListener("click", () => open(this.clip));
    for (const [name, act] of [["pointerenter", "rest"], ["focus", "rest"], ["pointerleave", "leave"], ["blur", "leave"]])
      this.button.addEventListener(name, (event) => event.pointerType !== "touch" && this[act]());
  }

  show(clip) {
    if (this.clip?.file !== clip.file) this.leave();
    this.clip = clip;
    if (this.image.getAttribute("src") !== clip.thumbnail) this.image.src = clip.thumbnail;
    const found = clip.score !== undefined;
    const [title, score, time] = [".title", ".score", ".time"].map((part) => this.root.querySelector(part));
    title.textContent = nameOf(clip);
    this.button.title = clip.id;
    score.textContent = found ? clip.score.toFixed(3) : "";
    time.textContent = clip.kind === "image" ? "image" : clock(found ? clip.best_time : clip.times.at(-1) ?? 0);
    time.hidden = !found && clip.kind !== "image";
    this.bars.hidden = !found || clip.weights.length < 2;
    this.bars.replaceChildren(...(this.bars.hidden ? [] : strip(clip.weights, clip.frame)));
    this.root.querySelector(".moment-told").textContent = found && clip.kind !== "image" ? `best at ${clock(clip.best_time)}` : clip.kind;
  }

  rest() {
    if (still.matches || this.clip.kind === "image" || this.timer) return;
    this.timer = setTimeout(() => this.play(), WAIT);
  }

  play() {
    const { clip } = this;
    const start = Math.max(0, (clip.best_time ?? 0) - LEAD);
    const video = Object.assign(document.createElement("video"), { muted: true, loop: true, playsInline: true, preload: "auto", tabIndex: -1 });
    video.setAttribute("aria-hidden", "true");
    video.addEventListener("loadedmetadata", () => { if (start < video.duration) video.currentTime = start; });
    video.addEventListener("playing", () => this.frame.classList.add("playing"));
    video.addEventListener("timeupdate", () => this.mark(video.currentTime));
    video.addEventListener("error", () => { if (this.video === video) this.leaf(); });
    video.src = clip.file;
    this.video = video;
    this.frame.insertBefore(video, this.frame.querySelector(".time"));
    video.play().catch(() => {}); // left again before it began, or said by "error"
  }

  // what a browser cannot play is leafed through
  leaf() {
    this.stop();
    let frame = this.clip.frame ?? 0;
    this.pages = setInterval(() => {
      this.image.src = picture(this.clip, frame);
      this.mark(this.clip.times[frame]);
      frame = (frame + 1) % this.clip.times.length;
    }, 400);
    this.frame.classList.add("leafing");
  }

  mark(time) {
    const bars = [...this.bars.children];
    let now = 0;
    this.clip.times.forEach((t, i) => { if (t <= time + 1e-3) now = i; });
    bars.forEach((bar, i) => bar.classList.toggle("now", i === now));
  }

  leave() {
    clearTimeout(this.timer);
    this.timer = undefined;
    this.stop();
  }

  stop() {
    const { video, pages } = this;
    this.video = undefined;
    clearInterval(pages);
    this.frame.classList.remove("playing", "leafing");
    for (const bar of this.bars.children) bar.classList.remove("now");
    if (pages && this.clip) this.image.src = this.clip.thumbnail;
    this.pages = undefined;
    if (!video) return;
    video.pause();
    video.removeAttribute("src");
    video.load(); // lets go of the connection
    video.remove();
  }
}
