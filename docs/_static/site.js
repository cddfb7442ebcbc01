// A fold says in its text what it does; the label that the theme puts over it says less.
document.addEventListener("DOMContentLoaded", () => {
  for (const fold of document.querySelectorAll("summary[aria-label]")) fold.removeAttribute("aria-label");
});
