#include "pipeline.hpp"

#include "error.hpp"
#include "fields.hpp"

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
  return {family_.lay_out(bundle_.spec, checked, expect_footage(checked.inputs)), checked.num_tokens()};
}

Result Pipeline::run(const Request& request, const StepCallback& callback) {
  const Turn turn(*this);
  const Graphs runs = graphs();
  const CheckedRequest checked = check(request, runs);
  Footage footage = read_inputs(checked.inputs, [this] { check_cancelled(); });
  const LaidOutRequest laid_out = family_.lay_out(bundle_.spec, checked, footage);
  const std::int64_t steps = laid_out.schedule.num_inference_steps();
  const auto on_step_end = [&](std::int64_t step, double timestep) {
    if (!callback || callback(step, steps, timestep)) return;
    check_open();
    throw Error(EV_ERROR_CANCELLED)
        .found("stopped by its callback after step ", step + 1, " of ", steps)
        .hint("the pipeline can be used again");
  };

  const std::vector<Tensor> texts = encode_texts(runs, family_.texts(checked));
  const Tensor clean = family_.encode_clean(runs, checked, footage);
  Tensor sample = draw_noise(runs, laid_out);
  if (laid_out.start) sample = begin_with(runs, laid_out, footage.clips.at(*laid_out.start), sample);
  footage.clips.clear();
  const Tensor patches = assemble_patches(laid_out, clean, solve(runs, laid_out, texts, clean, sample, on_step_end));
  Result result{decode_patches(runs, laid_out, patches), laid_out.fps, std::move(footage.notices),
                std::move(footage.times_s)};
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
