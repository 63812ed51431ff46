#include "pipeline.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "error.hpp"
#include "fields.hpp"

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

namespace ev {

namespace {

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

/// Tensors one after the other along their first axis; each is given back once it is copied.
Tensor join_rows(std::vector<Tensor> parts) {
  if (parts.size() == 1) return parts.front();
  std::int64_t count = 0;
  for (const Tensor& part : parts) count += part.shape[0];
  std::vector<std::int64_t> shape = parts.front().shape;
  shape[0] = count;
  Tensor whole = make_unset_tensor(parts.front().dtype, shape);
  std::int64_t begin = 0;
  for (Tensor& part : parts) {
    const std::size_t num_bytes = static_cast<std::size_t>(part.num_elements()) * dtype_bytes(part.dtype);
    std::memcpy(slice_rows(whole, begin, part.shape[0]).data, part.data, num_bytes);
    begin += part.shape[0];
    part = Tensor{};
  }
  return whole;
}

/// The memory of this machine in bytes; none on systems that do not say it.
std::optional<double> memory_bytes() {
#ifdef _SC_PHYS_PAGES
  const auto pages = sysconf(_SC_PHYS_PAGES), page_bytes = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page_bytes > 0) return static_cast<double>(pages) * static_cast<double>(page_bytes);
#endif
  return std::nullopt;
}

/// Refuses a request of several windows whose frames would not fit this machine's memory. Windows and what they are
/// joined to are there at the same time. Throws EV_ERROR_REQUEST.
void check_fits_memory(const ExaminedInputs& inputs) {
  const std::optional<std::int64_t> num_frames = expect_num_frames(inputs);
  const std::optional<double> memory = memory_bytes();
  if (!num_frames || !memory || expect_num_windows(inputs) == 1) return;
  const auto [height, width] = inputs.size;
  const double needed = 2 * 3 * static_cast<double>(*num_frames * height * width);
  if (needed <= *memory) return;
  const auto in_gb = [](double num_bytes) { return std::round(num_bytes / 1e8) / 10; };
  throw Error(EV_ERROR_REQUEST, "request.too_large", "length")
      .found("a result of ", *num_frames, " frames, which takes ", in_gb(needed), " GB of memory")
      .expected("at most the ", in_gb(*memory), " GB of this machine")
      .hint("take the windows by window_callback, or set num_frames");
}

}  // namespace

