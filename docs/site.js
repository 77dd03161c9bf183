// What Material for MkDocs leaves to be done for screen readers and keys.
addEventListener("load", () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  // Each list of headings and each copy button would be a landmark of its own.
  for (const nav of document.querySelectorAll(".md-nav .md-nav, .md-code__nav")) {
    for (const name of ["aria-label", "aria-labelledby", "aria-expanded"]) nav.removeAttribute(name);
    nav.setAttribute("role", "presentation");
  }
  for (const table of document.querySelectorAll(".md-typeset__scrollwrap")) {
    if (table.scrollWidth > table.clientWidth) table.tabIndex = 0;
  }
});
