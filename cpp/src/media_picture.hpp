// Decoded frames as pictures: converted to RGB, resized, put upright.
#pragma once

#include <string>
#include <vector>

#include "libav.hpp"
#include "media.hpp"

namespace ev {

/// How stored pixels become the picture shown: swap the axes first, then flip.
struct Placement {
  bool transpose = false;
  bool flip_x = false;
  bool flip_y = false;
};

/// How a frame of a video is to be put upright, from the display matrix of its container.
Placement placement_of(const AVFrame& frame, AVStream* stream);

/// How a picture of an EXIF orientation, 1 to 8, is to be put upright.
Placement placement_of_exif(int orientation);

/// What is done to frames that their owner may not expect, as lines for the user.
std::vector<std::string> pixel_notices(const AVFrame& frame);

/// Resizes a picture in RGB into `to` [height, width, 3] without gaps.
void scale_rgb(const Picture& from, int width, int height, std::uint8_t* to);

/// Converts a frame in RGB into one of an encoder's format, of the same size. colorspace: AVCOL_SPC_*.
void convert_rgb(const AVFrame& rgb, AVFrame& to, int colorspace, bool is_full_range);

/// A decoded frame as an upright picture [height, width, 3]. is_image: it is no frame of a video, whose colours follow
/// other rules where the file does not say.
void render(const AVFrame& frame, const Placement& place, bool is_image, int height, int width, char* target);

}  // namespace ev
