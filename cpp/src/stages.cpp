#include "stages.hpp"

#include <algorithm>
#include <array>
#include <map>
#include <numeric>

#include "error.hpp"

namespace ev {

namespace {

/// The graphs of the experts, by the number that a schedule's table has.
constexpr std::array<const char*, 2> kTransformers = {"transformer", "transformer_2"};

/// The caches that a VAE graph gave, under the names by which the next call takes them.
void add_caches(const NamedTensors& outputs, NamedTensors& inputs) {
  const std::string prefix = "next_";
  for (const auto& [name, tensor] : outputs) {
    if (name.rfind("next_cache_", 0) == 0) inputs.emplace_back(name.substr(prefix.size()), tensor);
  }
}

NamedTensors cache_outputs(const GraphSpec& graph) {
  NamedTensors outputs;
  for (const TensorSpec& tensor : graph.outputs) {
    if (tensor.name.rfind("next_cache_", 0) == 0) outputs.emplace_back(tensor.name, Tensor{tensor.dtype, {}});
  }
  return outputs;
}

template <typename T>
Tensor scalar(const std::string& dtype, T value) {
  return make_tensor(dtype, {}, std::vector<T>{value});
}

template <typename T>
std::vector<T> values_of(const Tensor& tensor) {
  return std::vector<T>(tensor.as<const T>(), tensor.as<const T>() + tensor.num_elements());
}

std::string show_shape(const std::vector<std::int64_t>& shape) {
  std::string text;
  for (const std::int64_t size : shape) text += join_text(text.empty() ? "" : ", ", size);
  return "[" + text + "]";
}

/// Refuses a result of another shape than was asked for: what follows counts on it where it slices and copies. Throws
/// EV_ERROR_BACKEND.
void require_shape(const std::string& graph, const NamedTensors::value_type& output,
                   const std::vector<std::int64_t>& shape) {
  const auto& [name, tensor] = output;
  if (tensor.shape == shape) return;
  throw Error(EV_ERROR_BACKEND, "backend.outputs")
      .found("graph \"", graph, "\" gave \"", name, "\" of shape ", show_shape(tensor.shape))
      .expected(show_shape(shape))
      .hint("export the bundle again");
}

/// The width of a text row, as the transformer takes it; a bundle without one was refused.
std::int64_t text_dim_of(const BundleSpec& spec) {
  const std::vector<TensorSpec>& inputs = spec.find_graph("transformer")->inputs;
  const auto text =
      std::find_if(inputs.begin(), inputs.end(), [](const auto& tensor) { return tensor.name == "text"; });
  return std::get<std::int64_t>(text->shape.back());
}

/// A matrix as the graph takes it: float32 [S, S + 1].
Tensor matrix_tensor(const Matrix& matrix) {
  const Tensor tensor = make_unset_tensor(
      "float32", {static_cast<std::int64_t>(matrix.size()), static_cast<std::int64_t>(matrix.front().size())});
  auto* value = tensor.as<float>();
  for (const std::vector<double>& row : matrix) {
    for (const double number : row) *value++ = static_cast<float>(number);
  }
  return tensor;
}

/// Whether an expert has run its last step and another one follows. experts: by step, see ScheduleTable.
bool makes_room(const std::vector<std::int64_t>& experts, std::size_t step) {
  const auto rest = experts.begin() + static_cast<std::ptrdiff_t>(step) + 1;
  return rest != experts.end() && std::find(rest, experts.end(), experts[step]) == experts.end();
}

/// What the transformer takes at every step alike, where it is taken without a copy.
NamedTensors hold_context(Runner& runner, const Branch& branch, const std::vector<Tensor>& texts, const Tensor& clean) {
  const Layout& layout = branch.layout;
  const auto length = static_cast<std::int64_t>(layout.layout.size());
  return {{"text", branch.text ? texts[*branch.text] : slice_rows(texts[0], 0, 0)},
          {"clean", clean},
          {"layout", runner.hold(make_tensor("int64", {length}, layout.layout))},
          {"positions", runner.hold(make_tensor("int64", {length, 4}, layout.positions))}};
}

/// expert: the number of the transformer, as a schedule's table has it.
Tensor evaluate(const Graphs& graphs, std::int64_t expert, NamedTensors inputs, const Tensor& noisy, double timestep) {
  inputs.emplace_back("noisy", noisy);
  inputs.emplace_back("timestep", scalar("float32", static_cast<float>(timestep)));
  NamedTensors outputs = {{"velocity", Tensor{"float32", {}}}};
  const char* const transformer = kTransformers.at(static_cast<std::size_t>(expert));
  graphs.run(transformer, inputs, outputs);
  require_shape(transformer, outputs[0], noisy.shape);
  return outputs[0].second;
}

/// Puts the known rows of a sample where the path to them is at a time. is_last: the decoder takes it by parts, so it
/// goes into the host's memory.
Tensor keep_known(const Graphs& graphs, const std::optional<Known>& known, const Tensor& sample, double time,
                  bool is_last) {
  if (!known) return sample;
  NamedTensors outputs = {{"sample_next", Tensor{"float32", {}}}};
  if (is_last) outputs[0].second = make_unset_tensor("float32", sample.shape);
  graphs.run("keep_known",
             {{"sample", sample},
              {"known", known->patches},
              {"noise", known->noise},
              {"rows", known->rows},
              {"time", scalar("float32", static_cast<float>(time))}},
             outputs);
  require_shape("keep_known", outputs[0], sample.shape);
  return outputs[0].second;
}

}  // namespace

void Graphs::run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) const {
  check_cancelled_();
  try {
    runner_.run(graph, inputs, outputs);
  } catch (const Error&) {
    check_cancelled_();  // a graph that was stopped is no failure of the backend
    throw;
  }
}

