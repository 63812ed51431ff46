// UTF-8 and the two properties of characters that instructions need.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace ev {

/// A character of a text, and where its bytes begin.
struct Character {
  char32_t code;
  std::size_t offset;
};

/// The characters of a UTF-8 text; nothing if it is not well-formed (overlong forms and surrogates are not).
std::optional<std::vector<Character>> decode_utf8(const std::string& text);

/// Whether Python's str.isspace, and so \s and str.strip, take a character for white space.
bool is_space(char32_t code);

/// The lower-case ASCII letter that a character equals where case is ignored, as Python's re does, or itself.
char32_t fold_case(char32_t code);

}  // namespace ev
