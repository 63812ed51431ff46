// Wan 2.1 and 2.2, VACE and Lucy-Edit: a grid of patches that attends to a text beside it. The twin of
// editverse_rt/families/wan.py, which says what each kind of conditioning is.
#include <algorithm>
#include <cstdlib>
#include <optional>

#include "error.hpp"
#include "families/base.hpp"

namespace ev {

namespace {

constexpr std::uint8_t kWhite = 255;
// A mask's grey level above which a pixel is made anew.
constexpr std::uint8_t kThreshold = 127;

/// Which input is what; nothing where there is none.
struct Roles {
  std::optional<std::string> video;
  std::optional<std::string> mask;
  std::optional<std::string> first_frame;
  std::vector<std::string> references;
};

void check_count(const std::vector<std::string>& found, std::size_t most, const char* kind) {
  if (found.size() <= most) return;
  std::string names;
  for (const std::string& name : found) names += (names.empty() ? "" : ", ") + name;
  throw Error(EV_ERROR_REQUEST, "request.unsupported", "inputs")
      .found(names, " is given")
      .expected("at most ", most, " ", kind, most == 1 ? "" : "s", ", which is what this bundle takes")
      .hint("leave the others out");
}

/// What each input is for, by the bundle's conditioning. Throws EV_ERROR_REQUEST for one that has no use.
Roles roles_of(const BundleSpec& spec, const CheckedRequest& checked) {
  std::vector<std::string> videos, images;
  for (const std::string& name : checked.inputs.names) {
    (input_kind(name) == "video" ? videos : images).push_back(name);
  }
  const std::string& kind = spec.conditioning;
  check_count(videos, kind == "rows" ? 0 : kind == "control" ? 2 : 1, "video");
  check_count(images, kind == "rows" ? 1 : kind == "control" ? images.size() : 0, "image");
  if (kind == "channels" && videos.empty()) {
    throw Error(EV_ERROR_REQUEST, "request.unsupported", "inputs")
        .found("no video is given")
        .expected("video1, the clip to edit");
  }
  Roles roles;
  if (!videos.empty()) roles.video = videos[0];
  if (videos.size() > 1) roles.mask = videos[1];
  if (kind == "rows" && !images.empty()) roles.first_frame = images[0];
  if (kind == "control") roles.references = std::move(images);
  return roles;
}

/// A mask lasts as long as its video. Lengths that are only expected are not held to it.
void check_lengths(const Roles& roles, const CheckedRequest& checked, const Footage& footage) {
  if (!roles.mask || !roles.video) return;
  const Tensor &mask_clip = footage.clips.at(*roles.mask), &video_clip = footage.clips.at(*roles.video);
  std::int64_t mask = mask_clip.shape[0], video = video_clip.shape[0], slack = 0;
  if (checked.inputs.total_frames) {  // the clips are windows: by what the files say, where they say it
    const std::optional<std::int64_t> masks = expect_length(checked.inputs, *roles.mask);
    const std::optional<std::int64_t> videos = expect_length(checked.inputs, *roles.video);
    if (!masks || !videos) return;
    mask = *masks, video = *videos;
    // A mask of another rate is taken at the video's times, of which its end may leave one out.
    slack = checked.inputs.rate_for(*roles.mask, checked.inputs.fps) ? 1 : 0;
  } else if (mask_clip.data == nullptr || video_clip.data == nullptr) {
    return;
  }
  if (std::abs(mask - video) <= slack) return;
  throw Error(EV_ERROR_REQUEST, "request.input_kind", "inputs." + *roles.mask)
      .found(*roles.mask, ", the mask, has ", mask, " frames and ", *roles.video, " has ", video)
      .expected("the same length")
      .hint("give a mask frame for each frame of the video");
}

/// Noisy rows in order, after the rows of a clean first frame where there is one (num_kept frames). The layout indexes
/// (noisy, clean); positions are frame, row and column, and 0 on the sequential axis.
Layout lay_out_grid(const Grid& noisy, std::int64_t num_clean, std::int64_t num_kept) {
  Layout made;
  made.num_clean = num_clean;
  made.num_noisy = noisy.num_patches();
  const std::int64_t first = num_kept * noisy.rows * noisy.columns;
  for (std::int64_t i = 0; i < first; ++i) made.layout.push_back(made.num_noisy + i);
  for (std::int64_t i = 0; i < made.num_noisy; ++i) made.layout.push_back(i);
  for (std::int64_t frame = 0; frame < noisy.frames + num_kept; ++frame) {
    for (std::int64_t row = 0; row < noisy.rows; ++row) {
      for (std::int64_t column = 0; column < noisy.columns; ++column) {
        made.positions.insert(made.positions.end(), {0, frame, row, column});
      }
    }
  }
  return made;
}

/// A picture uint8 [1, H, W, 3] in the middle of a white one.
Tensor put_on_white(const Tensor& picture, const Size& size) {
  const auto [height, width] = size;
  if (picture.shape[1] == height && picture.shape[2] == width) return picture;
  Tensor canvas = make_unset_tensor("uint8", {1, height, width, 3});
  std::fill_n(canvas.as<std::uint8_t>(), canvas.num_elements(), kWhite);
  const std::int64_t top = (height - picture.shape[1]) / 2, left = (width - picture.shape[2]) / 2;
  const std::int64_t row_bytes = picture.shape[2] * 3;
  for (std::int64_t row = 0; row < picture.shape[1]; ++row) {
    std::copy_n(picture.as<const std::uint8_t>() + row * row_bytes, row_bytes,
                canvas.as<std::uint8_t>() + ((top + row) * width + left) * 3);
  }
  return canvas;
}

Tensor filled(const std::vector<std::int64_t>& shape, float value) {
  Tensor tensor = make_unset_tensor("float32", shape);
  std::fill_n(tensor.as<float>(), tensor.num_elements(), value);
  return tensor;
}

/// levels: of a mask, 0 to 1. anew: 1 where a pixel is made anew, and rest: 1 where it is kept. All [T, H, W].
struct MaskPlanes {
  Tensor levels;
  Tensor anew;
  Tensor rest;
};

MaskPlanes planes_of(const Tensor& mask) {
  const std::vector<std::int64_t> shape(mask.shape.begin(), mask.shape.end() - 1);
  MaskPlanes planes{make_unset_tensor("float32", shape), make_unset_tensor("float32", shape),
                    make_unset_tensor("float32", shape)};
  for (std::int64_t i = 0; i < planes.levels.num_elements(); ++i) {
    const std::uint8_t level = mask.as<const std::uint8_t>()[3 * i];
    planes.levels.as<float>()[i] = static_cast<float>(level) / static_cast<float>(kWhite);
    planes.anew.as<float>()[i] = level > kThreshold ? 1.0F : 0.0F;
    planes.rest.as<float>()[i] = level > kThreshold ? 0.0F : 1.0F;
  }
  return planes;
}

/// VACE's control rows: references in front, the last one first, then the masked video. The video is encoded once for
/// what is kept and once for what is made anew; without a mask all is made anew, and without a video there is grey.
Tensor encode_control(const Graphs& graphs, const CheckedRequest& checked, const Footage& footage, const Roles& roles) {
  const Geometry& geometry = graphs.spec().geometry;
  const Size& size = checked.inputs.size;
  const std::vector<std::int64_t> shape = {footage.num_frames, size.first, size.second};
  std::vector<Tensor> clips, keeps;
  for (auto name = roles.references.rbegin(); name != roles.references.rend(); ++name) {
    clips.push_back(put_on_white(footage.clips.at(*name), size));
    keeps.push_back(filled({1, size.first, size.second}, 1.0F));
  }
  Tensor levels;
  if (!roles.video) {
    clips.push_back(make_tensor("uint8", {shape[0], shape[1], shape[2], 3}));
    keeps.push_back(filled(shape, 0.0F));
  } else {
    const MaskPlanes planes = roles.mask ? planes_of(footage.clips.at(*roles.mask))
                                         : MaskPlanes{{}, filled(shape, 1.0F), filled(shape, 0.0F)};
    levels = planes.levels;
    clips.insert(clips.end(), 2, footage.clips.at(*roles.video));
    keeps.insert(keeps.end(), {planes.rest, planes.anew});
  }
  const Tensor encoded = encode_clips(graphs, clips, keeps);
  keeps.clear();

  const Grid grid{1, size.first / geometry.size_multiple(), size.second / geometry.size_multiple()};
  const auto num_references = static_cast<std::int64_t>(roles.references.size());
  const std::int64_t num_latent = geometry.count_latent_frames(footage.num_frames);
  const std::int64_t a_frame = grid.num_patches();
  const auto patches = [&](std::int64_t frame) {
    return reshape(slice_rows(encoded, frame * a_frame, a_frame), {1, grid.rows, grid.columns, geometry.patch_dim});
  };
  const Tensor no_patches = make_tensor("float32", {1, grid.rows, grid.columns, geometry.patch_dim});
  const Tensor no_mask = filled({size.first, size.second}, 0.0F), whole_mask = filled({size.first, size.second}, 1.0F);
  const Tensor rows = make_unset_tensor("float32", {(num_references + num_latent) * a_frame, geometry.clean_dim});
  for (std::int64_t i = 0; i < num_references + num_latent; ++i) {
    const std::int64_t frame = i - num_references;
    Tensor mask = frame < 0 ? no_mask : whole_mask;
    if (frame >= 0 && levels.data != nullptr) {
      // The frame whose mask stands for a latent frame: scaled in time to the nearest.
      mask = reshape(slice_rows(levels, (2 * frame + 1) * footage.num_frames / (2 * num_latent), 1),
                     {size.first, size.second});
    }
    const Tensor reactive = frame < 0 ? no_patches : roles.video ? patches(i + num_latent) : patches(i);
    NamedTensors outputs = {
        {"clean", reshape(slice_rows(rows, i * a_frame, a_frame), {1, grid.rows, grid.columns, geometry.clean_dim})}};
    graphs.run("condition", {{"inactive", patches(i)}, {"reactive", reactive}, {"mask", mask}}, outputs);
  }
  graphs.give_back("condition");
  return rows;
}

/// The text stands beside the sequence; guidance's second branch has a negative prompt.
class Wan final : public Family {
 public:
  LaidOutRequest lay_out(const BundleSpec& spec, const CheckedRequest& checked, const Footage& footage) const override {
    const Roles roles = roles_of(spec, checked);
    const Geometry& geometry = spec.geometry;
    const std::string& kind = spec.conditioning;
    LaidOutRequest laid_out;
    laid_out.num_kept = roles.first_frame ? 1 : 0;
    laid_out.num_dropped = static_cast<std::int64_t>(roles.references.size());
    laid_out.size = checked.inputs.size;
    laid_out.target = {geometry.count_latent_frames(footage.num_frames) + laid_out.num_dropped - laid_out.num_kept,
                       laid_out.size.first / geometry.size_multiple(), laid_out.size.second / geometry.size_multiple()};
    std::int64_t num_clean = laid_out.num_kept * laid_out.target.rows * laid_out.target.columns;
    if (kind == "channels" || kind == "control") num_clean = laid_out.target.num_patches();
    check_lengths(roles, checked, footage);
    for (const auto& [name, frames] : footage.clips) {
      laid_out.sources[name] = {frames.shape[0], frames.shape[1], frames.shape[2]};
    }
    laid_out.num_frames = footage.num_frames;
    laid_out.fps = footage.fps;
    laid_out.schedule = checked.schedule;
    laid_out.seed = checked.request->seed;
    laid_out.cond = {0, lay_out_grid(laid_out.target, num_clean, laid_out.num_kept)};
    laid_out.uncond = {1, laid_out.cond.layout};
    if (kind == "none") laid_out.start = roles.video;
    return laid_out;
  }

