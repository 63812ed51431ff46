#include "pipeline.hpp"

#include <algorithm>
#include <cmath>

#include "error.hpp"
#include "fields.hpp"

namespace ev {

namespace {

/// The caches that a VAE graph gave, under the names by which the next call takes them.
void add_caches(const NamedTensors& outputs, NamedTensors& inputs) {
  const std::string prefix = "next_";
  for (const auto& [name, tensor] : outputs) {
    if (name.rfind("next_cache_", 0) == 0) inputs.emplace_back(name.substr(prefix.size()), tensor);
  }
}

void check_numbers(const Request& request) {
  const std::optional<double>& fps = request.wanted.fps;
  if (request.seed < 0) {
    fail(EV_ERROR_REQUEST, "seed is ", request.seed, "; give a whole number from 0 to ", INT64_MAX);
  }
  if (fps && !(*fps > 0 && std::isfinite(*fps))) {
    fail(EV_ERROR_REQUEST, "fps is ", *fps, "; give a number above 0");
  }
  if (!(request.wanted.start_s >= 0 && std::isfinite(request.wanted.start_s))) {
    fail(EV_ERROR_REQUEST, "start_s is ", request.wanted.start_s, "; give seconds of 0 or more");
  }
}

std::string describe_pipeline(const Bundle& bundle, const Selection& selection) {
  Json info;
  info["bundle"] = bundle.spec.name;
  info["path"] = bundle.root.string();
  info["format_version"] = bundle.spec.format_version;
  info["backend"] = selection.chosen.name;
  info["backend_version"] = selection.chosen.version;
  info["passed_over"] = Json::object();
  for (const Availability& state : selection.passed_over) info["passed_over"][state.name] = *state.reason;
  return info.dump(-1, ' ', true, Json::error_handler_t::replace);
}

}  // namespace

/// The right to run, waited for; refused to a thread that has it already, which would wait for itself.
class Pipeline::Turn {
 public:
  explicit Turn(Pipeline& pipeline) : pipeline_(pipeline) {
    if (pipeline.runs_in_this_thread()) {
      fail(EV_ERROR_ARGUMENT, "the pipeline was called from its own callback; let the callback return first");
    }
    lock_ = std::unique_lock(pipeline.turn_);
    const std::lock_guard state(pipeline.state_);
    pipeline.check_open();
    pipeline.holder_ = std::this_thread::get_id();
    pipeline.running_ = true;
    pipeline.cancelled_ = false;
    pipeline.selection_.runner->allow_runs();
  }

