// The stages of a request that run graphs: encode, draw noise, solve, decode. They only move bytes. The twin of
// editverse_rt/stages.py.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "laid_out.hpp"
#include "runner.hpp"
#include "spec.hpp"

namespace ev {

/// A bundle's graphs as one request runs them: not after it was cancelled, and given back after their last run where
/// that is asked for. What is passed in must outlive it.
class Graphs {
 public:
  /// check_cancelled: throws EV_ERROR_CANCELLED once the request was stopped.
  Graphs(const BundleSpec& spec, Runner& runner, std::function<void()> check_cancelled, bool gives_back)
      : spec_(spec), runner_(runner), check_cancelled_(std::move(check_cancelled)), gives_back_(gives_back) {}

  /// Throws EV_ERROR_BACKEND, EV_ERROR_CANCELLED.
  void run(const std::string& graph, const NamedTensors& inputs, NamedTensors& outputs) const;

  /// After a graph's last run in a request.
  void give_back(const std::string& graph) const {
    if (gives_back_) runner_.release(graph);
  }

  const BundleSpec& spec() const { return spec_; }
  Runner& runner() const { return runner_; }

 private:
  const BundleSpec& spec_;
  Runner& runner_;
  std::function<void()> check_cancelled_;
  bool gives_back_;
};

/// The table of a schedule for another number of steps, by the bundle's graph for it (float64). first_step: of those
/// steps the first that is run, for a source that is noised. Throws EV_ERROR_BACKEND for a graph that gives a table of
/// another form.
ScheduleTable make_table(const Graphs& graphs, const Schedule& schedule, std::int64_t num_inference_steps,
                         std::int64_t first_step = 0);

/// Text rows float32 [Lt, Dt] of the token ids of each text, a call each.
std::vector<Tensor> encode_texts(const Graphs& graphs, const std::vector<std::vector<std::int64_t>>& texts);

/// Patches float32 [latent frames * rows * columns of all clips, P] of clips uint8 [1 + r k, H, W, 3], one after the
/// other. keeps: for an encoder that takes them, float32 [1 + r k, H, W] of each clip, 1 where its pixels count.
Tensor encode_clips(const Graphs& graphs, const std::vector<Tensor>& clips, const std::vector<Tensor>& keeps = {});

/// Noise float32 [Lg, P] of the request's seed.
Tensor draw_noise(const Graphs& graphs, const LaidOutRequest& laid_out);

/// The sample float32 [Lg, P] of a noised source, frames uint8 [1 + r k, H, W, 3], at the first step's time.
Tensor begin_with(const Graphs& graphs, const LaidOutRequest& laid_out, const Tensor& source, const Tensor& noise);

/// Rows of the sample whose end is known: patches float32 [Lk, P] at rows int64 [Lk], noise float32 [Lg, P].
struct Known {
  Tensor patches;
  Tensor rows;
  Tensor noise;
};

/// The first frames of a result, behind those of references.
Known known_rows(const LaidOutRequest& laid_out, const Tensor& patches, const Tensor& noise);

/// From noise to patches float32 [Lg, P], along the schedule (paper sections 3.3 and 5.1). texts: [Lt, Dt] each, which
/// the branches name by index. clean: [Lc, Pc]. start: [Lg, P], where the path begins. known: rows whose end is known.
/// on_step_end(step, timestep) is called after each solver step, and stops the request by what it throws.
Tensor solve(const Graphs& graphs, const LaidOutRequest& laid_out, const std::vector<Tensor>& texts,
             const Tensor& clean, const Tensor& start, const std::optional<Known>& known,
             const std::function<void(std::int64_t, double)>& on_step_end);

/// Patches float32 of what is decoded: the clean frames that stay, then what was solved, without the frames of
/// references.
Tensor assemble_patches(const LaidOutRequest& laid_out, const Tensor& clean, const Tensor& patches);

/// Frames uint8 [1 + r k, H, W, 3] of patches float32 of the whole result, one latent frame a call.
Tensor decode_patches(const Graphs& graphs, const LaidOutRequest& laid_out, const Tensor& patches);

}  // namespace ev