ScheduleTable make_table(const Graphs& graphs, const Schedule& schedule, std::int64_t num_inference_steps,
                         std::int64_t first_step) {
  std::map<std::string, double> numbers(schedule.options.begin(), schedule.options.end());
  for (const char* name : {"guidance_scale", "guidance_scale_2"}) numbers.emplace(name, schedule.guidance_scale);
  NamedTensors inputs = {{"num_steps", scalar("int64", num_inference_steps)},
                         {"first_step", scalar("int64", first_step)}};
  for (const auto& [name, value] : numbers) inputs.emplace_back(name, scalar("float64", value));
  NamedTensors outputs = {{"times", Tensor{"float64", {}}},
                          {"timesteps", Tensor{"float64", {}}},
                          {"guidance", Tensor{"float64", {}}},
                          {"experts", Tensor{"int64", {}}},
                          {"matrices", Tensor{"float64", {}}}};
  graphs.run(schedule.graph, inputs, outputs);
  graphs.give_back(schedule.graph);
  const std::int64_t rows = num_inference_steps - first_step;
  const auto states = static_cast<std::int64_t>(schedule.table.matrices.front().size());
  for (const auto& column : outputs) {
    require_shape(schedule.graph, column,
                  column.first == "matrices" ? std::vector<std::int64_t>{rows, states, states + 1}
                                             : std::vector<std::int64_t>{rows});
  }
  ScheduleTable table{values_of<double>(outputs[0].second),
                      values_of<double>(outputs[1].second),
                      values_of<double>(outputs[2].second),
                      {},
                      values_of<std::int64_t>(outputs[3].second)};
  const auto* value = outputs[4].second.as<const double>();
  for (std::int64_t i = 0; i < rows; ++i) {
    Matrix matrix;
    for (std::int64_t row = 0; row < states; ++row, value += states + 1) matrix.emplace_back(value, value + states + 1);
    table.matrices.push_back(std::move(matrix));
  }
  for (const std::int64_t expert : table.experts) {
    if (expert == 0 || (expert == 1 && graphs.spec().find_graph(kTransformers[1]) != nullptr)) continue;
    throw Error(EV_ERROR_BACKEND, "backend.outputs")
        .found("graph \"", schedule.graph, "\" gave a step of the transformer ", expert)
        .expected("the number of one that the bundle has, from 0 on")
        .hint("export the bundle again");
  }
  return table;
}

std::vector<Tensor> encode_texts(const Graphs& graphs, const std::vector<std::vector<std::int64_t>>& texts) {
  std::vector<Tensor> encoded;
  for (const std::vector<std::int64_t>& ids : texts) {
    NamedTensors outputs = {{"text", Tensor{"float32", {}}}};
    graphs.run("text_encoder", {{"ids", make_tensor("int64", {static_cast<std::int64_t>(ids.size())}, ids)}}, outputs);
    require_shape("text_encoder", outputs[0], {static_cast<std::int64_t>(ids.size()), text_dim_of(graphs.spec())});
    encoded.push_back(outputs[0].second);
  }
  graphs.give_back("text_encoder");
  return encoded;
}