  ~Turn() {
    {
      const std::lock_guard state(pipeline_.state_);
      pipeline_.running_ = false;
    }
    pipeline_.holder_ = std::thread::id();
  }

  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  Pipeline& pipeline_;
  std::unique_lock<std::mutex> lock_;
};

/// What is known of a request before its inputs are decoded.
struct Pipeline::Prepared {
  Schedule schedule;
  std::vector<Segment> segments;
  std::vector<std::vector<std::int64_t>> ids;
  Inputs inputs;
};

Pipeline::Pipeline(const std::string& folder, const BackendOptions& options, bool release_graphs)
    : release_graphs_(release_graphs),
      bundle_(load_bundle(folder)),
      tokenizer_(bundle_.tokenizer_path().string(), bundle_.spec.tokenizer.eos_id, bundle_.spec.tokenizer.max_tokens),
      selection_((wait_for_calls_at_exit(), select_backend(options, bundle_))),
      info_(describe_pipeline(bundle_, selection_)) {
  wait_for_calls_at_exit();
}

Plan Pipeline::plan(const Request& request) {
  const Turn turn(*this);
  Prepared prepared = prepare(request);
  const auto shapes = prepared.inputs.shapes();
  return lay_out_request(prepared, shapes);
}

Result Pipeline::run(const Request& request) {
  const Turn turn(*this);
  Result result;
  Prepared prepared = prepare(request);
  std::map<std::string, Tensor> clips = prepared.inputs.read(result.notices, [this] { check_cancelled(); });
  std::map<std::string, std::vector<std::int64_t>> shapes;
  for (const auto& [name, frames] : clips) shapes[name] = frames.shape;
  const Plan plan = lay_out_request(prepared, shapes);

  const Tensor text = encode_text(plan);
  const Tensor clean = encode_clips(plan, clips);
  clips.clear();
  const Tensor noise = draw_noise(plan, request.seed);
  const Tensor patches = solve(plan, text, clean, noise, request.callback);
  result.frames = decode_patches(plan, patches);
  result.fps = plan.fps;
  wait_for_calls_at_exit();  // what the libraries made of themselves at their first use is destroyed later
  return result;
}

void Pipeline::cancel() {
  const std::lock_guard state(state_);
  if (!running_) return;
  cancelled_ = true;
  selection_.runner->stop_runs();
}

void Pipeline::refuse_requests() {
  closed_ = true;
  cancel();
}

Pipeline::Prepared Pipeline::prepare(const Request& request) {
  check_numbers(request);
  const BundleSpec& spec = bundle_.spec;
  const std::string name = request.schedule.value_or(spec.default_schedule);
  const Schedule* schedule = spec.find_schedule(name);
  if (schedule == nullptr) {
    std::string known;
    for (const Schedule& other : spec.schedules) known += (known.empty() ? "" : ", ") + other.name;
    fail(EV_ERROR_REQUEST, "schedule is \"", name, "\"; this bundle has ", known);
  }
  Schedule chosen = request.num_inference_steps ? schedule->with_steps(*request.num_inference_steps) : *schedule;
  if (request.guidance_scale) chosen = chosen.with_guidance(*request.guidance_scale);
  std::vector<std::string> names, words;
  for (const Source& source : request.sources) {
    if (std::find(names.begin(), names.end(), source.name) != names.end()) {
      fail(EV_ERROR_REQUEST, source.name, " is given twice; number the inputs video1, video2, image1 ...");
    }
    names.push_back(source.name);
  }
  std::vector<Segment> segments = parse_prompt(request.prompt, names);
  for (const Segment& segment : segments) {
    if (const auto* text = std::get_if<TextSegment>(&segment)) words.push_back(text->text);
  }
  std::vector<std::vector<std::int64_t>> ids = tokenizer_.encode_segments(words);
  return {std::move(chosen), std::move(segments), std::move(ids),
          Inputs(request.sources, spec.geometry, request.wanted)};
}

Plan Pipeline::lay_out_request(Prepared& prepared,
                               const std::map<std::string, std::vector<std::int64_t>>& shapes) const {
  Plan plan;
  std::vector<std::variant<std::int64_t, Grid>> items;
  auto counts = prepared.ids.begin();
  for (const Segment& segment : prepared.segments) {
    if (const auto* vision = std::get_if<VisionSegment>(&segment)) {
      items.emplace_back(grid(shapes.at(vision->name)));
    } else {
      items.emplace_back(static_cast<std::int64_t>((counts++)->size()));
    }
  }
  items.emplace_back(static_cast<std::int64_t>(counts->size()));
  for (const auto& ids : prepared.ids) plan.ids.insert(plan.ids.end(), ids.begin(), ids.end());
  plan.segments = std::move(prepared.segments);
  plan.sources = shapes;
  plan.num_frames = prepared.inputs.num_frames();
  plan.size = prepared.inputs.size();
  plan.fps = prepared.inputs.fps();
  plan.schedule = std::move(prepared.schedule);
  plan.target = grid({plan.num_frames, plan.size.first, plan.size.second, 3});
  plan.layout = lay_out(items, plan.target, true);
  plan.layout_uncond = lay_out(items, plan.target, false);
  return plan;
}

Grid Pipeline::grid(const std::vector<std::int64_t>& shape) const {
  const Geometry& geometry = bundle_.spec.geometry;
  return {geometry.count_latent_frames(shape[0]), shape[1] / geometry.size_multiple(),
          shape[2] / geometry.size_multiple()};
}

void Pipeline::run_graph(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) {
  check_cancelled();
  try {
    selection_.runner->run(graph, inputs, outputs);
  } catch (const Error&) {
    check_cancelled();  // a graph that was stopped is no failure of the backend
    throw;
  }
}

void Pipeline::release(const std::string& graph) {
  if (release_graphs_) selection_.runner->release(graph);
}

void Pipeline::check_open() const {
  check_process_ending();
  if (closed_) fail(EV_ERROR_CANCELLED, "stopped by ev_close; open the bundle again");
}

void Pipeline::check_cancelled() const {
  check_open();
  if (cancelled_) fail(EV_ERROR_CANCELLED, "stopped by ev_cancel; the pipeline can be used again");
}

Tensor Pipeline::encode_text(const Plan& plan) {
  const auto count = static_cast<std::int64_t>(plan.ids.size());
  NamedTensors outputs = {{"text", Tensor{"float32", {}}}};
  run_graph("text_encoder", {{"ids", make_tensor("int64", {count}, plan.ids)}}, outputs);
  release("text_encoder");
  return outputs[0].second;
}

NamedTensors Pipeline::cache_outputs(const std::string& graph) const {
  NamedTensors outputs;
  for (const TensorSpec& tensor : bundle_.spec.find_graph(graph)->outputs) {
    if (tensor.name.rfind("next_cache_", 0) == 0) outputs.emplace_back(tensor.name, Tensor{tensor.dtype, {}});
  }
  return outputs;
}

/// Clean patches float32 [rows of all vision segments, P], in the order of the sequence.
Tensor Pipeline::encode_clips(const Plan& plan, const std::map<std::string, Tensor>& clips) {
  const Geometry& geometry = bundle_.spec.geometry;
  const Tensor clean = make_unset_tensor("float32", {plan.layout.num_clean, geometry.patch_dim});
  auto num_clips_left = std::count_if(plan.segments.begin(), plan.segments.end(), [](const Segment& segment) {
    return std::holds_alternative<VisionSegment>(segment);
  });
  std::int64_t row = 0;
  for (const Segment& segment : plan.segments) {
    const auto* vision = std::get_if<VisionSegment>(&segment);
    if (vision == nullptr) continue;
    const Tensor& frames = clips.at(vision->name);
    const Grid size = grid(frames.shape);
    const std::int64_t rows = size.rows * size.columns;
    NamedTensors outputs;
    for (std::int64_t i = 0; i < size.frames; ++i) {
      const std::string graph = i == 0 ? "vae_encoder_first" : "vae_encoder_next";
      const std::int64_t ratio = geometry.temporal_ratio;
      NamedTensors inputs = {
          {"frames", i == 0 ? slice_rows(frames, 0, 1) : slice_rows(frames, 1 + (i - 1) * ratio, ratio)}};
      add_caches(outputs, inputs);
      outputs = cache_outputs(graph);
      const Tensor patches = slice_rows(clean, row, rows);
      outputs.emplace_back("patches", reshape(patches, {1, size.rows, size.columns, geometry.patch_dim}));
      run_graph(graph, inputs, outputs);
      row += rows;
      if (i == 0 && --num_clips_left == 0) release(graph);
    }
  }
  release("vae_encoder_next");
  return clean;
}

Tensor Pipeline::draw_noise(const Plan& plan, std::int64_t seed) {
  const std::vector<std::int64_t> shape = {plan.target.num_patches(), bundle_.spec.geometry.patch_dim};
  NamedTensors outputs = {{"noise", Tensor{"float32", {}}}};
  const std::vector<std::int64_t> seeds = {seed};
  run_graph("noise", {{"seed", make_tensor("int64", {}, seeds)}, {"shape", make_tensor("int64", {2}, shape)}}, outputs);
  release("noise");
  return outputs[0].second;
}

/// From noise to patches float32 [Lg, P], along the schedule (paper sections 3.3 and 5.1).
Tensor Pipeline::solve(const Plan& plan, const Tensor& text, const Tensor& clean, const Tensor& noise,
                       const StepCallback& callback) {
  const Schedule& schedule = plan.schedule;
  Runner& runner = *selection_.runner;
  const Tensor held = runner.hold(clean);
  const NamedTensors with_text = hold_context(plan.layout, text, held);
  const NamedTensors without_text = hold_context(plan.layout_uncond, slice_rows(text, 0, 0), held);
  Tensor sample = runner.hold(noise);
  Tensor previous = runner.hold(make_tensor("float32", sample.shape)), before = previous;
  for (std::size_t step = 0; step < schedule.timesteps.size(); ++step) {
    const double timestep = schedule.timesteps[step], guidance = schedule.guidance_scale[step];
    const Tensor cond = evaluate(with_text, sample, timestep);
    const Tensor uncond = guidance == 1 ? cond : evaluate(without_text, sample, timestep);
    std::vector<float> row;
    for (const double coefficient : schedule.coefficients[step]) row.push_back(static_cast<float>(coefficient));
    const std::vector<float> scale = {static_cast<float>(guidance)};
    NamedTensors outputs = {{"sample_next", Tensor{"float32", {}}}, {"velocity", Tensor{"float32", {}}}};
    // The last sample goes to the decoder by parts, so into the host's memory.
    if (step + 1 == schedule.timesteps.size()) outputs[0].second = make_unset_tensor("float32", sample.shape);
    run_graph("solver_step",
              {{"sample", sample},
               {"velocity_cond", cond},
               {"velocity_uncond", uncond},
               {"velocity_prev1", previous},
               {"velocity_prev2", before},
               {"guidance", make_tensor("float32", {}, scale)},
               {"coefficients", make_tensor("float32", {3}, row)}},
              outputs);
    before = previous;
    sample = outputs[0].second;
    previous = outputs[1].second;
    runner.wait();  // a step counts as done, and can be cancelled after, when it is computed
    const auto done = static_cast<std::int64_t>(step);
    if (callback && !callback(done, schedule.num_inference_steps(), timestep)) {
      check_open();
      fail(EV_ERROR_CANCELLED, "stopped by its callback after step ", step + 1, " of ", schedule.timesteps.size(),
           "; the pipeline can be used again");
    }
  }
  release("transformer");
  release("solver_step");
  return sample;
}

/// What the transformer takes at every step alike, where it is taken without a copy.
NamedTensors Pipeline::hold_context(const Layout& layout, const Tensor& text, const Tensor& clean) {
  const auto length = static_cast<std::int64_t>(layout.layout.size());
  Runner& runner = *selection_.runner;
  return {{"text", text},
          {"clean", clean},
          {"layout", runner.hold(make_tensor("int64", {length}, layout.layout))},
          {"positions", runner.hold(make_tensor("int64", {length, 4}, layout.positions))}};
}

Tensor Pipeline::evaluate(NamedTensors inputs, const Tensor& noisy, double timestep) {
  const std::vector<float> time = {static_cast<float>(timestep)};
  inputs.emplace_back("noisy", noisy);
  inputs.emplace_back("timestep", make_tensor("float32", {}, time));
  NamedTensors outputs = {{"velocity", Tensor{"float32", {}}}};
  run_graph("transformer", inputs, outputs);
  return outputs[0].second;
}

/// Frames uint8 [1 + r k, H, W, 3] of patches float32 [Lg, P], one latent frame a call.
Tensor Pipeline::decode_patches(const Plan& plan, const Tensor& patches) {
  const Geometry& geometry = bundle_.spec.geometry;
  const Grid& size = plan.target;
  const std::int64_t rows = size.rows * size.columns, ratio = geometry.temporal_ratio;
  Tensor frames = make_unset_tensor("uint8", {plan.num_frames, plan.size.first, plan.size.second, 3});
  NamedTensors outputs;
  for (std::int64_t i = 0; i < size.frames; ++i) {
    const std::string graph = i == 0 ? "vae_decoder_first" : "vae_decoder_next";
    NamedTensors inputs = {
        {"patches", reshape(slice_rows(patches, i * rows, rows), {1, size.rows, size.columns, geometry.patch_dim})}};
    add_caches(outputs, inputs);
    outputs = cache_outputs(graph);
    outputs.emplace_back("frames", i == 0 ? slice_rows(frames, 0, 1) : slice_rows(frames, 1 + (i - 1) * ratio, ratio));
    run_graph(graph, inputs, outputs);
    if (i == 0) release(graph);
  }
  outputs.clear();  // the last caches, which would keep what they lie in
  release("vae_decoder_next");
  return frames;
}

}  // namespace ev
