// Ask the server, and show its hits as text and pictures; nothing of an answer becomes HTML.
(() => {
  const form = document.querySelector("form");
  const hits = document.getElementById("hits");
  const more = document.getElementById("more");
  const status = document.getElementById("status");
  const weight = document.getElementById("weight");
  let asked = 0;
  const made = (kind, text) => {
    const element = document.createElement(kind);
    element.textContent = text;
    return element;
  };
  const card = (hit) => {
    const item = document.createElement("li");
    const image = document.createElement("img");
    image.src = hit.picture;
    image.alt = hit.text || String(hit.id);
    image.loading = "lazy";
    image.addEventListener("error", () => image.remove());
    item.append(image);
    if (hit.text) item.append(made("p", hit.text));
    const footer = document.createElement("footer");
    footer.append(made("span", hit.id), made("b", hit.score.toFixed(3)));
    item.append(footer);
    return item;
  };
  let query, picture; // "more" goes on with what was asked, whatever the form says by then
  const search = async (offset) => {
    const mine = ++asked;
    if (!offset) {
      const text = form.elements.text.value.trim();
      picture = form.elements.picture.files[0];
      if (!text && !picture) { status.textContent = "Give words, a picture, or both."; return; }
      query = new URLSearchParams({ side: form.elements.side.value, limit: 24 });
      if (text) query.set("text", text);
      // The address is a link to what words find; a picture has none.
      history.replaceState(null, "", `#${picture ? "" : encodeURIComponent(text)}`);
      if (picture) query.set("weight", form.elements.weight.value);
    }
    query.set("offset", offset);
    status.textContent = "Searching…";
    try {
      const answer = await fetch(`api/search?${query}`,
        picture ? { method: "POST", body: picture, headers: { "Content-Type": "image/*" } } : {});
      const found = await answer.json();
      if (mine !== asked) return;
      if (!answer.ok) { status.textContent = found.error; return; }
      if (!offset) hits.replaceChildren();
      hits.append(...found.hits.map(card));
      status.textContent = `${hits.children.length} of ${found.total} ${found.side}, nearest first`;
      more.hidden = hits.children.length >= found.total;
    } catch (error) {
      if (mine === asked) status.textContent = `No answer: ${error.message}`;
    }
  };
  form.addEventListener("submit", (event) => { event.preventDefault(); search(0); });
  form.addEventListener("input", () => {
    weight.hidden = !(form.elements.picture.files.length && form.elements.text.value.trim());
  });
  more.addEventListener("click", () => search(hits.children.length));
  // Words after # are looked up at once, so that a search can be linked to.
  const decoded = (escapes) => {
    try { return decodeURIComponent(escapes); } catch { return escapes; } // typed, not quoted
  };
  const linked = location.hash.slice(1).replace(/(?:%[\da-f]{2})+/gi, decoded);
  if (linked) { form.elements.text.value = linked; search(0); }
})();