Tensor encode_clips(const Graphs& graphs, const std::vector<Tensor>& clips, const std::vector<Tensor>& keeps) {
  const Geometry& geometry = graphs.spec().geometry;
  const std::int64_t ratio = geometry.temporal_ratio, multiple = geometry.size_multiple();
  const auto rows_of = [&](const Tensor& frames) { return frames.shape[1] / multiple * (frames.shape[2] / multiple); };
  std::int64_t num_rows = 0;
  for (const Tensor& frames : clips) num_rows += geometry.count_latent_frames(frames.shape[0]) * rows_of(frames);
  const Tensor encoded = make_unset_tensor("float32", {num_rows, geometry.patch_dim});
  std::int64_t row = 0;
  for (std::size_t clip = 0; clip < clips.size(); ++clip) {
    const Tensor& frames = clips[clip];
    const std::int64_t rows = rows_of(frames);
    const std::vector<std::int64_t> shape = {1, frames.shape[1] / multiple, frames.shape[2] / multiple,
                                             geometry.patch_dim};
    NamedTensors outputs;
    for (std::int64_t i = 0; i < geometry.count_latent_frames(frames.shape[0]); ++i) {
      const std::string graph = i == 0 ? "vae_encoder_first" : "vae_encoder_next";
      const auto chunk = [&](const Tensor& whole) {
        return i == 0 ? slice_rows(whole, 0, 1) : slice_rows(whole, 1 + (i - 1) * ratio, ratio);
      };
      NamedTensors inputs = {{"frames", chunk(frames)}};
      if (!keeps.empty()) inputs.emplace_back("keep", chunk(keeps[clip]));
      add_caches(outputs, inputs);
      outputs = cache_outputs(*graphs.spec().find_graph(graph));
      outputs.emplace_back("patches", reshape(slice_rows(encoded, row, rows), shape));
      graphs.run(graph, inputs, outputs);
      row += rows;
      if (i == 0 && clip + 1 == clips.size()) graphs.give_back(graph);
    }
  }
  graphs.give_back("vae_encoder_next");
  return encoded;
}

Tensor draw_noise(const Graphs& graphs, const LaidOutRequest& laid_out) {
  const std::vector<std::int64_t> shape = {laid_out.target.num_patches(), graphs.spec().geometry.patch_dim};
  NamedTensors outputs = {{"noise", Tensor{"float32", {}}}};
  graphs.run("noise", {{"seed", scalar("int64", laid_out.seed)}, {"shape", make_tensor("int64", {2}, shape)}}, outputs);
  graphs.give_back("noise");
  require_shape("noise", outputs[0], shape);
  return outputs[0].second;
}

Tensor begin_with(const Graphs& graphs, const LaidOutRequest& laid_out, const Tensor& source, const Tensor& noise) {
  NamedTensors outputs = {{"noisy", Tensor{"float32", {}}}};
  graphs.run("add_noise",
             {{"sample", encode_clips(graphs, {source})},
              {"noise", noise},
              {"time", scalar("float64", laid_out.schedule.table.times.front())}},
             outputs);
  graphs.give_back("add_noise");
  require_shape("add_noise", outputs[0], noise.shape);
  return outputs[0].second;
}

Known known_rows(const LaidOutRequest& laid_out, const Tensor& patches, const Tensor& noise) {
  const std::int64_t first = laid_out.num_dropped * laid_out.target.rows * laid_out.target.columns;
  std::vector<std::int64_t> rows(static_cast<std::size_t>(patches.shape[0]));
  std::iota(rows.begin(), rows.end(), first);
  return {patches, make_tensor("int64", {patches.shape[0]}, rows), noise};
}

