/* What scrolls can be reached by keyboard; every bar of a code block has a name of its own. */
document$.subscribe(function () {
  requestAnimationFrame(function () {
    document.querySelectorAll(".md-typeset__scrollwrap, .md-typeset pre > code").forEach(function (box) {
      box.setAttribute("tabindex", "0");
    });
    document.querySelectorAll(".md-code__nav").forEach(function (bar, i) {
      bar.setAttribute("aria-label", "Code block " + (i + 1));
    });
    document.documentElement.dataset.reachable = "yes";
  });
});
