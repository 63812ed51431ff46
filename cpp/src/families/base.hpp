// What a model family says: how a request becomes a sequence, which texts are encoded, what the clean rows are. The
// twin of editverse_rt/families/base.py. Its graphs stand in tables.hpp.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checked.hpp"
#include "laid_out.hpp"
#include "stages.hpp"

namespace ev {

/// The rules of one family. Everything else is the same for all.
class Family {
 public:
  virtual ~Family() = default;

  /// The request in integers. footage: its clips, or what is expected of them. Throws EV_ERROR_REQUEST.
  virtual LaidOutRequest lay_out(const BundleSpec& spec, const CheckedRequest& checked,
                                 const Footage& footage) const = 0;

  /// How a window begins where the one before ends: changes its clips, and gives the frames that it has to begin with.
  /// before: the last shared frames of the result so far, uint8 [T, H, W, 3].
  virtual std::optional<Tensor> go_on(const BundleSpec& spec, const CheckedRequest& checked, Footage& footage,
                                      const Tensor& before) const = 0;

  /// Noisy rows float32 [Lk, P] of frames of the result.
  virtual Tensor encode_known(const Graphs& graphs, const Tensor& frames) const = 0;

  /// Token ids of each text to encode; the branches of the laid-out request name them by index.
  virtual std::vector<std::vector<std::int64_t>> texts(const CheckedRequest& checked) const = 0;

  /// The clean rows float32 [Lc, Pc]: what the transformer sees of the inputs.
  virtual Tensor encode_clean(const Graphs& graphs, const CheckedRequest& checked, const Footage& footage) const = 0;
};

/// The rules of a family that a bundle names; a bundle of another one does not load.
const Family& family_of(const std::string& name);

/// A family a file.
const Family& editverse_family();
const Family& wan_family();

}  // namespace ev
