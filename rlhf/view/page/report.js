// The page of a report. Texts of models and data are inserted as text alone (`textContent`), never as markup.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const RECORDS_A_PAGE = 8;
  const MOST_WORDS = 3000;

  // ----- helpers -----

  /** An element with a class and children: elements, or texts. */
  function element(name, className, ...children) {
    const made = document.createElement(name);
    if (className) made.className = className;
    for (const child of children) {
      if (child === null || child === undefined) continue;
      made.append(child instanceof Node ? child : document.createTextNode(String(child)));
    }
    return made;
  }

  function byId(id) {
    return document.getElementById(id);
  }

  function shown(value, digits = 3) {
    if (value === null || value === undefined || !Number.isFinite(value)) return "–";
    return (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
  }

  function signed(value) {
    if (value === null || !Number.isFinite(value)) return "–";
    return (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(3);
  }

  function mean(values) {
    const known = values.filter((value) => value !== null && Number.isFinite(value));
    if (known.length === 0) return null;
    return known.reduce((sum, value) => sum + value, 0) / known.length;
  }

  /** Of things and a number of each: the largest first, those without a number last. */
  function largestFirst(things, numberOf) {
    const key = (thing) => {
      const value = numberOf(thing);
      return value === null || !Number.isFinite(value) ? -Infinity : value;
    };
    return [...things].sort((one, other) => {
      const difference = key(other) - key(one);
      return Number.isNaN(difference) ? 0 : difference;
    });
  }

  // ----- plots -----

  /** Colours are the page's own variables: light, dark and print change them without drawing again. */
  function theme() {
    const palette = [1, 2, 3, 4, 5, 6, 7, 8].map((number) => `var(--plot-${number})`);
    const ink = "var(--ink)";
    return {
      background: "transparent",
      font: "system-ui, sans-serif",
      view: { stroke: null },
      axis: {
        labelColor: ink, titleColor: ink, gridColor: "var(--line)", domainColor: "var(--quiet)",
        tickColor: "var(--quiet)", labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal",
      },
      legend: {
        orient: "top", columns: window.innerWidth < 600 ? 2 : 4,
        labelColor: ink, titleColor: ink, labelFontSize: 12, symbolOpacity: 1,
      },
      text: { fill: ink },
      rule: { color: "var(--quiet)" },
      line: { color: palette[1] },
      point: { color: palette[1] },
      bar: { color: palette[1] },
      // More groups than colours that can be told apart make a ramp.
      range: { category: palette, ordinal: { scheme: "viridis" } },
    };
  }

  function drawPlots() {
    for (const plot of data.plots) {
      const place = byId("plot-" + plot.key);
      // `ast`: expressions are interpreted, so that the page needs no right to make code.
      const options = { ast: true, renderer: "svg", actions: false, config: theme() };
      window.vegaEmbed(place, plot.spec, options).catch((error) => {
        place.append(element("p", "hidden-part", "This plot cannot be drawn: " + error.message));
      });
    }
  }

  // ----- Markdown: a small part of it, as elements made here -----

  const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)|(!?\[[^\]\n]*\]\([^)\s]*\))/g;

  function inline(target, text) {
    let last = 0;
    for (const match of text.matchAll(INLINE)) {
      target.append(text.slice(last, match.index));
      const part = match[0];
      if (part.startsWith("`")) target.append(element("code", "", part.slice(1, -1)));
      else if (part.startsWith("**")) target.append(element("strong", "", part.slice(2, -2)));
      else if (part.startsWith("*")) target.append(element("em", "", part.slice(1, -1)));
      // Links and pictures stay what they are: text. Nothing in an answer is a reason to go anywhere.
      else target.append(element("span", "", part));
      last = match.index + part.length;
    }
    target.append(text.slice(last));
  }

  function markdown(text) {
    const target = element("div", "text prose");
    const lines = text.split("\n");
    let paragraph = [];
    let list = null;
    const end = () => {
      if (paragraph.length) {
        const made = element("p");
        inline(made, paragraph.join("\n"));
        target.append(made);
      }
      paragraph = [];
      list = null;
    };
    for (let index = 0; index < lines.length; index += 1) {
      const line = lines[index];
      const fence = line.match(/^\s*```/);
      const heading = line.match(/^#{1,6}\s+(.*)/);
      const item = line.match(/^\s*([-*+]|\d{1,9}[.)])\s+(.*)/);
      const quote = line.match(/^>\s?(.*)/);
      if (fence) {
        end();
        const code = [];
        for (index += 1; index < lines.length && !/^\s*```/.test(lines[index]); index += 1) code.push(lines[index]);
        target.append(element("pre", "", element("code", "", code.join("\n"))));
      } else if (heading) {
        end();
        const made = element("h5");
        inline(made, heading[1]);
        target.append(made);
      } else if (item) {
        const kind = /\d/.test(item[1]) ? "ol" : "ul";
        if (list === null || list.localName !== kind) {
          end();
          list = element(kind);
          if (kind === "ol") list.start = parseInt(item[1], 10);
          target.append(list);
        }
        const made = element("li");
        inline(made, item[2]);
        list.append(made);
      } else if (quote) {
        end();
        const made = element("blockquote");
        inline(made, quote[1]);
        target.append(made);
      } else if (line.trim() === "") {
        end();
      } else {
        if (list !== null) end();
        paragraph.push(line);
      }
    }
    end();
    return target;
  }

  // ----- differences, word by word -----

  function words(text) {
    return text.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) || [];
  }

  /** Parts of two texts in order, as ["same" | "gone" | "come", text]; null where they are too long. */
  function difference(before, after) {
    const one = words(before);
    const other = words(after);
    let start = 0;
    while (start < one.length && start < other.length && one[start] === other[start]) start += 1;
    let end = 0;
    while (
      end < one.length - start && end < other.length - start &&
      one[one.length - 1 - end] === other[other.length - 1 - end]
    ) end += 1;
    const first = one.slice(start, one.length - end);
    const second = other.slice(start, other.length - end);
    if (first.length > MOST_WORDS || second.length > MOST_WORDS) return null;
    // Lengths of the longest common subsequence of what follows, row by row.
    const width = second.length + 1;
    const longest = new Uint16Array((first.length + 1) * width);
    for (let i = first.length - 1; i >= 0; i -= 1) {
      for (let j = second.length - 1; j >= 0; j -= 1) {
        longest[i * width + j] = first[i] === second[j]
          ? longest[(i + 1) * width + j + 1] + 1
          : Math.max(longest[(i + 1) * width + j], longest[i * width + j + 1]);
      }
    }
    const parts = [];
    const add = (kind, text) => {
      if (parts.length && parts[parts.length - 1][0] === kind) parts[parts.length - 1][1] += text;
      else parts.push([kind, text]);
    };
    for (const word of one.slice(0, start)) add("same", word);
    let i = 0;
    let j = 0;
    while (i < first.length && j < second.length) {
      if (first[i] === second[j]) {
        add("same", first[i]);
        i += 1;
        j += 1;
      } else if (longest[(i + 1) * width + j] >= longest[i * width + j + 1]) {
        add("gone", first[i]);
        i += 1;
      } else {
        add("come", second[j]);
        j += 1;
      }
    }
    for (; i < first.length; i += 1) add("gone", first[i]);
    for (; j < second.length; j += 1) add("come", second[j]);
    for (const word of one.slice(one.length - end)) add("same", word);
    return parts;
  }

  function differenceText(before, after) {
    const parts = difference(before, after);
    const target = element("div", "text");
    target.dir = "auto";
    if (parts === null) {
      target.append(element("span", "hidden-part", `These two differ in more than ${MOST_WORDS} words.`));
      return target;
    }
    for (const [kind, text] of parts) {
      if (kind === "same") target.append(text);
      else target.append(element(kind === "gone" ? "del" : "ins", "", text));
    }
    return target;
  }

  // ----- texts -----

  function textOf(text, numHidden, asMarkdown) {
    const target = asMarkdown ? markdown(text) : element("div", "text", text);
    target.dir = "auto";
    if (text === "" && !numHidden) target.append(element("span", "hidden-part", "(empty)"));
    if (numHidden) {
      target.append(element("span", "hidden-part", ` … ${numHidden.toLocaleString("en")} more characters are not in this page`));
    }
    return target;
  }

  function promptOf(turns, asMarkdown) {
    const target = element("div", "prompt");
    for (const [role, text, numHidden] of turns) {
      target.append(element("div", "turn", element("div", "role", role), textOf(text, numHidden, asMarkdown)));
    }
    return target;
  }

  function linkTo(id, label) {
    const link = element("a", "", label);
    link.href = "#" + encodeURIComponent(id);
    return link;
  }

  // ----- lists of records: filtered, sorted, a page at a time -----

  /**
   * @param {string} name of the section, whose controls and list are `<name>-…`
   * @param {Function} select gives the records that the controls ask for, in order
   * @param {Function} draw makes the element of one
   * @param {Function} idOf gives its id in the page
   */
  function list(name, select, draw, idOf) {
    const target = byId(name + "-list");
    const controls = byId(name + "-tools");
    if (!target || !controls) return { open: () => false };
    let page = 0;
    let found = [];
    const show = () => {
      const start = page * RECORDS_A_PAGE;
      target.replaceChildren(...found.slice(start, start + RECORDS_A_PAGE).map(draw));
      const numPages = Math.max(1, Math.ceil(found.length / RECORDS_A_PAGE));
      byId(name + "-found").textContent = `${found.length} found, page ${page + 1} of ${numPages}`;
      byId(name + "-back").disabled = page === 0;
      byId(name + "-on").disabled = page + 1 >= numPages;
    };
    const update = () => {
      found = select();
      page = 0;
      show();
    };
    controls.addEventListener("input", update);
    for (const [button, step] of [["-back", -1], ["-on", 1]]) {
      byId(name + button).addEventListener("click", () => {
        page += step;
        show();
        byId(name).scrollIntoView();
      });
    }
    update();
    return {
      /** Show one by its id in the page, whatever is filtered. */
      open(id) {
        let place = found.findIndex((record) => idOf(record) === id);
        if (place < 0) {
          controls.reset();
          found = select();
          place = found.findIndex((record) => idOf(record) === id);
        }
        if (place < 0) return false;
        page = Math.floor(place / RECORDS_A_PAGE);
        show();
        const shownRecord = byId(id);
        for (const other of document.querySelectorAll(".named")) other.classList.remove("named");
        shownRecord.classList.add("named");
        shownRecord.scrollIntoView();
        shownRecord.focus({ preventScroll: true });
        return true;
      },
    };
  }

  // ----- records -----

  const value = (id) => byId(id).value;
  const meanScore = (record, policy) => mean(record.responses[policy].map((response) => response[4][0]));

  function gainOf(record) {
    const after = meanScore(record, Number(value("records-after")));
    const before = meanScore(record, Number(value("records-before")));
    return after === null || before === null ? null : after - before;
  }

  function haystack(record) {
    if (record.haystack === undefined) {
      const texts = record.prompt.map((turn) => turn[1]);
      for (const responses of record.responses) texts.push(...responses.map((response) => response[0]));
      record.haystack = (record.id + "\n" + texts.join("\n")).toLowerCase();
    }
    return record.haystack;
  }

  function selectRecords() {
    const search = value("records-search").toLowerCase();
    const source = value("records-source");
    const writing = value("records-writing");
    const cut = value("records-cut");
    const shortest = parseFloat(value("records-shortest"));
    const longest = parseFloat(value("records-longest"));
    const after = Number(value("records-after"));
    const kept = data.records.filter((record) => {
      const responses = record.responses[after];
      const length = mean(responses.map((response) => response[2]));
      const isCut = record.responses.some((each) => each.some((response) => response[3]));
      if (search && !haystack(record).includes(search)) return false;
      if (source && record.source !== source) return false;
      if (writing && record.writing !== writing) return false;
      if (cut && isCut !== (cut === "cut")) return false;
      if (!Number.isNaN(shortest) && !(length >= shortest)) return false;
      if (!Number.isNaN(longest) && !(length <= longest)) return false;
      return true;
    });
    const orders = {
      gain: gainOf,
      loss: (record) => (gainOf(record) === null ? null : -gainOf(record)),
      disagreement: (record) => record.disagreement,
      best: (record) => meanScore(record, after),
      worst: (record) => (meanScore(record, after) === null ? null : -meanScore(record, after)),
      longer: (record) =>
        mean(record.responses[after].map((response) => response[2])) -
        mean(record.responses[Number(value("records-before"))].map((response) => response[2])),
    };
    return largestFirst(kept, orders[value("records-sort")]);
  }

  function answer(response, place, asMarkdown) {
    const [text, numHidden, tokens, isCut, scores] = response;
    const figures = element("div", "figures", element("span", "", `#${place + 1}`));
    scores.forEach((score, index) => {
      figures.append(element("span", "", data.judges[index] + " ", element("b", "", shown(score))));
    });
    figures.append(element("span", "", `${tokens} tokens`));
    if (isCut) figures.append(element("span", "cut", "cut at the token limit"));
    return element("div", "answer", figures, textOf(text, numHidden, asMarkdown));
  }

  function bestOf(responses) {
    return largestFirst(responses, (response) => response[4][0])[0];
  }

  function drawRecord(record) {
    const asMarkdown = byId("records-markdown").checked;
    const before = Number(value("records-before"));
    const after = Number(value("records-after"));
    const id = "record-" + record.id;
    const head = element("div", "record-head", linkTo(id, "link"), element("span", "place", record.id));
    const names = `${data.policies[before]} to ${data.policies[after]}`;
    head.append(element("span", "", `gain from ${names}: `, element("b", "", signed(gainOf(record)))));
    if (record.disagreement !== null) {
      head.append(element("span", "", `judges disagree on ${shown(100 * record.disagreement, 0)} % of its response pairs`));
    }
    const target = element("article", "record", head, promptOf(record.prompt, asMarkdown));
    target.id = id;
    target.tabIndex = -1;
    if (byId("records-difference").checked) {
      const [one, other] = [bestOf(record.responses[before]), bestOf(record.responses[after])];
      const label = `Best answer of ${data.policies[before]} → best answer of ${data.policies[after]}: `;
      target.append(element("h4", "", label, element("del", "", "gone"), " ", element("ins", "", "come")));
      if (one && other) target.append(element("div", "answer", differenceText(one[0], other[0])));
      else target.append(element("p", "hidden-part", "One of the two has no answer."));
      return target;
    }
    const columns = element("div", "columns");
    columns.tabIndex = 0;
    columns.setAttribute("role", "group");
    columns.setAttribute("aria-label", "Answers of each policy, side by side");
    record.responses.forEach((responses, policy) => {
      const mark = data.best === policy ? element("span", "badge", "best") : null;
      const score = shown(meanScore(record, policy));
      const column = element("div", "", element("h4", "", `${data.policies[policy]}, mean ${score}`, mark));
      responses.forEach((response, place) => column.append(answer(response, place, asMarkdown)));
      if (responses.length === 0) column.append(element("p", "hidden-part", "no answer: the prompt was dropped"));
      columns.append(column);
    });
    target.append(columns);
    return target;
  }

  // ----- pairs -----

  function selectPairs() {
    const iteration = value("pairs-iteration");
    const search = value("pairs-search").toLowerCase();
    const kept = data.pairs.filter((pair) => {
      if (iteration && String(pair.iteration) !== iteration) return false;
      const texts = [pair.key, pair.chosen[0], pair.rejected[0], ...pair.prompt.map((turn) => turn[1])];
      return !search || texts.join("\n").toLowerCase().includes(search);
    });
    const orders = {
      margin: (pair) => pair.margin,
      close: (pair) => (pair.margin === null ? null : -pair.margin),
      longer: (pair) => pair.chosen[2] - pair.rejected[2],
      shorter: (pair) => pair.rejected[2] - pair.chosen[2],
    };
    return largestFirst(kept, orders[value("pairs-sort")]);
  }

  function drawPair(pair) {
    const asMarkdown = byId("pairs-markdown").checked;
    const id = "pair-" + pair.key;
    const head = element("div", "record-head", linkTo(id, "link"), element("span", "place", pair.key));
    head.append(element("span", "", `iteration ${pair.iteration}`));
    head.append(element("span", "", "margin ", element("b", "", shown(pair.margin))));
    const target = element("article", "record", head, promptOf(pair.prompt, asMarkdown));
    target.id = id;
    target.tabIndex = -1;
    if (byId("pairs-difference").checked) {
      target.append(element("h4", "", "Rejected → chosen: ", element("del", "", "gone"), " ", element("ins", "", "come")));
      target.append(element("div", "answer", differenceText(pair.rejected[0], pair.chosen[0])));
      return target;
    }
    const columns = element("div", "columns");
    for (const side of ["chosen", "rejected"]) {
      const [text, numHidden, chars, score, isCut] = pair[side];
      const figures = element("div", "figures", element("span", "", "score ", element("b", "", shown(score))));
      figures.append(element("span", "", `${chars.toLocaleString("en")} characters`));
      if (isCut) figures.append(element("span", "cut", "cut at the token limit"));
      const box = element("div", "answer", figures, textOf(text, numHidden, asMarkdown));
      columns.append(element("div", "", element("h4", "", side), box));
    }
    target.append(columns);
    return target;
  }

  // ----- the page -----

  drawPlots();
  for (const form of document.querySelectorAll("form")) {
    form.addEventListener("submit", (event) => event.preventDefault());
  }
  const lists = [
    list("records", selectRecords, drawRecord, (record) => "record-" + record.id),
    list("pairs", selectPairs, drawPair, (pair) => "pair-" + pair.key),
  ];
  function follow() {
    const id = decodeURIComponent(location.hash.slice(1));
    if (/^(record|pair)-/.test(id)) lists.some((each) => each.open(id));
  }
  window.addEventListener("hashchange", follow);
  follow();
})();
