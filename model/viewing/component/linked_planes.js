// Three linked planes of a CT with its activation maps and lung contour, drawn by NiiVue inside a Streamlit page.
// Streamlit sends: volumes (first coarse, then fine: name -> path of a NIfTI file), colours, windows, slabs, title, start (mm).
"use strict";

const element = (id) => document.getElementById(id);
const MAPS = ["centrilobular", "paraseptal"];
const BAR_LENGTHS = [200, 100, 50, 20, 10, 5, 2, 1]; // mm
const began = performance.now();
let viewer = null;
let args = null;
let wanted = ""; // which volumes the page asked for last
let work = Promise.resolve(); // one load at a time

function tellStreamlit(type, content) {
  window.parent.postMessage({ isStreamlitMessage: true, type: `streamlit:${type}`, ...content }, "*");
}

async function fetched(path) {
  const address = new URL(`../..${path}`, window.location.href.replace(/[^/]*$/, ""));
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`the volume was not sent (${answer.status})`);
  return answer.arrayBuffer();
}

function colourMap([red, green, blue]) {
  return { R: [red, red], G: [green, green], B: [blue, blue], A: [0, 255], I: [0, 255] };
}

// What NiiVue draws a slice with, with two additions: the extreme of the CT through a slab around the slice, and stripes where the
// paraseptal map lies, which tell it from the centrilobular one without colours. NiiVue finds one uniform a line.
function sliceShader() {
  const [projection, thickness] = args.slabs[element("slab").value] || ["maximum", 0];
  const spacing = viewer.back.pixDimsRAS.slice(1, 4);
  const halves = spacing.map((distance, axis) => thickness / 2 / (distance * viewer.back.dimsRAS[axis + 1]));
  const steps = Math.min(Math.ceil(thickness / 2 / Math.min(...spacing)), 64);
  return `#version 300 es
    precision highp int;
    precision highp float;
    uniform highp sampler3D volume;
    uniform highp sampler3D overlay;
    uniform int axCorSag;
    uniform float overlays;
    uniform float opacity;
    uniform float overlayAlphaShader;
    in vec3 texPos;
    out vec4 color;
    const vec3 HALF = vec3(${halves.map((half) => half.toFixed(8)).join(", ")});
    const int STEPS = ${steps};
    vec3 grey(vec3 place) { return texture(volume, clamp(place, 0.0, 1.0)).rgb; }
    void main() {
      vec3 through = axCorSag == 0 ? vec3(0, 0, 1) : axCorSag == 1 ? vec3(0, 1, 0) : vec3(1, 0, 0);
      vec3 found = grey(texPos);
      for (int step = 1; step <= STEPS; step++) {
        vec3 away = through * HALF * float(step) / float(STEPS);
        vec3 before = grey(texPos - away), behind = grey(texPos + away);
        found = ${projection === "maximum" ? "max(found, max(before, behind))" : "min(found, min(before, behind))"};
      }
      vec4 map = overlays > 0.0 ? texture(overlay, texPos) : vec4(0.0);
      bool striped = ${element("hatching").checked} && map.b > map.r && map.b > map.g;
      if (striped && mod(gl_FragCoord.x + gl_FragCoord.y, 8.0) < 4.0) map.a *= 0.3;
      color = vec4(mix(found, map.rgb, map.a * overlayAlphaShader), opacity);
    }`;
}

function downloaded(level) {
  const names = ["ct", ...MAPS, "contour"].filter((name) => level[name]);
  return Promise.all(names.map((name) => fetched(level[name]))).then((buffers) => [names, buffers]);
}

async function show(download, asked) {
  const [names, buffers] = await download;
  const loaded = [];
  for (const [place, name] of names.entries()) {
    loaded.push(await niivue.NVImage.loadFromUrl({
      url: buffers[place], name: name === "ct" ? "ct.nii" : `${name}.nii.gz`, colormap: name === "ct" ? "gray" : name,
    }));
  }
  if (asked !== wanted) return; // another scan was asked for meanwhile
  const first = element("stage").dataset.shown !== asked;
  const place = first ? args.start : viewer.frac2mm(viewer.scene.crosshairPos);
  loaded.forEach((volume, number) => { volume.role = names[number]; apply(volume); });
  [viewer.volumes, viewer.back, viewer.overlays] = [loaded, loaded[0], loaded.slice(1)]; // at once: each addVolume would draw
  viewer.setCustomSliceShader(sliceShader()); // updates the volumes, too
  viewer.scene.crosshairPos = viewer.mm2frac([place[0], place[1], place[2]]);
  viewer.drawScene();
  viewer.createOnLocationChange();
  element("stage").dataset.shown = asked;
  element("stage").style.visibility = "visible";
}