Tensor solve(const Graphs& graphs, const LaidOutRequest& laid_out, const std::vector<Tensor>& texts,
             const Tensor& clean, const Tensor& start, const std::optional<Known>& known,
             const std::function<void(std::int64_t, double)>& on_step_end) {
  const ScheduleTable& table = laid_out.schedule.table;
  Runner& runner = graphs.runner();
  const Tensor held = runner.hold(clean);
  const NamedTensors cond_context = hold_context(runner, laid_out.cond, texts, held);
  const NamedTensors uncond_context = hold_context(runner, laid_out.uncond, texts, held);
  const auto states = static_cast<std::int64_t>(table.matrices.front().size());
  Tensor sample = runner.hold(start);
  Tensor history = runner.hold(make_tensor("float32", {states - 1, start.shape[0], start.shape[1]}));
  std::optional<Known> fixed = known;
  if (fixed) fixed = Known{runner.hold(known->patches), runner.hold(known->rows), runner.hold(known->noise)};
  for (std::size_t step = 0; step < table.timesteps.size(); ++step) {
    const double timestep = table.timesteps[step], guidance = table.guidance[step];
    sample = keep_known(graphs, fixed, sample, table.times[step], false);
    const Tensor cond = evaluate(graphs, table.experts[step], cond_context, sample, timestep);
    const Tensor uncond =
        guidance == 1 ? cond : evaluate(graphs, table.experts[step], uncond_context, sample, timestep);
    NamedTensors outputs = {{"sample_next", Tensor{"float32", {}}}, {"history_next", Tensor{"float32", {}}}};
    // The last sample goes to the decoder by parts, so into the host's memory.
    if (step + 1 == table.timesteps.size() && !fixed) outputs[0].second = make_unset_tensor("float32", sample.shape);
    graphs.run("solver_step",
               {{"sample", sample},
                {"history", history},
                {"velocity_cond", cond},
                {"velocity_uncond", uncond},
                {"guidance", scalar("float32", static_cast<float>(guidance))},
                {"matrix", matrix_tensor(table.matrices[step])}},
               outputs);
    require_shape("solver_step", outputs[0], sample.shape);
    require_shape("solver_step", outputs[1], history.shape);
    sample = outputs[0].second;
    history = outputs[1].second;
    runner.wait();  // a step counts as done, and can be cancelled after, when it is computed
    const auto expert = static_cast<std::size_t>(table.experts[step]);
    if (makes_room(table.experts, step)) graphs.give_back(kTransformers.at(expert));
    on_step_end(static_cast<std::int64_t>(step), timestep);
  }
  for (const char* const transformer : kTransformers) graphs.give_back(transformer);
  graphs.give_back("solver_step");
  sample = keep_known(graphs, fixed, sample, 1.0, true);
  if (fixed) graphs.give_back("keep_known");
  return sample;
}

Tensor assemble_patches(const LaidOutRequest& laid_out, const Tensor& clean, const Tensor& patches) {
  const std::int64_t a_frame = laid_out.target.rows * laid_out.target.columns;
  const std::int64_t dropped = laid_out.num_dropped * a_frame, kept = laid_out.num_kept * a_frame;
  Tensor solved = slice_rows(patches, dropped, patches.shape[0] - dropped);
  if (kept == 0) return solved;
  const Tensor whole = make_unset_tensor("float32", {kept + solved.shape[0], patches.shape[1]});
  const auto bytes_of = [](const Tensor& rows) {
    return static_cast<std::size_t>(rows.num_elements()) * sizeof(float);
  };
  const Tensor first = slice_rows(clean, 0, kept);
  std::memcpy(whole.data, first.data, bytes_of(first));
  std::memcpy(slice_rows(whole, kept, solved.shape[0]).data, solved.data, bytes_of(solved));
  return whole;
}

Tensor decode_patches(const Graphs& graphs, const LaidOutRequest& laid_out, const Tensor& patches) {
  const Geometry& geometry = graphs.spec().geometry;
  const Grid grid{geometry.count_latent_frames(laid_out.num_frames), laid_out.target.rows, laid_out.target.columns};
  const std::int64_t rows = grid.rows * grid.columns, ratio = geometry.temporal_ratio;
  Tensor frames = make_unset_tensor("uint8", {laid_out.num_frames, laid_out.size.first, laid_out.size.second, 3});
  NamedTensors outputs;
  for (std::int64_t i = 0; i < grid.frames; ++i) {
    const std::string graph = i == 0 ? "vae_decoder_first" : "vae_decoder_next";
    NamedTensors inputs = {
        {"patches", reshape(slice_rows(patches, i * rows, rows), {1, grid.rows, grid.columns, geometry.patch_dim})}};
    add_caches(outputs, inputs);
    outputs = cache_outputs(*graphs.spec().find_graph(graph));
    outputs.emplace_back("frames", i == 0 ? slice_rows(frames, 0, 1) : slice_rows(frames, 1 + (i - 1) * ratio, ratio));
    graphs.run(graph, inputs, outputs);
    if (i == 0) graphs.give_back(graph);
  }
  outputs.clear();  // the last caches, which would keep what they lie in
  graphs.give_back("vae_decoder_next");
  return frames;
}

}  // namespace ev
