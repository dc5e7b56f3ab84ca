"use strict";
/* The chat page. Conversations are in this browser's storage; the renderer is bundled, so nothing is loaded from elsewhere. */
const element = id => document.getElementById(id);
const STORE = "edgellama", KEPT = ["system", "temperature", "top_p", "max_tokens", "theme"];
let state = { chats: [], current: null, settings: {} };
let messages = [], model = null, running = null, editing = null;

/* html is off, so that an answer cannot add elements; images are off, so that it cannot make the browser load anything. */
const markdown = window.markdownit({
  linkify: true,
  highlight: (code, language) => (hljs.getLanguage(language) ? hljs.highlight(code, { language }).value : ""),
}).disable("image");
markdown.renderer.rules.link_open = (tokens, index, options, env, self) => {
  tokens[index].attrSet("target", "_blank");
  tokens[index].attrSet("rel", "noopener noreferrer");
  return self.renderToken(tokens, index, options);
};

function setStatus(text, isError) {
  element("status").textContent = text;
  element("status").className = isError ? "error" : "";
}

/* --- conversations and settings in the browser's storage --- */

function load() {
  try {
    const stored = JSON.parse(localStorage.getItem(STORE));
    if (Array.isArray(stored?.chats)) state = { settings: {}, ...stored };
  } catch { /* no storage, or damaged: begin anew */ }
  for (const name of KEPT) element(name).value = state.settings[name] ?? "";
  const found = state.chats.find(chat => chat.id === state.current);
  messages = found?.messages ?? [];
  if (!found) state.current = null;
}

function save() {
  if (messages.length > 0) {
    let chat = state.chats.find(chat => chat.id === state.current);
    if (!chat) {
      chat = { id: state.current = crypto.randomUUID?.() ?? String(Date.now()) };
      state.chats.unshift(chat);
    }
    chat.messages = messages;
    chat.title = messages[0].content.slice(0, 60);
  }
  state.settings = Object.fromEntries(KEPT.map(name => [name, element(name).value]));
  document.documentElement.dataset.theme = state.settings.theme;
  try {
    localStorage.setItem(STORE, JSON.stringify(state));
  } catch {
    setStatus("This browser does not store the conversation", true);
  }
  showChats();
}

function showChats() {
  element("chats").replaceChildren(...state.chats.map(chat => {
    const item = document.createElement("li");
    const open = button(chat.title, () => select(chat.id));
    open.className = "open";
    open.setAttribute("aria-current", chat.id === state.current);
    const remove = button("\u00d7", () => {
      if (!confirm(`Delete "${chat.title}"?`)) return;
      state.chats = state.chats.filter(other => other !== chat);
      if (chat.id === state.current) select(null);
      else save();
    });
    remove.setAttribute("aria-label", "Delete " + chat.title);
    item.append(open, remove);
    return item;
  }));
}

function select(id) {
  halt();
  state.current = id;
  messages = state.chats.find(chat => chat.id === id)?.messages ?? [];
  editing = null;
  showSide(false);
  setStatus("");
  save();
  showMessages();
  element("text").focus();
}

/* On a narrow screen the conversations are in front of the chat, or hidden. */
function showSide(shown) {
  element("side").classList.toggle("shown", shown);
  element("menu").setAttribute("aria-expanded", shown);
}

/* --- messages --- */

function button(label, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = label;
  made.addEventListener("click", action);
  return made;
}

async function copy(text, source) {
  try {
    await navigator.clipboard.writeText(text);
    const label = source.textContent;
    source.textContent = "Copied";
    setTimeout(() => { source.textContent = label; }, 1200);
  } catch {
    setStatus("The browser does not let this page copy", true);
  }
}

function fill(article, message) {
  const body = article.querySelector(".body"), thoughts = article.querySelector(".thoughts");
  if (message.role === "user") {
    body.textContent = message.content;
  } else {
    body.innerHTML = markdown.render(message.content);
    for (const block of body.querySelectorAll("pre")) {
      const code = block.textContent, made = button("Copy", () => copy(code, made));
      block.append(made);
    }
    thoughts.hidden = !message.reasoning_content;
    thoughts.lastChild.textContent = message.reasoning_content ?? "";
  }
}

function show(message, index) {
  const article = document.createElement("article");
  article.className = message.role;
  if (message.role === "assistant") {
    const thoughts = document.createElement("details"), title = document.createElement("summary");
    thoughts.className = "thoughts";
    title.textContent = "Thoughts";
    thoughts.append(title, document.createTextNode(""));
    article.append(thoughts);
  }
  const body = document.createElement("div"), actions = document.createElement("div");
  body.className = "body";
  actions.className = "actions";
  const copyAll = button("Copy", () => copy(messages[index].content, copyAll));
  actions.append(copyAll);
  if (message.role === "user") actions.append(button("Edit", () => edit(index)));
  else actions.append(button("Regenerate", () => regenerate(index)));
  article.append(body, actions);
  fill(article, message);
  element("chat").append(article);
  article.scrollIntoView({ block: "end" });
  return article;
}

function showMessages() {
  element("chat").replaceChildren();
  messages.forEach(show);
}

function edit(index) {
  halt();
  editing = index;
  element("text").value = messages[index].content;
  setStatus("Editing a message: what follows it will be replaced. Esc leaves it as it was");
  element("text").focus();
}

function regenerate(index) {
  if (running !== null) return;
  messages.length = index;
  showMessages();
  ask();
}

