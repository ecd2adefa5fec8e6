// The page: what is asked, the answer to it that came last, and the keyboard.

import { Card } from "./card.js";
import { Viewer } from "./viewer.js";

const $ = (id) => document.getElementById(id);
const PAUSE = 60; // ms without a key before a search
const LOOK = 15_000; // ms between two looks at the library
const [FEW, MOST] = [24, 192];

const state = { by: "none", file: null, like: null, adapter: null, topk: FEW };
const cards = new Map();
let [library, clips, asked, running, pause, slow, revision] = [null, [], 0, null, 0, 0, 0];

const viewer = new Viewer({
  list: () => clips,
  similar: (clip) => { $("query").value = ""; choose({ by: "like", like: clip }); remember(true); },
  left: (clip) => (cards.get(clip?.token)?.button ?? $("query")).focus(),
});

// asking

class Said extends Error {} // what the server says is wrong

async function call(address, options = {}) {
  const answer = await fetch(address, options);
  const value = await answer.json().catch(() => ({ error: "The server gave an answer that is none." }));
  if (!answer.ok) throw Object.assign(new Said(value.error), { again: answer.headers.has("retry-after") });
  return value;
}

// "path:holiday/* red heart" -> what is looked for, and where
function split(text) {
  const where = text.match(/(?:^|\s)path:(\S+)/);
  return [text.replace(/(^|\s)path:\S*/, " ").trim(), where?.[1] ?? ""];
}

function request() {
  const [words, where] = split($("query").value);
  const asks = new URLSearchParams({ adapter: state.adapter, topk: state.topk });
  if (where) asks.set("path", where.includes("*") ? where : `*${where}*`);
  if (state.by === "file") return [`/api/search/file?${asks}`, { method: "POST", body: state.file, headers: { "content-type": typeOf(state.file) } }];
  if (state.by === "like") return [`/api/clips/${encodeURIComponent(state.like.token)}/similar?${asks}`, {}];
  if (!words) return [`/api/clips?limit=${state.topk}`, {}];
  asks.set("q", words);
  return [`/api/search?${asks}`, {}];
}

