// The tokenizer of a bundle. text.cpp is the only file that includes SentencePiece. The twin of
// editverse_rt/request/tokenizer.py.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace ev {

/// Turns the text segments of a request into token ids. Safe to use from several threads.
class Tokenizer {
 public:
  /// path: a SentencePiece model. eos_id ends every encoded instruction. max_tokens: the most ids of one request, the
  /// end included. Throws EV_ERROR_BUNDLE if the file is no SentencePiece model, or has no such id.
  Tokenizer(const std::string& path, std::int64_t eos_id, std::int64_t max_tokens);
  ~Tokenizer();

  /// Ids of each segment, tokenized on its own, and a last list with the end-of-sequence id. Throws EV_ERROR_REQUEST
  /// if all lists together exceed max_tokens.
  std::vector<std::vector<std::int64_t>> encode_segments(const std::vector<std::string>& segments) const;

 private:
  class Model;
  std::unique_ptr<Model> model_;
  std::int64_t eos_id_;
  std::int64_t max_tokens_;
};

}  // namespace ev
