#include "text.hpp"

#include <sentencepiece_processor.h>

#include "error.hpp"

namespace ev {

class Tokenizer::Model {
 public:
  sentencepiece::SentencePieceProcessor processor;
};

Tokenizer::Tokenizer(const std::string& path, std::int64_t eos_id, std::int64_t max_tokens)
    : model_(std::make_unique<Model>()), eos_id_(eos_id), max_tokens_(max_tokens) {
  if (!model_->processor.Load(path).ok()) {
    throw Error(EV_ERROR_BUNDLE, "bundle.tokenizer")
        .found(path, " is not a SentencePiece model")
        .hint("export the bundle again");
  }
  const int num_pieces = model_->processor.GetPieceSize();
  if (eos_id < 0 || eos_id >= num_pieces) {
    throw Error(EV_ERROR_BUNDLE, "bundle.field")
        .found("tokenizer.eos_id is ", eos_id, ", but ", path, " has ids 0 to ", num_pieces - 1)
        .hint("export the bundle again");
  }
}

Tokenizer::~Tokenizer() = default;

std::vector<std::vector<std::int64_t>> Tokenizer::encode_segments(const std::vector<std::string>& segments) const {
  std::vector<std::vector<std::int64_t>> ids;
  std::size_t num_tokens = 1;
  for (const std::string& segment : segments) {
    std::vector<int> encoded;
    if (!model_->processor.Encode(segment, &encoded).ok()) {
      throw Error(EV_ERROR_REQUEST, "request.prompt")
          .found("the instruction cannot be tokenized")
          .hint("give plain words in UTF-8");
    }
    num_tokens += encoded.size();
    ids.emplace_back(encoded.begin(), encoded.end());
  }
  ids.push_back({eos_id_});
  if (num_tokens > static_cast<std::size_t>(max_tokens_)) {
    throw Error(EV_ERROR_REQUEST, "request.prompt_length")
        .found("the instruction has ", num_tokens, " tokens, the end included")
        .hint("this bundle takes up to ", max_tokens_, "; shorten it");
  }
  return ids;
}

}  // namespace ev