const typeOf = (file) => (/^(image|video)\//.test(file.type) ? file.type : "application/octet-stream");

async function search() {
  if (!library) return;
  clearTimeout(pause);
  running?.abort();
  running = new AbortController();
  const mine = ++asked;
  const [address, options] = request();
  clearTimeout(slow);
  slow = setTimeout(() => busy(true), 150);
  try {
    const found = await call(address, { ...options, signal: running.signal });
    if (mine !== asked) return; // an older answer than the question
    working();
    show(found);
  } catch (error) {
    if (mine !== asked || error.name === "AbortError") return;
    if (!(error instanceof Said)) lost();
    else if (error.again) { complain(error.message); pause = setTimeout(search, 1500); }
    else complain(error.message);
  }
  if (mine === asked) { clearTimeout(slow); busy(false); }
}

function busy(is) {
  document.body.classList.toggle("busy", is);
  $("grid").setAttribute("aria-busy", is);
  if (is && state.by === "file") $("status").textContent = `Reading ${state.file.name}…`;
}

// showing

const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

function show(found) {
  const hits = found.hits ?? found.items;
  clips = hits;
  $("message").hidden = true;
  $("message").classList.remove("bad");
  document.body.classList.remove("stale");
  $("grid").classList.remove("bones");
  const fresh = hits.map((clip) => {
    const card = cards.get(clip.token) ?? new Card($("card"), (clip) => viewer.open(clip));
    cards.set(clip.token, card);
    card.show(clip);
    return card.root;
  });
  const focused = document.activeElement;
  $("grid").replaceChildren(...fresh);
  if (focused?.isConnected && focused !== document.activeElement) focused.focus({ preventScroll: true });
  const kept = new Set(hits.map((clip) => clip.token));
  for (const [token, card] of cards) if (!kept.has(token)) { card.leave(); cards.delete(token); }
  $("more").hidden = hits.length < state.topk || state.topk >= MOST || hits.length >= found.clips;
  $("heading").textContent = found.hits ? "Clips that match" : "Clips that changed last";
  if (!found.hits) $("status").textContent = "Changed last";
  else $("status").textContent = `Best ${hits.length} of ${count(found.clips, "clip")} · ${found.adapter} · ${Math.max(1, Math.round(1000 * found.seconds))} ms`;
  if (!hits.length) {
    const [, where] = split($("query").value);
    $("status").textContent = "";
    tell("Nothing found", where ? `No clip has ${where} in its path.` : "The library holds no such clip.");
  }
}

function tell(title, text) {
  $("message-title").textContent = title;
  $("message-text").textContent = text;
  $("message").hidden = false;
}

function complain(text, name = state.file?.name) {
  $("message").classList.add("bad");
  $("status").textContent = "";
  tell(name ? `${name} cannot be searched by` : "This did not work", text);
  document.body.classList.add("stale");
  $("grid").classList.remove("bones");
}

// a server that is gone

let [wait, retry, begun] = [0, 0, false];

function lost() {
  wait = Math.min(10, wait ? wait * 2 : 1);
  document.body.classList.add("stale");
  busy(false);
  $("lost-text").textContent = `The server does not answer. Trying again in ${wait} s.`;
  $("lost").hidden = false;
  clearTimeout(retry);
  retry = setTimeout(again, 1000 * wait);
}

function working() {
  wait = 0;
  clearTimeout(retry);
  $("lost").hidden = true;
}

async function again() {
  clearTimeout(retry);
  try {
    await look();
    working();
    if (begun) search();
    else await recall();
  } catch (error) {
    if (error instanceof Said) complain(error.message);
    else lost();
  }
}

async function look() {
  const now = await call("/api/library");
  library = now;
  $("library").textContent = now.name;
  document.title = `${now.name} · xmafast`;
  $("about").textContent = count(now.clips, "clip");
  $("about").title = now.failures ? `${count(now.failures, "file")} could not be indexed` : "";
  if (!now.adapters.includes(state.adapter)) state.adapter = now.adapter;
  const names = [...$("adapter").options].map((option) => option.value);
  if (names.join("\n") !== now.adapters.join("\n")) $("adapter").replaceChildren(...now.adapters.map((name) => new Option(name, name)));
  $("adapter").value = state.adapter;
  $("adapters").hidden = now.adapters.length < 2;
  const changed = revision !== 0 && revision !== now.revision;
  revision = now.revision;
  return changed;
}

setInterval(async () => {
  if (document.hidden || !$("lost").hidden) return;
  try { if (await look()) search(); } catch (error) { if (!(error instanceof Said)) lost(); }
}, LOOK);

// what is searched by

function choose(change) {
  Object.assign(state, { file: null, like: null, topk: FEW }, change);
  const old = $("chip-picture").firstElementChild;
  if (old?.src.startsWith("blob:")) URL.revokeObjectURL(old.src);
  $("chip").hidden = state.by !== "file" && state.by !== "like";
  if (state.by === "file") {
    const seen = document.createElement(state.file.type.startsWith("video/") ? "video" : "img");
    seen.addEventListener("error", () => seen.remove());
    Object.assign(seen, { src: URL.createObjectURL(state.file), muted: true, alt: "" });
    $("chip-picture").replaceChildren(seen);
    $("chip-name").textContent = state.file.name;
  } else if (state.by === "like") {
    $("chip-picture").replaceChildren(Object.assign(new Image(), { src: state.like.thumbnail, alt: "" }));
    $("chip-name").textContent = `like ${state.like.captions[0] || state.like.id.split("/").pop()}`;
  }
  $("query").placeholder = $("chip").hidden ? "Describe a moment, or drop an image or a clip" : "";
  search();
}

function take(file) {
  if (!file) return;
  $("query").value = split($("query").value)[1] ? `path:${split($("query").value)[1]}` : "";
  if (library && file.size > library.upload_bytes) {
    running?.abort();
    complain(`It is larger than the ${Math.floor(library.upload_bytes / 2 ** 20)} MiB that can be searched by; take a shorter clip.`, file.name);
    return;
  }
  choose({ by: "file", file });
  remember(true);
}

// the address says what is searched, so that it can be kept and gone back to

function remember(push = false) {
  const asks = new URLSearchParams();
  if ($("query").value.trim()) asks.set("q", $("query").value.trim());
  if (state.by === "like") asks.set("like", state.like.token);
  if (library && state.adapter !== library.adapter) asks.set("adapter", state.adapter);
  const address = asks.size ? `?${asks}` : location.pathname;
  if (push) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
}

async function recall() {
  begun = true;
  const asks = new URLSearchParams(location.search);
  $("query").value = asks.get("q") ?? "";
  if (asks.has("adapter") && library?.adapters.includes(asks.get("adapter"))) $("adapter").value = state.adapter = asks.get("adapter");
  if (asks.has("like")) {
    try { return choose({ by: "like", like: await call(`/api/clips/${encodeURIComponent(asks.get("like"))}`) }); }
    catch (error) { if (!(error instanceof Said)) return lost(); }
  }
  return choose({ by: "text" });
}

// hands

$("query").addEventListener("input", () => {
  clearTimeout(pause);
  const [words] = split($("query").value);
  if (words && state.by !== "text") { state.by = "text"; state.file = state.like = null; $("chip").hidden = true; }
  state.topk = FEW;
  pause = setTimeout(() => { search(); remember(); }, PAUSE);
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  search();
  remember(true);
  focusCard(0);
});
$("unchip").addEventListener("click", () => { choose({ by: "text" }); remember(true); $("query").focus(); });
$("choose").addEventListener("click", () => $("file").click());
$("file").addEventListener("change", () => { take($("file").files[0]); $("file").value = ""; });
$("adapter").addEventListener("change", () => { state.adapter = $("adapter").value; remember(); search(); });
$("more").addEventListener("click", async () => { const at = clips.length; state.topk = Math.min(MOST, 2 * state.topk); await search(); focusCard(at); });
$("again").addEventListener("click", again);
$("home").addEventListener("click", (event) => {
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  $("query").value = "";
  choose({ by: "text" });
  remember(true);
  $("query").focus();
});
addEventListener("popstate", recall);

let over = 0;
const files = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
addEventListener("dragenter", (event) => { if (files(event)) { over += 1; document.body.classList.add("dropping"); } });
addEventListener("dragleave", (event) => { if (files(event) && --over <= 0) { over = 0; document.body.classList.remove("dropping"); } });
addEventListener("dragover", (event) => { if (files(event)) event.preventDefault(); });
addEventListener("drop", (event) => {
  over = 0;
  document.body.classList.remove("dropping");
  if (!files(event)) return;
  event.preventDefault();
  if (viewer.dialog.open) viewer.dialog.close();
  take(event.dataTransfer.files[0]);
});
addEventListener("paste", (event) => {
  const file = [...(event.clipboardData?.files ?? [])][0];
  if (file) { event.preventDefault(); take(file); }
});

const buttons = () => [...$("grid").querySelectorAll(".card")];

function focusCard(at) {
  const all = buttons();
  const next = all[Math.max(0, Math.min(all.length - 1, at))];
  next?.focus({ preventScroll: true });
  next?.scrollIntoView({ block: "nearest" });
}

addEventListener("keydown", (event) => {
  if (viewer.dialog.open || event.altKey || event.ctrlKey || event.metaKey || event.isComposing) return;
  const typing = event.target.closest("input, select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    $("query").focus();
    $("query").select();
  } else if (event.target === $("query")) {
    if (event.key === "ArrowDown") { event.preventDefault(); focusCard(0); }
    if (event.key === "Escape" && ($("query").value || !$("chip").hidden)) {
      event.preventDefault();
      $("query").value = "";
      choose({ by: "text" });
      remember();
    }
    if (event.key === "Backspace" && !$("query").value && !$("chip").hidden) { choose({ by: "text" }); remember(); }
  } else if (event.target.closest("#grid")) {
    const all = buttons();
    const at = all.indexOf(event.target.closest(".card"));
    const below = all.findIndex((card) => card.offsetTop > all[0].offsetTop);
    const columns = below < 0 ? all.length : below;
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + columns, ArrowUp: at - columns, Home: 0, End: all.length - 1 }[event.key];
    if (event.key === "Escape" || (event.key === "ArrowUp" && at < columns)) {
      event.preventDefault();
      $("query").focus();
    } else if (to !== undefined) {
      event.preventDefault();
      focusCard(to);
    }
  }
});

// beginning

$("grid").classList.add("bones");
$("grid").append(...Array.from({ length: 12 }, () => Object.assign(document.createElement("li"), { ariaHidden: "true" })));
try {
  await look();
  await recall();
} catch (error) {
  if (error instanceof Said) complain(error.message);
  else lost();
}
