document.querySelectorAll(".player").forEach(function (box) {
  var film = JSON.parse(document.getElementById(box.dataset.film).textContent);
  var text = box.querySelector(".text"), slider = box.querySelector("input");
  var button = box.querySelector("button"), output = box.querySelector("output"), timer = null;
  var last = film.frames.length - 1;
  function show(step) {
    var frame = film.frames[step], parts = document.createDocumentFragment();
    frame[0].forEach(function (piece, i) {
      var span = document.createElement("span");
      span.className = film.classes[frame[1][i]];
      span.textContent = film.pieces[piece];
      parts.append(span);
    });
    text.replaceChildren(parts);
    slider.value = step;
    output.textContent = film.steps[step] + " of " + film.steps[last];
  }
  function stop() { clearInterval(timer); timer = null; button.textContent = "Play"; }
  button.addEventListener("click", function () {
    if (timer) { stop(); return; }
    var step = Number(slider.value) >= last ? 0 : Number(slider.value);
    button.textContent = "Pause"; show(step);
    timer = setInterval(function () { if (step >= last) { stop(); return; } show(++step); }, Math.max(90, Math.min(700, 9000 / (last + 1))));
  });
  slider.max = last;
  slider.addEventListener("input", function () { stop(); show(Number(slider.value)); });
  show(last);
  box.classList.add("on");
});
