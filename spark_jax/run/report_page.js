"use strict";
// Draws the trees of the page. Every text of a run enters the page as a text node, never as HTML.
const data = JSON.parse(document.getElementById("tree-data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const at = (id) => document.getElementById(id);
let tree = null, picked = 0;

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "class") element.className = value; else element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

function draw(name, attributes, parent, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

const plural = (n, word) => `${n} ${word}${n === 1 ? "" : "s"}`;
const number = (x) => (x === null || x === undefined ? "–" : Number(x).toLocaleString("en", { maximumFractionDigits: 3 }));
const signed = (x) => (x === null || x === undefined ? "–" : (x > 0 ? "+" : "") + number(x));
const outcomeWord = (outcome) => outcome.replace("_", " ");

function childrenOf(nodes) {
  const out = nodes.map(() => []);
  for (const node of nodes.slice(1)) out[node.parent].push(node.id);
  return out;
}

function leavesBelow(kids, id) {
  const stack = [id], out = [];
  while (stack.length) {
    const i = stack.pop();
    if (kids[i].length) stack.push(...[...kids[i]].reverse()); else if (i) out.push(i);
  }
  return out;
}

function showIteration(index) {
  const list = at("list");
  list.replaceChildren();
  data.iterations[index].trees.forEach((t, i) => {
    const kids = childrenOf(t.nodes), leaves = leavesBelow(kids, 0);
    const wins = leaves.filter((l) => t.nodes[l].outcome === "success").length;
    const forks = kids.slice(1).filter((k) => k.length > 1).length;
    const sparks = t.nodes.filter((n) => n.spark).length;
    const button = make("button", { type: "button", "aria-pressed": "false" },
      `${t.task.type} ${t.task.variation}`,
      make("small", {}, `${wins} of ${plural(leaves.length, "leaf").replace("leafs", "leaves")} succeed · ${plural(forks, "fork")} · ${plural(sparks, "spark point")}`));
    button.addEventListener("click", () => showTree(t, button));
    list.append(button);
    if (i === 0) showTree(t, button);
  });
}

function showTree(t, button) {
  tree = { ...t, kids: childrenOf(t.nodes) };
  for (const other of at("list").children) other.setAttribute("aria-pressed", String(other === button));
  drawMap();
  const leaves = leavesBelow(tree.kids, 0);
  pick(leaves.find((l) => tree.nodes[l].outcome === "success") ?? leaves[0] ?? 0);
}

function drawMap() {
  const stepWidth = 34, rowHeight = 24, left = 40, top = 22;
  const leaves = leavesBelow(tree.kids, 0), row = [];
  leaves.forEach((leaf, i) => { row[leaf] = i; });
  for (let i = tree.nodes.length - 1; i >= 0; i--) { // children have larger ids than their parent
    const kids = tree.kids[i];
    if (kids.length) row[i] = (row[kids[0]] + row[kids[kids.length - 1]]) / 2;
    row[i] ??= 0;
  }
  // Depth in nodes, not `step`: a step may be two nodes (reasoning and action).
  const depth = [];
  tree.nodes.forEach((n) => { depth[n.id] = n.parent < 0 ? 0 : depth[n.parent] + 1; });
  const x = (i) => left + depth[i] * stepWidth, y = (i) => top + row[i] * rowHeight;
  const width = left + Math.max(...depth) * stepWidth + 190, height = top * 2 + Math.max(0, leaves.length - 1) * rowHeight;
  const svg = document.createElementNS(SVG, "svg");
  for (const [k, v] of Object.entries({ width, height, role: "tree", "aria-label": "the tree of one task" })) svg.setAttribute(k, v);
  for (const node of tree.nodes.slice(1)) {
    const p = node.parent, mid = x(p) + stepWidth * 0.5, fork = p > 0 && tree.kids[p].length > 1;
    draw("path", { class: fork ? "edge fork" : "edge", id: `edge${node.id}`,
      d: `M${x(p)},${y(p)} C${mid},${y(p)} ${mid},${y(node.id)} ${x(node.id)},${y(node.id)}` }, svg);
  }
  for (const node of tree.nodes) {
    const leaf = node.id > 0 && !tree.kids[node.id].length;
    const group = draw("g", { class: ["node", node.spark ? "spark" : "", leaf ? `leaf ${node.outcome}` : ""].join(" "),
      id: `node${node.id}`, tabindex: "0", role: "treeitem",
      "aria-label": node.id ? `step ${node.step}: ${node.action}${leaf ? `, ${outcomeWord(node.outcome || "")}` : ""}` : "prompt" }, svg);
    const [cx, cy] = [x(node.id), y(node.id)];
    if (node.id === 0) draw("rect", { class: "dot", x: cx - 7, y: cy - 7, width: 14, height: 14, rx: 2 }, group);
    else if (node.spark) draw("path", { class: "dot", d: `M${cx - 8},${cy} L${cx},${cy - 8} L${cx + 8},${cy} L${cx},${cy + 8} Z` }, group);
    else draw("circle", { class: "dot", cx, cy, r: 6 }, group);
    if (leaf) draw("text", { x: cx + 13, y: cy + 4 }, group, `${outcomeWord(node.outcome || "?")}  A ${signed(node.advantage)}`);
    else if (node.granted > 1) draw("text", { x: cx - 5, y: cy - 11 }, group, `×${node.granted}`);
    draw("title", {}, group, node.id ? `step ${node.step}: ${node.action}` : "prompt");
    group.addEventListener("click", () => pick(node.id));
    group.addEventListener("keydown", (event) => key(event, node.id));
  }
  at("map").replaceChildren(svg);
}

function key(event, id) {
  const node = tree.nodes[id], around = id ? tree.kids[node.parent] : [0], place = around.indexOf(id);
  const next = { ArrowLeft: node.parent, ArrowRight: tree.kids[id][0], ArrowUp: around[place - 1],
    ArrowDown: around[place + 1], Enter: id, " ": id }[event.key];
  if (next === undefined || next < 0) return;
  event.preventDefault();
  pick(next);
  at(`node${next}`).focus();
}

function pick(id) {
  at(`node${picked}`)?.classList.remove("picked");
  picked = id;
  at(`node${id}`).classList.add("picked");
  const path = [];
  for (let i = id; i >= 0; i = tree.nodes[i].parent) path.unshift(i);
  for (const edge of at("map").querySelectorAll(".edge")) edge.classList.remove("on");
  for (const i of path.slice(1)) at(`edge${i}`).classList.add("on");
  showSiblings(id);
  at("path").replaceChildren(...path.map((i) => stepDetails(i, i === id)));
}

function below(id) {
  const leaves = leavesBelow(tree.kids, id);
  const wins = leaves.filter((l) => tree.nodes[l].outcome === "success").length;
  return `${wins} of ${leaves.length} below succeed`;
}

function badges(node) {
  const leaf = node.id > 0 && !tree.kids[node.id].length;
  return [
    node.spark ? make("span", { class: "tag sparktag" }, "spark point") : null,
    !leaf && node.requested > 1 ? ` asked for ${node.requested} children, got ${node.granted} ` : null,
    leaf && node.outcome ? make("span", { class: `tag ${node.outcome}` }, outcomeWord(node.outcome)) : null,
  ].flatMap((part) => (part === null ? [] : [" ", part]));
}

function showSiblings(id) {
  const around = id ? tree.kids[tree.nodes[id].parent] : [];
  const box = at("siblings");
  box.replaceChildren();
  at("siblings-title").hidden = around.length < 2;
  if (around.length < 2) return;
  around.forEach((s, i) => {
    const node = tree.nodes[s];
    const twin = around.slice(0, i).findIndex((other) => tree.nodes[other].response === node.response);
    const section = make("section", { class: s === id ? "picked" : "" },
      make("b", {}, `${tree.nodes[id].parent ? "child" : "root"} ${i + 1}`), ...badges(node), ` · ${below(s)}`,
      twin >= 0 ? make("div", { class: "dim" }, `same words as number ${twin + 1}`) : null,
      make("pre", { class: "text" }, node.response), make("div", { class: "dim" }, "observation"),
      make("pre", {}, node.observation || "–"));
    if (s !== id) {
      const button = make("button", { type: "button" }, "follow");
      button.addEventListener("click", () => pick(s));
      section.append(button);
    }
    box.append(section);
  });
}

// A page of the environment as its people see it: [kind, text] each.
function pageView(parts) {
  return make("section", { class: "page" }, ...parts.map(([kind, text]) =>
    make(kind === "text" ? "p" : "span", { class: kind }, kind === "chosen" ? `✔ ${text}` : text)));
}

function stepDetails(id, open) {
  const node = tree.nodes[id], leaf = id > 0 && !tree.kids[id].length;
  const rows = id === 0
    ? [["prompt", node.prompt, true], ["tokens", number(node.prompt_tokens)]]
    : [["response", node.response, true], ["action", node.action, true], ["observation", node.observation, true],
      ["prompt after it", node.prompt, true],
      ["log-prob", `${number(node.logprob)} over ${plural(node.response_tokens, "sampled token")}`],
      ["advantage", signed(node.advantage)], ["reward", number(node.reward)], ["tokens after it", number(node.prompt_tokens)]];
  const list = make("dl", {}, ...rows.flatMap(([name, value, text]) => [make("dt", {}, name),
    make("dd", {}, text ? make("pre", { class: "text" }, value || "–") : value)]));
  if (node.view) list.append(make("dt", {}, "page"), make("dd", {}, pageView(node.view)));
  const title = id === 0 ? [`prompt · ${tree.task.type} ${tree.task.variation}`] : [make("b", {}, `step ${node.step}`), " ", make("code", {}, node.action || "(no action)")];
  const kind = [node.spark ? "spark" : "", leaf ? `leaf ${node.outcome}` : "", open ? "picked" : ""].join(" ");
  const details = make("details", { class: kind }, make("summary", {}, ...title, ...badges(node)), list);
  details.open = open;
  return details;
}

if (data.iterations.length) {
  const choice = at("iteration");
  data.iterations.forEach((entry, i) => choice.append(make("option", { value: String(i) }, `iteration ${entry.iteration}`)));
  choice.value = String(data.iterations.length - 1);
  choice.addEventListener("change", () => showIteration(Number(choice.value)));
  at("open-all").addEventListener("click", () => {
    const all = [...at("path").children], open = !all.every((d) => d.open);
    for (const d of all) d.open = open;
  });
  showIteration(data.iterations.length - 1);
}