/// The right to run, waited for; refused to a thread that has it already, which would wait for itself.
class Pipeline::Turn {
 public:
  explicit Turn(Pipeline& pipeline) : pipeline_(pipeline) {
    if (pipeline.runs_in_this_thread()) {
      throw Error(EV_ERROR_ARGUMENT)
          .found("the pipeline was called from its own callback")
          .hint("let the callback return first");
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

Pipeline::Pipeline(const std::string& folder, const BackendOptions& options, bool release_graphs)
    : release_graphs_(release_graphs),
      bundle_(load_bundle(folder)),
      family_(family_of(bundle_.spec.family)),
      tokenizer_(bundle_.tokenizer_path().string(), bundle_.spec.tokenizer.eos_id, bundle_.spec.tokenizer.max_tokens),
      selection_((wait_for_calls_at_exit(), select_backend(options, bundle_))),
      info_(describe_pipeline(bundle_, selection_)) {
  wait_for_calls_at_exit();
}

DescribedRequest Pipeline::describe(const Request& request) {
  const Turn turn(*this);
  const CheckedRequest checked = check(request, graphs());
  LaidOutRequest laid_out = family_.lay_out(bundle_.spec, checked, expect_footage(checked.inputs));
  const std::int64_t num_frames =
      checked.inputs.total_frames ? expect_num_frames(checked.inputs).value_or(0) : laid_out.num_frames;
  return {std::move(laid_out), checked.num_tokens(), num_frames, expect_num_windows(checked.inputs)};
}

Result Pipeline::run(const Request& request, const StepCallback& on_step, const WindowCallback& on_window) {
  const Turn turn(*this);
  const Graphs runs = graphs();
  const CheckedRequest checked = check(request, runs);
  if (!on_window) check_fits_memory(checked.inputs);
  const std::int64_t steps = checked.schedule.num_inference_steps();
  const std::int64_t num_windows = expect_num_windows(checked.inputs).value_or(0);
  const std::unique_ptr<Windows> windows = read_windows(checked.inputs, [this] { check_cancelled(); });
  const std::int64_t num_shared = std::max<std::int64_t>(1, bundle_.spec.geometry.shared_frames);
  std::optional<std::vector<Tensor>> texts;
  std::vector<Tensor> parts;
  Tensor before;
  while (std::optional<Window> window = windows->next()) {
    const std::int64_t index = window->index, shared = window->num_shared;
    const auto on_step_end = [&](std::int64_t step, double timestep) {
      if (!on_step || on_step({step, steps, timestep, index, num_windows})) return;
      check_open();
      throw Error(EV_ERROR_CANCELLED)
          .found("stopped by its callback after step ", step + 1, " of ", steps)
          .hint("the pipeline can be used again");
    };
    if (!texts) texts = encode_texts(runs, family_.texts(checked));
    if (shared == 0) before = Tensor{};
    const Tensor frames =
        slice_rows(edit(runs, checked, std::move(window->footage), *texts, before, on_step_end), 0, window->num_frames);
    const std::int64_t num_last = std::min(num_shared, window->num_frames);
    before = slice_rows(frames, window->num_frames - num_last, num_last);
    const Tensor added = slice_rows(frames, shared, window->num_frames - shared);
    if (!on_window) {
      parts.push_back(added);
    } else if (!on_window({index, num_windows, window->begin + shared, added})) {
      check_open();
      throw Error(EV_ERROR_CANCELLED)
          .found("stopped by its callback after window ", index + 1)
          .hint("the pipeline can be used again");
    }
  }
  const WholeFootage& whole = windows->whole();
  Tensor frames{"uint8", {whole.num_frames, checked.inputs.size.first, checked.inputs.size.second, 3}};
  if (!on_window) frames = join_rows(std::move(parts));
  wait_for_calls_at_exit();  // what the libraries made of themselves at their first use is destroyed later
  return {std::move(frames), whole.fps, whole.notices, whole.times_s};
}

Tensor Pipeline::edit(const Graphs& graphs, const CheckedRequest& checked, Footage footage,
                      const std::vector<Tensor>& texts, const Tensor& before,
                      const std::function<void(std::int64_t, double)>& on_step_end) const {
  std::optional<Tensor> begins_with;
  if (before.data != nullptr) begins_with = family_.go_on(bundle_.spec, checked, footage, before);
  const LaidOutRequest laid_out = family_.lay_out(bundle_.spec, checked, footage);
  const Tensor clean = family_.encode_clean(graphs, checked, footage);
  const Tensor noise = draw_noise(graphs, laid_out);
  Tensor sample = noise;
  if (laid_out.start) sample = begin_with(graphs, laid_out, footage.clips.at(*laid_out.start), noise);
  std::optional<Known> known;
  if (begins_with) known = known_rows(laid_out, family_.encode_known(graphs, *begins_with), noise);
  footage.clips.clear();
  return decode_patches(
      graphs, laid_out,
      assemble_patches(laid_out, clean, solve(graphs, laid_out, texts, clean, sample, known, on_step_end)));
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

void Pipeline::check_open() const {
  check_process_ending();
  if (closed_) throw Error(EV_ERROR_CANCELLED).found("stopped by ev_close").hint("open the bundle again");
}

void Pipeline::check_cancelled() const {
  check_open();
  if (!cancelled_) return;
  throw Error(EV_ERROR_CANCELLED).found("cancelled by its caller").hint("the pipeline can be used again");
}

Graphs Pipeline::graphs() {
  return {bundle_.spec, *selection_.runner, [this] { check_cancelled(); }, release_graphs_};
}

CheckedRequest Pipeline::check(const Request& request, const Graphs& graphs) const {
  const auto make = [&](const Schedule& schedule, std::int64_t num_steps, std::int64_t first_step) {
    return make_table(graphs, schedule, num_steps, first_step);
  };
  return check_request(bundle_.spec, tokenizer_, request, make);
}

}  // namespace ev
