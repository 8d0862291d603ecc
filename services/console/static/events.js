// Following events: pause, clear, and a bound on the rows of the page. htmx and its
// extension for server-sent events do the rest.
(function () {
	"use strict";
	var live = document.querySelector("[data-live]");
	if (!live) return;
	var rows = live.querySelector("[data-live-rows]");
	var state = live.querySelector("[data-live-state]");
	var pause = live.querySelector("[data-live-pause]");
	var most = Number(live.dataset.most) || 200;
	var paused = false, passed = 0;

	function say(text) {
		if (state.textContent !== text) state.textContent = text;
	}
	function show() {
		live.classList.toggle("is-paused", paused);
		live.classList.remove("is-lost");
		say(paused ? "Paused: " + passed + " passed meanwhile" : "Following");
	}
	document.body.addEventListener("htmx:sseBeforeMessage", function (e) {
		if (!paused || !live.contains(e.target)) return;
		e.preventDefault();
		if (e.detail.type === "event") {
			passed++;
			show();
		}
	});
	document.body.addEventListener("htmx:sseMessage", function (e) {
		if (!live.contains(e.target)) return;
		while (rows.rows.length > most) rows.deleteRow(-1);
		if (!paused) show();
	});
	document.body.addEventListener("htmx:sseError", function (e) {
		if (!live.contains(e.target)) return;
		live.classList.add("is-lost");
		say("The connection is lost, trying again");
	});
	document.body.addEventListener("htmx:sseOpen", function (e) {
		if (!live.contains(e.target)) return;
		live.classList.remove("is-lost");
		if (!paused) say(rows.rows.length ? "Following" : "Following: waiting for events");
	});
	pause.addEventListener("click", function () {
		paused = !paused;
		passed = 0;
		pause.setAttribute("aria-pressed", String(paused));
		pause.querySelector("span").textContent = paused ? "Go on" : "Pause";
		show();
	});
	live.querySelector("[data-live-clear]").addEventListener("click", function () {
		rows.replaceChildren();
	});
})();
