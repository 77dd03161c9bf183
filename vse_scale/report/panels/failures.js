// Browse the failures: by direction, by rank, by words. Without this script all of them are shown.
(() => {
  const box = document.getElementById("failures-box");
  if (!box) return;
  const page = 12;
  const cards = [...box.querySelectorAll("article")];
  const form = box.querySelector("form");
  const count = box.querySelector("output");
  const more = box.querySelector("button");
  const words = cards.map((card) => card.textContent.toLowerCase()
    + [...card.querySelectorAll("img")].map((image) => image.alt.toLowerCase()).join(" "));
  let limit = page;
  const show = () => {
    const asked = form.elements.words.value.toLowerCase().split(/\s+/).filter(Boolean);
    const way = form.elements.way.value;
    const rank = Number(form.elements.rank.value);
    const fits = cards.filter((card, place) => (!way || card.classList.contains(way))
      && Number(card.dataset.rank) >= rank && asked.every((word) => words[place].includes(word)));
    const shown = new Set(fits.slice(0, limit));
    for (const card of cards) card.hidden = !shown.has(card);
    count.textContent = `${shown.size} of ${fits.length} shown`;
    more.hidden = fits.length <= limit;
  };
  form.hidden = false;
  form.addEventListener("input", () => { limit = page; show(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => { limit += page; show(); });
  show();
})();
