// cuDNN, found when it is first needed.
#pragma once

namespace ev::plugin {

// Loads libcudnn.so.9, once. The functions of cuDNN that this library calls are defined in cudnn_library.cpp
// and pass on to it, so the plugin loads, and its creator answers, on a machine without cuDNN.
// Throws PluginError where there is none.
void load_cudnn();

}  // namespace ev::plugin