  /// The instruction without its tags, and the negative prompt.
  std::vector<std::vector<std::int64_t>> texts(const CheckedRequest& checked) const override {
    std::vector<std::int64_t> whole;
    for (const auto& ids : checked.ids) whole.insert(whole.end(), ids.begin(), ids.end());
    return {whole, checked.negative_ids.value_or(std::vector<std::int64_t>())};
  }

  /// A model that takes a first frame gets one, for others the first frames are known.
  std::optional<Tensor> go_on(const BundleSpec& spec, const CheckedRequest& checked, Footage& footage,
                              const Tensor& before) const override {
    const std::optional<std::string> first_frame = roles_of(spec, checked).first_frame;
    if (!first_frame) return before;
    footage.clips[*first_frame] = slice_rows(before, before.shape[0] - 1, 1);
    return std::nullopt;
  }

  Tensor encode_known(const Graphs& graphs, const Tensor& frames) const override {
    if (graphs.spec().conditioning != "control") return encode_clips(graphs, {frames});
    return encode_clips(graphs, {frames}, {filled({frames.shape[0], frames.shape[1], frames.shape[2]}, 1.0F)});
  }

  /// None, the first frame, the source, or the control rows.
  Tensor encode_clean(const Graphs& graphs, const CheckedRequest& checked, const Footage& footage) const override {
    const std::string& kind = graphs.spec().conditioning;
    const Roles roles = roles_of(graphs.spec(), checked);
    if (kind == "control") return encode_control(graphs, checked, footage, roles);
    const std::optional<std::string>& name = kind == "rows" ? roles.first_frame : roles.video;
    if (!name || kind == "none") return make_tensor("float32", {0, graphs.spec().geometry.clean_dim});
    return encode_clips(graphs, {footage.clips.at(*name)});
  }
};

}  // namespace

const Family& wan_family() {
  static const Wan family;
  return family;
}

}  // namespace ev