function apply(volume) {
  if (volume.role === "ct") {
    const centre = Number(element("centre").value), width = Math.max(Number(element("width").value), 1);
    volume.cal_min = centre - width / 2;
    volume.cal_max = centre + width / 2;
  } else if (volume.role === "contour") {
    volume.cal_min = 0.3;
    volume.cal_max = 1;
    volume.opacity = element("contour").checked ? 1 : 0;
  } else {
    volume.cal_min = 255 * Number(element("threshold").value);
    volume.cal_max = 255;
    volume.opacity = element(volume.role).checked ? Number(element("opacity").value) / 100 : 0;
  }
}

function applyAll() {
  viewer.volumes.forEach(apply);
  viewer.updateGLVolume();
}

function report(location) {
  const value = Object.fromEntries(viewer.volumes.map((volume, number) => [volume.role, location.values[number].value]));
  const [x, y, z] = location.mm;
  const side = (number, less, more) => `${Math.abs(number).toFixed(0)} mm ${number < 0 ? less : more}`;
  const parts = [`${side(x, "left", "right")}`, side(y, "posterior", "anterior"), `${z.toFixed(0)} mm above the first slice`];
  if (args.has_ct) parts.push(`${value.ct.toFixed(0)} HU`);
  for (const name of MAPS) if (value[name] !== undefined) parts.push(`${name} ${(value[name] / 255).toFixed(2)}`);
  element("readout").textContent = parts.join(" \u00b7 ");
}

// The length of the scale bar, measured where the first plane is drawn, so that zoom and window size count.
function drawScaleBar() {
  const tile = viewer.screenSlices[0];
  if (!tile || !viewer.volumes.length) return;
  drawLetters();
  const [left, top, width, height] = tile.leftTopWidthHeight;
  const [x, y] = [left + width / 2, top + height / 2];
  const [from, to] = [viewer.frac2mm(viewer.canvasPos2frac([x, y])), viewer.frac2mm(viewer.canvasPos2frac([x + width / 4, y]))];
  const millimetres = Math.hypot(to[0] - from[0], to[1] - from[1], to[2] - from[2]);
  const pixelsPerMillimetre = width / 4 / (viewer.uiData.dpr || 1) / millimetres;
  const length = BAR_LENGTHS.find((candidate) => candidate * pixelsPerMillimetre <= 160) || 1;
  element("bar").style.width = `${length * pixelsPerMillimetre}px`;
  element("length").textContent = `${length} mm`;
}

// The patient's sides at the edges of each plane, on dark ground: NiiVue's own letters cannot be read on light tissue.
function drawLetters() {
  const letters = element("letters");
  letters.replaceChildren();
  for (const tile of viewer.screenSlices) {
    const sides = [["R", "L", "A", "P"], ["R", "L", "S", "I"], ["A", "P", "S", "I"]][tile.axCorSag];
    if (!sides) continue;
    const [left, top, width, height] = tile.leftTopWidthHeight.map((length) => length / (viewer.uiData.dpr || 1));
    const places = [[left + 9, top + height / 2], [left + width - 9, top + height / 2], [left + width / 2, top + 10],
                    [left + width / 2, top + height - 10]];
    sides.forEach((side, number) => {
      const mark = document.createElement("span");
      mark.textContent = side;
      [mark.style.left, mark.style.top] = places[number].map((length) => `${length}px`);
      letters.append(mark);
    });
  }
}

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    element("readout").textContent = "This browser has no WebGL 2. Choose \u201cOne plane\u201d above.";
    return;
  }
  viewer = new niivue.Niivue({
    isRadiologicalConvention: true, sagittalNoseLeft: true, isOrientationTextVisible: false, crosshairColor: [0.95, 0.85, 0.2, 0.8], crosshairWidth: 1,
    crosshairWidthUnit: "mm", crosshairGap: 8, backColor: [0, 0, 0, 1], dragMode: 9, dragAndDropEnabled: false,
    multiplanarShowRender: 0, isResizeCanvas: true, logLevel: "error", loadingText: "",
  });
  await viewer.attachToCanvas(element("canvas"));
  viewer.onLocationChange = report;
  const draw = viewer.drawScene.bind(viewer);
  viewer.drawScene = () => { const drawn = draw(); drawScaleBar(); return drawn; }; // NiiVue lays out its tiles while it draws
  for (const [name, colour] of Object.entries(args.colours)) viewer.addColormap(name, colourMap(colour));
  showPlanes(3);
}

function showPlanes(planes) {
  if (planes !== 3) viewer.clearCustomLayout();
  viewer.setSliceType(planes);
  if (planes === 3) {
    viewer.setCustomLayout([
      { sliceType: 0, position: [0, 0, 0.56, 1] },
      { sliceType: 1, position: [0.56, 0, 0.44, 0.5] },
      { sliceType: 2, position: [0.56, 0.5, 0.44, 0.5] },
    ]);
  }
}