/* --- the server --- */

function headers() {
  const key = element("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: "Bearer " + key }) };
}

async function errorOf(response) {
  if (response.status === 401) element("key-label").hidden = false;
  const body = await response.json().catch(() => null);
  return new Error(body?.error?.message ?? "the server returned status " + response.status);
}

async function findModel() {
  const response = await fetch("v1/models", { headers: headers() });
  if (!response.ok) throw await errorOf(response);
  model = (await response.json()).data[0].id;
  element("model").textContent = document.title = model;
  setStatus("");
}

/* Yields the objects of a stream of server-sent events. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "data: [DONE]") return;
      if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
    }
  }
}

function request() {
  const system = element("system").value.trim();
  const sent = messages.map(({ role, content }) => ({ role, content }));
  const settings = ["temperature", "top_p", "max_tokens"].filter(name => element(name).value !== "");
  return {
    model,
    messages: system === "" ? sent : [{ role: "system", content: system }, ...sent],
    stream: true,
    stream_options: { include_usage: true },
    ...Object.fromEntries(settings.map(name => [name, Number(element(name).value)])),
  };
}

async function answer(own) {
  if (model === null) await findModel();
  const response = await fetch("v1/chat/completions", {
    method: "POST",
    headers: headers(),
    signal: own.signal,
    body: JSON.stringify(request()),
  });
  if (!response.ok) throw await errorOf(response);
  const message = { role: "assistant", content: "" }, into = messages;
  into.push(message);
  const article = show(message, into.length - 1);
  let reason = null, usage = null, first = null, drawn = true;
  const draw = () => {
    drawn = true;
    const chat = element("chat"), atEnd = chat.scrollHeight - chat.scrollTop - chat.clientHeight < 80;
    fill(article, message);
    if (atEnd) article.scrollIntoView({ block: "end" });
  };
  try {
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      usage = chunk.usage ?? usage;
      const choice = chunk.choices[0];
      if (choice === undefined) continue;
      message.content += choice.delta.content ?? "";
      if (choice.delta.reasoning_content) {
        message.reasoning_content = (message.reasoning_content ?? "") + choice.delta.reasoning_content;
      }
      first ??= performance.now();
      reason = choice.finish_reason ?? reason;
      if (drawn) {  /* at most once a frame */
        drawn = false;
        requestAnimationFrame(draw);
      }
    }
  } finally {
    draw();
  }
  const seconds = (performance.now() - first) / 1000;
  const limit = element("max_tokens").value !== "" ? "its limit is reached" : "the context is full";
  const note = reason === "length" ? `The answer is incomplete: ${limit}. ` : "";
  const rate = usage ? ((usage.completion_tokens - 1) / Math.max(seconds, 1e-3)).toFixed(1) : "";
  setStatus(note + (usage ? `${usage.prompt_tokens} + ${usage.completion_tokens} tokens, ${rate} tokens/s` : ""));
}

function busy(isBusy) {
  element("send").hidden = isBusy;
  element("stop").hidden = !isBusy;
}

/* Ends the running answer without a word: another conversation is shown. */
function halt() {
  const old = running;
  running = null;
  old?.abort();
  busy(false);
}

async function ask() {
  const own = running = new AbortController(), before = messages.length;
  busy(true);
  setStatus("");
  try {
    await answer(own);
  } catch (error) {
    if (own !== running) return;  /* another conversation is shown */
    if (error.name === "AbortError") setStatus("Stopped");
    else setStatus("Error: " + error.message, true);
    if (messages.length === before) {  /* no answer began: give the text back */
      element("text").value = messages.pop().content;
      showMessages();
    }
  } finally {
    if (own === running) {
      running = null;
      busy(false);
      save();
    }
    element("text").focus();
  }
}

/* --- events --- */

element("form").addEventListener("submit", event => {
  event.preventDefault();
  const text = element("text").value.trim();
  if (text === "" || running !== null) return;
  if (editing !== null) messages.length = editing;
  editing = null;
  messages.push({ role: "user", content: text });
  element("text").value = "";
  save();
  showMessages();
  ask();
});
element("text").addEventListener("keydown", event => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    element("form").requestSubmit();
  } else if (event.key === "ArrowUp" && element("text").value === "") {
    const last = messages.findLastIndex(message => message.role === "user");
    if (last >= 0) {
      event.preventDefault();
      edit(last);
    }
  }
});
document.addEventListener("keydown", event => {
  if (event.key === "Escape" && running !== null) {
    running.abort();
  } else if (event.key === "Escape" && element("side").classList.contains("shown")) {
    showSide(false);
  } else if (event.key === "Escape" && editing !== null) {
    editing = null;
    element("text").value = "";
    setStatus("");
  } else if (event.altKey && event.code === "KeyN") {
    event.preventDefault();
    select(null);
  }
});
element("stop").addEventListener("click", () => running?.abort());
element("new").addEventListener("click", () => select(null));
element("menu").addEventListener("click", event => {
  event.stopPropagation();
  showSide(!element("side").classList.contains("shown"));
});
element("column").addEventListener("click", () => showSide(false));
element("open-settings").addEventListener("click", () => element("settings").showModal());
for (const name of KEPT) element(name).addEventListener("change", save);
const refused = error => setStatus("Error: " + error.message, true);
element("key").addEventListener("change", () => findModel().catch(refused));
load();
save();
showMessages();
findModel().catch(refused);
