// The chat: one conversation, streamed from /v1/chat/completions, stopped by closing the connection.
import { element, rate } from "./format.js";

const STARTERS = [
  "What is a ledger?",
  "Jane has a purple lamp. Oscar is a hunter in Arden. What is Oscar?",
  "Write a short story about Ruth and Tina.",
];

const byId = (id) => document.getElementById(id);

export class Chat {
  constructor() {
    this.turns = [];
    this.running = null;
    this.log = byId("log");
    this.prompt = byId("prompt");
    this.send = byId("send");
    this.welcome = byId("welcome");
    for (const text of STARTERS) {
      const button = element("button", "", text);
      button.type = "button";
      button.addEventListener("click", () => this.ask(text));
      const item = element("li");
      item.append(button);
      byId("starters").append(item);
    }
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.running) this.running.abort();
      else if (this.prompt.value.trim()) this.ask(this.prompt.value.trim());
    });
    this.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        if (!this.running) byId("composer").requestSubmit();
      }
    });
    this.prompt.addEventListener("input", () => this.grow());
    byId("clear").addEventListener("click", () => this.clear());
  }

  grow() {
    this.prompt.style.height = "auto";
    this.prompt.style.height = `${this.prompt.scrollHeight + 2}px`;
  }

  clear() {
    if (this.running) this.running.abort();
    this.turns = [];
    this.log.replaceChildren(this.welcome);
    this.prompt.focus();
  }

  show(role, text) {
    this.welcome.remove();
    const turn = element("article", `turn ${role}`);
    turn.append(element("div", "who", role === "user" ? "You" : "Model"));
    const body = element("div", "text", text);
    turn.append(body);
    this.log.append(turn);
    this.log.scrollTop = this.log.scrollHeight;
    return { turn, body };
  }

  body() {
    const system = byId("system").value.trim();
    const temperature = byId("temperature").value;
    return {
      messages: [...(system ? [{ role: "system", content: system }] : []), ...this.turns],
      max_tokens: Number(byId("max-tokens").value) || 256,
      ...(temperature === "" ? {} : { temperature: Number(temperature) }),
      stream: true,
      stream_options: { include_usage: true },
    };
  }

  headers() {
    const key = byId("key").value.trim();
    return { "content-type": "application/json", ...(key ? { authorization: `Bearer ${key}` } : {}) };
  }

  async ask(text) {
    if (this.running) return;
    this.prompt.value = "";
    this.grow();
    this.turns.push({ role: "user", content: text });
    this.show("user", text);
    const answer = this.show("assistant", "");
    answer.turn.classList.add("streaming");
    this.running = new AbortController();
    this.send.textContent = "Stop";
    const clock = { start: performance.now(), first: null, usage: null, end: "" };
    try {
      await this.stream(answer, clock);
    } catch (error) {
      clock.end = error.name === "AbortError" ? "stopped" : "";
      if (!clock.end) answer.turn.append(element("p", "meta failed", error.message));
    }
    answer.turn.classList.remove("streaming");
    answer.turn.append(element("p", "meta", summary(clock)));
    this.turns.push({ role: "assistant", content: answer.body.textContent });
    this.running = null;
    this.send.textContent = "Send";
    this.follow(true);
    this.prompt.focus();
  }

  async stream(answer, clock) {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: this.headers(),
      body: JSON.stringify(this.body()),
      signal: this.running.signal,
    });
    if (!response.ok) throw new Error((await response.json()).error.message);
    for await (const event of events(response.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.usage) clock.usage = event.usage;
      for (const choice of event.choices) {
        const piece = choice.delta.content;
        if (piece) {
          clock.first ??= performance.now();
          const near = this.isAtEnd();
          // Many tokenizers begin the first word with a space.
          answer.body.append(answer.body.textContent ? piece : piece.trimStart());
          this.follow(near);
        }
        if (choice.finish_reason === "length") clock.end = "cut at the token limit";
      }
    }
  }

  isAtEnd() {
    return this.log.scrollHeight - this.log.scrollTop - this.log.clientHeight < 60;
  }

  // Stays at the end while the reader is there; leaves a reader who scrolled up alone.
  follow(near) {
    if (near) this.log.scrollTop = this.log.scrollHeight;
  }
}

// The payloads of server-sent events, up to [DONE].
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const data = block.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

function summary({ start, first, usage, end }) {
  const parts = [];
  if (first !== null) parts.push(`first token after ${((first - start) / 1000).toFixed(2)} s`);
  if (usage) {
    // From the question on: a short answer may arrive in one piece, and the time since its first token would say nothing.
    const seconds = (performance.now() - start) / 1000;
    if (usage.completion_tokens > 1) parts.push(`${rate(usage.completion_tokens / seconds)} tokens/s`);
    parts.push(`${usage.completion_tokens} tokens out`);
    const cached = usage.prompt_tokens_details.cached_tokens;
    parts.push(`${usage.prompt_tokens} in${cached ? ` (${cached} from the prefix cache)` : ""}`);
  }
  if (end) parts.push(end);
  return parts.join(" · ");
}
