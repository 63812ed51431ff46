// EditVerse: text, images and videos in one interleaved sequence (paper sections 3.1 and 3.2). Where the paper is
// silent, docs/architecture.md has the rules. The twin of editverse_rt/families/editverse.py.
#include <variant>

#include "families/base.hpp"

namespace ev {

namespace {

Grid grid_of(const Geometry& geometry, std::int64_t num_frames, std::int64_t height_px, std::int64_t width_px) {
  return {geometry.count_latent_frames(num_frames), height_px / geometry.size_multiple(),
          width_px / geometry.size_multiple()};
}

/// Inputs are interleaved with the text; guidance's second branch leaves the text rows out.
class EditVerse final : public Family {
 public:
  /// The segment to be generated stands last, after the end of the sequence.
  LaidOutRequest lay_out(const BundleSpec& spec, const CheckedRequest& checked, const Footage& footage) const override {
    const Geometry& geometry = spec.geometry;
    std::vector<std::variant<std::int64_t, Grid>> items;
    auto ids = checked.ids.begin();
    for (const Segment& segment : checked.segments) {
      if (const auto* vision = std::get_if<VisionSegment>(&segment)) {
        const std::vector<std::int64_t>& shape = footage.clips.at(vision->name).shape;
        items.emplace_back(grid_of(geometry, shape[0], shape[1], shape[2]));
      } else {
        items.emplace_back(static_cast<std::int64_t>((ids++)->size()));
      }
    }
    items.emplace_back(static_cast<std::int64_t>(ids->size()));
    LaidOutRequest laid_out;
    for (const auto& [name, frames] : footage.clips) {
      laid_out.sources[name] = {frames.shape[0], frames.shape[1], frames.shape[2]};
    }
    laid_out.num_frames = footage.num_frames;
    laid_out.size = checked.inputs.size;
    laid_out.fps = footage.fps;
    laid_out.schedule = checked.schedule;
    laid_out.seed = checked.request->seed;
    laid_out.target = grid_of(geometry, footage.num_frames, laid_out.size.first, laid_out.size.second);
    laid_out.cond = {0, ev::lay_out(items, laid_out.target, true)};
    laid_out.uncond = {std::nullopt, ev::lay_out(items, laid_out.target, false)};
    return laid_out;
  }

  /// One text: all segments in one call, so that a word sees the whole instruction.
  std::vector<std::vector<std::int64_t>> texts(const CheckedRequest& checked) const override {
    std::vector<std::int64_t> whole;
    for (const auto& ids : checked.ids) whole.insert(whole.end(), ids.begin(), ids.end());
    return {whole};
  }

  /// The same request, whose first frames are known.
  std::optional<Tensor> go_on(const BundleSpec&, const CheckedRequest&, Footage&, const Tensor& before) const override {
    return before;
  }

  Tensor encode_known(const Graphs& graphs, const Tensor& frames) const override {
    return encode_clips(graphs, {frames});
  }

  /// The patches of every clip, in the order of the instruction.
  Tensor encode_clean(const Graphs& graphs, const CheckedRequest& checked, const Footage& footage) const override {
    std::vector<Tensor> clips;
    for (const std::string& name : checked.clip_names()) clips.push_back(footage.clips.at(name));
    return encode_clips(graphs, clips);
  }
};

}  // namespace

const Family& editverse_family() {
  static const EditVerse family;
  return family;
}

}  // namespace ev