async function load(asked, first) {
  if (asked !== wanted) return;
  try {
    if (!viewer) await start();
    if (!viewer) return;
    for (const [number, level] of JSON.parse(asked).entries()) {
      await show(number === 0 ? first : downloaded(level), asked);
      if (asked !== wanted) return;
      document.body.dataset.level = number;
      document.body.dataset.milliseconds = Math.round(performance.now() - began);
      await new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)));
    }
  } catch (error) {
    element("readout").textContent = `The volumes cannot be shown: ${error.message}`;
  }
}

function setUp() {
  const preset = element("preset");
  for (const name of [...Object.keys(args.windows), "other"]) preset.add(new Option(name, name));
  const take = () => {
    const window_ = args.windows[preset.value];
    if (!window_) return;
    [element("centre").value, element("width").value] = window_;
  };
  take();
  preset.addEventListener("change", () => { take(); applyAll(); });
  for (const id of ["centre", "width"]) element(id).addEventListener("change", () => { preset.value = "other"; applyAll(); });
  for (const name of Object.keys(args.slabs)) element("slab").add(new Option(name, name));
  for (const id of ["slab", "hatching"]) {
    element(id).addEventListener("change", () => viewer.setCustomSliceShader(sliceShader()));
  }
  for (const id of [...MAPS, "opacity", "threshold", "contour"]) element(id).addEventListener("change", applyAll);
  element("planes").addEventListener("change", (event) => showPlanes(Number(event.target.value)));
  element("drag").addEventListener("change", (event) => { viewer.opts.dragModePrimary = Number(event.target.value); });
  const zoom = () => {
    const [x, y, z] = viewer.scene.pan2Dxyzmm;
    viewer.setPan2Dxyzmm([x, y, z, Number(element("zoom").value)]);
  };
  element("zoom").addEventListener("input", zoom);
  element("reset").addEventListener("click", () => {
    element("zoom").value = 1;
    viewer.setPan2Dxyzmm([0, 0, 0, 1]);
    viewer.scene.crosshairPos = viewer.mm2frac(args.start);
    viewer.drawScene();
    viewer.createOnLocationChange();
  });
  // Voxels along the patient's right, front and head; the patient's right lies on the left of the picture.
  const STEPS = { ArrowLeft: [1, 0, 0], ArrowRight: [-1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
                  PageUp: [0, 0, 1], PageDown: [0, 0, -1] };
  element("canvas").addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step || !viewer.volumes.length) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    viewer.moveCrosshairInVox(...step);
  }, true);
  // A short tap moves the cross-hair as a click does; NiiVue itself waits for a longer touch.
  let tap = null;
  const canvas = element("canvas");
  canvas.addEventListener("touchstart", (event) => {
    const [touch, box] = [event.touches[0], canvas.getBoundingClientRect()];
    tap = event.touches.length === 1 ? [touch.clientX - box.left, touch.clientY - box.top] : null;
  }, { passive: true });
  canvas.addEventListener("touchmove", () => { tap = null; }, { passive: true });
  canvas.addEventListener("touchend", () => {
    if (tap === null || !viewer || !viewer.volumes.length) return;
    viewer.mouseDown(...tap);
    viewer.mouseClick(...tap);
    tap = null;
  });
  const swatch = (name, label) => {
    const mark = document.createElement("i");
    const colour = `rgb(${args.colours[name].join(",")})`;
    mark.style.background = name === "paraseptal" ? `repeating-linear-gradient(135deg, ${colour} 0 3px, #000 3px 5px)` : colour;
    const entry = document.createElement("span");
    entry.append(mark, label);
    element("legend").append(entry);
  };
  if (args.volumes[0].contour) swatch("contour", "lung contour");
  const from = document.createElement("span");
  from.append("activation from ", Object.assign(document.createElement("span"), { className: "threshold" }), ":");
  element("legend").append(from);
  for (const name of MAPS) swatch(name, name);
  const writeThreshold = () => {
    const text = Number(element("threshold").value).toFixed(2);
    for (const place of document.querySelectorAll("span.threshold")) place.textContent = text;
  };
  writeThreshold();
  element("threshold").addEventListener("input", writeThreshold);
  element("contour").disabled = !args.volumes[0].contour;
}

window.addEventListener("message", (event) => {
  if (event.data.type !== "streamlit:render") return;
  document.body.style.color = (event.data.theme || {}).textColor || "#000";
  const starting = args === null;
  args = event.data.args;
  if (starting) {
    setUp();
    const fit = () => tellStreamlit("setFrameHeight", { height: element("all").scrollHeight });
    new ResizeObserver(fit).observe(element("all"));
  }
  element("name").textContent = args.title;
  const asked = JSON.stringify(args.volumes);
  if (asked === wanted) return;
  wanted = asked;
  element("stage").style.visibility = "hidden"; // no scan under the name of another
  element("readout").textContent = "Loading";
  delete document.body.dataset.level;
  const first = downloaded(args.volumes[0]); // it comes while NiiVue starts
  first.catch(() => {}); // `load` reports it
  work = work.then(() => load(asked, first));
});
tellStreamlit("componentReady", { apiVersion: 1 });
